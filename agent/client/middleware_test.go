package client_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/agent/client"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/keyring"
)

const someRules = `
[[rules]]
name = "public"
paths = ["/"]
allow = "anyone"
[[rules]]
name = "write"
paths = ["/api/**"]
methods = ["POST"]
require = { scopes = ["write"] }
[[rules]]
name = "tenant"
paths = ["/tenant"]
when = 'request.headers["x-tenant"] == "acme" && request.scheme == "https" && request.address == "203.0.113.9"'
[[rules]]
name = "read"
paths = ["/api/**"]
`

// shown is a service that shows whom it takes a request for.
var shown = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	p, ok := client.FromContext(r.Context())
	var fields []string
	for name, values := range r.Header {
		if strings.HasPrefix(strings.ToLower(strings.ReplaceAll(name, "_", "-")), "x-auth") || name == "X-Tenant" || name == "X-Org" {
			fields = append(fields, name+"="+strings.Join(values, "|"))
		}
	}
	slices.Sort(fields)
	fmt.Fprintf(w, "%t %s %v %v %s; %s", ok, p.Subject, p.Scopes, p.Roles, p.Method, strings.Join(fields, " "))
})

func alice(c *keyring.Claims) {
	c.Subject, c.Scope, c.Roles, c.ClientID, c.SessionID, c.ID = "alice", "read", []string{"staff", "dev"}, "", "", "one"
}

// TestMiddleware holds it against a real agent, over TCP and a unix socket.
func TestMiddleware(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) { tryMiddleware(t, network) })
	}
}

func tryMiddleware(t *testing.T, network string) {
	w := newWorld(t, network, func(c *agent.Config) { c.Headers = map[string]string{"org": "X-Org"} })
	w.rules(someRules)
	h := newClient(t, client.Config{Address: w.address, Headers: []string{"x-tenant"}}).Middleware(shown)
	behind := newClient(t, client.Config{Address: w.address, Headers: []string{"X-Tenant"}, Describe: func(r *http.Request, q *client.Question) {
		q.Scheme = r.Header.Get("X-Forwarded-Proto")
		q.Source = q.Source.Next() // 203.0.113.8, which the test below has as the peer
	}}).Middleware(shown)
	token := "Bearer " + w.token(alice)
	const realm = `Bearer realm="sidekey"`
	const known = "true alice [read] [staff dev] bearer; X-Auth-Method=bearer X-Auth-Roles=staff,dev X-Auth-Scope=read X-Auth-Subject=alice"
	for _, tc := range []struct {
		name, method, target string
		header               []string
		status               int
		body, challenge      string
	}{
		{"known", "GET", "/api/x?a=b", []string{"Authorization", token}, 200, known, ""},
		{"anyone", "GET", "/", nil, 200, "true  [] [] anonymous; X-Auth-Method=anonymous", ""},
		{"anyone, with a credential", "GET", "/", []string{"Authorization", token}, 200, "true  [] [] anonymous; X-Auth-Method=anonymous", ""},
		{"identity of the client's own", "GET", "/api/x", []string{
			"Authorization", token, "X-Auth-Subject", "root", "x-auth-SESSION", "s", "X_Auth_Roles", "admin", "X-Auth-Else", "e", "X-Org", "evil",
		}, 200, known, ""},
		{"nobody", "GET", "/api/x", nil, 401, `"reason":"missing"`, realm + "|Token"},
		{"wrong", "GET", "/api/x", []string{"Authorization", "Bearer x"}, 401, `"reason":"malformed"`,
			realm + `, error="invalid_token", error_description="The token is malformed."|Token`},
		{"may not", "POST", "/api/x", []string{"Authorization", token}, 403, `"reason":"insufficient_scope"`,
			realm + `, error="insufficient_scope", error_description="The token lacks a scope that is required.", scope="write"`},
		{"no rule", "GET", "/else", []string{"Authorization", token}, 403, `"reason":"no_rule"`, ""},
		{"two credentials", "GET", "/api/x", []string{"Authorization", token, "Authorization", "Bearer x"}, 403, `"reason":"ambiguous_request"`, ""},
		{"not text", "GET", "/api/x", []string{"Authorization", token, "Cookie", "a=\xff"}, 403, `"reason":"ambiguous_request"`, ""},
		{"a path in two ways", "GET", "/api/%2e%2e/x", []string{"Authorization", token}, 403, `"reason":"ambiguous_request"`, ""},
		{"a method in small letters", "post", "/api/x", []string{"Authorization", token}, 403, `"reason":"ambiguous_request"`, ""},
		{"too large", "GET", "/api/x", []string{"Cookie", strings.Repeat("a", 70<<10)}, 431, `"reason":"too_large"`, ""},
		{"without what a rule asks for", "GET", "/tenant", []string{"Authorization", token}, 403, `"reason":"condition_false"`, ""},
	} {
		got := get(h, tc.method, tc.target, tc.header...)
		challenge := strings.Join(got.Header().Values("WWW-Authenticate"), "|")
		if got.Code != tc.status || !strings.Contains(got.Body.String(), tc.body) || challenge != tc.challenge || tc.status == 200 && got.Body.String() != tc.body {
			t.Errorf("%s: got %d %s\n%s, want %d %s\n%s", tc.name, got.Code, got.Body, challenge, tc.status, tc.body, tc.challenge)
		}
		if tc.status != 200 && (got.Header().Get("Content-Type") != "application/problem+json" || got.Header().Get("Cache-Control") != "no-store" || !json.Valid(got.Body.Bytes())) {
			t.Errorf("%s: got %v %s, want a problem that nobody stores", tc.name, got.Header(), got.Body)
		}
	}
	r := httptest.NewRequest("GET", "/tenant", nil)
	r.Header = http.Header{"Authorization": {token}, "X-Tenant": {"acme"}, "X-Forwarded-Proto": {"https"}}
	r.RemoteAddr = "203.0.113.8:1234"
	rec := httptest.NewRecorder()
	if behind.ServeHTTP(rec, r); rec.Code != 200 {
		t.Errorf("behind a proxy: got %d %s, want 200", rec.Code, rec.Body)
	}
	if n := w.conns.Load(); n > 4 {
		t.Errorf("the agent accepted %d connections of two clients that ask by turns", n)
	}

	w.apply(&bus.Revocation{ID: "one", ExpiresAt: time.Now().Add(time.Hour).Unix()})
	if got := get(h, "GET", "/api/x", "Authorization", token); got.Code != 401 || !strings.Contains(got.Body.String(), `"reason":"revoked"`) {
		t.Errorf("revoked: got %d %s, want 401", got.Code, got.Body)
	}
	w.lease.Store((*lease.Lease)(nil))
	if got := get(h, "GET", "/api/x", "Authorization", token); got.Code != 503 || got.Header().Get("Retry-After") != "1" || !strings.Contains(got.Body.String(), `"reason":"stale"`) {
		t.Errorf("stale: got %d %v %s, want 503 with Retry-After", got.Code, got.Header(), got.Body)
	}
}

