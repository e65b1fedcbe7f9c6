package issuer_test

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

// lasting is a Waiting that lasts so long.
func lasting(d time.Duration) issuer.Waiting { return issuer.Waiting{For: &d} }

func TestStandby(t *testing.T) {
	ti := start(t, newBus())
	next := standby(t, ti)
	if jwks := string(ti.replica.Snapshot().Ring.JWKS()); !strings.Contains(jwks, next) {
		t.Errorf("JWKS: got %s, want the key that stands by in it", jwks)
	}
	st, err := ti.Rotate(t.Context(), issuer.Rotation{Waiting: lasting(0)})
	if err != nil || !st.Done || st.KeyID != next || st.State != keyring.Active {
		t.Fatalf("Rotate without waiting: got %+v, %v, want %q active at once", st, err, next)
	}
	ti.steps(t)
	if got := standby(t, ti); got == next {
		t.Errorf("the key that stands by: got %q, which is active", got)
	}
	if keys, _ := ti.ListKeys(t.Context()); len(keys) != 3 {
		t.Errorf("ListKeys: got %v, want one active, one superseded and one that stands by", keys)
	}
}

// TestStandbyFollowsTheRing: a ring of another algorithm has a standby of that, and the one of the
// algorithm before ends without ever having signed.
func TestStandbyFollowsTheRing(t *testing.T) {
	ti := start(t, newBus())
	before := standby(t, ti)
	if st, err := ti.Rotate(t.Context(), issuer.Rotation{Alg: keyring.ES256}); err != nil || !st.Done || st.Alg != keyring.ES256 {
		t.Fatalf("Rotate(ES256): got %+v, %v, want it active", st, err)
	}
	ti.steps(t)
	if k, err := ti.Key(t.Context(), standby(t, ti)); err != nil || k.Alg != keyring.ES256 {
		t.Errorf("the key that stands by: got %+v, %v, want one for ES256", k, err)
	}
	if got := state(t, ti, before); got != keyring.Retired {
		t.Errorf("the key that stood by before: got %s, want retired", got)
	}
	if err := verify(ti.replica, login(t, ti).Access); err != nil {
		t.Errorf("verify: %v", err)
	}
	// A smaller or larger key than keys.bits is for once, and what stands by is as configured.
	if st, err := ti.Rotate(t.Context(), issuer.Rotation{Alg: keyring.RS256, Bits: 3072}); err != nil || !st.Done || st.Bits != 3072 {
		t.Fatalf("Rotate(RS256, 3072): got %+v, %v, want it active", st, err)
	}
}

// TestRotateWaitsAsLongAsAsked: to the moment when the last agent has acknowledged, and not longer.
func TestRotateWaitsAsLongAsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		ti := start(t, b)
		ti.run(t)
		b.fleet.Join("web-1", nil)
		began := time.Now()
		st, err := ti.Rotate(t.Context(), issuer.Rotation{Waiting: lasting(30 * time.Second)})
		if err != nil || st.Done || time.Since(began) != 30*time.Second || !slices.Equal(st.Pending, []string{"web-1"}) {
			t.Fatalf("Rotate within 30s: got %+v, %v after %s, want web-1 pending after 30s", st, err, time.Since(began))
		}
		began = time.Now()
		go func() {
			for range 2 { // the announcement, then the activation
				time.Sleep(20 * time.Second)
				b.fleet.Acknowledge("web-1", ti.position())
			}
		}()
		w := lasting(50 * time.Second)
		w.Fleet = true
		st, err = ti.Rotate(t.Context(), issuer.Rotation{Waiting: w})
		if err != nil || !st.Done || !st.Confirmed || st.State != keyring.Active || time.Since(began).Round(time.Second) != 40*time.Second {
			t.Errorf("Rotate, acknowledged after 20s and 40s: got %+v, %v after %s, want it active and confirmed after 40s", st, err, time.Since(began))
		}
	})
}

func TestForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		ti := start(t, b, func(c *issuer.Config, _ *issuer.Parts) { c.PublishAhead = time.Hour })
		b.fleet.Join("web-1", nil)
		b.fleet.Join("web-2", nil)
		b.fleet.Acknowledge("web-1", ti.position())
		w := lasting(2 * time.Second)
		w.Force = true
		st, err := ti.Rotate(t.Context(), issuer.Rotation{Waiting: w})
		if err != nil || !st.Done || st.State != keyring.Active {
			t.Fatalf("Rotate with force: got %+v, %v, want it active", st, err)
		}
		for _, want := range []string{"web-2 may answer new tokens 401 unknown_key", "JWKS"} {
			if !strings.Contains(st.Risk, want) || !strings.Contains(ti.logged.String(), want) {
				t.Errorf("the risk: got %q, want %q in it and in the audit", st.Risk, want)
			}
		}
		if strings.Contains(st.Risk, "web-1") || !slices.Contains(st.Pending, "web-2") {
			t.Errorf("the risk: got %q and pending %v, want only web-2 in it", st.Risk, st.Pending)
		}
		if kid := part(t, login(t, ti).Access, 0)["kid"]; kid != st.KeyID {
			t.Errorf("kid of a new token: got %v, want %q", kid, st.KeyID)
		}
	})
}

// TestTakeover: what was asked of one issuer, which is gone, another finishes, and not before the
// agents have acknowledged.
func TestTakeover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		one, two := start(t, b), newIssuer(t, b)
		b.fleet.Join("web-1", nil)
		st, err := one.Rotate(t.Context(), issuer.Rotation{Waiting: lasting(time.Second)})
		if err != nil || st.Done {
			t.Fatalf("Rotate: got %+v, %v, want it to wait for web-1", st, err)
		}
		catchUp(t, []*testIssuer{one, two})
		time.Sleep(time.Hour)
		two.steps(t)
		if got := state(t, two, st.KeyID); got != keyring.Announced {
			t.Errorf("the key at the other issuer: got %s, want announced still", got)
		}
		b.fleet.Acknowledge("web-1", two.position())
		two.steps(t)
		if got := checkRing(t, two); got != st.KeyID {
			t.Errorf("active key once acknowledged: got %q, want %q", got, st.KeyID)
		}
		catchUp(t, []*testIssuer{one, two})
		if kid := part(t, login(t, one).Access, 0)["kid"]; kid != st.KeyID {
			t.Errorf("kid of the first issuer's next token: got %v, want %q", kid, st.KeyID)
		}
	})
}

// journal reads the log beside the issuers; what it returns gives all that ti has read.
func journal(t *testing.T, b *testBus, ti *testIssuer) func() []bus.Entry {
	t.Helper()
	var mu sync.Mutex
	var all []bus.Entry
	r := replica.New(replica.Config{Journal: func(entries []bus.Entry) error {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, entries...)
		return nil
	}})
	follow(t, r, b.log)
	return func() []bus.Entry {
		if err := r.Wait(t.Context(), ti.position().Seq); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(all)
	}
}

func TestEmergency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		ti := start(t, b, func(c *issuer.Config, _ *issuer.Parts) { c.PublishAhead = time.Hour })
		entries := journal(t, b, ti)
		b.fleet.Join("web-1", nil)
		old, next := checkRing(t, ti), standby(t, ti)
		tokens := login(t, ti)

		st, err := ti.Rotate(t.Context(), issuer.Rotation{Emergency: true})
		if err != nil || st.Done || st.State != keyring.Announced || !slices.Equal(st.Pending, []string{"web-1"}) {
			t.Fatalf("emergency before the standby is known to web-1: got %+v, %v, want it to name web-1", st, err)
		}
		time.Sleep(time.Hour)
		ti.steps(t)
		if got := checkRing(t, ti); got != old {
			t.Fatalf("active key after an emergency that was not done: got %q, want %q", got, old)
		}
		if err := verify(ti.replica, tokens.Access); keyring.ReasonOf(err) == keyring.KeyRevoked {
			t.Fatalf("verify after an emergency that was not done: got %v", err)
		}

		b.fleet.Acknowledge("web-1", ti.position())
		fresh := login(t, ti)
		w := lasting(10 * time.Second)
		w.Fleet = true
		go func() {
			time.Sleep(3 * time.Second)
			b.fleet.Acknowledge("web-1", ti.position())
		}()
		began := time.Now()
		st, err = ti.Rotate(t.Context(), issuer.Rotation{Emergency: true, Waiting: w})
		if err != nil || !st.Done || !st.Confirmed || st.KeyID != next || st.State != keyring.Active || !slices.Equal(st.Revoked, []string{old}) || time.Since(began).Round(time.Second) != 3*time.Second {
			t.Fatalf("emergency: got %+v, %v after %s, want %q active and %q revoked, confirmed after 3s", st, err, time.Since(began), next, old)
		}
		for _, token := range []string{tokens.Access, fresh.Access} {
			refused(t, "verify(a token of the revoked key)", verify(ti.replica, token), keyring.KeyRevoked)
		}
		if err := verify(ti.replica, login(t, ti).Access); err != nil {
			t.Errorf("verify(a new token): got %v, want nil", err)
		}
		var order []string
		for _, en := range entries() {
			if f, ok := en.Fact.(*bus.KeyFact); ok && (f.KeyID == next && f.State == "active" || f.KeyID == old && f.State == "revoked") {
				order = append(order, f.State)
			}
		}
		if !slices.Equal(order, []string{"active", "revoked"}) {
			t.Errorf("entries: got %v, want the new key active before the old one is revoked", order)
		}
		if _, err := b.key.Get(t.Context(), bus.Name("ring", old)); !errors.Is(err, bus.ErrNotFound) {
			t.Errorf("the revoked key's private half: got %v, want it gone", err)
		}
	})
}

