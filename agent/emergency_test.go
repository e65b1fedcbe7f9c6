package agent_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// TestRevokedKeyEmptiesTheCache: one entry refuses every cached verdict of a key: the cache remembers
// what a key has proven, and the state of that key is looked up on each hit (PROTOCOL 9). The
// verdicts of the key that signs instead are not touched.
func TestRevokedKeyEmptiesTheCache(t *testing.T) {
	const cached = 10_000
	w := newWorld(t, func(c *agent.Config) { c.CacheSize = cached + 1 })
	// An HMAC key makes ten thousand signatures in a moment; the cache does not know the difference.
	old, next := keyringtest.Secret(t), keyringtest.EC(t)
	w.apply(w.fact(old, keyring.Active), w.fact(next, keyring.Active))
	tokens := make([]string, cached)
	for n := range tokens {
		tokens[n] = w.tokenOf(old, keyring.AccessToken, func(c *keyring.Claims) { c.ID = fmt.Sprint("jti-", n) })
		if v := w.agent.Verify(tokens[n], agent.Query{}); v.Status != 200 {
			t.Fatalf("Verify(token %d): got %d %s, want 200", n, v.Status, v.Reason)
		}
	}
	fresh := w.tokenOf(next, keyring.AccessToken)
	if v := w.agent.Verify(fresh, agent.Query{}); v.Status != 200 {
		t.Fatalf("Verify(a token of the next key): got %d %s", v.Status, v.Reason)
	}
	before := w.agent.Status().Cache
	if before.Entries != cached+1 {
		t.Fatalf("cache: got %d entries, want %d", before.Entries, cached+1)
	}

	revoked := w.fact(old, keyring.Revoked)
	revoked.ExpiresAt = time.Now().Add(time.Hour).Unix()
	began := time.Now()
	w.apply(revoked)
	took := time.Since(began)
	accepted := 0
	for _, token := range tokens {
		if v := w.agent.Verify(token, agent.Query{}); v.Status != 401 || v.Reason != keyring.KeyRevoked {
			accepted++
		}
	}
	if accepted != 0 {
		t.Errorf("after the entry %d of %d cached tokens are not refused as %s", accepted, cached, keyring.KeyRevoked)
	}
	if v := w.agent.Verify(fresh, agent.Query{}); v.Status != 200 {
		t.Errorf("Verify(a token of the next key): got %d %s, want 200", v.Status, v.Reason)
	}
	if after := w.agent.Status().Cache; after.Misses != before.Misses {
		t.Errorf("cache: %d misses, want none: the verdicts were cached", after.Misses-before.Misses)
	}
	t.Logf("%d cached verdicts refused by one entry, applied in %s", cached, took)
}
