package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// listen opens the address that the configuration has under key, or takes the socket that systemd has opened there. A unix socket gets mode,
// and systemd's is refused where it lets in more; one that a process left behind when it died is replaced; one that answers is not. An error
// says what to do.
func listen(key, address string, mode fs.FileMode) (net.Listener, error) {
	l, err := parseListen(address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	if ln, err := handedOver().take(l, mode); ln != nil || err != nil {
		if err != nil {
			err = fmt.Errorf("%s: %w", key, err)
		}
		return ln, err
	}
	if l.network == "unix" {
		return listenUnix(key, l.address, mode)
	}
	ln, err := net.Listen(l.network, l.address)
	if err != nil {
		return nil, listenError(key, address, err)
	}
	return ln, nil
}

func listenUnix(key, path string, mode fs.FileMode) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("%s: %s is there and is no socket; remove it or choose another path", key, path)
		}
		if conn, err := net.Dial("unix", path); err == nil {
			conn.Close()
			return nil, listenError(key, "unix:"+path, syscall.EADDRINUSE)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("%s: removing the socket that a dead process left: %w", key, err)
		}
	}
	// The socket is made under a mask that lets nobody else in, until its mode is set.
	old := syscall.Umask(0o077)
	ln, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, listenError(key, "unix:"+path, err)
	}
	if err := os.Chmod(path, mode); err != nil {
		ln.Close()
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return ln, nil
}

func listenError(key, address string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("listening on %s: the address is in use; stop the process that has it, or change %s", address, key)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("listening on %s: permission denied; choose a port over 1023 or a folder that this user may write, in %s", address, key)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("listening on %s: this host has no such address; change %s", address, key)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("listening on %s: its folder does not exist; make it, or change %s", address, key)
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	return fmt.Errorf("listening on %s: %w; see %s", address, err, key)
}

// serve answers on ln until ctx ends, then waits up to grace for requests in flight.
func serve(ctx context.Context, srv *http.Server, ln net.Listener, grace time.Duration) error {
	drained := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		drained <- srv.Shutdown(dctx)
	})
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-drained // Serve returns as Shutdown begins; the drain is what we wait for
}

// makeDataDir makes the folder of the state, for this user alone, and proves that it can be written. One that is there
// and that others may enter, or with a file that others may read, is refused. key names it in errors.
func makeDataDir(key, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return dataDirError(key, dir, err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return dataDirError(key, dir, err)
	}
	if !info.IsDir() {
		return dataDirError(key, dir, syscall.ENOTDIR)
	}
	if err := bus.CheckPrivate(dir); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	probe, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return dataDirError(key, dir, err)
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

func dataDirError(key, dir string, err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	return fmt.Errorf("opening %s %s: %w; make it a folder that this user may write, or name another", key, filepath.Clean(dir), err)
}
