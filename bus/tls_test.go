package bus_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
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

// TestPinnedAddress: one who joins by an IP address holds that the certificate is for that address.
func TestPinnedAddress(t *testing.T) {
	t.Parallel()
	b := bustest.StartTLS(t)
	token := b.Invite(t, bus.RoleAgent, "web-1")
	here := token.URLs
	token.URLs = []string{strings.Replace(here[0], "127.0.0.1", "127.0.0.2", 1)}
	if _, err := join(t, token, newDir(t)); err == nil || !strings.Contains(err.Error(), "not 127.0.0.2") {
		t.Errorf("joining by an address that the certificate is not for: got %v, want its refusal", err)
	}
	token.URLs = here
	if _, err := join(t, token, newDir(t)); err != nil {
		t.Errorf("joining by the certificate's address: %v", err)
	}
}

// inTheMiddle is a server that leaves TLS out of its INFO, and tells what it hears.
func inTheMiddle(t *testing.T) (url string, heard <-chan string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	lines := make(chan string, 16)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, `INFO {"server_id":"x","version":"2.12.0","proto":1,"headers":true,"max_payload":1048576,"nonce":"bm9uY2U"}`+"\r\n")
			c.SetDeadline(time.Now().Add(5 * time.Second))
			line, _ := bufio.NewReader(c).ReadString('\n')
			lines <- line
			c.Close()
		}
	}()
	return "nats://" + ln.Addr().String(), lines
}

// TestNoTLSInINFO: who knows a CA says nothing to a server that wants to go on in clear, whatever its
// URL is.
func TestNoTLSInINFO(t *testing.T) {
	t.Parallel()
	b := bustest.StartTLS(t)
	token, id := b.Invite(t, bus.RoleAgent, "web-2"), b.Join(t, "web-1")
	url, heard := inTheMiddle(t)
	silent := func(who string) {
		t.Helper()
		if line := <-heard; line != "" {
			t.Errorf("%s said in clear: %.60q", who, line)
		}
	}
	cfg := id.ConnectConfig()
	cfg.URLs = []string{url}
	conn, err := bus.Connect(cfg)
	if err != nil {
		t.Fatal(err)
	}
	silent("one with the CA")
	conn.Close()
	url, heard = inTheMiddle(t)
	token.URLs = []string{url}
	if _, err := join(t, token, newDir(t)); err == nil || !strings.Contains(err.Error(), "secure connection not available") {
		t.Errorf("joining where TLS was left out: got %v, want a refusal", err)
	}
	silent("one who joins")
}

// TestRefuseClear is the table of addresses that are refused where no CA is known.
func TestRefuseClear(t *testing.T) {
	b := bustest.Start(t)
	for address, refused := range map[string]bool{
		"nats://10.0.0.5:4222":       true,
		"nats://u:hunter2@h.example": true,
		"10.0.0.5:4222":              true,
		"bus.example:4222":           true,
		"ws://bus.example":           true,
		"nats://0.0.0.0:1":           true,
		"tls://0.0.0.0:1":            false,
		"nats://127.0.0.1:1":         false,
		"nats://[::1]:1":             false,
		"localhost:1":                false,
	} {
		conn, err := bus.Connect(bus.ConnectConfig{URLs: []string{"nats://127.0.0.1:1", address}, User: b.Agent(t, "x")})
		if err == nil {
			conn.Close()
		}
		if (err != nil) != refused || refused && (!strings.Contains(err.Error(), "use tls://") || strings.Contains(err.Error(), "hunter2")) {
			t.Errorf("%s: got %v, want a refusal: %t", address, err, refused)
		}
	}
	conn, err := bus.Connect(bus.ConnectConfig{URLs: []string{"nats://0.0.0.0:1"}, User: b.Agent(t, "x"), Insecure: true})
	if err != nil {
		t.Fatalf("in clear where that is said: %v", err)
	}
	conn.Close()
}
