package main

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// TestLimitConns: past the limit a client waits until another has gone; closing ends the wait.
func TestLimitConns(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := limitConns(inner, 2)
	defer ln.Close()
	accepted, ended := make(chan net.Conn), make(chan error, 1)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				ended <- err
				return
			}
			accepted <- conn
		}
	}()
	next := func() net.Conn {
		select {
		case conn := <-accepted:
			return conn
		case <-time.After(200 * time.Millisecond):
			return nil
		}
	}
	for range 4 {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	first, second := next(), next()
	if first == nil || second == nil {
		t.Fatal("not even the limit was accepted")
	}
	defer second.Close()
	if next() != nil {
		t.Fatal("a third connection was accepted, want 2 at once")
	}
	first.Close()
	first.Close() // makes room once
	third := next()
	if third == nil {
		t.Fatal("none was accepted though one had gone")
	}
	defer third.Close()
	if next() != nil {
		t.Fatal("a connection closed twice made room for two")
	}
	ln.Close()
	select {
	case err := <-ended:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept after Close: got %v, want net.ErrClosed", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("Accept waits for room though the listener is closed")
	}
}

// fromAddress is a listener whose connections seem to come from an address.
type fromAddress struct {
	net.Listener
	address *atomic.Value // netip.Addr
}

func (l fromAddress) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return seemingConn{conn, net.TCPAddrFromAddrPort(netip.AddrPortFrom(l.address.Load().(netip.Addr), 1234))}, nil
}

type seemingConn struct {
	net.Conn
	from net.Addr
}

func (c seemingConn) RemoteAddr() net.Addr { return c.from }

// TestLimitSources: one source has so many connections, and what it opens beyond is closed; others, loopback and trusted proxies
// are served meanwhile; and a connection that has gone makes room.
func TestLimitSources(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var address atomic.Value
	ln := limitSources(limitConns(fromAddress{inner, &address}, 64), 2, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")})
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(conn, conn); conn.Close() }()
		}
	}()
	// open connects as from an address, and tells whether it was served.
	open := func(from string) (net.Conn, bool) {
		t.Helper()
		address.Store(netip.MustParseAddr(from))
		conn, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = conn.Write([]byte("x"))
		_, err = io.ReadFull(conn, make([]byte, 1))
		return conn, err == nil
	}
	first, _ := open("192.0.2.1")
	for _, c := range []struct {
		from string
		want bool
	}{
		{"192.0.2.1", true}, {"192.0.2.1", false}, {"::ffff:192.0.2.1", false}, {"192.0.2.2", true},
		{"2001:db8::1", true}, {"2001:db8::2", true}, {"2001:db8::3", false}, {"2001:db8:0:1::1", true},
		{"127.0.0.1", true}, {"127.0.0.1", true}, {"127.0.0.1", true}, {"10.1.1.1", true}, {"10.1.1.1", true}, {"10.1.1.1", true},
	} {
		if _, ok := open(c.from); ok != c.want {
			t.Errorf("from %s: served %v, want %v", c.from, ok, c.want)
		}
	}
	first.Close()
	for deadline := time.Now().Add(5 * time.Second); ; {
		if _, ok := open("192.0.2.1"); ok {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a connection that has gone makes no room")
		}
	}
}
