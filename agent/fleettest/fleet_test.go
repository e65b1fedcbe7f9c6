package fleettest_test

import (
	"os"
	"testing"
	"time"

	"github.com/sidekey/sidekey/agent/fleettest"
	"github.com/sidekey/sidekey/bus/bustest"
)

// long says that the long variants are wanted too: SIDEKEY_LONG=1, as .ci/run sets it.
var long = os.Getenv("SIDEKEY_LONG") == "1"

// TestConfirmed: when a receipt is settled every agent refuses, and it is settled by acknowledgements
// long before the leases are over.
func TestConfirmed(t *testing.T) {
	t.Parallel()
	f := fleettest.Start(t)
	one := f.Issuer("issuer-1", nil)
	token := f.Token("bad")
	var agents []*fleettest.Agent
	for _, name := range []string{"web-1", "web-2", "web-3"} {
		agents = append(agents, f.Agent(name, fleettest.AgentConfig{Length: time.Hour}))
	}
	for _, a := range agents {
		a.Ready(token)
	}
	at := one.Revoke("bad")
	took := one.Settle(at)
	for _, a := range agents {
		if got := a.Verify(token); got != 401 {
			t.Errorf("%s answers %d after the receipt", a.AgentName, got)
		}
	}
	if rec := one.Receipt(at); len(rec.Applied) != 3 {
		t.Errorf("got the receipt %+v, want three agents", rec)
	}
	two := f.Issuer("issuer-2", nil)
	f.Eventually("the two issuers know of one another", func() bool {
		return len(one.Ledger.Holdings()) == 5 && !two.Ledger.ReadUpTo().Before(one.Ledger.ReadUpTo())
	})
	other := two.Revoke("other")
	both := two.Settle(other)
	for _, a := range agents {
		if got := a.Verify(f.Token("other")); got != 401 {
			t.Errorf("%s answers %d after the receipt of the other issuer", a.AgentName, got)
		}
	}
	t.Logf("3 agents, leases of an hour: settled after %s; with another issuer, which ticks once a second, after %s",
		took.Round(time.Millisecond), both.Round(time.Millisecond))
}

// TestTwoRunsUnderOneName: one of two processes under one name is cut off: nothing is confirmed until
// its lease is over, and then it vouches for nothing.
func TestTwoRunsUnderOneName(t *testing.T) {
	t.Parallel()
	f := fleettest.Start(t)
	i := f.Issuer("issuer-1", nil)
	token := f.Token("bad")
	one := f.Agent("web-1", fleettest.AgentConfig{Length: 2 * time.Second}).Ready(token)
	two := f.Agent("web-1", fleettest.AgentConfig{Length: 2 * time.Second}).Ready(token)
	one.Proxy.Pause(bustest.Both)
	// A request that was under way is granted by a tick that comes now, not behind the revocation: a lease from behind it
	// would be none that can miss it.
	f.While(200*time.Millisecond, "nothing is revoked yet", func() bool { return two.Verify(token) == 200 })
	at := i.Revoke("bad")
	f.Eventually("the other one refuses", func() bool { return two.Verify(token) == 401 })
	vouched, settled := i.Watch(at, one, token)
	if got := one.Verify(token); got != 503 {
		t.Errorf("the one that is cut off answers %d after the receipt, want 503", got)
	}
	if rec := i.Receipt(at); len(rec.Fenced) != 1 || vouched == 0 {
		t.Errorf("got the receipt %+v, and it vouched for %s; want it fenced", rec, vouched)
	}
	t.Logf("one of two runs cut off: vouched for %s, settled after %s, vouched 0 times then", vouched, settled)
}

// TestRemovedAgent: a removed agent is pending while its lease lasts, gets no other, and is not heard.
func TestRemovedAgent(t *testing.T) {
	t.Parallel()
	f := fleettest.Start(t)
	i := f.Issuer("issuer-1", nil)
	token := f.Token("bad")
	a := f.Agent("web-1", fleettest.AgentConfig{Length: 2 * time.Second}).Ready(token)
	f.Remove("web-1")
	a.Proxy.Pause(bustest.Both)
	at := i.Revoke("bad")
	f.Eventually("there is a receipt", func() bool { return i.Receipt(at) != nil })
	if rec := i.Receipt(at); len(rec.Pending) != 1 || a.Verify(token) != 200 {
		t.Errorf("got the receipt %+v while it answers %d, want it pending", rec, a.Verify(token))
	}
	i.Settle(at)
	if got := a.Verify(token); got != 503 {
		t.Errorf("after the receipt it answers %d, want 503", got)
	}
	a.Proxy.Resume()
	f.Eventually("it has the revocation", func() bool { return a.Seq() >= at.Seq })
	f.While(time.Second, "a removed agent vouches for nothing", func() bool { return a.Verify(f.Token("good")) == 503 })
}

// TestDelays: a bus that delays everything by three leases cannot make a receipt settle early; one that
// delays by less than a lease costs that, and nothing else.
func TestDelays(t *testing.T) {
	t.Parallel()
	f := fleettest.Start(t)
	i := f.Issuer("issuer-1", nil)
	length, delay := time.Second, 3*time.Second
	if long {
		length, delay = 12*time.Second, time.Minute
	}
	bad, good := f.Token("bad"), f.Token("good")
	slow := f.Agent("slow", fleettest.AgentConfig{Length: length}).Ready(bad)
	late := f.Agent("late", fleettest.AgentConfig{Length: length}).Ready(bad)
	late.Proxy.Delay(bustest.Both, 100*time.Millisecond)
	slow.Proxy.Delay(bustest.Both, delay)
	at := i.Revoke("bad")
	last, settled := i.Watch(at, slow, bad)
	if got := late.Verify(bad); got == 200 {
		t.Error("the one that is a little late vouches after the receipt")
	}
	f.Eventually("the one that is a little late vouches for others", func() bool { return late.Verify(good) == 200 })
	if last == 0 || last > length || settled > length+length/50+time.Second {
		t.Errorf("revoked at 0, last vouched at %s, settled at %s; want it fenced when its lease of %s is over", last, settled, length)
	}
	t.Logf("leases of %s, everything delayed by %s: last vouched %s after the revocation, settled after %s, vouched 0 times then", length, delay, last, settled)
}
