package rules_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/agent/rules"
)

// quoted is a text as TOML has it between quotes. JSON's escapes are TOML's too.
func quoted(t testing.TB, text string) string {
	t.Helper()
	b, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// FuzzPattern: a pattern that parses is for the paths that a look at each segment in turn says, and a named segment is one.
func FuzzPattern(f *testing.F) {
	for _, seed := range [][2]string{
		{"/", "/"}, {"/a/b", "/a/b/"}, {"/a/*", "/a/b"}, {"/users/{id}/posts", "/users/7/posts"}, {"/**", "/"}, {"/a/**/b/**", "/a/x/b/b/y"},
		{"/**/{a}/**/{b}", "/a/b/c/d"}, {"/a%2Fb/*", "/a%2fb/c%2Fd"}, {"/caf\u00e9/{id}/", "/caf%C3%A9/x"}, {"/a/{b}", "/a/{b}"}, {"/a/*", "/a/%2a"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, pattern, path string) {
		p, err := rules.Canonical(path)
		if err != nil {
			return
		}
		s, err := rules.Parse("rules.toml", fmt.Appendf(nil, `[[rules]]
name = "r"
paths = [%s]
encoded_slash = "literal"
when = 'request.params.all(name, request.params[name] != "")'
`, quoted(t, pattern)), rules.Options{})
		if err != nil {
			return
		}
		pattern = strings.ToValidUTF8(pattern, "\ufffd") // as it was written
		r := &rules.Request{Method: "GET", Host: "h", Path: p}
		if got, want := s.Match(r) != nil, naivePath(split(pattern), split(p.Text)); got != want {
			t.Errorf("%q is for %q: got %v, want %v", pattern, p.Text, got, want)
		} else if o := s.Decide(r, alice(), now); got && !o.Allowed() {
			t.Errorf("%q for %q: got %s %s, want that no named segment is empty", pattern, p.Text, o.Reason, o.Detail)
		}
	})
}

// slowWhen is far above what an expression may take to be read and evaluated on a loaded machine (BenchmarkReadSet has the time of
// some hundred at once).
const slowWhen = 10 * time.Second

// FuzzWhen: an expression that parses allows, or denies for what it is; neither takes long.
func FuzzWhen(f *testing.F) {
	for _, seed := range []string{
		"true", "false", "claims.org == 'acme'", "claims.deep.a == 1.0 && has(claims.none)", "request.params.id == principal.subject || 'staff' in principal.roles",
		"cidr('192.0.2.0/24').containsIP(request.address)", "'x' in request.headers", "request.query['a'][0] == 'b'", "now > timestamp('2026-01-01T00:00:00Z')",
		"[1,2,3].all(x, x > 0) && claims.groups.exists(g, g == 'a')", "request.path.matches('^/users/[0-9]+$')", "1/0 == 1", "claims.groups[7] == ''",
		strings.Repeat("[", 14) + strings.Repeat("]", 14) + "==[]", strings.Repeat("[1].all(x,x==1)&&", 60) + "true", `"".matches('.{230}')`,
		"[1,2,3,4].map(x,[1,2,3,4].map(y,[1,2,3,4].map(z,[1,2,3,4].map(w,x*y*z*w)))).size()==4", "dyn(claims).all(k, k != '') ? 'a'+'b' == 'ab' : 1u == 2u",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, when string) {
		began := time.Now()
		s, err := rules.Parse("rules.toml", []byte("[[rules]]\nname = \"r\"\npaths = [\"/users/{id}\"]\nwhen = "+quoted(t, when)+"\n"), rules.Options{})
		if err == nil {
			o := s.Decide(request(t, "GET h/users/alice?a=b", "x-org", "acme"), alice(), now)
			if o.Allowed() != (o.Reason == "") || !o.Allowed() && !strings.HasPrefix(string(o.Reason), "condition_") {
				t.Errorf("got %d %s %s", o.Status, o.Reason, o.Detail)
			}
		}
		if took := time.Since(began); took > slowWhen {
			t.Errorf("it took %s: %v", took, err)
		}
	})
}
