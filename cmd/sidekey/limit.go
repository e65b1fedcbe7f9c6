package main

import (
	"net"
	"sync"
)

// How many connections a listener of an issuer has open at once. The embedded bus shares the
// process's descriptors, and a client that opens thousands may not take them from it.
const (
	maxPublicConns = 2048
	maxAdminConns  = 256 // and of ops
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
