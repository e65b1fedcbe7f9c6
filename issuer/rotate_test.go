package issuer_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

func TestFirstStartMakesOneKey(t *testing.T) {
	b := newBus()
	issuers := []*testIssuer{newIssuer(t, b), newIssuer(t, b), newIssuer(t, b)}
	var wg sync.WaitGroup
	for _, ti := range issuers {
		wg.Go(func() {
			for range 5 {
				if err := ti.Step(context.Background()); err != nil {
					t.Errorf("Step: %v", err)
				}
			}
		})
	}
	wg.Wait()
	for _, ti := range issuers {
		catchUp(t, issuers)
		ti.steps(t)
	}
	catchUp(t, issuers)
	for _, ti := range issuers {
		if keys, _ := ti.ListKeys(t.Context()); len(keys) != 1 {
			t.Errorf("ListKeys: got %v, want one key", keys)
		}
		checkRing(t, ti)
	}
	if n, _ := b.key.Count(t.Context(), bus.Filter("ring", bus.Any)); n != 1 {
		t.Errorf("private keys: got %d, want 1", n)
	}
}

// catchUp waits until every issuer has read what any of them has.
func catchUp(t *testing.T, issuers []*testIssuer) {
	t.Helper()
	var head uint64
	for _, ti := range issuers {
		head = max(head, ti.position().Seq)
	}
	for _, ti := range issuers {
		if err := ti.replica.Wait(t.Context(), head); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRotationWaitsForEveryAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		ti := start(t, b)
		b.fleet.Join("web-1", nil)
		b.fleet.Join("web-2", nil)
		old := checkRing(t, ti)
		before := login(t, ti)

		st, err := ti.Rotate(t.Context(), issuer.Rotation{})
		if err != nil || st.Done || st.State != keyring.Announced || !slices.Equal(st.Pending, []string{"web-1", "web-2"}) {
			t.Fatalf("Rotate with two silent agents: got %+v, %v, want announced and both pending", st, err)
		}
		b.fleet.Acknowledge("web-1", ti.position())
		time.Sleep(24 * time.Hour) // no timer makes it sign
		ti.steps(t)
		again, err := ti.Rotate(t.Context(), issuer.Rotation{})
		if err != nil || again.KeyID != st.KeyID || !slices.Equal(again.Pending, []string{"web-2"}) {
			t.Fatalf("Rotate again: got %+v, %v, want the same key, waiting for web-2", again, err)
		}
		if got := checkRing(t, ti); got != old {
			t.Fatalf("active key: got %q, want %q still", got, old)
		}
		if jwks := string(ti.replica.Snapshot().Ring.JWKS()); !strings.Contains(jwks, st.KeyID) {
			t.Errorf("JWKS: got %s, want the announced key in it", jwks)
		}

		b.fleet.Acknowledge("web-2", ti.position())
		done, err := ti.Rotate(t.Context(), issuer.Rotation{})
		if err != nil || !done.Done || done.State != keyring.Active || done.KeyID != st.KeyID {
			t.Fatalf("Rotate once all have acknowledged: got %+v, %v, want %q active", done, err, st.KeyID)
		}
		if kid := part(t, login(t, ti).Access, 0)["kid"]; kid != st.KeyID {
			t.Errorf("kid of a new token: got %v, want %q", kid, st.KeyID)
		}
		_ = before
	})
}

func TestRetirement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		ti := start(t, b)
		old := checkRing(t, ti)
		if st, err := ti.Rotate(t.Context(), issuer.Rotation{}); err != nil || !st.Done {
			t.Fatalf("Rotate: got %+v, %v, want done", st, err)
		}
		last := login(t, ti)
		ti.steps(t)
		if rec, _ := ti.replica.Snapshot().Ring.Record(old); rec.State != keyring.Active {
			t.Errorf("the old key at once: got %s, want no retirement before 5 s (PROTOCOL 17)", rec.State)
		}
		time.Sleep(5 * time.Second)
		ti.steps(t)
		rec, _ := ti.replica.Snapshot().Ring.Record(old)
		if rec.State != keyring.Retiring || !rec.RetiredAt.Equal(time.Unix(time.Now().Add(30*time.Second).Unix(), 0)) {
			t.Errorf("the old key after 5 s: got %s at %s, want retiring, with 30 s for the clocks", rec.State, rec.RetiredAt)
		}
		time.Sleep(15 * time.Minute)
		ti.steps(t)
		if got := state(t, ti, old); got != keyring.Retiring {
			t.Errorf("the old key while its tokens may live: got %s, want retiring", got)
		}
		time.Sleep(2 * time.Minute)
		ti.steps(t)
		if got := state(t, ti, old); got != keyring.Retired {
			t.Errorf("the old key when all its tokens have ended: got %s, want retired", got)
		}
		if err := ti.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n, _ := b.key.Count(t.Context(), bus.Filter("ring", bus.Any)); n != 1 {
			t.Errorf("private keys: got %d, want that of the active key only", n)
		}
		time.Sleep(2 * time.Hour) // the record is pruned; rotations go on
		if _, err := b.log.Tick(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if st, err := ti.Rotate(t.Context(), issuer.Rotation{}); err != nil || !st.Done {
			t.Errorf("Rotate after the old key was pruned: got %+v, %v, want done", st, err)
		}
		refresh(t, ti, last.Refresh)
	})
}

func TestScheduledRotationIsPublishedAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ti := start(t, newBus(), func(c *issuer.Config, _ *issuer.Parts) {
			c.RotateEvery, c.PublishAhead = 24*time.Hour, 10*time.Minute
		})
		old := checkRing(t, ti)
		time.Sleep(24*time.Hour - 10*time.Minute - time.Second)
		ti.steps(t)
		if keys, _ := ti.ListKeys(t.Context()); len(keys) != 1 {
			t.Fatalf("ListKeys before its time: got %v, want one key", keys)
		}
		time.Sleep(time.Second)
		ti.steps(t)
		time.Sleep(10*time.Minute - time.Second)
		ti.steps(t)
		if got := checkRing(t, ti); got != old {
			t.Errorf("active key before publish_ahead has passed: got %q, want %q", got, old)
		}
		time.Sleep(time.Second)
		ti.steps(t)
		if got := checkRing(t, ti); got == old {
			t.Errorf("active key after publish_ahead: got %q, want a new one", got)
		}
	})
}

func TestRunRotatesByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		every := func(c *issuer.Config, _ *issuer.Parts) { c.RotateEvery = time.Hour }
		one, two := newIssuer(t, b, every), newIssuer(t, b, every)
		one.run(t)
		two.run(t)
		synctest.Wait()
		first := checkRing(t, one)
		time.Sleep(time.Hour + 10*time.Second)
		synctest.Wait()
		if got := checkRing(t, one); got == first || got != checkRing(t, two) {
			t.Errorf("active key an hour later: got %q, want a new one, the same for both", got)
		}
		if got := state(t, two, first); got != keyring.Retiring {
			t.Errorf("the first key: got %s, want retiring", got)
		}
	})
}

func TestConcurrentRotationsEndWithOneActiveKey(t *testing.T) {
	b := newBus()
	issuers := []*testIssuer{start(t, b), newIssuer(t, b), newIssuer(t, b)}
	var wg sync.WaitGroup
	for n := range 12 {
		wg.Go(func() {
			if _, err := issuers[n%3].Rotate(context.Background(), issuer.Rotation{}); err != nil {
				t.Errorf("Rotate: %v", err)
			}
		})
	}
	wg.Wait()
	for _, ti := range issuers {
		catchUp(t, issuers)
		ti.steps(t)
	}
	catchUp(t, issuers)
	var active []string
	for _, ti := range issuers {
		active = append(active, checkRing(t, ti))
	}
	if len(slices.Compact(active)) != 1 {
		t.Errorf("active keys: got %v, want one for all", active)
	}
}

func TestRotateAlg(t *testing.T) {
	b := newBus()
	ti := start(t, b)
	b.fleet.Join("web-1", nil)
	if _, err := ti.Rotate(t.Context(), issuer.Rotation{Alg: "none"}); !isInput(err) {
		t.Errorf("Rotate(none): got %v, want an InputError", err)
	}
	if _, err := ti.Rotate(t.Context(), issuer.Rotation{Alg: keyring.RS256, Bits: 1024}); !isInput(err) {
		t.Errorf("Rotate(RS256, 1024): got %v, want an InputError", err)
	}
	st, err := ti.Rotate(t.Context(), issuer.Rotation{Alg: keyring.ES256})
	if err != nil || st.Done || st.Alg != keyring.ES256 {
		t.Fatalf("Rotate(ES256): got %+v, %v, want it announced", st, err)
	}
	if _, err := ti.Rotate(t.Context(), issuer.Rotation{Alg: keyring.EdDSA}); !errors.Is(err, issuer.ErrExists) {
		t.Errorf("Rotate(EdDSA) while ES256 is announced: got %v, want ErrExists", err)
	}
}

func isInput(err error) bool {
	var input *issuer.InputError
	return errors.As(err, &input)
}

func TestRevokeActiveKeyMakesAnotherFirst(t *testing.T) {
	b := newBus()
	ti := start(t, b, func(c *issuer.Config, _ *issuer.Parts) { c.PublishAhead = time.Hour })
	b.fleet.Join("web-1", nil)
	old := checkRing(t, ti)
	tokens := login(t, ti)
	st, err := ti.RevokeKey(t.Context(), old)
	if err != nil || st.Done || st.State != keyring.Active || !slices.Equal(st.Pending, []string{"web-1"}) {
		t.Fatalf("RevokeKey with a silent agent: got %+v, %v, want nothing revoked and web-1 pending", st, err)
	}
	b.fleet.Acknowledge("web-1", ti.position())
	st, err = ti.RevokeKey(t.Context(), old)
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
	if _, err := ti.RevokeKey(t.Context(), "unheard of"); !errors.Is(err, issuer.ErrNotFound) {
		t.Errorf("RevokeKey(unknown): got %v, want ErrNotFound", err)
	}
}

