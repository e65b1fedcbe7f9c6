package lease

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// HolderConfig is who holds, and what it wants.
type HolderConfig struct {
	Agent  string
	Length time.Duration // agent.max_staleness
	Mode   Mode
	Clock  Clock // nil: SystemClock
	File   *File // nil: nothing outlives the process
}

// ErrGrant means that a grant is not an answer to a request of ours, or does not agree with the log
// as we have it. It is passed over.
var ErrGrant = errors.New("the grant is not for this run")

// Holder is an agent's side of its lease. Any goroutine may ask Current; the others are called by
// the one that talks to the bus and the one that follows the log.
//
// A lease counts from the moment before it was asked for, and only once everything up to its tick,
// and up to the floor, is applied. The floor is the newest position ever acknowledged: who
// restarts with older knowledge vouches for nothing before it is there again (PROTOCOL 1).
type Holder struct {
	cfg HolderConfig
	cur atomic.Pointer[Lease]

	mu      sync.Mutex
	run     string
	asked   []asked   // outstanding requests, oldest first
	waiting []waiting // answered, their tick not applied yet, oldest first
	kept    *Lease    // from an earlier process of this run, waiting for its position and the floor
	floor   bus.Cursor
	applied bus.Position
}

// asked is one request without an answer.
type asked struct {
	nonce []byte
	at    Reading
}

// waiting is a grant whose tick is not applied yet.
type waiting struct {
	Grant
	begin Reading // when it was asked for
}

// over tells whether it can no longer become a lease that vouches.
func (w waiting) over(now Reading) bool {
	return w.Mode != Serve && longest(w.begin, now) >= time.Duration(w.Length)*time.Millisecond
}

// Bounds of what a Holder remembers.
const (
	maxAsked   = 4  // requests whose answers are still believed
	maxWaiting = 16 // grants that wait: whoever is further behind than that needs the oldest first, and will ask again
)

// NewHolder makes a Holder without a lease, or, with a File that holds a valid one of an earlier
// process of this boot, the same run with that lease, which counts once the floor is applied.
func NewHolder(cfg HolderConfig) *Holder {
	if cfg.Clock == nil {
		cfg.Clock = SystemClock
	}
	h := &Holder{cfg: cfg, run: newRun()}
	if cfg.File == nil {
		return h
	}
	if kept, ok := cfg.File.read(); ok && kept.Agent == cfg.Agent {
		// A stricter configuration counts at once, a laxer one with the next grant.
		l := &Lease{Begin: kept.Begin, Length: min(kept.Length, cfg.Length), Mode: kept.Mode, Position: kept.Position, Chain: kept.Chain}
		if cfg.Mode != Serve {
			l.Mode = Refuse
		}
		// A boot's clock does not go back: one that does is another's, as in a container with a time of its own.
		if now := cfg.Clock(); l.Begin.Boot <= now.Boot && l.Vouches(now) {
			h.run, h.floor, h.kept = kept.Run, bus.Cursor{Position: kept.Floor, Chain: kept.FloorChain}, l
		}
	}
	return h
}

// newRun is a random id: it names one process, or those that share one lease file.
func newRun() string {
	b := make([]byte, 16)
	rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

// Run is the id under which leases and acknowledgements of this process go.
func (h *Holder) Run() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.run
}

// Current is the lease in force, nil without one. Whether it still counts, ask Lease.Vouches; a request
// takes it first and asks again last (PROTOCOL 2). One atomic load.
func (h *Holder) Current() *Lease { return h.cur.Load() }

// keptLeft is how long the lease of an earlier process lasts, 0 without one.
func (h *Holder) keptLeft() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := cmp.Or(h.kept, h.cur.Load())
	if l == nil {
		return 0
	}
	return l.Left(h.cfg.Clock())
}

// Ask makes the next request. It takes the time first: what is committed before it will be seen.
func (h *Holder) Ask() Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	nonce := make([]byte, nonceSize)
	rand.Read(nonce)
	h.asked = append(h.asked, asked{nonce: nonce, at: h.cfg.Clock()})
	if len(h.asked) > maxAsked {
		h.asked = h.asked[1:]
	}
	return Request{Agent: h.cfg.Agent, Run: h.run, Nonce: nonce, Length: h.cfg.Length.Milliseconds(), Mode: h.cfg.Mode}
}

