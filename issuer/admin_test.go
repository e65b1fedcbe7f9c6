package issuer_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

func TestAdminNeedsItsToken(t *testing.T) {
	ti := start(t, newBus())
	h := ti.AdminHandler(only("secret-admin-token"))
	for _, header := range [][]string{
		nil, {"Authorization", "Bearer wrong"}, {"Authorization", "Basic secret-admin-token"}, {"Authorization", "Bearer " + login(t, ti).Access},
	} {
		w := ask(h, "GET", "/admin/v1/keys", "", header...)
		if w.Code != 401 || w.Header().Get("WWW-Authenticate") == "" || w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("GET /admin/v1/keys with %v: got %d %s, want a 401 problem", header, w.Code, w.Body)
		}
	}
	if w := ask(h, "GET", "/admin/v1/keys", "", "Authorization", "Bearer secret-admin-token"); w.Code != 200 {
		t.Errorf("GET /admin/v1/keys with the token: got %d %s, want 200", w.Code, w.Body)
	}
	for _, header := range [][]string{nil, {"Authorization", "Bearer "}} {
		if w := ask(ti.AdminHandler(only("")), "GET", "/admin/v1/keys", "", header...); w.Code != 401 {
			t.Errorf("GET /admin/v1/keys where no token is configured: got %d, want 401", w.Code)
		}
	}
}

