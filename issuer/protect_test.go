package issuer_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

// from asks as a client at an address, with more headers.
func from(h http.Handler, address, method, path, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.RemoteAddr = address + ":1234"
	if strings.Contains(address, ":") {
		r.RemoteAddr = "[" + address + "]:1234"
	}
	r.Header.Set("Content-Type", "application/json")
	for at := 0; at < len(header); at += 2 {
		r.Header.Add(header[at], header[at+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// TestTrustedProxies: the client's address is the last hop that no trusted proxy has, and nothing that a client says
// for itself.
func TestTrustedProxies(t *testing.T) {
	var file syncBuffer
	ti := start(t, newBus(), withTrail(new(bustest.AuditTrail), &file), func(c *issuer.Config, _ *issuer.Parts) {
		c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("10.0.0.0/8")}
	})
	for _, c := range []struct {
		peer string
		xff  []string
		want string
	}{
		{"127.0.0.1", []string{"203.0.113.9"}, "203.0.113.9"},
		{"127.0.0.1", []string{"1.2.3.4, 203.0.113.9"}, "203.0.113.9"},             // the first the client wrote itself
		{"127.0.0.1", []string{"1.2.3.4", "203.0.113.9, 10.1.1.1"}, "203.0.113.9"}, // two headers, two proxies
		{"127.0.0.1", []string{"10.9.9.9, 10.1.1.1"}, "10.9.9.9"},                  // all of them proxies
		{"127.0.0.1", []string{"1.2.3.4, unknown, 10.1.1.1"}, "10.1.1.1"},          // what is behind no address is not read
		{"127.0.0.1", nil, "127.0.0.1"},
		{"127.0.0.1", []string{"::ffff:203.0.113.9"}, "203.0.113.9"},
		{"127.0.0.2", []string{"203.0.113.9"}, "127.0.0.2"},       // loopback, and not listed
		{"198.51.100.1", []string{"203.0.113.9"}, "198.51.100.1"}, // anybody
		{"::ffff:10.0.0.1", []string{"2001:db8::1"}, "2001:db8::1"},
	} {
		header := []string{}
		for _, x := range c.xff {
			header = append(header, "X-Forwarded-For", x)
		}
		from(ti.PublicHandler(), c.peer, "POST", "/api/token/", `{"username":"alice","password":"wrong"}`, header...)
		all := events(t, ti, "event=login+refused&limit=1")
		if len(all) != 1 || all[0].Address != c.want {
			t.Errorf("from %s with X-Forwarded-For %q: got %v, want the address %s", c.peer, c.xff, all, c.want)
		}
	}
}

// TestRefreshLimits: the configured number a minute passes, of a session and of a source, and 429 says when to come again.
func TestRefreshLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ti := start(t, newBus(), func(c *issuer.Config, _ *issuer.Parts) { c.RefreshLimit, c.SourceMultiple = 6, 2 })
		h := ti.PublicHandler()
		pass := func(token *string, address string) bool {
			w := from(h, address, "POST", "/api/token/refresh/", `{"refresh":"`+*token+`"}`)
			if w.Code == 429 {
				if got := w.Header().Get("Retry-After"); got == "" || !strings.Contains(w.Body.String(), "Request was throttled. Expected available in "+got+" second") {
					t.Errorf("the answer beyond the limit: got Retry-After %q, %s", got, w.Body)
				}
				return false
			}
			var answer struct{ Refresh string }
			if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != 200 {
				t.Fatalf("refreshing: got %d %s", w.Code, w.Body)
			}
			*token = answer.Refresh
			return true
		}
		one, two, three := login(t, ti).Refresh, login(t, ti).Refresh, login(t, ti).Refresh
		count := func(token *string, address string, tries int) (n int) {
			for range tries {
				if pass(token, address) {
					n++
				}
			}
			return n
		}
		if n := count(&one, "192.0.2.7", 10); n != 6 {
			t.Errorf("of one session: %d at once, want 6", n)
		}
		if n := count(&two, "192.0.2.7", 10); n != 2 { // ten tries of the first have counted for the source too
			t.Errorf("of the same source: %d more at once, want 2", n)
		}
		if n := count(&three, "192.0.2.8", 10); n != 6 {
			t.Errorf("of another session and source: %d at once, want 6", n)
		}
		passed := 0
		for range 60 { // a minute, one try a second
			time.Sleep(time.Second)
			passed += count(&three, "192.0.2.8", 1)
		}
		if passed != 6 {
			t.Errorf("in the next minute: %d of 60, want 6", passed)
		}
	})
}

