package main

import (
	"net"
	"net/netip"
	"slices"
	"sync"
)

// How many connections a listener of an issuer has open at once. The embedded bus shares the
// process's descriptors, and a client that opens thousands may not take them from it.
const (
	maxPublicConns = 2048
	maxAdminConns  = 256 // and of ops
	maxSourceConns = 256 // of one address (IPv6: a /64) at the public listener, so that none takes them all
)

// limitedListener accepts no more than so many connections at once; further ones wait in the kernel.
type limitedListener struct {
	net.Listener
	room   chan struct{} // holds one for each open connection
	closed chan struct{}
	close  func() error
}

func limitConns(ln net.Listener, most int) net.Listener {
	closed := make(chan struct{})
	return &limitedListener{Listener: ln, room: make(chan struct{}, most), closed: closed, close: sync.OnceValue(func() error {
		close(closed) // an Accept that waits for room ends
		return ln.Close()
	})}
}

func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case l.room <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.room
		return nil, err
	}
	return &limitedConn{Conn: conn, leave: sync.OnceFunc(func() { <-l.room })}, nil
}

func (l *limitedListener) Close() error { return l.close() }

type limitedConn struct {
	net.Conn
	leave func()
}

func (c *limitedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// limitSources closes at once what one source opens beyond so many connections. Loopback and the networks of exempt have no
// such limit: a proxy there speaks for many.
func limitSources(ln net.Listener, most int, exempt []netip.Prefix) net.Listener {
	return &sourceListener{Listener: ln, most: most, exempt: exempt, open: map[netip.Prefix]int{}}
}

type sourceListener struct {
	net.Listener
	most   int
	exempt []netip.Prefix

	mu   sync.Mutex
	open map[netip.Prefix]int // no more than there are connections
}

func (l *sourceListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		source, limited := l.source(conn)
		if !limited {
			return conn, nil
		}
		if l.enter(source) {
			return &limitedConn{Conn: conn, leave: sync.OnceFunc(func() { l.exit(source) })}, nil
		}
		conn.Close()
	}
}

// source names where a connection is from; false: it has no limit.
func (l *sourceListener) source(conn net.Conn) (netip.Prefix, bool) {
	at, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return netip.Prefix{}, false // a unix socket's
	}
	ip, bits := at.Addr().Unmap().WithZone(""), 64
	if ip.Is4() {
		bits = 32
	}
	if ip.IsLoopback() || slices.ContainsFunc(l.exempt, func(p netip.Prefix) bool { return p.Contains(ip) }) {
		return netip.Prefix{}, false
	}
	source, err := ip.Prefix(bits)
	return source, err == nil
}

func (l *sourceListener) enter(source netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[source] >= l.most {
		return false
	}
	l.open[source]++
	return true
}

func (l *sourceListener) exit(source netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[source]--; l.open[source] == 0 {
		delete(l.open, source)
	}
}