func TestAdminAPI(t *testing.T) {
	b := newBus()
	ti := start(t, b)
	b.fleet.Join("web-1", nil)
	h := ti.LocalAdminHandler()
	tokens, again := login(t, ti), login(t, ti)
	sub := claims(t, tokens.Access)["sub"].(string)
	kid := checkRing(t, ti)
	for _, tc := range []struct {
		method, path, body string
		status             int
		holds              string
	}{
		{"GET", "/admin/v1/keys", "", 200, `"kid":"` + kid + `"`},
		{"POST", "/admin/v1/keys/rotate", `{"publish_ahead":"soon"}`, 400, `publish_ahead`},
		{"POST", "/admin/v1/keys/rotate", `{"wait":"all"}`, 400, `fleet`},
		{"POST", "/admin/v1/keys/rotate", `{"emergency":true,"alg":"ES256"}`, 400, `emergency`},
		{"POST", "/admin/v1/keys/rotate", `{"wait":"soon"}`, 400, `wait`},
		{"POST", "/admin/v1/keys/rotate", `{"wait":"fleet","timeout":"2h"}`, 400, `timeout`},
		{"POST", "/admin/v1/keys/rotate", `{"algo":"RS256"}`, 400, `unknown member \"algo\"`},
		{"POST", "/admin/v1/keys/rotate", `{"alg":"EdDSA","alg":"EdDSA"}`, 400, `strict JSON`},
		{"POST", "/admin/v1/keys/rotate", `{"bits":"many"}`, 400, `\"bits\"`},
		{"POST", "/admin/v1/keys/rotate", `{"wait":"fleet","timeout":"10ms"}`, 202, `"state":"announced"`},
		{"POST", "/admin/v1/keys/rotate", `{"wait":"none","emergency":true}`, 202, `"confirmed":false,"applied":[],"fenced":[],"pending":["web-1"],"serving":[]`},
		{"POST", "/admin/v1/keys/import", `{"secret":"` + strings.Repeat("x", 32) + `","activate":true}`, 400, `shared`},
		{"POST", "/admin/v1/keys/import", `{"secret":"short"}`, 400, `32`},
		{"POST", "/admin/v1/keys/import", `{"secret":"` + strings.Repeat("x", 32) + `","accept":"others"}`, 400, `accept`},
		{"POST", "/admin/v1/keys/nobody/revoke", ``, 404, `nobody`},
		{"POST", "/admin/v1/keys/" + kid + "/revoke", `{"wait":"none"}`, 202, `"pending":["web-1"]`},
		{"POST", "/admin/v1/revocations", `{}`, 400, `exactly one`},
		{"POST", "/admin/v1/revocations", `{"jti":"x","wait":"all"}`, 400, `fleet`},
		{"POST", "/admin/v1/revocations", `{"jti":"x","timeout":"soon"}`, 400, `timeout`},
		{"POST", "/admin/v1/revocations", `{"jti":"x","wait":"fleet","timeout":"51s"}`, 400, `50s`},
		{"POST", "/admin/v1/revocations", `{"jti":"x","wait":"fleet","timeout":"10ms"}`, 202, `"confirmed":false,"applied":[],"fenced":[],"pending":["web-1"],"serving":[],"elapsed_ms":`},
		{"POST", "/admin/v1/revocations", `{"token":"nonsense"}`, 400, `malformed`},
		{"POST", "/admin/v1/revocations", `{"jti":"some-jti","reason":"test","wait":"none","timeout":"5s"}`, 200, `"confirmed":false,"applied":[],"fenced":[],"pending":["web-1"],"serving":[],"elapsed_ms":`},
		{"GET", "/admin/v1/revocations", "", 200, `"jti":"some-jti"`},
		{"GET", "/admin/v1/revocations/1", "", 200, `"seq":1,"confirmed":false`},
		{"GET", "/admin/v1/revocations/100000", "", 404, `problem`},
		{"GET", "/admin/v1/revocations/0", "", 404, `problem`},
		{"GET", "/admin/v1/revocations/x", "", 400, `seq`},
		{"GET", "/admin/v1/agents", "", 200, `"name":"web-1"`},
		{"DELETE", "/admin/v1/agents/nobody", "", 404, ``},
		{"DELETE", "/admin/v1/agents/web-1", "", 204, ``},
		{"GET", "/admin/v1/sessions?sub=" + sub, "", 200, tokens.SessionID},
		{"GET", "/admin/v1/sessions?sub=nobody", "", 200, `{"sessions":[]}`},
		{"DELETE", "/admin/v1/sessions/" + tokens.SessionID, "", 200, `"seq":`},
		{"DELETE", "/admin/v1/sessions/nobody", "", 404, ``},
		{"DELETE", "/admin/v1/sessions/nobody?wait=soon", "", 400, `wait`},
		{"POST", "/admin/v1/users", `{"username":"bob","password":"builder","roles":["a"],"attributes":{"team":"x"}}`, 201, `"attributes":{"team":"x"}`},
		{"POST", "/admin/v1/users", `{"username":"bob","password":"builder"}`, 409, `exists`},
		{"POST", "/admin/v1/users", `{"username":"eve"}`, 400, `password`},
		{"POST", "/admin/v1/users", `{"username":"eve","Password":"x"}`, 400, `unknown member \"Password\"`},
		{"GET", "/admin/v1/users", "", 200, `"username":"bob"`},
		{"GET", "/admin/v1/users/bob", "", 200, `"scope":"","roles":["a"]`},
		{"GET", "/admin/v1/users/nobody", "", 404, ``},
		{"PATCH", "/admin/v1/users/bob", `{}`, 400, `nothing to change`},
		{"PATCH", "/admin/v1/users/bob", `{"scope":"read","disabled":true}`, 200, `"disabled":true`},
		{"PATCH", "/admin/v1/users/bob", `{"wait":"fleet"}`, 400, `nothing to change`},
		{"PATCH", "/admin/v1/users/bob", `{"scope":"write","wait":"fleet"}`, 200, `"scope":"write"`},
		{"PATCH", "/admin/v1/users/bob", `{"disabled":true,"wait":"fleet"}`, 200, `"confirmed":true`},
		{"DELETE", "/admin/v1/users/bob?wait=all", "", 400, `wait`},
		{"DELETE", "/admin/v1/users/bob", "", 204, ``},
		{"PUT", "/admin/v1/users", "", 405, `GET, POST`},
		{"GET", "/admin/v1/nothing", "", 404, `problem`},
	} {
		w := ask(h, tc.method, tc.path, tc.body)
		holds := tc.holds
		if holds == "problem" {
			holds = `"type":"about:blank"`
		}
		if w.Code != tc.status || !strings.Contains(w.Body.String(), holds) {
			t.Errorf("%s %s %s: got %d %s, want %d with %s", tc.method, tc.path, tc.body, w.Code, w.Body, tc.status, holds)
		}
		if w.Code >= 400 && w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s %s: Content-Type: got %q, want a problem", tc.method, tc.path, w.Header().Get("Content-Type"))
		}
		if strings.Contains(w.Body.String(), "argon2id") {
			t.Errorf("%s %s: the answer shows a password hash: %s", tc.method, tc.path, w.Body)
		}
	}
	if w := ask(h, "POST", "/admin/v1/users", `{}`, "Content-Type", "text/plain"); w.Code != 415 {
		t.Errorf("POST as text/plain: got %d %s, want 415", w.Code, w.Body)
	}
	refused(t, "verify(the session ended)", verify(ti.replica, tokens.Access), keyring.Revoked)
	if err := verify(ti.replica, again.Access); err != nil {
		t.Errorf("verify(the other session): got %v, want nil", err)
	}
}

