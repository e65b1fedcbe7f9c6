package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sidekey/sidekey/bus"
)

// leafSite is an issuer on a NATS of its own, and a site behind one leaf node: three kinds of real processes.
type leafSite struct {
	t                       *testing.T
	dir                     string
	issuer, hubAddr, leafAt string
	hub, leaf, issuerProc   *process
	link                    *countingLink // between leaf node and hub
	env                     []string      // of the issuer and the commands
}

// natsBinary builds nats-server from the version that go.mod has.
func natsBinary(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nats-server")
	if out, err := exec.Command("go", "build", "-o", path, "github.com/nats-io/nats-server/v2").CombinedOutput(); err != nil {
		t.Fatalf("building nats-server: %v\n%s", err, out)
	}
	return path
}

func startLeafSite(t *testing.T) *leafSite {
	t.Helper()
	s := &leafSite{t: t, dir: t.TempDir(), issuer: "127.0.0.1:" + freePort(t), hubAddr: "127.0.0.1:" + freePort(t), leafAt: "127.0.0.1:" + freePort(t)}
	leafPort := "127.0.0.1:" + freePort(t)
	s.link = newCountingLink(t, leafPort)
	s.env = append(os.Environ(), "SIDEKEY_DATA_DIR="+filepath.Join(s.dir, "issuer"), "SIDEKEY_ISSUER_LISTEN="+s.issuer, "SIDEKEY_ADDR=http://"+s.issuer,
		"SIDEKEY_TOKEN_FILE="+filepath.Join(s.dir, "issuer", "admin.token"), "SIDEKEY_KEYS_PUBLISH_AHEAD=0s",
		"SIDEKEY_BUS_URLS=tls://"+s.hubAddr, "SIDEKEY_BUS_CA="+filepath.Join(s.dir, "hub", "ca.pem"))
	s.sidekey("bus", "export", "--dir", filepath.Join(s.dir, "hub"), "--listen", s.hubAddr, "--host", "127.0.0.1", "--leaf-listen", leafPort)
	s.exportLeaf()
	server := natsBinary(t)
	run := func(name string) *process {
		cmd := exec.Command(server, "-c", "nats-server.conf")
		cmd.Dir = filepath.Join(s.dir, name)
		return start(t, cmd)
	}
	s.hub, s.leaf = run("hub"), run("leaf")
	cmd := exec.Command(binary, "issuer")
	cmd.Env = s.env
	s.issuerProc = start(t, cmd)
	await(t, "the issuer", func() error { return expectStatus(http.StatusOK)(http.Get("http://" + s.issuer + "/readyz")) })
	s.sidekey("users", "add", "bob", "--password", "builder")
	return s
}

func (s *leafSite) exportLeaf() {
	s.sidekey("bus", "export", "--leaf", "berlin", "--dir", filepath.Join(s.dir, "leaf"), "--listen", s.leafAt, "--host", "127.0.0.1", "--hub", "tls://"+s.link.addr)
}

