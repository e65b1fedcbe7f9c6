package keyring_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// simpleHeader is the header of Simple JWT's tokens.
func simpleHeader(alg keyring.Alg) string { return fmt.Sprintf(`{"alg":%q,"typ":"JWT"}`, alg) }

// simpleClaims are those of Simple JWT's access tokens, changed; nil takes one away.
func simpleClaims(t testing.TB, changes map[string]any) string {
	t.Helper()
	now := time.Now().Unix()
	claims := map[string]any{"token_type": "access", "exp": now + 300, "iat": now, "jti": "5f2c", "user_id": 7}
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	text, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// accepting is the record of a key that accepts Simple JWT's tokens.
func accepting(key *keyring.Key, accept keyring.Accept) keyring.KeyRecord {
	rec := keyringtest.Record(key, keyring.Announced, keyringtest.Audience)
	rec.Audience, rec.Accept = keyringtest.Audience, accept
	rec.Accept.Kind = keyring.SimpleJWT
	return rec
}

func TestForeignTokens(t *testing.T) {
	key := keyringtest.Secret(t)
	for _, test := range []struct {
		what   string
		accept keyring.Accept
		claims map[string]any
		want   keyring.Reason
		sub    string
	}{
		{"user_id a number", keyring.Accept{}, nil, "", "7"},
		{"user_id text", keyring.Accept{}, map[string]any{"user_id": "a-7"}, "", "a-7"},
		{"user_id below zero", keyring.Accept{}, map[string]any{"user_id": -7}, "", "-7"},
		{"user_id a fraction", keyring.Accept{}, map[string]any{"user_id": 7.5}, keyring.Malformed, ""},
		{"user_id with an exponent", keyring.Accept{}, map[string]any{"user_id": json.RawMessage("7e0")}, keyring.Malformed, ""},
		{"user_id true", keyring.Accept{}, map[string]any{"user_id": true}, keyring.Malformed, ""},
		{"user_id null", keyring.Accept{}, map[string]any{"user_id": json.RawMessage("null")}, keyring.Malformed, ""},
		{"user_id empty", keyring.Accept{}, map[string]any{"user_id": ""}, keyring.Malformed, ""},
		{"user_id endless", keyring.Accept{}, map[string]any{"user_id": json.RawMessage(strings.Repeat("9", 65))}, keyring.Malformed, ""},
		{"no user_id", keyring.Accept{}, map[string]any{"user_id": nil}, keyring.Malformed, ""},
		{"sub, where user_id is wanted", keyring.Accept{}, map[string]any{"user_id": nil, "sub": "7"}, keyring.Malformed, ""},
		{"another user id claim", keyring.Accept{UserIDClaim: "sub"}, map[string]any{"sub": 8}, "", "8"},
		{"sliding", keyring.Accept{}, map[string]any{"token_type": "sliding"}, "", "7"},
		{"refresh", keyring.Accept{}, map[string]any{"token_type": "refresh"}, keyring.WrongType, ""},
		{"no token_type", keyring.Accept{}, map[string]any{"token_type": nil}, keyring.WrongType, ""},
		{"another token_type", keyring.Accept{}, map[string]any{"token_type": "session"}, keyring.WrongType, ""},
		{"no jti", keyring.Accept{}, map[string]any{"jti": nil}, keyring.Malformed, ""},
		{"no iat", keyring.Accept{}, map[string]any{"iat": nil}, keyring.Malformed, ""},
		{"no exp", keyring.Accept{}, map[string]any{"exp": nil}, keyring.Malformed, ""},
		{"expired", keyring.Accept{}, map[string]any{"exp": time.Now().Unix() - 6}, keyring.Expired, ""},
		{"iat ahead", keyring.Accept{}, map[string]any{"iat": time.Now().Unix() + 60}, keyring.NotYetValid, ""},
		{"nbf ahead", keyring.Accept{}, map[string]any{"nbf": time.Now().Unix() + 60}, keyring.NotYetValid, ""},
		{"longer than was promised", keyring.Accept{}, map[string]any{"exp": time.Now().Unix() + 25*3600}, keyring.UnknownKey, ""},
		{"iss, none named", keyring.Accept{}, map[string]any{"iss": keyringtest.Issuer}, keyring.WrongIssuer, ""},
		{"iss as named", keyring.Accept{Issuer: "django"}, map[string]any{"iss": "django"}, "", "7"},
		{"another iss", keyring.Accept{Issuer: "django"}, map[string]any{"iss": "flask"}, keyring.WrongIssuer, ""},
		{"no iss, one named", keyring.Accept{Issuer: "django"}, nil, keyring.WrongIssuer, ""},
		{"aud, none named", keyring.Accept{}, map[string]any{"aud": keyringtest.Audience}, keyring.WrongAudience, ""},
		{"aud as named", keyring.Accept{Audience: "shop"}, map[string]any{"aud": []string{"x", "shop"}}, "", "7"},
		{"no aud, one named", keyring.Accept{Audience: "shop"}, nil, keyring.WrongAudience, ""},
		{"claims of ours", keyring.Accept{}, map[string]any{"scope": []int{1}, "roles": 3, "sid": false, "gen": "x", "session_seq": -1}, "", "7"},
	} {
		ring := keyring.NewRing(keyringtest.Issuer, keyringtest.Audience, accepting(key, test.accept))
		token := forge(t, key, simpleHeader(keyring.HS256), simpleClaims(t, test.claims))
		got, err := ring.Verify(token, keyringtest.Expect())
		if reason := keyring.ReasonOf(err); reason != test.want || err != nil && reason == "" {
			t.Errorf("Verify(%s): got %v, want %q", test.what, err, test.want)
			continue
		}
		if err != nil {
			continue
		}
		c := &got.Claims
		if c.Subject != test.sub || got.KeyID != key.ID() || got.Accept != keyring.SimpleJWT || got.Type != keyring.AccessToken {
			t.Errorf("Verify(%s): got %+v, want sub %q of the key %q", test.what, got, test.sub, key.ID())
		}
		if c.Scope != "" || c.Roles != nil || c.SessionID != "" || c.HasSessionSeq {
			t.Errorf("Verify(%s): believes %+v of a foreign token", test.what, c)
		}
		if err := ring.Recheck(got, keyringtest.Expect("https://other.test")); keyring.ReasonOf(err) != keyring.WrongAudience {
			t.Errorf("Recheck(%s, for another audience): got %v, want wrong_audience", test.what, err)
		}
	}
}

// TestForeignKeysAreApart: neither kind of key proves a token of the other's shape.
func TestForeignKeysAreApart(t *testing.T) {
	theirs, ours := keyringtest.Secret(t), keyringtest.RSA(t)
	own := keyringtest.Record(ours, keyring.Active, keyringtest.Audience)
	own.Seq = 1
	ring := keyring.NewRing(keyringtest.Issuer, keyringtest.Audience, own, accepting(theirs, keyring.Accept{}))
	kidless := forge(t, theirs, simpleHeader(keyring.HS256), simpleClaims(t, nil))
	if _, err := ring.Verify(kidless, keyringtest.Expect()); err != nil {
		t.Fatalf("Verify(a foreign token): %v", err)
	}
	named := func(typ string) string { return fmt.Sprintf(`{"alg":"HS256","kid":%q,"typ":%q}`, theirs.ID(), typ) }
	hs := func(header, payload string) string { return forge(t, theirs, header, payload) }
	for _, test := range []struct {
		what, token string
		want        keyring.Reason
	}{
		{"ours, signed with theirs", keyringtest.Token(t, theirs, nil), keyring.UnknownKey},
		{"their kid and our claims", hs(named("at+jwt"), payload(t, nil)), keyring.UnknownKey},
		{"their kid and their claims", hs(named("at+jwt"), simpleClaims(t, nil)), keyring.UnknownKey},
		{"their kid, typ JWT", hs(named("JWT"), simpleClaims(t, nil)), keyring.WrongType},
		{"an empty kid", hs(`{"alg":"HS256","kid":"","typ":"JWT"}`, simpleClaims(t, nil)), keyring.Malformed},
		{"no kid, our typ", hs(`{"alg":"HS256","typ":"at+jwt"}`, simpleClaims(t, nil)), keyring.Malformed},
		{"no kid, no typ", hs(`{"alg":"HS256"}`, simpleClaims(t, nil)), keyring.Malformed},
		{"another alg", hs(simpleHeader(keyring.RS256), simpleClaims(t, nil)), keyring.Malformed},
		{"alg none", hs(`{"alg":"none","typ":"JWT"}`, simpleClaims(t, nil)), keyring.UnsupportedAlg},
	} {
		if _, err := ring.Verify(test.token, keyringtest.Expect()); keyring.ReasonOf(err) != test.want {
			t.Errorf("Verify(%s): got %v, want %s", test.what, err, test.want)
		}
	}
	onlyOurs := keyring.NewRing(keyringtest.Issuer, keyringtest.Audience, keyringtest.Record(theirs, keyring.Active, keyringtest.Audience))
	if _, err := onlyOurs.Verify(kidless, keyringtest.Expect()); keyring.ReasonOf(err) != keyring.Malformed {
		t.Errorf("Verify(a foreign token, by the same secret as a key of ours): got %v, want malformed", err)
	}
	if rec, ok := ring.ActiveFor(keyringtest.Audience); !ok || rec.KeyID != ours.ID() {
		t.Errorf("ActiveFor: got %+v, want ours", rec)
	}
}

func TestForeignKeysAreNotPublished(t *testing.T) {
	ring := keyring.NewRing(keyringtest.Issuer, keyringtest.Audience, accepting(keyringtest.RSA(t), keyring.Accept{}))
	if got := string(ring.JWKS()); got != `{"keys":[]}` {
		t.Errorf("JWKS: got %s, want no key of somebody else's", got)
	}
}

// TestForeignKeysAreBounded: a token is tried against so many keys of its alg, the newest, and a revoked one is named.
func TestForeignKeysAreBounded(t *testing.T) {
	var records []keyring.KeyRecord
	var keys []*keyring.Key
	for n := range keyring.MaxAccepting + 1 {
		k, err := keyring.NewSecret(fmt.Sprintf("k%d", n), []byte(strings.Repeat(fmt.Sprint(n), 32)))
		if err != nil {
			t.Fatal(err)
		}
		rec := accepting(k, keyring.Accept{})
		rec.Seq = uint64(n + 1)
		keys, records = append(keys, k), append(records, rec)
	}
	ring := keyring.NewRing(keyringtest.Issuer, keyringtest.Audience, records...)
	for n, k := range keys {
		_, err := ring.Verify(forge(t, k, simpleHeader(keyring.HS256), simpleClaims(t, nil)), keyringtest.Expect())
		if want := keyring.Reason(""); n > 0 && keyring.ReasonOf(err) != want {
			t.Errorf("Verify(of key %d): got %v, want nil", n, err)
		} else if n == 0 && keyring.ReasonOf(err) != keyring.BadSignature {
			t.Errorf("Verify(of a key beyond the bound): got %v, want bad_signature", err)
		}
	}
	revoked := records[0]
	revoked.State, revoked.Key = keyring.Revoked, nil
	ring = keyring.NewRing(keyringtest.Issuer, keyringtest.Audience, revoked)
	if _, err := ring.Verify(forge(t, keys[0], simpleHeader(keyring.HS256), simpleClaims(t, nil)), keyringtest.Expect()); keyring.ReasonOf(err) != keyring.KeyRevoked {
		t.Errorf("Verify(of a revoked key): got %v, want key_revoked", err)
	}
	unknown := records[0]
	unknown.Accept.Kind = "others"
	ring = keyring.NewRing(keyringtest.Issuer, keyringtest.Audience, unknown)
	if _, err := ring.Verify(forge(t, keys[0], simpleHeader(keyring.HS256), simpleClaims(t, nil)), keyringtest.Expect()); keyring.ReasonOf(err) != keyring.UnknownKey {
		t.Errorf("Verify(by a rule that this version does not know): got %v, want unknown_key", err)
	}
}
