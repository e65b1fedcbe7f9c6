package issuer_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

// ask sends one request to a handler. header holds pairs.
func ask(h http.Handler, method, path, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for at := 0; at < len(header); at += 2 {
		r.Header.Set(header[at], header[at+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// TestSimpleJWTAnswers holds every answer that is not a token against what
// djangorestframework-simplejwt 5.5 and the Django REST framework answer, byte for byte.
func TestSimpleJWTAnswers(t *testing.T) {
	ti := start(t, newBus())
	h := ti.PublicHandler()
	live, spent, ended := login(t, ti), login(t, ti), login(t, ti)
	refresh(t, ti, refresh(t, ti, spent.Refresh).Refresh)
	if err := ti.EndWith(t.Context(), ended.Refresh); err != nil {
		t.Fatal(err)
	}
	const (
		obtain, again, check, end = "/api/token/", "/api/token/refresh/", "/api/token/verify/", "/api/token/blacklist/"
		form                      = "application/x-www-form-urlencoded"
	)
	one := func(name, token string) string { return fmt.Sprintf(`{%q:%q}`, name, token) }
	invalid := func(words string) string { return fmt.Sprintf(`{"detail":%q,"code":"token_not_valid"}`, words) }
	for _, tc := range []struct {
		name, method, path, kind, body string
		status                         int
		want                           string
	}{
		{"nothing", "POST", obtain, "", "", 400, `{"username":["This field is required."],"password":["This field is required."]}`},
		{"no password", "POST", obtain, "", `{"username":"alice"}`, 400, `{"password":["This field is required."]}`},
		{"null", "POST", obtain, "", `{"username":null,"password":"x"}`, 400, `{"username":["This field may not be null."]}`},
		{"blank", "POST", obtain, "", `{"username":"  ","password":"x"}`, 400, `{"username":["This field may not be blank."]}`},
		{"list", "POST", obtain, "", `{"username":["a"],"password":true}`, 400, `{"username":["Not a valid string."],"password":["Not a valid string."]}`},
		{"null character", "POST", obtain, "", `{"username":"a\u0000","password":"x"}`, 400, `{"username":["Null characters are not allowed."]}`},
		{"body is a list", "POST", obtain, "", `[]`, 400, `{"non_field_errors":["Invalid data. Expected a dictionary, but got list."]}`},
		{"body is a number", "POST", obtain, "", `1.5`, 400, `{"non_field_errors":["Invalid data. Expected a dictionary, but got float."]}`},
		{"body is null", "POST", obtain, "", `null`, 400, `{"non_field_errors":["No data provided"]}`},
		{"no JSON", "POST", obtain, "", `{"username":`, 400, `{"detail":"JSON parse error - Expecting value: line 1 column 13 (char 12)"}`},
		{"wrong password", "POST", obtain, "", `{"username":"alice","password":"x"}`, 401, `{"detail":"No active account found with the given credentials"}`},
		{"number as password", "POST", obtain, "", `{"username":"alice","password":1}`, 401, `{"detail":"No active account found with the given credentials"}`},
		{"form", "POST", obtain, form, `username=alice&password=x`, 401, `{"detail":"No active account found with the given credentials"}`},
		{"other type", "POST", obtain, "text/plain", `x`, 415, `{"detail":"Unsupported media type \"text/plain\" in request."}`},
		{"method", "GET", obtain, "", "", 405, `{"detail":"Method \"GET\" not allowed."}`},
		{"method without slash", "PUT", "/api/token", "", "", 405, `{"detail":"Method \"PUT\" not allowed."}`},

		{"refresh: nothing", "POST", again, "", `{}`, 400, `{"refresh":["This field is required."]}`},
		{"refresh: nonsense", "POST", again, "", one("refresh", "x.y.z"), 401, invalid("Token is invalid")},
		{"refresh: access token", "POST", again, "", one("refresh", live.Access), 401, invalid("Token has wrong type")},
		{"refresh: reuse", "POST", again, "", one("refresh", spent.Refresh), 401, invalid("Token is blacklisted")},
		{"refresh: ended", "POST", again, "", one("refresh", ended.Refresh), 401, invalid("Token is blacklisted")},

		{"verify: nothing", "POST", check, form, `x=y`, 400, `{"token":["This field is required."]}`},
		{"verify: access", "POST", check, "", one("token", live.Access), 200, `{}`},
		{"verify: refresh", "POST", check, form, "token=" + live.Refresh, 200, `{}`},
		{"verify: nonsense", "POST", check, "", one("token", "x"), 401, invalid("Token is invalid")},
		{"verify: blacklisted", "POST", check, "", one("token", ended.Refresh), 400, `{"non_field_errors":["Token is blacklisted"]}`},
		{"verify: of a session that ended", "POST", check, "", one("token", ended.Access), 400, `{"non_field_errors":["Token is blacklisted"]}`},

		{"blacklist: nonsense", "POST", end, "", one("refresh", "x"), 401, invalid("Token is invalid")},
		{"blacklist: access token", "POST", end, "", one("refresh", live.Access), 401, invalid("Token has wrong type")},
		{"blacklist", "POST", "/api/token/blacklist", "", one("refresh", live.Refresh), 200, `{}`},
		{"blacklist: again", "POST", end, "", one("refresh", live.Refresh), 401, invalid("Token is blacklisted")},
	} {
		header := []string{}
		if tc.kind != "" {
			header = []string{"Content-Type", tc.kind}
		}
		w := ask(h, tc.method, tc.path, tc.body, header...)
		if w.Code != tc.status || w.Body.String() != tc.want {
			t.Errorf("%s: got %d %s, want %d %s", tc.name, w.Code, w.Body, tc.status, tc.want)
		}
		challenge := w.Header().Get("WWW-Authenticate")
		if (tc.status == 401) != (challenge == `Bearer realm="api"`) {
			t.Errorf("%s: WWW-Authenticate: got %q", tc.name, challenge)
		}
		if w.Header().Get("Cache-Control") != "no-store" || tc.status == 405 && w.Header().Get("Allow") != "POST, OPTIONS" {
			t.Errorf("%s: headers: got %v", tc.name, w.Header())
		}
	}
}

func TestSimpleJWTTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ti := start(t, newBus())
		h := ti.PublicHandler()
		var pair map[string]string
		for _, path := range []string{"/api/token", "/api/token/"} {
			w := ask(h, "POST", path, `{"username":" alice ","password":"wonderland","unknown":1}`)
			pair = answerOf(t, w, 200)
			if len(pair) != 2 || !strings.HasPrefix(w.Body.String(), `{"refresh":"`) {
				t.Errorf("POST %s: got %s, want refresh and access", path, w.Body)
			}
		}
		multi := "--x\r\nContent-Disposition: form-data; name=\"refresh\"\r\n\r\n" + pair["refresh"] + "\r\n--x--\r\n"
		w := ask(h, "POST", "/api/token/refresh/", multi, "Content-Type", "multipart/form-data; boundary=x")
		next := answerOf(t, w, 200)
		if len(next) != 2 || !strings.HasPrefix(w.Body.String(), `{"access":"`) || next["refresh"] == pair["refresh"] {
			t.Errorf("refresh: got %s, want a new access and refresh", w.Body)
		}
		time.Sleep(169 * time.Hour)
		w = ask(h, "POST", "/api/token/refresh/", fmt.Sprintf(`{"refresh":%q}`, next["refresh"]))
		if want := `{"detail":"Token is expired","code":"token_not_valid"}`; w.Code != 401 || w.Body.String() != want {
			t.Errorf("refresh, expired: got %d %s, want 401 %s", w.Code, w.Body, want)
		}
	})
}

func answerOf(t *testing.T, w *httptest.ResponseRecorder, status int) map[string]string {
	t.Helper()
	m := make(map[string]string)
	if err := json.Unmarshal(w.Body.Bytes(), &m); err != nil || w.Code != status {
		t.Fatalf("got %d %s (%v), want %d", w.Code, w.Body, err, status)
	}
	return m
}

func TestBodiesAreBounded(t *testing.T) {
	ti := start(t, newBus())
	large := `{"username":"` + strings.Repeat("x", 65<<10) + `"}`
	if w := ask(ti.PublicHandler(), "POST", "/api/token/", large); w.Code != 413 {
		t.Errorf("POST /api/token/ with 65 KiB: got %d %s, want 413", w.Code, w.Body)
	}
	if w := ask(ti.LocalAdminHandler(), "POST", "/admin/v1/users", large); w.Code != 413 {
		t.Errorf("POST /admin/v1/users with 65 KiB: got %d %s, want 413", w.Code, w.Body)
	}
}

func TestUnavailableIsNoDenial(t *testing.T) {
	fresh := true
	ti := start(t, newBus(), func(_ *issuer.Config, p *issuer.Parts) { p.Fresh = func() bool { return fresh } })
	tokens := login(t, ti)
	fresh = false
	h := ti.PublicHandler()
	for path, body := range map[string]string{
		"/api/token/": `{"username":"alice","password":"wonderland"}`, "/api/token/refresh/": fmt.Sprintf(`{"refresh":%q}`, tokens.Refresh),
	} {
		if w := ask(h, "POST", path, body); w.Code != 503 || w.Header().Get("Retry-After") == "" {
			t.Errorf("POST %s: got %d %s, want 503 with Retry-After", path, w.Code, w.Body)
		}
	}
	if w := ask(h, "GET", "/readyz", ""); w.Code != 503 {
		t.Errorf("GET /readyz: got %d, want 503", w.Code)
	}
	if w := ask(h, "GET", "/healthz", ""); w.Code != 200 {
		t.Errorf("GET /healthz: got %d, want 200", w.Code)
	}
}

func TestLoginLimitAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ti := start(t, newBus(), func(c *issuer.Config, _ *issuer.Parts) { c.LoginLimit = 1 })
		h := ti.PublicHandler()
		ask(h, "POST", "/api/token/", `{"username":"alice","password":"x"}`)
		w := ask(h, "POST", "/api/token/", `{"username":"alice","password":"x"}`)
		if want := `{"detail":"Request was throttled. Expected available in 61 seconds."}`; w.Code != 429 || w.Body.String() != want || w.Header().Get("Retry-After") != "61" {
			t.Errorf("second login: got %d %s, Retry-After %q, want 429 %s", w.Code, w.Body, w.Header().Get("Retry-After"), want)
		}
	})
}

