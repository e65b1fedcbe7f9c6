package fleettest_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sidekey/sidekey/agent/fleettest"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// TestKilledAfterAcknowledging: an agent that is killed right after its acknowledgement, and starts again
// from an older checkpoint with its lease still running, vouches for nothing until it is at its floor.
func TestKilledAfterAcknowledging(t *testing.T) {
	t.Parallel()
	f := fleettest.Start(t)
	i := f.Issuer("issuer-1", nil)
	bad, good := f.Token("bad"), f.Token("good")
	cfg := fleettest.AgentConfig{Length: time.Hour, Dir: t.TempDir(), Runtime: fleettest.MemoryDir(t)}
	a := f.Agent("web-1", cfg).Ready(bad)
	old := filepath.Join(t.TempDir(), "old")
	f.Eventually("there is a checkpoint", func() bool { _, err := os.Stat(filepath.Join(cfg.Dir, "journal")); return err == nil })
	fleettest.CopyDir(t, old, cfg.Dir)
	at := i.Revoke("bad")
	i.Settle(at)
	run := a.Holder.Run()
	a.Stop()

	cfg.Dir, cfg.Proxy = old, bustest.NewProxy(t, f.Bus.Server.URL())
	cfg.Proxy.Pause(bustest.Both)
	a = f.Agent("web-1", cfg)
	if a.Holder.Run() != run {
		t.Fatal("it is another run: its lease was not kept")
	}
	if seq := a.Seq(); seq == 0 || seq >= at.Seq || !a.Replica.Snapshot().Ready {
		t.Fatalf("it starts with %d entries, want the older checkpoint's", seq)
	}
	looks := f.While(time.Second, "it vouches for nothing below its floor", func() bool { return a.Verify(bad) == 503 && a.Verify(good) == 503 })
	cfg.Proxy.Resume()
	f.Eventually("it vouches again", func() bool {
		if a.Verify(bad) == 200 {
			t.Fatal("it vouches for what it had acknowledged to be revoked")
		}
		return a.Verify(good) == 200
	})
	if got := a.Verify(bad); got != 401 {
		t.Errorf("at its floor it answers %d, want 401", got)
	}
	t.Logf("lease of an hour running, %d entries behind its floor: asked %d times, vouched 0 times", at.Seq-1, looks)
}

// TestRestartedWhileAlone: with its own last checkpoint, and its lease, an agent vouches again at once
// while the bus is away.
func TestRestartedWhileAlone(t *testing.T) {
	t.Parallel()
	f := fleettest.Start(t)
	i := f.Issuer("issuer-1", nil)
	bad, good := f.Token("bad"), f.Token("good")
	cfg := fleettest.AgentConfig{Length: time.Hour, Dir: t.TempDir(), Runtime: fleettest.MemoryDir(t)}
	a := f.Agent("web-1", cfg).Ready(bad)
	i.Settle(i.Revoke("bad"))
	a.Stop()
	i.Stop()
	f.Bus.Stop()
	begun := time.Now()
	a = f.Agent("web-1", cfg).Ready(good)
	if got := a.Verify(bad); got != 401 {
		t.Errorf("it answers %d to what is revoked, want 401", got)
	}
	t.Logf("restarted without bus and issuer: vouches after %s", time.Since(begun).Round(time.Millisecond))
}

// stepped is the machine's clock, set by a test.
type stepped struct{ by atomic.Int64 }

func (s *stepped) read() lease.Reading {
	r := lease.SystemClock()
	r.Wall += time.Duration(s.by.Load())
	return r
}

// TestClockStepped: a wall clock that is set forward by an hour ends a lease; set back it makes none
// longer, and at an issuer no fence shorter.
func TestClockStepped(t *testing.T) {
	t.Parallel()
	f := fleettest.Start(t)
	agents, issuers := new(stepped), new(stepped)
	i := f.Issuer("issuer-1", issuers.read)
	token := f.Token("bad")
	a := f.Agent("web-1", fleettest.AgentConfig{Length: 2 * time.Second, Clock: agents.read}).Ready(token)
	a.Proxy.Pause(bustest.Both)
	agents.by.Store(int64(time.Hour))
	if got := a.Verify(token); got != 503 {
		t.Errorf("an hour forward: it answers %d, want 503", got)
	}
	a.Proxy.Resume()
	a.Ready(token) // by a lease of the new time
	a.Proxy.Pause(bustest.Both)
	agents.by.Store(-int64(time.Hour))
	issuers.by.Store(int64(time.Hour))
	at := i.Revoke("bad")
	vouched, settled := i.Watch(at, a, token)
	if settled < time.Second {
		t.Errorf("the issuer's clock an hour forward: settled after %s, with a lease of 2 s running", settled)
	}
	t.Logf("agent's clock 2 h back, issuer's 1 h forward: vouched for %s by a lease of 2s, settled after %s, vouched 0 times then", vouched, settled)
	a.Proxy.Resume()
	// The other way: no fence is reached while the issuer's clock says that it is earlier.
	fresh := f.Token("worse")
	f.Eventually("it vouches again", func() bool { return a.Verify(fresh) == 200 })
	a.Proxy.Pause(bustest.Both)
	issuers.by.Store(-int64(time.Hour))
	worse := i.Revoke("worse")
	f.While(3*time.Second, "no fence by a clock that was set back", func() bool { return !i.Receipt(worse).Settled() })
	a.Proxy.Resume()
	i.Settle(worse)
	if got := a.Verify(fresh); got == 200 {
		t.Error("it vouches after its acknowledgement")
	}
}

