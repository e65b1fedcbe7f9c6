//go:build linux

package faults

import (
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// powered is a disk that forgets, when its power is cut, all that was not synced: a file system in a file. What is written stands in
// the kernel's memory until it is synced, or the kernel likes to write it; what the file has at that moment is what the disk would have.
type powered struct {
	n     *node
	image string
}

// powerDisk is how large each one is. The file has holes where nothing was written.
const powerDisk = 256 << 20

// plugDisk gives a node's folder a disk whose power can be cut; where that may not be, the test is skipped.
func (n *node) plugDisk() {
	n.s.Helper()
	p := &powered{n: n, image: n.dir + ".disk"}
	if err := os.WriteFile(p.image, nil, 0o600); err != nil {
		n.s.Fatal(err)
	}
	if err := errors.Join(os.Truncate(p.image, powerDisk), os.MkdirAll(n.dir, 0o700)); err != nil {
		n.s.Fatal(err)
	}
	if err := errors.Join(shell("mkfs.ext4", "-q", "-F", p.image), shell("mount", "-o", "loop", p.image, n.dir)); err != nil {
		lacking(n.s, "mounting a disk in a file (only root may): %v", err)
	}
	n.s.Cleanup(func() {
		n.end()
		if err := syscall.Unmount(n.dir, syscall.MNT_DETACH); err != nil {
			n.s.Errorf("unmounting %s: %v", n.dir, err)
		}
	})
	if err := errors.Join(os.Chmod(n.dir, 0o700), os.RemoveAll(n.dir+"/lost+found")); err != nil {
		n.s.Fatal(err)
	}
	n.power = p
}

func shell(command ...string) error {
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		return errors.New(strings.Join(command, " ") + ": " + err.Error() + ": " + string(out))
	}
	return nil
}

// cut ends the process and its disk at once, and gives it the disk as it was then.
func (p *powered) cut() {
	p.n.kill()
	after := p.image + ".after"
	if err := errors.Join(
		shell("cp", "--sparse=always", p.image, after), // before anybody syncs what is in memory
		shell("umount", p.n.dir),
		os.Rename(after, p.image),
		shell("mount", "-o", "loop", p.image, p.n.dir),
	); err != nil {
		p.n.s.Errorf("cutting the power of %s: %v", p.n.name, err)
	}
}

// powerFaults are losses of power.
var powerFaults = []*fault{
	{name: "the issuer with the bus loses its power, and what was not synced", lasts: beyondLease, inject: func(w *workload, _ *rand.Rand) func() {
		light := w.h.darkenAfter(w.hasBus().kill, "the issuer with the bus is dead", w.agents...)
		w.hasBus().power.cut()
		return func() { light(); w.hasBus().start() }
	}},
	{name: "all issuers lose their power, and what was not synced", inject: func(w *workload, _ *rand.Rand) func() {
		var wg sync.WaitGroup
		for _, n := range w.issuers {
			wg.Go(n.kill)
		}
		wg.Wait()
		for _, n := range w.issuers {
			n.power.cut()
		}
		return func() {
			for _, n := range w.issuers {
				n.start()
			}
		}
	}},
}

// TestPower: what was acknowledged is on the disk: alone, and in a cluster of three.
func TestPower(t *testing.T) {
	if !long {
		t.Skip("set SIDEKEY_LONG=1 to cut the power of disks")
	}
	binary, err := sound()
	if err != nil {
		t.Fatal(err)
	}
	for n, f := range powerFaults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			cfg := siteConfig{binary: binary, issuers: 1 + 2*n, cluster: n > 0, power: true, few: n > 0, lease: 2 * time.Second, grace: 500 * time.Millisecond}
			plan{name: f.name, seed: chooseSeed(t), faults: []*fault{f}, times: 2 - n, site: cfg}.run(t).report(t)
		})
	}
}
