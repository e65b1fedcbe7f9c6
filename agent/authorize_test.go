package agent_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/agent/rules"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

const doorRules = `
[[rules]]
name = "public"
hosts = ["app.example"]
paths = ["/", "/static/**"]
allow = "anyone"
[[rules]]
name = "keys only"
paths = ["/machine/**"]
authenticators = ["api_key"]
[[rules]]
name = "recent"
paths = ["/transfer"]
require = { auth_age = "5m" }
[[rules]]
name = "write"
paths = ["/api/**"]
methods = ["POST"]
require = { scopes = ["write", "post"] }
[[rules]]
name = "own"
paths = ["/api/users/{id}"]
when = 'request.params.id == claims.sub && request.headers["x-tenant"] == "acme"'
[[rules]]
name = "read"
paths = ["/api/**"]
require = { scopes = ["read"], roles = ["staff"] }
`

func (w *world) rules(text string) {
	w.Helper()
	set, err := rules.Parse("rules.toml", []byte(text), rules.Options{})
	if err != nil {
		w.Fatal(err)
	}
	w.agent.SetRules(set)
}

// proxied is what Caddy tells of a request for "POST app.example/path".
func proxied(what string, more ...string) []string {
	method, rest, _ := strings.Cut(what, " ")
	host, path, _ := strings.Cut(rest, "/")
	return append([]string{"X-Forwarded-Method: " + method, "X-Forwarded-Uri: /" + path, "X-Forwarded-Host: " + host,
		"X-Forwarded-Proto: https", "X-Forwarded-For: 10.1.2.3"}, more...)
}

// TestRules: the rules decide at the forward-auth faces: who is asked for, by which schemes, and what is answered.
func TestRules(t *testing.T) {
	w := newWorld(t)
	w.credential(bus.APIKey, "key0-good")
	w.rules(doorRules)
	h := w.listen("mem")
	alice := func(c *keyring.Claims) {
		c.Subject, c.Scope, c.Roles, c.AuthTime = "alice", "read write", []string{"staff"}, keyring.At(time.Now().Add(-time.Minute))
	}
	bearer := "Authorization: Bearer " + w.token(alice)
	old := "Authorization: Bearer " + w.token(alice, func(c *keyring.Claims) { c.AuthTime = keyring.At(time.Now().Add(-time.Hour)) })
	for _, c := range []struct {
		name, what string
		header     []string
		status     int
		word       string
		challenge  string // that one of the challenges has
	}{
		{"public", "GET app.example/", nil, 200, "anonymous", ""},
		{"public with a bad token", "GET app.example/static/x", []string{"Authorization: Bearer x"}, 200, "anonymous", ""},
		{"public, host with a port and a dot", "GET APP.example.:443/", nil, 200, "anonymous", ""},
		{"public, on another host", "GET other.example/", []string{bearer}, 403, "no_rule", ""},
		{"no rule, nobody", "GET app.example/other", nil, 403, "no_rule", ""},
		{"nobody", "GET app.example/api/x", nil, 401, "missing", `Bearer realm="sidekey"`},
		{"read", "GET app.example/api/x", []string{bearer}, 200, "bearer", ""},
		{"an API key without the role", "GET app.example/api/x", []string{"X-API-Key: key0-good"}, 403, "role_required", ""},
		{"short of scope", "POST app.example/api/x", []string{bearer}, 403, "insufficient_scope", `error="insufficient_scope", error_description="The token lacks a scope that is required.", scope="write post"`},
		{"an API key short of scope has no challenge", "POST app.example/api/x", []string{"X-API-Key: key0-good"}, 403, "insufficient_scope", ""},
		{"own", "GET app.example/api/users/alice", []string{bearer, "X-Tenant: acme"}, 200, "bearer", ""},
		{"another's", "GET app.example/api/users/bob", []string{bearer, "X-Tenant: acme"}, 403, "condition_false", ""},
		{"without the field", "GET app.example/api/users/alice", []string{bearer}, 403, "condition_failed", ""},
		{"the field twice", "GET app.example/api/users/alice", []string{bearer, "X-Tenant: acme", "X-Tenant: evil"}, 403, "ambiguous_request", ""},
		{"recently", "POST app.example/transfer", []string{bearer}, 200, "bearer", ""},
		{"too long ago", "POST app.example/transfer", []string{old}, 401, "insufficient_user_authentication", `error="insufficient_user_authentication", error_description="The last login is too long ago.", max_age="300"`},
		{"keys only", "GET app.example/machine/x", []string{"X-API-Key: key0-good"}, 200, "api_key", ""},
		{"keys only, a token", "GET app.example/machine/x", []string{bearer}, 403, "missing", ""},
		{"dots", "GET app.example/static/../api/x", []string{bearer}, 403, "ambiguous_request", ""},
		{"escaped dots", "GET app.example/static/%2e%2e/api/x", nil, 403, "ambiguous_request", ""},
		{"two slashes", "GET app.example//api/x", []string{bearer}, 403, "ambiguous_request", ""},
		{"an escaped slash", "GET app.example/api%2fx", []string{bearer}, 403, "ambiguous_request", ""},
		{"no host", "GET /api/x", []string{bearer}, 403, "ambiguous_request", ""},
	} {
		got := h.do("GET", "/v1/auth/forward", "", proxied(c.what, c.header...)...)
		checkAuth(t, c.name, got, c.status, c.word)
		if all := strings.Join(got.Header.Values("WWW-Authenticate"), " | "); !strings.Contains(all, c.challenge) || c.challenge == "" && all != "" {
			t.Errorf("%s: WWW-Authenticate: got %q, want %q", c.name, all, c.challenge)
		}
	}
	anonymous := h.do("GET", "/v1/auth/forward", "", proxied("GET app.example/", bearer)...)
	if got, ok := anonymous.Header["X-Auth-Subject"]; !ok || got[0] != "" {
		t.Errorf("anonymous: X-Auth-Subject: got %q, want one that is empty", got)
	}
	w.lease.Store(nil)
	checkAuth(t, "public without a lease", h.do("GET", "/v1/auth/forward", "", proxied("GET app.example/")...), 200, "anonymous")
	checkAuth(t, "stale", h.do("GET", "/v1/auth/forward", "", proxied("GET app.example/api/x", bearer)...), 503, "stale")
}

