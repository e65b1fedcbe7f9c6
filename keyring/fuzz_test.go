package keyring_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// FuzzProve gives the reader any header and payload, signed rightly, and any text in their place. Nothing may panic, every
// refusal is a Denial of the closed set, and what is accepted golang-jwt's own parser accepts too, with the same claims.
func FuzzProve(f *testing.F) {
	key := keyringtest.Secret(f)
	ring := keyringtest.Ring(f, keyringtest.Issuer, keyringtest.Audience, key)
	good := claimsWith("", "")
	f.Add(goodHead, good, "")
	f.Add(`{"\u0061lg":"HS256","kid":"secret-1","typ":"AT+JWT"}`, claimsWith("aud", `"aud":["https://api.test"],"nbf":1.5`), "")
	f.Add("", "", "..")
	for _, c := range badTokens(f, key) {
		f.Add("", "", c.token)
	}
	parser := jwt.NewParser(jwt.WithValidMethods([]string{"HS256"}), jwt.WithStrictDecoding(), jwt.WithoutClaimsValidation())
	f.Fuzz(func(t *testing.T, header, payload, token string) {
		if token == "" {
			token = forge(t, key, header, payload)
		}
		tok, err := ring.Prove(token, keyring.AccessToken)
		if err != nil {
			if r := keyring.ReasonOf(err); !known(r) || tok != nil {
				t.Fatalf("Prove(%q): got reason %q and token %v, want a reason of the closed set and no token", token, r, tok)
			}
			return
		}
		var theirs jwt.MapClaims
		parsed, err := parser.ParseWithClaims(token, &theirs, func(*jwt.Token) (any, error) { return key.Secret(), nil })
		if err != nil {
			t.Fatalf("Prove(%q): accepted, but golang-jwt says %v", token, err)
		}
		sub, _ := theirs.GetSubject()
		exp, err := theirs.GetExpirationTime()
		if parsed.Header["kid"] != tok.KeyID || sub != tok.Claims.Subject || err != nil || exp.Unix() != tok.Claims.ExpiresAt.Time().Unix() {
			t.Fatalf("Prove(%q): got %+v, golang-jwt has %v", token, tok, theirs)
		}
		want := keyring.Expect{Type: keyring.AccessToken, Leeway: 5 * time.Second, Now: time.Unix(1767225600, 0)}
		if a, b := keyring.ReasonOf(ring.Check(tok, want)), keyring.ReasonOf(ring.Recheck(tok, want)); a != b {
			t.Fatalf("Check: %q, Recheck: %q, want the same", a, b)
		}
	})
}

func known(r keyring.Reason) bool {
	for _, k := range keyring.Reasons {
		if k == r {
			return true
		}
	}
	return false
}

// FuzzParseJWK has nothing panic, and a key that is accepted be sound: it comes back from its own JWK the same, and
// what it signs it proves.
func FuzzParseJWK(f *testing.F) {
	for _, key := range keyringtest.All(f) {
		text, err := key.PrivateJWK()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
		if text, err := key.PublicJWK(); err == nil {
			f.Add(text)
			f.Add([]byte(`{"keys":[` + string(text) + `]}`))
		}
	}
	f.Add([]byte(`{"kty":"oct","k":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if keys, err := keyring.ParseJWKS(text); err == nil {
			for _, k := range keys {
				if k.CanSign() || k.Alg().Symmetric() {
					t.Fatalf("ParseJWKS(%q): got %v, want public halves only", text, k)
				}
			}
		}
		key, err := keyring.ParseJWK(text)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "reading ") {
				t.Fatalf("ParseJWK(%q): got %v", text, err)
			}
			return
		}
		if !json.Valid(text) || !keyring.ValidKeyID(key.ID()) {
			t.Fatalf("ParseJWK(%q): got %v", text, key)
		}
		if !key.CanSign() {
			return
		}
		ours, err := key.PrivateJWK()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := keyring.ParseJWK(ours); err != nil || back.ID() != key.ID() || back.Alg() != key.Alg() {
			t.Fatalf("ParseJWK(PrivateJWK of %v): got %v, %v", key, back, err)
		}
		ring := keyringtest.Ring(t, keyringtest.Issuer, keyringtest.Audience, key)
		if _, err := ring.Verify(keyringtest.Token(t, key, nil), keyringtest.Expect()); err != nil {
			t.Fatalf("Verify with %v: %v", key, err)
		}
	})
}
