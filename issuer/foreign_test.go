package issuer_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

const djangoKey = "the SIGNING_KEY of a Django project of the tests"

// simpleJWT is a token as Simple JWT makes it for the user "7", changed.
func simpleJWT(t *testing.T, tokenType string, changes map[string]any) string {
	t.Helper()
	now := time.Now().Unix()
	c := jwt.MapClaims{"token_type": tokenType, "exp": now + 3600, "iat": now - 1, "jti": tokenType + "-1", "user_id": 7}
	maps.Copy(c, changes)
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, c).SignedString([]byte(djangoKey))
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// withDjango is an issuer that accepts the project's tokens, and has its user gina, of id 7.
func withDjango(t *testing.T, b *testBus, with ...setup) *testIssuer {
	t.Helper()
	ti := start(t, b, with...)
	if _, err := ti.ImportKey(t.Context(), issuer.Import{Secret: djangoKey, Accept: keyring.Accept{Kind: keyring.SimpleJWT}}); err != nil {
		t.Fatal(err)
	}
	if _, err := ti.AddUser(t.Context(), issuer.NewUser{ID: "7", Username: "gina", Password: "Sesam-open-17", Scope: "read"}); err != nil {
		t.Fatal(err)
	}
	return ti
}

// TestForeignRefresh: one use, a retry with the same successor, then a reuse that ends the session made from it.
func TestForeignRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ti := withDjango(t, newBus())
		token := simpleJWT(t, "refresh", nil)
		first := refresh(t, ti, token)
		got := claims(t, first.Access)
		if got["sub"] != "7" || got["user_id"] != "7" || got["scope"] != "read" || got["token_type"] != "access" || got["iss"] != issuerURL {
			t.Errorf("the access token made from a foreign one says %v", got)
		}
		if err := verify(ti.replica, first.Access); err != nil {
			t.Errorf("verify(our access token): %v", err)
		}
		again := refresh(t, ti, token)
		if again.Refresh != first.Refresh || again.SessionID != first.SessionID {
			t.Errorf("a retry within the grace got another successor")
		}
		second := refresh(t, ti, first.Refresh)
		if second.SessionID != first.SessionID {
			t.Errorf("the successor is of another session")
		}
		_, err := ti.Refresh(t.Context(), token)
		refused(t, "a foreign token whose successor was used", err, keyring.Revoked)
		_, err = ti.Refresh(t.Context(), second.Refresh)
		refused(t, "the session of a foreign token that was reused", err, keyring.Revoked)
		refused(t, "its access token", verify(ti.replica, second.Access), keyring.Revoked)
	})
}

// TestForeignClaimOutlivesItsSession: the record of a foreign token's use stays until the token itself has ended, though the
// session ended long before.
func TestForeignClaimOutlivesItsSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ti := withDjango(t, newBus(), func(c *issuer.Config, _ *issuer.Parts) { c.RefreshLifetime = 20 * time.Minute })
		long := simpleJWT(t, "refresh", map[string]any{"exp": time.Now().Add(20 * time.Minute).Unix(), "iat": time.Now().Unix()})
		refresh(t, ti, long)
		time.Sleep(15 * time.Minute)
		if err := ti.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err := ti.Refresh(t.Context(), long)
		refused(t, "a second use, long after", err, keyring.Revoked)
		time.Sleep(10 * time.Minute)
		_, err = ti.Refresh(t.Context(), long)
		refused(t, "a use after its end", err, keyring.Expired)
	})
}

// TestForeignRefreshRace: of many presentations at two issuers, one makes the session, and all get its tokens.
func TestForeignRefreshRace(t *testing.T) {
	b := newBus()
	one := withDjango(t, b)
	two := newIssuer(t, b)
	if err := two.replica.Wait(t.Context(), one.position().Seq); err != nil {
		t.Fatal(err)
	}
	token := simpleJWT(t, "refresh", nil)
	var mu sync.Mutex
	var wg sync.WaitGroup
	successors := map[string]int{}
	for n := range 16 {
		wg.Go(func() {
			got, err := []*testIssuer{one, two}[n%2].Refresh(context.WithoutCancel(t.Context()), token)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("Refresh: %v", err)
				return
			}
			successors[got.Refresh]++
		})
	}
	wg.Wait()
	if len(successors) != 1 {
		t.Errorf("one foreign token has %d successors, want 1", len(successors))
	}
}

