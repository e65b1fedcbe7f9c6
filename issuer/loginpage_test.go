package issuer_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/sidekey/sidekey/issuer"
)

func TestLoginForm(t *testing.T) {
	ti := start(t, newBus())
	j := newJar(ti.PublicHandler())
	form := j.form(t, "/session/login?next=%2Forders%3Fpage%3D2")
	form.Set("username", "alice ") // keyboards of phones add a space
	form.Set("password", "wonderland")
	w := j.send("POST", "/session/login", pageForm, form.Encode())
	if w.Code != 303 || w.Header().Get("Location") != "/orders?page=2" || w.Body.Len() != 0 {
		t.Fatalf("POST /session/login: got %d, Location %q, %s", w.Code, w.Header().Get("Location"), w.Body)
	}
	if len(j.cookies) != 2 || j.cookies["__Host-sidekey_session"] == "" || j.cookies["__Host-sidekey_csrf"] == "" {
		t.Errorf("after the login the browser has %v", j.cookies)
	}
	if w := j.send("GET", "/session", "", ""); w.Code != 200 {
		t.Errorf("GET /session: got %d %s", w.Code, w.Body)
	}
}

// TestLoginFormRefuses: each refusal is a page with the form, a problem in words, and no session.
func TestLoginFormRefuses(t *testing.T) {
	ti := start(t, newBus(), func(c *issuer.Config, _ *issuer.Parts) { c.MaxSessions = 1; c.LoginLimit = 8 })
	h := ti.PublicHandler()
	disabled := true
	if _, err := ti.AddUser(t.Context(), issuer.NewUser{Username: "bob", Password: "looking-glass"}); err != nil {
		t.Fatal(err)
	}
	if _, err := ti.ChangeUser(t.Context(), "bob", issuer.UserChange{Disabled: &disabled}); err != nil {
		t.Fatal(err)
	}
	if _, err := ti.AddUser(t.Context(), issuer.NewUser{Username: "carol", Password: "looking-glass"}); err != nil {
		t.Fatal(err)
	}
	newJar(h).send("POST", "/session/login", "application/json", `{"username":"carol","password":"looking-glass"}`)
	const wrong = "The user name or the password is not right."
	bodies := map[string]string{}
	for _, tc := range []struct {
		name, user, password string
		change               func(*jar, url.Values)
		status               int
		want                 string
	}{
		{"wrong password", "alice", "x", nil, 401, wrong},
		{"unknown user", "nobody", "x", nil, 401, wrong},
		{"disabled user", "bob", "looking-glass", nil, 401, wrong},
		{"no password", "alice", "", nil, 400, "Enter your user name and your password."},
		{"blank name", " ", "x", nil, 400, "Enter your user name and your password."},
		{"too many sessions", "carol", "looking-glass", nil, 429, "Sign out somewhere else first."},
		{"no form token", "alice", "wonderland", func(_ *jar, f url.Values) { f.Del("form_token") }, 403, "This form has expired"},
		{"another's form token", "alice", "wonderland", func(_ *jar, f url.Values) { f.Set("form_token", newJar(h).form(t, "/session/login").Get("form_token")) }, 403, "This form has expired"},
		{"no cookie", "alice", "wonderland", func(j *jar, _ url.Values) { j.cookies = map[string]string{} }, 403, "This form has expired"},
		{"empty cookie and its token", "alice", "wonderland", func(j *jar, f url.Values) { j.cookies["__Host-sidekey_login"] = ""; f.Set("form_token", "") }, 403, "This form has expired"},
	} {
		j := newJar(h)
		form := j.form(t, "/session/login")
		form.Set("username", tc.user)
		form.Set("password", tc.password)
		if tc.change != nil {
			tc.change(j, form)
		}
		w := j.send("POST", "/session/login", pageForm, form.Encode())
		if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.want) || !strings.Contains(w.Body.String(), `role="alert"`) {
			t.Errorf("%s: got %d %s, want %d %q", tc.name, w.Code, w.Body, tc.status, tc.want)
		}
		if j.cookies["__Host-sidekey_session"] != "" {
			t.Errorf("%s: a session began", tc.name)
		}
		if tc.password != "" && strings.Contains(w.Body.String(), tc.password) && tc.password != "x" {
			t.Errorf("%s: the page repeats the password", tc.name)
		}
		body := strings.ReplaceAll(w.Body.String(), tc.user, "USER")
		bodies[tc.name] = strings.ReplaceAll(body, form.Get("form_token"), "TOKEN")
	}
	if bodies["wrong password"] != bodies["unknown user"] || bodies["wrong password"] != bodies["disabled user"] {
		t.Error("the page tells an unknown or disabled user from a wrong password")
	}
	j := newJar(h)
	form := j.form(t, "/session/login")
	form.Set("username", "alice")
	form.Set("password", "x")
	for range 10 {
		w := j.send("POST", "/session/login", pageForm, form.Encode())
		if w.Code == http.StatusTooManyRequests {
			if w.Header().Get("Retry-After") == "" || !strings.Contains(w.Body.String(), "Too many attempts") {
				t.Errorf("over the limit: got %q %s", w.Header(), w.Body)
			}
			return
		}
	}
	t.Error("the form knows no limit of attempts")
}

