//go:build linux

package faults

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/sidekey/sidekey/bus/bustest"
)

// fault is one thing that goes wrong.
type fault struct {
	name string
	// inject lets it begin, and gives what ends it. It may last on for a while in inject.
	inject func(w *workload, rng *rand.Rand) (heal func())
	// costs are the checks that it may make fail: what docs/faults.md says it costs.
	costs []string
	// lasts is how long it lasts between the two; 0: shortFault.
	lasts func(s *site) time.Duration
}

const shortFault = 300 * time.Millisecond

func (f *fault) length(s *site) time.Duration {
	if f.lasts == nil {
		return shortFault
	}
	return f.lasts(s)
}

// beyondLease is long enough for every lease that a fault interrupts to end, with time to look.
func beyondLease(s *site) time.Duration { return s.lease + 700*time.Millisecond }

func withinLease(s *site) time.Duration { return s.lease / 3 }

// hasBus is the issuer that has the bus in it: without it nobody hears anything.
func (s *site) hasBus() *node { return s.issuers[0] }

// faults are all of them that need no more than processes and proxies.
var faults = []*fault{
	{name: "kill -9 of the issuer with the bus", lasts: beyondLease, inject: func(w *workload, _ *rand.Rand) func() {
		light := w.h.darkenAfter(w.hasBus().kill, "the issuer with the bus is dead", w.agents...)
		return func() { light(); w.hasBus().start() }
	}},
	{name: "kill -9 of the issuer with the bus while it ends sessions", inject: killEnding},
	{name: "kill -9 of an issuer", inject: func(w *workload, rng *rand.Rand) func() {
		n := w.issuers[1+rng.IntN(len(w.issuers)-1)]
		n.kill()
		return n.start
	}},
	{name: "kill -9 of an agent", inject: func(w *workload, rng *rand.Rand) func() {
		n := w.anyAgent(rng)
		n.kill()
		return n.start
	}},
	{name: "kill -9 of everybody", inject: func(w *workload, _ *rand.Rand) func() {
		for _, n := range w.nodes() {
			n.kill()
		}
		return func() {
			for _, n := range w.nodes() {
				n.start()
			}
		}
	}},
	{name: "SIGSTOP of an agent within its lease", inject: stopAgent, lasts: withinLease},
	{name: "SIGSTOP of an agent beyond its lease", inject: stopAgent, lasts: beyondLease},
	{name: "SIGSTOP of an agent, its network gone meanwhile", lasts: beyondLease, inject: func(w *workload, rng *rand.Rand) func() {
		n := w.anyAgent(rng)
		n.signal(syscall.SIGSTOP)
		light := w.h.darken("stopped and cut off", n)
		n.cutOff()
		return func() {
			n.signal(syscall.SIGCONT)
			time.Sleep(beyondLease(w.site) / 4) // it looks around, and nobody is there
			light()
			n.proxy.Resume()
		}
	}},
	{name: "SIGSTOP of the issuer with the bus beyond the lease", lasts: beyondLease, inject: func(w *workload, _ *rand.Rand) func() {
		light := w.h.darkenAfter(func() { w.hasBus().signal(syscall.SIGSTOP) }, "the issuer with the bus stands still", w.agents...)
		return func() { light(); w.hasBus().signal(syscall.SIGCONT) }
	}},
	{name: "SIGSTOP of an issuer beyond its lease",
		lasts: func(*site) time.Duration { return 6 * time.Second },
		inject: func(w *workload, rng *rand.Rand) func() {
			n := w.issuers[1+rng.IntN(len(w.issuers)-1)]
			n.signal(syscall.SIGSTOP)
			return func() { n.signal(syscall.SIGCONT) }
		}},
	{name: "partition of an agent", lasts: beyondLease, inject: func(w *workload, rng *rand.Rand) func() {
		n := w.anyAgent(rng)
		light := w.h.darkenAfter(n.cutOff, "cut off", n)
		return func() { light(); n.proxy.Resume() }
	}},
	{name: "partition of an issuer", lasts: beyondLease,
		inject: func(w *workload, rng *rand.Rand) func() {
			n := w.issuers[1+rng.IntN(len(w.issuers)-1)]
			n.cutOff()
			return n.proxy.Resume
		}},
	{name: "an agent hears nothing and is heard", lasts: beyondLease, inject: func(w *workload, rng *rand.Rand) func() {
		n := w.anyAgent(rng)
		light := w.h.darkenAfter(func() { n.proxy.Pause(bustest.ToClient) }, "it hears nothing", n)
		return func() { light(); n.proxy.Resume() }
	}},
	{name: "an agent hears and is not heard", lasts: beyondLease, inject: func(w *workload, rng *rand.Rand) func() {
		n := w.anyAgent(rng)
		n.proxy.Pause(bustest.ToServer)
		return n.proxy.Resume
	}},
	{name: "an agent hears everything late, but within its lease", lasts: beyondLease, inject: hearsOfKeysLate},
	{name: "an agent hears everything later than its lease lasts", lasts: func(s *site) time.Duration { return 2*s.lease + time.Second },
		inject: slowPath(func(s *site) time.Duration { return s.lease + s.lease/4 })},
	{name: "an agent hears late, then nothing", lasts: beyondLease, inject: hearsLate},
	{name: "an agent's old folder is put back, and the bus is away", lasts: beyondLease, inject: oldFolder},
	{name: "an agent loses what is said live", lasts: beyondLease, inject: func(w *workload, rng *rand.Rand) func() {
		n := w.anyAgent(rng)
		before := n.proxy.Dropped()
		n.proxy.DropSubject(bustest.ToClient, "sidekey.live.")
		return func() {
			if n.proxy.Dropped() == before {
				w.Errorf("%s has lost nothing", n.name)
			}
			n.proxy.Resume()
		}
	}},
	{name: "connections break again and again", lasts: beyondLease, inject: func(w *workload, rng *rand.Rand) func() {
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for {
				for _, n := range w.nodes() {
					if n.proxy != nil {
						n.proxy.Cut()
					}
				}
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(20+rng.IntN(300)) * time.Millisecond):
				}
			}
		}()
		return func() { close(stop); <-done }
	}},
	{name: "rolling restart of the issuers", inject: func(w *workload, _ *rand.Rand) func() {
		for _, n := range w.issuers {
			n.end()
			n.start()
			if err := n.await(backWithin); err != nil {
				w.Errorf("rolling restart: %s: %v", n.name, err)
			}
		}
		return func() {}
	}},
}

