package attacktest

import (
	"bufio"
	"io"
	"net"
	"net/http/httputil"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Sighting is a request that reached the upstream, as it stood on the wire.
type Sighting struct {
	Method, Target string
	Header         []string // "Name: value", Host among them
	Trailer        []string // behind a chunked body; a service must not take it for its header (RFC 9110 §6.5.1)
}

// values gives the values of all fields that a service could take for that one: WSGI and CGI make "-" and "_" one.
func (s *Sighting) values(name string) []string {
	fold := func(n string) string { return strings.ReplaceAll(strings.ToLower(strings.TrimSpace(n)), "_", "-") }
	var all []string
	for _, line := range s.Header {
		if n, v, _ := strings.Cut(line, ":"); fold(n) == fold(name) {
			all = append(all, strings.TrimSpace(v))
		}
	}
	return all
}

// Upstream is a service behind a proxy that reads what comes as it is, and refuses nothing: what a stricter one would not
// accept is seen too. It keeps connections, so that a request within another is seen as well.
type Upstream struct {
	ln    net.Listener
	mu    sync.Mutex
	seen  []Sighting
	conns map[net.Conn]bool
}

// NewUpstream listens on a port of loopback until Close.
func NewUpstream() (*Upstream, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	u := &Upstream{ln: ln, conns: map[net.Conn]bool{}}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return // closed
			}
			u.mu.Lock()
			u.conns[c] = true
			u.mu.Unlock()
			go u.serve(c)
		}
	}()
	return u, nil
}

// Addr is where it listens.
func (u *Upstream) Addr() string { return u.ln.Addr().String() }

// Close ends it.
func (u *Upstream) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	for c := range u.conns {
		_ = c.Close()
	}
	return u.ln.Close()
}

// Take gives what was seen since it was called last.
func (u *Upstream) Take() []Sighting {
	u.mu.Lock()
	defer u.mu.Unlock()
	seen := u.seen
	u.seen = nil
	return seen
}

func (u *Upstream) serve(c net.Conn) {
	defer func() {
		_ = c.Close()
		u.mu.Lock()
		delete(u.conns, c)
		u.mu.Unlock()
	}()
	r := bufio.NewReaderSize(c, 64<<10)
	for {
		s, err := readSighting(r)
		if s.Method != "" {
			u.mu.Lock()
			u.seen = append(u.seen, s)
			u.mu.Unlock()
		}
		if err != nil {
			return
		}
		answer := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nApp: here\r\n\r\nok"
		if s.Method == "HEAD" {
			answer = strings.TrimSuffix(answer, "ok")
		}
		if _, err := io.WriteString(c, answer); err != nil || slices.Contains(s.values("Connection"), "close") {
			return
		}
	}
}

// readSighting reads one request. One that was begun is given also with an error.
func readSighting(r *bufio.Reader) (s Sighting, err error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return s, err
	}
	s.Method, s.Target, _ = strings.Cut(strings.TrimRight(line, "\r\n"), " ")
	if at := strings.LastIndex(s.Target, " HTTP/"); at >= 0 {
		s.Target = s.Target[:at]
	}
	for {
		if line, err = r.ReadString('\n'); err != nil {
			return s, err
		}
		if line = strings.TrimRight(line, "\r\n"); line == "" {
			break
		}
		s.Header = append(s.Header, line)
	}
	if len(s.values("Transfer-Encoding")) > 0 {
		_, err = io.Copy(io.Discard, httputil.NewChunkedReader(r))
		for err == nil { // the trailer
			if line, err = r.ReadString('\n'); strings.TrimRight(line, "\r\n") == "" {
				break
			}
			s.Trailer = append(s.Trailer, strings.TrimRight(line, "\r\n"))
		}
		return s, err
	}
	if all := s.values("Content-Length"); len(all) > 0 {
		n, err := strconv.Atoi(all[0])
		if err == nil && n > 0 {
			_, err = io.CopyN(io.Discard, r, int64(n))
		}
		return s, err
	}
	return s, nil
}

// exchange sends bytes and reads until the peer is done: it closes, or says nothing for a while; it may wait that long
// before it says anything.
func exchange(c net.Conn, request []byte, wait time.Duration) (answer []byte) {
	defer c.Close()
	go func() { _, _ = c.Write(request) }() // it may answer and close before it has read everything
	buf := make([]byte, 32<<10)
	for {
		_ = c.SetReadDeadline(time.Now().Add(wait))
		n, err := c.Read(buf)
		answer = append(answer, buf[:n]...)
		if err != nil {
			return answer
		}
		wait = 200 * time.Millisecond
	}
}
