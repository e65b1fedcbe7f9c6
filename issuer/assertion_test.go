package issuer_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// asserted is a form whose client proves itself with an assertion.
func asserted(assertion string, more ...string) []string {
	return append([]string{
		"grant_type", "client_credentials", "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
		"client_assertion", assertion,
	}, more...)
}

// says are the claims of a good assertion of robot, changed.
func says(jti string, change map[string]any) map[string]any {
	now := time.Now().Unix()
	c := map[string]any{"iss": "robot", "sub": "robot", "aud": issuerURL, "exp": now + 60, "iat": now, "jti": jti}
	maps.Copy(c, change)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

func sign(t *testing.T, key *keyring.Key, typ keyring.TokenType, c map[string]any) string {
	t.Helper()
	token, err := key.Sign(typ, c)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// withRobot adds robot, whose keys are RS256, ES256 and EdDSA.
func withRobot(t *testing.T, w *world) {
	t.Helper()
	set := ""
	for _, k := range []*keyring.Key{keyringtest.RSA(t), keyringtest.EC(t), keyringtest.Ed(t)} {
		j, err := k.PublicJWK()
		if err != nil {
			t.Fatal(err)
		}
		set += "," + string(j)
	}
	_, _, err := w.AddClient(t.Context(), issuer.NewClient{ID: "robot", Scope: "read", JWKS: json.RawMessage(`{"keys":[` + set[1:] + `]}`)})
	if err != nil {
		t.Fatal(err)
	}
}

func TestPrivateKeyJWT(t *testing.T) {
	w := newWorld(t, newBus())
	withRobot(t, w)
	for _, key := range []*keyring.Key{keyringtest.RSA(t), keyringtest.EC(t), keyringtest.Ed(t)} {
		for _, aud := range []any{issuerURL, issuerURL + "/oauth2/token", []string{issuerURL}} {
			access, _ := w.granted(t, "", asserted(sign(t, key, "JWT", says(anyID(t), map[string]any{"aud": aud})))...)
			if c := claims(t, access); c["sub"] != "robot" || c["scope"] != "read" {
				t.Errorf("%s, aud %v: got %v", key.Alg(), aud, c)
			}
		}
	}
	// Authlib gives an assertion an hour: its iat bounds it.
	w.granted(t, "", asserted(sign(t, keyringtest.Ed(t), "JWT", says("an hour", map[string]any{"exp": time.Now().Unix() + 3600})))...)
	w.granted(t, "", asserted(sign(t, keyringtest.Ed(t), "client-authentication+jwt", says("own typ", nil)), "client_id", "robot")...)
	got := w.post("/oauth2/introspect", "", append(asserted(sign(t, keyringtest.Ed(t), "", says("elsewhere", nil))), "token", "x")...)
	if got.Code != 200 || got.Body.String() != `{"active":false}` {
		t.Errorf("introspection by assertion: got %d %s", got.Code, got.Body)
	}
}

func TestPrivateKeyJWTRefuses(t *testing.T) {
	w := newWorld(t, newBus())
	withRobot(t, w)
	ed, now := keyringtest.Ed(t), time.Now().Unix()
	stranger, err := keyring.Generate(keyring.EdDSA, 0)
	if err != nil {
		t.Fatal(err)
	}
	used := sign(t, ed, "JWT", says("once", nil))
	w.granted(t, "", asserted(used)...)
	good := func(change map[string]any) string { return sign(t, ed, "JWT", says(anyID(t), change)) }
	for name, assertion := range map[string]string{
		"used before":            used,
		"its jti used before":    sign(t, ed, "JWT", says("once", map[string]any{"exp": now + 61})),
		"a stranger's key":       sign(t, stranger, "JWT", says("a", nil)),
		"a stranger's key, kid":  sign(t, stranger.WithID(ed.ID()), "JWT", says("b", nil)),
		"an access token":        sign(t, ed, keyring.AccessToken, says("c", nil)),
		"another issuer":         good(map[string]any{"iss": "job"}),
		"another subject":        good(map[string]any{"sub": "job"}),
		"both another's":         good(map[string]any{"iss": "job", "sub": "job"}),
		"for another":            good(map[string]any{"aud": "https://else.example"}),
		"for another too":        good(map[string]any{"aud": []string{issuerURL, "https://else.example"}}),
		"for nobody":             good(map[string]any{"aud": nil}),
		"expired":                good(map[string]any{"exp": now - 6}),
		"without exp":            good(map[string]any{"exp": nil}),
		"for an hour, no iat":    good(map[string]any{"exp": now + 3600, "iat": nil}),
		"for an hour, old":       good(map[string]any{"exp": now + 1800, "iat": now - 306}),
		"without jti":            good(map[string]any{"jti": nil}),
		"with a long jti":        good(map[string]any{"jti": strings.Repeat("x", 1100)}),
		"not valid yet":          good(map[string]any{"nbf": now + 30}),
		"from the future":        good(map[string]any{"iat": now + 30}),
		"none":                   unsigned(t, `{"alg":"none","typ":"JWT"}`, says("d", nil), nil),
		"HS256 of the RSA's key": confused(t, keyringtest.RSA(t)),
		"HS256 of the Ed's key":  confused(t, ed),
		"ES256 named for Ed25519": unsigned(t, `{"alg":"ES256","typ":"JWT","kid":"`+ed.ID()+`"}`, says("e", nil), func(b []byte) []byte {
			return make([]byte, 64)
		}),
		"its own key":     unsigned(t, `{"alg":"EdDSA","typ":"JWT","jwk":{}}`, says("f", nil), nil),
		"three dots":      good(nil) + ".x",
		"a tampered one":  tampered(good(nil)),
		"nothing":         "",
		"an empty object": "e30.e30.",
	} {
		got := w.post("/oauth2/token", "", asserted(assertion)...)
		refusal(t, name, got, 401, "invalid_client")
	}
	refusal(t, "client_id of another", w.post("/oauth2/token", "", asserted(good(nil), "client_id", "job")...), 401, "invalid_client")
	refusal(t, "by Basic", w.post("/oauth2/token", "robot", "grant_type", "client_credentials"), 401, "invalid_client")
	// A refused one is not used up, but a good one is, whatever is then asked.
	once := good(nil)
	refusal(t, "scope widened", w.post("/oauth2/token", "", asserted(once, "scope", "write")...), 400, "invalid_scope")
	refusal(t, "again", w.post("/oauth2/token", "", asserted(once)...), 401, "invalid_client")
}

// TestAssertionOnTwoIssuers: one that was shown to one issuer is used up at the others, on the shipped bus.
func TestAssertionOnTwoIssuers(t *testing.T) {
	b := newRealBus(t)
	first := newWorld(t, b)
	withRobot(t, first)
	second := newIssuer(t, b)
	assertion := sign(t, keyringtest.Ed(t), "JWT", says("once everywhere", nil))
	first.granted(t, "", asserted(assertion)...)
	there := &world{testIssuer: second, h: second.PublicHandler()}
	refusal(t, "at another issuer", there.post("/oauth2/token", "", asserted(assertion)...), 401, "invalid_client")
	there.granted(t, "", asserted(sign(t, keyringtest.Ed(t), "JWT", says("a new one", nil)))...)
	if err := first.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	refusal(t, "after a sweep", there.post("/oauth2/token", "", asserted(assertion)...), 401, "invalid_client")
	if all, err := second.ListClients(t.Context()); err != nil || len(all) != 5 {
		t.Errorf("ListClients: got %d, %v, want the five clients and no assertion", len(all), err)
	}
}

// anyID gives an id of its own.
func anyID(t *testing.T) string {
	t.Helper()
	k, err := keyring.Generate(keyring.EdDSA, 0)
	if err != nil {
		t.Fatal(err)
	}
	return k.ID()
}

// unsigned makes a token with any header, and what seal gives for a signature.
func unsigned(t *testing.T, header string, c map[string]any, seal func([]byte) []byte) string {
	t.Helper()
	payload, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding
	signed := b64.EncodeToString([]byte(header)) + "." + b64.EncodeToString(payload)
	if seal == nil {
		return signed + "."
	}
	return signed + "." + b64.EncodeToString(seal([]byte(signed)))
}

// confused signs with a public key as if it were a shared secret (RFC 8725 §2.1).
func confused(t *testing.T, key *keyring.Key) string {
	t.Helper()
	public, err := key.PublicJWK()
	if err != nil {
		t.Fatal(err)
	}
	return unsigned(t, `{"alg":"HS256","typ":"JWT","kid":"`+key.ID()+`"}`, says("confused "+key.ID(), nil), func(signed []byte) []byte {
		mac := hmac.New(sha256.New, public)
		mac.Write(signed)
		return mac.Sum(nil)
	})
}

// tampered changes a character of the payload.
func tampered(token string) string {
	at := strings.IndexByte(token, '.') + 10
	other := byte('A')
	if token[at] == other {
		other = 'B'
	}
	return token[:at] + string(other) + token[at+1:]
}