// killEnding kills an issuer in the middle of ending sessions. A session that it holds closed afterwards is over for the agents too, once
// they have a lease that is younger.
func killEnding(w *workload, rng *rand.Rand) func() {
	n := w.hasBus()
	var pairs []pair
	for range 6 {
		if p, ok := w.login(n, "leaver"); ok {
			pairs = append(pairs, p)
		}
	}
	var wg sync.WaitGroup
	for _, p := range pairs {
		wg.Go(func() { w.revoke(n, p.access, "sid") })
	}
	time.Sleep(time.Duration(20+rng.IntN(150)) * time.Millisecond)
	n.kill()
	wg.Wait()
	return func() {
		n.start()
		if err := n.await(backWithin); err != nil {
			w.Errorf("%s after kill -9: %v", n.name, err)
		}
		for _, p := range pairs {
			w.refresh(n, p.refresh)
		}
		time.Sleep(w.lease + 100*time.Millisecond)
		for _, p := range pairs {
			for _, a := range w.agents {
				w.verify(a, p.access)
			}
		}
	}
}

// hearsLate has an agent hear everything late, and nothing any more as soon as it has a new lease. Whatever it has heard then was said that
// long before, so it had asked for its lease earlier still. It is less than the sixth of the lease that an agent waits for an answer.
func hearsLate(w *workload, rng *rand.Rand) func() {
	n, late := w.anyAgent(rng), w.lease/10
	known, _ := w.login(w.issuers[0], "steady") // by a key that it holds, whatever it misses
	n.proxy.Delay(bustest.ToClient, late)
	time.Sleep(w.lease / 2)
	for left, end := int64(math.MaxInt64), time.Now().Add(w.lease); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		at := w.status(n)
		if at.Status == 200 && at.Lease > left+50 {
			break // it has just come
		}
		if at.Status == 200 {
			left = at.Lease
		}
	}
	n.proxy.Pause(bustest.ToClient)
	light := w.h.darkenSince(w.h.now()-late, "it hears nothing", n)
	ctx, stop := context.WithCancel(context.Background())
	var asking sync.WaitGroup
	asking.Go(func() {
		for ctx.Err() == nil {
			w.verify(n, known.access)
			rest(ctx, 20*time.Millisecond)
		}
	})
	return func() { stop(); asking.Wait(); light(); n.proxy.Resume() }
}

