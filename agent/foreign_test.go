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
			"token_type": tokenType, "exp": now + 300, "iat": now - 1, "jti": jti, "user_id": 7, "active": false, "sub": 3,
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
	if got["active"] != true || got["sub"] != "7" || got["user_id"] != float64(7) {
		t.Errorf("introspect: got %v, want the subject as text", got)
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
