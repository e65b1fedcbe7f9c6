package agent_test

import (
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// TestForeignTokens: a token that Simple JWT made is answered for as one of ours, by the subject that its user_id gives.
func TestForeignTokens(t *testing.T) {
	w := newWorld(t)
	key := keyringtest.Secret(t)
	fact := w.fact(key, keyring.Announced)
	fact.Accept, fact.VerifyOnly = string(keyring.SimpleJWT), true
	w.apply(fact)
	now := time.Now().Unix()
	mint := func(tokenType, jti string) string {
		token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
			"token_type": tokenType, "exp": now + 300, "iat": now - 1, "jti": jti, "user_id": 7, "active": false, "sub": 3, "scope": "admin",
		}).SignedString(key.Secret())
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	h := w.listen("tcp")
	token := mint("access", "1")
	for range 2 { // proven first, cached then
		got := h.verify(token).json(t)
		if got["active"] != true || got["sub"] != "7" || got["kid"] != key.ID() || got["token_type"] != "access" || got["scope"] != nil {
			t.Errorf("verify: got %v", got)
		}
	}
	got := h.do("POST", "/oauth2/introspect", "token="+token, "Content-Type: application/x-www-form-urlencoded").json(t)
	if got["active"] != true || got["sub"] != "7" || got["user_id"] != "7" || got["scope"] != nil {
		t.Errorf("introspect: got %v, want the subject as text, and no scope", got)
	}
	checkDenied(t, w, h.verify(mint("refresh", "2")), keyring.WrongType)
	checkDenied(t, w, h.verify(w.tokenOf(key, keyring.AccessToken)), keyring.UnknownKey)
	if v := w.agent.Verify(token, agent.Query{Scope: "read"}); v.Reason != agent.InsufficientScope {
		t.Errorf("Verify(for a scope): got %q, want insufficient_scope", v.Reason)
	}
	if v := w.agent.Verify(token, agent.Query{Audience: "https://other.test"}); v.Reason != keyring.WrongAudience {
		t.Errorf("Verify(for another audience): got %q, want wrong_audience", v.Reason)
	}
	w.apply(&bus.Revocation{ID: "1", ExpiresAt: now + 3600})
	checkDenied(t, w, h.verify(token), keyring.Revoked)
	w.apply(&bus.Revocation{Subject: "7", ExpiresAt: now + 3600, Time: now})
	checkDenied(t, w, h.verify(mint("sliding", "3")), keyring.Revoked)
}

// TestForeignPrincipal: forward-auth shows of a foreign token what is believed of it, and nothing that its maker put beside
// that; it is no browser's session.
func TestForeignPrincipal(t *testing.T) {
	w := newWorld(t, func(c *agent.Config) {
		c.Headers = map[string]string{"email": "X-Auth-Email", "roles": "X-Also-Roles"}
	})
	key := keyringtest.Secret(t)
	fact := w.fact(key, keyring.Announced)
	fact.Accept, fact.VerifyOnly = string(keyring.SimpleJWT), true
	w.apply(fact)
	now := time.Now().Unix()
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
		"token_type": "access", "exp": now + 300, "iat": now - 1, "jti": "1", "user_id": 7, "scope": "admin", "roles": []string{"admin"},
		"sid": "s", "client_id": "c", "email": "root@b.example", "csrf": csrfHash(csrfToken),
	}).SignedString(key.Secret())
	if err != nil {
		t.Fatal(err)
	}
	h := w.listen("unix")
	got := h.do("GET", "/v1/auth/forward", "", forwarded("GET", "Authorization: Bearer "+token)...)
	checkAuth(t, "bearer", got, 200, "bearer")
	for name, want := range map[string]string{
		"X-Auth-Subject": "7", "X-Auth-Scope": "", "X-Auth-Roles": "", "X-Auth-Client": "", "X-Auth-Session": "", "X-Auth-Email": "", "X-Also-Roles": "",
	} {
		if v := got.Header.Values(name); len(v) != 1 || v[0] != want {
			t.Errorf("%s: got %q, want %q", name, v, want)
		}
	}
	checkAuth(t, "session", h.do("GET", "/v1/auth/forward", "", forwarded("GET", "Cookie: __Host-sidekey_session="+token)...), 401, "wrong_type")
	for when, want := range map[string]int{
		`claims.sub == "7" && claims.jti == "1" && claims.exp > 0.0`: 200,
		`"admin" in principal.roles || has(claims.roles)`:            403,
		`has(claims.email) || has(claims.roles)`:                     403,
	} {
		w.rules("[[rules]]\nname = 'r'\npaths = ['/**']\nwhen = '''" + when + "'''")
		if got := h.do("GET", "/v1/auth/forward", "", forwarded("GET", "Authorization: Bearer "+token)...); got.StatusCode != want {
			t.Errorf("a rule with %s: got %d, want %d", when, got.StatusCode, want)
		}
	}
}

// TestForeignClaimsInRules: what the maker of a foreign token put beside what is believed of it opens no rule.
func TestForeignClaimsInRules(t *testing.T) {
	w := newWorld(t)
	key := keyringtest.Secret(t)
	fact := w.fact(key, keyring.Announced)
	fact.Accept, fact.VerifyOnly = string(keyring.SimpleJWT), true
	w.apply(fact)
	w.rules(`
[[rules]]
name = "by claim"
paths = ["/claim"]
require = { claims = { tier = "gold" } }
[[rules]]
name = "by expression"
paths = ["/when"]
when = 'has(claims.tier) || has(claims.scope) || has(claims.auth_time)'
[[rules]]
name = "by scope"
paths = ["/scope"]
require = { scopes = ["admin"] }
[[rules]]
name = "recent"
paths = ["/recent"]
require = { auth_age = "5m" }
[[rules]]
name = "own"
paths = ["/users/{id}"]
when = 'request.params.id == claims.sub'
`)
	now := time.Now().Unix()
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
		"token_type": "access", "exp": now + 300, "iat": now - 1, "jti": "1", "user_id": 7, "sub": "8", "scope": "admin", "tier": "gold", "auth_time": now,
	}).SignedString(key.Secret())
	if err != nil {
		t.Fatal(err)
	}
	h := w.listen("mem")
	bearer := "Authorization: Bearer " + token
	for path, want := range map[string]int{"/claim": 403, "/when": 403, "/scope": 403, "/recent": 401, "/users/8": 403, "/users/7": 200} {
		got := h.do("GET", "/v1/auth/forward", "", proxied("GET app.example"+path, bearer)...)
		if got.StatusCode != want {
			t.Errorf("%s: got %d %s, want %d", path, got.StatusCode, got.body, want)
		}
	}
}
