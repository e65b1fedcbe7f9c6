package lease_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
)

// book is a ledger with its clock and the log that it has read.
type book struct {
	*lease.Ledger
	clock *clock
	log   *tape
}

func newBook() *book {
	b := &book{clock: newClock(), log: newTape()}
	b.Ledger = lease.NewLedger(b.clock.read)
	return b
}

// reads takes the next entry in, a tick that answers these requests.
func (b *book) reads(grants ...lease.Request) bus.Cursor {
	return b.readsTick(bus.Tick{Issuer: "issuer-2"}, grants...)
}

func (b *book) readsTick(t bus.Tick, grants ...lease.Request) bus.Cursor {
	at := b.log.next()
	b.Read(bus.Entry{Position: at.Position, Chain: at.Chain, Fact: &t}, grants, b.clock.read(), 5*time.Second)
	return at
}

// asks is a request of a run, for a lease of so long.
func asks(agent, run string, length time.Duration, mode ...lease.Mode) lease.Request {
	return lease.Request{Agent: agent, Run: run, Length: length.Milliseconds(), Mode: append(mode, lease.Refuse)[0]}
}

func (b *book) acks(agent, run string, at bus.Cursor) {
	b.Acknowledge(lease.Ack{Agent: agent, Run: run, At: at.Position, Chain: at.Chain})
}

// want checks a receipt, written as "applied | fenced | pending | serving".
func (b *book) want(t testing.TB, when string, at bus.Cursor, want string) {
	t.Helper()
	rec := b.Receipt(at.Position, "own")
	got := "nil"
	if rec != nil {
		got = fmt.Sprint(rec.Applied, " | ", rec.Fenced, " | ", rec.Pending, " | ", rec.Serving)
		if rec.Settled() != (len(rec.Pending) == 0) {
			t.Errorf("%s: Settled is %v with %v pending", when, rec.Settled(), rec.Pending)
		}
	}
	if got != want {
		t.Errorf("%s: got the receipt %s, want %s", when, got, want)
	}
}

// TestFenceEdge: a lease is fenced one hundredth of its length after its end, counted from when the
// issuer read of it, to the nanosecond.
func TestFenceEdge(t *testing.T) {
	b := newBook()
	b.reads(asks("web-1", "a", 10*time.Second))
	b.clock.pass(time.Second)
	at := b.reads()
	b.want(t, "at once", at, "[] | [] | [web-1] | []")
	if next := b.Receipt(at.Position, "").Next; next != 9100*time.Millisecond {
		t.Errorf("Next: got %s, want 9.1s", next)
	}
	b.clock.pass(9100*time.Millisecond - 1)
	b.want(t, "a nanosecond before the fence", at, "[] | [] | [web-1] | []")
	if next := b.Receipt(at.Position, "").Next; next != 1 {
		t.Errorf("Next: got %s, want 1ns", next)
	}
	b.clock.pass(1)
	b.want(t, "at the fence", at, "[] | [web-1] | [] | []")
}

// TestFenceByTheSlowestClock: of the issuer's clocks the one that says the least counts.
func TestFenceByTheSlowestClock(t *testing.T) {
	for name, c := range map[string]struct {
		mono, boot, wall time.Duration
		fenced           bool
	}{
		"all":                   {time.Minute, time.Minute, time.Minute, true},
		"suspended":             {time.Second, time.Minute, time.Minute, false},
		"wall clock back":       {time.Minute, time.Minute, -time.Hour, false},
		"wall clock forward":    {time.Second, time.Second, time.Hour, false},
		"boot clock of another": {time.Minute, time.Second, time.Minute, false},
	} {
		b := newBook()
		b.reads(asks("web-1", "a", 10*time.Second))
		at := b.reads()
		b.clock.turn(c.mono, c.boot, c.wall)
		if got := b.Receipt(at.Position, "").Settled(); got != c.fenced {
			t.Errorf("%s: settled is %v, want %v", name, got, c.fenced)
		}
	}
}

