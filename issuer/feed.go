package issuer

import (
	"slices"
	"sync"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// Bounds of a Feed.
const (
	feedQueue  = 8192 // revocations that wait for the issuer; beyond, the next sweep finds them
	feedRecent = 1000 // revocations that GET /admin/v1/revocations shows
)

// SeenRevocation is a revocation and its place in the log: {"seq":412,"sid":"0198…","exp":1767225600}.
type SeenRevocation struct {
	Seq uint64 `json:"seq"`
	bus.Revocation
}

// Feed tells an Issuer of the revocations that its replica reads: they close the sessions' records
// (PROTOCOL 14), whoever appended them. Make it with NewFeed, give Note to the replica as its
// Journal (or call it from there), and put it into Parts.
type Feed struct {
	mu     sync.Mutex
	queue  []SeenRevocation
	recent []SeenRevocation // the oldest first
	last   uint64           // the newest sequence noted
	wake   chan struct{}    // holds one token while there is something new
	pace   pace             // of all entries
	due    pace             // of all but ticks, which are acknowledged with the rest, half a minute later
}

// NewFeed makes a Feed that has seen nothing.
func NewFeed() *Feed { return &Feed{wake: make(chan struct{}, 1)} }

// Note takes entries in. It never blocks and never fails; entries noted before are skipped.
func (f *Feed) Note(entries []bus.Entry) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if len(entries) > 0 {
		f.pace.note(entries[len(entries)-1].Seq, now)
	}
	for _, en := range slices.Backward(entries) {
		if _, tick := en.Fact.(*bus.Tick); !tick {
			f.due.note(en.Seq, now)
			break
		}
	}
	for _, en := range entries {
		r, ok := en.Fact.(*bus.Revocation)
		if !ok || en.Seq <= f.last {
			continue
		}
		f.last = en.Seq
		if len(f.queue) < feedQueue {
			f.queue = append(f.queue, SeenRevocation{en.Seq, *r})
		}
		if f.recent = append(f.recent, SeenRevocation{en.Seq, *r}); len(f.recent) > 2*feedRecent {
			f.recent = slices.Clone(f.recent[len(f.recent)-feedRecent:])
		}
	}
	if len(f.queue) > 0 {
		select {
		case f.wake <- struct{}{}:
		default:
		}
	}
	return nil
}

// take empties the queue.
func (f *Feed) take() []SeenRevocation {
	f.mu.Lock()
	defer f.mu.Unlock()
	q := f.queue
	f.queue = nil
	return q
}

// Recent gives the newest revocations that were read since the process started, newest first.
func (f *Feed) Recent() []SeenRevocation {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := append([]SeenRevocation{}, f.recent[max(0, len(f.recent)-feedRecent):]...)
	slices.Reverse(all)
	return all
}
