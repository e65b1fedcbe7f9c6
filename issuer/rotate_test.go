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
		if keys, _ := ti.ListKeys(t.Context()); len(keys) != 2 {
			t.Errorf("ListKeys: got %v, want the active key and the one that stands by", keys)
		}
		checkRing(t, ti)
	}
	if n, _ := b.key.Count(t.Context(), bus.Under("ring")); n != 2 {
		t.Errorf("private keys: got %d, want 2", n)
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
		time.Sleep(30 * time.Minute) // a browser's session token lives longest
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
		if n, _ := b.key.Count(t.Context(), bus.Under("ring")); n != 2 {
			t.Errorf("private keys: got %d, want those of the active key and of the one that stands by", n)
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
		old, next := checkRing(t, ti), standby(t, ti)
		time.Sleep(24*time.Hour - time.Second)
		ti.steps(t)
		if got := checkRing(t, ti); got != old {
			t.Fatalf("active key before its time: got %q, want %q", got, old)
		}
		time.Sleep(time.Second)
		ti.steps(t)
		if got := checkRing(t, ti); got != next {
			t.Errorf("active key when a day has passed: got %q, want %q, which has been announced all the time", got, next)
		}
		// The next one has to be published for so long too, whatever the schedule.
		fresh := standby(t, ti)
		if st, err := ti.Rotate(t.Context(), issuer.Rotation{}); err != nil || st.Done || st.KeyID != fresh || time.Until(st.ActivatesAt) != 10*time.Minute {
			t.Errorf("Rotate at once after that: got %+v, %v, want %q to sign in 10 minutes", st, err, fresh)
		}
		time.Sleep(10*time.Minute - time.Second)
		ti.steps(t)
		if got := checkRing(t, ti); got != next {
			t.Errorf("active key before publish_ahead has passed: got %q, want %q", got, next)
		}
		time.Sleep(time.Second)
		ti.steps(t)
		if got := checkRing(t, ti); got != fresh {
			t.Errorf("active key after publish_ahead: got %q, want %q", got, fresh)
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
		time.Sleep(time.Second)
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
