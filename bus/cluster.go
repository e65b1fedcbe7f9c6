package bus

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// clusterName is what the servers of a cluster call it. Nobody is let in by it: their keys say who they are.
const clusterName = "sidekey"

// ClusterConfig makes an embedded server one of several, joined by routes.
type ClusterConfig struct {
	Listen  string // "host:port" of routes
	Peers   *Peers // who the servers are
	Signing ed25519.PrivateKey
}

// When a server of a cluster ends, it says so to its clients and waits this long before it closes their connections,
// over so long.
const (
	lameDuckGrace = 500 * time.Millisecond
	lameDuckLasts = 3 * time.Second
)

// clustered configures a server's part in a cluster.
func clustered(opts *server.Options, cfg ServerConfig) error {
	c := cfg.Cluster
	host, port, err := splitListen(c.Listen)
	if err != nil {
		return fmt.Errorf("bus.cluster.listen: %w", err)
	}
	if port == server.RANDOM_PORT {
		return errors.New("bus.cluster.listen: the others have to find it; name a port")
	}
	routes, err := routeTLS(cfg.Keys, c)
	if err != nil {
		return err
	}
	self := c.Peers.Self()
	opts.ServerName = self.Server()
	opts.LameDuckGracePeriod, opts.LameDuckDuration = lameDuckGrace, lameDuckLasts
	if len(self.URLs) > 0 {
		if u, err := url.Parse(self.URLs[0]); err == nil {
			opts.ClientAdvertise = u.Host
		}
	}
	opts.Cluster = server.ClusterOpts{
		Name: clusterName, Host: host, Port: port, Advertise: self.Route, TLSConfig: routes, TLSTimeout: 5, PoolSize: -1,
	}
	// A cluster's JetStream wants a route; one to itself is dropped.
	opts.Routes = []*url.URL{{Scheme: "nats", Host: dialable(c.Listen)}}
	for _, o := range c.Peers.Others() {
		opts.Routes = append(opts.Routes, &url.URL{Scheme: "nats", Host: o.Route})
	}
	return nil
}

// dialable is an address to listen on as this host reaches it.
func dialable(listen string) string {
	host, port, _ := net.SplitHostPort(listen) // splitListen has judged it
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

var errNotPeer = errors.New("refusing a route: it is not of a present issuer of this cluster")

// routeTLS lets in, and is let in by, present issuers alone: the certificate comes from the bus's CA, and is for the
// Ed25519 key with which the issuer joined. A CA's word alone would not do: every issuer has its key, also one that
// was removed.
func routeTLS(keys *Keys, c *ClusterConfig) (*tls.Config, error) {
	if keys.caKey == nil {
		return nil, errors.New("joining the cluster: this issuer has no key of the bus's CA: it joined before the bus was a cluster; remove it, and let it join anew")
	}
	m := &routeCertificate{keys: keys, key: c.Signing, server: c.Peers.Self().Server()}
	if _, err := m.get(); err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(keys.ca)
	verify := func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return errNotPeer
		}
		leaf := cs.PeerCertificates[0]
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			return fmt.Errorf("%w: %w", errNotPeer, err)
		}
		if key, ok := leaf.PublicKey.(ed25519.PublicKey); !ok || !c.Peers.known(key) {
			c.Peers.knock()
			return fmt.Errorf("%w: %q", errNotPeer, leaf.Subject.CommonName)
		}
		return nil
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              roots,
		InsecureSkipVerify:     true, // verify does it, and by the key, not by a name
		SessionTicketsDisabled: true, // a resumed session would skip nothing here, but is of no use either
		VerifyConnection:       verify,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return m.get() },
		GetClientCertificate:   func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return m.get() },
	}, nil
}

// routeCertificate keeps a route's certificate young.
type routeCertificate struct {
	keys   *Keys
	key    ed25519.PrivateKey
	server string

	mu  sync.Mutex
	cur *tls.Certificate
}

func (m *routeCertificate) get() (*tls.Certificate, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cur != nil && time.Until(m.cur.Leaf.NotAfter) > serverLifetime/2 {
		return m.cur, nil
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: m.server},
		NotBefore: now.Add(-backdated), NotAfter: now.Add(serverLifetime), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, m.keys.ca, m.key.Public(), m.keys.caKey)
	if err != nil {
		return nil, fmt.Errorf("making a certificate for the bus's routes: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("making a certificate for the bus's routes: %w", err)
	}
	m.cur = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: m.key, Leaf: leaf}
	return m.cur, nil
}

