package keyring_test

import (
	"testing"

	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// TestVerifyEveryAlgorithm signs with each algorithm and proves the result, and nothing else than the result.
func TestVerifyEveryAlgorithm(t *testing.T) {
	for _, key := range keyringtest.All(t) {
		ring := keyringtest.Ring(t, keyringtest.Issuer, keyringtest.Audience, key)
		tok, err := ring.Verify(keyringtest.Token(t, key, nil), keyringtest.Expect())
		if err != nil {
			t.Errorf("Verify(%v): got %v, want no error", key, err)
			continue
		}
		if tok.KeyID != key.ID() || tok.Alg != key.Alg() || tok.Type != keyring.AccessToken || tok.Claims.Subject != "alice" {
			t.Errorf("Verify(%v): got %+v, want alice's access token of that key", key, tok)
		}
		if err := ring.Recheck(tok, keyringtest.Expect()); err != nil {
			t.Errorf("Recheck(%v): got %v, want no error", key, err)
		}
	}
}