func TestForeignRefreshRefused(t *testing.T) {
	ti := withDjango(t, newBus())
	for _, test := range []struct {
		what    string
		kind    string
		changes map[string]any
		want    keyring.Reason
		is      error
	}{
		{"an access token", "access", nil, keyring.WrongType, nil},
		{"a sliding token", "sliding", nil, keyring.WrongType, nil},
		{"expired", "refresh", map[string]any{"exp": time.Now().Unix() - 10}, keyring.Expired, nil},
		{"too long a life", "refresh", map[string]any{"exp": time.Now().Add(169 * time.Hour).Unix()}, keyring.UnknownKey, nil},
		{"an unknown user", "refresh", map[string]any{"user_id": 8}, "", issuer.ErrNoAccount},
		{"a user by name", "refresh", map[string]any{"user_id": "gina"}, "", issuer.ErrNoAccount},
	} {
		_, err := ti.Refresh(t.Context(), simpleJWT(t, test.kind, test.changes))
		if keyring.ReasonOf(err) != test.want || err == nil || test.is != nil && !errors.Is(err, test.is) {
			t.Errorf("Refresh(%s): got %v, want %q %v", test.what, err, test.want, test.is)
		}
	}
	disabled := true
	if _, err := ti.ChangeUser(t.Context(), "gina", issuer.UserChange{Disabled: &disabled}); err != nil {
		t.Fatal(err)
	}
	for _, iat := range []time.Duration{-time.Minute, 0} { // before the cutoff; and by a project that still makes tokens
		token := simpleJWT(t, "refresh", map[string]any{"iat": time.Now().Add(iat).Unix(), "jti": iat.String()})
		if _, err := ti.Refresh(t.Context(), token); !errors.Is(err, issuer.ErrNoAccount) {
			t.Errorf("Refresh(of a disabled user): got %v, want ErrNoAccount", err)
		}
	}
}

// TestForeignBlacklist: a blacklisted token is refused, and so is what was made from it.
func TestForeignBlacklist(t *testing.T) {
	ti := withDjango(t, newBus())
	unused := simpleJWT(t, "refresh", map[string]any{"jti": "unused"})
	if err := ti.Check(t.Context(), unused); err != nil {
		t.Errorf("Check(an unused foreign refresh token): %v", err)
	}
	if err := ti.EndWith(t.Context(), unused); err != nil {
		t.Fatal(err)
	}
	_, err := ti.Refresh(t.Context(), unused)
	refused(t, "Refresh(blacklisted)", err, keyring.Revoked)
	refused(t, "Check(blacklisted)", ti.Check(t.Context(), unused), keyring.Revoked)
	refused(t, "EndWith(blacklisted)", ti.EndWith(t.Context(), unused), keyring.Revoked)

	used := simpleJWT(t, "refresh", map[string]any{"jti": "used"})
	tokens := refresh(t, ti, used)
	if err := ti.EndWith(t.Context(), used); err != nil {
		t.Fatal(err)
	}
	refused(t, "the access token made from it", verify(ti.replica, tokens.Access), keyring.Revoked)
	refused(t, "Check(used)", ti.Check(t.Context(), used), keyring.Revoked)
}

