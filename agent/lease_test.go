package agent_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// at makes the clock by which leases end stand so long after a lease that began at zero.
func (w *world) at(d time.Duration) {
	w.clock = func() lease.Reading { return lease.Reading{Mono: d, Boot: d, Wall: d} }
}

// TestLeaseEdge: to the nanosecond before its end a lease vouches, at its end it does not.
func TestLeaseEdge(t *testing.T) {
	w := newWorld(t)
	token := w.token()
	w.lease.Store(&lease.Lease{Length: time.Minute})
	for d, want := range map[time.Duration]int{0: 200, time.Minute - 1: 200, time.Minute: 503, time.Hour: 503} {
		w.at(d)
		if v := w.agent.Verify(token, agent.Query{}); v.Status != want {
			t.Errorf("Verify %s into a lease of a minute: got %d %s, want %d", d, v.Status, v.Reason, want)
		}
	}
	w.lease.Store(nil)
	if v := w.agent.Verify(token, agent.Query{}); v.Status != 503 || v.Reason != agent.Stale {
		t.Errorf("Verify without a lease: got %d %s, want 503 stale", v.Status, v.Reason)
	}
}

// TestLeaseByTheWorstClock: the lease ends by whichever clock says so first.
func TestLeaseByTheWorstClock(t *testing.T) {
	w := newWorld(t)
	token := w.token()
	w.lease.Store(&lease.Lease{Length: time.Minute})
	for name, c := range map[string]struct {
		now  lease.Reading
		want int
	}{
		"in time":            {lease.Reading{Mono: 1, Boot: 1, Wall: 1}, 200},
		"suspended":          {lease.Reading{Mono: 1, Boot: 2 * time.Minute, Wall: 1}, 503},
		"wall clock forward": {lease.Reading{Mono: 1, Boot: 1, Wall: time.Hour}, 503},
		"wall clock back":    {lease.Reading{Mono: 59 * time.Second, Boot: 59 * time.Second, Wall: -time.Hour}, 200},
		"back, and over":     {lease.Reading{Mono: time.Minute, Boot: time.Minute, Wall: -time.Hour}, 503},
	} {
		w.clock = func() lease.Reading { return c.now }
		if v := w.agent.Verify(token, agent.Query{}); v.Status != c.want {
			t.Errorf("%s: got %d, want %d", name, v.Status, c.want)
		}
	}
}

// TestLeaseRenewedDuringCheck: a lease that comes into force while a check is under way does not
// vouch for what that check has read: it may cover an entry that the check did not see (PROTOCOL 2).
func TestLeaseRenewedDuringCheck(t *testing.T) {
	w := newWorld(t)
	token := w.token()
	w.lease.Store(&lease.Lease{Length: time.Minute})
	w.clock = func() lease.Reading {
		w.lease.Store(&lease.Lease{Begin: lease.Reading{Boot: time.Minute, Wall: time.Minute}, Length: time.Minute})
		return lease.Reading{Mono: time.Minute, Boot: time.Minute, Wall: time.Minute}
	}
	if v := w.agent.Verify(token, agent.Query{}); v.Status != 503 || v.Reason != agent.Stale {
		t.Errorf("a check over whose course the lease was replaced: got %d %s, want 503 stale", v.Status, v.Reason)
	}
	if v := w.agent.Verify(token, agent.Query{}); v.Status != 200 {
		t.Errorf("the next check: got %d, want 200", v.Status)
	}
}

// pausing is a replica on which a check pauses just before it asks for revocations.
type pausing struct {
	*replica.Replica
	between func()
}

func (p *pausing) Revoked(ids *replica.IDs) bool {
	r := p.Replica.Revoked(ids)
	p.between()
	return r
}

// TestStoppedDuringCheck: a process that is stopped in the middle of a check, and goes on after its
// lease has ended, answers 503, not the 200 that it had in mind.
func TestStoppedDuringCheck(t *testing.T) {
	w := newWorld(t)
	p := &pausing{Replica: w.rep, between: func() {}}
	w.build(p)
	token := w.token()
	w.lease.Store(&lease.Lease{Length: time.Minute})
	w.at(0)
	p.between = func() {
		w.apply(&bus.Revocation{ID: idOf(t, token), ExpiresAt: 1 << 40})
		w.at(time.Minute)
	}
	if v := w.agent.Verify(token, agent.Query{}); v.Status != 503 {
		t.Errorf("got %d %s, want 503", v.Status, v.Reason)
	}
}

func idOf(t *testing.T, token string) string {
	t.Helper()
	tok, err := keyringtest.Ring(t, keyringtest.Issuer, keyringtest.Audience, keyringtest.RSA(t)).Prove(token, keyring.AccessToken)
	if err != nil {
		t.Fatal(err)
	}
	return tok.Claims.ID
}

