package keyring_test

import (
	"encoding/base64"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// full has every claim.
var full = keyring.Claims{
	Issuer: keyringtest.Issuer, Subject: "alice", Audience: []string{keyringtest.Audience}, ExpiresAt: 4102444800,
	NotBefore: 1767225600, IssuedAt: 1767225600, ID: "9f2c", SessionID: "s1", SessionSeq: 18446744073709551615, HasSessionSeq: true,
	ClientID: "sidekey", Scope: "read write", AuthTime: 1767225600.5, TokenType: "access", UserID: "alice",
	Roles: []string{"staff", "<admin>"}, Gen: 7, Extra: map[string]any{"tenant": "a", "beta": true},
}

// TestClaimsOrder has the claims stand in one order, and the token, byte for byte, in one form.
func TestClaimsOrder(t *testing.T) {
	text, err := json.Marshal(full)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"iss":"https://issuer.test","sub":"alice","aud":"https://api.test","exp":4102444800,"nbf":1767225600,"iat":1767225600,` +
		`"jti":"9f2c","sid":"s1","session_seq":18446744073709551615,"client_id":"sidekey","scope":"read write","auth_time":1767225600.5,` +
		`"token_type":"access","user_id":"alice","roles":["staff","\u003cadmin\u003e"],"gen":7,"beta":true,"tenant":"a"}`
	if string(text) != want {
		t.Errorf("MarshalJSON: got %s, want %s", text, want)
	}
	for _, key := range keyringtest.All(t) {
		a, err := key.Sign(keyring.AccessToken, full)
		if err != nil {
			t.Fatal(err)
		}
		head, _, _ := strings.Cut(a, ".")
		raw, err := base64.RawURLEncoding.DecodeString(head)
		if err != nil || string(raw) != `{"alg":"`+string(key.Alg())+`","kid":"`+key.ID()+`","typ":"at+jwt"}` {
			t.Errorf("header of %v: got %s, %v", key, raw, err)
		}
		b, err := key.Sign(keyring.AccessToken, full)
		if err != nil || key.Alg() != keyring.ES256 && a != b {
			t.Errorf("Sign(%v) twice: got two tokens, want one, byte for byte", key)
		}
	}
}

// TestClaimsRoundTrip has what is signed come back, and nothing of the text that it was read from kept.
func TestClaimsRoundTrip(t *testing.T) {
	key := keyringtest.Secret(t)
	ring := keyringtest.Ring(t, keyringtest.Issuer, keyringtest.Audience, key)
	text, err := key.Sign(keyring.AccessToken, full)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := ring.Prove(text, keyring.AccessToken)
	if err != nil {
		t.Fatal(err)
	}
	want := full
	want.Extra = nil
	want.Raw = tok.Claims.Raw
	if !reflect.DeepEqual(tok.Claims, want) {
		t.Errorf("Prove: got %+v, want %+v", tok.Claims, want)
	}
	if again, err := json.Marshal(full); err != nil || string(tok.Claims.Raw) != string(again) {
		t.Errorf("Raw: got %s, want the payload as signed", tok.Claims.Raw)
	}
	if got := tok.Claims.AuthTime.Time(); !got.Equal(time.Unix(1767225600, 5e8)) {
		t.Errorf("Time of %v: got %v", tok.Claims.AuthTime, got)
	}
}

// TestUserIDClaim has the user id under its configured name, as a string.
func TestUserIDClaim(t *testing.T) {
	for name, want := range map[string]string{"": `"user_id":"u1"`, "user_id": `"user_id":"u1"`, "uid": `"uid":"u1"`} {
		text, err := json.Marshal(keyring.Claims{UserIDClaim: name, UserID: "u1"})
		if err != nil || string(text) != "{"+want+"}" {
			t.Errorf("user id claim %q: got %s, %v, want %s", name, text, err, want)
		}
	}
}

// TestClaimsRefuse has claims that would make a token nobody accepts, or a lie, refused when they are written.
func TestClaimsRefuse(t *testing.T) {
	key := keyringtest.Secret(t)
	for name, c := range map[string]struct {
		claims any
		want   string
	}{
		"a custom claim named sub":        {keyring.Claims{Extra: map[string]any{"sub": "root"}}, `cannot be named "sub"`},
		"a custom claim named EXP":        {keyring.Claims{Extra: map[string]any{"EXP": 1}}, `cannot be named "EXP"`},
		"a custom claim with the long s":  {keyring.Claims{Extra: map[string]any{"ſub": 1}}, "cannot be named"},
		"the user id as roles":            {keyring.Claims{UserIDClaim: "roles", UserID: "u"}, `cannot be named "roles"`},
		"a custom claim as the user id's": {keyring.Claims{UserIDClaim: "uid", UserID: "u", Extra: map[string]any{"uid": "root"}}, "user id's claim"},
		"a custom claim that is no JSON":  {keyring.Claims{Extra: map[string]any{"f": func() {}}}, `writing claim "f"`},
		"a negative time":                 {keyring.Claims{ExpiresAt: -1}, "between 1970 and 9999"},
		"a time too late":                 {keyring.Claims{ExpiresAt: keyring.MaxNumericDate + 1}, "between 1970 and 9999"},
		"too much":                        {keyring.Claims{Extra: map[string]any{"x": strings.Repeat("x", 7000)}}, "shorten the claims"},
		"what no JSON can hold":           {make(chan int), "writing the claims"},
	} {
		token, err := key.Sign(keyring.AccessToken, c.claims)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Sign(%s): got %q, %v, want an error with %q", name, token, err, c.want)
		}
	}
	if _, err := key.WithID("").Sign(keyring.AccessToken, full); err == nil {
		t.Errorf("Sign with an empty kid: got no error")
	}
	if text, err := json.Marshal(keyring.Claims{}); err != nil || string(text) != "{}" {
		t.Errorf("MarshalJSON of no claims: got %s, %v", text, err)
	}
}

// TestHeaderByHeart has the header that is known without being read be the one that golang-jwt writes: any kid,
// also one that JSON escapes.
func TestHeaderByHeart(t *testing.T) {
	for _, kid := range []string{"k", `a "quoted" kid`, "<&>", "Zoë", strings.Repeat("k", 128)} {
		key := keyringtest.Secret(t).WithID(kid)
		token := keyringtest.Token(t, key, nil)
		if h, err := keyring.Peek(token); err != nil || h.KeyID != kid {
			t.Errorf("Peek(kid %q): got %+v, %v", kid, h, err)
		}
		if !keyring.KnownByHeart(keyringtest.Ring(t, "i", "a", key), token) {
			t.Errorf("the header of kid %q is read, want it known", kid)
		}
	}
}