// renewals are the ways to renew a session: each logs in at one address and renews at others. A renewal's answer is 200, or 401 where
// the session is over or refused.
var renewals = map[string]func(t *testing.T, h http.Handler, address, userAgent string) func(address, userAgent string) *httptest.ResponseRecorder{
	"refresh": func(t *testing.T, h http.Handler, address, userAgent string) func(address, userAgent string) *httptest.ResponseRecorder {
		w := from(h, address, "POST", "/api/token/", aliceLogin, "User-Agent", userAgent)
		token := decode[struct{ Refresh string }](t, w).Refresh
		return func(address, userAgent string) *httptest.ResponseRecorder {
			return from(h, address, "POST", "/api/token/refresh/", `{"refresh":"`+token+`"}`, "User-Agent", userAgent)
		}
	},
	"oauth": func(t *testing.T, h http.Handler, address, userAgent string) func(address, userAgent string) *httptest.ResponseRecorder {
		w := from(h, address, "POST", "/api/token/", aliceLogin, "User-Agent", userAgent)
		token := decode[struct{ Refresh string }](t, w).Refresh
		return func(address, userAgent string) *httptest.ResponseRecorder {
			r := httptest.NewRequest("POST", "/oauth2/token", strings.NewReader("grant_type=refresh_token&refresh_token="+token))
			r.RemoteAddr = netip.AddrPortFrom(netip.MustParseAddr(address), 1234).String()
			r.Header.Set("Content-Type", pageForm)
			r.Header.Set("User-Agent", userAgent)
			w := httptest.NewRecorder()
			if h.ServeHTTP(w, r); w.Code == 400 && strings.Contains(w.Body.String(), "invalid_grant") {
				w.Code = 401 // RFC 6749 §5.2 has its own status
			}
			return w
		}
	},
	"sliding": func(t *testing.T, h http.Handler, address, userAgent string) func(address, userAgent string) *httptest.ResponseRecorder {
		w := from(h, address, "POST", "/api/token/sliding/", aliceLogin, "User-Agent", userAgent)
		token := decode[struct{ Token string }](t, w).Token
		return func(address, userAgent string) *httptest.ResponseRecorder {
			return from(h, address, "POST", "/api/token/sliding/refresh/", `{"token":"`+token+`"}`, "User-Agent", userAgent)
		}
	},
	"browser": func(t *testing.T, h http.Handler, address, userAgent string) func(address, userAgent string) *httptest.ResponseRecorder {
		w := from(h, address, "POST", "/session/login", aliceLogin, "User-Agent", userAgent)
		csrf := decode[issuer.BrowserSession](t, w).CSRF
		session := w.Result().Cookies()[0]
		return func(address, userAgent string) *httptest.ResponseRecorder {
			return from(h, address, "POST", "/session/renew", "", "User-Agent", userAgent, "X-CSRF-Token", csrf, "Cookie", session.Name+"="+session.Value)
		}
	},
}

const aliceLogin = `{"username":"alice","password":"wonderland"}`