// TestFailsClosed: whatever comes instead of an agent's answer, nobody passes, and nothing is asked twice.
func TestFailsClosed(t *testing.T) {
	const allow = `{"decision":"allow","status":200,"headers":{"X-Auth-Subject":"root","X-Auth-Method":"bearer"}}`
	answers := map[string]http.HandlerFunc{}
	for name, a := range map[string]struct {
		status     int
		kind, body string
	}{
		"another status":         {500, "application/json", allow},
		"a redirect":             {302, "application/json", allow},
		"another type":           {200, "text/html", allow},
		"no type":                {200, "", allow},
		"no JSON":                {200, "application/json", "yes"},
		"cut off":                {200, "application/json", allow[:40]},
		"nothing":                {200, "application/json", ""},
		"null":                   {200, "application/json", "null"},
		"without decision":       {200, "application/json", `{"status":200,"headers":{"X-Auth-Method":"bearer"}}`},
		"allow with 401":         {200, "application/json", strings.Replace(allow, "200", "401", 1)},
		"deny with 200":          {200, "application/json", `{"decision":"deny","status":200}`},
		"deny with 302":          {200, "application/json", `{"decision":"deny","status":302}`},
		"allow without a method": {200, "application/json", `{"decision":"allow","status":200,"headers":{"X-Auth-Subject":"root"}}`},
		"endless":                {200, "application/json", strings.Repeat(" ", 2<<20) + allow},
		"another decision":       {200, "application/json", strings.Replace(allow, "allow", "ALLOW", 1)},
	} {
		answers[name] = func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = []string{a.kind}
			w.Header().Set("Location", "/v1/elsewhere")
			w.WriteHeader(a.status)
			_, _ = io.WriteString(w, a.body)
		}
	}
	answers["cut off in the middle"] = func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	next := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request has passed") })
	for name, answer := range answers {
		address, asked := fake(t, answer)
		h := newClient(t, client.Config{Address: address}).Middleware(next)
		if got := get(h, "GET", "/"); got.Code != 503 || got.Header().Get("Retry-After") != "1" || !strings.Contains(got.Body.String(), `"reason":"unavailable"`) || asked.Load() != 1 {
			t.Errorf("%s: got %d %v %s, asked %d times; want 503 with Retry-After, and one question", name, got.Code, got.Header(), got.Body, asked.Load())
		}
	}
}

