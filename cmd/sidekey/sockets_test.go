package main

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// handed gives a listening socket as systemd hands it over.
func handed(t *testing.T, network, address, name string) (*os.File, string) {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	f, err := ln.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), name), ln.Addr().String()
}

func TestSocketsGoToTheirAddress(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	tcp, address := handed(t, "tcp", "127.0.0.1:0", "http")
	unix, _ := handed(t, "unix", path, "unix")
	s := takeSockets([]*os.File{tcp, unix})
	_, port, _ := net.SplitHostPort(address) // net's own
	for _, other := range []string{"127.0.0.2:" + port, "0.0.0.0:" + port, ":" + port, "127.0.0.1:1", "unix:/run/other.sock"} {
		l, err := parseListen(other)
		if err != nil {
			t.Fatal(err)
		}
		if ln, err := s.take(l, 0o666); ln != nil || err != nil {
			t.Errorf("%s took a socket that is bound to %s or %s", other, address, path)
		}
	}
	if err := s.rest(); err == nil || !strings.Contains(err.Error(), "nothing here listens on: "+address+" (http), "+path+" (unix)") {
		t.Errorf("nobody took them: got %v", err)
	}
	for _, own := range []string{address, "unix:" + path} {
		l, err := parseListen(own)
		if err != nil {
			t.Fatal(err)
		}
		ln, err := s.take(l, 0o666)
		if ln == nil || err != nil {
			t.Fatalf("%s did not get its socket: %v", own, err)
		}
		defer ln.Close()
		if ln, err := s.take(l, 0o666); ln != nil || err != nil {
			t.Errorf("%s got its socket twice", own)
		}
	}
	if err := s.rest(); err != nil {
		t.Errorf("all are taken: got %v", err)
	}
}

// TestSocketsLetInNobodyElse: systemd opens a unix socket to everybody unless it is told; where that is more than the listen key gives,
// as for the admin socket, it is refused.
func TestSocketsLetInNobodyElse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	f, _ := handed(t, "unix", path, "admin")
	s := takeSockets([]*os.File{f})
	for _, c := range []struct {
		has, wanted fs.FileMode
		fails       string
	}{
		{0o666, 0o600, "refusing the socket " + path + " that systemd holds: it lets in more than it should (mode 0666); set SocketMode=0600 in its unit"},
		{0o660, 0o600, "set SocketMode=0600"},
		{0o606, 0o660, "set SocketMode=0660"},
		{0o755, 0o600, "(mode 0755); set SocketMode=0600"},
		{0o711, 0o600, ""},
	} {
		if err := os.Chmod(path, c.has); err != nil {
			t.Fatal(err)
		}
		ln, err := s.take(listenAddr{network: "unix", address: path}, c.wanted)
		switch {
		case c.fails == "" && (ln == nil || err != nil):
			t.Errorf("%04o where %04o is wanted: got %v", c.has, c.wanted, err)
		case c.fails != "" && (ln != nil || err == nil || !strings.Contains(err.Error(), c.fails)):
			t.Errorf("%04o where %04o is wanted: got %v, want %q", c.has, c.wanted, err, c.fails)
		}
		if ln != nil {
			ln.Close()
		}
	}
}

// TestSocketsEverywhere: systemd's ListenStream=PORT is a socket on [::], for both families.
func TestSocketsEverywhere(t *testing.T) {
	f, address := handed(t, "tcp", "[::]:0", "http")
	_, port, _ := net.SplitHostPort(address) // net's own
	s := takeSockets([]*os.File{f})
	for own, want := range map[string]bool{"127.0.0.1:" + port: false, "0.0.0.0:" + port: true} {
		l, err := parseListen(own)
		if err != nil {
			t.Fatal(err)
		}
		if got := boundTo(s.held[0].Addr(), l); got != want {
			t.Errorf("%s on a socket bound to every address: got %v, want %v", own, got, want)
		}
	}
	s.held[0].Close()
}

func TestSocketThatIsNone(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	if err := takeSockets([]*os.File{f}).rest(); err == nil || !strings.Contains(err.Error(), "want ListenStream= in its unit") {
		t.Errorf("a file as a socket: got %v", err)
	}
}