// peerID is how nats-server calls a server in its groups: eight digits of a hash of its name (getHash). StartServer
// compares it with what the server says of itself.
func peerID(serverName string) string {
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	sum := sha256.Sum256([]byte(serverName))
	id := make([]byte, 8)
	for i := range id {
		id[i] = digits[int(sum[i])%len(digits)]
	}
	return string(id)
}

func groupFile(opts *server.Options) string {
	return filepath.Join(opts.StoreDir, "jetstream", opts.SystemAccount, "_js_", "_meta_", "peers.idx")
}

// foundGroup writes, before a server's first start, who is in the group that holds the cluster's state, as
// nats-server keeps it: the size, the number of those known and their ids, little-endian, and a zero. A founder is
// alone in it, so that it begins without waiting for others. One that joins names those that hold the state: it can
// become nothing without a vote of theirs, so servers that have just joined cannot begin a second, empty cluster.
// alone: this server is the only one.
func foundGroup(opts *server.Options, c *ClusterConfig) (alone bool, err error) {
	file := groupFile(opts)
	group, begun := c.Peers.begun()
	text, err := os.ReadFile(file)
	if err == nil {
		return len(text) >= 8 && binary.LittleEndian.Uint32(text[4:]) == 1, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("starting the embedded bus: reading its store: %w", err)
	}
	if begun {
		return false, fmt.Errorf("starting the embedded bus: the store in %s is gone, and this server may not come back without it: it has voted. If other issuers are up, run `sidekey issuers remove %s` and `sidekey issuers add %s` there and let this one join anew in a fresh data_dir; if it was the only one, restore a backup",
			opts.StoreDir, c.Peers.Self().Name, c.Peers.Self().Name)
	}
	group = sortedSet(append(group, peerID(opts.ServerName)))
	text = binary.LittleEndian.AppendUint32(nil, uint32(len(group)))
	text = binary.LittleEndian.AppendUint32(text, uint32(len(group)))
	for _, id := range group {
		text = append(text, id...)
	}
	text = binary.LittleEndian.AppendUint16(text, 0)
	if err = os.MkdirAll(filepath.Dir(file), 0o700); err == nil {
		err = WriteFile(file, text)
	}
	if err != nil {
		return false, fmt.Errorf("starting the embedded bus: writing its store: %w", err)
	}
	return len(group) == 1, nil
}

// accompany lets a server that is alone in its cluster begin: nats-server's groups wait until a route was up once. It
// is a second server in this process, without JetStream, under this issuer's own key, and ends as soon as the first
// one leads.
func (s *Server) accompany(ctx context.Context, opts *server.Options, resolver server.AccountResolver) error {
	routes := opts.Cluster
	routes.Host, routes.Port, routes.Advertise = "127.0.0.1", server.RANDOM_PORT, ""
	second, err := server.NewServer(&server.Options{
		ServerName: opts.ServerName + "-companion", Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, Cluster: routes, Routes: opts.Routes[:1],
		TrustedOperators: opts.TrustedOperators, SystemAccount: opts.SystemAccount, AccountResolver: resolver,
	})
	if err != nil {
		return fmt.Errorf("starting the embedded bus: %w", err)
	}
	go second.Start()
	defer second.WaitForShutdown()
	defer second.Shutdown()
	for !s.srv.JetStreamIsLeader() {
		if !sleep(ctx, 10*time.Millisecond) {
			return errors.New("starting the embedded bus: alone in its cluster, it does not come to lead it; see its log lines above")
		}
	}
	return nil
}

// group gives the ids of the servers that hold the cluster's state, as this one last had it from their leader.
func (s *Server) group() ([]string, error) {
	text, err := os.ReadFile(s.groupFile)
	if err == nil && (len(text) < 8 || uint64(len(text)) < 8+8*uint64(binary.LittleEndian.Uint32(text[4:]))) {
		err = errors.New("it is damaged")
	}
	if err != nil {
		return nil, fmt.Errorf("reading who is in the cluster: %w", err)
	}
	var ids []string
	for n := range int(binary.LittleEndian.Uint32(text[4:])) {
		ids = append(ids, string(text[8+8*n:16+8*n]))
	}
	return ids, nil
}

// Clustered tells whether the server is one of several, or may become that.
func (s *Server) Clustered() bool { return s.peers != nil }

// CutOff tells whether the server of a cluster has a route to none of the others.
func (s *Server) CutOff() bool {
	return s.peers != nil && len(s.peers.Others()) > 0 && s.srv.NumRoutes() == 0
}

// JetStreamEnabled tells whether the server keeps streams: not one that was removed from its cluster.
func (s *Server) JetStreamEnabled() bool { return s.srv.JetStreamEnabled() }
