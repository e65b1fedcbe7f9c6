package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestListenInUse(t *testing.T) {
	ln, err := listen("issuer.listen", "127.0.0.1:0", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, err = listen("issuer.listen", ln.Addr().String(), 0)
	want := "listening on " + ln.Addr().String() + ": the address is in use; stop the process that has it, or change issuer.listen"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	open := func() (net.Listener, error) { return listen("agent.listen", "unix:"+path, 0o600) }
	first, err := open()
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the socket: got %v (%v), want 0600", info.Mode(), err)
	}
	if _, err := open(); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a socket that answers: got %v, want that it is in use", err)
	}
	first.(*net.UnixListener).SetUnlinkOnClose(false) // as kill -9 leaves it
	first.Close()
	second, err := open()
	if err != nil {
		t.Fatalf("a socket that was left behind: %v", err)
	}
	second.Close()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(); err == nil || !strings.Contains(err.Error(), "is no socket; remove it") {
		t.Errorf("a file in the way: got %v, want that it is no socket", err)
	}
	if _, err := listen("agent.listen", "unix:/nonexistent/a.sock", 0o600); err == nil || !strings.Contains(err.Error(), "folder does not exist") {
		t.Errorf("a missing folder: got %v", err)
	}
}

// TestListenLooksAtWhatSystemdHolds: the mode that a listen key gives its socket binds systemd's too.
func TestListenLooksAtWhatSystemdHolds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	f, _ := handed(t, "unix", path, "admin")
	s := takeSockets([]*os.File{f})
	before := handedOver
	handedOver = func() *sockets { return s }
	t.Cleanup(func() { handedOver = before })
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := listen("issuer.admin_listen", "unix:"+path, 0o600); err == nil || !strings.HasPrefix(err.Error(), "issuer.admin_listen: refusing the socket ") || !strings.Contains(err.Error(), "SocketMode=0600") {
		t.Errorf("the admin socket, open to everybody: got %v, want a refusal that names SocketMode=", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	ln, err := listen("issuer.admin_listen", "unix:"+path, 0o600)
	if err != nil {
		t.Fatalf("the admin socket, for its user alone: got %v", err)
	}
	ln.Close()
}

// TestServeDrains holds that a request in flight is answered after the end was asked for, and that serve waits for it.
func TestServeDrains(t *testing.T) {
	ln, err := listen("issuer.listen", "127.0.0.1:0", 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		cancel()
		for { // the end has begun once no new connection is taken
			conn, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				break
			}
			conn.Close()
		}
		io.WriteString(w, "done")
	})}
	served := make(chan error, 1)
	go func() { served <- serve(ctx, srv, ln, time.Minute) }()
	resp, err := http.Get("http://" + ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); string(body) != "done" || err != nil {
		t.Errorf("request in flight: got %q (%v), want done", body, err)
	}
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
}

func TestServeFails(t *testing.T) {
	ln, err := listen("issuer.listen", "127.0.0.1:0", 0)
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if err := serve(t.Context(), &http.Server{}, ln, time.Minute); !errors.Is(err, net.ErrClosed) {
		t.Errorf("serve on a closed listener: got %v, want net.ErrClosed", err)
	}
}

func TestMakeDataDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := makeDataDir("data_dir", dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err, want := makeDataDir("data_dir", dir), "data_dir: refusing "+dir+": others may use it (mode 0755); run: chmod 700 "+dir; err == nil || err.Error() != want {
		t.Errorf("a loose folder: got %v, want %s", err, want)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := makeDataDir("data_dir", dir); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v (%v)", entries, err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := makeDataDir("data_dir", file)
	if want := "opening data_dir " + file + ": not a directory; make it a folder that this user may write, or name another"; err == nil || err.Error() != want {
		t.Errorf("a file: got %v, want %s", err, want)
	}
}