func TestJWKS(t *testing.T) {
	ti := start(t, newBus())
	h := ti.PublicHandler()
	w := ask(h, "GET", "/.well-known/jwks.json", "")
	keys, err := keyring.ParseJWKS(w.Body.Bytes())
	if w.Code != 200 || err != nil || len(keys) != 1 || keys[0].ID() != checkRing(t, ti) || keys[0].CanSign() {
		t.Fatalf("GET jwks.json: got %d %s (%v), want the active key's public half", w.Code, w.Body, err)
	}
	for name, want := range map[string]string{"Access-Control-Allow-Origin": "*", "Cache-Control": "public, max-age=300", "Content-Type": "application/jwk-set+json"} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("GET jwks.json: %s: got %q, want %q", name, got, want)
		}
	}
	if again := ask(h, "GET", "/.well-known/jwks.json", "", "If-None-Match", w.Header().Get("ETag")); again.Code != 304 || again.Body.Len() != 0 {
		t.Errorf("GET jwks.json with its ETag: got %d %s, want 304", again.Code, again.Body)
	}
	symmetric := start(t, newBus(), hs256)
	if w := ask(symmetric.PublicHandler(), "GET", "/.well-known/jwks.json", ""); w.Body.String() != `{"keys":[]}` {
		t.Errorf("GET jwks.json of an HS256 ring: got %s, want no key", w.Body)
	}
}

