package issuer_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

func TestOAuthRevoke(t *testing.T) {
	w := newWorld(t, newBus())
	user := login(t, w.testIssuer)
	job, _ := w.granted(t, "job", "grant_type", "client_credentials", "audience", issuerURL)
	app, appRefresh := w.granted(t, "app", "grant_type", "password", "username", "alice", "password", "wonderland")
	const path = "/oauth2/revoke"

	refusal(t, "no token", w.post(path, ""), 400, "invalid_request")
	refusal(t, "a confidential client's token, by nobody", w.post(path, "", "token", job), 401, "invalid_client")
	refusal(t, "its session, by nobody", w.post(path, "", "token", appRefresh), 401, "invalid_client")
	refusal(t, "by another", w.post(path, "gate", "token", job), 400, "unauthorized_client")
	refusal(t, "a user's, by a client", w.post(path, "gate", "token", user.Access), 400, "unauthorized_client")
	refusal(t, "wrong secret", ask(w.h, "POST", path, "token=x", "Content-Type", formType, "Authorization", basic("job", "x")), 401, "invalid_client")
	for name, token := range map[string]string{"job's": job, "app's": app, "alice's": user.Access} {
		if err := verify(w.replica, token); err != nil {
			t.Fatalf("after refusals, %s token: got %v, want it accepted", name, err)
		}
	}
	for _, tc := range []struct{ name, as, token, gone, stays string }{
		{"nonsense", "", "x.y.z", "", ""},
		{"a client's own", "job", job, job, app},
		{"an access token, itself alone", "", user.Access, user.Access, ""},
		{"again", "", user.Access, user.Access, ""},
		{"a refresh token, its session", "app", appRefresh, app, ""},
	} {
		if got := w.post(path, tc.as, "token", tc.token, "token_type_hint", "whatever"); got.Code != 200 || got.Body.String() != "{}" {
			t.Errorf("%s: got %d %s, want 200 {}", tc.name, got.Code, got.Body)
		}
		if tc.gone != "" {
			refused(t, tc.name, verify(w.replica, tc.gone), keyring.Revoked)
		}
		if tc.stays != "" && verify(w.replica, tc.stays) != nil {
			t.Errorf("%s: another token is refused too", tc.name)
		}
	}
	if _, err := w.Refresh(t.Context(), user.Refresh); err != nil {
		t.Errorf("the session of a revoked access token: got %v, want it alive (API.md §4)", err)
	}
}

// TestOAuthRevokeCredential: RFC 7009 for API keys and opaque tokens, made here or imported, by who holds them; a client's by the client.
func TestOAuthRevokeCredential(t *testing.T) {
	w := newWorld(t, newBus(), withTrail(new(bustest.AuditTrail), nil))
	key := addCredential(t, w.testIssuer, issuer.NewCredential{Name: "key"})
	jobs := addCredential(t, w.testIssuer, issuer.NewCredential{Name: "the job's", ClientID: "job"})
	foreign := strings.Repeat("f", 40)
	if _, err := w.ImportTokens(t.Context(), "", []issuer.ForeignToken{{Key: foreign, UserID: key.Subject}}); err != nil {
		t.Fatal(err)
	}
	const path = "/oauth2/revoke"
	refusal(t, "a client's, by nobody", w.post(path, "", "token", jobs.Secret), 401, "invalid_client")
	refusal(t, "a client's, by another", w.post(path, "gate", "token", jobs.Secret), 400, "unauthorized_client")
	for _, tc := range []struct{ name, as, token string }{
		{"made here", "", key.Secret}, {"again", "", key.Secret}, {"imported", "", foreign}, {"a client's", "job", jobs.Secret},
		{"nobody's", "", strings.Repeat("e", 40)}, {"a wrong checksum", "", key.Secret[:len(key.Secret)-1] + "!"},
	} {
		known := tc.name != "nobody's" && tc.name != "a wrong checksum"
		if first := tc.name != "again"; known && w.accepted(tc.token) != first {
			t.Fatalf("%s: accepted before: %v, want %v", tc.name, !first, first)
		}
		before := w.replica.Snapshot().Position.Seq
		if got := w.post(path, tc.as, "token", tc.token); got.Code != 200 || got.Body.String() != "{}" {
			t.Errorf("%s: got %d %s, want 200 {}", tc.name, got.Code, got.Body)
		}
		if known && w.accepted(tc.token) {
			t.Errorf("%s: it is accepted still", tc.name)
		}
		if wrote := w.replica.Snapshot().Position.Seq > before; wrote != (known && tc.name != "again") {
			t.Errorf("%s: written to the log: %v", tc.name, wrote)
		}
	}
	c, err := w.Credential(t.Context(), key.ID)
	if err != nil || c.State != issuer.CredentialRevoked || c.Reason != "revoked by its client" {
		t.Errorf("its record: got %+v, %v", c, err)
	}
	if told := events(t, w.testIssuer, "event=credential+revoked"); len(told) != 3 {
		t.Errorf("the audit has %d credentials revoked, want 3", len(told))
	}
}

