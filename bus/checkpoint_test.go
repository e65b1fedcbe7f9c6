package bus_test

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

// TestCheckpointOvertaken holds that an issuer which is slow to write a checkpoint does not put it before the newer ones that others
// have written meanwhile, whose purge may have taken its pieces.
func TestCheckpointOvertaken(t *testing.T) {
	t.Parallel()
	l := bustest.Start(t).Log(t)
	var at []bus.Cursor
	for range 4 {
		mustAppend(t, l, revocation("x"))
	}
	for _, en := range collect(t, l, bus.Cursor{}, 4) {
		at = append(at, en.Cursor())
	}
	writeCheckpoint(t, l, at[0], []byte("first"))
	var slow sync.WaitGroup
	slow.Go(func() { writeCheckpoint(t, l, at[1], bytes.Repeat([]byte("a large image "), 3<<20)) })
	time.Sleep(20 * time.Millisecond) // either may come first: what holds is the same
	writeCheckpoint(t, l, at[2], []byte("third"))
	writeCheckpoint(t, l, at[3], []byte("fourth"))
	slow.Wait()
	if img, err := l.Checkpoint(t.Context()); string(img) != "fourth" {
		t.Errorf("Checkpoint: got %d bytes, %v; want the newest", len(img), err)
	}
}

// TestGrantsForgotten holds that lists of grants go behind checkpoints, however soon one follows on another, and that none goes whose tick
// may not be behind one yet.
func TestGrantsForgotten(t *testing.T) {
	for name, every := range map[string]time.Duration{"in haste": 15 * time.Second, "at leisure": 5 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, now := bustest.Start(t), time.Now()
			var passed atomic.Int64
			l, err := bus.OpenLog(t.Context(), b.Connect(t), bus.LogConfig{
				Authority: b.Authority, Issuer: "issuer-1", Now: func() time.Time { return now.Add(time.Duration(passed.Load())) },
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			type list struct {
				seq  uint64
				hash []byte
				at   time.Duration
			}
			var lists []list
			var last bus.Cursor
			for n := range 20 {
				seq, hash, err := l.WriteGrants(t.Context(), fmt.Appendf(nil, "list %d", n))
				if err != nil {
					t.Fatal(err)
				}
				lists = append(lists, list{seq, hash, time.Duration(passed.Load())})
				mustAppend(t, l, revocation("x"))
				last = collect(t, l, last, 1)[0].Cursor()
				writeCheckpoint(t, l, last, []byte("image"))
				passed.Add(int64(every))
			}
			end := time.Duration(passed.Load()) - every // of the last checkpoint
			for n, g := range lists {
				_, err := l.ReadGrants(t.Context(), g.seq, g.hash)
				age := end - g.at
				if errors.Is(err, bus.ErrNotFound) && age <= time.Minute {
					t.Errorf("list %d of %s before the newest checkpoint is gone", n, age)
				}
				if err == nil && age > 2*every+2*time.Minute {
					t.Errorf("list %d of %s before the newest checkpoint is there", n, age)
				}
			}
		})
	}
}