// TestLoginCSRF: a page of another origin cannot log its visitor in as somebody else.
func TestLoginCSRF(t *testing.T) {
	ti := start(t, newBus())
	h := ti.PublicHandler()
	own := newJar(h).form(t, "/session/login") // what the attacker's own browser was given
	own.Set("username", "alice")
	own.Set("password", "wonderland")
	const body = `{"username":"alice","password":"wonderland"}`
	for _, tc := range []struct {
		name, kind, body string
		header           []string
		status           int
	}{
		{"form, cross-site", pageForm, own.Encode(), []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"form, of a neighbour", pageForm, own.Encode(), []string{"Sec-Fetch-Site", "same-site"}, 403},
		{"form, old browser", pageForm, own.Encode(), []string{"Sec-Fetch-Site", "", "Origin", "https://evil.example"}, 403},
		{"form, older browser", pageForm, own.Encode(), []string{"Sec-Fetch-Site", ""}, 403},
		{"JSON, cross-site", "application/json", body, []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"JSON as text", "text/plain", body, []string{"Sec-Fetch-Site", ""}, 415},
		{"JSON without type", "", body, []string{"Sec-Fetch-Site", ""}, 415},
		{"multipart", "multipart/form-data; boundary=x", "--x--", nil, 415},
		{"a list", "application/json", "[]", nil, 400},
		{"no password", "application/json", `{"username":"alice"}`, nil, 400},
		{"nothing", "", "", nil, 400},
		{"another member", "application/json", `{"username":"alice","password":"wonderland","next":"/"}`, nil, 400},
		{"field twice", pageForm, own.Encode() + "&username=bob", nil, 400},
		{"no form", pageForm, "%zz", nil, 400},
	} {
		j := newJar(h)
		w := j.send("POST", "/session/login", tc.kind, tc.body, tc.header...)
		if w.Code != tc.status || j.cookies["__Host-sidekey_session"] != "" {
			t.Errorf("%s: got %d %s, cookies %v; want %d", tc.name, w.Code, w.Body, j.cookies, tc.status)
		}
	}
	for name, header := range map[string][]string{"user agent without fetch metadata": {"Sec-Fetch-Site", ""}, "own origin": {"Sec-Fetch-Site", "", "Origin", "https://example.com"}} {
		if w := newJar(h).send("POST", "/session/login", "application/json", body, header...); w.Code != 200 {
			t.Errorf("%s: got %d %s", name, w.Code, w.Body)
		}
	}
}