func TestEmergencyByForce(t *testing.T) {
	b := newBus()
	ti := start(t, b)
	b.fleet.Join("web-1", nil)
	old := checkRing(t, ti)
	tokens := login(t, ti)
	w := lasting(0)
	w.Force = true
	st, err := ti.Rotate(t.Context(), issuer.Rotation{Emergency: true, Waiting: w})
	if err != nil || !st.Done || !slices.Equal(st.Revoked, []string{old}) || !strings.Contains(st.Risk, "web-1 may answer") {
		t.Fatalf("emergency by force: got %+v, %v, want %q revoked and the risk named", st, err, old)
	}
	refused(t, "verify(a token of the revoked key)", verify(ti.replica, tokens.Access), keyring.KeyRevoked)
	if err := verify(ti.replica, login(t, ti).Access); err != nil {
		t.Errorf("verify(a new token): got %v, want nil", err)
	}
}

// TestRevokedStandbyIsReplaced: also a key that has never signed can be revoked, and another stands by.
func TestRevokedStandbyIsReplaced(t *testing.T) {
	ti := start(t, newBus())
	old, next := checkRing(t, ti), standby(t, ti)
	if st, err := ti.RevokeKey(t.Context(), next, issuer.Waiting{}); err != nil || !st.Done || st.State != keyring.Revoked {
		t.Fatalf("RevokeKey(the standby): got %+v, %v, want it revoked", st, err)
	}
	ti.steps(t)
	if got := standby(t, ti); got == next || checkRing(t, ti) != old {
		t.Errorf("after it: %q stands by and %q signs, want another and %q", got, checkRing(t, ti), old)
	}
}

func TestRevokeActiveKeyMakesAnotherFirst(t *testing.T) {
	b := newBus()
	ti := start(t, b, func(c *issuer.Config, _ *issuer.Parts) { c.PublishAhead = time.Hour })
	b.fleet.Join("web-1", nil) // it has acknowledged nothing, so not the key that stands by either
	old := checkRing(t, ti)
	tokens := login(t, ti)
	st, err := ti.RevokeKey(t.Context(), old, issuer.Waiting{})
	if err != nil || st.Done || st.State != keyring.Active || !slices.Equal(st.Pending, []string{"web-1"}) {
		t.Fatalf("RevokeKey with a silent agent: got %+v, %v, want nothing revoked and web-1 pending", st, err)
	}
	b.fleet.Acknowledge("web-1", ti.position())
	st, err = ti.RevokeKey(t.Context(), old, issuer.Waiting{})
	if err != nil || !st.Done || st.State != keyring.Revoked {
		t.Fatalf("RevokeKey: got %+v, %v, want it revoked", st, err)
	}
	refused(t, "verify(a token of the revoked key)", verify(ti.replica, tokens.Access), keyring.KeyRevoked)
	if got := checkRing(t, ti); got == old {
		t.Error("the revoked key is active still")
	}
	if err := verify(ti.replica, login(t, ti).Access); err != nil {
		t.Errorf("verify(a new token): got %v, want nil", err)
	}
	if _, err := b.key.Get(t.Context(), bus.Name("ring", old)); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("the revoked key's private half: got %v, want it gone", err)
	}
	if _, err := ti.RevokeKey(t.Context(), "unheard of", issuer.Waiting{}); !errors.Is(err, issuer.ErrNotFound) {
		t.Errorf("RevokeKey(unknown): got %v, want ErrNotFound", err)
	}
}
