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

	"github.com/sidekey/sidekey/bus/lease"
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
	held := &lease.Lease{Begin: lease.SystemClock(), Length: time.Hour}
	ti := start(t, newBus(), func(_ *issuer.Config, p *issuer.Parts) { p.Lease = func() *lease.Lease { return held } })
	tokens := login(t, ti)
	held = nil
	h := ti.PublicHandler()
	for path, body := range map[string]string{
		"/api/token/": `{"username":"alice","password":"wonderland"}`, "/api/token/refresh/": fmt.Sprintf(`{"refresh":%q}`, tokens.Refresh),
		"/api/token/verify/": fmt.Sprintf(`{"token":%q}`, tokens.Access),
	} {
		if w := ask(h, "POST", path, body); w.Code != 503 || w.Header().Get("Retry-After") == "" {
			t.Errorf("POST %s: got %d %s, want 503 with Retry-After", path, w.Code, w.Body)
		}
	}
	if w := ask(h, "GET", "/sessions", "", "Authorization", "Bearer "+tokens.Access); w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("GET /sessions: got %d %s, want 503 with Retry-After", w.Code, w.Body)
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
	if w.Code != 200 || err != nil || len(keys) != 2 || keys[0].ID() != checkRing(t, ti) || keys[0].CanSign() || keys[1].ID() != standby(t, ti) || keys[1].CanSign() {
		t.Fatalf("GET jwks.json: got %d %s (%v), want the public halves of the active key and of the one that stands by", w.Code, w.Body, err)
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
