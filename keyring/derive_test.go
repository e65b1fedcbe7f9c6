package keyring_test

import (
	"bytes"
	"testing"

	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// TestDerive: one secret for one audience and kid, the same wherever it is derived, and nobody else's.
func TestDerive(t *testing.T) {
	master := keyringtest.Secret(t)
	a, err := master.Derive("k1", "https://a")
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := master.Derive("k1", "https://a"); !bytes.Equal(again.Secret(), a.Secret()) || again.ID() != "k1" || again.Alg() != keyring.HS256 || again.Bits() != 256 {
		t.Errorf("Derive twice: got %v and %v with different secrets or sizes", a, again)
	}
	for name, of := range map[string][2]string{"another audience": {"k1", "https://b"}, "another kid": {"k2", "https://a"}, "run together": {"1", "https://ak"}} {
		if b, err := master.Derive(of[0], of[1]); err != nil || bytes.Equal(b.Secret(), a.Secret()) || bytes.Equal(b.Secret(), master.Secret()) {
			t.Errorf("Derive(%s): %v, and the secret is shared: want another", name, err)
		}
	}
	if k, err := master.Derive("", "https://a"); err != nil || len(k.ID()) < 20 {
		t.Errorf("Derive without a kid: got %v, %v, want a random one", k, err)
	}
	if _, err := master.Derive("k1", ""); err == nil {
		t.Error("Derive without an audience: want an error")
	}
	if _, err := keyringtest.RSA(t).Derive("k1", "https://a"); err == nil {
		t.Error("Derive from an RSA key: want an error")
	}
}
