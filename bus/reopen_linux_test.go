package bus_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

// TestDiskFull: while the disk is full nothing is acknowledged; once there is room, the same server takes writes again without a hand, and
// has all that it had acknowledged.
func TestDiskFull(t *testing.T) {
	b := bustest.Start(t)
	b.Stop()
	if err := syscall.Mount("tmpfs", b.Dir(), "tmpfs", 0, "size=33554432,mode=0700"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("mounting a small disk: %v", err)
		}
		t.Skipf("mounting a small disk (only root may): %v", err)
	}
	t.Cleanup(func() {
		b.Stop()
		if err := syscall.Unmount(b.Dir(), syscall.MNT_DETACH); err != nil {
			t.Errorf("unmounting %s: %v", b.Dir(), err)
		}
	})
	b.Restart(t)
	l := b.Log(t)
	kept := mustAppend(t, l, revocation("kept"))

	filler := filepath.Join(b.Dir(), "filler")
	if err := fillUp(filler); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("filling the disk: got %v, want %v", err, syscall.ENOSPC)
	}
	full := false
	for n := 0; n < 1000 && !full; n++ {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		at, err := l.Append(ctx, revocation(fmt.Sprint("full-", n)))
		cancel()
		if full = err != nil; !full {
			kept = at
		}
	}
	if !full {
		t.Fatal("a full disk takes everything")
	}

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	var again bus.Position
	deadline := time.Now().Add(time.Minute)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		at, err := l.Append(ctx, revocation("again"))
		cancel()
		if err == nil {
			again = at
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("there is room, and the log takes nothing: %v", err)
		}
	}
	have := make(map[uint64]bool)
	for _, en := range collect(t, b.Log(t), bus.Cursor{}, int(again.Seq)) {
		have[en.Seq] = true
	}
	for seq := uint64(1); seq <= kept.Seq; seq++ {
		if !have[seq] {
			t.Errorf("entry %d of %d that were acknowledged is lost", seq, kept.Seq)
		}
	}
}

// fillUp writes a file until the disk takes no byte more, and gives why.
func fillUp(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	for size := 1 << 20; size > 0; size /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
	}
	return errors.Join(err, f.Close())
}
