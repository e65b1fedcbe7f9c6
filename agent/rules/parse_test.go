package rules_test

import (
	"strings"
	"testing"

	"github.com/sidekey/sidekey/agent/rules"
)

// TestParseRefuses: a rule that cannot be meant is named with its line, and nothing of the file is taken.
func TestParseRefuses(t *testing.T) {
	const head = "# rules\n[[rules]]\nname = \"first\"\npaths = [\"/\"]\n\n[[rules]]\n"
	for text, want := range map[string]string{
		`paths = ["/a"]`:                                                                                           `rules.toml:6: rule "number 2": it needs a "name"`,
		"name = \"a\\u0007\"\npaths = [\"/a\"]":                                                                    `without control characters`,
		`name = "a"`:                                                                                               `rules.toml:6: rule "a": it needs "paths"`,
		"name = \"first\"\npaths = [\"/a\"]":                                                                       `rule "first": the name is taken by the rule at rules.toml:2`,
		"name = \"a\"\npaths = [\"a\"]":                                                                            `path "a": a path begins with a slash`,
		"name = \"a\"\npaths = [\"/a//b\"]":                                                                        `path "/a//b": it holds "//"`,
		"name = \"a\"\npaths = [\"/a/..\"]":                                                                        `it holds a segment ".."`,
		"name = \"a\"\npaths = [\"/a*\"]":                                                                          `stand for whole segments`,
		"name = \"a\"\npaths = [\"/a/**/**\"]":                                                                     `"**" follows "**"`,
		"name = \"a\"\npaths = [\"/**/a/**/b/**\"]":                                                                `more than 2 "**"`,
		"name = \"a\"\npaths = [\"/{1}\"]":                                                                         `a name is letters, digits and _`,
		"name = \"a\"\npaths = [\"/{a}/{a}\"]":                                                                     `{a} stands in it twice`,
		"name = \"a\"\npaths = [\"/%61\"]":                                                                         `escapes are written out`,
		"name = \"a\"\npaths = [\"/a;b\"]":                                                                         `it holds ";"`,
		"name = \"a\"\npaths = [\"/a?b\"]":                                                                         `stand for whole segments`,
		"name = \"a\"\npaths = [\"/a\"]\nhosts = [\"A.example\"]":                                                  `host "A.example": it is written in lower case`,
		"name = \"a\"\npaths = [\"/a\"]\nhosts = [\"*.*.example\"]":                                                `only "*." may stand before it`,
		"name = \"a\"\npaths = [\"/a\"]\nhosts = [\"a..example\"]":                                                 `host "a..example": it is written in lower case`,
		"name = \"a\"\npaths = [\"/a\"]\nmethods = [\"get\"]":                                                      `method "get": a method is written in capital letters`,
		"name = \"a\"\npaths = [\"/a\"]\nallow = \"all\"":                                                          `allow is "all"; it may be "anyone" or left out`,
		"name = \"a\"\npaths = [\"/a\"]\nallow = \"anyone\"\nwhen = 'true'":                                        `asks for nobody`,
		"name = \"a\"\npaths = [\"/a\"]\nencoded_slash = \"yes\"":                                                  `it may be "literal" or left out`,
		"name = \"a\"\npaths = [\"/a\"]\nauthenticators = [\"magic\"]":                                             `authenticator "magic" is none of this agent's: bearer, session`,
		"name = \"a\"\npaths = [\"/a\"]\nrequire = {scopes = [\"a b\"]}":                                           `"a b" is no scope`,
		"name = \"a\"\npaths = [\"/a\"]\nrequire = {roles = [\"\"]}":                                               `an empty role`,
		"name = \"a\"\npaths = [\"/a\"]\nrequire = {auth_age = \"1\"}":                                             `write a duration of a second or more`,
		"name = \"a\"\npaths = [\"/a\"]\nrequire = {claims = {a = [[1]]}}":                                         `require.claims.a`,
		"name = \"a\"\npaths = [\"/a\"]\nrequire = {claims = {a = []}}":                                            `require.claims.a`,
		"name = \"a\"\npaths = [\"/a\"]\nrequire = {scope = [\"a\"]}":                                              `unknown member "require.scope"`,
		"name = \"a\"\npaths = [\"/a\"]\nmethod = [\"GET\"]":                                                       `unknown member "method"`,
		"name = \"a\"\npaths = \"/a\"":                                                                             `rules.toml:6: rule "number 2": paths: incompatible types`,
		"name = \"a\"\npaths = [\"/a\"]\nwhen = 'request.methd == \"GET\"'":                                        `when is no expression that can be meant`,
		"name = \"a\"\npaths = [\"/a\"]\nwhen = 'principal.subject'":                                               `when must be true or false, not of type string`,
		"name = \"a\"\npaths = [\"/a\"]\nwhen = '" + strings.Repeat("[", 200) + strings.Repeat("]", 200) + "==[]'": `expression recursion limit exceeded: 16`,
		"name = \"a\"\npaths = [\"/a\"]\nwhen = '" + strings.Repeat("{1:", 40) + "1" + strings.Repeat("}", 40) + "=={}'": `expression recursion limit exceeded: 16`,
		"name = \"a\"\npaths = [\"/a\"]\nwhen = 'claims" + strings.Repeat(".a", 100) + "==1'":                            `recursion depth exceeded`,
		"name = \"a\"\npaths = [\"/a\"]\nwhen = '" + strings.Repeat("true&&", 600) + "true'":                             `count 1201, limit 1000`,
		"name = \"a\"\npaths = [\"/a\"]\nwhen = 'request.path.matches(\"" + strings.Repeat(".{900}", 100) + "\")'":       `exceeds limit of 250`,
		"name = \"a\"\npaths = [\"/a\"]\nwhen = '('":                                                                     `when is no expression`,
		"name = \"a\"\npaths = [\"/a\"]\nwhen = ''":                                                                      `when is empty; leave it out to ask for nothing`,
		"name = \"a\"\npaths = [\"/a\"]\nhosts = []":                                                                     `hosts is empty; leave it out to ask for nothing`,
		"name = \"a\"\npaths = [\"/a\"]\nmethods = []":                                                                   `methods is empty; leave it out to ask for nothing`,
		"name = \"a\"\npaths = [\"/a\"]\nauthenticators = []":                                                            `authenticators is empty; leave it out to ask for nothing`,
		"name = \"a\"\npaths = [\"/a\"]\nrequire = {roles = []}":                                                         `require.roles is empty; leave it out to ask for nothing`,
		"name = \"a\"\npaths = [\"/a\"]\nrequire = {scopes = []}":                                                        `require.scopes is empty; leave it out to ask for nothing`,
		"name = \"a\"\npaths = [\"/a\"]\nrequire = {auth_age = \"\"}":                                                    `write a duration of a second or more`,
		"name = \"a\"\npaths = [\"/a\"]\nhosts = [\"a.example:80\"]":                                                     `without a port`,
		"name = \"a\"\npaths = [\"/a\"]\nhosts = [\"[0:0::1]\"]":                                                         `host "[0:0::1]"`,
		"name = ": `rules.toml:7`,
	} {
		s, err := rules.Parse("rules.toml", []byte(head+text+"\n"), rules.Options{Authenticators: []string{"bearer", "session"}})
		if err == nil || s != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q): got %v, want %q", text, err, want)
		}
	}
}

