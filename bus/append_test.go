package bus_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

// all reads the log whole, ticks included, with a reader of its own; reading proves signatures,
// sequence and chain.
func all(t *testing.T, b *bustest.Bus, head uint64) []bus.Entry {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var got []bus.Entry
	err := b.Reader(t).Follow(ctx, bus.Cursor{}, func(entries []bus.Entry, at uint64) error {
		if got = append(got, entries...); uint64(len(got)) >= max(head, at) {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Fatalf("reading the log: got %d entries and %v, want %d", len(got), err, head)
	}
	for i, en := range got {
		if en.Seq != uint64(i+1) {
			t.Fatalf("entry %d stands at %d", i+1, en.Seq)
		}
	}
	return got
}

// count tells how often each revoked id stands in the log, and where last.
func count(entries []bus.Entry) (times map[string]int, at map[string]bus.Position) {
	times, at = make(map[string]int), make(map[string]bus.Position)
	for _, en := range entries {
		if r, ok := en.Fact.(*bus.Revocation); ok {
			times[r.ID]++
			at[r.ID] = en.Position
		}
	}
	return times, at
}

// writer appends one after the other from several goroutines, and remembers what it was told.
type writer struct {
	mu     sync.Mutex
	stored map[string]bus.Position
	failed map[string]error
}

func newWriter() *writer {
	return &writer{stored: make(map[string]bus.Position), failed: make(map[string]error)}
}

func (w *writer) append(ctx context.Context, l theLog, id string) {
	pos, err := l.Append(ctx, revocation(id))
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		w.stored[id] = pos
	} else {
		w.failed[id] = err
	}
}

// check holds the log to what the writers were told: exactly once and there, or at most once.
func (w *writer) check(t *testing.T, entries []bus.Entry) {
	t.Helper()
	times, at := count(entries)
	for id, pos := range w.stored {
		if times[id] != 1 || at[id] != pos {
			t.Errorf("%s: acknowledged at %v, stands %d times, at %v", id, pos, times[id], at[id])
		}
	}
	for id, err := range w.failed {
		if times[id] > 1 {
			t.Errorf("%s: failed (%v), stands %d times", id, err, times[id])
		}
	}
}

// TestTwoLogsAtOnce: issuers that write at once never double, lose or fork an entry.
func TestTwoLogsAtOnce(t *testing.T) {
	b := bustest.Start(t)
	logs := []*bus.Log{b.Log(t), b.Log(t)}
	w := newWriter()
	var wg sync.WaitGroup
	for n := range 6 {
		wg.Go(func() {
			for i := range 20 {
				w.append(t.Context(), logs[n%2], fmt.Sprintf("%d-%d", n, i))
				if i%5 == 0 {
					// Of a run of its own: two of the same millisecond, at the same place, would be one entry.
					if _, err := logs[n%2].AppendTick(t.Context(), bus.Tick{Run: fmt.Sprint(n)}); err != nil {
						t.Errorf("Tick: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
	if len(w.failed) > 0 {
		t.Errorf("appends failed: %v", w.failed)
	}
	entries := all(t, b, 6*20+6*4)
	w.check(t, entries)
	if len(entries) != 6*20+6*4 {
		t.Errorf("the log has %d entries, want %d", len(entries), 6*20+6*4)
	}
}

// TestLargeAppend: far more facts than are sent at once, in order.
func TestLargeAppend(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	l := b.Log(t)
	facts := make([]bus.Fact, 5*bus.WriteBatch+7)
	for i := range facts {
		facts[i] = revocation(fmt.Sprint(i))
	}
	pos := mustAppend(t, l, facts...)
	got := all(t, b, uint64(len(facts)))
	if len(got) != len(facts) || got[len(got)-1].Position != pos {
		t.Fatalf("got %d entries up to %v, want %d up to %v", len(got), got[len(got)-1].Position, len(facts), pos)
	}
	for i, id := range ids(got) {
		if id != fmt.Sprint(i) {
			t.Fatalf("entry %d: got %s", i+1, id)
		}
	}
	if _, err := l.Append(t.Context()); err == nil {
		t.Error("Append of nothing: no error")
	}
}

// TestAppendIfFromBehind: a decision taken from an old view is refused, also by an issuer that has
// just started behind a checkpoint and a purge, and never read the entry that stands in its way.
func TestAppendIfFromBehind(t *testing.T) {
	b := bustest.Start(t)
	l := b.Log(t)
	first, err := l.AppendIf(t.Context(), bus.KindKey, 0, key("k1"))
	if err != nil {
		t.Fatal(err)
	}
	newest, err := l.AppendIf(t.Context(), bus.KindKey, first.Seq, key("k2"))
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, revocation("a"), revocation("b"))
	entries := all(t, b, 4)
	for _, at := range []int{2, 3} { // the second purges the log behind the first
		writeCheckpoint(t, l, entries[at].Cursor(), []byte("image"))
	}
	late := b.Log(t)
	for _, seq := range []uint64{0, first.Seq} {
		if _, err := late.AppendIf(t.Context(), bus.KindKey, seq, key("k3")); !errors.Is(err, bus.ErrConflict) {
			t.Errorf("AppendIf behind %d, where %d is the newest: got %v, want ErrConflict", seq, newest.Seq, err)
		}
	}
	if _, err := late.AppendIf(t.Context(), bus.KindKey, newest.Seq, key("k3")); err != nil {
		t.Errorf("AppendIf from the newest view: %v", err)
	}
}

// TestAppendIfAcrossIssuers: of decisions taken from one view by several issuers, one stands.
func TestAppendIfAcrossIssuers(t *testing.T) {
	b := bustest.Start(t)
	logs := []*bus.Log{b.Log(t), b.Log(t), b.Log(t)}
	view := uint64(0)
	for round := range 5 {
		var wg sync.WaitGroup
		won := make(chan bus.Position, 12)
		for n := range 12 {
			wg.Go(func() {
				pos, err := logs[n%3].AppendIf(t.Context(), bus.KindKey, view, key(fmt.Sprintf("%d-%d", round, n)))
				if err == nil {
					won <- pos
				} else if !errors.Is(err, bus.ErrConflict) {
					t.Errorf("AppendIf: %v", err)
				}
				mustAppend(t, logs[n%3], revocation(fmt.Sprintf("%d-%d", round, n)))
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("round %d: %d of 12 decisions stood, want 1", round, len(won))
		}
		view = (<-won).Seq
	}
}
