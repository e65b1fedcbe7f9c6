package lease

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// Drift bounds the rates of two machines' clocks: a fence lasts longer than its lease by this part.
const Drift = 0.01

// pruneEvery is the time between two looks for leases that are over.
const pruneEvery = time.Second

// chains is how many positions' chains a Ledger remembers, to judge acknowledgements by.
const chains = 8192

// Holding is what a Ledger knows of one run: who may be vouching, and by which leases. It is part
// of a checkpoint, so that an issuer which starts from one knows the leases granted behind it.
type Holding struct {
	Agent  string      `json:"agent"`
	Run    string      `json:"run"`
	Issuer bool        `json:"issuer,omitempty"` // an issuer, which verifies too
	Grants []GrantedAt `json:"grants"`           // oldest first
}

// GrantedAt is one lease as the log records it.
type GrantedAt struct {
	bus.Position               // of the tick
	Length       time.Duration `json:"length"`
	Mode         Mode          `json:"mode"`
}

// run is a Holding with what this issuer itself has seen: when it read each grant, and what the run
// acknowledged.
type run struct {
	agent, id string
	issuer    bool
	grants    []granted
	acked     bus.Position
	// What it claims beyond what this issuer has read itself, to be judged when that is read: the
	// claim that can be judged next, and the newest. With only the newest, an issuer that lags behind
	// an agent would never come to one that it can judge.
	claimed []Ack
}

type granted struct {
	GrantedAt
	read  Reading // when this issuer read it: no earlier than the holder asked
	first Reading // the same, of the first of those that it stands for: see grant
}

// merged is the part of a lease's length within which grants count as one.
const merged = 16

// grant notes one lease. What is noted stays small, however often a run asks: of leases granted within
// a short time of one another only the first's position and the last's end are kept, which is as strict
// as all of them; and of those that never end only the first, which says it all.
func (r *run) grant(g GrantedAt, seen Reading) {
	for i := range r.grants {
		switch have := &r.grants[i]; {
		case have.GrantedAt == g:
			return // the same tick, read again; another length or mode of the same tick is another lease
		case have.Mode == Serve && g.Mode == Serve:
			if g.Position.Before(have.Position) {
				have.Position = g.Position
			}
			return
		}
	}
	if n := len(r.grants); n > 0 {
		if last := &r.grants[n-1]; last.Mode == Refuse && g.Mode == Refuse && last.Length == g.Length &&
			!g.Position.Before(last.Position) && longest(last.first, seen) < g.Length/merged {
			last.read = seen
			return
		}
	}
	r.grants = append(r.grants, granted{g, seen, seen})
}

// prune forgets the leases that are certainly over, but the newest, which says that the run is fenced;
// and that one when it has been over for as long again. It tells whether anything is left.
func (r *run) prune(now Reading) bool {
	last := len(r.grants) - 1
	left := r.grants[:0]
	for i, g := range r.grants {
		if i == last || !g.over(now) {
			left = append(left, g)
		}
	}
	r.grants = left
	if len(left) != 1 {
		return len(left) > 0
	}
	g := left[0]
	return !g.over(now) || shortest(g.read, now) <= 2*g.Length+time.Minute
}

// claim notes an acknowledgement that is to be judged.
func (r *run) claim(a Ack) {
	switch n := len(r.claimed); {
	case n == 0 || r.claimed[n-1].At.Before(a.At) && n < 2:
		r.claimed = append(r.claimed, a)
	case r.claimed[n-1].At.Before(a.At):
		r.claimed[n-1] = a
	case a.At.Before(r.claimed[0].At):
		r.claimed[0] = a
	}
}

// over tells whether the lease has certainly ended.
func (g granted) over(now Reading) bool {
	return g.Mode != Serve && shortest(g.read, now) >= g.Length+time.Duration(float64(g.Length)*Drift)
}

// Ack is an acknowledgement whose signature is proven.
type Ack struct {
	Agent, Run string
	At         bus.Position
	Chain      bus.Chain
}

// Ledger is an issuer's account of who may be vouching: the leases as the log records them, and what
// their holders have acknowledged (PROTOCOL 4). It goes by what the log says, never by a list of
// agents. All methods may be called by any goroutine.
type Ledger struct {
	clock Clock

	mu     sync.Mutex
	runs   map[string]*run // by agent and run
	claims map[string]*run // those that claim more than is read
	pruned Reading
	read   bus.Position // the log and its grants are taken in up to here
	recent [chains]struct {
		seq   uint64
		chain bus.Chain
	}
	changed chan struct{}
}

// NewLedger makes an empty one; nil clock: SystemClock.
func NewLedger(clock Clock) *Ledger {
	if clock == nil {
		clock = SystemClock
	}
	return &Ledger{clock: clock, runs: make(map[string]*run), claims: make(map[string]*run), changed: make(chan struct{})}
}

// Restore takes the holdings of a checkpoint in, as if they were granted now: when they were is
// not known here any more (PROTOCOL 5).
func (l *Ledger) Restore(at bus.Cursor, held []Holding) {
	l.change(func(now Reading) {
		for _, h := range held {
			r := l.runLocked(h.Agent, h.Run)
			r.issuer = h.Issuer
			for _, g := range h.Grants {
				r.grant(g, now)
			}
		}
		l.readLocked(at)
	})
}