// TestStaleOnEveryFace: without a lease every face that vouches answers 503 with Retry-After, an
// unknown key included; those that do not vouch always answer.
func TestStaleOnEveryFace(t *testing.T) {
	w := newWorld(t)
	token := w.token()
	foreign := w.tokenOf(keyringtest.EC(t), keyring.AccessToken)
	w.lease.Store(nil)
	h := w.listen("tcp")
	for _, tok := range []string{token, foreign} {
		body, _ := json.Marshal(map[string]string{"token": tok})
		for path, header := range map[string]string{
			"/v1/verify": "Content-Type: application/json", "/oauth2/introspect": "Content-Type: application/json",
			"/api/token/verify/": "Content-Type: application/json",
		} {
			got := h.do("POST", path, string(body), header)
			if got.StatusCode != 503 || got.Header.Get("Retry-After") == "" {
				t.Errorf("POST %s: got %d with Retry-After %q, want 503 with one", path, got.StatusCode, got.Header.Get("Retry-After"))
			}
		}
	}
	batch := h.do("POST", "/v1/verify/batch", `{"tokens":["`+token+`"]}`, "Content-Type: application/json")
	if batch.StatusCode != 200 || !strings.Contains(batch.body, `"status":503`) || batch.Header.Get("Retry-After") == "" {
		t.Errorf("batch: got %d %s, want a result of 503, and Retry-After", batch.StatusCode, batch.body)
	}
	for path, want := range map[string]int{"/readyz": 503, "/healthz": 200, "/v1/status": 200, "/.well-known/jwks.json": 200, "/metrics": 200} {
		if got := h.do("GET", path, ""); got.StatusCode != want {
			t.Errorf("GET %s: got %d, want %d", path, got.StatusCode, want)
		}
	}
}

// TestServe: on_stale = "serve" goes on without a lease, and says so everywhere.
func TestServe(t *testing.T) {
	w := newWorld(t)
	w.lease.Store(&lease.Lease{Length: time.Minute, Mode: lease.Serve})
	w.at(time.Second)
	h := w.listen("tcp")
	token := w.token()
	if got := h.verify(token); got.StatusCode != 200 || got.Header.Get("Sidekey-Stale") != "" {
		t.Errorf("with a lease: got %d, Sidekey-Stale %q", got.StatusCode, got.Header.Get("Sidekey-Stale"))
	}
	w.at(time.Hour)
	if got := h.verify(token); got.StatusCode != 200 || got.Header.Get("Sidekey-Stale") != "true" {
		t.Errorf("without one: got %d, Sidekey-Stale %q, want 200 and true", got.StatusCode, got.Header.Get("Sidekey-Stale"))
	}
	if s := w.agent.Status(); !s.Stale || !s.Serving || s.Lease != 0 {
		t.Errorf("status: got stale %v, serving %v, lease %d", s.Stale, s.Serving, s.Lease)
	}
	if !strings.Contains(h.do("GET", "/metrics", "").body, "sidekey_agent_serving_stale 1") {
		t.Error("metrics do not say that it serves without a lease")
	}
}

// TestMaxStaleness: a caller may ask for fresher knowledge than the lease proves.
func TestMaxStaleness(t *testing.T) {
	w := newWorld(t)
	w.lease.Store(&lease.Lease{Length: time.Minute})
	w.at(2 * time.Second)
	h := w.listen("tcp")
	token := w.token()
	for ask, want := range map[string]int{`"2s"`: 200, `"1999ms"`: 503, `"1h"`: 200, `"0s"`: 400, `"soon"`: 400, `2`: 400} {
		got := h.do("POST", "/v1/verify", `{"token":"`+token+`","max_staleness":`+ask+`}`, "Content-Type: application/json")
		if got.StatusCode != want {
			t.Errorf("max_staleness %s, 2s into the lease: got %d %s, want %d", ask, got.StatusCode, got.body, want)
		}
	}
	if n := w.hurried.Load(); n != 1 {
		t.Errorf("a fresher lease was asked for %d times, want 1", n)
	}
}

// TestNeedsLeases: an agent cannot be built without leases.
func TestNeedsLeases(t *testing.T) {
	if _, err := agent.New(agent.Config{}, agent.Parts{Replica: newWorld(t).rep}); err == nil || !strings.Contains(err.Error(), "lease") {
		t.Errorf("New without leases: got %v", err)
	}
}

// TestAppliedDuringCheck: an entry that is applied while a check is under way, and may be acknowledged
// before its answer leaves, is seen by that check.
func TestAppliedDuringCheck(t *testing.T) {
	w := newWorld(t)
	p := &pausing{Replica: w.rep, between: func() {}}
	w.build(p)
	token := w.token()
	var once bool
	p.between = func() {
		if !once {
			once = true
			w.apply(&bus.Revocation{ID: idOf(t, token), ExpiresAt: 1 << 40})
		}
	}
	if v := w.agent.Verify(token, agent.Query{}); v.Status != 401 || v.Reason != keyring.Revoked {
		t.Errorf("got %d %s, want 401 revoked", v.Status, v.Reason)
	}
	// A log that never stands still: the check gives up, and vouches for nobody.
	other := w.token()
	p.between = func() { w.apply(&bus.Revocation{ID: "another", ExpiresAt: 1 << 40}) }
	if v := w.agent.Verify(other, agent.Query{}); v.Status != 503 {
		t.Errorf("while the log runs: got %d %s, want 503", v.Status, v.Reason)
	}
}