// TestRenewFromElsewhere: what is told, what is refused, and who can go on, whatever way the session is renewed.
func TestRenewFromElsewhere(t *testing.T) {
	for _, c := range []struct {
		name                string
		network, agent      issuer.Anomaly
		address, userAgent  string
		refused, over, told bool
	}{
		{"the same network", issuer.Revoke, issuer.Revoke, "192.0.2.200", "app/1", false, false, false},
		{"another network, logged", "", "", "198.51.100.1", "app/1", false, false, true},
		{"another network, refused", issuer.RequireLogin, "", "198.51.100.1", "app/1", true, false, true},
		{"another network, revoked", issuer.Revoke, "", "198.51.100.1", "app/1", true, true, true},
		{"another agent, refused", "", issuer.RequireLogin, "192.0.2.1", "curl/8", true, false, true},
		{"both: the stricter counts", issuer.RequireLogin, issuer.Revoke, "198.51.100.1", "curl/8", true, true, true},
		{"an IPv6 network", issuer.RequireLogin, "", "2001:db8::1", "app/1", true, false, true},
		{"no agent", "", issuer.Revoke, "192.0.2.1", "", false, false, false},
	} {
		for way, begin := range renewals {
			t.Run(way+"/"+c.name, func(t *testing.T) {
				ti := start(t, newBus(), withTrail(new(bustest.AuditTrail), nil), func(cfg *issuer.Config, _ *issuer.Parts) {
					cfg.OnNewNetwork, cfg.OnNewAgent, cfg.Sliding = c.network, c.agent, true
				})
				renew := begin(t, ti.PublicHandler(), "192.0.2.1", "app/1")
				w := renew(c.address, c.userAgent)
				if got := w.Code == 401; got != c.refused || !got && w.Code != 200 {
					t.Errorf("renewing: got %d %s, want a refusal: %v", w.Code, w.Body, c.refused)
				}
				if told := len(events(t, ti, "event=refresh+from+elsewhere")) > 0; told != c.told {
					t.Errorf("told: %v, want %v", told, c.told)
				}
				if !c.refused {
					return
				}
				if w = renew("192.0.2.1", "app/1"); (w.Code == 401) != c.over {
					t.Errorf("renewing where the session is at home: got %d %s, want that it is over: %v", w.Code, w.Body, c.over)
				}
			})
		}
	}
}

// TestEveryRenewalIsLimited: the configured number a minute of one session, whatever way it is renewed.
func TestEveryRenewalIsLimited(t *testing.T) {
	for way, begin := range renewals {
		t.Run(way, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ti := start(t, newBus(), func(c *issuer.Config, _ *issuer.Parts) { c.RefreshLimit, c.Sliding = 3, true })
				renew := begin(t, ti.PublicHandler(), "192.0.2.1", "app/1")
				for n := range 3 {
					if w := renew("192.0.2.1", "app/1"); w.Code != 200 {
						t.Fatalf("renewal %d: got %d %s", n+1, w.Code, w.Body)
					}
				}
				if w := renew("192.0.2.1", "app/1"); w.Code != 429 || w.Header().Get("Retry-After") != "21" {
					t.Errorf("the fourth: got %d %s, Retry-After %q, want 429 and 21", w.Code, w.Body, w.Header().Get("Retry-After"))
				}
			})
		})
	}
}