func (s *leafSite) sidekey(args ...string) string {
	s.t.Helper()
	cmd := exec.Command(binary, args...)
	cmd.Env = s.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("sidekey %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// agent joins through the leaf node and gives its URL.
func (s *leafSite) agent(name string) string {
	s.t.Helper()
	cmd := exec.Command(binary, "agents", "add", name)
	cmd.Env = s.env
	token, err := cmd.Output()
	if err != nil {
		s.t.Fatal(err)
	}
	file, listen := filepath.Join(s.dir, name+".join"), "127.0.0.1:"+freePort(s.t)
	if err := os.WriteFile(file, token, 0o600); err != nil {
		s.t.Fatal(err)
	}
	run := exec.Command(binary, "agent", "--join", file)
	run.Env = append(os.Environ(), "SIDEKEY_AGENT_DATA_DIR="+filepath.Join(s.dir, name), "SIDEKEY_AGENT_LISTEN="+listen,
		"SIDEKEY_BUS_URLS=tls://"+s.leafAt, "SIDEKEY_AGENT_MAX_STALENESS=6s")
	start(s.t, run)
	await(s.t, name, func() error { return expectStatus(http.StatusOK)(http.Get("http://" + listen + "/readyz")) })
	return "http://" + listen
}

func (s *leafSite) login() string {
	s.t.Helper()
	res, body := do(s.t, http.MethodPost, "http://"+s.issuer+"/api/token/", http.Header{"Content-Type": {"application/json"}}, `{"username":"bob","password":"builder"}`)
	var got struct{ Access string }
	if err := json.Unmarshal([]byte(body), &got); err != nil || res.StatusCode != http.StatusOK {
		s.t.Fatalf("logging in: got %d %s", res.StatusCode, body)
	}
	return got.Access
}

// verify asks an agent about a token.
func verify(t *testing.T, agent, token string) int {
	t.Helper()
	res, _ := do(t, http.MethodPost, agent+"/v1/verify", http.Header{"Content-Type": {"application/json"}}, `{"token":"`+token+`"}`)
	return res.StatusCode
}

func awaitVerify(t *testing.T, what, agent, token string, want int) {
	t.Helper()
	await(t, what, func() error {
		if got := verify(t, agent, token); got != want {
			return fmt.Errorf("got %d, want %d", got, want)
		}
		return nil
	})
}

// TestLeafNode: two agents of a site behind a leaf node join, verify, refuse what was revoked before `revoke --wait`
// returns, answer on while the hub is frozen until their leases end, and come back by themselves; one that was removed gets no
// lease any more, and is refused by the leaf node once that is told.
func TestLeafNode(t *testing.T) {
	need(t)
	s := startLeafSite(t)
	one, two := s.agent("one"), s.agent("two")
	first, second := s.login(), s.login()
	for _, agent := range []string{one, two} {
		awaitVerify(t, "the token at "+agent, agent, first, http.StatusOK)
	}
	if out := s.sidekey("revoke", "--token", first, "--wait"); !strings.Contains(out, "confirmed") {
		t.Errorf("revoke --wait through the leaf node: got %s", out)
	}
	for _, agent := range []string{one, two} {
		if got := verify(t, agent, first); got != http.StatusUnauthorized {
			t.Errorf("%s after a confirmed revocation: got %d, want 401", agent, got)
		}
		awaitVerify(t, "the other token", agent, second, http.StatusOK)
	}

	if err := s.hub.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	frozen := time.Now()
	for _, agent := range []string{one, two} {
		if got := verify(t, agent, second); got != http.StatusOK {
			t.Errorf("%s with the hub frozen: got %d, want 200 until the lease ends", agent, got)
		}
	}
	for _, agent := range []string{one, two} {
		awaitVerify(t, "the lease's end", agent, second, http.StatusServiceUnavailable)
	}
	t.Logf("answered for %s with the hub frozen (leases of 6 s)", time.Since(frozen).Round(100*time.Millisecond))
	if err := s.hub.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	for _, agent := range []string{one, two} {
		awaitVerify(t, "the agents to come back", agent, second, http.StatusOK)
	}
	t.Logf("back after %s", time.Since(back).Round(100*time.Millisecond))
	s.removal(one, two, second)
}

// removal: the hub cuts off nobody behind the leaf node; the issuers give no lease, and the leaf node obeys its new file.
func (s *leafSite) removal(one, two, token string) {
	t := s.t
	t.Helper()
	s.sidekey("agents", "remove", "two")
	awaitVerify(t, "the removed agent's last lease to end", two, token, http.StatusServiceUnavailable)
	s.exportLeaf()
	if err := s.leaf.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	await(t, "the leaf node to cut the removed agent off", func() error {
		res, body := do(t, http.MethodGet, two+"/v1/status", nil, "")
		if res.StatusCode != http.StatusOK || !strings.Contains(body, `"connected":false`) {
			return errors.New(body)
		}
		return nil
	})
	if got := verify(t, one, token); got != http.StatusOK {
		t.Errorf("the other agent after the leaf node's reload: got %d, want 200", got)
	}
	s.sidekey("bus", "remove-leaf", "berlin")
	awaitVerify(t, "the site to be cut off", one, token, http.StatusServiceUnavailable)
}

// TestLeafNodeCarriesOnce: what crosses the link to a site for 100 revocations does not grow with who listens there.
func TestLeafNodeCarriesOnce(t *testing.T) {
	need(t)
	s := startLeafSite(t)
	keys := s.listener("x")
	carried := func(listeners int) int64 {
		heard := make(chan struct{}, 100*listeners)
		for range listeners {
			nc := keys()
			if _, err := nc.Subscribe("sidekey.live.revoke", func(*nats.Msg) { heard <- struct{}{} }); err != nil {
				t.Fatal(err)
			}
			if err := nc.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		await(t, "the link", func() error {
			s.sidekey("revoke", "--jti", "warm")
			select {
			case <-heard:
				return nil
			case <-time.After(time.Second):
				return errors.New("nothing is heard")
			}
		})
		for len(heard) > 0 {
			<-heard
		}
		before := s.link.bytes.Load()
		for i := range 100 {
			res, body := do(t, http.MethodPost, "http://"+s.issuer+"/admin/v1/revocations",
				http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer " + s.adminToken()}}, fmt.Sprintf(`{"jti":"j%d-%d"}`, listeners, i))
			if res.StatusCode/100 != 2 {
				t.Fatalf("revoking: %d %s", res.StatusCode, body)
			}
		}
		for range 100 * listeners {
			select {
			case <-heard:
			case <-time.After(20 * time.Second):
				t.Fatal("an entry did not arrive")
			}
		}
		return s.link.bytes.Load() - before
	}
	few := carried(2)
	many := carried(18) // and the two of before
	t.Logf("100 revocations over the link: %d bytes for 2 listeners, %d for 20", few, many)
	if many > few*5/4 || few < 100*100 {
		t.Errorf("the link to the site carried %d bytes for 2 listeners, %d for 20: want the same", few, many)
	}
}

func (s *leafSite) adminToken() string {
	text, err := os.ReadFile(filepath.Join(s.dir, "issuer", "admin.token"))
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// listener joins as an agent, and gives what opens further connections with its credential.
func (s *leafSite) listener(name string) func() *nats.Conn {
	s.t.Helper()
	s.agent(name)
	id, err := bus.ReadIdentity(filepath.Join(s.dir, name, "identity"))
	if err != nil {
		s.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(id.CA)
	return func() *nats.Conn {
		nc, err := nats.Connect("tls://"+s.leafAt, nats.UserJWTAndSeed(id.User.JWT, string(id.User.Seed)),
			nats.Secure(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}))
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(nc.Close)
		return nc
	}
}

// countingLink passes TCP connections on, and counts the bytes that come back: those from the hub to the site.
type countingLink struct {
	addr  string
	bytes atomic.Int64
}

func newCountingLink(t *testing.T, target string) *countingLink {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	l := &countingLink{addr: ln.Addr().String()}
	go func() {
		for {
			from, err := ln.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", target)
			if err != nil {
				from.Close()
				continue
			}
			pass := func(dst, src net.Conn, w io.Writer) {
				defer dst.Close()
				defer src.Close()
				_, _ = io.Copy(w, src) // however it ends, both are closed
			}
			go pass(to, from, to)
			go pass(from, to, io.MultiWriter(from, l))
		}
	}()
	return l
}

// Write counts.
func (l *countingLink) Write(b []byte) (int, error) {
	l.bytes.Add(int64(len(b)))
	return len(b), nil
}
