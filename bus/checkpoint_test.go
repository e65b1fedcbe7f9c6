package bus_test

import (
	"bytes"
	"sync"
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
