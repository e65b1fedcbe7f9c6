package agent_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
)

// issuers is who a test's agent asks about passwords.
type issuers struct {
	mu    sync.Mutex
	ans   bus.BasicAnswer
	err   error
	asked []bus.BasicRequest
	gate  chan struct{} // nil, or what an answer waits for
}

func (i *issuers) Check(_ context.Context, req bus.BasicRequest) (bus.BasicAnswer, error) {
	if i.gate != nil {
		<-i.gate
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked = append(i.asked, req)
	if i.err == nil && i.ans.Outcome == bus.BasicOK && req.Password != "wonder:land" {
		return bus.BasicAnswer{Outcome: bus.BasicRefused}, nil
	}
	return i.ans, i.err
}

func (i *issuers) set(ans bus.BasicAnswer, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ans, i.err = ans, err
}

func (i *issuers) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.asked)
}

func basic(text string) string {
	return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(text))
}

func basicWorld(t *testing.T) (*world, *issuers) {
	who := &issuers{ans: bus.BasicAnswer{Outcome: bus.BasicOK, Subject: "alice-id", Username: "alice", ClientID: "sidekey", Scope: "read", Roles: []string{"staff"}, Seq: 1, Life: 60}}
	w := newWorldWith(t, func(p *agent.Parts) { p.Passwords = who }, func(c *agent.Config) {
		c.Authenticators, c.Headers = []string{"bearer", "basic"}, map[string]string{"username": "X-Auth-Username"}
	})
	return w, who
}

func TestBasic(t *testing.T) {
	w, who := basicWorld(t)
	h := w.listen("unix")
	ask := func(header ...string) reply {
		return h.do("GET", "/v1/auth/forward", "", forwarded("GET", header...)...)
	}
	for range 2 {
		got := ask(basic("alice:wonder:land"))
		checkAuth(t, "right", got, 200, "basic")
		if got.Header.Get("X-Auth-Subject") != "alice-id" || got.Header.Get("X-Auth-Username") != "alice" || got.Header.Get("X-Auth-Roles") != "staff" {
			t.Errorf("right: got %v", got.Header)
		}
	}
	if who.count() != 1 || who.asked[0].Username != "alice" || who.asked[0].Address != "10.1.2.3" {
		t.Errorf("asked: got %d questions, want one, with the client's address", who.count())
	}
	for range 2 {
		checkAuth(t, "wrong", ask(basic("alice:no")), 401, "bad_password")
	}
	if who.count() != 3 {
		t.Errorf("asked: got %d questions, want 3: a no is not remembered", who.count())
	}
	// A revocation of the user ends the memory; the issuer still has the old sequence, so its yes is refused as well.
	w.apply(&bus.Revocation{Subject: "alice-id", ExpiresAt: time.Now().Add(time.Hour).Unix(), Time: time.Now().Unix()})
	checkAuth(t, "cut off", ask(basic("alice:wonder:land")), 401, "revoked")
	if who.count() != 4 {
		t.Errorf("asked: got %d questions, want 4", who.count())
	}
	ok := who.ans
	ok.Seq = w.seq
	who.set(ok, nil)
	checkAuth(t, "right behind the cutoff", ask(basic("alice:wonder:land")), 200, "basic")

	who.set(bus.BasicAnswer{}, bus.ErrBasic)
	checkAuth(t, "remembered while the issuers are away", ask(basic("alice:wonder:land")), 200, "basic")
	checkAuth(t, "unknown while the issuers are away", ask(basic("bob:wonder:land")), 503, "unavailable")
	if got := ask(basic("bob:wonder:land")); !strings.Contains(got.body, "whom the agent must ask about this credential does not answer") {
		t.Errorf("the issuers are away: got %s", got.body)
	}
	checkAuth(t, "unknown at nginx", h.do("GET", "/v1/auth/nginx", "", "X-Original-Method: GET", "X-Original-URI: /", "X-Original-Proto: https", basic("bob:x")), 500, "unavailable")
	w.skew.Store(int64(61 * time.Second))
	checkAuth(t, "a minute later", ask(basic("alice:wonder:land")), 503, "unavailable")
	w.skew.Store(-int64(time.Hour))
	checkAuth(t, "a clock set back", ask(basic("alice:wonder:land")), 503, "unavailable")
	w.skew.Store(0)

	who.set(bus.BasicAnswer{Outcome: bus.BasicLimited, RetryAfter: 30}, nil)
	got := ask(basic("carol:x"))
	checkAuth(t, "limited", got, 429, "rate_limited")
	n := who.count()
	checkAuth(t, "limited, once more", ask(basic("carol:y")), 429, "rate_limited")
	if got.Header.Get("Retry-After") != "30" || who.count() != n {
		t.Errorf("limited: got Retry-After %q and %d more questions, want 30 and none", got.Header.Get("Retry-After"), who.count()-n)
	}
	checkAuth(t, "limited, at nginx", h.do("GET", "/v1/auth/nginx", "", "X-Original-Method: GET", "X-Original-URI: /", "X-Original-Proto: https", basic("dave:x")), 403, "rate_limited")
	if strings.Contains(w.log.String(), "wonder:land") {
		t.Error("the log has a password")
	}
}