// Read takes one entry in, after those before it; grants is the list that it names, nil if it names
// none. seen is when this issuer read the entry. An issuer's tick is a lease of its own, as long as
// an issuer may sign and verify without another; and what it had applied then is acknowledged by it.
func (l *Ledger) Read(en bus.Entry, grants []Request, seen Reading, issuerLease time.Duration) {
	l.change(func(Reading) {
		l.readLocked(en.Cursor())
		for _, g := range grants {
			r := l.runLocked(g.Agent, g.Run)
			r.grant(GrantedAt{en.Position, time.Duration(g.Length) * time.Millisecond, g.Mode}, seen)
		}
		if t, ok := en.Fact.(*bus.Tick); ok && t.Run != "" {
			r := l.runLocked(t.Issuer, t.Run)
			r.issuer = true
			r.grant(GrantedAt{en.Position, issuerLease, Refuse}, seen)
			r.acked = latest(r.acked, bus.Position{Epoch: en.Epoch, Seq: t.Applied})
		}
		if shortest(l.pruned, seen) >= pruneEvery {
			l.pruned = seen
			l.pruneLocked()
		}
		l.settleClaimsLocked()
	})
}

// Acknowledge takes an acknowledgement. It counts only if its chain is the log's: a run that was
// shown another log has acknowledged nothing (PROTOCOL 10).
func (l *Ledger) Acknowledge(a Ack) {
	l.mu.Lock()
	r := l.runs[key(a.Agent, a.Run)]
	l.mu.Unlock()
	if r == nil || a.Run == anyRun {
		return // it holds no lease that is known here: nobody waits for it
	}
	l.change(func(Reading) {
		r.claim(a)
		l.claims[key(a.Agent, a.Run)] = r
		l.settleClaimsLocked()
	})
}

// Changed is closed at the next entry or acknowledgement that is taken in after the call.
func (l *Ledger) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// ReadUpTo is the position up to which log and grants are taken in.
func (l *Ledger) ReadUpTo() bus.Position {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.read
}

// anyRun stands for runs of which nothing is known. No run may call itself so.
const anyRun = "*"

// Blanket gives the Holdings of agents of whose leases nothing is known any more, since the log that
// recorded them is lost: each may hold the longest that it ever asked for (0: the longest there is), and
// without agents anybody may (PROTOCOL 5). No run of theirs can be told from another, so none of them is
// settled by an acknowledgement.
func Blanket(longest map[string]time.Duration, at bus.Position) []Holding {
	if len(longest) == 0 {
		longest = map[string]time.Duration{"agents that are not known any more": 0}
	}
	held := make([]Holding, 0, len(longest))
	for name, length := range longest {
		held = append(held, Holding{Agent: name, Run: anyRun, Grants: []GrantedAt{{Position: at, Length: cmp.Or(length, MaxLength), Mode: Refuse}}})
	}
	return held
}

// Holdings gives what is not certainly over, for a checkpoint.
func (l *Ledger) Holdings() []Holding {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pruneLocked()
	held := make([]Holding, 0, len(l.runs))
	for _, r := range l.runs {
		h := Holding{Agent: r.agent, Run: r.id, Issuer: r.issuer}
		for _, g := range r.grants {
			h.Grants = append(h.Grants, g.GrantedAt)
		}
		held = append(held, h)
	}
	slices.SortFunc(held, func(a, b Holding) int { return cmp.Or(cmp.Compare(a.Agent, b.Agent), cmp.Compare(a.Run, b.Run)) })
	return held
}

// Await returns when log and grants are read up to a position, or with ctx's error.
func (l *Ledger) Await(ctx context.Context, at bus.Position) error {
	for {
		changed := l.Changed()
		if !l.ReadUpTo().Before(at) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting until the leases granted before entry %d are known: %w", at.Seq, ctx.Err())
		}
	}
}

// Image gives the Holdings as a checkpoint has them, once they are known up to a position.
func (l *Ledger) Image(ctx context.Context, at bus.Position) ([]byte, error) {
	if err := l.Await(ctx, at); err != nil {
		return nil, err
	}
	return json.Marshal(l.Holdings())
}

func (l *Ledger) change(do func(now Reading)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	do(l.clock())
	close(l.changed)
	l.changed = make(chan struct{})
}

func key(agent, id string) string { return agent + "\x00" + id }

func (l *Ledger) runLocked(agent, id string) *run {
	r := l.runs[key(agent, id)]
	if r == nil {
		r = &run{agent: agent, id: id}
		l.runs[key(agent, id)] = r
	}
	return r
}

func (l *Ledger) readLocked(at bus.Cursor) {
	l.read = latest(l.read, at.Position)
	slot := &l.recent[at.Seq%chains]
	slot.seq, slot.chain = at.Seq, at.Chain
}

// pruneLocked forgets what cannot matter to any receipt any more.
func (l *Ledger) pruneLocked() {
	now := l.clock()
	for k, r := range l.runs {
		if !r.prune(now) {
			delete(l.runs, k)
		}
	}
}

// settleClaimsLocked judges the acknowledgements that this issuer can judge by now.
func (l *Ledger) settleClaimsLocked() {
	for k, r := range l.claims {
		r.claimed = slices.DeleteFunc(r.claimed, func(a Ack) bool {
			if l.read.Before(a.At) {
				return false
			}
			if slot := l.recent[a.At.Seq%chains]; a.At.Epoch == l.read.Epoch && slot.seq == a.At.Seq && slot.chain == a.Chain {
				r.acked = latest(r.acked, a.At)
			}
			return true
		})
		if len(r.claimed) == 0 {
			delete(l.claims, k)
		}
	}
}

func latest(a, b bus.Position) bus.Position {
	if a.Before(b) {
		return b
	}
	return a
}
