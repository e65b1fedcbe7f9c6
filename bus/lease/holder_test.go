package lease_test

import (
	"errors"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
)

// holding is a holder with its clock and the log that it has applied.
type holding struct {
	*lease.Holder
	t     testing.TB
	clock *clock
	log   *tape
}

func newHolding(t testing.TB, change ...func(*lease.HolderConfig)) *holding {
	w := &holding{t: t, clock: newClock(), log: newTape()}
	w.restart(change...)
	return w
}

// restart is another process, under the same clock and log.
func (w *holding) restart(change ...func(*lease.HolderConfig)) {
	cfg := lease.HolderConfig{Agent: "web-1", Length: time.Minute, Mode: lease.Refuse, Clock: w.clock.read}
	for _, f := range change {
		f(&cfg)
	}
	w.Holder = lease.NewHolder(cfg)
}

func (w *holding) applied(seq uint64) {
	w.t.Helper()
	if err := w.Applied(w.log.upTo(seq).Position, w.log.chainAt); err != nil {
		w.t.Fatalf("Applied(%d): %v", seq, err)
	}
}

func (w *holding) take(req lease.Request, seq uint64) {
	w.t.Helper()
	if err := w.Take(answers(req, w.log.upTo(seq))); err != nil {
		w.t.Fatalf("Take(%d): %v", seq, err)
	}
}

func (w *holding) want(when string, want bool) {
	w.t.Helper()
	if got := vouches(w.Holder, w.clock); got != want {
		w.t.Errorf("%s: vouches is %v, want %v", when, got, want)
	}
}

// TestLeaseEdge: a lease counts from when it was asked for, not from when it was answered, to the
// nanosecond before its end.
func TestLeaseEdge(t *testing.T) {
	w := newHolding(t)
	req := w.Ask()
	w.clock.pass(7 * time.Second)
	w.take(req, 1)
	w.want("before its tick is applied", false)
	w.clock.pass(3 * time.Second)
	w.applied(1)
	w.want("once its tick is applied", true)
	if left := w.Current().Left(w.clock.read()); left != 50*time.Second {
		t.Errorf("Left: got %s, want 50s", left)
	}
	if age := w.Current().Age(w.clock.read()); age != 10*time.Second {
		t.Errorf("Age: got %s, want 10s", age)
	}
	w.clock.pass(50*time.Second - 1)
	w.want("a nanosecond before its end", true)
	w.clock.pass(1)
	w.want("at its end", false)
	if left := w.Current().Left(w.clock.read()); left != 0 {
		t.Errorf("Left of a lease that is over: got %s, want 0", left)
	}
}

// TestLeaseByTheWorstClock: of the clocks that outlive a process the one that says the most counts.
func TestLeaseByTheWorstClock(t *testing.T) {
	for name, c := range map[string]struct {
		mono, boot, wall time.Duration
		want             bool
	}{
		"in time":                    {59 * time.Second, 59 * time.Second, 59 * time.Second, true},
		"suspended over its end":     {time.Second, time.Minute, time.Second, false},
		"wall clock an hour forward": {time.Second, time.Second, time.Hour, false},
		"wall clock an hour back":    {59 * time.Second, 59 * time.Second, -time.Hour, true},
		"an hour back, and over":     {time.Minute, time.Minute, -time.Hour, false},
	} {
		w := newHolding(t)
		w.take(w.Ask(), 1)
		w.applied(1)
		w.clock.turn(c.mono, c.boot, c.wall)
		w.want(name, c.want)
	}
}

// TestGrantsRefused: a grant counts once, and only as the answer to a question of this run.
func TestGrantsRefused(t *testing.T) {
	forged := 0
	for name, change := range map[string]func(w *holding, g *lease.Grant){
		"another nonce":      func(_ *holding, g *lease.Grant) { g.Nonce = []byte("0123456789abcdef") },
		"no nonce":           func(_ *holding, g *lease.Grant) { g.Nonce = nil },
		"another run":        func(_ *holding, g *lease.Grant) { g.Run = "another" },
		"another agent":      func(_ *holding, g *lease.Grant) { g.Agent = "web-2" },
		"another mode":       func(_ *holding, g *lease.Grant) { g.Mode = lease.Serve },
		"no length":          func(_ *holding, g *lease.Grant) { g.Length = 0 },
		"a negative length":  func(_ *holding, g *lease.Grant) { g.Length = -1 },
		"an overlong length": func(_ *holding, g *lease.Grant) { g.Length = 1 << 62 },
		"taken already":      func(w *holding, g *lease.Grant) { w.Take(*g) },
		"an older question of which a newer was answered": func(w *holding, _ *lease.Grant) {
			w.take(w.Ask(), 1)
		},
		"four questions later": func(w *holding, _ *lease.Grant) {
			for range 4 {
				w.Ask()
			}
		},
		"another process": func(w *holding, _ *lease.Grant) { w.restart() },
	} {
		w := newHolding(t)
		g := answers(w.Ask(), w.log.upTo(1))
		change(w, &g)
		if err := w.Take(g); !errors.Is(err, lease.ErrGrant) {
			t.Errorf("%s: got %v, want ErrGrant", name, err)
		}
		forged++
	}
	t.Logf("%d kinds of grants that are no answer: 0 taken", forged)
}

