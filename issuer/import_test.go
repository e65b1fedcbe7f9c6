package issuer_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

func TestImport(t *testing.T) {
	b := newBus()
	ti := start(t, b)
	own := checkRing(t, ti)
	rsaKey := keyringtest.RSA(t)
	jwk, err := rsaKey.PrivateJWK()
	if err != nil {
		t.Fatal(err)
	}
	st, err := ti.ImportKey(t.Context(), issuer.Import{JWK: jwk})
	if err != nil || !st.Done || st.State != keyring.Announced || st.KeyID != rsaKey.ID() {
		t.Fatalf("ImportKey to verify: got %+v, %v, want announced for good", st, err)
	}
	ti.steps(t)
	if got := checkRing(t, ti); got != own {
		t.Errorf("a key imported to verify signs: active is %q", got)
	}
	if err := verify(ti.replica, foreign(t, rsaKey)); err != nil {
		t.Errorf("verify(a token of the imported key): got %v, want nil", err)
	}
	if r, err := b.key.Get(t.Context(), bus.Name("ring", rsaKey.ID())); err != nil || strings.Contains(string(r.Value), `"d"`) {
		t.Errorf("the private half of a key that only verifies: want it not kept (%v)", err)
	}
	if _, err := ti.ImportKey(t.Context(), issuer.Import{JWK: jwk}); !errors.Is(err, issuer.ErrExists) {
		t.Errorf("ImportKey twice: got %v, want ErrExists", err)
	}

	st, err = ti.ImportKey(t.Context(), issuer.Import{PEM: pkcs8(t, 2048), Activate: true})
	if err != nil || !st.Done || st.State != keyring.Active || st.Alg != keyring.RS256 {
		t.Fatalf("ImportKey(PKCS#8, activate): got %+v, %v, want active", st, err)
	}
	if kid := part(t, login(t, ti).Access, 0)["kid"]; kid != st.KeyID {
		t.Errorf("kid of a new token: got %v, want the imported %q", kid, st.KeyID)
	}

	for name, in := range map[string]issuer.Import{
		"nothing":          {},
		"two":              {Secret: strings.Repeat("x", 32), PEM: pkcs8(t, 2048)},
		"short secret":     {Secret: strings.Repeat("x", 31)},
		"weak RSA":         {PEM: pkcs8(t, 1024)},
		"no PEM":           {PEM: "-----BEGIN NONSENSE-----"},
		"alg of another":   {PEM: pkcs8(t, 2048), Alg: keyring.ES256},
		"unknown alg":      {Secret: strings.Repeat("x", 32), Alg: "none"},
		"public to sign":   {PEM: publicPEM(t), Activate: true},
		"even exponent":    {JWK: []byte(`{"kty":"RSA","e":"AQAA","n":"` + strings.Repeat("x", 342) + `"}`)},
		"encryption key":   {JWK: []byte(`{"kty":"oct","use":"enc","k":"` + strings.Repeat("A", 43) + `"}`)},
		"short JWK secret": {JWK: []byte(`{"kty":"oct","k":"c2hvcnQ"}`)},
	} {
		if _, err := ti.ImportKey(t.Context(), in); !isInput(err) {
			t.Errorf("ImportKey(%s): got %v, want an InputError", name, err)
		} else if in.Secret != "" && strings.Contains(err.Error(), in.Secret) {
			t.Errorf("ImportKey(%s): the error %q shows the secret", name, err)
		}
	}

	secret := strings.Repeat("s", 32)
	st, err = ti.ImportKey(t.Context(), issuer.Import{Secret: secret})
	if err != nil || st.Alg != keyring.HS256 {
		t.Fatalf("ImportKey(secret): got %+v, %v", st, err)
	}
	shared, err := keyring.NewSecret(st.KeyID, []byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(ti.replica, foreign(t, shared)); err != nil {
		t.Errorf("verify(a token of the imported secret): got %v, want nil", err)
	}
}

// foreign is a token that another system signed with a key of its own.
func foreign(t *testing.T, key *keyring.Key) string {
	t.Helper()
	return keyringtest.Token(t, key, func(c *keyring.Claims) { c.Issuer, c.Audience = issuerURL, []string{issuerURL} })
}

func pkcs8(t *testing.T, bits int) string {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func publicPEM(t *testing.T) string {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// TestSharedSecret: an imported secret is what it is: it goes where it is sent, and signs on demand.
func TestSharedSecret(t *testing.T) {
	b := newBus()
	ti := start(t, b)
	named, other := join(t, b, "named"), join(t, b, "other")
	secret := strings.Repeat("s", 32)
	for name, in := range map[string]issuer.Import{
		"to sign, not said to be shared": {Secret: secret, Activate: true, Agents: []string{"named", "other"}},
		"to sign, an agent left out":     {Secret: secret, Activate: true, Shared: true, Agents: []string{"named"}},
		"a name that is none":            {Secret: secret, Agents: []string{"two words"}},
		"a public key as shared":         {PEM: publicPEM(t), Shared: true},
		"a public key for agents":        {PEM: publicPEM(t), Agents: []string{"named"}},
	} {
		if _, err := ti.ImportKey(t.Context(), in); !isInput(err) {
			t.Errorf("ImportKey(%s): got %v, want an InputError", name, err)
		}
	}
	st, err := ti.ImportKey(t.Context(), issuer.Import{Secret: secret, Agents: []string{"named"}})
	if err != nil || !st.Done || !st.Shared || !slices.Equal(st.Agents, []string{"named"}) {
		t.Fatalf("ImportKey: got %+v, %v, want it shared with the one named", st, err)
	}
	ti.steps(t)
	named.catchUp(t, ti)
	other.catchUp(t, ti) // it does not need what is not for it
	shared, err := keyring.NewSecret(st.KeyID, []byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	token := foreign(t, shared)
	if err := verify(named.Replica, token); err != nil {
		t.Errorf("verify by the agent named: %v", err)
	}
	refused(t, "verify by another agent", verify(other.Replica, token), keyring.UnknownKey)
	if kid := part(t, login(t, ti).Access, 0)["kid"]; kid == st.KeyID {
		t.Error("a secret imported to verify signs")
	}
	if k, err := ti.Key(t.Context(), st.KeyID); err != nil || !k.Shared {
		t.Errorf("Key: got %+v, %v, want it said to be shared", k, err)
	}

	st, err = ti.ImportKey(t.Context(), issuer.Import{Secret: strings.Repeat("z", 32), Activate: true, Shared: true, Agents: []string{"named", "other"}})
	if err != nil || st.Done {
		t.Fatalf("ImportKey to sign: got %+v, %v, want it to wait for the agents", st, err)
	}
	named.catchUp(t, ti)
	other.catchUp(t, ti)
	ti.steps(t)
	if kid := part(t, login(t, ti).Access, 0)["kid"]; kid != st.KeyID {
		t.Errorf("kid of a new token: got %v, want the imported %q", kid, st.KeyID)
	}
	// The next rotation leads back to secrets of our own.
	for range 4 {
		ti.steps(t)
		named.catchUp(t, ti)
		other.catchUp(t, ti)
	}
	next, err := ti.Rotate(t.Context(), issuer.Rotation{})
	if err != nil || !next.Done || next.Shared || next.Alg != keyring.HS256 {
		t.Errorf("Rotate: got %+v, %v, want an HS256 key of our own", next, err)
	}
}
