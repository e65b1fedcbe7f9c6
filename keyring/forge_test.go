package keyring_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

func enc(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// forge signs any header and payload, as one who has the key could.
func forge(t testing.TB, key *keyring.Key, header, payload string) string {
	t.Helper()
	return forgeParts(t, key, enc(header), enc(payload))
}

// forgeParts signs parts that are encoded already, rightly or not.
func forgeParts(t testing.TB, key *keyring.Key, header, payload string) string {
	t.Helper()
	signed := header + "." + payload
	var sig []byte
	var err error
	switch key.Alg() {
	case keyring.HS256:
		sig, err = jwt.SigningMethodHS256.Sign(signed, key.Secret())
	case keyring.EdDSA:
		sig, err = jwt.SigningMethodEdDSA.Sign(signed, edPrivate(t, key))
	default:
		t.Fatalf("forging with %v is not needed yet", key)
	}
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func edPrivate(t testing.TB, key *keyring.Key) ed25519.PrivateKey {
	t.Helper()
	text, err := key.PrivateJWK()
	if err != nil {
		t.Fatal(err)
	}
	var j struct{ D string }
	if err := json.Unmarshal(text, &j); err != nil {
		t.Fatal(err)
	}
	seed, err := base64.RawURLEncoding.DecodeString(j.D)
	if err != nil {
		t.Fatal(err)
	}
	return ed25519.NewKeyFromSeed(seed)
}

// payload returns the default claims, edited, as JSON.
func payload(t testing.TB, edit func(*keyring.Claims)) string {
	t.Helper()
	c := keyringtest.Claims(time.Now())
	if edit != nil {
		edit(&c)
	}
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