func TestOAuthIntrospect(t *testing.T) {
	w := newWorld(t, newBus())
	user := login(t, w.testIssuer)
	job, _ := w.granted(t, "job", "grant_type", "client_credentials")
	app, appRefresh := w.granted(t, "app", "grant_type", "password", "username", "alice", "password", "wonderland")
	ended := login(t, w.testIssuer)
	if err := w.EndWith(t.Context(), ended.Refresh); err != nil {
		t.Fatal(err)
	}
	_, secret, err := w.AddClient(t.Context(), issuer.NewClient{ID: "elsewhere", Audiences: []string{"https://else.example"}})
	if err != nil {
		t.Fatal(err)
	}
	w.secrets["elsewhere"] = secret
	const path = "/oauth2/introspect"
	refusal(t, "nobody", w.post(path, "", "token", job), 401, "invalid_client")
	refusal(t, "a public client", w.post(path, "", "token", job, "client_id", "spa"), 401, "invalid_client")
	refusal(t, "no token", w.post(path, "job"), 400, "invalid_request")
	for _, tc := range []struct {
		name, as, token string
		active          bool
	}{
		{"its own", "job", job, true},
		{"for its audience", "job", user.Access, true},
		{"of another, for another audience", "app", job, false},
		{"neither of it nor for it", "elsewhere", user.Access, false},
		{"its own session", "app", appRefresh, true},
		{"another's session", "job", appRefresh, false},
		{"a user's session", "job", user.Refresh, false},
		{"revoked", "job", ended.Access, false},
		{"revoked session", "app", ended.Refresh, false},
		{"tampered", "job", job[:len(job)-4] + "AAAA", false},
		{"nonsense", "job", "x", false},
		{"for its audience too", "gate", app, true},
	} {
		got := w.post(path, tc.as, "token", tc.token)
		var a map[string]any
		if err := json.Unmarshal(got.Body.Bytes(), &a); err != nil || got.Code != 200 || a["active"] != tc.active {
			t.Errorf("%s: got %d %s, want active %v", tc.name, got.Code, got.Body, tc.active)
			continue
		}
		if tc.active && (a["jti"] != claims(t, tc.token)["jti"] || a["sub"] == nil) || !tc.active && len(a) != 1 {
			t.Errorf("%s: got %s", tc.name, got.Body)
		}
	}
}

func TestMetadata(t *testing.T) {
	for _, tc := range []struct {
		url, path string
		status    int
	}{
		{issuerURL, "/.well-known/oauth-authorization-server", 200},
		{issuerURL, "/.well-known/openid-configuration", 200},
		{issuerURL, "/.well-known/oauth-authorization-server/auth", 404},
		{"https://example.org/auth", "/.well-known/oauth-authorization-server/auth", 200},
		{"https://example.org/auth", "/auth/.well-known/openid-configuration", 200},
		{"https://example.org/auth", "/.well-known/openid-configuration", 200},
	} {
		ti := newIssuer(t, newBus(), func(cfg *issuer.Config, _ *issuer.Parts) { cfg.URL = tc.url })
		got := ask(ti.PublicHandler(), "GET", tc.path, "")
		if got.Code != tc.status {
			t.Errorf("GET %s of %s: got %d, want %d", tc.path, tc.url, got.Code, tc.status)
		}
		if tc.status != 200 {
			continue
		}
		var m map[string]any
		if err := json.Unmarshal(got.Body.Bytes(), &m); err != nil {
			t.Fatal(err)
		}
		if m["issuer"] != tc.url || m["token_endpoint"] != tc.url+"/oauth2/token" || m["jwks_uri"] != tc.url+"/.well-known/jwks.json" {
			t.Errorf("GET %s of %s: got %s", tc.path, tc.url, got.Body)
		}
		if got.Header().Get("Access-Control-Allow-Origin") != "*" || !strings.Contains(got.Header().Get("Cache-Control"), "max-age=300") {
			t.Errorf("GET %s: got headers %v", tc.path, got.Header())
		}
		// RFC 8414 §2 requires them, and no list may be empty.
		for name, v := range m {
			if list, ok := v.([]any); ok && len(list) == 0 {
				t.Errorf("%s is empty", name)
			}
		}
		if strings.Contains(got.Body.String(), "password") {
			t.Error("the password grant is offered where it is off")
		}
	}
}
