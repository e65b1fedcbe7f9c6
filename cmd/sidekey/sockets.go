package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
)

// sockets are the listening sockets that systemd handed to this process (sd_listen_fds(3)). A listen key takes the one
// that is bound to its address, so the configuration stays the one place that says what is served where, and whether
// in clear. The socket outlives the process: who connects while that restarts waits, and is not refused.
type sockets struct {
	mu    sync.Mutex
	held  []heldSocket
	taken int
	err   error
}

// settleWithin is how long those who connect to a socket of systemd's are left waiting for an agent that starts.
const settleWithin = 2 * time.Second

var errStarting = errors.New("it vouches for nobody yet")

type heldSocket struct {
	net.Listener
	name string // FileDescriptorName=
}

// handedOver are this process's, taken once: a child would take them for its own.
var handedOver = sync.OnceValue(func() *sockets { return takeSockets(activation.Files(true)) })

func takeSockets(files []*os.File) *sockets {
	s := new(sockets)
	for _, f := range files {
		ln, err := net.FileListener(f) // a copy of the descriptor
		if err := errors.Join(err, f.Close()); err != nil {
			s.err = errors.Join(s.err, fmt.Errorf("taking the socket %q from systemd: %w; want ListenStream= in its unit, and no Accept=", f.Name(), err))
			continue
		}
		s.held = append(s.held, heldSocket{ln, f.Name()})
	}
	return s
}

// take gives the socket that is bound to an address to listen on, nil where there is none. A unix socket that lets in others than mode
// does is refused: systemd's own default is everybody, and whoever reaches the admin socket needs no token.
func (s *sockets) take(l listenAddr, mode fs.FileMode) (net.Listener, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, held := range s.held {
		if !boundTo(held.Addr(), l) {
			continue
		}
		if l.network == "unix" {
			if err := checkHanded(l.address, mode); err != nil {
				return nil, err
			}
		}
		s.held = append(s.held[:i:i], s.held[i+1:]...)
		s.taken++
		return held.Listener, nil
	}
	return nil, nil
}

// checkHanded looks at the file of a socket that systemd holds. Nobody has to execute a socket, so those bits say nothing.
func checkHanded(path string, mode fs.FileMode) error {
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("looking at the socket that systemd holds: %w; restart its unit", err)
	}
	if more := info.Mode().Perm() & 0o666 &^ mode; more != 0 {
		return fmt.Errorf("refusing the socket %s that systemd holds: it lets in more than it should (mode %04o); set SocketMode=%04o in its unit", path, info.Mode().Perm(), mode)
	}
	return nil
}

// any tells whether a key took one.
func (s *sockets) any() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken > 0
}

// settle waits for the agent to vouch before it accepts what waits in systemd's sockets: who came while it restarted gets an answer,
// and no 503. One that is not ready soon says so.
func (p *agentProcess) settle(ctx context.Context) {
	if !handedOver().any() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	_ = awaitReady(ctx, func() error { // ready or not, it answers now
		if !p.agent.Ready() {
			return errStarting
		}
		return nil
	})
}

// rest is an error while there is a socket that no key took: nobody would answer on it.
func (s *sockets) rest() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	var names []string
	for _, held := range s.held {
		names = append(names, fmt.Sprintf("%s (%s)", held.Addr(), held.name))
	}
	if len(names) > 0 {
		return fmt.Errorf("systemd handed over a socket that nothing here listens on: %s; make ListenStream= in the socket unit and the listen keys in the configuration the same address", strings.Join(names, ", "))
	}
	return nil
}

// boundTo tells whether a socket is what listening on an address would have made.
func boundTo(addr net.Addr, l listenAddr) bool {
	switch addr := addr.(type) {
	case *net.UnixAddr:
		return l.network == "unix" && addr.Name == l.address
	case *net.TCPAddr:
		want, err := net.ResolveTCPAddr("tcp", l.address)
		if l.network == "unix" || err != nil || want.Port != addr.Port {
			return false
		}
		everywhere := want.IP == nil || want.IP.IsUnspecified()
		return everywhere && addr.IP.IsUnspecified() || want.IP.Equal(addr.IP)
	}
	return false
}
