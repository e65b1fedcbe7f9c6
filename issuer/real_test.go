package issuer_test

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

// TestOnTheEmbeddedServer goes through an issuer's life on the bus that is shipped: two issuers, an
// agent with no part in either, HS256.
func TestOnTheEmbeddedServer(t *testing.T) {
	b := newRealBus(t)
	key := sealingKey(t)
	b.fleet.Join("web-1", key.Public())
	b.fleet.Tell("web-1")
	issuers := []*testIssuer{newIssuer(t, b, hs256), newIssuer(t, b, hs256)}
	agent := replica.New(replica.Config{Open: replica.OpenSealed("web-1", key)})
	follow(t, agent, b.real.Reader(t))

	var wg sync.WaitGroup
	for _, ti := range issuers {
		wg.Go(func() {
			if err := ti.Step(context.Background()); err != nil {
				t.Errorf("Step: %v", err)
			}
		})
	}
	wg.Wait()
	for _, ti := range issuers {
		catchUp(t, issuers)
		ti.steps(t)
	}
	catchUp(t, issuers)
	if keys, _ := issuers[1].ListKeys(t.Context()); len(keys) != 2 {
		t.Fatalf("ListKeys: got %v, want the active key and the one that stands by", keys)
	}
	addAlice(t, issuers[0])
	began := login(t, issuers[1])
	seen := map[string]*replica.Replica{"web-1": agent}
	await(t, seen, issuers[1].position())
	if err := verify(agent, began.Access); err != nil {
		t.Errorf("verify by the agent: got %v, want nil", err)
	}

	var mu sync.Mutex
	var successors []string
	for n := range 8 {
		wg.Go(func() {
			tokens, err := issuers[n%2].Refresh(context.Background(), began.Refresh)
			if err != nil {
				t.Errorf("Refresh: %v", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			successors = append(successors, tokens.Refresh)
		})
	}
	wg.Wait()
	if slices.Sort(successors); len(slices.Compact(successors)) != 1 {
		t.Errorf("8 refreshes of one token: got %d successors, want 1", len(slices.Compact(successors)))
	}

	st, err := issuers[0].Rotate(t.Context(), issuer.Rotation{})
	if err != nil || st.Done || !slices.Equal(st.Pending, []string{"web-1"}) {
		t.Fatalf("Rotate: got %+v, %v, want it to wait for web-1", st, err)
	}
	await(t, seen, issuers[0].position())
	b.fleet.Acknowledge("web-1", agent.Snapshot().Position)
	if st, err = issuers[0].Rotate(t.Context(), issuer.Rotation{}); err != nil || !st.Done {
		t.Fatalf("Rotate once acknowledged: got %+v, %v, want done", st, err)
	}
	receipt, err := issuers[0].Revoke(t.Context(), issuer.Target{SessionID: began.SessionID})
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.Wait(t.Context(), receipt.Seq); err != nil {
		t.Fatal(err)
	}
	refused(t, "verify by the agent", verify(agent, began.Access), keyring.Revoked)
	catchUp(t, issuers)
	if err := verify(issuers[1].replica, login(t, issuers[1]).Access); err != nil {
		t.Errorf("verify(a login after the rotation): got %v, want nil", err)
	}
	sessions, err := issuers[1].ListSessions(t.Context(), "")
	if err != nil || len(sessions) != 2 {
		t.Errorf("ListSessions: got %v, %v, want two", sessions, err)
	}
	for _, ti := range issuers {
		if err := ti.Sweep(t.Context()); err != nil {
			t.Errorf("Sweep: %v", err)
		}
	}
}
