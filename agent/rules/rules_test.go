package rules_test

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/agent/rules"
)

var now = time.Unix(1_800_000_000, 0)

func parse(t testing.TB, text string) *rules.Set {
	t.Helper()
	s, err := rules.Parse("rules.toml", []byte(text), rules.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// request reads "GET app.example.com/path?query".
func request(t testing.TB, text string, header ...string) *rules.Request {
	t.Helper()
	method, rest, _ := strings.Cut(text, " ")
	host, path, _ := strings.Cut(rest, "/")
	path, query, _ := strings.Cut("/"+path, "?")
	p, err := rules.Canonical(path)
	if err != nil {
		t.Fatal(err)
	}
	return &rules.Request{Method: method, Scheme: "https", Host: host, Path: p, Query: query, Address: netip.MustParseAddr("192.0.2.7"),
		Header: func(name string) string {
			for i := 0; i < len(header); i += 2 {
				if strings.EqualFold(header[i], name) {
					return header[i+1]
				}
			}
			return ""
		}}
}

func alice() *rules.Principal {
	return &rules.Principal{Subject: "alice", Method: "bearer", Scope: "read write", Roles: []string{"staff"}, Audience: []string{"api"},
		Client: "web", Session: "s1", AuthTime: now.Add(-time.Minute).Unix(), Claims: func() map[string]any {
			var c map[string]any
			dec := json.NewDecoder(strings.NewReader(`{"org":"acme","level":3,"beta":true,"groups":["a","b"],"none":null,"deep":{"a":1}}`))
			if err := dec.Decode(&c); err != nil {
				panic(err)
			}
			return c
		}}
}

const sample = `
[[rules]]
name = "public"
paths = ["/", "/static/**"]
methods = ["GET", "HEAD"]
allow = "anyone"

[[rules]]
name = "own host"
hosts = ["admin.example.com", "*.internal.example.com"]
paths = ["/**"]
require = { roles = ["admin", "staff"], auth_age = "5m" }

[[rules]]
name = "one user"
paths = ["/users/{id}", "/users/{id}/posts/*"]
when = 'request.params.id == principal.subject'

[[rules]]
name = "write"
paths = ["/api/**"]
methods = ["POST", "DELETE"]
authenticators = ["bearer"]
cors_preflight = true
require = { scopes = ["write"], audience = ["api"], clients = ["web", "cli"] }

[[rules]]
name = "read"
paths = ["/api/**"]
require = { scopes = ["read", "list"] }

[[rules]]
name = "slash"
paths = ["/files/*"]
encoded_slash = "literal"

[[rules]]
name = "claims"
paths = ["/org"]
require = { claims = { org = ["acme", "umbrella"], level = 3, beta = true, groups = "b" } }
`

func TestDecide(t *testing.T) {
	s := parse(t, sample)
	nobody := (*rules.Principal)(nil)
	change := func(f func(*rules.Principal)) *rules.Principal {
		p := alice()
		f(p)
		return p
	}
	for name, c := range map[string]struct {
		request   *rules.Request
		principal *rules.Principal
		rule      string
		status    int
		reason    rules.Reason
	}{
		"public":                        {request(t, "GET h/"), nobody, "public", 200, ""},
		"public, deep":                  {request(t, "GET h/static/a/b.css"), nobody, "public", 200, ""},
		"public, its root":              {request(t, "GET h/static"), nobody, "public", 200, ""},
		"public, another method":        {request(t, "POST h/"), alice(), "", 403, rules.NoRule},
		"no rule":                       {request(t, "GET h/other"), alice(), "", 403, rules.NoRule},
		"a name that begins alike":      {request(t, "GET h/staticx"), alice(), "", 403, rules.NoRule},
		"another case":                  {request(t, "GET h/API/x"), alice(), "", 403, rules.NoRule},
		"method in lower case":          {request(t, "post h/api/x"), alice(), "", 403, rules.NoRule},
		"nobody":                        {request(t, "GET h/api/x"), nobody, "read", 401, rules.AuthenticationRequired},
		"a principal without subject":   {request(t, "GET h/api/x"), &rules.Principal{Scope: "read list"}, "read", 401, rules.AuthenticationRequired},
		"short of scope":                {request(t, "GET h/api/x"), alice(), "read", 403, rules.InsufficientScope},
		"scope is no substring":         {request(t, "POST h/api/x"), change(func(p *rules.Principal) { p.Scope = "writer rewrite" }), "write", 403, rules.InsufficientScope},
		"write":                         {request(t, "POST h/api/x"), alice(), "write", 200, ""},
		"write with a slash at the end": {request(t, "POST h/api/x/"), alice(), "write", 200, ""},
		"by another scheme":             {request(t, "POST h/api/x"), change(func(p *rules.Principal) { p.Method = "session" }), "write", 403, rules.AuthenticatorRefused},
		"for another audience":          {request(t, "POST h/api/x"), change(func(p *rules.Principal) { p.Audience = []string{"other"} }), "write", 403, rules.AudienceRequired},
		"without audience":              {request(t, "POST h/api/x"), change(func(p *rules.Principal) { p.Audience = nil }), "write", 403, rules.AudienceRequired},
		"by another client":             {request(t, "POST h/api/x"), change(func(p *rules.Principal) { p.Client = "" }), "write", 403, rules.ClientRefused},
		"host":                          {request(t, "GET admin.example.com/x"), alice(), "own host", 200, ""},
		"domain":                        {request(t, "GET a.b.internal.example.com/x"), alice(), "own host", 200, ""},
		"the domain itself":             {request(t, "GET internal.example.com/x"), alice(), "", 403, rules.NoRule},
		"a host that ends alike":        {request(t, "GET xadmin.example.com/x"), alice(), "", 403, rules.NoRule},
		"role":                          {request(t, "GET admin.example.com/x"), change(func(p *rules.Principal) { p.Roles = []string{"user"} }), "own host", 403, rules.RoleRequired},
		"no role":                       {request(t, "GET admin.example.com/x"), change(func(p *rules.Principal) { p.Roles = nil }), "own host", 403, rules.RoleRequired},
		"too long ago":                  {request(t, "GET admin.example.com/x"), change(func(p *rules.Principal) { p.AuthTime = now.Add(-6 * time.Minute).Unix() }), "own host", 401, rules.AuthenticationTooOld},
		"at no known time":              {request(t, "GET admin.example.com/x"), change(func(p *rules.Principal) { p.AuthTime = 0 }), "own host", 401, rules.AuthenticationTooOld},
		"first match decides":           {request(t, "GET admin.example.com/"), nobody, "public", 200, ""},
		"own user":                      {request(t, "GET h/users/alice"), alice(), "one user", 200, ""},
		"own posts":                     {request(t, "GET h/users/alice/posts/7"), alice(), "one user", 200, ""},
		"another user":                  {request(t, "GET h/users/bob"), alice(), "one user", 403, rules.ConditionFalse},
		"escaped slash":                 {request(t, "GET h/files/a%2Fb"), alice(), "slash", 200, ""},
		"escaped slash elsewhere":       {request(t, "POST h/api/a%2Fb"), alice(), "", 403, rules.NoRule},
		"claims":                        {request(t, "GET h/org"), alice(), "claims", 200, ""},
		"no claims":                     {request(t, "GET h/org"), change(func(p *rules.Principal) { p.Claims = nil }), "claims", 403, rules.ClaimMismatch},
		"a number is no string": {request(t, "GET h/org"), change(func(p *rules.Principal) {
			p.Claims = func() map[string]any { return map[string]any{"org": "acme", "level": "3", "beta": true, "groups": "b"} }
		}), "claims", 403, rules.ClaimMismatch},
		"preflight":                    {request(t, "OPTIONS h/api/x", "Origin", "https://app.example", "Access-Control-Request-Method", "POST"), nobody, "write", 200, ""},
		"preflight of what has none":   {request(t, "OPTIONS h/api/x", "Origin", "https://app.example", "Access-Control-Request-Method", "GET"), nobody, "read", 401, rules.AuthenticationRequired},
		"OPTIONS that is no preflight": {request(t, "OPTIONS h/api/x", "Origin", "https://app.example"), nobody, "read", 401, rules.AuthenticationRequired},
	} {
		got := s.Decide(c.request, c.principal, now)
		rule := ""
		if got.Rule != nil {
			rule = got.Rule.Name
		}
		if rule != c.rule || got.Status != c.status || got.Reason != c.reason || got.Allowed() != (c.status == 200) {
			t.Errorf("Decide(%s): got %d %q by %q (%s), want %d %q by %q", name, got.Status, got.Reason, rule, got.Detail, c.status, c.reason, c.rule)
		}
	}
	if o := s.Decide(request(t, "GET h/api/x"), alice(), now); o.Scope != "read list" {
		t.Errorf("the scope to ask for: got %q", o.Scope)
	}
	if o := s.Decide(request(t, "GET admin.example.com/x"), &rules.Principal{Subject: "a", Roles: []string{"admin"}}, now); o.MaxAge != 300 {
		t.Errorf("max_age: got %d", o.MaxAge)
	}
	if o := (*rules.Set)(parse(t, "")).Decide(request(t, "GET h/"), alice(), now); o.Status != 403 {
		t.Errorf("no rules: got %d, want 403", o.Status)
	}
}

// TestWhen: an expression sees what it should, and whatever is not true denies.
func TestWhen(t *testing.T) {
	for when, want := range map[string]rules.Reason{
		`true`:  "",
		`false`: rules.ConditionFalse,
		`request.method == "GET" && request.scheme == "https" && request.host == "h"`: "",
		`request.path == "/x/café"`:          "",
		`request.query["q"][0] == "a b"`:     "",
		`request.query["absent"][0] == ""`:   rules.ConditionFailed,
		`request.headers["x-org"] == "acme"`: "",
		`"x-org" in request.headers`:         "",
		`"x-other" in request.headers`:       rules.ConditionFalse,
		`request.headers["absent"] == ""`:    rules.ConditionFailed,
		`ip(request.address).family() == 4 && cidr("192.0.2.0/24").containsIP(request.address)`:                                  "",
		`principal.subject == "alice" && principal.method == "bearer" && principal.client == "web" && principal.session == "s1"`: "",
		`"staff" in principal.roles && principal.scope.exists(s, s == "write")`:                                                  "",
		`claims.org == "acme" && claims.level == 3.0 && claims.beta`:                                                             "",
		`claims.level > 2`:                        "",
		`"b" in claims.groups`:                    "",
		`has(claims.org) && !has(claims.nothing)`: "",
		`claims.nothing == "x"`:                   rules.ConditionFailed,
		`claims.org`:                              rules.ConditionFailed,
		`claims.deep.a == 1.0`:                    "",
		`now > timestamp("2026-01-01T00:00:00Z")`: "",
		`now.getHours() == 8`:                     "",
		`[1,2,3,4,5,6,7,8,9,10].all(a, [1,2,3,4,5,6,7,8,9,10].all(b, [1,2,3,4,5,6,7,8,9,10].all(c, [1,2,3,4,5,6,7,8,9,10].all(d, a + b + c + d > 0))))`: rules.ConditionFailed,
	} {
		s, err := rules.Parse("rules.toml", []byte("[[rules]]\nname = \"r\"\npaths = [\"/x/{name}\"]\nwhen = '''"+when+"'''"), rules.Options{})
		if err != nil {
			if want == rules.ConditionFailed && strings.Contains(err.Error(), "must be true or false") {
				continue
			}
			t.Errorf("%s: %v", when, err)
			continue
		}
		got := s.Decide(request(t, "GET h/x/caf%C3%A9?q=a+b", "X-Org", "acme"), alice(), now)
		if got.Reason != want {
			t.Errorf("when %s: got %q (%s), want %q", when, got.Reason, got.Detail, want)
		}
	}
}

// TestRulesPassedOver: what a rule does not take does not fall to a later rule that allows more: an escaped slash below a
// path that is guarded, and a method that some services take for another.
func TestRulesPassedOver(t *testing.T) {
	s := parse(t, `
[[rules]]
name = "guarded"
paths = ["/admin/**"]
methods = ["GET", "POST"]
require = { roles = ["admin"] }
[[rules]]
name = "rest"
paths = ["/**"]
encoded_slash = "literal"
allow = "anyone"
`)
	for what, want := range map[string]int{
		"GET h/admin/x": 403, "GET h/admin/a%2Fb": 403, "GET h/admin/%2F": 403, "POST h/admin/a/b%2f": 403,
		"post h/admin/x": 403, "Post h/admin/x": 403, "gET h/other": 403,
		"GET h/other/a%2Fb": 200, "GET h/other": 200, "PUT h/admin/x": 200,
	} {
		if got := s.Decide(request(t, what), alice(), now); got.Status != want {
			t.Errorf("Decide(%s): got %d by %v, want %d", what, got.Status, got.Rule, want)
		}
	}
}

// TestWhenItCannotTell: what an expression cannot see is no reason to allow: the members of a query that cannot be decoded,
// and the list of the fields.
func TestWhenItCannotTell(t *testing.T) {
	for when, target := range map[string]string{
		`!("debug" in request.query)`:                            "GET h/x?debug=1&a;b",
		`size(request.query) == 0`:                               "GET h/x?debug=%zz",
		`request.query.all(k, k != "debug")`:                     "GET h/x?debug=1;x",
		`request.headers.all(k, !k.startsWith("x-"))`:            "GET h/x",
		`!request.headers.exists(k, k == "x-org")`:               "GET h/x",
		`request.headers.filter(k, k == "x-org").size() == 0`:    "GET h/x",
		`size(request.headers) == 0`:                             "GET h/x",
		`request.headers == {}`:                                  "GET h/x",
		`request.headers.map(k, request.headers[k]).size() == 0`: "GET h/x",
	} {
		s := parse(t, "[[rules]]\nname = \"r\"\npaths = [\"/x\"]\nwhen = '''"+when+"'''")
		if got := s.Decide(request(t, target, "X-Org", "acme"), alice(), now); got.Reason != rules.ConditionFailed {
			t.Errorf("when %s, %s: got %d %q (%s), want condition_failed", when, target, got.Status, got.Reason, got.Detail)
		}
	}
}
