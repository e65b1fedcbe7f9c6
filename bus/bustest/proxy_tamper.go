package bustest

import (
	"bytes"
	"strconv"
)

// Message is a NATS message with a payload on its way through a Proxy. Header and Body may be changed
// in place, not in length.
type Message struct {
	Subject string
	Header  []byte // as it is on the wire, nil for none
	Body    []byte

	frame []byte
}

// Clone is the same message once more.
func (m Message) Clone() Message { return newMessage(bytes.Clone(m.frame)) }

// Tamper hands every message of that way to fn, and sends on what fn gives instead: none, the same,
// another, one kept from before, or several. nil, and Resume, end it. fn may be called for several
// connections at once.
func (p *Proxy) Tamper(dir Direction, fn func(Message) []Message) {
	p.fault(dir, func(d Direction) { p.tamper[d] = fn })
}

// tampered gives the frames that go on in the place of one.
func (p *Proxy) tampered(dir Direction, frame []byte) [][]byte {
	p.mu.Lock()
	fn := p.tamper[dir]
	p.mu.Unlock()
	if fn == nil || frameSubject(frame) == nil {
		return [][]byte{frame}
	}
	var on [][]byte
	for _, m := range fn(newMessage(frame)) {
		on = append(on, m.frame)
	}
	return on
}

func newMessage(frame []byte) Message {
	end := bytes.Index(frame, []byte("\r\n"))
	fields := bytes.Fields(frame[:end])
	rest := frame[end+2 : len(frame)-2]
	m := Message{Subject: string(fields[1]), frame: frame, Body: rest}
	if fields[0][0] == 'H' || fields[0][0] == 'h' {
		n, err := strconv.Atoi(string(fields[len(fields)-2]))
		if err == nil && n <= len(rest) {
			m.Header, m.Body = rest[:n], rest[n:]
		}
	}
	return m
}
