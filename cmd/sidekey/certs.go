package main

import (
	"crypto/tls"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

// lookAtFiles is how often a certificate's files are looked at, at most: at a handshake.
const lookAtFiles = time.Second

// certificate is a TLS certificate whose files are read again when they have changed. Any goroutine may use it.
type certificate struct {
	certFile, keyFile string
	log               hclog.Logger
	cur               atomic.Pointer[loadedCertificate]
}

type loadedCertificate struct {
	cert   *tls.Certificate
	stamp  [2]fileStamp
	looked time.Time
}

// fileStamp is what changes when a file is replaced.
type fileStamp struct {
	mod  time.Time
	size int64
	mode fs.FileMode
}

func openCertificate(certFile, keyFile string, log hclog.Logger) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log}
	loaded, err := c.load()
	if err != nil {
		return nil, err
	}
	c.cur.Store(loaded)
	return c, nil
}

func (c *certificate) config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}
}

// listener serves TLS on what ln accepts.
func (c *certificate) listener(ln net.Listener) net.Listener { return tls.NewListener(ln, c.config()) }

// grpcListener is listener, for gRPC: HTTP/2 and nothing else.
func (c *certificate) grpcListener(ln net.Listener) net.Listener {
	cfg := c.config()
	cfg.NextProtos = []string{"h2"}
	return tls.NewListener(ln, cfg)
}

// load reads both files. The stamps are taken first: a file that is replaced meanwhile is read again.
func (c *certificate) load() (*loadedCertificate, error) {
	stamp, err := c.stamps()
	if err != nil {
		return nil, err
	}
	cert, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate %s with the key %s: %w", c.certFile, c.keyFile, err)
	}
	return &loadedCertificate{cert: &cert, stamp: stamp, looked: time.Now()}, nil
}

func (c *certificate) stamps() (s [2]fileStamp, err error) {
	for i, path := range []string{c.certFile, c.keyFile} {
		info, err := os.Stat(path)
		if err != nil {
			return s, fmt.Errorf("reading a certificate: %w", err)
		}
		s[i] = fileStamp{info.ModTime(), info.Size(), info.Mode()}
	}
	return s, nil
}

// get gives the certificate for a handshake. What cannot be read leaves the one before in use.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	cur := c.cur.Load()
	if time.Since(cur.looked) < lookAtFiles {
		return cur.cert, nil
	}
	stamp, err := c.stamps()
	next := &loadedCertificate{cert: cur.cert, stamp: cur.stamp, looked: time.Now()}
	if err == nil && stamp != cur.stamp {
		var loaded *loadedCertificate
		if loaded, err = c.load(); err == nil {
			next = loaded
			c.log.Info("read a new certificate", "file", c.certFile)
		}
	}
	if err != nil {
		c.log.Error("keeping the certificate that was read before", "file", c.certFile, "error", err)
	}
	c.cur.CompareAndSwap(cur, next) // another handshake may have been first
	return next.cert, nil
}