// TestCheck: POST /v1/check says what the forward-auth faces would, and by which rule.
func TestCheck(t *testing.T) {
	w := newWorld(t)
	w.rules(doorRules)
	h := w.listen("mem")
	token := w.token(func(c *keyring.Claims) {
		c.Subject, c.Scope, c.Roles, c.ClientID, c.SessionID = "alice", "read", []string{"staff"}, "", ""
	})
	check := func(body string) reply { return h.do("POST", "/v1/check", body, "Content-Type: application/json") }
	for body, want := range map[string]string{
		`{"method":"GET","scheme":"https","host":"app.example","path":"/","headers":{},"source_ip":"192.0.2.1"}`: `{"decision":"allow","status":200,"reason":"","rule":"public","detail":"","subject":"","headers":` +
			`{"X-Auth-Subject":"","X-Auth-Scope":"","X-Auth-Roles":"","X-Auth-Client":"","X-Auth-Session":"","X-Auth-Method":"anonymous"},"www_authenticate":[],"seq":1}`,
		`{"method":"GET","host":"app.example","path":"/api/x?a=b","headers":{"authorization":"Bearer ` + token + `"}}`: `{"decision":"allow","status":200,"reason":"","rule":"read","detail":"","subject":"alice","headers":` +
			`{"X-Auth-Subject":"alice","X-Auth-Scope":"read","X-Auth-Roles":"staff","X-Auth-Client":"","X-Auth-Session":"","X-Auth-Method":"bearer"},"www_authenticate":[],"seq":1}`,
		`{"method":"POST","host":"app.example","path":"/api/x","headers":{"Authorization":"Bearer ` + token + `"}}`: `{"decision":"deny","status":403,"reason":"insufficient_scope","rule":"write","detail":"scope write","subject":"","headers":{},` +
			`"www_authenticate":["Bearer realm=\"sidekey\", error=\"insufficient_scope\", error_description=\"The token lacks a scope that is required.\", scope=\"write post\""],"seq":1}`,
		`{"method":"GET","host":"app.example","path":"/api/x","headers":{"Authorization":"Bearer x","authorization":"Bearer ` + token + `"}}`: `{"decision":"deny","status":403,"reason":"ambiguous_request"` +
			`,"rule":"","detail":"","subject":"","headers":{},"www_authenticate":[],"seq":1}`,
		`{"host":"app.example","path":"/"}`: `{"decision":"deny","status":403,"reason":"ambiguous_request","rule":"","detail":"","subject":"","headers":{},"www_authenticate":[],"seq":1}`,
	} {
		if got := check(body); got.StatusCode != 200 || got.body != want || !json.Valid([]byte(got.body)) {
			t.Errorf("check(%s): got %d\n%s, want\n%s", body, got.StatusCode, got.body, want)
		}
	}
	for body, want := range map[string]string{
		`[]`:                              "the body must be one JSON object",
		`{"method":1}`:                    `\"method\" must be a string`,
		`{"url":"x"}`:                     `unknown member \"url\"`,
		`{"source_ip":"x"}`:               `\"source_ip\" must be an IP address`,
		`{"headers":[]}`:                  `\"headers\" must be an object of strings`,
		`{"headers":{"a b":"c"}}`:         "is no name of a field",
		`{"headers":{"A":1}}`:             `field \"A\" must be a string`,
		`{"headers":{"A":"b\r\nC: d"}}`:   `field \"A\" must be a string that a field can hold`,
		`{"method":"GET","method":"PUT"}`: "the body must be one JSON object",
	} {
		if got := check(body); got.StatusCode != 400 || !strings.Contains(got.body, want) {
			t.Errorf("check(%s): got %d %s, want 400 with %q", body, got.StatusCode, got.body, want)
		}
	}
	w.lease.Store(nil)
	if got := check(`{"method":"GET","host":"app.example","path":"/api/x"}`); got.StatusCode != 200 || !strings.Contains(got.body, `{"decision":"deny","status":503,"reason":"stale","rule":"read"`) || !strings.Contains(got.body, `,"retry_after":1,`) {
		t.Errorf("without a lease: got %d %s", got.StatusCode, got.body)
	}
}

// TestRulesInTheStatus: the status tells which rules are in force, and why newer ones are not.
func TestRulesInTheStatus(t *testing.T) {
	w := newWorld(t)
	if w.agent.Status().Rules != nil {
		t.Error("there are rules in the status of an agent without")
	}
	w.rules(doorRules)
	w.agent.SetRulesFault(errors.New("rules.toml:3: no"))
	got := w.agent.Status().Rules
	if got == nil || got.Rules != 6 || len(got.Version) != 12 || got.Fault != "rules.toml:3: no" {
		t.Errorf("got %+v", got)
	}
	w.agent.SetRulesFault(nil)
	if got := w.agent.Status().Rules; got.Fault != "" {
		t.Errorf("a mended fault: got %q", got.Fault)
	}
}
