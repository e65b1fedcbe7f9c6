package issuer_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
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