// TestFloodOfBadTokens: a source that presents what is not good is sent away before the token is looked at, at every endpoint that takes one to
// renew or end a session; other sources, and those without a limit, are not.
func TestFloodOfBadTokens(t *testing.T) {
	for _, c := range []struct {
		path, body string
		header     []string
		bad        int
		told       string
	}{
		{"/api/token/refresh/", `{"refresh":"a.b.c"}`, nil, 401, "refresh limited"},
		{"/api/token/blacklist/", `{"refresh":"a.b.c"}`, nil, 401, "refresh limited"},
		{"/api/token/sliding/refresh/", `{"token":"a.b.c"}`, nil, 401, "refresh limited"},
		{"/session/renew", "", []string{"Cookie", "__Host-sidekey_session=a.b.c"}, 401, "renewal limited"},
		{"/session/logout", "", []string{"Cookie", "__Host-sidekey_session=a.b.c"}, 204, "renewal limited"},
	} {
		t.Run(c.path, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ti := start(t, newBus(), withTrail(new(bustest.AuditTrail), nil), func(cfg *issuer.Config, _ *issuer.Parts) {
					cfg.RefreshLimit, cfg.SourceMultiple, cfg.Sliding = 2, 2, true
				})
				defer ti.Close() // the audit's goroutine may not outlive the bubble
				h := ti.PublicHandler()
				good := renewals["refresh"](t, h, "192.0.2.1", "app/1")
				ask := func(address string, want int) {
					t.Helper()
					if w := from(h, address, "POST", c.path, c.body, c.header...); w.Code != want {
						t.Errorf("from %s: got %d %s, want %d", address, w.Code, w.Body, want)
					}
				}
				for range 4 {
					ask("192.0.2.1", c.bad)
				}
				ask("192.0.2.1", 429)
				ask("192.0.2.2", c.bad)
				for range 8 {
					ask("127.0.0.1", c.bad)
				}
				if w := good("192.0.2.1", "app/1"); w.Code != 429 {
					t.Errorf("a good token from there: got %d %s, want 429", w.Code, w.Body)
				}
				if told := events(t, ti, "event="+url.QueryEscape(c.told)); len(told) == 0 || told[0].Address != "192.0.2.1" || told[0].Outcome != issuer.Refused {
					t.Errorf("the audit of %q has %v, want the source", c.told, told)
				}
				time.Sleep(15 * time.Second)
				if w := good("192.0.2.1", "app/1"); w.Code != 200 {
					t.Errorf("a good token a quarter of a minute later: got %d %s, want 200", w.Code, w.Body)
				}
			})
		})
	}
}

// TestOwnDevices: a user sees where their sessions are, ends them, and neither sees nor ends another's.
func TestOwnDevices(t *testing.T) {
	ti := start(t, newBus())
	h := ti.PublicHandler()
	if _, err := ti.AddUser(t.Context(), issuer.NewUser{Username: "mallory", Password: "looking-glass"}); err != nil {
		t.Fatal(err)
	}
	type device struct {
		SID     string                              `json:"sid"`
		Current bool                                `json:"current"`
		From    struct{ Network, UserAgent string } `json:"from"`
		Last    struct {
			Network string `json:"network"`
		} `json:"last"`
	}
	logIn := func(name, password, address string) (access, refresh string) {
		t.Helper()
		w := from(h, address, "POST", "/api/token/", `{"username":"`+name+`","password":"`+password+`"}`, "User-Agent", "phone/1")
		var tokens struct{ Refresh, Access string }
		if err := json.Unmarshal(w.Body.Bytes(), &tokens); err != nil || w.Code != 200 {
			t.Fatalf("login: got %d %s", w.Code, w.Body)
		}
		return tokens.Access, tokens.Refresh
	}
	list := func(access string) (all []device) {
		t.Helper()
		w := from(h, "192.0.2.1", "GET", "/sessions", "", "Authorization", "Bearer "+access)
		var answer struct{ Sessions []device }
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != 200 {
			t.Fatalf("GET /sessions: got %d %s", w.Code, w.Body)
		}
		return answer.Sessions
	}
	phone, phoneRefresh := logIn("alice", "wonderland", "192.0.2.1")
	laptop, _ := logIn("alice", "wonderland", "2001:db8:1:2::3")
	other, _ := logIn("mallory", "looking-glass", "203.0.113.9")
	from(h, "198.51.100.7", "POST", "/api/token/refresh/", `{"refresh":"`+phoneRefresh+`"}`, "User-Agent", "phone/1")
	mine := list(phone)
	if len(mine) != 2 || len(list(other)) != 1 {
		t.Fatalf("the sessions: got %+v of alice and %+v of mallory, want 2 and 1", mine, list(other))
	}
	for _, d := range mine {
		want := [2]string{"2001:db8:1::/48", "2001:db8:1::/48"}
		if d.Current {
			want = [2]string{"192.0.2.0/24", "198.51.100.0/24"}
		}
		if got := [2]string{d.From.Network, d.Last.Network}; got != want {
			t.Errorf("where session %s (current: %v) is: got %v, want %v", d.SID, d.Current, got, want)
		}
	}
	for _, d := range mine { // another's session is as one that does not exist
		if w := from(h, "203.0.113.9", "DELETE", "/sessions/"+d.SID, "", "Authorization", "Bearer "+other); w.Code != 404 {
			t.Errorf("ending another user's session: got %d %s, want 404", w.Code, w.Body)
		}
	}
	if w := from(h, "203.0.113.9", "DELETE", "/sessions?except=current", "", "Authorization", "Bearer "+other); w.Code != 200 || len(list(phone)) != 2 {
		t.Errorf("mallory ends all other sessions: got %d %s, and alice has %d, want 2", w.Code, w.Body, len(list(phone)))
	}
	if w := from(h, "192.0.2.1", "DELETE", "/sessions?except=current", "", "Authorization", "Bearer "+phone); w.Code != 200 || !strings.Contains(w.Body.String(), `"ended":1`) {
		t.Errorf("ending all others: got %d %s, want one ended", w.Code, w.Body)
	}
	refused(t, "the laptop's token", ti.Check(t.Context(), laptop), keyring.Revoked)
	if got := list(phone); len(got) != 1 || !got[0].Current {
		t.Errorf("afterwards: got %+v, want the current session alone", got)
	}
}

