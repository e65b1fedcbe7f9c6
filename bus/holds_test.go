package bus_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

// TestHolds: what stands in the log is held, however late a reader is; of a log that was put back, shorter or written on, it is
// known that it is not; and a log begun anew is no rollback.
func TestHolds(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	l := b.Log(t)
	mustAppend(t, l, revocation("a"))
	early := at(t, b, tick(t, l).Seq)
	mustAppend(t, l, revocation("b"))
	tick(t, l)
	l.Close()
	b.Stop()
	old := t.TempDir()
	if err := os.CopyFS(old, os.DirFS(b.Dir())); err != nil {
		t.Fatal(err)
	}
	b.Restart(t)
	l = b.Log(t)
	mustAppend(t, l, revocation("c"))
	granted := at(t, b, tick(t, l).Seq)
	tick(t, l)
	late := at(t, b, tick(t, l).Seq)
	holds(t, "in the log", b, early, nil)
	holds(t, "near its end", b, granted, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := b.Reader(t).Holds(ctx, late); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("its last entry, with no tick behind it: got %v, want no word", err)
	}
	tick(t, l)
	holds(t, "its last entry, a tick later", b, late, nil)
	other := granted
	other.Chain[0] ^= 1
	holds(t, "another chain", b, other, bus.ErrRollback)
	l.Close()
	b.Stop()
	if err := os.RemoveAll(b.Dir()); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(b.Dir(), os.DirFS(old)); err != nil {
		t.Fatal(err)
	}
	b.Restart(t)
	holds(t, "put back", b, granted, bus.ErrRollback)
	holds(t, "put back, an entry of before", b, early, nil)
	l = b.Log(t)
	for range 4 {
		mustAppend(t, l, revocation("x"))
		tick(t, l)
	}
	holds(t, "put back and written on", b, granted, bus.ErrRollback)
	known := at(t, b, early.Seq+2)
	l.Close()
	cfg := bus.LogConfig{Authority: b.Authority, Issuer: "auth-1"}
	if _, err := bus.BeginAnew(t.Context(), b.Connect(t), cfg, known, func(bus.Cursor) ([]byte, error) { return []byte("image"), nil }, []byte("[]")); err != nil {
		t.Fatal(err)
	}
	holds(t, "begun anew since", b, granted, bus.ErrEpoch)
}

// at is the cursor of an entry.
func at(t *testing.T, b *bustest.Bus, seq uint64) bus.Cursor {
	t.Helper()
	return all(t, b, seq)[seq-1].Cursor()
}

func holds(t *testing.T, when string, b *bustest.Bus, c bus.Cursor, want error) {
	t.Helper()
	if err := b.Reader(t).Holds(timeout(t, 10*time.Second), c); !errors.Is(err, want) || want == nil && err != nil {
		t.Errorf("%s: Holds(%d): got %v, want %v", when, c.Seq, err, want)
	}
}