// TestReceipt: who matters to an entry, and how it is settled.
func TestReceipt(t *testing.T) {
	b := newBook()
	b.reads(asks("web-1", "a", time.Minute), asks("web-2", "b", time.Minute), asks("web-3", "c", time.Second), asks("web-4", "d", time.Minute, lease.Serve))
	b.clock.pass(2 * time.Second)
	at := b.reads(asks("web-5", "e", time.Minute))
	b.want(t, "an entry that is not read", bus.Cursor{Position: bus.Position{Epoch: 1, Seq: 3}}, "nil")
	if (*lease.Receipt)(nil).Settled() {
		t.Error("no receipt is settled")
	}
	b.want(t, "granted by the entry itself, or later: it knows", at, "[] | [web-3] | [web-1 web-2 web-4] | [web-4]")
	b.reads(asks("web-3", "c", time.Minute))
	b.want(t, "a lease granted later does not lift a fence", at, "[] | [web-3] | [web-1 web-2 web-4] | [web-4]")
	if next := b.Receipt(at.Position, "").Next; next != 0 {
		t.Errorf("Next with one that serves: got %s, want 0", next)
	}
	b.acks("web-1", "a", b.log.at(1))
	b.want(t, "an acknowledgement of less", at, "[] | [web-3] | [web-1 web-2 web-4] | [web-4]")
	b.acks("web-1", "a", at)
	b.acks("web-4", "d", b.log.at(3))
	b.want(t, "acknowledged", at, "[web-1 web-4] | [web-3] | [web-2] | []")
	b.clock.pass(time.Minute)
	b.want(t, "a minute on", at, "[web-1 web-4] | [web-2 web-3] | [] | []")
}

// TestServingIsNeverFenced: whoever goes on without a lease is settled by its acknowledgement alone,
// though a century passes, and what the ledger remembers of it does not grow.
func TestServingIsNeverFenced(t *testing.T) {
	b := newBook()
	const renewals = 20_000
	for range renewals {
		b.reads(asks("web-1", "a", time.Second, lease.Serve))
		b.clock.pass(300 * time.Millisecond)
	}
	at := b.reads()
	b.clock.pass(100 * 365 * 24 * time.Hour)
	b.reads()
	b.want(t, "a century on", at, "[] | [] | [web-1] | [web-1]")
	b.acks("web-1", "a", at)
	b.want(t, "acknowledged", at, "[web-1] | [] | [] | []")
	if held := b.Holdings(); len(held) != 1 || len(held[0].Grants) > 2 {
		t.Errorf("after %d renewals %d leases are remembered, want at most 2", renewals, len(held[0].Grants))
	}
}

// TestTwoRuns: each process under a name counts by itself.
func TestTwoRuns(t *testing.T) {
	b := newBook()
	b.reads(asks("web-1", "a", time.Minute), asks("web-1", "b", time.Second))
	at := b.reads()
	b.acks("web-1", "a", at)
	b.want(t, "one of two", at, "[] | [] | [web-1] | []")
	b.clock.pass(2 * time.Second)
	b.want(t, "and the other one's lease is over", at, "[] | [web-1] | [] | []")
	b.acks("web-1", "b", at)
	b.want(t, "both", at, "[web-1] | [] | [] | []")
}

// TestIssuers: an issuer is settled by its own ticks, like an agent by its acknowledgements, and does
// not wait for itself.
func TestIssuers(t *testing.T) {
	b := newBook()
	b.readsTick(bus.Tick{Issuer: "issuer-1", Run: "own"})
	b.readsTick(bus.Tick{Issuer: "issuer-2", Run: "x", Applied: 1})
	at := b.reads()
	b.want(t, "at once", at, "[] | [] | [issuer-2] | []")
	b.readsTick(bus.Tick{Issuer: "issuer-2", Run: "x", Applied: at.Seq - 1})
	b.want(t, "it has applied less", at, "[] | [] | [issuer-2] | []")
	b.readsTick(bus.Tick{Issuer: "issuer-2", Run: "x", Applied: at.Seq})
	b.want(t, "it has applied it", at, "[issuer-2] | [] | [] | []")
	later := b.reads()
	b.clock.pass(5050*time.Millisecond - 1)
	b.want(t, "before its fence", later, "[] | [] | [issuer-2] | []")
	b.clock.pass(1)
	b.want(t, "after 5 s without a tick", later, "[] | [issuer-2] | [] | []")
}