// TestLoginLeadsNowhereElse: next is a path of the same origin, or it is "/".
func TestLoginLeadsNowhereElse(t *testing.T) {
	ti := start(t, newBus())
	h := ti.PublicHandler()
	for next, want := range map[string]string{
		"/":                       "/",
		"/orders":                 "/orders",
		"/orders/":                "/orders/",
		"/a/b?c=d&e=//f#g":        "/a/b?c=d&e=//f#g",
		"/a?u=https://x.example/": "/a?u=https://x.example/",
		"/%2f%2fevil.example":     "/%2f%2fevil.example", // a path still
		"/...":                    "/...",

		"":                              "/",
		"orders":                        "/",
		"//evil.example":                "/",
		"///evil.example":               "/",
		`/\evil.example`:                "/",
		`\/evil.example`:                "/",
		`/a\..\evil`:                    "/",
		"https://evil.example/":         "/",
		"https:evil.example":            "/",
		"javascript:alert(1)":           "/",
		" //evil.example":               "/",
		"/\t/evil.example":              "/",
		"/\n/evil.example":              "/",
		"/a\r\nSet-Cookie: x=y":         "/",
		"/.//evil.example":              "/",
		"/..//evil.example":             "/",
		"/a/../..//evil.example":        "/",
		"/a/..":                         "/",
		"/a//b":                         "/",
		"/é":                            "/",
		"/a b":                          "/",
		"/%zz":                          "/",
		"/\x00":                         "/",
		"/\x7f":                         "/",
		"?next=x":                       "/",
		"#x":                            "/",
		"@evil.example":                 "/",
		"/" + strings.Repeat("a", 2048): "/",
	} {
		j := newJar(h)
		form := j.form(t, "/session/login?"+url.Values{"next": {next}}.Encode())
		if got := form.Get("next"); got != want {
			t.Errorf("the page for next=%q: got %q, want %q", next, got, want)
		}
		form.Set("next", next)
		form.Set("username", "alice")
		form.Set("password", "wonderland")
		w := j.send("POST", "/session/login", pageForm, form.Encode())
		if w.Code != 303 || w.Header().Get("Location") != want {
			t.Errorf("the login with next=%q: got %d, Location %q, want %q", next, w.Code, w.Header().Get("Location"), want)
		}
	}
}

// TestLoginPageIsSealed: what is typed into it is shown as text, and it can neither be framed nor load or run anything.
func TestLoginPageIsSealed(t *testing.T) {
	ti := start(t, newBus())
	j := newJar(ti.PublicHandler())
	const evil = `"><script>alert(1)</script>'<b>&`
	form := j.form(t, "/session/login")
	form.Set("username", evil)
	form.Set("password", "x")
	w := j.send("POST", "/session/login", pageForm, form.Encode())
	page := w.Body.String()
	if w.Code != 401 || strings.Contains(page, "<script") || strings.Contains(page, "<b>") || !strings.Contains(page, "&lt;script&gt;") {
		t.Errorf("the page with an evil user name: got %d %s", w.Code, page)
	}
	if got := j.form(t, "/session/login?next=/%22%3E%3Cscript%3E").Get("next"); got != `/"><script>` {
		t.Errorf("the page with an evil next: got %q", got)
	}
	w = j.send("GET", "/session/login", "", "")
	for name, want := range map[string]string{
		"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
		"X-Frame-Options": "DENY", "Referrer-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin",
	} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	policy := w.Header().Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'; ", "form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'", "style-src 'sha256-"} {
		if !strings.Contains(policy, want) {
			t.Errorf("Content-Security-Policy: got %q, want %s in it", policy, want)
		}
	}
	for _, want := range []string{
		`<html lang="en">`, "<title>Sign in</title>", `<label for="username">`, `<label for="password">`,
		`autocomplete="username"`, `autocomplete="current-password"`, `method="post" action="login"`,
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("the page lacks %s", want)
		}
	}
}
