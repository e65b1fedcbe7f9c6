//go:build linux

package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
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
// again, it goes on by itself.
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
		lacking(n.s, "mounting a small disk (only root may): %v", err)
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

// floodWithin is how long the flood may last until the server of the bus gives the agent up: it waits 10 s for a connection that takes nothing.
const floodWithin = 90 * time.Second

// flooded: an agent stands still while revocations are said live, until the server of the bus has more for it than it keeps, calls it a slow
// consumer and ends its connection. It reads back what it missed.
var flooded = &fault{name: "an agent stands still under a flood of revocations: a slow consumer", lasts: beyondLease, inject: func(w *workload, rng *rand.Rand) func() {
	n, before := w.anyAgent(rng), w.slowConsumers()
	n.signal(syscall.SIGSTOP)
	ctx, stop := context.WithTimeout(context.Background(), floodWithin)
	defer stop()
	var wg sync.WaitGroup
	for writer := range 4 {
		wg.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				body := map[string]string{"jti": fmt.Sprintf("flood-%d-%d-%d", w.seed, writer, k)}
				if status, err := w.issuers[0].call(context.Background(), issueWithin, "POST", "/admin/v1/revocations", w.admin, body, nil); status != 200 {
					w.Errorf("the flood's revocation %d: %d %v", k, status, err)
					return
				}
			}
		})
	}
	for w.slowConsumers() == before && ctx.Err() == nil {
		rest(ctx, 250*time.Millisecond)
	}
	if ctx.Err() != nil {
		w.Errorf("after %s of revocations %s is no slow consumer", floodWithin, n.name)
	}
	stop()
	wg.Wait()
	return func() { n.signal(syscall.SIGCONT) }
}}

// slowConsumers is how many connections the server of the bus has ended since they did not keep up.
func (w *workload) slowConsumers() (n int) {
	w.Helper()
	res, err := w.hasBus().client.Get(w.hasBus().url + "/metrics")
	if err != nil {
		w.Errorf("reading the metrics: %v", err)
		return 0
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	const name = "\nsidekey_bus_server_slow_consumers_total "
	_, value, found := strings.Cut(string(text), name)
	if _, serr := fmt.Sscan(value, &n); err != nil || !found || serr != nil {
		w.Errorf("no %s among the metrics: %v %v", strings.TrimSpace(name), err, serr)
	}
	return n
}