// TestBasicRefusesUnasked tries what no issuer is to hear of.
func TestBasicRefusesUnasked(t *testing.T) {
	w, who := basicWorld(t)
	h := w.listen("unix")
	good := basic("alice:wonder:land")
	plain := func(client string, header ...string) []string {
		return append([]string{"X-Forwarded-Method: GET", "X-Forwarded-Uri: /", "X-Forwarded-Proto: http", "X-Forwarded-For: " + client}, header...)
	}
	for _, c := range []struct {
		name   string
		header []string
		status int
		word   string
	}{
		{"no base64", forwarded("GET", "Authorization: Basic !"), 401, "malformed"},
		{"base64 with bits left over", forwarded("GET", "Authorization: Basic YTp="), 401, "malformed"},
		{"base64 without its end", forwarded("GET", "Authorization: Basic YTpi=="), 401, "malformed"},
		{"nothing", forwarded("GET", "Authorization: Basic "), 401, "missing"},
		{"no colon", forwarded("GET", basic("alice")), 401, "malformed"},
		{"no name", forwarded("GET", basic(":x")), 401, "malformed"},
		{"not UTF-8", forwarded("GET", basic("\xff:x")), 401, "malformed"},
		{"a null byte", forwarded("GET", basic("alice\x00:x")), 401, "malformed"},
		{"a null byte in the password", forwarded("GET", basic("alice:x\x00")), 401, "malformed"},
		{"in clear from afar", plain("203.0.113.9", good), 403, "insecure_transport"},
		{"in clear from afar, loopback made up", plain("127.0.0.1, 203.0.113.9", good), 403, "insecure_transport"},
		{"a WebSocket in clear from afar", []string{"X-Forwarded-Method: GET", "X-Forwarded-Uri: /", "X-Forwarded-Proto: ws", "X-Forwarded-For: 203.0.113.9", good}, 403, "insecure_transport"},
		{"in clear from nowhere", plain("", good), 403, "insecure_transport"},
		{"no scheme told", []string{"X-Forwarded-Method: GET", "X-Forwarded-Uri: /", "X-Forwarded-For: 203.0.113.9", good}, 403, "insecure_transport"},
		{"beside a bearer", forwarded("GET", good, "Authorization: Bearer x"), 403, "ambiguous_request"},
	} {
		got := h.do("GET", "/v1/auth/forward", "", c.header...)
		checkAuth(t, c.name, got, c.status, c.word)
	}
	if who.count() != 0 {
		t.Errorf("asked: got %d questions, want none", who.count())
	}
	checkAuth(t, "in clear on the host itself", h.do("GET", "/v1/auth/forward", "", plain("127.0.0.1", good)...), 200, "basic")
	want := `Basic realm="sidekey", charset="UTF-8"`
	for header, n := range map[string]int{"Accept: */*": 2, "Sec-Fetch-Mode: cors": 1, "X-Requested-With: XMLHttpRequest": 1} {
		got := h.do("GET", "/v1/auth/forward", "", forwarded("GET", header)...).Header.Values("WWW-Authenticate")
		if len(got) != n || n == 2 && got[1] != want {
			t.Errorf("%s: challenges: got %q, want %d", header, got, n)
		}
	}
	starting := basicStarting(t, who).listen("unix")
	checkAuth(t, "starting", starting.do("GET", "/v1/auth/forward", "", forwarded("GET", good)...), 503, "starting")
	if who.count() != 1 {
		t.Errorf("asked: got %d questions, want 1: an agent that vouches for nobody asks nobody", who.count())
	}
}

