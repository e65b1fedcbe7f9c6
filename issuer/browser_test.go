package issuer_test

import (
	"encoding/json"
	"errors"
	"html"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

const pageForm = "application/x-www-form-urlencoded"

// jar is a browser: it keeps cookies and sends them with what it is told to ask.
type jar struct {
	h       http.Handler
	cookies map[string]string
}

func newJar(h http.Handler) *jar { return &jar{h, map[string]string{}} }

// send asks as a page of the same origin does; header holds pairs, which replace.
func (j *jar) send(method, path, kind, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	for name, value := range j.cookies {
		if name != "__Secure-sidekey_refresh" || strings.HasPrefix(path, "/api/token/") {
			r.AddCookie(&http.Cookie{Name: name, Value: value})
		}
	}
	for at := 0; at < len(header); at += 2 {
		r.Header.Set(header[at], header[at+1])
	}
	w := httptest.NewRecorder()
	j.h.ServeHTTP(w, r)
	for _, c := range w.Result().Cookies() {
		if j.cookies[c.Name] = c.Value; c.MaxAge < 0 {
			delete(j.cookies, c.Name)
		}
	}
	return w
}

func (j *jar) login(t testing.TB) *httptest.ResponseRecorder {
	t.Helper()
	w := j.send("POST", "/session/login", "application/json", `{"username":"alice","password":"wonderland"}`)
	if w.Code != http.StatusOK {
		t.Fatalf("POST /session/login: got %d %s", w.Code, w.Body)
	}
	return w
}

// form gives the fields of the login page that a browser would send back.
func (j *jar) form(t testing.TB, path string) url.Values {
	t.Helper()
	w := j.send("GET", path, "", "")
	values := url.Values{}
	for _, m := range regexp.MustCompile(`name="(\w+)" (?:type="\w+" )?value="([^"]*)"`).FindAllStringSubmatch(w.Body.String(), -1) {
		values.Set(m[1], html.UnescapeString(m[2]))
	}
	if values.Get("form_token") == "" {
		t.Fatalf("GET %s: got %d, no form in %s", path, w.Code, w.Body)
	}
	return values
}

// verifyCookie reads a session token as an agent does.
func verifyCookie(r *replica.Replica, token string) error {
	tok, err := r.Snapshot().Ring.Verify(token, keyring.Expect{Type: keyring.SessionToken, Leeway: 5 * time.Second, Now: time.Now()})
	if err != nil {
		return err
	}
	if ids := replica.Fingerprint(&tok.Claims); r.Revoked(&ids) {
		return keyring.Deny(keyring.Revoked, tok.KeyID, nil)
	}
	return nil
}

func decode[T any](t testing.TB, w *httptest.ResponseRecorder) (v T) {
	t.Helper()
	if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
		t.Fatalf("got %d %s: %v", w.Code, w.Body, err)
	}
	return v
}