func TestOwnSessions(t *testing.T) {
	b := newBus()
	ti := start(t, b)
	if _, err := ti.AddUser(t.Context(), issuer.NewUser{Username: "bob", Password: "builder"}); err != nil {
		t.Fatal(err)
	}
	h := ti.PublicHandler()
	mine, other := login(t, ti), login(t, ti)
	bobs, err := ti.Login(t.Context(), issuer.Credentials{Username: "bob", Password: "builder"})
	if err != nil {
		t.Fatal(err)
	}
	auth := []string{"Authorization", "Bearer " + mine.Access}
	w := ask(h, "GET", "/sessions", "", auth...)
	if w.Code != 200 || !strings.Contains(w.Body.String(), other.SessionID) || strings.Contains(w.Body.String(), bobs.SessionID) ||
		strings.Count(w.Body.String(), `"current":true`) != 1 {
		t.Errorf("GET /sessions: got %d %s, want the user's own two", w.Code, w.Body)
	}
	for _, tc := range []struct {
		method, path string
		header       []string
		status       int
	}{
		{"GET", "/sessions", nil, 401},
		{"GET", "/sessions", []string{"Authorization", "Bearer " + mine.Refresh}, 401},
		{"DELETE", "/sessions", auth, 400},
		{"DELETE", "/sessions/" + bobs.SessionID, auth, 404},
		{"DELETE", "/sessions/" + other.SessionID, auth, 204},
		{"DELETE", "/sessions?except=current", auth, 200},
		{"DELETE", "/sessions/" + mine.SessionID, auth, 204},
		{"GET", "/sessions", auth, 401},
	} {
		if w := ask(h, tc.method, tc.path, "", tc.header...); w.Code != tc.status {
			t.Errorf("%s %s: got %d %s, want %d", tc.method, tc.path, w.Code, w.Body, tc.status)
		}
	}
	refused(t, "verify(the session ended)", verify(ti.replica, other.Access), keyring.Revoked)
	if err := verify(ti.replica, bobs.Access); err != nil {
		t.Errorf("verify(bob's): got %v, want nil", err)
	}
}

