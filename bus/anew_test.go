package bus_test

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

// TestClaimAnew: of many issuers that would begin the log anew at once one may, until it says what it has begun; whoever does not
// know that may not either, unless a person says so.
func TestClaimAnew(t *testing.T) {
	b := bustest.Start(t)
	bucket := b.Bucket(t, bus.BucketDuties)
	var all sync.WaitGroup
	var claims atomic.Int64
	held := make(chan *bus.AnewClaim, 8)
	for n := range 8 {
		all.Go(func() {
			c, err := bus.ClaimAnew(t.Context(), bucket, string(rune('a'+n)), 5, false)
			if err == nil {
				claims.Add(1)
				held <- c
			} else if !errors.Is(err, bus.ErrClaimed) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if claims.Load() != 1 {
		t.Fatalf("%d of 8 issuers may begin the log anew, want 1", claims.Load())
	}
	first := <-held
	try := func(what, issuer string, known uint64, takeOver bool, want error) *bus.AnewClaim {
		t.Helper()
		c, err := bus.ClaimAnew(t.Context(), bucket, issuer, known, takeOver)
		if !errors.Is(err, want) {
			t.Fatalf("%s: got %v, want %v", what, err, want)
		}
		return c
	}
	try("while another does", "z", 9, false, bus.ErrClaimed)
	if err := first.Done(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	try("not knowing what was begun", "z", 6, false, bus.ErrBegun)
	z := try("knowing it", "z", 7, false, nil)
	again := try("its own claim, after it died", "z", 0, false, nil)
	if err := z.Done(t.Context(), 8); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("a claim that was taken again: got %v, want ErrConflict", err)
	}
	word := try("by a person's word", "y", 0, true, nil)
	if err := again.Done(t.Context(), 8); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("a claim that was taken over: got %v, want ErrConflict", err)
	}
	if err := word.Withdraw(t.Context()); err != nil {
		t.Fatal(err)
	}
	try("after a withdrawal", "x", 0, false, nil)
}

// TestEndAnew: one that died after it had begun the log anew, and before it said so, says so when it is back; nobody else does.
func TestEndAnew(t *testing.T) {
	b := bustest.Start(t)
	bucket := b.Bucket(t, bus.BucketDuties)
	end := func(issuer string, epoch uint64) {
		t.Helper()
		if err := bus.EndAnew(t.Context(), bucket, issuer, epoch); err != nil {
			t.Fatal(err)
		}
	}
	claim := func(want error) {
		t.Helper()
		c, err := bus.ClaimAnew(t.Context(), bucket, "other", 7, false)
		if !errors.Is(err, want) {
			t.Fatalf("another's claim: got %v, want %v", err, want)
		}
		if c != nil {
			if err := c.Withdraw(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	end("one", 7) // nobody has begun
	if _, err := bus.ClaimAnew(t.Context(), bucket, "one", 5, false); err != nil {
		t.Fatal(err)
	}
	end("another", 7)
	claim(bus.ErrClaimed)
	end("one", 7)
	end("one", 9) // it has been said
	claim(nil)
}

// TestUp: the issuers that are up say so, each once.
func TestUp(t *testing.T) {
	b := bustest.Start(t)
	conn := b.Connect(t)
	ask := func(want ...string) {
		t.Helper()
		if got, err := conn.Up(t.Context()); err != nil || !slices.Equal(got, want) {
			t.Errorf("up: got %v, %v, want %v", got, err, want)
		}
	}
	ask()
	var stops []func()
	for _, name := range []string{"b", "a"} {
		stop, err := b.Connect(t).Present(name)
		if err != nil {
			t.Fatal(err)
		}
		stops = append(stops, stop)
	}
	eventually(t, "both to be heard", func() bool { up, _ := conn.Up(t.Context()); return len(up) == 2 })
	ask("a", "b")
	stops[0]()
	eventually(t, "one to be gone", func() bool { up, _ := conn.Up(t.Context()); return len(up) == 1 })
	ask("a")
}
