package replica_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// secretFact is an HS256 key's entry for an audience, sealed to these keys under the name web-1.
func secretFact(t testing.TB, kid, audience string, to ...*keyring.SealingKey) *bus.KeyFact {
	t.Helper()
	f := &bus.KeyFact{KeyID: kid, Alg: "HS256", State: "announced", Issuer: "https://issuer", Audience: audience, Default: "https://api"}
	for _, k := range to {
		box, err := replica.Seal(keyringtest.Secret(t).WithID(kid), "web-1", k.Public())
		if err != nil {
			t.Fatal(err)
		}
		f.Sealed = append(f.Sealed, box)
	}
	return f
}

func sealing(t testing.TB) *keyring.SealingKey {
	t.Helper()
	k, err := keyring.GenerateSealingKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// serving is the replica of the agent web-1.
func serving(k *keyring.SealingKey, audiences ...string) *replica.Replica {
	return replica.New(replica.Config{Open: replica.OpenSealed("web-1", k), Needs: replica.Serving("web-1", audiences)})
}

// TestLacking: while an agent cannot open a key of its audience, it neither acknowledges (its Cursor
// stays) nor shows what it has read, but for revocations; a late box, or the end of that key, resolves
// it (PROTOCOL 19).
func TestLacking(t *testing.T) {
	for name, mend := range map[string]func(k *keyring.SealingKey) bus.Fact{
		"by its box": func(k *keyring.SealingKey) bus.Fact { return secretFact(t, "s", "https://api", k) },
		"by the key's revocation": func(*keyring.SealingKey) bus.Fact {
			f := secretFact(t, "s", "https://api")
			f.State, f.ExpiresAt = "revoked", time.Now().Add(time.Hour).Unix()
			return f
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, k := bustest.NewLog(), sealing(t)
				r := start(t, serving(k), l)
				before := mustAppend(t, l, keyFact(t, "k", keyring.Active))
				caught(t, r.Replica, l, before.Seq)
				mustAppend(t, l, secretFact(t, "s", "https://api", sealing(t)), keyFact(t, "next", keyring.Announced), revocation("gone"))
				synctest.Wait()
				if r.Cursor().Position != before || r.Snapshot().Position != before || !r.Snapshot().Ready {
					t.Errorf("without a box: at %v, ready %v, want it to stand at %v and vouch by that", r.Cursor().Position, r.Snapshot().Ready, before)
				}
				if err := r.Fault(); err == nil || !strings.Contains(err.Error(), `key "s" of audience "https://api"`) {
					t.Errorf("Fault: got %v, want the key named", err)
				}
				if _, ok := r.Snapshot().Ring.Record("next"); ok || !revoked(r.Replica, jti("gone")) {
					t.Error("without a box: want nothing shown of what was read, but for the revocation")
				}
				at := mustAppend(t, l, mend(k))
				synctest.Wait()
				if _, ok := r.Snapshot().Ring.Record("next"); !ok || r.Cursor().Position != at || r.Fault() != nil {
					t.Errorf("then: at %v, fault %v, want it at %v", r.Cursor().Position, r.Fault(), at)
				}
				r.stop()
			})
		})
	}
}

// TestLackingAfterRestart: who starts from an image that holds a key without its box is not ready,
// and goes on with the log from there.
func TestLackingAfterRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, k := bustest.NewLog(), sealing(t)
		whole := start(t, replica.New(replica.Config{}), l)
		head := mustAppend(t, l, keyFact(t, "k", keyring.Active), secretFact(t, "s", "https://api"))
		caught(t, whole.Replica, l, head.Seq)
		img, at, err := whole.Image()
		if err != nil {
			t.Fatal(err)
		}
		if err := l.WriteCheckpoint(context.Background(), at, img, nil); err != nil {
			t.Fatal(err)
		}
		l.Purge(head.Seq - 1)
		r := start(t, serving(k), l)
		synctest.Wait()
		if r.Snapshot().Ready || r.Cursor().Position != (bus.Position{}) {
			t.Errorf("from the image: ready %v at %v, want neither", r.Snapshot().Ready, r.Cursor().Position)
		}
		end := mustAppend(t, l, secretFact(t, "s", "https://api", k))
		synctest.Wait()
		if rec, ok := r.Snapshot().Ring.Record("s"); !ok || rec.Key == nil || !r.Snapshot().Ready || r.Cursor().Position != end {
			t.Errorf("with its box: ready %v at %v, want it at %v", r.Snapshot().Ready, r.Cursor().Position, end)
		}
		r.stop()
		whole.stop()
	})
}

// TestServing: what an agent needs goes by its audiences, and for an imported secret by its name.
func TestServing(t *testing.T) {
	home, far := secretFact(t, "a", "https://api"), secretFact(t, "b", "https://far")
	shared := secretFact(t, "c", "https://api")
	shared.Shared, shared.Agents = true, []string{"web-1"}
	for _, tc := range []struct {
		agent     string
		audiences []string
		want      [3]bool
	}{
		{"web-1", nil, [3]bool{true, false, true}},
		{"web-2", nil, [3]bool{true, false, false}},
		{"web-1", []string{"https://far"}, [3]bool{false, true, true}},
		{"web-2", []string{"https://far", "https://api"}, [3]bool{true, true, false}},
	} {
		needs := replica.Serving(tc.agent, tc.audiences)
		if got := [3]bool{needs(home), needs(far), needs(shared)}; got != tc.want {
			t.Errorf("%s of %v needs %v, want %v", tc.agent, tc.audiences, got, tc.want)
		}
	}
}

// TestBoxesKeepTheOrder: an entry that only brings a box leaves the key's place among the others.
func TestBoxesKeepTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, k := bustest.NewLog(), sealing(t)
		r := start(t, serving(k, "https://elsewhere"), l)
		old, next := secretFact(t, "old", "https://api"), secretFact(t, "next", "https://api")
		old.State, next.State = "active", "active"
		mustAppend(t, l, old, next)
		late := secretFact(t, "old", "https://api", k)
		late.State = "active"
		at := mustAppend(t, l, late)
		caught(t, r.Replica, l, at.Seq)
		rec, ok := r.Snapshot().Ring.Record("old")
		if !ok || rec.Seq != 1 {
			t.Errorf("the older key: got %+v, want it at entry 1 still", rec)
		}
		r.stop()
	})
}