// TestSlowClockColdStart: an agent whose clock is an hour slow starts cold when a revocation has left
// the checkpoint, because its token is over for everybody else: it refuses the token too.
func TestSlowClockColdStart(t *testing.T) {
	t.Parallel()
	f := fleettest.Start(t)
	var ahead atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	log, err := bus.OpenLog(t.Context(), f.Bus.Connect(t), bus.LogConfig{Authority: f.Bus.Authority, Issuer: "issuer-0", Now: now})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	i := f.Issuer("issuer-1", nil)
	exp := time.Now().Add(time.Minute)
	token := keyringtest.Token(t, f.Key, func(c *keyring.Claims) { c.ID, c.ExpiresAt = "bad", keyring.At(exp) })
	if _, err := log.Append(t.Context(), &bus.Revocation{ID: "bad", ExpiresAt: exp.Unix()}); err != nil {
		t.Fatal(err)
	}
	ahead.Store(int64(2 * time.Hour))
	at, err := log.Tick(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Replica.Wait(t.Context(), at.Seq); err != nil {
		t.Fatal(err)
	}
	if n := i.Replica.Revocations(); n != 0 {
		t.Fatalf("%d revocations are left", n)
	}
	writeCheckpoint(t, i)
	slow := func() time.Time { return time.Now().Add(-time.Hour) } // by its own clock the token is good for an hour
	a := f.Agent("web-1", fleettest.AgentConfig{Length: time.Minute, Now: slow})
	f.Eventually("it answers", func() bool { return a.Verify(token) != 503 })
	if got := a.Verify(token); got != 401 {
		t.Errorf("an agent an hour slow answers %d, want 401", got)
	}
	if a.Replica.Revocations() != 0 || !a.Replica.Forgotten(exp.Unix()) {
		t.Errorf("it holds %d revocations, and Forgotten is %v", a.Replica.Revocations(), a.Replica.Forgotten(exp.Unix()))
	}
}

// writeCheckpoint writes one, with its leases.
func writeCheckpoint(t testing.TB, i *fleettest.Issuer) {
	t.Helper()
	img, at, err := i.Replica.Image()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), fleettest.Patience)
	defer cancel()
	held, err := i.Ledger.Image(ctx, at.Position)
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Log.WriteCheckpoint(ctx, at, img, held); err != nil {
		t.Fatal(err)
	}
}

// TestIssuerFromACheckpoint: an issuer that starts from a checkpoint waits for leases that were granted
// behind it, by another issuer, to an agent that it never heard of.
func TestIssuerFromACheckpoint(t *testing.T) {
	t.Parallel()
	f := fleettest.Start(t)
	first := f.Issuer("issuer-1", nil)
	token := f.Token("bad")
	a := f.Agent("web-1", fleettest.AgentConfig{Length: 3 * time.Second}).Ready(token)
	a.Proxy.Pause(bustest.Both)
	first.Settle(first.Revoke("other"))
	a.Proxy.Resume()
	a.Ready(token)
	a.Proxy.Pause(bustest.Both)
	f.Eventually("the ledger has the lease", func() bool {
		return a.Holder.Current() != nil && !first.Ledger.ReadUpTo().Before(a.Holder.Current().Position)
	})
	writeCheckpoint(t, first)
	first.Revoke("between")
	first.Stop()
	second := f.Issuer("issuer-2", nil)
	at := second.Revoke("bad")
	vouched, settled := second.Watch(at, a, token)
	t.Logf("an issuer that starts from a checkpoint: vouched for %s, settled after %s, vouched 0 times then", vouched, settled)
}

