package bus_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

// TestTLS: beyond loopback the bus has TLS, from the CA that a join token pins; one who joins or
// connects finds out another CA, another name and a server in clear, and says nothing to any of them.
func TestTLS(t *testing.T) {
	t.Parallel()
	b := bustest.StartTLS(t)
	b.Enrolment(t)
	if !strings.HasPrefix(b.Server.URL(), "tls://") {
		t.Fatalf("URL beyond loopback: got %s, want tls://", b.Server.URL())
	}
	_, port, err := net.SplitHostPort(strings.TrimPrefix(b.Server.URL(), "tls://"))
	if err != nil {
		t.Fatal(err)
	}
	at := func(scheme, host string) []string { return []string{scheme + net.JoinHostPort(host, port)} }
	id := b.Join(t, "web-1")
	if len(id.CA) == 0 {
		t.Fatal("no CA came with the identity")
	}
	connectAs(t, id)

	other, err := bus.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*bus.ConnectConfig){
		"another CA":       func(c *bus.ConnectConfig) { c.CA = other.CAPEM() },
		"the system's CAs": func(c *bus.ConnectConfig) { c.CA = nil },
		"a name not in it": func(c *bus.ConnectConfig) { c.URLs = at("tls://", "127.0.0.2") },
	} {
		cfg := id.ConnectConfig()
		change(&cfg)
		conn, err := bus.Connect(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if err := conn.Await(ctx); err == nil {
			t.Errorf("connected with %s", name)
		}
		cancel()
		conn.Close()
	}
	token := b.Invite(t, bus.RoleAgent, "web-2")
	token.CA[0] ^= 1
	if _, err := join(t, token, newDir(t)); err == nil || !strings.Contains(err.Error(), "does not come from the CA that the join token names") {
		t.Errorf("joining with another fingerprint: got %v, want the refusal of the certificate", err)
	}
	clear := bustest.Start(t)
	token = b.Invite(t, bus.RoleAgent, "web-3")
	token.URLs = []string{strings.Replace(clear.Server.URL(), "nats://", "tls://", 1)}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := bus.Join(ctx, bus.JoinConfig{Token: token, Dir: newDir(t)}); err == nil {
		t.Error("joined over a connection in clear that was to be TLS")
	}
	raw, err := tls.Dial("tcp", strings.TrimPrefix(id.URLs[0], "tls://"), &tls.Config{InsecureSkipVerify: true})
	if err == nil {
		raw.Close()
		t.Error("the NATS port takes a TLS handshake first: want its INFO first")
	}
}

// TestInsecure: in clear beyond loopback only where that is said.
func TestInsecure(t *testing.T) {
	cfg := serverConfig(t)
	cfg.Listen, cfg.Insecure = "0.0.0.0:0", true
	srv, err := bus.StartServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	if !strings.HasPrefix(srv.URL(), "nats://") {
		t.Errorf("URL with insecure: got %s, want nats://", srv.URL())
	}
}

// TestCheckPrivate is the table of folders and files that a start refuses.
func TestCheckPrivate(t *testing.T) {
	for name, c := range map[string]struct {
		dir, file os.FileMode
		want      string
	}{
		"as it must be":  {0o700, 0o600, ""},
		"stricter":       {0o500, 0o400, ""},
		"folder, group":  {0o750, 0o600, "chmod 700 DIR"},
		"folder, others": {0o701, 0o600, "chmod 700 DIR"},
		"file, group":    {0o700, 0o640, "chmod 600 DIR/file"},
		"file, others":   {0o700, 0o604, "chmod 600 DIR/file"},
		"file, writable": {0o700, 0o620, "chmod 600 DIR/file"},
		"file, execute":  {0o700, 0o711, "chmod 600 DIR/file"},
	} {
		dir := t.TempDir()
		file := dir + "/file"
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Chmod(file, c.file), os.Chmod(dir, c.dir)); err != nil {
			t.Fatal(err)
		}
		err := bus.CheckPrivate(dir)
		os.Chmod(dir, 0o700)
		want := strings.ReplaceAll(c.want, "DIR", dir)
		if (err == nil) != (want == "") || err != nil && !strings.HasSuffix(err.Error(), "run: "+want) {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
}