func TestBrowserLogin(t *testing.T) {
	ti := start(t, newBus())
	j := newJar(ti.PublicHandler())
	w := j.login(t)
	b := decode[issuer.BrowserSession](t, w)
	if b.Username != "alice" || b.Scope != "read write" || len(b.Roles) != 1 || b.CSRF == "" {
		t.Errorf("POST /session/login: got %+v", b)
	}
	want := map[string]string{
		"__Host-sidekey_session": "Path=/; Max-Age=1800; HttpOnly; Secure; SameSite=Lax",
		"__Host-sidekey_csrf":    "Path=/; Max-Age=1800; Secure; SameSite=Lax",
	}
	for _, line := range w.Result().Header["Set-Cookie"] {
		name, rest, _ := strings.Cut(line, "=")
		_, attributes, _ := strings.Cut(rest, "; ")
		// A second may have begun since the token was made.
		if attributes = strings.Replace(attributes, "1799", "1800", 1); attributes != want[name] {
			t.Errorf("cookie %s: got %q, want %q", name, attributes, want[name])
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("POST /session/login sets no %v", want)
	}

	token := j.cookies["__Host-sidekey_session"]
	if got := part(t, token, 0)["typ"]; got != "session+jwt" {
		t.Errorf("typ: got %v, want session+jwt", got)
	}
	c := claims(t, token)
	if c["token_type"] != "session" || c["sid"] != b.ID || c["csrf"] == "" || c["csrf"] == b.CSRF || c["aud"] != issuerURL {
		t.Errorf("claims: got %v", c)
	}
	if err := verifyCookie(ti.replica, token); err != nil {
		t.Errorf("an agent's check: %v", err)
	}
	if strings.Contains(w.Body.String(), token) {
		t.Error("the session token stands in the body")
	}

	if again := decode[issuer.BrowserSession](t, j.send("GET", "/session", "", "")); again.CSRF != b.CSRF || again.ID != b.ID || again.Expires != b.Expires {
		t.Errorf("GET /session: got %+v, want %+v", again, b)
	}
	all, err := ti.ListSessions(t.Context(), b.Subject)
	if err != nil || len(all) != 1 || all[0].Kind != "browser" {
		t.Errorf("ListSessions: got %+v, %v; want one of kind browser", all, err)
	}
}

// TestBrowserTokenIsNoOther: a session token is good where a session token is asked for, and nowhere else.
func TestBrowserTokenIsNoOther(t *testing.T) {
	ti := start(t, newBus())
	h := ti.PublicHandler()
	j := newJar(h)
	j.login(t)
	token := j.cookies["__Host-sidekey_session"]
	_, err := ti.Refresh(t.Context(), token)
	if got := keyring.ReasonOf(err); got == "" {
		t.Errorf("Refresh of a session token: got %v, want a denial", err)
	}
	refused(t, "Check of a session token", ti.Check(t.Context(), token), keyring.WrongType)
	if w := ask(h, "GET", "/sessions", "", "Authorization", "Bearer "+token); w.Code != 401 {
		t.Errorf("GET /sessions with a session token: got %d, want 401", w.Code)
	}
	tokens := login(t, ti)
	for what, other := range map[string]string{"access": tokens.Access, "refresh": tokens.Refresh, "nothing": "x"} {
		j.cookies["__Host-sidekey_session"] = other
		if w := j.send("GET", "/session", "", ""); w.Code != 401 {
			t.Errorf("GET /session with %s: got %d, want 401", what, w.Code)
		}
	}
}

func TestBrowserCSRF(t *testing.T) {
	ti := start(t, newBus())
	j, other := newJar(ti.PublicHandler()), newJar(ti.PublicHandler())
	csrf := decode[issuer.BrowserSession](t, j.login(t)).CSRF
	foreign := decode[issuer.BrowserSession](t, other.login(t)).CSRF
	for _, path := range []string{"/session/renew", "/session/logout"} {
		for _, tc := range []struct {
			name, kind, body string
			header           []string
			status           int
			want             string
		}{
			{"no token", "", "", nil, 403, "CSRF: the token is missing: send it as X-CSRF-Token"},
			{"empty token", "", "", []string{"X-CSRF-Token", ""}, 403, "CSRF: the token is missing"},
			{"another session's", "", "", []string{"X-CSRF-Token", foreign}, 403, "CSRF: the token is not this session's"},
			{"its hash", "", "", []string{"X-CSRF-Token", claims(t, j.cookies["__Host-sidekey_session"])["csrf"].(string)}, 403, "not this session's"},
			{"two tokens", "", "", []string{"X-CSRF-Token", csrf, "X-CSRFToken", csrf}, 400, "is there more than once"},
			{"in the form and the header", pageForm, "csrf_token=" + csrf, []string{"X-CSRF-Token", csrf}, 400, "is there more than once"},
			{"twice in the form", pageForm, "csrf_token=" + csrf + "&csrf_token=x", nil, 400, "is there more than once"},
			{"another site", "", "", []string{"X-CSRF-Token", csrf, "Sec-Fetch-Site", "cross-site"}, 403, "CSRF: the request comes from another origin"},
			{"a neighbour", "", "", []string{"X-CSRF-Token", csrf, "Sec-Fetch-Site", "same-site"}, 403, "another origin"},
			{"another origin, old browser", "", "", []string{"X-CSRF-Token", csrf, "Sec-Fetch-Site", "", "Origin", "https://evil.example"}, 403, "another origin"},
			{"origin null", "", "", []string{"X-CSRF-Token", csrf, "Sec-Fetch-Site", "", "Origin", "null"}, 403, "another origin"},
			{"text", "text/plain", "{}", []string{"X-CSRF-Token", csrf}, 415, "must be application/json"},
			{"cookie twice", "", "", []string{"X-CSRF-Token", csrf, "Cookie", "__Host-sidekey_session=a; __Host-sidekey_session=b"}, 400, "is there more than once"},
		} {
			w := j.send("POST", path, tc.kind, tc.body, tc.header...)
			if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.want) {
				t.Errorf("%s, %s: got %d %s, want %d %q", path, tc.name, w.Code, w.Body, tc.status, tc.want)
			}
			if len(w.Result().Cookies()) > 0 {
				t.Errorf("%s, %s: a refusal sets cookies: %v", path, tc.name, w.Result().Cookies())
			}
		}
	}
	if w := j.send("POST", "/session/renew", "", "", "X-CSRFToken", csrf, "Sec-Fetch-Site", "", "Origin", "http://example.com"); w.Code != 200 {
		t.Errorf("renewal with Django's header and its own Origin: got %d %s", w.Code, w.Body)
	}
}