func TestReceiptAsItNowStands(t *testing.T) {
	b := newBus()
	ti := start(t, b)
	b.fleet.Join("web-1", nil)
	h := ti.LocalAdminHandler()
	receipt, err := ti.Revoke(t.Context(), issuer.Target{ID: "x"})
	if err != nil {
		t.Fatal(err)
	}
	b.fleet.Acknowledge("web-1", bus.Position{Epoch: ti.position().Epoch, Seq: receipt.Seq})
	w := ask(h, "GET", fmt.Sprintf("/admin/v1/revocations/%d", receipt.Seq), "")
	if w.Code != 200 || !strings.Contains(w.Body.String(), `"applied":["web-1"]`) {
		t.Errorf("GET the receipt: got %d %s, want web-1 applied", w.Code, w.Body)
	}
}

// TestNoSecretIsLogged runs through everything that handles one, and reads all that was logged.
func TestNoSecretIsLogged(t *testing.T) {
	b := newBus()
	key := sealingKey(t)
	b.fleet.Join("web-1", key.Public())
	ti := newIssuer(t, b, hs256)
	ti.steps(t)
	public, admin := ti.PublicHandler(), ti.AdminHandler(only("admin-token-0123456789"))
	auth := []string{"Authorization", "Bearer admin-token-0123456789"}
	secrets := []string{"admin-token-0123456789", "wonderland", "looking-glass", "typed-into-the-name", strings.Repeat("imported", 4), "argon2id"}
	ask(admin, "POST", "/admin/v1/users", `{"username":"alice","password":"wonderland"}`, auth...)
	tokens := login(t, ti)
	next := refresh(t, ti, tokens.Refresh)
	secrets = append(secrets, tokens.Access, tokens.Refresh, next.Access, next.Refresh)
	for _, token := range secrets[6:] {
		secrets = append(secrets, token[strings.LastIndex(token, ".")+1:])
	}
	for path, body := range map[string]string{
		"/api/token/":           `{"username":"typed-into-the-name","password":"looking-glass"}`,
		"/api/token/refresh/":   fmt.Sprintf(`{"refresh":%q}`, next.Access),
		"/api/token/verify/":    fmt.Sprintf(`{"token":%q}`, next.Access+"x"),
		"/api/token/blacklist/": fmt.Sprintf(`{"refresh":%q}`, next.Refresh),
	} {
		ask(public, "POST", path, body)
	}
	for _, call := range [][2]string{
		{"/admin/v1/keys/import", `{"secret":"` + strings.Repeat("imported", 4) + `"}`},
		{"/admin/v1/keys/import", `{"secret":"short","jwk":{"k":"looking-glass"}}`},
		{"/admin/v1/keys/rotate", `{}`},
		{"/admin/v1/revocations", fmt.Sprintf(`{"token":%q}`, next.Access)},
		{"/admin/v1/users/alice", `{"password":"looking-glass"}`},
	} {
		method := "POST"
		if strings.HasSuffix(call[0], "alice") {
			method = "PATCH"
		}
		ask(admin, method, call[0], call[1], auth...)
	}
	ask(admin, "GET", "/admin/v1/keys", "", "Authorization", "Bearer looking-glass")
	recs, err := b.key.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range recs {
		for _, piece := range strings.Split(string(r.Value), `"k":"`)[1:] {
			secrets = append(secrets, piece[:strings.Index(piece, `"`)])
		}
	}
	if len(secrets) < 16 {
		t.Fatalf("got %d secrets to look for, want those of the buckets too", len(secrets))
	}
	logged := ti.logged.String()
	if !strings.Contains(logged, tokens.SessionID) {
		t.Fatalf("the log holds no audit line of the login:\n%s", logged)
	}
	for _, secret := range secrets {
		if strings.Contains(logged, secret) {
			t.Errorf("the log shows the secret %q:\n%s", secret, logged)
		}
	}
}

func TestMetrics(t *testing.T) {
	ti := start(t, newBus())
	h := ti.PublicHandler()
	login(t, ti)
	ask(h, "GET", "/no/such/path-chosen-by-a-client", "")
	w := ask(h, "GET", "/metrics", "")
	for _, want := range []string{`sidekey_logins_total{outcome="ok"} 1`, `sidekey_http_requests_total{route="/",status="404"} 1`, "sidekey_password_hash_seconds_count", "sidekey_applied_seq"} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("GET /metrics: got %s, want %s in it", w.Body, want)
		}
	}
	if strings.Contains(w.Body.String(), "chosen-by-a-client") {
		t.Error("GET /metrics: a label holds what a client chose")
	}
	apart := start(t, newBus(), func(c *issuer.Config, _ *issuer.Parts) { c.OpsApart = true })
	if w := ask(apart.PublicHandler(), "GET", "/metrics", ""); w.Code != 404 {
		t.Errorf("GET /metrics where it is apart: got %d, want 404", w.Code)
	}
	if w := ask(apart.OpsHandler(), "GET", "/readyz", ""); w.Code != 200 {
		t.Errorf("GET /readyz of OpsHandler: got %d %s, want 200", w.Code, w.Body)
	}
}
