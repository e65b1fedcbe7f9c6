package fleettest_test

import (
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/sidekey/sidekey/agent/fleettest"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

// TestRestartTogether: a fleet is stopped and started at one moment, with a connection each. All are at the head and hold
// leases again, and what the issuer appends meanwhile is acknowledged. In the long run it is a thousand; first with what
// each has on its disk, then with nothing, so that all read a checkpoint of 20,000 revocations.
func TestRestartTogether(t *testing.T) {
	agents, revoked := 50, 1000
	if long && !underRace {
		agents, revoked = 1000, 20_000
	}
	server, apart := bustest.StartApart(t, 1)
	f := fleettest.StartOn(t, server)
	i := f.Issuer("issuer-1", nil)
	imageOf(t, i, revoked)
	good, bad := f.Token("good"), f.Token("revoked-"+strconv.Itoa(revoked/2))
	dirs := make([]string, agents)
	for n := range dirs {
		dirs[n] = t.TempDir()
	}
	start := func(bare bool) []*fleettest.Agent {
		return startAgents(f, 0, agents, func(n int) fleettest.AgentConfig {
			return fleettest.AgentConfig{Length: 15 * time.Minute, Direct: true, Bare: bare, Dir: dirs[n]}
		})
	}
	vouch := func(what string, all []*fleettest.Agent, begun time.Time) {
		before := apart.Usage(t)
		appended, stop := appending(t, i)
		heads := whenAll(t, all, begun, func(a *fleettest.Agent) bool { return a.Replica.Snapshot().Ready })
		leases := whenAll(t, all, begun, func(a *fleettest.Agent) bool { return a.Verify(good) == 200 })
		took := appended()
		stop()
		for _, a := range all {
			if a.Verify(bad) != 401 || a.Replica.Revocations() < revoked {
				t.Fatalf("agent %s does not know what is revoked", a.AgentName)
			}
		}
		if len(took) == 0 {
			t.Errorf("%s: nothing was appended meanwhile", what)
			return
		}
		u := apart.Usage(t)
		t.Logf("%s, %d agents: all at the head after %s, all vouch after %s; %d appends meanwhile: p50 %s, p99 %s; bus: %s of CPU, %d MB sent, %d MB of memory",
			what, agents, slices.Max(heads).Round(time.Millisecond), slices.Max(leases).Round(time.Millisecond), len(took), part(took, 50).Round(100*time.Microsecond),
			part(took, 99).Round(100*time.Microsecond), u.CPU-before.CPU, (u.Out-before.Out)>>20, u.Resident>>20)
	}
	begun := time.Now()
	all := start(false)
	vouch("first start, with nothing", all, begun)
	stopAll(all)
	begun = time.Now()
	all = start(false)
	vouch("restart, from its own disk", all, begun)
	stopAll(all)
	begun = time.Now()
	vouch("restart, with nothing", start(true), begun)
}

// stopAll ends agents at one moment.
func stopAll(all []*fleettest.Agent) {
	var wg sync.WaitGroup
	for _, a := range all {
		wg.Go(a.Stop)
	}
	wg.Wait()
}

// appending lets the issuer revoke one thing after the other; appended gives how long each took so far, ordered.
func appending(t testing.TB, i *fleettest.Issuer) (appended func() []time.Duration, stop func()) {
	var mu sync.Mutex
	var took []time.Duration
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			begun := time.Now()
			_, err := i.Log.Append(t.Context(), &bus.Revocation{ID: "meanwhile-" + strconv.Itoa(n), ExpiresAt: time.Now().Add(time.Hour).Unix()})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			took = append(took, time.Since(begun))
			mu.Unlock()
			select {
			case <-time.After(100 * time.Millisecond):
			case <-end:
				return
			}
		}
	}()
	return func() []time.Duration {
		mu.Lock()
		defer mu.Unlock()
		return slices.Sorted(slices.Values(took))
	}, func() { close(end); <-done }
}

// TestIdle measures what a fleet of 1,000 agents, a connection each, costs its bus while nothing happens but ticks and
// renewals: leases of 15 minutes and of 5 seconds.
func TestIdle(t *testing.T) {
	if !long || underRace {
		t.Skip("measures; set SIDEKEY_LONG=1, without -race")
	}
	const agents, during = 1000, 20 * time.Second
	for _, length := range []time.Duration{15 * time.Minute, 5 * time.Second} {
		t.Run(length.String(), func(t *testing.T) {
			server, apart := bustest.StartApart(t, 1)
			f := fleettest.StartOn(t, server)
			i := f.Issuer("issuer-1", nil)
			alone := measure(t, apart, 5*time.Second)
			before := apart.Usage(t)
			good, begun := f.Token("good"), time.Now()
			all := startAgents(f, 0, agents, func(int) fleettest.AgentConfig {
				return fleettest.AgentConfig{Length: length, Direct: true, Bare: true}
			})
			whenAll(t, all, begun, func(a *fleettest.Agent) bool { return a.Verify(good) == 200 })
			measure(t, apart, 5*time.Second) // what the start left
			conn, reader := server.Connect(t), server.Reader(t)
			kept := func() (log, grants uint64) {
				for _, s := range bus.LookAtHealth(t.Context(), conn, reader, nil, bus.Synced).Streams {
					switch s.Name {
					case "log":
						log = s.Bytes
					case "grants":
						grants = s.Bytes
					}
				}
				return log, grants
			}
			seq := i.Replica.Snapshot().Position.Seq
			log0, grants0 := kept()
			u := measure(t, apart, during)
			log1, grants1 := kept()
			t.Logf("the bus keeps, a second: %.0f B of ticks and %.0f B of lists of grants", float64(log1-log0)/during.Seconds(), float64(grants1-grants0)/during.Seconds())
			t.Logf("leases of %s, %d agents: %d entries in %s; per agent and second: %d B sent, %d B read, %.1f µs of the bus's CPU (%.1f ms a second without agents); %d kB of its memory",
				length, agents, i.Replica.Snapshot().Position.Seq-seq, during, (u.Out-4*alone.Out)/agents/int64(during.Seconds()), (u.In-4*alone.In)/agents/int64(during.Seconds()),
				float64((u.CPU-4*alone.CPU).Microseconds())/agents/during.Seconds(), float64(alone.CPU.Milliseconds())/5, (u.Resident-before.Resident)/agents>>10)
		})
	}
}

// measure gives what servers use while a time passes, and their memory then.
func measure(t *testing.T, apart *bustest.Apart, during time.Duration) bustest.Usage {
	before := apart.Usage(t)
	time.Sleep(during)
	u := apart.Usage(t)
	u.CPU, u.In, u.Out = u.CPU-before.CPU, u.In-before.In, u.Out-before.Out
	return u
}
