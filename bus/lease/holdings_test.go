package lease_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
)

// TestLedgerForgets: nothing of what is over stays, however often a run asks and however many there are.
func TestLedgerForgets(t *testing.T) {
	b := newBook()
	for n := range 20_000 { // hurried: five times a second
		b.reads(asks("web-1", "a", 15*time.Minute), asks("web-2", fmt.Sprint(n), time.Second))
		b.clock.pass(200 * time.Millisecond)
	}
	most := 0
	held := b.Holdings()
	for _, h := range held {
		most = max(most, len(h.Grants))
	}
	if most > 20 {
		t.Errorf("%d leases of one run are remembered, want at most 20", most)
	}
	if len(held) > 1+62*5+10 {
		t.Errorf("%d runs are remembered, of which all but 311 have been over for a minute", len(held))
	}
	b.clock.pass(time.Hour)
	b.reads()
	if held := b.Holdings(); len(held) != 0 {
		t.Errorf("an hour after the last lease %d runs are remembered", len(held))
	}
	t.Logf("20,000 requests of one run, 20,000 runs of another: at most %d leases of a run, %d runs remembered, and none an hour later", most, len(held))
}

// TestFirstOfItsLeases: what a run lacks counts from the oldest of its leases that are not over, as in a receipt.
func TestFirstOfItsLeases(t *testing.T) {
	b := newBook()
	var at []bus.Cursor
	for range 4 {
		at = append(at, b.reads(asks("web-1", "a", time.Minute)))
		b.clock.pass(25 * time.Second)
	}
	if v := b.Vouching(); len(v) != 1 || v[0].First != at[2].Position || v[0].Acked.Seq != 0 {
		t.Errorf("100 s after the first lease: got %+v, want one run whose leases begin with that at entry %d", v, at[2].Seq)
	}
	b.want(t, "the tick of that lease", at[2], "[] | [web-1] | [] | []")
	b.want(t, "the tick behind it", at[3], "[] | [] | [web-1] | []")
}

// TestMergedLeasesAreAsStrict: whatever a run is granted, and when, a ledger that remembers less says
// settled no sooner than one would that remembers every lease, and at most a sixteenth of a length later.
func TestMergedLeasesAreAsStrict(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := newBook()
		type exact struct {
			at     bus.Position
			length time.Duration
			read   lease.Reading
		}
		var all []exact
		var entries []bus.Cursor
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			length := rapid.SampledFrom([]time.Duration{time.Second, 10 * time.Second, 10 * time.Second}).Draw(rt, "length")
			at := b.reads(asks("web-1", "a", length))
			all = append(all, exact{at.Position, length, b.clock.read()})
			entries = append(entries, at)
			b.clock.pass(time.Duration(rapid.IntRange(0, 3000).Draw(rt, "ms")) * time.Millisecond)
		}
		now := b.clock.read()
		for _, at := range entries {
			var exactly time.Duration
			for _, g := range all {
				if g.at.Before(at.Position) {
					exactly = max(exactly, g.length+g.length/100-(now.Mono-g.read.Mono))
				}
			}
			rec := b.Receipt(at.Position, "")
			if rec.Settled() && exactly > 0 {
				rt.Fatalf("entry %d is settled %s too soon", at.Seq, exactly)
			}
			if late := rec.Next - exactly; !rec.Settled() && late > 10*time.Second/16 {
				rt.Fatalf("entry %d is settled %s late", at.Seq, late)
			}
		}
	})
}

// TestRestore: an issuer that starts from a checkpoint counts the leases recorded there as granted now,
// and those that it reads again behind it once.
func TestRestore(t *testing.T) {
	b := newBook()
	b.reads(asks("web-1", "a", time.Minute))
	b.readsTick(bus.Tick{Issuer: "issuer-2", Run: "x"})
	cp := b.reads()
	b.clock.pass(30 * time.Second)
	last := b.reads(asks("web-1", "a", time.Minute), asks("web-2", "b", time.Minute, lease.Serve))
	image := must(b.Image(t.Context(), cp.Position))(t) // later than the state that it goes with
	var held []lease.Holding
	if err := json.Unmarshal(image, &held); err != nil {
		t.Fatal(err)
	}
	r := newBook()
	r.log.upTo(cp.Seq)
	r.Restore(cp, held)
	if got := r.ReadUpTo(); got != cp.Position {
		t.Errorf("ReadUpTo: got %v, want %v", got, cp.Position)
	}
	if again := r.reads(asks("web-1", "a", time.Minute), asks("web-2", "b", time.Minute, lease.Serve)); again != last {
		t.Fatal("the log is another one")
	}
	at := r.reads()
	r.want(t, "at once", at, "[] | [] | [issuer-2 web-1 web-2] | [web-2]")
	for _, h := range r.Holdings() {
		positions := make(map[bus.Position]bool)
		for _, g := range h.Grants {
			if positions[g.Position] {
				t.Errorf("%s: the lease of tick %d counts twice", h.Agent, g.Seq)
			}
			positions[g.Position] = true
		}
	}
	r.clock.pass(60*time.Second + 600*time.Millisecond - 1)
	r.want(t, "before a minute, counted from the start", at, "[] | [issuer-2] | [web-1 web-2] | [web-2]")
	r.clock.pass(1)
	r.want(t, "after it", at, "[] | [issuer-2 web-1] | [web-2] | [web-2]")
}

// TestBlanket: where nothing is known any more of who was granted what, every agent counts as granted
// the longest lease there is, and no acknowledgement shortens that.
func TestBlanket(t *testing.T) {
	b := newBook()
	start := b.log.next()
	b.Restore(start, lease.Blanket(map[string]time.Duration{"web-1": 0, "web-2": 0}, start.Position))
	at := b.reads(asks("web-1", "a", time.Minute))
	b.acks("web-1", "a", at)
	b.want(t, "at once", at, "[] | [] | [web-1 web-2] | []")
	b.clock.pass(lease.MaxLength + lease.MaxLength/100 - 1)
	b.want(t, "a moment before the longest lease is over", at, "[] | [] | [web-1 web-2] | []")
	b.clock.pass(1)
	b.want(t, "after it", at, "[] | [web-1 web-2] | [] | []")
}

// TestAwait: whoever waits for the ledger is woken by what it reads, or by the end of its patience.
func TestAwait(t *testing.T) {
	b := newBook()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Await(ctx, bus.Position{Epoch: 1, Seq: 2}) }()
	b.reads()
	b.reads()
	if err := <-done; err != nil {
		t.Errorf("Await: %v", err)
	}
	cancel()
	if err := b.Await(ctx, bus.Position{Epoch: 1, Seq: 3}); !errors.Is(err, context.Canceled) {
		t.Errorf("Await of what does not come: got %v, want context.Canceled", err)
	}
	if _, err := b.Image(ctx, bus.Position{Epoch: 1, Seq: 3}); !errors.Is(err, context.Canceled) {
		t.Errorf("Image of what does not come: got %v, want context.Canceled", err)
	}
	changed := b.Changed()
	b.acks("nobody", "x", b.log.at(1))
	select {
	case <-changed:
		t.Error("an acknowledgement of a run that holds nothing woke those who wait")
	default:
	}
	if held := b.Holdings(); slices.ContainsFunc(held, func(h lease.Holding) bool { return h.Agent == "nobody" }) {
		t.Error("an acknowledgement of a run that holds nothing is remembered")
	}
}