func basicStarting(t *testing.T, who *issuers) *world {
	return newStartingWorldWith(t, func(p *agent.Parts) { p.Passwords = who }, func(c *agent.Config) { c.Authenticators = []string{"basic"} })
}

// TestBasicOneQuestion sends the same credential many times at once: an issuer hears it once.
func TestBasicOneQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, who := basicWorld(t)
		w.clock = func() lease.Reading { return lease.Reading{} }
		w.lease.Store(&lease.Lease{Length: time.Hour})
		who.gate = make(chan struct{})
		var wg sync.WaitGroup
		var active atomic.Int64
		header := http.Header{"Authorization": {strings.TrimPrefix(basic("alice:wonder:land"), "Authorization: ")}}
		for range 20 {
			wg.Go(func() {
				if d := w.agent.Authenticate(agent.NewRequest("GET", "https", "app.example", "/", header, netip.Addr{})); d.Active() {
					active.Add(1)
				}
			})
		}
		synctest.Wait() // all of them wait for an answer
		close(who.gate)
		wg.Wait()
		if active.Load() != 20 || who.count() != 1 {
			t.Errorf("got %d accepted with %d questions, want 20 with one", active.Load(), who.count())
		}
	})
}

func TestWebhook(t *testing.T) {
	var status atomic.Int64
	var body, heard atomic.Value
	var calls atomic.Int64
	status.Store(200)
	body.Store(`{"sub":"partner-1","scope":"orders","roles":["partner"],"client_id":"acme","jti":"p-1","claims":{"plan":"gold"}}`)
	service := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		b, _ := io.ReadAll(r.Body)
		heard.Store(string(b) + fmt.Sprint(r.Header["Cookie"], r.Header["Authorization"]))
		if status.Load() == 302 {
			rw.Header().Set("Location", "/")
		}
		rw.WriteHeader(int(status.Load()))
		_, _ = io.WriteString(rw, body.Load().(string))
	}))
	defer service.Close()
	w := newWorld(t, func(c *agent.Config) {
		c.Authenticators = []string{"webhook", "bearer"}
		c.Webhook = agent.WebhookConfig{URL: service.URL + "/auth", Headers: []string{"X-Partner-Key", "X-Partner-Sig"}, CacheFor: 10 * time.Second, Challenge: "Partner"}
		c.Headers = map[string]string{"plan": "X-Plan"}
	})
	h := w.listen("unix")
	n := 0
	ask := func(header ...string) reply {
		return h.do("GET", "/v1/auth/forward", "", forwarded("GET", header...)...)
	}
	fresh := func() string { n++; return fmt.Sprintf("X-Partner-Key: key-%d", n) }

	got := ask("Authorization: Bearer " + w.token())
	checkAuth(t, "not its own", got, 200, "bearer")
	if calls.Load() != 0 {
		t.Error("a request without its headers was asked about")
	}
	for range 2 {
		got = ask("X-Partner-Key: k", "Cookie: secret", "Authorization: Bearer x")
		checkAuth(t, "right", got, 200, "webhook")
	}
	if want := `{"headers":{"X-Partner-Key":"k"}}[] []`; calls.Load() != 1 || heard.Load() != want || got.Header.Get("X-Plan") != "gold" || got.Header.Get("X-Auth-Client") != "acme" {
		t.Errorf("right: %d calls, heard %s, want one, of %s; headers %v", calls.Load(), heard.Load(), want, got.Header)
	}
	checkAuth(t, "a header twice", ask("X-Partner-Key: k", "X-Partner-Key: k"), 403, "ambiguous_request")
	checkAuth(t, "another header of its own", ask("X-Partner-Key: k", "X-Partner-Sig: s"), 200, "webhook")
	for _, c := range []struct {
		status int64
		body   string
		want   int
		word   string
	}{
		{204, "", 401, "missing"}, {401, "", 401, "refused"}, {403, "", 403, "refused"},
		{500, "", 503, "unavailable"}, {302, "", 503, "unavailable"}, {200, "", 503, "unavailable"}, {200, `{}`, 503, "unavailable"},
		{200, `{"sub":""}`, 503, "unavailable"}, {200, `{"sub":"a","sub":"b"}`, 503, "unavailable"}, {200, `{"Sub":"a"}`, 503, "unavailable"},
		{200, `{"sub":"a","admin":true}`, 503, "unavailable"}, {200, `{"sub":"a"} {}`, 503, "unavailable"}, {200, `{"sub":1}`, 503, "unavailable"},
		{200, `{"sub":"` + strings.Repeat("a", 70_000) + `"}`, 503, "unavailable"},
		{200, `{"sub":"a\r\nX-Auth-Roles: admin"}`, 403, "unsafe_claim"}, {200, `{"sub":"a","roles":["x,y"]}`, 403, "unsafe_claim"},
		{200, `{"sub":"a","exp":1}`, 401, "expired"}, {200, `{"sub":"a"}`, 200, "webhook"},
	} {
		status.Store(c.status)
		body.Store(c.body)
		checkAuth(t, fmt.Sprintf("%d %.60s", c.status, c.body), ask(fresh()), c.want, c.word)
	}
	// What it names can be revoked, remembered or not.
	body.Store(`{"sub":"partner-1","jti":"p-1"}`)
	exp := time.Now().Add(time.Hour).Unix()
	before := calls.Load()
	w.apply(&bus.Revocation{Subject: "partner-1", ExpiresAt: exp, Time: time.Now().Unix()})
	checkAuth(t, "asked anew behind a cutoff", ask("X-Partner-Key: k"), 200, "webhook")
	if calls.Load() != before+1 {
		t.Errorf("behind a cutoff: got %d calls more, want 1", calls.Load()-before)
	}
	w.apply(&bus.Revocation{ID: "p-1", ExpiresAt: exp})
	checkAuth(t, "its jti revoked", ask("X-Partner-Key: k"), 401, "revoked")
	service.Close()
	checkAuth(t, "away", ask(fresh()), 503, "unavailable")
	if strings.Contains(w.log.String(), "key-1") || strings.Contains(w.log.String(), service.URL) {
		t.Errorf("the log has a credential or the URL: %s", w.log)
	}
}

