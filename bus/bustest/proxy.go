package bustest

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Direction is one way through a Proxy.
type Direction int

// The ways: from whoever connected, and back to it.
const (
	ToServer Direction = iota
	ToClient
	Both
)

// Proxy stands between NATS clients and their server and spoils what passes, as networks do. Its
// faults hold for the connections there are and for those to come, until Resume. It ends with the
// test.
type Proxy struct {
	listener net.Listener
	target   string
	done     chan struct{}
	running  sync.WaitGroup

	mu      sync.Mutex
	conns   map[net.Conn]struct{}
	paused  [Both]bool
	delay   [Both]time.Duration
	drop    [Both][]byte
	tamper  [Both]func(Message) []Message
	dropped int
	changed chan struct{} // closed when a fault begins or ends
}

// NewProxy listens on a free port of the loopback and leads to target ("host:port" or "nats://…").
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{
		listener: ln, target: string(bytes.TrimPrefix([]byte(target), []byte("nats://"))),
		done: make(chan struct{}), conns: make(map[net.Conn]struct{}), changed: make(chan struct{}),
	}
	p.running.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// Addr is where clients connect to, as "host:port".
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// URL is Addr as NATS clients want it.
func (p *Proxy) URL() string { return "nats://" + p.Addr() }

// Pause holds back what comes from that side. Nothing is lost: it arrives after Resume.
func (p *Proxy) Pause(dir Direction) { p.fault(dir, func(d Direction) { p.paused[d] = true }) }

// Delay has what arrives go on so much later.
func (p *Proxy) Delay(dir Direction, by time.Duration) {
	p.fault(dir, func(d Direction) { p.delay[d] = by })
}

// DropSubject takes out of that way every NATS message (PUB, HPUB, MSG, HMSG) whose subject begins
// so, and lets everything else pass.
func (p *Proxy) DropSubject(dir Direction, prefix string) {
	p.fault(dir, func(d Direction) { p.drop[d] = []byte(prefix) })
}

// Dropped is how many messages DropSubject has taken out.
func (p *Proxy) Dropped() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dropped
}

// Resume ends every fault.
func (p *Proxy) Resume() {
	p.fault(Both, func(d Direction) { p.paused[d], p.delay[d], p.drop[d], p.tamper[d] = false, 0, nil, nil })
}

// Cut breaks every connection; what was under way, or held back, is lost. Clients may connect again.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

func (p *Proxy) fault(dir Direction, set func(Direction)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for d := range Both {
		if dir == d || dir == Both {
			set(d)
		}
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Proxy) close() {
	close(p.done)
	p.listener.Close()
	p.Cut()
	p.running.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			client.Close()
			continue
		}
		p.mu.Lock()
		p.conns[client], p.conns[server] = struct{}{}, struct{}{}
		p.mu.Unlock()
		p.running.Go(func() { p.pump(ToServer, client, server) })
		p.running.Go(func() { p.pump(ToClient, server, client) })
	}
}

// pump copies one way until either end is closed.
func (p *Proxy) pump(dir Direction, from, to net.Conn) {
	defer func() {
		from.Close()
		to.Close()
		p.mu.Lock()
		delete(p.conns, from)
		delete(p.conns, to)
		p.mu.Unlock()
	}()
	frames := newFramer(from)
	for {
		frame, err := frames.next()
		if err != nil || !p.hold(dir, frames.arrived) {
			return
		}
		if p.drops(dir, frame) {
			continue
		}
		for _, on := range p.tampered(dir, frame) {
			if _, err := to.Write(on); err != nil {
				return
			}
		}
	}
}

// hold waits out the faults of a way for what arrived then, and tells whether the proxy goes on.
func (p *Proxy) hold(dir Direction, arrived time.Time) bool {
	for {
		p.mu.Lock()
		paused, delay, changed := p.paused[dir], p.delay[dir], p.changed
		p.mu.Unlock()
		var wait <-chan time.Time
		if !paused {
			left := time.Until(arrived.Add(delay))
			if delay == 0 || left <= 0 {
				return true
			}
			wait = time.After(left)
		}
		select {
		case <-wait:
			return true
		case <-changed:
		case <-p.done:
			return false
		}
	}
}

func (p *Proxy) drops(dir Direction, frame []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.drop[dir] == nil || !bytes.HasPrefix(frameSubject(frame), p.drop[dir]) {
		return false
	}
	p.dropped++
	return true
}

// framer parts a NATS stream into its protocol's messages: a line, and the payload that it announces.
type framer struct {
	from    io.Reader
	buf     []byte
	arrived time.Time // when the newest of buf came
}

func newFramer(from io.Reader) *framer { return &framer{from: from} }

func (f *framer) next() ([]byte, error) {
	for {
		if n := frameLength(f.buf); n > 0 && n <= len(f.buf) {
			frame := bytes.Clone(f.buf[:n])
			f.buf = f.buf[n:]
			return frame, nil
		}
		piece := make([]byte, 32<<10)
		n, err := f.from.Read(piece)
		if err != nil {
			return nil, err
		}
		f.buf, f.arrived = append(f.buf, piece[:n]...), time.Now()
	}
}

// frameLength gives the length of the first message, 0 while its line is not whole.
func frameLength(buf []byte) int {
	end := bytes.Index(buf, []byte("\r\n"))
	if end < 0 {
		return 0
	}
	n := end + 2
	if frameSubject(buf) == nil {
		return n
	}
	fields := bytes.Fields(buf[:end])
	size := 0
	for _, c := range fields[len(fields)-1] {
		size = 10*size + int(c-'0')
	}
	return n + size + 2
}

// frameSubject gives the subject of a message that carries one with a payload, else nil.
func frameSubject(frame []byte) []byte {
	line, _, _ := bytes.Cut(frame, []byte("\r\n"))
	fields := bytes.Fields(line)
	if len(fields) < 3 {
		return nil
	}
	switch string(bytes.ToUpper(fields[0])) {
	case "PUB", "HPUB", "MSG", "HMSG":
		return fields[1]
	}
	return nil
}
