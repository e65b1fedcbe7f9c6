package fleettest_test

import (
	"fmt"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sidekey/sidekey/agent/fleettest"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

// startAgents starts agents at one moment, numbered from first on, and gives them when each has been started.
func startAgents(f *fleettest.Fleet, first, n int, cfg func(n int) fleettest.AgentConfig) []*fleettest.Agent {
	agents := make([]*fleettest.Agent, n)
	var all sync.WaitGroup
	for i := range agents {
		all.Go(func() { agents[i] = f.Agent(fmt.Sprint("web-", first+i), cfg(first+i)) })
	}
	all.Wait()
	if n := slices.Index(agents, nil); n >= 0 { // what it said failed the test, and ended its own goroutine only
		f.Fatalf("agent web-%d did not start", first+n)
	}
	return agents
}

// failing is a test that is expected to fail.
type failing struct {
	testing.TB
	said atomic.Int32
}

func (f *failing) Fatal(...any) { f.said.Add(1); runtime.Goexit() }

func (f *failing) Fatalf(string, ...any) { f.Fatal() }

// TestAgentNotStarted: where an agent cannot be started the test ends there, and not at a nil pointer.
func TestAgentNotStarted(t *testing.T) {
	tb, returned, done := &failing{TB: t}, false, make(chan struct{})
	f := fleettest.StartOn(tb, bustest.Start(t))
	go func() {
		defer close(done)
		startAgents(f, 0, 3, func(n int) fleettest.AgentConfig {
			cfg := fleettest.AgentConfig{Direct: true, Bare: true}
			if n == 1 {
				cfg.Runtime = "/nowhere"
			}
			return cfg
		})
		returned = true
	}()
	<-done
	if returned || tb.said.Load() != 2 {
		t.Errorf("one of three agents did not start: startAgents returned is %v, and it was said %d times, want false and by both", returned, tb.said.Load())
	}
}

// whenAll waits until something holds of each agent, and gives when, since a moment.
func whenAll(t testing.TB, agents []*fleettest.Agent, since time.Time, holds func(*fleettest.Agent) bool) []time.Duration {
	t.Helper()
	took, left := make([]time.Duration, 0, len(agents)), slices.Clone(agents)
	for look := time.NewTicker(10 * time.Millisecond); len(left) > 0; <-look.C {
		left = slices.DeleteFunc(left, func(a *fleettest.Agent) bool {
			ok := holds(a)
			if ok {
				took = append(took, time.Since(since))
			}
			return ok
		})
		if time.Since(since) > 2*time.Minute {
			t.Fatalf("after two minutes it does not hold of %d of %d agents, as %s", len(left), len(agents), left[0].AgentName)
		}
	}
	return took
}

// reach revokes a token and gives how long after the call each agent has refused it, and when the receipt was settled.
func reach(t testing.TB, i *fleettest.Issuer, agents []*fleettest.Agent, jti string) (refused []time.Duration, settled time.Duration) {
	t.Helper()
	token := i.Token(jti)
	refused = make([]time.Duration, len(agents))
	var all, waiting sync.WaitGroup
	begin := make(chan struct{})
	var begun time.Time
	for n, a := range agents {
		waiting.Add(1)
		all.Go(func() {
			status := a.Verify(token)
			waiting.Done()
			if status != 200 {
				t.Errorf("agent %s answers %d before the token is revoked", a.AgentName, status)
				return
			}
			<-begin
			for {
				changed := a.Replica.Changed()
				if a.Verify(token) == 401 {
					break
				}
				<-changed
			}
			refused[n] = time.Since(begun)
		})
	}
	waiting.Wait()
	begun = time.Now()
	close(begin)
	at := i.Revoke(jti)
	all.Wait()
	i.Settle(at)
	settled = time.Since(begun)
	slices.Sort(refused)
	return refused, settled
}

// part gives the value that so many in a hundred are below, of sorted ones.
func part(sorted []time.Duration, hundredths int) time.Duration {
	return sorted[min(len(sorted)-1, len(sorted)*hundredths/100)]
}

// fanOut is a raw TCP fan-out: messages of an entry's size to so many connections, so many to each.
type fanOut struct {
	conns []net.Conn
	each  int
	heard chan time.Time
}

const entrySize = 600 // of a revocation on the wire, with its headers

func newFanOut(t testing.TB, conns, each int) *fanOut {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f := &fanOut{each: each, heard: make(chan time.Time, conns*each)}
	for range conns {
		to, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		from, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { to.Close(); from.Close() })
		f.conns = append(f.conns, from)
		go func() {
			buf, got := make([]byte, 64<<10), 0
			for {
				n, err := to.Read(buf)
				if err != nil {
					return
				}
				for got += n; got >= entrySize; got -= entrySize {
					f.heard <- time.Now()
				}
			}
		}()
	}
	return f
}

// measure gives when each message has come, since the first was sent.
func (f *fanOut) measure(t testing.TB) (came []time.Duration) {
	t.Helper()
	body := make([]byte, entrySize*f.each)
	begun := time.Now()
	for _, c := range f.conns {
		if _, err := c.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	for range len(f.conns) * f.each {
		came = append(came, (<-f.heard).Sub(begun))
	}
	slices.Sort(came)
	return came
}

// sharing gives connections that agents share, so many to each.
func sharing(t testing.TB, f *fleettest.Fleet, conns int) func(n int) *bus.Conn {
	all := make([]*bus.Conn, conns)
	for n := range all {
		all[n] = f.Bus.Connect(t)
	}
	return func(n int) *bus.Conn { return all[n%conns] }
}