func TestAdminNeedsItsToken(t *testing.T) {
	ti := start(t, newBus())
	h := ti.AdminHandler("secret-admin-token")
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
		if w := ask(ti.AdminHandler(""), "GET", "/admin/v1/keys", "", header...); w.Code != 401 {
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
		{"POST", "/admin/v1/keys/rotate", `{"wait":"fleet"}`, 400, `does not wait`},
		{"POST", "/admin/v1/keys/rotate", `{"force":true}`, 400, `force`},
		{"POST", "/admin/v1/keys/rotate", `{"algo":"RS256"}`, 400, `unknown member \"algo\"`},
		{"POST", "/admin/v1/keys/rotate", `{"alg":"EdDSA","alg":"EdDSA"}`, 400, `strict JSON`},
		{"POST", "/admin/v1/keys/rotate", `{"bits":"many"}`, 400, `\"bits\"`},
		{"POST", "/admin/v1/keys/rotate", `{}`, 202, `"pending":["web-1"]`},
		{"POST", "/admin/v1/keys/import", `{"secret":"short"}`, 400, `32`},
		{"POST", "/admin/v1/keys/import", `{"secret":"` + strings.Repeat("x", 32) + `","accept":"simplejwt"}`, 400, `accept`},
		{"POST", "/admin/v1/keys/nobody/revoke", ``, 404, `nobody`},
		{"POST", "/admin/v1/keys/" + kid + "/revoke", `{"wait":"none"}`, 202, `"pending":["web-1"]`},
		{"POST", "/admin/v1/revocations", `{}`, 400, `exactly one`},
		{"POST", "/admin/v1/revocations", `{"jti":"x","wait":"fleet"}`, 400, `does not wait`},
		{"POST", "/admin/v1/revocations", `{"jti":"x","timeout":"soon"}`, 400, `timeout`},
		{"POST", "/admin/v1/revocations", `{"token":"nonsense"}`, 400, `malformed`},
		{"POST", "/admin/v1/revocations", `{"jti":"some-jti","reason":"test","wait":"none","timeout":"5s"}`, 200, `"confirmed":false,"applied":[],"fenced":[],"pending":["web-1"],"elapsed_ms":`},
		{"GET", "/admin/v1/revocations", "", 200, `"jti":"some-jti"`},
		{"GET", "/admin/v1/revocations/1", "", 404, `problem`},
		{"GET", "/admin/v1/revocations/x", "", 400, `seq`},
		{"GET", "/admin/v1/agents", "", 200, `"name":"web-1"`},
		{"DELETE", "/admin/v1/agents/nobody", "", 404, ``},
		{"DELETE", "/admin/v1/agents/web-1", "", 204, ``},
		{"GET", "/admin/v1/sessions?sub=" + sub, "", 200, tokens.SessionID},
		{"GET", "/admin/v1/sessions?sub=nobody", "", 200, `{"sessions":[]}`},
		{"DELETE", "/admin/v1/sessions/" + tokens.SessionID, "", 200, `"seq":`},
		{"DELETE", "/admin/v1/sessions/nobody", "", 404, ``},
		{"POST", "/admin/v1/users", `{"username":"bob","password":"builder","roles":["a"],"attributes":{"team":"x"}}`, 201, `"attributes":{"team":"x"}`},
		{"POST", "/admin/v1/users", `{"username":"bob","password":"builder"}`, 409, `exists`},
		{"POST", "/admin/v1/users", `{"username":"eve"}`, 400, `password`},
		{"POST", "/admin/v1/users", `{"username":"eve","Password":"x"}`, 400, `unknown member \"Password\"`},
		{"GET", "/admin/v1/users", "", 200, `"username":"bob"`},
		{"GET", "/admin/v1/users/bob", "", 200, `"scope":"","roles":["a"]`},
		{"GET", "/admin/v1/users/nobody", "", 404, ``},
		{"PATCH", "/admin/v1/users/bob", `{}`, 400, `nothing to change`},
		{"PATCH", "/admin/v1/users/bob", `{"scope":"read","disabled":true}`, 200, `"disabled":true`},
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
	public, admin := ti.PublicHandler(), ti.AdminHandler("admin-token-0123456789")
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
