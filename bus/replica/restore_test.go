package replica_test

import (
	"testing"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// applied is a replica of these facts, each an entry from the first sequence on.
func applied(t *testing.T, facts ...bus.Fact) *replica.Replica {
	t.Helper()
	r := replica.New(replica.Config{})
	for n, f := range facts {
		if err := r.Apply(bus.Entry{Position: bus.Position{Epoch: 5, Seq: uint64(n + 1)}, Fact: f}); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func TestForgetKeys(t *testing.T) {
	r := applied(t, keyFact(t, "k1", keyring.Announced), keyFact(t, "k1", keyring.Active), keyFact(t, "k2", keyring.Announced), revocation("j1"))
	r.ForgetKeys(func(f *bus.KeyFact) bool { return f.KeyID == "k1" })
	if keys := r.Keys(); len(keys) != 1 || keys[0].KeyID != "k2" {
		t.Errorf("keys: got %v, want k2 alone", keys)
	}
	if _, ok := r.Snapshot().Ring.Record("k1"); ok {
		t.Error("the ring has the key still")
	}
	if !revoked(r, jti("j1")) || r.Snapshot().Position.Seq != 4 {
		t.Error("something else was forgotten too")
	}
}

// TestUnite: what a later copy has withdrawn is withdrawn, and nothing else of it is taken.
func TestUnite(t *testing.T) {
	older := []bus.Fact{keyFact(t, "k1", keyring.Announced), credential("c1", "one", "u1"), credential("c2", "two", "u2"), credential("c3", "three", "u3"), revocation("j1")}
	later := append(older[:5:5], revocation("j2"), revocation("c1"), &bus.Credential{ID: "c2", Gone: true}, credential("c9", "nine", "u9"), keyFact(t, "k9", keyring.Announced),
		&bus.Revocation{Subject: "u3", ExpiresAt: revocation("x").ExpiresAt})
	r := applied(t, older...)
	revocations, credentials := r.Unite(applied(t, later...))
	if revocations != 3 || credentials != 3 {
		t.Errorf("Unite: got %d revocations and %d credentials, want 3 and 3", revocations, credentials)
	}
	for _, id := range []string{"j1", "j2"} {
		if !revoked(r, jti(id)) {
			t.Errorf("%s is not revoked", id)
		}
	}
	for _, text := range []string{"one", "two", "three", "nine"} {
		if stands(r, text) {
			t.Errorf("credential %q stands", text)
		}
	}
	if keys := r.Keys(); len(keys) != 1 {
		t.Errorf("it took keys: %v", keys)
	}
	// An older copy takes no credential back, nor away.
	r = applied(t, later...)
	if revocations, credentials := r.Unite(applied(t, older[:2]...)); revocations != 0 || credentials < 0 || !stands(r, "nine") || !revoked(r, jti("j2")) {
		t.Errorf("Unite with an older copy: got %d and %d", revocations, credentials)
	}
}