// TestAway: nobody there, and somebody who never answers.
func TestAway(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") // which accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	next := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request has passed") })
	for name, address := range map[string]string{
		"silent": "http://" + ln.Addr().String(), "nobody": "http://" + gone.Addr().String(), "no socket": "unix:" + t.TempDir() + "/none.sock",
	} {
		c := newClient(t, client.Config{Address: address, Timeout: 100 * time.Millisecond, MaxConnections: 2})
		h := c.Middleware(next)
		begun := time.Now()
		var all sync.WaitGroup
		for range 8 { // more than connections: who waits for one waits no longer either
			all.Go(func() {
				if got := get(h, "GET", "/", "Authorization", "Bearer secret-of-a-client"); got.Code != 503 || got.Header().Get("Retry-After") != "1" {
					t.Errorf("%s: got %d %v, want 503 with Retry-After", name, got.Code, got.Header())
				}
			})
		}
		all.Wait()
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("%s: took %s, want about 100ms", name, took)
		}
		_, err := c.Check(t.Context(), &client.Question{Method: "GET", Headers: map[string]string{"Authorization": "Bearer secret-of-a-client"}})
		if err == nil || strings.Contains(err.Error(), "secret") || !strings.HasPrefix(err.Error(), "the sidekey agent gives no answer: asking it at /v1/check: ") {
			t.Errorf("%s: got %v, want an error without what was asked", name, err)
		}
	}
}

// TestAgentComesBack: the agent has closed its connections, as when it is restarted; the next request is not lost by it.
func TestAgentComesBack(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.Header.Get("Idempotency-Key") != "" || r.Header.Get("X-Idempotency-Key") != "" {
			t.Error("a key is sent")
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"decision":"allow","status":200,"headers":{"X-Auth-Subject":"alice","X-Auth-Method":"bearer"}}`)
	}))
	defer srv.Close()
	h := newClient(t, client.Config{Address: srv.URL}).Middleware(shown)
	for range 20 {
		if got := get(h, "GET", "/"); got.Code != 200 {
			t.Fatalf("got %d %s, want 200", got.Code, got.Body)
		}
		srv.CloseClientConnections()
	}
}

func TestRequireScope(t *testing.T) {
	w := newWorld(t, "unix")
	c := newClient(t, client.Config{Address: w.address})
	scoped := client.RequireScope("read", "write")(shown)
	h := c.Middleware(scoped)
	few, enough := "Bearer "+w.token(alice), "Bearer "+w.token(alice, func(c *keyring.Claims) { c.Scope = "write read" })
	if got := get(h, "GET", "/", "Authorization", enough); got.Code != 200 {
		t.Errorf("enough: got %d %s, want 200", got.Code, got.Body)
	}
	got := get(h, "GET", "/", "Authorization", few)
	if want := `Bearer error="insufficient_scope", scope="read write"`; got.Code != 403 || got.Header().Get("WWW-Authenticate") != want {
		t.Errorf("too few: got %d %v, want 403 with %s", got.Code, got.Header(), want)
	}
	if got := get(scoped, "GET", "/", "Authorization", enough); got.Code != 403 {
		t.Errorf("without Middleware: got %d, want 403", got.Code)
	}
	defer func() {
		if recover() == nil {
			t.Error(`RequireScope("a\"b"): want a panic`)
		}
	}()
	client.RequireScope(`a"b`)
}

func TestPrincipalIsACopy(t *testing.T) {
	w := newWorld(t, "unix")
	h := newClient(t, client.Config{Address: w.address}).Middleware(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		p, _ := client.FromContext(r.Context())
		p.Scopes[0], p.Headers["X-Auth-Subject"] = "admin", "root"
		shown(rw, r)
	}))
	if got := get(h, "GET", "/", "Authorization", "Bearer "+w.token(alice)); !strings.HasPrefix(got.Body.String(), "true alice [read]") {
		t.Errorf("got %s, want what the agent said", got.Body)
	}
	if _, ok := client.FromContext(t.Context()); ok {
		t.Error("FromContext: got a principal of no request")
	}
}
