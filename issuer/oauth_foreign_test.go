package issuer_test

import (
	"encoding/json"
	"testing"

	"github.com/sidekey/sidekey/issuer"
)

// TestForeignTokensByOAuth: what a Django project has made is the default client's, for revocation and refresh, and nobody's
// to exchange.
func TestForeignTokensByOAuth(t *testing.T) {
	ti := withDjango(t, newBus())
	w := &world{testIssuer: ti, h: ti.PublicHandler(), secrets: make(map[string]string)}
	for _, n := range []issuer.NewClient{
		{ID: "gate", Scope: "read", Grants: []string{exchangeBy}},
		{ID: "elsewhere", Audiences: []string{"https://else.example"}},
	} {
		_, secret, err := w.AddClient(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		w.secrets[n.ID] = secret
	}
	active := func(as, token string) bool {
		t.Helper()
		var a struct{ Active bool }
		got := w.post("/oauth2/introspect", as, "token", token)
		if err := json.Unmarshal(got.Body.Bytes(), &a); err != nil || got.Code != 200 {
			t.Fatalf("introspecting: got %d %s", got.Code, got.Body)
		}
		return a.Active
	}
	access, token := simpleJWT(t, "access", nil), simpleJWT(t, "refresh", nil)
	refusal(t, "exchange", w.post("/oauth2/token", "gate", exchange(access)...), 400, "invalid_request")
	if !active("gate", access) || active("elsewhere", access) {
		t.Error("introspection of a foreign access token: want it told to whom the issuer's audience concerns, and nobody else")
	}
	refusal(t, "revocation by another client", w.post("/oauth2/revoke", "gate", "token", access), 400, "unauthorized_client")
	if got := w.post("/oauth2/revoke", "", "token", access); got.Code != 200 || active("gate", access) {
		t.Errorf("revocation: got %d %s, and active: %v", got.Code, got.Body, active("gate", access))
	}
	next, _ := w.granted(t, "", "grant_type", "refresh_token", "refresh_token", token)
	if err := verify(w.replica, next); err != nil {
		t.Errorf("refreshed: got %v", err)
	}
	if got := w.post("/oauth2/revoke", "", "token", token); got.Code != 200 || verify(w.replica, next) == nil {
		t.Errorf("revocation of the refresh token: got %d, and its session goes on: %v", got.Code, verify(w.replica, next) == nil)
	}
}

// TestOAuthOfHS256: a token has one audience there, and the metadata and the key set stay without a secret.
func TestOAuthOfHS256(t *testing.T) {
	w := newWorld(t, newBus(), hs256)
	access, _ := w.granted(t, "job", "grant_type", "client_credentials", "audience", issuerURL)
	if err := verify(w.replica, access); err != nil {
		t.Errorf("verifying: got %v", err)
	}
	user := login(t, w.testIssuer)
	narrow, _ := w.granted(t, "gate", exchange(user.Access, "scope", "read")...)
	if err := verify(w.replica, narrow); err != nil {
		t.Errorf("verifying an exchanged token: got %v", err)
	}
	two := w.post("/oauth2/token", "job", "grant_type", "client_credentials", "audience", issuerURL, "audience", "https://jobs.example")
	refusal(t, "two audiences", two, 400, "invalid_target")
	refusal(t, "an audience without a key", w.post("/oauth2/token", "job", "grant_type", "client_credentials"), 503, "temporarily_unavailable")
}