// TestWebhookIsBounded keeps every call waiting: one too many is answered in time.
func TestWebhookIsBounded(t *testing.T) {
	release := make(chan struct{})
	service := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer service.Close()
	defer close(release)
	w := newWorld(t, func(c *agent.Config) {
		c.Authenticators = []string{"webhook"}
		c.Webhook = agent.WebhookConfig{URL: service.URL, Headers: []string{"X-Key"}, Timeout: 50 * time.Millisecond, MaxCalls: 1}
	})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			r := agent.NewRequest("GET", "https", "a", "/", http.Header{"X-Key": {"k"}}, netip.Addr{})
			if d := w.agent.Authenticate(r); d.Status != 503 || d.Reason != agent.Unavailable {
				t.Errorf("got %d %s, want 503 unavailable", d.Status, d.Reason)
			}
		})
	}
	wg.Wait()
}

func TestWebhookURLs(t *testing.T) {
	for url, want := range map[string]string{
		"http://127.0.0.1:9/x": "", "http://[::1]:9": "", "http://localhost:9": "", "https://auth.example/x": "", "unix:/run/x.sock": "",
		"http://auth.example": "beyond this host", "http://127.0.0.1.evil.example": "beyond this host", "unix:x": "no absolute path",
		"ftp://127.0.0.1": "not http", "": "no URL", "http://u:p@127.0.0.1": "no URL", "https:///x": "no URL",
	} {
		c := agent.WebhookConfig{URL: url, Headers: []string{"X-A"}}
		err := c.Check()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", url, err, want)
		}
	}
}

// scripted is a Scheme whose answer the test gives.
type scripted struct {
	p   *agent.Principal
	err error
}

func (s *scripted) Authenticate(_ context.Context, r *agent.Request) (*agent.Principal, error) {
	if r.Header("X-Scripted") == "" {
		return nil, nil
	}
	return s.p, s.err
}