// TestSixtyFourRefreshes: of 64 presentations of one refresh token at once, at two issuers on one bus, all within the
// grace time get one and the same successor, and a late one ends the session.
func TestSixtyFourRefreshes(t *testing.T) {
	b := newRealBus(t)
	one := start(t, b)
	two := newIssuer(t, b)
	servers := []*httptest.Server{httptest.NewServer(one.PublicHandler()), httptest.NewServer(two.PublicHandler())}
	for _, s := range servers {
		defer s.Close()
	}
	tokens := login(t, one)
	var mu sync.Mutex
	var wg sync.WaitGroup
	successors, statuses := map[string]int{}, map[int]int{}
	for n := range 64 {
		wg.Go(func() {
			resp, err := http.Post(servers[n%2].URL+"/api/token/refresh/", "application/json", strings.NewReader(`{"refresh":"`+tokens.Refresh+`"}`))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			var answer struct{ Refresh string }
			if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			statuses[resp.StatusCode]++
			if answer.Refresh != "" {
				successors[answer.Refresh]++
			}
		})
	}
	wg.Wait()
	if len(successors) != 1 || statuses[200] == 0 || statuses[200]+statuses[503] != 64 {
		t.Fatalf("64 refreshes: got %d successors and the statuses %v, want one successor, and 200 (503: try again)", len(successors), statuses)
	}
	t.Logf("statuses %v", statuses)
	for successor := range successors {
		refresh(t, one, successor)
	}
	_, err := two.Refresh(t.Context(), tokens.Refresh)
	refused(t, "the first token once its successor is used", err, keyring.Revoked)
	for successor := range successors {
		_, err = one.Refresh(t.Context(), successor)
		refused(t, "any token of the session", err, keyring.Revoked)
	}
}