func TestBrowserLogout(t *testing.T) {
	bus := newBus()
	ti := start(t, bus)
	elsewhere := newIssuer(t, bus)
	j := newJar(ti.PublicHandler())
	csrf := decode[issuer.BrowserSession](t, j.login(t)).CSRF
	token := j.cookies["__Host-sidekey_session"]
	stolen := newJar(elsewhere.PublicHandler())
	stolen.cookies["__Host-sidekey_session"] = token
	if w := stolen.send("GET", "/session", "", ""); w.Code != 200 {
		t.Fatalf("GET /session at another issuer: got %d %s", w.Code, w.Body)
	}

	if w := j.send("POST", "/session/logout", "", "", "X-CSRF-Token", csrf); w.Code != 204 {
		t.Fatalf("POST /session/logout: got %d %s", w.Code, w.Body)
	}
	if len(j.cookies) != 0 {
		t.Errorf("POST /session/logout leaves %v", j.cookies)
	}
	if err := elsewhere.replica.Wait(t.Context(), ti.position().Seq); err != nil {
		t.Fatal(err)
	}
	refused(t, "another host's check after the logout", verifyCookie(elsewhere.replica, token), keyring.Revoked)
	if w := stolen.send("GET", "/session", "", ""); w.Code != 401 || !strings.Contains(w.Body.String(), "the session is over: revoked") {
		t.Errorf("GET /session after the logout: got %d %s", w.Code, w.Body)
	}
	stolen.cookies["__Host-sidekey_session"] = token
	if w := stolen.send("POST", "/session/renew", "", "", "X-CSRF-Token", csrf); w.Code != 401 || len(stolen.cookies) != 0 {
		t.Errorf("renewal after the logout: got %d %s, cookies %v", w.Code, w.Body, stolen.cookies)
	}

	// Who is logged out already is told nothing else.
	for _, cookie := range []string{"", token, "nonsense"} {
		j.cookies = map[string]string{"__Host-sidekey_session": cookie}
		if w := j.send("POST", "/session/logout", "", ""); w.Code != 204 {
			t.Errorf("a second logout: got %d %s, want 204", w.Code, w.Body)
		}
	}
	if w := j.send("GET", "/session", "", ""); w.Code != 401 || w.Header().Get("WWW-Authenticate") != `Session realm="sidekey"` {
		t.Errorf("GET /session without one: got %d %q", w.Code, w.Header())
	}
}

// TestBrowserLogoutForm: a page without scripts logs out by a form.
func TestBrowserLogoutForm(t *testing.T) {
	ti := start(t, newBus())
	for next, want := range map[string]string{"": "login", "/bye?x=1": "/bye?x=1", "//evil.example": "login"} {
		j := newJar(ti.PublicHandler())
		csrf := decode[issuer.BrowserSession](t, j.login(t)).CSRF
		w := j.send("POST", "/session/logout", pageForm, url.Values{"csrf_token": {csrf}, "next": {next}}.Encode())
		if w.Code != 303 || w.Header().Get("Location") != want || len(j.cookies) != 0 {
			t.Errorf("logout with next=%q: got %d, Location %q, cookies %v; want %q", next, w.Code, w.Header().Get("Location"), j.cookies, want)
		}
	}
}

// TestBrowserEndsWithItsUser: what ends refresh tokens ends a browser's session too.
func TestBrowserEndsWithItsUser(t *testing.T) {
	for what, end := range map[string]func(*testing.T, *testIssuer, *issuer.BrowserSession) error{
		"disabled": func(t *testing.T, ti *testIssuer, _ *issuer.BrowserSession) error {
			disabled := true
			_, err := ti.ChangeUser(t.Context(), "alice", issuer.UserChange{Disabled: &disabled})
			return err
		},
		"password": func(t *testing.T, ti *testIssuer, _ *issuer.BrowserSession) error {
			password := "through the looking-glass"
			_, err := ti.ChangeUser(t.Context(), "alice", issuer.UserChange{Password: &password})
			return err
		},
		"sid": func(t *testing.T, ti *testIssuer, b *issuer.BrowserSession) error {
			_, err := ti.Revoke(t.Context(), issuer.Target{SessionID: b.ID})
			return err
		},
	} {
		ti := start(t, newBus())
		b, err := ti.LoginBrowser(t.Context(), issuer.Credentials{Username: "alice", Password: "wonderland"})
		if err != nil {
			t.Fatal(err)
		}
		if err := end(t, ti, b); err != nil {
			t.Fatal(err)
		}
		refused(t, what+": an agent's check", verifyCookie(ti.replica, b.Token), keyring.Revoked)
		_, err = ti.RenewBrowser(t.Context(), b.Token, b.CSRF)
		refused(t, what+": RenewBrowser", err, keyring.Revoked)
		_, err = ti.Browser(t.Context(), b.Token)
		refused(t, what+": Browser", err, keyring.Revoked)
	}
}