// TestLines: a rule's line is that of its header, and not of a string that looks like one.
func TestLines(t *testing.T) {
	s := parse(t, "x = '''\n[[rules]]\n'''\n[[ rules ]]\nname='a'\npaths=['/']\n\n\t[[rules]] # b\nname='b'\npaths=['/']\n")
	if got := s.Rules()[0].Line + " " + s.Rules()[1].Line; got != "rules.toml:4 rules.toml:8" {
		t.Errorf("got the lines %s", got)
	}
}

// FuzzParse: what parses decides without failing, whatever is asked.
func FuzzParse(f *testing.F) {
	f.Add(sample, "/api/x")
	f.Add("[[rules]]\nname='a'\npaths=['/**/{a}/**']\nwhen='claims.a == request.params.a'", "/a/b/c")
	f.Fuzz(func(t *testing.T, text, path string) {
		s, err := rules.Parse("rules.toml", []byte(text), rules.Options{})
		if err != nil {
			return
		}
		p, err := rules.Canonical(path)
		if err != nil {
			return
		}
		o := s.Decide(&rules.Request{Method: "GET", Host: "h", Path: p}, alice(), now)
		if o.Allowed() != (o.Reason == "") {
			t.Errorf("an outcome of status %d has the reason %q", o.Status, o.Reason)
		}
	})
}