// TestIssuerOfTheSameName: another process under this issuer's name is another run, and waited for.
func TestIssuerOfTheSameName(t *testing.T) {
	b := newBook()
	b.readsTick(bus.Tick{Issuer: "issuer-1", Run: "own"})
	b.readsTick(bus.Tick{Issuer: "issuer-1", Run: "paused"})
	at := b.reads()
	b.want(t, "at once", at, "[] | [] | [issuer-1] | []")
	b.clock.pass(6 * time.Second)
	b.want(t, "after its lease", at, "[] | [issuer-1] | [] | []")
}

// TestTwoLeasesOfOneTick: a run that asks twice before a tick, the second time for more, is granted both.
func TestTwoLeasesOfOneTick(t *testing.T) {
	b := newBook()
	b.reads(asks("web-1", "a", time.Second), asks("web-1", "a", time.Minute))
	at := b.reads()
	b.clock.pass(2 * time.Second)
	b.want(t, "after the shorter one", at, "[] | [] | [web-1] | []")
	b.clock.pass(time.Minute)
	b.want(t, "after both", at, "[] | [web-1] | [] | []")
	serving := asks("web-2", "b", time.Second)
	serving.Mode = lease.Serve
	b.reads(asks("web-2", "b", time.Second), serving)
	at = b.reads()
	b.clock.pass(time.Hour)
	if rec := b.Receipt(at.Position, "own"); len(rec.Serving) != 1 {
		t.Errorf("refuse, then serve, in one tick: got %+v, want it to be serving", rec)
	}
}

// TestNobodyIsAny: no process may call itself by the name that stands for those of which nothing is known.
func TestNobodyIsAny(t *testing.T) {
	b := newBook()
	b.Restore(b.reads(), lease.Blanket(map[string]time.Duration{"web-1": 0}, bus.Position{Epoch: 1}))
	at := b.reads()
	b.acks("web-1", "*", at)
	b.want(t, "an acknowledgement of run *", at, "[] | [] | [web-1] | []")
	req := asks("web-1", "*", time.Minute)
	if err := req.Check(); err == nil {
		t.Error("a lease request of run * is taken")
	}
}

// TestAcknowledgementsThatDoNotCount: what an agent, or somebody for it, says beside the truth.
func TestAcknowledgementsThatDoNotCount(t *testing.T) {
	cases := map[string]func(b *book, at bus.Cursor) lease.Ack{
		"another chain":     func(b *book, at bus.Cursor) lease.Ack { at.Chain[0] ^= 1; return ack("web-1", "a", at) },
		"no chain":          func(b *book, at bus.Cursor) lease.Ack { at.Chain = bus.Chain{}; return ack("web-1", "a", at) },
		"an earlier epoch":  func(b *book, at bus.Cursor) lease.Ack { at.Epoch = 0; return ack("web-1", "a", at) },
		"a later epoch":     func(b *book, at bus.Cursor) lease.Ack { at.Epoch = 2; return ack("web-1", "a", at) },
		"another run":       func(b *book, at bus.Cursor) lease.Ack { return ack("web-1", "b", at) },
		"another agent":     func(b *book, at bus.Cursor) lease.Ack { return ack("web-2", "a", at) },
		"less":              func(b *book, at bus.Cursor) lease.Ack { return ack("web-1", "a", b.log.at(at.Seq-1)) },
		"a far future":      func(b *book, at bus.Cursor) lease.Ack { at.Seq = 1 << 60; return ack("web-1", "a", at) },
		"the next, forged":  func(b *book, at bus.Cursor) lease.Ack { at.Seq++; return ack("web-1", "a", at) },
		"the end of number": func(b *book, at bus.Cursor) lease.Ack { at.Seq = 1<<64 - 1; return ack("web-1", "a", at) },
	}
	for name, c := range cases {
		b := newBook()
		b.reads(asks("web-1", "a", time.Minute))
		at := b.reads()
		b.Acknowledge(c(b, at))
		b.want(t, name, at, "[] | [] | [web-1] | []")
		b.reads()
		b.reads()
		b.want(t, name+", and more was read", at, "[] | [] | [web-1] | []")
	}
	t.Logf("%d kinds of acknowledgements that are not the run's own of this log: 0 counted", len(cases))
}