// TestLogBegunAnew: the log's stream is deleted and made anew under a running fleet: what was revoked
// stays refused, agents find to the new log, and no receipt is settled while nobody knows who was
// granted what.
func TestLogBegunAnew(t *testing.T) {
	t.Parallel()
	f := fleettest.Start(t)
	i := f.Issuer("issuer-1", nil)
	old, bad, good := f.Token("old"), f.Token("bad"), f.Token("good")
	a := f.Agent("web-1", fleettest.AgentConfig{Length: 2 * time.Second}).Ready(bad)
	cut := f.Agent("web-2", fleettest.AgentConfig{Length: 2 * time.Second}).Ready(bad)
	i.Settle(i.Revoke("old"))
	known := i.Replica
	i.Stop()
	cut.Proxy.Pause(bustest.Both)
	held, err := json.Marshal(lease.Blanket(map[string]time.Duration{"web-1": time.Minute, "web-2": time.Minute}, known.Cursor().Position))
	if err != nil {
		t.Fatal(err)
	}
	cfg := bus.LogConfig{Authority: f.Bus.Authority, Issuer: "issuer-1"}
	begun, err := bus.BeginAnew(t.Context(), f.Bus.Connect(t), cfg, known.Cursor(), known.ImageAt, held)
	if err != nil {
		t.Fatal(err)
	}
	i = f.Issuer("issuer-1", nil)
	at := i.Revoke("bad")
	if at.Epoch != begun.Epoch || at.Seq <= known.Cursor().Seq {
		t.Errorf("the new log's entry is %+v, behind %+v", at, known.Cursor().Position)
	}
	f.Eventually("an agent of the old log vouches by the new one", func() bool { return a.Verify(good) == 200 && a.Replica.Cursor().Epoch == at.Epoch })
	f.Eventually("and refuses what that revoked", func() bool { return a.Verify(bad) == 401 })
	if got := a.Verify(old); got != 401 {
		t.Errorf("what the old log revoked: %d, want 401", got)
	}
	f.While(3*time.Second, "nothing is settled", func() bool { return !i.Receipt(at).Settled() })
	if got := cut.Verify(bad); got != 503 {
		t.Errorf("the agent that is cut off answers %d when its lease is over, want 503", got)
	}
	cut.Proxy.Resume()
	f.Eventually("it finds to the new log", func() bool { return cut.Verify(good) == 200 && cut.Verify(bad) == 401 && cut.Verify(old) == 401 })
}

// TestOldDataDirectory: the bus's data directory of some time ago is put back under a running fleet, and
// other entries are written in the place of those that are lost: agents that knew those apply none of
// them, and vouch for no longer than their leases last.
func TestOldDataDirectory(t *testing.T) {
	t.Parallel()
	f := fleettest.Start(t)
	i := f.Issuer("issuer-1", nil)
	lost, good := f.Token("lost"), f.Token("good")
	a := f.Agent("web-1", fleettest.AgentConfig{Length: time.Second}).Ready(good)
	b := f.Agent("web-2", fleettest.AgentConfig{Length: time.Second}).Ready(good)
	before := filepath.Join(t.TempDir(), "before")
	f.Bus.Stop()
	fleettest.CopyDir(t, before, f.Bus.Dir())
	f.Bus.Restart(t)
	f.Eventually("all is well again", func() bool { return a.Verify(good) == 200 && b.Verify(good) == 200 })
	for range 5 {
		i.Settle(i.Revoke("lost"))
	}
	seq := min(a.Seq(), b.Seq())
	i.Stop()
	f.Bus.Stop()
	if err := os.RemoveAll(f.Bus.Dir()); err != nil {
		t.Fatal(err)
	}
	fleettest.CopyDir(t, f.Bus.Dir(), before)
	f.Bus.Restart(t)
	i = f.Issuer("issuer-1", nil) // which has no copy of its own, so it cannot tell
	var at bus.Position
	for at.Seq <= seq+5 {
		at = i.Revoke("good")
	}
	last, _ := i.Watch(at, a, good)
	for _, x := range []*fleettest.Agent{a, b} {
		if x.Verify(good) == 401 || x.Replica.Fault() == nil {
			t.Errorf("%s has applied the other log, or says no fault: %v", x.AgentName, x.Replica.Fault())
		}
		if got := x.Verify(lost); got != 503 {
			t.Errorf("%s answers %d to what was revoked in the entries that are lost, want 503", x.AgentName, got)
		}
	}
	t.Logf("rolled back by 5 entries and gone on from there: applied 0 of the %d others, last vouched after %s by leases of 1s", at.Seq, last)
}

// TestNewAgentByAnOldCheckpoint: a checkpoint file of long ago costs an agent its time, nothing else.
func TestNewAgentByAnOldCheckpoint(t *testing.T) {
	t.Parallel()
	f := fleettest.Start(t)
	i := f.Issuer("issuer-1", nil)
	bad, good := f.Token("bad"), f.Token("good")
	cfg := fleettest.AgentConfig{Dir: t.TempDir()}
	a := f.Agent("web-1", cfg).Ready(bad)
	a.Stop()
	old := filepath.Join(t.TempDir(), "old")
	fleettest.CopyDir(t, old, cfg.Dir)
	i.Revoke("bad")
	for range 3 { // the log behind it is purged
		i.Revoke("other")
		f.Eventually("it is read", func() bool { return i.Replica.Head() == i.Replica.Cursor().Seq })
		writeCheckpoint(t, i)
	}
	a = f.Agent("web-1", fleettest.AgentConfig{Dir: old})
	f.Eventually("it vouches again", func() bool {
		if a.Verify(bad) == 200 {
			t.Fatal("it vouches for what is revoked")
		}
		return a.Verify(good) == 200
	})
	if got := a.Verify(bad); got != 401 {
		t.Errorf("it answers %d, want 401", got)
	}
}
