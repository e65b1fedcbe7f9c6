package issuer_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

func TestAddClientRefuses(t *testing.T) {
	ti := start(t, newBus())
	private, err := keyringtest.Ed(t).PrivateJWK()
	if err != nil {
		t.Fatal(err)
	}
	keys := json.RawMessage(`{"keys":[` + string(private) + `]}`)
	for _, tc := range []struct {
		n    issuer.NewClient
		want string
	}{
		{issuer.NewClient{}, `"client_id" must be 1 to 128 letters`},
		{issuer.NewClient{ID: "7"}, `"client_id" must be 1 to 128 letters`},
		{issuer.NewClient{ID: "a b"}, `"client_id" must be 1 to 128 letters`},
		{issuer.NewClient{ID: "a\x00"}, `"client_id" must be 1 to 128 letters`},
		{issuer.NewClient{ID: strings.Repeat("a", 129)}, `"client_id" must be 1 to 128 letters`},
		{issuer.NewClient{ID: "sidekey"}, `"client_id" is issuer.default_client`},
		{issuer.NewClient{ID: "a", Name: "x\n"}, `"client_name" must be`},
		{issuer.NewClient{ID: "a", Scope: `a"b`}, `"scope" must be`},
		{issuer.NewClient{ID: "a", AuthMethods: []string{"tls_client_auth"}}, `"auth_methods" must be of`},
		{issuer.NewClient{ID: "a", AuthMethods: []string{"none", "client_secret_post"}}, `"auth_methods" must be "none" alone`},
		{issuer.NewClient{ID: "a", AuthMethods: []string{"private_key_jwt"}}, `"jwks" must be there`},
		{issuer.NewClient{ID: "a", AuthMethods: []string{"client_secret_post"}, JWKS: keys}, `"jwks" must be there`},
		{issuer.NewClient{ID: "a", JWKS: json.RawMessage(`{"keys":[]}`)}, `"jwks" must hold 1 to 8`},
		{issuer.NewClient{ID: "a", JWKS: json.RawMessage(`{"keys":[{"kty":"oct","k":"c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"}]}`)}, `"jwks" cannot be used`},
		{issuer.NewClient{ID: "a", Grants: []string{"authorization_code"}}, `"grant_types" must be of`},
		{issuer.NewClient{ID: "a", Grants: []string{"password", "password"}}, `"grant_types" must be of`},
		{issuer.NewClient{ID: "a", AuthMethods: []string{"none"}, Grants: []string{"client_credentials"}}, `"grant_types" cannot hold client_credentials`},
		{issuer.NewClient{ID: "a", AuthMethods: []string{"none"}, Grants: []string{exchangeBy}}, `"grant_types" cannot hold`},
		{issuer.NewClient{ID: "a", Audiences: []string{""}}, `"audiences" must each be`},
		{issuer.NewClient{ID: "a", AccessLifetime: "1h"}, `"access_lifetime" must be a duration such as "5m", from 1s to issuer.access_lifetime (15m0s)`},
		{issuer.NewClient{ID: "a", Roles: []string{"a,b"}}, `"roles" must each be`},
	} {
		_, _, err := ti.AddClient(t.Context(), tc.n)
		if err == nil || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("AddClient(%+v): got %v, want %s", tc.n, err, tc.want)
		}
	}
	c, secret, err := ti.AddClient(t.Context(), issuer.NewClient{ID: "robot", JWKS: keys})
	if err != nil || secret != "" || strings.Contains(string(c.JWKS), `"d"`) {
		t.Errorf("with keys: got %s, secret %q, %v, want public keys and no secret", c.JWKS, secret, err)
	}
	if _, _, err := ti.AddClient(t.Context(), issuer.NewClient{ID: "robot"}); !errors.Is(err, issuer.ErrExists) {
		t.Errorf("the same again: got %v, want ErrExists", err)
	}
	if _, _, err := ti.AddClient(t.Context(), issuer.NewClient{ID: alice(t, ti)}); err == nil {
		t.Error("a user's id: got a client, want none")
	}
}

// alice gives a user whose id a client could have.
func alice(t *testing.T, ti *testIssuer) string {
	t.Helper()
	u, err := ti.AddUser(t.Context(), issuer.NewUser{ID: "person", Username: "person", Password: "correct horse staple"})
	if err != nil {
		t.Fatal(err)
	}
	return u.ID
}