func stopAgent(w *workload, rng *rand.Rand) func() {
	n := w.anyAgent(rng)
	n.signal(syscall.SIGSTOP)
	return func() { n.signal(syscall.SIGCONT) }
}

// oldFolder has an agent come back with what it knew before a revocation, and nobody to ask. What it has acknowledged since is its
// floor, and its lease may be good still: it may vouch for nothing.
func oldFolder(w *workload, rng *rand.Rand) func() {
	n := w.anyAgent(rng)
	p, ok := w.login(w.issuers[0], "victim")
	if !ok {
		return func() {}
	}
	w.verify(n, p.access)
	old := filepath.Join(w.TempDir(), "old")
	time.Sleep(200 * time.Millisecond) // its journal has the key that signed
	if err := copyFolder(old, n.dir); err != nil {
		w.Errorf("copying %s: %v", n.dir, err)
	}
	w.revoke(w.issuers[0], p.access, "jti")
	n.kill()
	n.cutOff()
	light := w.h.darken("cut off", n)
	if err := errors.Join(os.RemoveAll(n.dir), copyFolder(n.dir, old)); err != nil {
		w.Errorf("putting %s back: %v", n.dir, err)
	}
	n.start()
	for end := time.Now().Add(w.lease / 2); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		w.verify(n, p.access)
	}
	return func() { light(); n.proxy.Resume() }
}

// copyFolder copies a folder with its modes.
func copyFolder(to, from string) error {
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func slowPath(by func(*site) time.Duration) func(*workload, *rand.Rand) func() {
	return func(w *workload, rng *rand.Rand) func() {
		n := w.anyAgent(rng)
		n.proxy.Delay(bustest.ToClient, by(w.site))
		return n.proxy.Resume
	}
}

// hearsOfKeysLate has an agent hear everything half a lease late, and keys rotate meanwhile, one after the other without a rest: the first
// rotation signs with a key that everybody holds since long, the next ones want keys that the agent has not heard of yet.
func hearsOfKeysLate(w *workload, rng *rand.Rand) func() {
	n := w.anyAgent(rng)
	n.proxy.Delay(bustest.ToClient, w.lease/2)
	for end := time.Now().Add(w.lease / 4); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		w.rotateBy(w.issuers[0], map[string]any{"wait": "none"})
		if p, ok := w.login(w.issuers[0], "steady"); ok {
			w.verify(n, p.access)
		}
	}
	return n.proxy.Resume
}

func (w *workload) anyAgent(rng *rand.Rand) *node { return w.agents[rng.IntN(len(w.agents))] }

// cutOff lets nothing through between a node and the bus, and ends what is connected. It may connect again, and hears nothing then.
func (n *node) cutOff() {
	n.proxy.Pause(bustest.Both)
	n.proxy.Cut()
}

// darkenAfter is darken from when do has returned.
func (h *history) darkenAfter(do func(), why string, agents ...*node) (light func()) {
	do()
	return h.darken(why, agents...)
}

// named finds a fault.
func named(name string) *fault {
	for _, some := range [][]*fault{faults, clusterOnly, networkFaults, powerFaults, diskFaults, clockFaults} {
		for _, f := range some {
			if f.name == name {
				return f
			}
		}
	}
	panic(fmt.Sprintf("no fault is called %q", name))
}