// TestNoncesAreNew: no two questions have the same nonce.
func TestNoncesAreNew(t *testing.T) {
	w, seen := newHolding(t), make(map[string]bool)
	for range 1000 {
		req := w.Ask()
		if err := req.Check(); err != nil {
			t.Fatal(err)
		}
		if seen[string(req.Nonce)] {
			t.Fatalf("the nonce %x was used twice", req.Nonce)
		}
		seen[string(req.Nonce)] = true
	}
}

// TestGrantShorterOrLonger: the smaller of the granted and the own length counts.
func TestGrantShorterOrLonger(t *testing.T) {
	for granted, want := range map[time.Duration]time.Duration{time.Second: time.Second, time.Hour: time.Minute} {
		w := newHolding(t)
		req := w.Ask()
		req.Length = granted.Milliseconds()
		w.take(req, 1)
		w.applied(1)
		if got := w.Current().Length; got != want {
			t.Errorf("granted %s where a minute was asked for: it counts for %s, want %s", granted, got, want)
		}
	}
}

// TestGrantOfAnotherLog: a grant is no lease if the chain at its tick is not ours, and none if nobody
// can tell any more.
func TestGrantOfAnotherLog(t *testing.T) {
	w, other := newHolding(t), newTape()
	other.salt = 'x'
	if err := w.Take(answers(w.Ask(), other.upTo(1))); err != nil {
		t.Fatal(err)
	}
	if err := w.Applied(w.log.upTo(1).Position, w.log.chainAt); !errors.Is(err, bus.ErrRollback) {
		t.Errorf("another chain: got %v, want ErrRollback", err)
	}
	w.want("by a grant of another log", false)
	if err := w.Applied(w.log.upTo(2).Position, w.log.chainAt); err != nil {
		t.Errorf("it is said again: %v", err)
	}
	w.take(w.Ask(), 3)
	unknown := func(uint64) (bus.Chain, bool) { return bus.Chain{}, false }
	if err := w.Applied(w.log.upTo(3).Position, unknown); err != nil {
		t.Errorf("a chain that is not remembered: %v", err)
	}
	w.want("by a grant whose chain is not remembered", false)
}

// TestNewEpoch: a lease ends with the log that granted it, and so do the grants that wait.
func TestNewEpoch(t *testing.T) {
	w := newHolding(t)
	w.take(w.Ask(), 1)
	w.applied(1)
	w.take(w.Ask(), 5)
	w.want("before", true)
	w.log = &tape{epoch: 2}
	w.applied(1)
	w.want("once the log was begun anew", false)
	w.applied(9)
	w.want("by a grant of the log before", false)
	w.take(w.Ask(), 10)
	w.applied(10)
	w.want("by a grant of the new log", true)
}

// TestLongerLeaseStays: an answer that comes late does not shorten the lease in force.
func TestLongerLeaseStays(t *testing.T) {
	w := newHolding(t)
	first := w.Ask()
	w.clock.pass(time.Second)
	w.take(first, 2)
	w.take(w.Ask(), 1) // asked later, answered by an earlier tick
	w.applied(1)
	w.applied(2)
	if got := w.Current().Position.Seq; got != 1 {
		t.Errorf("the lease in force is that of tick %d, want the one that lasts longer, of tick 1", got)
	}
}

// TestWaitingGrantsAreBounded: an agent whose log is held back while leases are not remembers few
// grants, the oldest of which comes into force first when the log comes.
func TestWaitingGrantsAreBounded(t *testing.T) {
	w := newHolding(t)
	const asked = 5000
	for seq := uint64(1); seq <= asked; seq++ {
		w.take(w.Ask(), seq)
		w.clock.pass(time.Millisecond)
	}
	taken := 0
	var last *lease.Lease
	for seq := uint64(1); seq <= asked; seq++ {
		w.applied(seq)
		if l := w.Current(); l != last {
			last, taken = l, taken+1
		}
		if seq == 1 {
			w.want("once the first tick is applied", true)
		}
	}
	if taken > 16 {
		t.Errorf("of %d grants %d were remembered, want at most 16", asked, taken)
	}
	if last.Position.Seq != asked {
		t.Errorf("the newest lease is of tick %d, want %d", last.Position.Seq, asked)
	}
	t.Logf("%d grants whose ticks did not come: %d remembered", asked, taken)

	// Those that are over give way.
	w = newHolding(t)
	for seq := uint64(1); seq <= 100; seq++ {
		w.take(w.Ask(), seq)
	}
	w.clock.pass(time.Minute)
	w.take(w.Ask(), 101)
	w.applied(101)
	w.want("by the only grant that is not over", true)
}

// TestFloorHoldsLeasesBack: whoever acknowledged more than it has applied now vouches for nothing,
// whatever it is granted.
func TestFloorHoldsLeasesBack(t *testing.T) {
	w := newHolding(t)
	if !w.AtFloor() {
		t.Error("AtFloor before anything was acknowledged: got false")
	}
	if err := w.Floor(w.log.upTo(10)); err != nil {
		t.Fatal(err)
	}
	w.take(w.Ask(), 5)
	w.applied(9)
	w.want("below the floor", false)
	if w.AtFloor() {
		t.Error("AtFloor at 9 of 10: got true")
	}
	w.applied(10)
	w.want("at the floor", true)
	if err := w.Floor(w.log.at(3)); err != nil {
		t.Fatal(err)
	}
	w.applied(10)
	if !w.AtFloor() {
		t.Error("a lower floor took the place of the higher")
	}
}
