package bus_test

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// TestCertificatesHoldBehindTheClock: a host whose clock is most of a day behind, as one that starts may be, takes the bus's
// certificates: the CA's, a server's and a route's.
func TestCertificatesHoldBehindTheClock(t *testing.T) {
	keys, err := bus.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	id, err := bus.OpenFounder(filepath.Join(t.TempDir(), "a"), "a", keys, keyring.NewMasterKey())
	if err != nil {
		t.Fatal(err)
	}
	peer, err := id.Peer("127.0.0.1:1", nil)
	if err != nil {
		t.Fatal(err)
	}
	peers, err := bus.OpenPeers(filepath.Join(t.TempDir(), "cluster.json"), peer, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	server, err := keys.ServerTLS([]string{"localhost"})
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(keys.CAPEM())
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*x509.Certificate{"the CA": ca}
	for what, cfg := range map[string]*tls.Config{"a server": server, "a route": routeTLS(t, keys, peers, id.Signing)} {
		cert, err := cfg.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		if all[what], err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			t.Fatal(err)
		}
	}
	for what, cert := range all {
		if cert.NotBefore.After(time.Now().Add(-23 * time.Hour)) {
			t.Errorf("the certificate of %s holds from %s on", what, cert.NotBefore)
		}
	}
}

// Routes let in the keys of present issuers, and nobody else: not a removed one, which has the CA's key too.
func TestRoutesLetInPresentIssuersAlone(t *testing.T) {
	keys, err := bus.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := bus.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	var ids []*bus.Identity
	var peers []bus.Peer
	for _, name := range []string{"a", "b", "removed", "stranger"} {
		id, err := bus.OpenFounder(filepath.Join(t.TempDir(), name), name, keys, keyring.NewMasterKey())
		if err != nil {
			t.Fatal(err)
		}
		peer, err := id.Peer("127.0.0.1:1", nil)
		if err != nil {
			t.Fatal(err)
		}
		ids, peers = append(ids, id), append(peers, peer)
	}
	known := func(n int, others ...bus.Peer) *bus.Peers {
		p, err := bus.OpenPeers(filepath.Join(t.TempDir(), "cluster.json"), peers[n], others, nil)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	a := known(0, peers[1], peers[2])
	if err := a.Set([]bus.Peer{peers[0], peers[1]}); err != nil { // c was removed
		t.Fatal(err)
	}
	server := routeTLS(t, keys, a, ids[0].Signing)
	for _, tt := range []struct {
		who  string
		keys *bus.Keys
		n    int
		want string
	}{
		{"a present issuer", keys, 1, ""},
		{"one that was removed", keys, 2, "not of a present issuer"},
		{"one that never joined, with the CA's key", keys, 3, "not of a present issuer"},
		{"a present issuer's key under another CA", foreign, 1, "certificate signed by unknown authority"},
	} {
		client := routeTLS(t, tt.keys, known(tt.n, peers[0]), ids[tt.n].Signing)
		if tt.keys == foreign { // it believes the server, so that the server decides
			client.VerifyConnection = nil
		}
		err := handshake(t, server, client)
		if got := errorText(err); tt.want == "" && err != nil || !strings.Contains(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.who, got, tt.want)
		}
	}
	none := &tls.Config{InsecureSkipVerify: true} // without a certificate
	if err := handshake(t, server, none); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without a certificate: got %v", err)
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func routeTLS(t *testing.T, keys *bus.Keys, peers *bus.Peers, signing ed25519.PrivateKey) *tls.Config {
	t.Helper()
	cfg, err := bus.RouteTLS(keys, &bus.ClusterConfig{Peers: peers, Signing: signing})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// handshake gives the server's word.
func handshake(t *testing.T, server, client *tls.Config) error {
	t.Helper()
	s, c := net.Pipe()
	defer s.Close()
	defer c.Close()
	go func() {
		tc := tls.Client(c, client)
		if tc.Handshake() == nil {
			_, _ = tc.Read(make([]byte, 1)) // takes the server's alert, or its end
		}
		c.Close()
	}()
	return tls.Server(s, server).Handshake()
}
