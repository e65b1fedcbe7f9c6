package main

import (
	"errors"
	"net"
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
