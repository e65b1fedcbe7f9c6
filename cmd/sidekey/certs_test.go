package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus"
)

// certFiles writes a certificate for 127.0.0.1 and its key.
func certFiles(t *testing.T, keys *bus.Keys, certFile, keyFile string) {
	t.Helper()
	cert, key, err := keys.ServerCertificate([]string{"127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(bus.WriteFile(certFile, cert), bus.WriteFile(keyFile, key)); err != nil {
		t.Fatal(err)
	}
}

// TestCertificateReload: changed files are used by the next handshake but for a second, damaged ones are
// not used, and the certificate before stays.
func TestCertificateReload(t *testing.T) {
	keys, err := bus.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if _, err := openCertificate(certFile, keyFile, hclog.NewNullLogger()); err == nil || !strings.Contains(err.Error(), certFile) {
		t.Errorf("no file: got %v, want its name", err)
	}
	certFiles(t, keys, certFile, keyFile)
	var log strings.Builder
	c, err := openCertificate(certFile, keyFile, hclog.New(&hclog.LoggerOptions{Output: &log}))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := newHTTPServer(http.NotFoundHandler())
	go srv.Serve(c.listener(ln)) //nolint:errcheck // it ends with the test
	defer srv.Close()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(keys.CAPEM())
	serial := func() string {
		t.Helper()
		conn, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{RootCAs: roots})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	first := serial()
	certFiles(t, keys, certFile, keyFile)
	expire := func() { // the second in which files are not looked at
		cur := *c.cur.Load()
		cur.looked = time.Time{}
		c.cur.Store(&cur)
	}
	expire()
	second := serial()
	if second == first {
		t.Error("a new certificate is not used")
	}
	if err := os.WriteFile(keyFile, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	expire()
	if got := serial(); got != second || !strings.Contains(log.String(), "keeping the certificate that was read before") {
		t.Errorf("a damaged file: serial %s, want %s and a word in the log: %s", got, second, log.String())
	}
	if err := os.Remove(certFile); err != nil {
		t.Fatal(err)
	}
	expire()
	if got := serial(); got != second {
		t.Errorf("a missing file: serial %s, want %s", got, second)
	}
	certFiles(t, keys, certFile, keyFile)
	expire()
	if got := serial(); got == second {
		t.Error("the certificate after a damaged one is not used")
	}
}

// TestMasterKeySources: a variable, a credential of systemd, else the file in data_dir, which alone is made.
func TestMasterKeySources(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	load := func(environ ...string) (string, error) {
		t.Helper()
		cfg, err := loadConfig(defaultConfig(), sources{environ: append(environ, "SIDEKEY_DATA_DIR="+dir)})
		if err != nil {
			t.Fatal(err)
		}
		key, err := openMasterKey(cfg)
		if err != nil {
			return "", err
		}
		return string(key.Text()), nil
	}
	own, err := load()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := load("CREDENTIALS_DIRECTORY=" + elsewhere); err != nil || again != own {
		t.Errorf("the file in data_dir, read again: got %v", err)
	}
	path := filepath.Join(elsewhere, "master.key")
	if _, err := load("SIDEKEY_MASTER_KEY_FILE=" + path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a file that is named and absent: got %v, want its name: it is not made", err)
	}
	other := strings.Replace(own, own[20:24], "AAAA", 1)
	if err := os.WriteFile(path, []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, variable := range []string{"SIDEKEY_MASTER_KEY_FILE=" + path, "CREDENTIALS_DIRECTORY=" + elsewhere} {
		if got, err := load(variable); err != nil || got != other {
			t.Errorf("%s: got another key (%v)", variable, err)
		}
	}
}