// Take takes a grant whose signature is proven. It comes into force when its tick is applied: see
// Applied.
func (h *Holder) Take(g Grant) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := slices.IndexFunc(h.asked, func(a asked) bool { return bytes.Equal(a.nonce, g.Nonce) })
	if n < 0 || g.Agent != h.cfg.Agent || g.Run != h.run {
		return fmt.Errorf("%w: it answers no request of run %s", ErrGrant, h.run)
	}
	if g.Mode != h.cfg.Mode || g.Length <= 0 || g.Request.Check() != nil {
		return fmt.Errorf("%w: %d ms in mode %q", ErrGrant, g.Length, g.Mode)
	}
	w, now := waiting{g, h.asked[n].at}, h.cfg.Clock()
	h.asked = slices.Delete(h.asked, 0, n+1) // older ones are worth less
	h.waiting = slices.DeleteFunc(h.waiting, func(w waiting) bool { return w.over(now) })
	if len(h.waiting) == maxWaiting {
		h.waiting = h.waiting[:maxWaiting-1]
	}
	h.waiting = append(h.waiting, w)
	return nil
}

// Applied says what is visible to the verify path now, and lets the leases that waited for it come
// into force. chain gives the own chain at a sequence, if it is still known. Call it after every
// step of the log and after every Take. An error names a grant whose chain is not ours: the log
// that was signed is not the log that was read.
func (h *Holder) Applied(at bus.Position, chain func(seq uint64) (bus.Chain, bool)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.applied = at
	if l := h.cur.Load(); l != nil && at.Epoch > l.Position.Epoch {
		h.cur.Store(nil) // it was granted by a log that is gone
	}
	err := h.takeKept(at, chain)
	h.waiting = slices.DeleteFunc(h.waiting, func(w waiting) bool {
		if at.Before(w.Position) || at.Before(h.floor.Position) {
			return at.Epoch != 0 && w.Epoch < at.Epoch // the log was begun anew since
		}
		own, known := chain(w.Seq)
		switch {
		case w.Epoch != at.Epoch || !known:
			return true // too late to judge: ask again
		case own != w.Chain:
			err = rollback(w.Seq)
			return true
		}
		h.hold(w)
		return true
	})
	return err
}

// takeKept lets the lease of an earlier process come into force, once what that process knew is
// applied again: the same entries, as far as their chains are remembered.
func (h *Holder) takeKept(at bus.Position, chain func(seq uint64) (bus.Chain, bool)) error {
	l := h.kept
	if l == nil || at.Epoch != l.Position.Epoch || at.Before(l.Position) || at.Before(h.floor.Position) {
		return nil
	}
	h.kept = nil
	for _, was := range []bus.Cursor{{Position: l.Position, Chain: l.Chain}, h.floor} {
		if own, known := chain(was.Seq); known && was.Epoch == at.Epoch && own != was.Chain {
			return rollback(was.Seq)
		}
	}
	if l.Vouches(h.cfg.Clock()) {
		h.cur.Store(l)
	}
	return nil
}

func rollback(seq uint64) error {
	return fmt.Errorf("%w: the chain at %d is not the signed one", bus.ErrRollback, seq)
}

// hold puts a grant into force, if it lasts longer than the lease that is. h.mu is held.
func (h *Holder) hold(w waiting) {
	l := &Lease{
		Begin: w.begin, Length: min(time.Duration(w.Length)*time.Millisecond, h.cfg.Length), Mode: w.Mode,
		Position: w.Position, Chain: w.Chain,
	}
	now := h.cfg.Clock()
	if old := h.cur.Load(); old != nil && old.Left(now) > l.Left(now) {
		return
	}
	h.cur.Store(l)
	h.kept = nil
	h.writeLocked(h.floor) //nolint:errcheck // without it, a restart begins without a lease: nothing is promised
}

// Floor writes down that a cursor is about to be acknowledged. Only after it returned without an
// error may the acknowledgement leave (PROTOCOL 1).
func (h *Holder) Floor(at bus.Cursor) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.floor.Position.Before(at.Position) {
		return nil
	}
	if err := h.writeLocked(at); err != nil {
		return err // and it counts as unwritten: the next attempt writes it
	}
	h.floor = at
	return nil
}

// AtFloor tells whether everything ever acknowledged by this run is applied again.
func (h *Holder) AtFloor() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.applied.Before(h.floor.Position)
}

// writeLocked writes the lease in force, and a floor. h.mu is held.
func (h *Holder) writeLocked(floor bus.Cursor) error {
	if h.cfg.File == nil {
		return nil
	}
	rec := record{Agent: h.cfg.Agent, Run: h.run, Floor: floor.Position, FloorChain: floor.Chain}
	l := h.cur.Load()
	if l == nil {
		l = h.kept
	}
	if l != nil {
		rec.Begin, rec.Length, rec.Mode, rec.Position, rec.Chain = l.Begin, l.Length, l.Mode, l.Position, l.Chain
	}
	return h.cfg.File.write(rec)
}
