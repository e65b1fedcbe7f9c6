package issuer_test

import (
	"strings"
	"testing"

	"github.com/sidekey/sidekey/issuer"
)

const credentials = `{"username":"alice","password":"wonderland"}`

func cookieRefresh(c *issuer.Config, _ *issuer.Parts) { c.CookieRefresh = true }

// TestCookieRefresh: the refresh token goes from cookie to cookie, and stands in no body.
func TestCookieRefresh(t *testing.T) {
	ti := start(t, newBus(), cookieRefresh)
	j := newJar(ti.PublicHandler())
	const name, kind = "__Secure-sidekey_refresh", "application/json"
	w := j.send("POST", "/api/token/", kind, credentials)
	first := j.cookies[name]
	line := w.Header().Get("Set-Cookie")
	if w.Code != 200 || first == "" || !strings.Contains(strings.Replace(line, "604799", "604800", 1), "; Path=/api/token/; Max-Age=604800; HttpOnly; Secure; SameSite=Strict") {
		t.Fatalf("POST /api/token/: got %d %s, cookie %q", w.Code, w.Body, line)
	}
	if got := claims(t, first)["token_type"]; got != "refresh" {
		t.Errorf("the cookie: got token_type %v, want refresh", got)
	}
	answer := decode[map[string]string](t, w)
	if answer["access"] == "" || len(answer) != 1 {
		t.Errorf("POST /api/token/: got %v, want access alone", answer)
	}

	w = j.send("POST", "/api/token/refresh/", kind, "{}")
	second := j.cookies[name]
	if answer := decode[map[string]string](t, w); w.Code != 200 || second == first || answer["access"] == "" || len(answer) != 1 {
		t.Fatalf("POST /api/token/refresh/: got %d %v, the cookie is new: %v", w.Code, answer, second != first)
	}
	w = j.send("POST", "/api/token/refresh", "", "", "X-Requested-With", "fetch")
	if w.Code != 200 || j.cookies[name] == second {
		t.Errorf("POST /api/token/refresh with X-Requested-With: got %d %s", w.Code, w.Body)
	}

	// A thief's use of the first ends the session, as it does without cookies.
	thief := newJar(ti.PublicHandler())
	thief.cookies[name] = first
	if w := thief.send("POST", "/api/token/refresh/", kind, ""); w.Code != 401 || thief.cookies[name] != "" {
		t.Errorf("reuse: got %d %s, cookie %q", w.Code, w.Body, thief.cookies[name])
	}
	if w := j.send("POST", "/api/token/refresh/", kind, ""); w.Code != 401 || j.cookies[name] != "" {
		t.Errorf("after a reuse: got %d %s, cookie %q", w.Code, w.Body, j.cookies[name])
	}

	j.send("POST", "/api/token/", kind, credentials)
	last := j.cookies[name]
	if w := j.send("POST", "/api/token/blacklist/", kind, ""); w.Code != 200 || w.Body.String() != "{}" || j.cookies[name] != "" {
		t.Errorf("POST /api/token/blacklist/: got %d %s, cookie %q", w.Code, w.Body, j.cookies[name])
	}
	j.cookies[name] = last
	if w := j.send("POST", "/api/token/refresh/", kind, ""); w.Code != 401 {
		t.Errorf("refresh after the logout: got %d %s", w.Code, w.Body)
	}
}

func TestCookieRefreshRefuses(t *testing.T) {
	ti := start(t, newBus(), cookieRefresh)
	j := newJar(ti.PublicHandler())
	j.send("POST", "/api/token/", "application/json", credentials)
	token := j.cookies["__Secure-sidekey_refresh"]
	const crossOrigin, simple = "CSRF Failed: the request comes from another origin.", "CSRF Failed: send the body as application/json"
	for _, path := range []string{"/api/token/refresh/", "/api/token/blacklist/"} {
		for _, tc := range []struct {
			name, kind, body string
			header           []string
			status           int
			want             string
		}{
			{"another site", "application/json", "", []string{"Sec-Fetch-Site", "cross-site"}, 403, crossOrigin},
			{"a neighbour", "application/json", "", []string{"Sec-Fetch-Site", "same-site"}, 403, crossOrigin},
			{"another origin", "application/json", "", []string{"Sec-Fetch-Site", "", "Origin", "https://evil.example"}, 403, crossOrigin},
			{"form", pageForm, "x=y", nil, 403, simple},
			{"text", "text/plain", "{}", nil, 403, simple},
			{"nothing", "", "", nil, 403, simple},
			{"in the body", "application/json", `{"refresh":"` + token + `"}`, nil, 400, `{"refresh":["Not accepted in a body: it is read from its cookie."]}`},
			{"in a form", pageForm, "refresh=" + token, []string{"X-Requested-With", "x"}, 400, "Not accepted in a body"},
			{"bad JSON", "application/json", `{`, nil, 400, "JSON parse error"},
			{"no cookie", "application/json", "", []string{"Cookie", "x=y"}, 401, "token_not_valid"},
			{"two cookies", "application/json", "", []string{"Cookie", "__Secure-sidekey_refresh=" + token + "; __Secure-sidekey_refresh=x"}, 401, "token_not_valid"},
		} {
			w := j.send("POST", path, tc.kind, tc.body, tc.header...)
			if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.want) {
				t.Errorf("%s, %s: got %d %s, want %d %q", path, tc.name, w.Code, w.Body, tc.status, tc.want)
			}
		}
	}
	if w := j.send("GET", "/api/token/refresh/", "", ""); w.Code != 405 {
		t.Errorf("GET: got %d, want 405", w.Code)
	}
	if w := newJar(ti.PublicHandler()).send("POST", "/api/token/", pageForm, "username=alice&password=wonderland"); w.Code != 403 {
		t.Errorf("a login by a form of any origin: got %d %s, want 403", w.Code, w.Body)
	}
	if w := j.send("POST", "/api/token/refresh/", "application/json", ""); w.Code != 200 {
		t.Errorf("after all that, the right one: got %d %s", w.Code, w.Body)
	}
}