// TestForeignRevoked: a foreign token is revoked by itself, by its jti, by its user's cutoff and with its key.
func TestForeignRevoked(t *testing.T) {
	ti := withDjango(t, newBus())
	access := func(jti string) string { return simpleJWT(t, "access", map[string]any{"jti": jti}) }
	for _, jti := range []string{"by itself", "by jti", "by sub", "by key"} {
		if err := verify(ti.replica, access(jti)); err != nil {
			t.Fatalf("verify(a foreign access token): %v", err)
		}
	}
	revoke := func(target issuer.Target) {
		t.Helper()
		if _, err := ti.Revoke(t.Context(), target); err != nil {
			t.Fatal(err)
		}
	}
	revoke(issuer.Target{Token: access("by itself")})
	refused(t, "revoked by itself", verify(ti.replica, access("by itself")), keyring.Revoked)
	revoke(issuer.Target{ID: "by jti"})
	refused(t, "revoked by jti", verify(ti.replica, access("by jti")), keyring.Revoked)
	tokens := refresh(t, ti, simpleJWT(t, "refresh", nil))
	revoke(issuer.Target{Token: simpleJWT(t, "refresh", nil)})
	refused(t, "what was made from a revoked refresh token", verify(ti.replica, tokens.Access), keyring.Revoked)
	if err := verify(ti.replica, access("by sub")); err != nil {
		t.Fatalf("verify(a token that is not meant): %v", err)
	}
	revoke(issuer.Target{Subject: "7"})
	refused(t, "revoked with its user", verify(ti.replica, access("by sub")), keyring.Revoked)
	keys, err := ti.ListKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(keys, func(k issuer.KeyStatus) bool { return k.Accept == keyring.SimpleJWT })
	if at < 0 || keys[at].Expires.IsZero() {
		t.Fatalf("ListKeys: got %+v, want a key that accepts Simple JWT's tokens for a time", keys)
	}
	if _, err := ti.RevokeKey(t.Context(), keys[at].KeyID, issuer.Waiting{Force: true}); err != nil {
		t.Fatal(err)
	}
	later := simpleJWT(t, "access", map[string]any{"jti": "by key", "iat": time.Now().Unix()})
	refused(t, "of a revoked key", verify(ti.replica, later), keyring.KeyRevoked)
}

func TestImportAccept(t *testing.T) {
	ti := start(t, newBus())
	secret := strings.Repeat("s", 32)
	simple := keyring.Accept{Kind: keyring.SimpleJWT}
	for name, in := range map[string]issuer.Import{
		"another kind":         {Secret: secret, Accept: keyring.Accept{Kind: "others"}},
		"rules without a kind": {Secret: secret, Accept: keyring.Accept{Issuer: "x"}},
		"a time without it":    {Secret: secret, AcceptFor: time.Hour},
		"to sign":              {Secret: secret, Accept: simple, Activate: true, Shared: true},
		"for ever":             {Secret: secret, Accept: simple, AcceptFor: 367 * 24 * time.Hour},
		"below zero":           {Secret: secret, Accept: simple, AcceptFor: -1},
		"jti as user id":       {Secret: secret, Accept: keyring.Accept{Kind: keyring.SimpleJWT, UserIDClaim: "jti"}},
	} {
		if _, err := ti.ImportKey(t.Context(), in); !isInput(err) {
			t.Errorf("ImportKey(%s): got %v, want an InputError", name, err)
		}
	}
	for n := range keyring.MaxAccepting + 1 {
		_, err := ti.ImportKey(t.Context(), issuer.Import{Secret: secret + strings.Repeat("x", n), Accept: simple})
		if n < keyring.MaxAccepting && err != nil || n == keyring.MaxAccepting && !isInput(err) {
			t.Errorf("ImportKey(number %d): got %v", n+1, err)
		}
	}
}

// TestForeignRefreshElsewhere: the users live in the project's own database; the session stands on their password as any other.
func TestForeignRefreshElsewhere(t *testing.T) {
	d := newDirectory()
	ti := elsewhere(t, d)
	if _, err := ti.ImportKey(t.Context(), issuer.Import{Secret: djangoKey, Accept: keyring.Accept{Kind: keyring.SimpleJWT}}); err != nil {
		t.Fatal(err)
	}
	tokens := refresh(t, ti, simpleJWT(t, "refresh", map[string]any{"user_id": 1}))
	if sub := claims(t, tokens.Access)["sub"]; sub != "1" {
		t.Errorf("sub is %v, want anna's", sub)
	}
	tokens = refresh(t, ti, tokens.Refresh)
	d.set("anna", func(a *issuer.Account) { a.Marker = "another" })
	_, err := ti.Refresh(t.Context(), tokens.Refresh)
	refused(t, "after a new password", err, keyring.Revoked)
	d.set("ben", func(a *issuer.Account) { a.Disabled = true })
	if _, err := ti.Refresh(t.Context(), simpleJWT(t, "refresh", map[string]any{"user_id": 2})); !errors.Is(err, issuer.ErrNoAccount) {
		t.Errorf("Refresh(of a user disabled in the directory): got %v, want ErrNoAccount", err)
	}
}
