package issuer

import (
	"slices"
	"time"
)

// paceKept bounds how far back a pace reaches: over an hour.
const paceKept = 4096

// pace remembers, a sample a second, how far the log had come when, so that what somebody lacks has an age. The zero value
// has seen nothing.
type pace struct {
	samples []paceSample
	begun   time.Time // of the newest sample's second
}

// paceSample is the newest entry of a second, and when it came.
type paceSample struct {
	seq uint64
	at  time.Time
}

// note takes in how far the log has come; what was noted before says nothing.
func (p *pace) note(seq uint64, now time.Time) {
	n := len(p.samples)
	switch {
	case n > 0 && seq <= p.samples[n-1].seq:
	case n > 0 && now.Sub(p.begun) < time.Second:
		p.samples[n-1] = paceSample{seq, now} // the last before a silence counts too
	default:
		p.begun = now
		if p.samples = append(p.samples, paceSample{seq, now}); len(p.samples) > 2*paceKept {
			p.samples = slices.Clone(p.samples[paceKept:])
		}
	}
}

// lag tells for how long, at the least, entries have been there that whoever has applied up to seq lacks; 0: none that it
// could be blamed for. It is up to a second less than it is, and never more than what was seen here.
func (p *pace) lag(seq uint64, now time.Time) time.Duration {
	at, _ := slices.BinarySearchFunc(p.samples, seq, func(s paceSample, seq uint64) int {
		if s.seq <= seq {
			return -1
		}
		return 1
	})
	if at == len(p.samples) {
		return 0
	}
	return max(0, now.Sub(p.samples[at].at))
}

// lag is how long whoever has applied up to seq has lacked an entry.
func (f *Feed) lag(seq uint64, now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pace.lag(seq, now)
}

// owed is how long whoever has acknowledged up to seq has owed the acknowledgement of an entry that is no tick.
func (f *Feed) owed(seq uint64, now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.due.lag(seq, now)
}
