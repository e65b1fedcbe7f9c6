package bus_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// startExported runs what was exported into dir, as nats-server would from that folder.
func startExported(t *testing.T, dir string) *external {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "nats-server.conf"))
	if err != nil {
		t.Fatal(err)
	}
	x := &external{conf: filepath.Join(dir, "absolute.conf")}
	if err := os.WriteFile(x.conf, []byte(strings.ReplaceAll(string(text), `"./`, `"`+dir+`/`)), 0o600); err != nil {
		t.Fatal(err)
	}
	x.start(t)
	t.Cleanup(x.stop)
	return x
}

// site is a hub with the leaf node of one site.
type site struct {
	keys          *bus.Keys
	hub, leaf     *external
	hubAddr       string
	hubLeafAddr   string
	leafAddr      string
	leafDir       string
	leafConfig    bus.LeafConfig
	leafNkey      string
	issuer        *bus.Conn
	issuerAccount *nats.Conn
}

func startSite(t *testing.T) *site {
	t.Helper()
	s := &site{hubAddr: freeAddr(t), hubLeafAddr: freeAddr(t), leafAddr: freeAddr(t)}
	var err error
	if s.keys, err = bus.NewKeys(); err != nil {
		t.Fatal(err)
	}
	hubDir := t.TempDir()
	s.leafDir = t.TempDir()
	if _, err := bus.Export(hubDir, s.keys, bus.ExportConfig{Listen: s.hubAddr, Names: []string{"127.0.0.1"}, LeafListen: s.hubLeafAddr}); err != nil {
		t.Fatal(err)
	}
	s.leafConfig = bus.LeafConfig{Site: "berlin", Hubs: []string{"tls://" + s.hubLeafAddr}, Listen: s.leafAddr, Names: []string{"127.0.0.1"}}
	if s.leafNkey, _, err = bus.ExportLeaf(s.leafDir, s.keys, s.leafConfig); err != nil {
		t.Fatal(err)
	}
	s.hub, s.leaf = startExported(t, hubDir), startExported(t, s.leafDir)
	s.linked(t)
	user, err := s.keys.IssuerUser("one")
	if err != nil {
		t.Fatal(err)
	}
	if s.issuer, err = bus.Connect(bus.ConnectConfig{URLs: []string{"tls://" + s.hubAddr}, User: user, CA: s.keys.CAPEM(), Name: "issuer"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.issuer.Close)
	s.issuerAccount = s.dial(t, s.hubAddr, user)
	return s
}

func (s *site) linked(t *testing.T) {
	t.Helper()
	eventually(t, "the leaf node's link", func() bool { return s.hub.srv.NumLeafNodes() == 1 && s.leaf.srv.NumLeafNodes() == 1 })
}

// dial connects as nats.go does, to see what a credential is refused.
func (s *site) dial(t *testing.T, addr string, user *bus.User, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := s.try(addr, user, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func (s *site) try(addr string, user *bus.User, opts ...nats.Option) (*nats.Conn, error) {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.keys.CAPEM())
	opts = append(opts, nats.UserJWTAndSeed(user.JWT, string(user.Seed)), nats.Secure(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}), nats.NoReconnect())
	return nats.Connect("tls://"+addr, opts...)
}

func (s *site) agentUser(t *testing.T, name string) *bus.User {
	t.Helper()
	user, err := s.keys.AgentUser(name)
	if err != nil {
		t.Fatal(err)
	}
	return user
}

// TestExportLeaf: agents follow the log through the leaf node of their site as at the bus itself; what they
// may not do at the bus they may not there either, nor may the leaf node's own credential.
func TestExportLeaf(t *testing.T) {
	s := startSite(t)
	if s.leaf.srv.JetStreamEnabled() {
		t.Error("the leaf node keeps something on disk")
	}
	authority, err := keyring.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	l, err := bus.OpenLog(t.Context(), s.issuer, bus.LogConfig{Authority: authority, Issuer: "one"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	mustAppend(t, l, revocation("a"))
	conn, err := bus.Connect(bus.ConnectConfig{URLs: []string{"tls://" + s.leafAddr}, User: s.agentUser(t, "x"), CA: s.keys.CAPEM(), Name: "x", Agent: "x"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	reader := readerLog{bus.NewReader(conn, authority.Public()), l}
	got := collect(t, reader, bus.Cursor{}, 1)
	if ids(got)[0] != "a" {
		t.Fatalf("reading back through the leaf node: got %v", ids(got))
	}
	mustAppend(t, l, revocation("b"))
	if got := collect(t, reader, got[0].Cursor(), 1); ids(got)[0] != "b" {
		t.Errorf("following through the leaf node: got %v", ids(got))
	}
	s.refusedAtTheLeaf(t)
	s.refusedToTheLeaf(t)
}

// forbidden is what no agent may publish to, and so no leaf node.
var forbidden = []string{
	"sidekey.log.revoke", "sidekey.log.tick", "sidekey.live.revoke", "sidekey.checkpoint.manifest", "sidekey.grants", "sidekey.audit._eA", "sidekey.removed",
	"$JS.API.INFO", "$JS.API.STREAM.DELETE.sidekey_log", "$JS.API.STREAM.PURGE.sidekey_log", "$JS.API.STREAM.INFO.sidekey_log",
	"$JS.API.STREAM.MSG.GET.KV_sidekey_users", "$JS.API.DIRECT.GET.KV_sidekey_users", "$JS.API.CONSUMER.CREATE.sidekey_log",
	"$KV.sidekey_users.x", "$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.SERVER.PING", "_INBOX_AGENT._eQ.x", "other",
}

// refusedAtTheLeaf: the leaf node itself refuses an agent what it may not, and other agents' subjects.
func (s *site) refusedAtTheLeaf(t *testing.T) {
	t.Helper()
	var refused denials
	agent := s.dial(t, s.leafAddr, s.agentUser(t, "x"), refused.option())
	publish := append([]string{"sidekey.ack._eQ", "sidekey.lease._eQ", "sidekey.status._eQ", "sidekey.basic._eQ", "sidekey.join.x"}, forbidden...)
	for _, subject := range publish {
		if err := agent.PublishRequest(subject, "_INBOX_AGENT._eA.answer", []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	subscribe := []string{">", "sidekey.>", "sidekey.ack.*", "sidekey.lease.*", "_INBOX_AGENT.>", "_INBOX_AGENT._eQ.>", "$SYS.>", "_R_.>"}
	for _, subject := range subscribe {
		if _, err := agent.SubscribeSync(subject); err != nil {
			t.Fatal(err)
		}
	}
	for _, subject := range publish {
		eventually(t, "refusal to publish to "+subject, func() bool { return refused.of("publish", subject) })
	}
	for _, subject := range subscribe {
		eventually(t, "refusal to subscribe to "+subject, func() bool { return refused.of("subscription", subject) })
	}
	for _, addr := range []string{s.leafAddr, s.hubAddr} {
		issuer, err := s.keys.IssuerUser("x")
		if err != nil {
			t.Fatal(err)
		}
		if nc, err := s.try(addr, issuer); addr == s.leafAddr && err == nil {
			t.Error("the leaf node lets an issuer in: it has no business with that account")
			nc.Close()
		} else if addr == s.hubAddr && err != nil {
			t.Errorf("the hub does not know an issuer: %v", err)
		} else if err == nil {
			nc.Close()
		}
	}
}

// refusedToTheLeaf: whoever owns the leaf node's host has its credential, and a nats-server that refuses nothing.
func (s *site) refusedToTheLeaf(t *testing.T) {
	t.Helper()
	creds, err := os.ReadFile(filepath.Join(s.leafDir, "leaf.creds"))
	if err != nil {
		t.Fatal(err)
	}
	user, err := bus.ParseUser(creds)
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{s.hubAddr, s.leafAddr} {
		if nc, err := s.try(addr, user); err == nil {
			nc.Close()
			t.Errorf("the leaf node's credential is good for a client at %s", addr)
		}
	}
	heard := make(chan string, 100)
	for _, subject := range []string{"sidekey.>", "_INBOX_AGENT.>", "other"} {
		if _, err := s.issuerAccount.Subscribe(subject, func(m *nats.Msg) { heard <- m.Subject }); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.issuerAccount.Flush(); err != nil {
		t.Fatal(err)
	}
	before := streamState(t, s.issuerAccount)
	for _, subject := range forbidden {
		said := "LMSG " + subject + " _INBOX_AGENT.x.y 2\r\n{}\r\nPING\r\n"
		if answer := rawLeaf(t, s, user, false).ask(t, said); !strings.Contains(answer, "Permissions Violation for Publish") {
			t.Errorf("the leaf node's credential publishes to %s: got %q", subject, answer)
		}
		rawLeaf(t, s, user, true).ask(t, said) // one that calls itself the hub is told nothing
	}
	rawLeaf(t, s, user, false).ask(t, "LMSG sidekey.ack._eA 2\r\n{}\r\nPING\r\n") // what it may: behind it the rest was read
	if subject := <-heard; subject != "sidekey.ack._eA" {
		t.Errorf("the leaf node's credential has published to %s", subject)
	}
	if after := streamState(t, s.issuerAccount); after != before {
		t.Errorf("the leaf node's credential changed the log: before %s, after %s", before, after)
	}
	for _, isHub := range []bool{false, true} {
		for _, subject := range []string{">", "sidekey.log.>", "sidekey.ack.*", "sidekey.lease.*", "$SYS.>", "$JS.>", "_R_.>", "_INBOX.>"} {
			s.hearsNothing(t, rawLeaf(t, s, user, isHub), subject)
		}
	}
}

// hearsNothing: a subscription is refused, or what agents say to the issuers does not come by it.
func (s *site) hearsNothing(t *testing.T, w leafWire, subject string) {
	t.Helper()
	answer := w.ask(t, "LS+ "+subject+"\r\nPING\r\n")
	if strings.Contains(answer, "Permissions Violation for Subscription") {
		return
	}
	agent := s.dial(t, s.hubAddr, s.agentUser(t, "z"))
	if err := agent.Publish("sidekey.ack."+bus.Name("z"), []byte("told")); err != nil {
		t.Fatal(err)
	}
	if err := agent.Flush(); err != nil {
		t.Fatal(err)
	}
	if answer += w.ask(t, "PING\r\n"); strings.Contains(answer, "told") || strings.Contains(answer, "sidekey.ack._eg") {
		t.Errorf("the leaf node's credential hears the agents through %s: %s", subject, answer)
	}
}

// streamState is what the log's owner sees of it.
func streamState(t *testing.T, owner *nats.Conn) string {
	t.Helper()
	m, err := owner.Request("$JS.API.STREAM.INFO.sidekey_log", nil, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	_, state, ok := strings.Cut(string(m.Data), `"state":`)
	if !ok {
		t.Fatalf("no state in %s", m.Data)
	}
	state, _, _ = strings.Cut(state, "}")
	return state
}

// TestExportLeafAnew: a site's credential stays the same when its configuration is written anew, with which a
// removed agent is refused at the leaf node; and it can be taken away.
func TestExportLeafAnew(t *testing.T) {
	s := startSite(t)
	x, y := s.agentUser(t, "x"), s.agentUser(t, "y")
	gone, stays := s.dial(t, s.leafAddr, x), s.dial(t, s.leafAddr, y)
	s.leafConfig.Revoked = []string{nkeyOf(t, x)}
	nkey, written, err := bus.ExportLeaf(s.leafDir, s.keys, s.leafConfig)
	if err != nil || nkey != s.leafNkey || len(written) != 6 {
		t.Fatalf("ExportLeaf again: got %s, %v, %v, want the same credential in six files", nkey, written, err)
	}
	for _, path := range written {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v (%v), want 0600", path, info.Mode(), err)
		}
	}
	text, err := os.ReadFile(filepath.Join(s.leafDir, "nats-server.conf"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.leaf.conf, []byte(strings.ReplaceAll(string(text), `"./`, `"`+s.leafDir+`/`)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.leaf.srv.Reload(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removed agent's connection to end", gone.IsClosed)
	if nc, err := s.try(s.leafAddr, x); err == nil {
		nc.Close()
		t.Error("a removed agent is let in again")
	}
	if stays.IsClosed() {
		t.Error("a removal has cut off another agent")
	}
	s.linked(t)

	cfg := bus.ConnectConfig{URLs: []string{"tls://" + s.hubAddr}, CA: s.keys.CAPEM(), Name: "test"}
	if err := bus.PushRevoked(t.Context(), cfg, s.keys, []string{s.leafNkey}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the leaf node's link to end", func() bool { return s.hub.srv.NumLeafNodes() == 0 })
	s.leafConfig.Revoked = []string{s.leafNkey}
	if _, _, err := bus.ExportLeaf(s.leafDir, s.keys, s.leafConfig); err == nil || !strings.Contains(err.Error(), "was removed; remove the file, and another is made") {
		t.Errorf("ExportLeaf over a removed credential: got %v", err)
	}
	s.leafConfig.Site = "paris"
	if _, _, err := bus.ExportLeaf(s.leafDir, s.keys, s.leafConfig); err == nil || !strings.Contains(err.Error(), `is of another site than "paris"`) {
		t.Errorf("ExportLeaf over another site's: got %v", err)
	}
}

// TestExportRefuses: what could not be started, or would let somebody listen in, is not written.
func TestExportRefuses(t *testing.T) {
	keys, err := bus.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	three := []bus.ExportServer{{Name: "a", Host: "10.0.0.1"}, {Name: "b", Host: "10.0.0.2"}, {Name: "c", Host: "10.0.0.3"}}
	for _, c := range []struct {
		cfg  bus.ExportConfig
		want string
	}{
		{bus.ExportConfig{Listen: ":1", LeafListen: ":2"}, "by TLS alone"},
		{bus.ExportConfig{Listen: ":1", Servers: three[:2]}, "name three"},
		{bus.ExportConfig{Listen: ":1", Servers: append(three[:2:2], bus.ExportServer{Name: "a", Host: "10.0.0.4"})}, "of its own"},
		{bus.ExportConfig{Listen: ":1", Servers: append(three[:2:2], bus.ExportServer{Name: "d", Host: "10.0.0.1"})}, "of its own"},
		{bus.ExportConfig{Listen: ":1", Servers: append(three[:2:2], bus.ExportServer{Name: "../d", Host: "10.0.0.4"})}, `reading the name "../d"`},
		{bus.ExportConfig{Listen: "4222"}, "want host:port"},
	} {
		if _, err := bus.Export(filepath.Join(t.TempDir(), "x"), keys, c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Export of %+v: got %v, want %q", c.cfg, err, c.want)
		}
	}
	good := bus.LeafConfig{Site: "berlin", Hubs: []string{"tls://hub:7422"}, Listen: ":4222", Names: []string{"leaf"}}
	for want, change := range map[string]func(*bus.LeafConfig){
		"want tls://HOST:PORT":           func(c *bus.LeafConfig) { c.Hubs = []string{"nats://hub:7422"} },
		`the hub's address "tls://hub"`:  func(c *bus.LeafConfig) { c.Hubs = []string{"tls://hub"} },
		"it needs the names under which": func(c *bus.LeafConfig) { c.Names = nil },
		"and the addresses at which":     func(c *bus.LeafConfig) { c.Hubs = nil },
		`reading the address "4222"`:     func(c *bus.LeafConfig) { c.Listen = "4222" },
		`reading the name "a/b"`:         func(c *bus.LeafConfig) { c.Site = "a/b" },
	} {
		cfg := good
		change(&cfg)
		if _, _, err := bus.ExportLeaf(filepath.Join(t.TempDir(), "x"), keys, cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ExportLeaf of %+v: got %v, want %q", cfg, err, want)
		}
	}
}

// leafWire speaks the protocol of leaf nodes by itself, as a server that was tampered with may.
type leafWire struct{ net.Conn }

// ask says something that ends with a PING, and gives what came until it was answered or the connection closed.
func (w leafWire) ask(t *testing.T, text string) string {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		return err.Error()
	}
	return w.until(t, "PONG")
}

// until reads on to a word and gives what came.
func (w leafWire) until(t *testing.T, word string) string {
	t.Helper()
	var all []byte
	buf := make([]byte, 4096)
	w.SetReadDeadline(time.Now().Add(10 * time.Second)) //nolint:errcheck // a connection of TCP
	for !strings.Contains(string(all), word) {
		n, err := w.Read(buf)
		all = append(all, buf[:n]...)
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			break
		}
		if err != nil {
			t.Fatalf("waiting for %s: %v; came: %s", word, err, all)
		}
	}
	return string(all)
}

// rawLeaf connects to the hub as a leaf node does.
func rawLeaf(t *testing.T, s *site, user *bus.User, isHub bool) leafWire {
	t.Helper()
	plain, err := net.Dial("tcp", s.hubLeafAddr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plain.Close() })
	var info struct {
		Nonce string `json:"nonce"`
	}
	line := leafWire{plain}.until(t, "\r\n")
	if err := json.Unmarshal([]byte(strings.TrimPrefix(line, "INFO ")), &info); err != nil {
		t.Fatalf("reading %q: %v", line, err)
	}
	kp, err := nkeys.FromSeed(user.Seed)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := kp.Sign([]byte(info.Nonce))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.keys.CAPEM())
	w := leafWire{tls.Client(plain, &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS13})}
	connect, err := json.Marshal(map[string]any{
		"jwt": user.JWT, "sig": base64.RawURLEncoding.EncodeToString(sig), "server_id": "raw", "name": "raw", "version": "2.15.2",
		"is_hub": isHub, "compress_mode": "not supported", "protocol": 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	if answer := w.ask(t, "CONNECT "+string(connect)+"\r\nPING\r\n"); !strings.Contains(answer, "PONG") {
		t.Fatalf("connecting as a leaf node: got %q", answer)
	}
	return w
}

func nkeyOf(t *testing.T, u *bus.User) string {
	t.Helper()
	kp, err := nkeys.FromSeed(u.Seed)
	if err != nil {
		t.Fatal(err)
	}
	key, err := kp.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestExportCluster: three servers from what is exported are one bus, and no certificate of the bus's CA but
// those that were made for routes opens one.
func TestExportCluster(t *testing.T) {
	if os.Getenv("SIDEKEY_LONG") == "" {
		t.Skip("set SIDEKEY_LONG=1 to run three servers")
	}
	keys, err := bus.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	_, port, _ := net.SplitHostPort(freeAddr(t))
	_, routePort, _ := net.SplitHostPort(freeAddr(t))
	_, leafPort, _ := net.SplitHostPort(freeAddr(t))
	written, err := bus.Export(dir, keys, bus.ExportConfig{
		Listen: ":" + port, RoutePort: routePort, LeafListen: ":" + leafPort,
		Servers: []bus.ExportServer{{Name: "a", Host: "127.0.0.1"}, {Name: "b", Host: "127.0.0.2"}, {Name: "c", Host: "127.0.0.3"}},
	})
	if err != nil || len(written) != 18 {
		t.Fatalf("Export: got %d files, %v, want six for each server", len(written), err)
	}
	var servers []*external
	for _, name := range []string{"a", "b", "c"} {
		servers = append(servers, startExported(t, filepath.Join(dir, name)))
	}
	eventually(t, "the routes", func() bool { return servers[0].srv.NumRoutes() > 1 && servers[2].srv.NumRoutes() > 1 })
	s := &site{keys: keys}
	user, err := keys.IssuerUser("one")
	if err != nil {
		t.Fatal(err)
	}
	owner := s.dial(t, "127.0.0.2:"+port, user)
	eventually(t, "a stream on three servers", func() bool {
		m, err := owner.Request("$JS.API.STREAM.CREATE.x", []byte(`{"name":"x","subjects":["x"],"num_replicas":3,"storage":"file","retention":"limits"}`), 2*time.Second)
		return err == nil && strings.Contains(string(m.Data), `"num_replicas":3`)
	})
	if told := owner.DiscoveredServers(); !strings.Contains(strings.Join(told, " "), "127.0.0.3:"+port) {
		t.Errorf("the servers of the cluster tell of %v, want each under the name of its certificate", told)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(keys.CAPEM())
	for file, want := range map[string]bool{"server": false, "route": true} {
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "b", file+".pem"), filepath.Join(dir, "b", file+"-key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		plain, err := net.Dial("tcp", "127.0.0.1:"+routePort)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { plain.Close() })
		w := tls.Client(plain, &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13})
		w.SetDeadline(time.Now().Add(2 * time.Second)) //nolint:errcheck // a connection of TCP
		_, err = w.Read(make([]byte, 1))
		if got := err == nil || errors.Is(err, os.ErrDeadlineExceeded); got != want {
			t.Errorf("a route with the certificate %s.pem: got %v, want it taken: %v", file, err, want)
		}
	}
}