func (*scripted) Challenge() string { return "Scripted" }

var theScripted scripted

func init() {
	agent.RegisterScheme("scripted", func(c agent.SchemeConfig) (agent.Scheme, error) {
		var cfg struct {
			Secret string `json:"secret"`
		}
		if err := c.Decode(&cfg); err != nil {
			return nil, err
		}
		return &theScripted, nil
	})
}

func TestCustomScheme(t *testing.T) {
	w := newWorld(t, func(c *agent.Config) { c.Authenticators = []string{"scripted", "bearer"} })
	w.apply(&bus.Revocation{ID: "gone", ExpiresAt: time.Now().Add(time.Hour).Unix()},
		&bus.Revocation{Subject: "bob", ExpiresAt: time.Now().Add(time.Hour).Unix(), Time: time.Now().Unix()})
	h := w.listen("unix")
	now := time.Now()
	for _, c := range []struct {
		name   string
		p      *agent.Principal
		err    error
		status int
		word   string
	}{
		{"right", &agent.Principal{Subject: "alice", Method: "bearer"}, nil, 200, "scripted"},
		{"not mine", nil, nil, 401, "missing"},
		{"refused", nil, &agent.Refusal{}, 401, "refused"},
		{"refused, wrapped, with a reason", nil, fmt.Errorf("x: %w", &agent.Refusal{Reason: "bad_hmac"}), 401, "bad_hmac"},
		{"refused, a reason that is no word", nil, &agent.Refusal{Reason: "a\r\nb"}, 401, "refused"},
		{"forbidden", nil, &agent.Refusal{Forbidden: true}, 403, "refused"},
		{"limited", nil, &agent.Refusal{RetryAfter: time.Second}, 429, "refused"},
		{"failed", nil, errors.New("the disk is full"), 503, "unavailable"},
		{"both", &agent.Principal{Subject: "alice"}, errors.New("x"), 503, "unavailable"},
		{"nobody", &agent.Principal{}, nil, 503, "unavailable"},
		{"a line break", &agent.Principal{Subject: "a\nb"}, nil, 403, "unsafe_claim"},
		{"revoked by its id", &agent.Principal{Subject: "alice", ID: "gone"}, nil, 401, "revoked"},
		{"cut off before", &agent.Principal{Subject: "bob"}, nil, 200, "scripted"},
		{"begun before the cutoff", &agent.Principal{Subject: "bob", IssuedAt: now.Add(-time.Minute)}, nil, 401, "revoked"},
		{"begun behind it", &agent.Principal{Subject: "bob", IssuedAt: now.Add(time.Minute)}, nil, 200, "scripted"},
		{"expired", &agent.Principal{Subject: "alice", ExpiresAt: now.Add(-time.Second)}, nil, 401, "expired"},
	} {
		theScripted = scripted{c.p, c.err}
		got := h.do("GET", "/v1/auth/forward", "", forwarded("GET", "X-Scripted: 1")...)
		checkAuth(t, c.name, got, c.status, c.word)
		if ch := got.Header.Get("WWW-Authenticate"); c.status == 401 && ch != "Scripted" {
			t.Errorf("%s: challenge: got %q", c.name, ch)
		}
	}
	theScripted = scripted{&agent.Principal{Subject: "alice"}, nil}
	checkAuth(t, "its header twice", h.do("GET", "/v1/auth/forward", "", forwarded("GET", "X-Scripted: 1", "X-Scripted: 2")...), 403, "ambiguous_request")
	_, err := agent.New(agent.Config{Authenticators: []string{"scripted"}, Schemes: map[string]map[string]any{"scripted": {"secrt": "x"}}},
		agent.Parts{Replica: w.rep, Leases: always{}})
	if err == nil || !strings.Contains(err.Error(), `[agent.schemes.scripted]: json: unknown field "secrt"`) {
		t.Errorf("a misspelt key: got %v", err)
	}
	for _, name := range []string{"scripted", "bearer", "anonymous", "Upper", ""} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("RegisterScheme(%q): got no panic", name)
				}
			}()
			agent.RegisterScheme(name, func(agent.SchemeConfig) (agent.Scheme, error) { return nil, nil })
		}()
	}
}