func TestRotationFaults(t *testing.T) {
	for name, fault := range map[string]bustest.Failure{
		"not stored":                        {Err: errLost},
		"stored though the answer was lost": {Err: errLost, Stored: true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBus()
			ti := start(t, b)
			old := checkRing(t, ti)
			b.log.Fail(fault)
			if _, err := ti.Rotate(t.Context(), issuer.Rotation{}); !errors.Is(err, issuer.ErrUnavailable) {
				t.Errorf("Rotate: got %v, want ErrUnavailable", err)
			}
			st, err := ti.Rotate(t.Context(), issuer.Rotation{})
			if err != nil || !st.Done {
				t.Fatalf("Rotate again: got %+v, %v, want done", st, err)
			}
			ti.steps(t)
			if got := checkRing(t, ti); got != st.KeyID || got == old {
				t.Errorf("active key: got %q, want %q", got, st.KeyID)
			}
			login(t, ti)
		})
	}
}

func TestHS256SecretReachesOnlyRegisteredAgents(t *testing.T) {
	b := newBus()
	early, late := sealingKey(t), sealingKey(t)
	b.fleet.Join("early", early.Public())
	ti := newIssuer(t, b, hs256)
	ti.steps(t)
	addAlice(t, ti)
	tokens := login(t, ti)
	agents := map[string]*replica.Replica{
		"early": newAgent(t, b, "early", early), "late": newAgent(t, b, "late", late),
	}
	b.fleet.Acknowledge("early", ti.position())
	await(t, agents, ti.position())
	if err := verify(agents["early"], tokens.Access); err != nil {
		t.Errorf("verify by the agent that was there: got %v, want nil", err)
	}
	refused(t, "verify by an agent without a box", verify(agents["late"], tokens.Access), keyring.UnknownKey)

	reg := bus.Member{Name: "late", SealingKey: late.Public()}
	b.fleet.Join("late", late.Public())
	for range 2 { // the second time there is nothing to do
		if err := ti.Register(t.Context(), reg); err != nil {
			t.Fatal(err)
		}
	}
	seq := ti.position().Seq
	if err := ti.Register(t.Context(), reg); err != nil || ti.position().Seq != seq {
		t.Errorf("Register again: got %v and entry %d, want nothing new behind %d", err, ti.position().Seq, seq)
	}
	await(t, agents, ti.position())
	for name, r := range agents {
		if err := verify(r, tokens.Access); err != nil {
			t.Errorf("verify by %s: got %v, want nil", name, err)
		}
		b.fleet.Acknowledge(name, ti.position())
	}
	ring := agents["late"].Snapshot().Ring
	if rec, ok := ring.Active(); !ok || strings.Contains(string(ring.JWKS()), rec.KeyID) {
		t.Errorf("JWKS: got %s, want no symmetric key", ring.JWKS())
	}
	for _, f := range ti.replica.Keys() {
		if f.JWK != nil {
			t.Errorf("key entry: got a JWK for %s, want none for HS256", f.KeyID)
		}
	}

	st, err := ti.Rotate(t.Context(), issuer.Rotation{})
	if err != nil {
		t.Fatal(err)
	}
	for name := range agents {
		b.fleet.Acknowledge(name, bus.Position{Epoch: ti.position().Epoch, Seq: st.Seq})
	}
	ti.steps(t)
	tokens = login(t, ti)
	await(t, agents, ti.position())
	for name, r := range agents {
		if err := verify(r, tokens.Access); err != nil {
			t.Errorf("verify by %s after the rotation: got %v, want nil", name, err)
		}
	}
}

func sealingKey(t *testing.T) *keyring.SealingKey {
	t.Helper()
	k, err := keyring.GenerateSealingKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newAgent(t *testing.T, b *testBus, name string, k *keyring.SealingKey) *replica.Replica {
	t.Helper()
	r := replica.New(replica.Config{Open: replica.OpenSealed(name, k)})
	follow(t, r, b.log)
	return r
}

func await(t *testing.T, agents map[string]*replica.Replica, pos bus.Position) {
	t.Helper()
	for _, r := range agents {
		if err := r.Wait(t.Context(), pos.Seq); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRemoveAgent(t *testing.T) {
	b := newBus()
	ti := start(t, b)
	b.fleet.Join("gone", nil)
	if st, err := ti.Rotate(t.Context(), issuer.Rotation{}); err != nil || st.Done {
		t.Fatalf("Rotate: got %+v, %v, want it to wait for the agent", st, err)
	}
	if err := ti.RemoveAgent(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	if st, err := ti.Rotate(t.Context(), issuer.Rotation{}); err != nil || !st.Done {
		t.Errorf("Rotate without it: got %+v, %v, want done", st, err)
	}
	if err := ti.RemoveAgent(t.Context(), "gone"); !errors.Is(err, issuer.ErrNotFound) {
		t.Errorf("RemoveAgent again: got %v, want ErrNotFound", err)
	}
}