func TestCommonPasswords(t *testing.T) {
	ti := start(t, newBus())
	strict := newIssuer(t, ti.bus, func(c *issuer.Config, _ *issuer.Parts) { c.MinPassword, c.RefuseCommon = 8, true })
	for _, c := range []struct{ password, want string }{
		{"Tr0ub4d", `"password" must be 8 characters at least`},
		{"äöüäöüä", `"password" must be 8 characters at least`}, // 14 bytes
		{"password1", `"password" is one of those that everybody tries first; take another`},
		{"PassWord1", `"password" is one of those that everybody tries first; take another`},
		{"Bob-The-Builder", `"password" may not be the user name`},
		{"correct-horse-battery", ""},
	} {
		_, err := strict.AddUser(t.Context(), issuer.NewUser{Username: "bob-the-builder", Password: c.password})
		if got := errText(err); got != c.want {
			t.Errorf("adding a user with %q: got %q, want %q", c.password, got, c.want)
		}
		_, err = strict.ChangeUser(t.Context(), "alice", issuer.UserChange{Password: &c.password})
		if got := errText(err); got != c.want && !strings.Contains(c.want, "user name") {
			t.Errorf("changing to %q: got %q, want %q", c.password, got, c.want)
		}
	}
	if _, err := ti.AddUser(t.Context(), issuer.NewUser{Username: "dev", Password: "password"}); err != nil {
		t.Errorf("where that is allowed: got %v", err)
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestRefusedLoginsAreAlike: who does not know the password is told the same, byte for byte, whether the name exists, is
// disabled, or cannot exist.
func TestRefusedLoginsAreAlike(t *testing.T) {
	ti := start(t, newBus())
	if _, err := ti.AddUser(t.Context(), issuer.NewUser{Username: "carol", Password: "looking-glass", Disabled: true}); err != nil {
		t.Fatal(err)
	}
	answer := func(name, password string) string {
		w := from(ti.PublicHandler(), "192.0.2.1", "POST", "/api/token/", `{"username":"`+name+`","password":"`+password+`"}`)
		var all strings.Builder
		if err := w.Result().Write(&all); err != nil {
			t.Fatal(err)
		}
		return all.String()
	}
	want := answer("alice", "wrong")
	if !strings.Contains(want, "401") {
		t.Fatalf("a wrong password: got %s, want 401", want)
	}
	for _, c := range [][2]string{{"nobody", "wrong"}, {"carol", "looking-glass"}, {"carol", "wrong"}, {strings.Repeat("n", 300), "x"}, {"alice", strings.Repeat("p", 2000)}} {
		if got := answer(c[0], c[1]); got != want {
			t.Errorf("login of %.20q with %.20q: got %s, want %s", c[0], c[1], got, want)
		}
	}
}

// BenchmarkRefusedLogin interleaves refused logins of every kind, with the shipped cost of a password, and reports the median of each
// kind and how often an unknown user was quicker than a wrong password: 0.5 says nothing (Mann-Whitney).
func BenchmarkRefusedLogin(b *testing.B) {
	ti := start(b, newBus(), func(c *issuer.Config, _ *issuer.Parts) { c.Hash = issuer.DefaultHash })
	if _, err := ti.AddUser(b.Context(), issuer.NewUser{Username: "carol", Password: "looking-glass", Disabled: true}); err != nil {
		b.Fatal(err)
	}
	kinds := []struct{ name, user, password string }{{"unknown", "nobody", "wrong"}, {"wrong", "alice", "wrong"}, {"disabled", "carol", "looking-glass"}}
	took := make([][]time.Duration, len(kinds))
	for n := 0; b.Loop(); n++ {
		for at := range kinds {
			k := kinds[(at+n)%len(kinds)]
			began := time.Now()
			if _, err := ti.Login(b.Context(), issuer.Credentials{Username: k.user, Password: k.password}); err == nil {
				b.Fatal("a login passed")
			}
			took[(at+n)%len(kinds)] = append(took[(at+n)%len(kinds)], time.Since(began))
		}
	}
	for at, k := range kinds {
		quicker := 0.0
		for _, x := range took[at] {
			for _, y := range took[1] {
				if x < y {
					quicker++
				} else if x == y {
					quicker += 0.5
				}
			}
		}
		b.ReportMetric(quicker/float64(len(took[at])*len(took[1])), "P(<wrong)-"+k.name)
		slices.Sort(took[at])
		b.ReportMetric(float64(took[at][len(took[at])/2].Microseconds()), "µs-"+k.name)
	}
}