// TestBrowserLoginAgain: a login never goes on with a session that the browser had, and ends it.
func TestBrowserLoginAgain(t *testing.T) {
	ti := start(t, newBus())
	j := newJar(ti.PublicHandler())
	first := decode[issuer.BrowserSession](t, j.login(t))
	token := j.cookies["__Host-sidekey_session"]
	second := decode[issuer.BrowserSession](t, j.login(t))
	if first.ID == second.ID || first.CSRF == second.CSRF {
		t.Errorf("the second login: got sid %s and CSRF token of the first", second.ID)
	}
	refused(t, "the first session's token", verifyCookie(ti.replica, token), keyring.Revoked)
	if err := verifyCookie(ti.replica, j.cookies["__Host-sidekey_session"]); err != nil {
		t.Errorf("the second session's token: %v", err)
	}
}

// TestBrowserLifetimes: renewed, a session lives beyond its idle time, and never beyond its lifetime.
func TestBrowserLifetimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ti := start(t, newBus(), func(c *issuer.Config, _ *issuer.Parts) {
			c.SessionIdle, c.SessionLifetime = 30*time.Minute, time.Hour
		})
		b, err := ti.LoginBrowser(t.Context(), issuer.Credentials{Username: "alice", Password: "wonderland"})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		left, err := ti.LoginBrowser(t.Context(), issuer.Credentials{Username: "alice", Password: "wonderland"})
		if err != nil {
			t.Fatal(err)
		}
		for _, wait := range []time.Duration{20 * time.Minute, 20 * time.Minute} {
			time.Sleep(wait)
			csrf := b.CSRF
			if b, err = ti.RenewBrowser(t.Context(), b.Token, b.CSRF); err != nil {
				t.Fatalf("RenewBrowser after %s: %v", time.Since(began), err)
			}
			if b.CSRF != csrf {
				t.Error("a renewal changed the CSRF token, which other tabs hold")
			}
		}
		if want := began.Add(time.Hour).Unix(); b.Expires != want || b.Ends != want {
			t.Errorf("after 40 minutes: got expires %d, ends %d, want both %d", b.Expires, b.Ends, want)
		}
		refused(t, "one not renewed", verifyCookie(ti.replica, left.Token), keyring.Expired)
		_, err = ti.RenewBrowser(t.Context(), left.Token, left.CSRF)
		refused(t, "renewing it", err, keyring.Expired)

		time.Sleep(20 * time.Minute) // the hour is over; within the leeway the token is not
		_, err = ti.RenewBrowser(t.Context(), b.Token, b.CSRF)
		refused(t, "renewing at the end of its lifetime", err, keyring.Expired)
		time.Sleep(6 * time.Second)
		refused(t, "an agent's check at the end of its lifetime", verifyCookie(ti.replica, b.Token), keyring.Expired)
		if err := ti.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if all, err := ti.ListSessions(t.Context(), ""); err != nil || len(all) != 0 {
			t.Errorf("ListSessions at the end: got %v, %v; want none", all, err)
		}
	})
}