// TestClientsAdmin is the life of a client by the admin API.
func TestClientsAdmin(t *testing.T) {
	w := newWorld(t, newBus())
	admin := w.LocalAdminHandler()
	call := func(method, path, body string, status int) map[string]any {
		t.Helper()
		got := ask(admin, method, "/admin/v1/clients"+path, body)
		var m map[string]any
		if got.Body.Len() > 0 && json.Unmarshal(got.Body.Bytes(), &m) != nil || got.Code != status {
			t.Fatalf("%s %s %s: got %d %s, want %d", method, path, body, got.Code, got.Body, status)
		}
		return m
	}
	token := func(secret string, status int) string {
		t.Helper()
		got := ask(w.h, "POST", "/oauth2/token", "grant_type=client_credentials", "Content-Type", formType, "Authorization", basic("billing", secret))
		var a map[string]any
		if json.Unmarshal(got.Body.Bytes(), &a) != nil || got.Code != status {
			t.Fatalf("a token for billing: got %d %s, want %d", got.Code, got.Body, status)
		}
		access, _ := a["access_token"].(string)
		return access
	}
	first := call("POST", "", `{"client_id":"billing","scope":"read"}`, 201)["client_secret"].(string)
	if shown := call("GET", "/billing", "", 200); shown["client_secret"] != nil || strings.Contains(fmt.Sprint(shown), "sha256") {
		t.Errorf("GET /billing: got %v, want no secret and no hash", shown)
	}
	call("POST", "", `{"client_id":"billing"}`, 409)
	call("POST", "", `{"client_id":"x","secret":"mine"}`, 400)
	call("GET", "/nobody", "", 404)
	call("PATCH", "/billing", `{}`, 400)
	call("PATCH", "/billing", `{"auth_methods":["none"]}`, 400)
	if n := len(call("GET", "", "", 200)["clients"].([]any)); n != 5 {
		t.Errorf("GET: got %d clients, want 5", n)
	}
	before := token(first, 200)
	second := call("POST", "/billing/secret", `{"overlap":"1h"}`, 201)["client_secret"].(string)
	token(first, 200)
	token(second, 200)
	third := call("POST", "/billing/secret", ``, 201)["client_secret"].(string)
	token(first, 401) // two at most
	token(second, 200)
	if err := verify(w.replica, before); err != nil {
		t.Errorf("a token from before a rotation with overlap: got %v, want it accepted", err)
	}
	fourth := call("POST", "/billing/secret", `{"overlap":"0s"}`, 201)["client_secret"].(string)
	token(third, 401)
	refused(t, "a token from before a rotation without overlap", verify(w.replica, before), keyring.Revoked)
	call("POST", "/billing/secret", `{"overlap":"-1s"}`, 400)
	call("POST", "/spa/secret", ``, 400)

	before = token(fourth, 200)
	call("PATCH", "/billing", `{"disabled":true,"wait":"fleet"}`, 200)
	token(fourth, 401)
	refused(t, "a disabled client's token", verify(w.replica, before), keyring.Revoked)
	call("PATCH", "/billing", `{"disabled":false}`, 200)
	before = token(fourth, 200)
	if err := verify(w.replica, before); err != nil {
		t.Errorf("after it was enabled again: got %v, want a new token accepted", err)
	}
	call("DELETE", "/billing", "", 204)
	token(fourth, 401)
	refused(t, "a deleted client's token", verify(w.replica, before), keyring.Revoked)
	call("DELETE", "/billing", "", 404)
	call("POST", "", `{"client_id":"billing"}`, 201) // the name is free again
	if logged := w.logged.String(); strings.Contains(logged, "skcs_") {
		t.Error("a client's secret is in the log")
	}
}

func TestOldSecretEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, newBus())
		if _, _, err := w.RotateSecret(t.Context(), "job", time.Hour); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour - time.Second)
		w.granted(t, "job", "grant_type", "client_credentials")
		time.Sleep(2 * time.Second)
		refusal(t, "an hour later", w.post("/oauth2/token", "job", "grant_type", "client_credentials"), 401, "invalid_client")
	})
}

// TestClientSecretLimit: wrong secrets are slowed down, and lock nobody out who has the right one.
func TestClientSecretLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, newBus(), func(cfg *issuer.Config, _ *issuer.Parts) { cfg.LoginLimit = 5 })
		try := func(address, secret string) *httptest.ResponseRecorder {
			r := httptest.NewRequest("POST", "/oauth2/token", strings.NewReader("grant_type=client_credentials"))
			r.RemoteAddr = address + ":1"
			r.Header.Set("Content-Type", formType)
			r.Header.Set("Authorization", basic("job", secret))
			got := httptest.NewRecorder()
			w.h.ServeHTTP(got, r)
			return got
		}
		for range 5 {
			refusal(t, "wrong", try("192.0.2.1", "x"), 401, "invalid_client")
		}
		limited := try("192.0.2.1", "x")
		refusal(t, "wrong once more", limited, 429, "temporarily_unavailable")
		if limited.Header().Get("Retry-After") == "" {
			t.Error("429 without Retry-After")
		}
		for _, address := range []string{"192.0.2.1", "192.0.2.2", "127.0.0.1"} {
			if got := try(address, w.secrets["job"]); got.Code != http.StatusOK {
				t.Errorf("the right secret from %s: got %d %s, want 200", address, got.Code, got.Body)
			}
		}
		for range 50 {
			try("192.0.2.1", "x")
		}
		refusal(t, "an address that fails and fails, even with the right one", try("192.0.2.1", w.secrets["job"]), 429, "temporarily_unavailable")
		time.Sleep(time.Minute)
		if got := try("192.0.2.1", w.secrets["job"]); got.Code != http.StatusOK {
			t.Errorf("a minute later: got %d, want 200", got.Code)
		}
	})
}
