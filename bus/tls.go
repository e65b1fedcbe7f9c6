package bus

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
)

// How long certificates live: the CA as long as anybody keeps one, a server's until it is made anew.
const (
	caLifetime     = 30 * 365 * 24 * time.Hour
	serverLifetime = 30 * 24 * time.Hour
	backdated      = 24 * time.Hour // how far behind the maker's clock another's may be: a host that starts may not have the time yet
)

// newCA makes the certificate authority of a bus, ECDSA on P-256.
func newCA(now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making the bus's CA: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "sidekey bus CA"},
		NotBefore: now.Add(-backdated), NotAfter: now.Add(caLifetime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("making the bus's CA: %w", err)
	}
	ca, err := x509.ParseCertificate(der)
	return ca, key, err
}

func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return new(big.Int).SetBytes(b[:])
}

// CAPEM is the CA's certificate, which agents pin.
func (k *Keys) CAPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.ca.Raw})
}

// ServerTLS is the TLS of a server under these names (host names and IP addresses). Its certificate
// is made now, and anew before it expires; the CA is sent behind it, for those who know only the
// CA's fingerprint.
func (k *Keys) ServerTLS(names []string) (*tls.Config, error) {
	if k.caKey == nil {
		return nil, errors.New("making a certificate for the bus: the CA's key is with the issuer that made this bus")
	}
	m := &certMaker{keys: k, names: names}
	if _, err := m.get(nil); err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: m.get}, nil
}

// ServerCertificate makes one certificate and its key, in PEM, for a server elsewhere.
func (k *Keys) ServerCertificate(names []string, lifetime time.Duration) (cert, key []byte, err error) {
	if k.caKey == nil {
		return nil, nil, errors.New("making a certificate for the bus: the CA's key is with the issuer that made this bus")
	}
	return k.certificatePEM(names, lifetime, x509.ExtKeyUsageServerAuth)
}

// routeCertificate makes one with which a server of a cluster proves itself to the others, also where it
// calls them. No other certificate of the CA is good for calling: who has a route to a server has all accounts.
func (k *Keys) routeCertificate(names []string, lifetime time.Duration) (cert, key []byte, err error) {
	return k.certificatePEM(names, lifetime, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
}

func (k *Keys) certificatePEM(names []string, lifetime time.Duration, usage ...x509.ExtKeyUsage) (cert, key []byte, err error) {
	c, err := k.makeCertificate(names, lifetime, usage...)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		return nil, nil, fmt.Errorf("making a certificate for the bus: %w", err)
	}
	var chain bytes.Buffer
	for _, raw := range c.Certificate {
		pem.Encode(&chain, &pem.Block{Type: "CERTIFICATE", Bytes: raw}) //nolint:errcheck // a buffer takes all
	}
	return chain.Bytes(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func (k *Keys) makeCertificate(names []string, lifetime time.Duration, usage ...x509.ExtKeyUsage) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a certificate for the bus: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "sidekey bus"},
		NotBefore: now.Add(-backdated), NotAfter: now.Add(lifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usage,
	}
	for _, name := range sortedSet(names) {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if name != "" {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, k.ca, key.Public(), k.caKey)
	if err != nil {
		return nil, fmt.Errorf("making a certificate for the bus: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("making a certificate for the bus: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, k.ca.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// certMaker keeps a server's certificate young.
type certMaker struct {
	keys  *Keys
	names []string

	mu  sync.Mutex
	cur *tls.Certificate
}

func (m *certMaker) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cur == nil || time.Until(m.cur.Leaf.NotAfter) < serverLifetime/2 {
		c, err := m.keys.makeCertificate(m.names, serverLifetime, x509.ExtKeyUsageServerAuth)
		if err != nil {
			return nil, err
		}
		m.cur = c
	}
	return m.cur, nil
}

// clientTLS believes servers whose certificate comes from a CA (PEM; nil: the system's).
func clientTLS(ca []byte) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(ca) > 0 {
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(ca) {
			return nil, errors.New("reading the bus's CA: it is no certificate in PEM")
		}
	}
	return cfg, nil
}

var errNotPinned = errors.New("the server's certificate does not come from the CA that the join token names")

// dialled remembers which address a connection went to last: TLS tells a name that was asked for, and
// nothing where that was an IP address.
type dialled struct {
	mu sync.Mutex
	ip string
}

// dialer notes the address of each attempt; a host name has become one of its addresses there.
func (d *dialled) dialer() *net.Dialer {
	return &net.Dialer{Timeout: nats.DefaultTimeout, Control: func(_, address string, _ syscall.RawConn) error {
		host, _, err := net.SplitHostPort(address)
		d.mu.Lock()
		defer d.mu.Unlock()
		d.ip = host
		return err
	}}
}

// name is what a certificate must be for.
func (d *dialled) name(cs tls.ConnectionState) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return cmp.Or(cs.ServerName, d.ip)
}

// pinnedTLS believes servers whose certificate comes from the CA with this fingerprint, which the
// server itself sends, and is for the name or the address that was dialled.
func pinnedTLS(fingerprint []byte, to *dialled) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // VerifyConnection does it, against the pinned CA
		VerifyConnection: func(cs tls.ConnectionState) error {
			name := to.name(cs)
			if name == "" { // x509 would take that for any name
				return errors.New("checking the server's certificate: it is not known which address was dialled")
			}
			for _, c := range cs.PeerCertificates {
				if sum := sha256.Sum256(c.Raw); !bytes.Equal(sum[:], fingerprint) {
					continue
				}
				roots := x509.NewCertPool()
				roots.AddCert(c)
				between := x509.NewCertPool()
				for _, other := range cs.PeerCertificates[1:] {
					between.AddCert(other)
				}
				if _, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: name}); err != nil {
					return fmt.Errorf("%w: %w", errNotPinned, err)
				}
				return nil
			}
			return errNotPinned
		},
	}
}

// toldTLS lets a server prove itself by the IP address that was dialled, where another server has named it
// by that. The client library asks it for the name of the one that was reached first, as if all had one
// certificate; here each has its own. Their CA is the bus's own, so this makes nobody a server.
func toldTLS(cfg *tls.Config, to *dialled, told func(ip string) bool) {
	roots := cfg.RootCAs
	cfg.InsecureSkipVerify = true // VerifyConnection does it, against the same roots
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		between := x509.NewCertPool()
		for _, c := range cs.PeerCertificates[1:] {
			between.AddCert(c)
		}
		verify := func(name string) error {
			if name == "" { // x509 would take that for any name
				return errors.New("checking the server's certificate: it is not known which address was dialled")
			}
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: name})
			return err
		}
		err := verify(to.name(cs))
		if ip := to.name(tls.ConnectionState{}); err != nil && told(ip) && verify(ip) == nil {
			return nil
		}
		return err
	}
}

// caFingerprint is what a join token pins of a CA in PEM; nil for none.
func caFingerprint(ca []byte) ([]byte, error) {
	if len(ca) == 0 {
		return nil, nil
	}
	block, _ := pem.Decode(ca)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("reading the bus's CA: it is no certificate in PEM")
	}
	sum := sha256.Sum256(block.Bytes)
	return sum[:], nil
}
