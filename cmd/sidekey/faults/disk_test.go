package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestDisk: what the disk of the issuer with the bus does, and an agent that stands still while more is said than it can hold.
func TestDisk(t *testing.T) {
	if !long {
		t.Skip("set SIDEKEY_LONG=1 to fill disks")
	}
	binary, err := sound()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range diskFaults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			cfg := siteConfig{binary: binary, issuers: 2, few: true, lease: 2 * time.Second, grace: 500 * time.Millisecond}
			if f == diskFull {
				cfg.disk = 64 << 20
			}
			plan{name: f.name, seed: chooseSeed(t), faults: []*fault{f}, site: cfg}.run(t).report(t)
		})
	}
}

var diskFaults = []*fault{diskFull, oldIssuer, flooded}

// diskFull: nothing that was acknowledged is lost, and nobody is told that something was written which was not. Once there is room
// again, the operator starts the issuer anew: its server of the bus may have closed its streams.
var diskFull = &fault{name: "the disk of the issuer with the bus is full", lasts: beyondLease, inject: func(w *workload, _ *rand.Rand) func() {
	n := w.hasBus()
	filler := filepath.Join(n.dir, "filler")
	if err := fill(filler); !errors.Is(err, syscall.ENOSPC) {
		w.Errorf("filling the disk: got %v, want %v", err, syscall.ENOSPC)
	}
	return func() {
		if err := os.Remove(filler); err != nil {
			w.Error(err)
		}
		n.end()
		n.start()
	}
}}

// fill writes a file until it fails, and gives why.
func fill(path string) error {
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

// mountDisk gives a node's folder a disk of its own, so large.
func (n *node) mountDisk(size int) {
	n.s.Helper()
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		n.s.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", n.dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", size)); err != nil {
		n.s.Skipf("mounting a small disk (only root may): %v", err)
	}
	n.s.Cleanup(func() {
		n.end()
		if err := syscall.Unmount(n.dir, syscall.MNT_DETACH); err != nil {
			n.s.Errorf("unmounting %s: %v", n.dir, err)
		}
	})
}

// oldIssuer: an issuer without the bus comes back with the folder that it had before a revocation and a rotation. It reads the rest of
// the log before it says anything.
var oldIssuer = &fault{name: "an issuer's old folder is put back", inject: func(w *workload, _ *rand.Rand) func() {
	n := w.issuers[1]
	old := filepath.Join(w.TempDir(), "old")
	n.end()
	if err := copyFolder(old, n.dir); err != nil {
		w.Errorf("copying %s: %v", n.dir, err)
	}
	n.start()
	if err := n.await(patience); err != nil {
		w.Errorf("%s again: %v", n.name, err)
	}
	rng := newRand(w.seed, "old folder")
	w.revokeOne(rng)
	w.rotate(rng)
	n.kill()
	if err := errors.Join(os.RemoveAll(n.dir), copyFolder(n.dir, old)); err != nil {
		w.Errorf("putting %s back: %v", n.dir, err)
	}
	return n.start
}}

// flood is how many revocations an agent that stands still misses.
const flood = 3000

// flooded: an agent stands still for longer than its lease while thousands of revocations are said live. It reads back what it missed.
var flooded = &fault{name: "an agent stands still under a flood of revocations", lasts: beyondLease, inject: func(w *workload, rng *rand.Rand) func() {
	n := w.anyAgent(rng)
	n.signal(syscall.SIGSTOP)
	var wg sync.WaitGroup
	for writer := range 4 {
		wg.Go(func() {
			for k := range flood / 4 {
				body := map[string]string{"jti": fmt.Sprintf("flood-%d-%d-%d", w.seed, writer, k)}
				if status, err := w.issuers[0].call(context.Background(), issueWithin, "POST", "/admin/v1/revocations", w.admin, body, nil); status != 200 {
					w.Errorf("the flood's revocation %d: %d %v", k, status, err)
					return
				}
			}
		})
	}
	wg.Wait()
	return func() { n.signal(syscall.SIGCONT) }
}}
