package issuer

import (
	"slices"
	"time"
)

// paceKept bounds how far back a pace reaches: over an hour.
const paceKept = 4096

// pace remembers, a sample a second, how far the log had come when, so that what somebody lacks has an age. The zero value
// has seen nothing.
type pace struct{ samples []paceSample }

type paceSample struct {
	seq uint64
	at  time.Time
}

func (p *pace) note(seq uint64, now time.Time) {
	if n := len(p.samples); n > 0 && now.Sub(p.samples[n-1].at) < time.Second && p.samples[n-1].seq <= seq {
		return
	}
	if p.samples = append(p.samples, paceSample{seq, now}); len(p.samples) > 2*paceKept {
		p.samples = slices.Clone(p.samples[paceKept:])
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
