package bus

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"
)

// Probed is what a server says of itself to anybody, before a credential is asked for.
type Probed struct {
	Version  string
	TLS      bool      // it speaks TLS, and its certificate was judged
	NotAfter time.Time // TLS: the first end of a certificate in its chain
}

// maxInfo bounds the line with which a server begins.
const maxInfo = 64 << 10

// Probe looks whether a nats-server answers at an address, and whether its certificate, where it has one, comes from ca (nil: from
// a CA that the system knows). No credential is sent.
func Probe(ctx context.Context, address string, ca []byte) (*Probed, error) {
	if !strings.Contains(address, "://") {
		address = "nats://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("reaching the bus at %s: it is no address; want nats://host:port", redacted([]string{address}))
	}
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), "4222")
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", host)
	if err != nil {
		return nil, fmt.Errorf("reaching the bus at %s: %w", host, err)
	}
	defer conn.Close()
	if end, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(end) // a TCP connection takes one
	}
	info, err := readInfo(conn)
	if err != nil {
		return nil, fmt.Errorf("reaching the bus at %s: %w", host, err)
	}
	p := &Probed{Version: info.Version, TLS: u.Scheme == "tls" || info.Required || len(ca) > 0}
	if !p.TLS {
		return p, nil
	}
	cfg, err := clientTLS(ca)
	if err != nil {
		return nil, err
	}
	if cfg == nil {
		cfg = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	cfg.ServerName = u.Hostname()
	secure := tls.Client(conn, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("reaching the bus at %s by TLS: %w", host, err)
	}
	for _, cert := range secure.ConnectionState().PeerCertificates {
		if p.NotAfter.IsZero() || cert.NotAfter.Before(p.NotAfter) {
			p.NotAfter = cert.NotAfter
		}
	}
	return p, nil
}

// serverInfo is what Probe reads of a server's INFO.
type serverInfo struct {
	Version  string `json:"version"`
	Required bool   `json:"tls_required"`
}

func readInfo(conn net.Conn) (*serverInfo, error) {
	line, err := bufio.NewReaderSize(conn, maxInfo).ReadSlice('\n')
	if err != nil {
		return nil, fmt.Errorf("what listens there is no nats-server: %w", err)
	}
	text, ok := bytes.CutPrefix(line, []byte("INFO "))
	info := new(serverInfo)
	if !ok || json.Unmarshal(text, info) != nil {
		return nil, errors.New("what listens there is no nats-server")
	}
	return info, nil
}

// Outdated tells of a server's version whether it is older than the oldest that keeps what it acknowledges.
func Outdated(version string) bool { return older(version, oldestServer) }

// OldestServer is that version.
const OldestServer = oldestServer