func ack(agent, run string, at bus.Cursor) lease.Ack {
	return lease.Ack{Agent: agent, Run: run, At: at.Position, Chain: at.Chain}
}

// TestAcknowledgedAhead: an agent may be ahead of the issuer; what it says counts once it can be judged.
func TestAcknowledgedAhead(t *testing.T) {
	b, ahead := newBook(), newTape()
	b.reads(asks("web-1", "a", time.Minute))
	at := b.reads()
	b.acks("web-1", "a", ahead.upTo(4))
	b.want(t, "claimed", at, "[] | [] | [web-1] | []")
	b.reads()
	b.want(t, "not read up to it yet", at, "[] | [] | [web-1] | []")
	b.reads()
	b.want(t, "read up to it", at, "[web-1] | [] | [] | []")
}

// TestAcknowledgedAlwaysAhead: an issuer that always lags behind the agents counts what they
// acknowledge all the same.
func TestAcknowledgedAlwaysAhead(t *testing.T) {
	b, ahead := newBook(), newTape()
	b.reads(asks("web-1", "a", time.Hour))
	at := b.reads()
	for range 200 {
		b.acks("web-1", "a", ahead.upTo(uint64(len(b.log.chains))+50))
		b.reads()
	}
	b.want(t, "an issuer that lags by 50 entries", at, "[web-1] | [] | [] | []")
}

// TestAcknowledgedOutOfOrder: an older acknowledgement that comes late takes nothing back.
func TestAcknowledgedOutOfOrder(t *testing.T) {
	b := newBook()
	b.reads(asks("web-1", "a", time.Minute))
	at := b.reads()
	b.acks("web-1", "a", at)
	b.acks("web-1", "a", b.log.at(1))
	b.want(t, "replayed", at, "[web-1] | [] | [] | []")
	// Claims ahead, in any order, repeated.
	ahead := newTape()
	for _, seq := range []uint64{9, 5, 7, 5, 9, 6} {
		b.acks("web-1", "a", ahead.upTo(max(seq, 9)))
		b.acks("web-1", "a", ahead.at(seq))
	}
	later := b.reads() // 3
	b.want(t, "not judged yet", later, "[] | [] | [web-1] | []")
	b.reads() // 4
	b.reads() // 5
	b.want(t, "the least of the claims", later, "[web-1] | [] | [] | []")
	for len(b.log.chains) < 9 {
		b.reads()
	}
	b.want(t, "the greatest", b.log.at(9), "[web-1] | [] | [] | []")
}

// TestLaterEpoch: what is acknowledged of a log that was begun anew says nothing of the one before,
// and the leases of that one still count.
func TestLaterEpoch(t *testing.T) {
	b := newBook()
	b.reads(asks("web-1", "a", time.Minute), asks("web-2", "b", time.Minute))
	old := b.reads()
	b.acks("web-1", "a", old)
	b.log = &tape{epoch: 2}
	at := b.reads()
	b.acks("web-2", "b", at)
	b.want(t, "an entry of the log before", old, "[web-1] | [] | [web-2] | []")
	b.want(t, "an entry of the new one", at, "[web-2] | [] | [web-1] | []")
	b.clock.pass(time.Hour)
	b.want(t, "an hour on", at, "[web-2] | [web-1] | [] | []")
}

// TestAccompanied: another issuer counts while its own lease may last, an agent and this issuer itself never do.
func TestAccompanied(t *testing.T) {
	b := newBook()
	want := func(when string, want bool) {
		t.Helper()
		if got := b.Accompanied("own"); got != want {
			t.Errorf("%s: Accompanied: got %v, want %v", when, got, want)
		}
	}
	want("at first", false)
	b.readsTick(bus.Tick{Issuer: "issuer-1", Run: "own"}, asks("web-1", "a", time.Hour))
	want("after a tick of its own and an agent's lease", false)
	b.readsTick(bus.Tick{Issuer: "issuer-2", Run: "other"})
	want("after another's tick", true)
	b.clock.pass(6 * time.Second)
	want("once the other's lease has ended", false)
}