// TestBrowserRenewedByManyTabs: at one time and at several issuers, each gets a token that is good, and all
// of them end with the session.
func TestBrowserRenewedByManyTabs(t *testing.T) {
	var ago atomic.Int64 // the issuers' clocks: no bubble, where a lock that is waited for stops the time
	ago.Store(int64(5 * time.Minute))
	clock := func(_ *issuer.Config, p *issuer.Parts) {
		p.Now = func() time.Time { return time.Now().Add(-time.Duration(ago.Load())) }
	}
	bus := newBus()
	ti := start(t, bus, clock)
	issuers := []*testIssuer{ti, newIssuer(t, bus, clock), newIssuer(t, bus, clock)}
	b, err := ti.LoginBrowser(t.Context(), issuer.Credentials{Username: "alice", Password: "wonderland"})
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range issuers {
		if err := other.replica.Wait(t.Context(), ti.position().Seq); err != nil {
			t.Fatal(err)
		}
	}
	ago.Store(0)
	var wg sync.WaitGroup
	tokens := make([]string, 12)
	for n := range tokens {
		wg.Go(func() {
			got, err := issuers[n%len(issuers)].RenewBrowser(t.Context(), b.Token, b.CSRF)
			if err != nil {
				t.Errorf("renewal %d: %v", n, err)
				return
			}
			tokens[n] = got.Token
		})
	}
	wg.Wait()
	distinct := map[string]bool{}
	for n, token := range append(tokens, b.Token) {
		distinct[token] = true
		if err := verifyCookie(ti.replica, token); err != nil {
			t.Errorf("token %d: %v", n, err)
		}
	}
	if len(distinct) != 2 {
		t.Errorf("got %d tokens of 12 renewals, want one beside the first", len(distinct)-1)
	}
	if err := ti.EndBrowser(t.Context(), b.Token, b.CSRF); err != nil {
		t.Fatal(err)
	}
	for token := range distinct {
		refused(t, "after the logout", verifyCookie(ti.replica, token), keyring.Revoked)
	}
}

// TestBrowserRevocationOutlivesItsTokens: one that names no time lives until the last session token is refused for its
// age, also where browsers' tokens live longer than access tokens.
func TestBrowserRevocationOutlivesItsTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ti := start(t, newBus(), func(c *issuer.Config, _ *issuer.Parts) { c.AccessLifetime, c.SessionIdle = time.Minute, 2*time.Hour })
		b, err := ti.LoginBrowser(t.Context(), issuer.Credentials{Username: "alice", Password: "wonderland"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ti.Revoke(t.Context(), issuer.Target{SessionID: b.ID}); err != nil {
			t.Fatal(err)
		}
		for range 8 {
			refused(t, "a revoked session's token", verifyCookie(ti.replica, b.Token), keyring.Revoked)
			time.Sleep(15 * time.Minute)
		}
	})
}

// TestBrowserOverRotation: a session token made by a key that retires is good until it expires, also where it lives
// longer than an access token.
func TestBrowserOverRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ti := start(t, newBus(), func(c *issuer.Config, _ *issuer.Parts) { c.AccessLifetime = time.Minute })
		b, err := ti.LoginBrowser(t.Context(), issuer.Credentials{Username: "alice", Password: "wonderland"})
		if err != nil {
			t.Fatal(err)
		}
		before := checkRing(t, ti)
		if _, err := ti.Rotate(t.Context(), issuer.Rotation{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		ti.steps(t)
		time.Sleep(25 * time.Minute)
		ti.steps(t)
		if got := state(t, ti, before); got != keyring.Retiring {
			t.Fatalf("the first key is %s, want retiring", got)
		}
		if err := verifyCookie(ti.replica, b.Token); err != nil {
			t.Errorf("a session token of the key before: %v", err)
		}
	})
}

// TestBrowserBehindATrustedProxy: Origin is held against the host that a trusted proxy names, and no other.
func TestBrowserBehindATrustedProxy(t *testing.T) {
	for trusted, want := range map[string]int{"192.0.2.0/24": 200, "198.51.100.0/24": 403} { // httptest's requests come from 192.0.2.1
		ti := start(t, newBus(), func(c *issuer.Config, _ *issuer.Parts) {
			c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix(trusted)}
		})
		w := newJar(ti.PublicHandler()).send("POST", "/session/login", "application/json", `{"username":"alice","password":"wonderland"}`,
			"Sec-Fetch-Site", "", "Origin", "https://app.example", "X-Forwarded-Host", "app.example")
		if w.Code != want {
			t.Errorf("a login with X-Forwarded-Host where %s is trusted: got %d %s, want %d", trusted, w.Code, w.Body, want)
		}
	}
}

func TestBrowserRenewAfterALostAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus()
		ti := start(t, bus)
		b, err := ti.LoginBrowser(t.Context(), issuer.Credentials{Username: "alice", Password: "wonderland"})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		bus.sessions.Fail(bustest.Failure{Err: errors.New("the acknowledgement was lost"), Stored: true})
		got, err := ti.RenewBrowser(t.Context(), b.Token, b.CSRF)
		if err != nil {
			t.Fatalf("RenewBrowser: %v", err)
		}
		if err := verifyCookie(ti.replica, got.Token); err != nil {
			t.Errorf("its token: %v", err)
		}
	})
}
