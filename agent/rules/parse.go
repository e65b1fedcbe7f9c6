package rules

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// The bounds of a file of rules.
const (
	maxFile  = 8 << 20
	maxRules = 20_000
	maxList  = 256 // hosts, methods, paths ... of one rule
)

// definition is a rule as it is written:
//
//	[[rules]]
//	name = "articles"
//	hosts = ["app.example.com", "*.example.org"]
//	methods = ["GET", "HEAD"]
//	paths = ["/api/articles/**", "/users/{id}"]
//	authenticators = ["bearer", "session"]
//	require = { scopes = ["read"], roles = ["staff"], audience = ["…"], clients = ["web"], claims = { org = "acme" }, auth_age = "15m" }
//	when = 'claims.org == request.headers["x-org"]'
type definition struct {
	Name           string   `toml:"name"`
	Hosts          []string `toml:"hosts"`
	Methods        []string `toml:"methods"`
	Paths          []string `toml:"paths"`
	Authenticators []string `toml:"authenticators"`
	Allow          string   `toml:"allow"`
	Require        struct {
		Scopes   []string       `toml:"scopes"`
		Roles    []string       `toml:"roles"`
		Audience []string       `toml:"audience"`
		Clients  []string       `toml:"clients"`
		Claims   map[string]any `toml:"claims"`
		AuthAge  *string        `toml:"auth_age"`
	} `toml:"require"`
	When         *string `toml:"when"`
	EncodedSlash string  `toml:"encoded_slash"`
	Preflight    bool    `toml:"cors_preflight"`
}

// Options say what rules may name.
type Options struct {
	// Authenticators are the schemes that there are; a rule that names another is refused. nil: any name passes.
	Authenticators []string
	// Only refuses what is not a rule. Else other tables are not looked at: a configuration holds them too.
	Only bool
}

// Parse reads the [[rules]] of a TOML document; file is its name, for errors. A document without rules gives an empty Set, which allows nothing. The error names file,
// line and what is wrong with the first rule that cannot be meant.
func Parse(file string, data []byte, opt Options) (*Set, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: %d bytes of rules are more than %d", file, len(data), maxFile)
	}
	var doc struct {
		Rules []toml.Primitive `toml:"rules"`
	}
	md, err := toml.Decode(string(data), &doc)
	if err != nil {
		return nil, atLine(file, err)
	}
	if len(doc.Rules) > maxRules {
		return nil, fmt.Errorf("%s: %d rules are more than %d", file, len(doc.Rules), maxRules)
	}
	sum := sha256.Sum256(data)
	s := &Set{index: newIndex(), version: hex.EncodeToString(sum[:6])}
	lines := headerLines(data)
	names := make(map[string]string, len(doc.Rules))
	for n, p := range doc.Rules {
		at := place(file, lines, n)
		rule, err := parseRule(md, p, opt)
		if err != nil {
			return nil, fmt.Errorf("%s: rule %q: %w", at, nameOf(rule, n), err)
		}
		if first, taken := names[rule.Name]; taken {
			return nil, fmt.Errorf("%s: rule %q: the name is taken by the rule at %s", at, rule.Name, first)
		}
		names[rule.Name], rule.Line = at, at
		s.add(rule)
	}
	if err := unknownMembers(file, md, opt.Only); err != nil {
		return nil, err
	}
	return s, nil
}

func nameOf(rule *Rule, n int) string {
	if rule != nil && rule.Name != "" {
		return rule.Name
	}
	return fmt.Sprintf("number %d", n+1)
}

func (s *Set) add(rule *Rule) {
	n := len(s.rules)
	s.rules = append(s.rules, rule)
	hosts := rule.hosts
	if len(hosts) == 0 {
		hosts = []string{""}
	}
	for _, host := range hosts {
		for _, pattern := range rule.patterns {
			s.index.add(n, host, pattern)
		}
	}
}

// unknownMembers refuses a member of a rule that nothing reads: misspelt, it would leave the rule open.
func unknownMembers(file string, md toml.MetaData, only bool) error {
	for _, key := range md.Undecoded() {
		if only && key[0] != "rules" {
			return fmt.Errorf("%s: unknown member %q; a set that is handed out holds [[rules]] and nothing else, for every agent reads it", file, strings.Join(key, "."))
		}
		if len(key) > 1 && key[0] == "rules" {
			return fmt.Errorf("%s: unknown member %q of a rule; there are name, hosts, methods, paths, authenticators, allow, require, when, encoded_slash and cors_preflight", file, strings.Join(key[1:], "."))
		}
	}
	return nil
}

func parseRule(md toml.MetaData, p toml.Primitive, opt Options) (*Rule, error) {
	var d definition
	if err := md.PrimitiveDecode(p, &d); err != nil {
		return nil, plain(err)
	}
	rule := &Rule{Name: d.Name}
	for _, step := range []func(*definition, *Options) error{noEmptyList, rule.readWhere, rule.readWho, rule.readRequire, rule.readWhen} {
		if err := step(&d, &opt); err != nil {
			return rule, err
		}
	}
	return rule, nil
}

// noEmptyList refuses a list without members: whoever made it, most likely a template, meant "none of them", and a list
// that is left out means all.
func noEmptyList(d *definition, _ *Options) error {
	for _, list := range []struct {
		name string
		of   []string
	}{
		{"hosts", d.Hosts}, {"methods", d.Methods}, {"authenticators", d.Authenticators}, {"require.scopes", d.Require.Scopes},
		{"require.roles", d.Require.Roles}, {"require.audience", d.Require.Audience}, {"require.clients", d.Require.Clients},
	} {
		if list.of != nil && len(list.of) == 0 {
			return fmt.Errorf("%s is empty; leave it out to ask for nothing", list.name)
		}
	}
	return nil
}

// readWhere reads what the rule is for.
func (rule *Rule) readWhere(d *definition, _ *Options) error {
	if d.Name == "" || len(d.Name) > 128 || strings.ContainsFunc(d.Name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return errors.New(`it needs a "name" of 1 to 128 bytes without control characters`)
	}
	if len(d.Paths) == 0 {
		return errors.New(`it needs "paths"; ["/**"] is every path`)
	}
	if max(len(d.Paths), len(d.Hosts), len(d.Methods)) > maxList {
		return fmt.Errorf("it has more than %d hosts, methods or paths", maxList)
	}
	for _, text := range d.Paths {
		pattern, err := parsePattern(text)
		if err != nil {
			return fmt.Errorf("path %q: %w", text, err)
		}
		rule.patterns = append(rule.patterns, pattern)
	}
	for _, host := range d.Hosts {
		if err := checkHost(host); err != nil {
			return fmt.Errorf("host %q: %w", host, err)
		}
	}
	rule.hosts = d.Hosts
	for _, m := range d.Methods {
		if m == "" || strings.ContainsFunc(m, func(r rune) bool { return (r < 'A' || r > 'Z') && r != '-' }) {
			return fmt.Errorf("method %q: a method is written in capital letters, as %q", m, http.MethodGet)
		}
	}
	rule.methods = d.Methods
	return nil
}

// checkHost accepts "app.example.com" and "*.example.com", in the form that Host gives.
func checkHost(host string) error {
	name := strings.TrimPrefix(host, "*.")
	if got, ok := Host(name); !ok || got != name || name != host && name[0] == '[' {
		return errors.New(`it is written in lower case, without a port; only "*." may stand before it`)
	}
	return nil
}

// readWho reads by which schemes somebody may be known.
func (rule *Rule) readWho(d *definition, opt *Options) error {
	if len(d.Authenticators) > maxList {
		return fmt.Errorf("it has more than %d authenticators", maxList)
	}
	for _, name := range d.Authenticators {
		if opt.Authenticators != nil && !slices.Contains(opt.Authenticators, name) {
			return fmt.Errorf("authenticator %q is none of this agent's: %s", name, strings.Join(opt.Authenticators, ", "))
		}
	}
	rule.authenticators, rule.preflight = d.Authenticators, d.Preflight
	switch d.EncodedSlash {
	case "":
	case "literal":
		rule.literalSlash = true
	default:
		return fmt.Errorf(`encoded_slash is %q; it may be "literal" or left out`, d.EncodedSlash)
	}
	switch d.Allow {
	case "":
	case "anyone":
		rule.anyone = true
	default:
		return fmt.Errorf(`allow is %q; it may be "anyone" or left out`, d.Allow)
	}
	return nil
}

// readRequire reads what must be true of who is known.
func (rule *Rule) readRequire(d *definition, _ *Options) error {
	r := &d.Require
	if rule.anyone && (len(d.Authenticators) > 0 || len(r.Scopes)+len(r.Roles)+len(r.Audience)+len(r.Clients)+len(r.Claims) > 0 || r.AuthAge != nil || d.When != nil) {
		return errors.New(`allow = "anyone" asks for nobody: authenticators, require and when mean nothing beside it`)
	}
	if max(len(r.Scopes), len(r.Roles), len(r.Audience), len(r.Clients), len(r.Claims)) > maxList {
		return fmt.Errorf("a list of require has more than %d members", maxList)
	}
	for _, scope := range r.Scopes {
		if scope == "" || strings.ContainsFunc(scope, func(c rune) bool { return c < 0x21 || c == '"' || c == '\\' || c > 0x7e }) {
			return fmt.Errorf("require.scopes: %q is no scope (RFC 6749 §3.3)", scope)
		}
	}
	for _, list := range [][]string{r.Roles, r.Audience, r.Clients} {
		if slices.Contains(list, "") {
			return errors.New("require: an empty role, audience or client")
		}
	}
	rule.require = require{scope: strings.Join(r.Scopes, " "), scopes: r.Scopes, roles: r.Roles, audience: r.Audience, clients: r.Clients}
	for name, want := range r.Claims {
		if err := checkClaim(want); err != nil {
			return fmt.Errorf("require.claims.%s: %w", name, err)
		}
		rule.require.claims = append(rule.require.claims, claim{name, want})
	}
	slices.SortFunc(rule.require.claims, func(a, b claim) int { return strings.Compare(a.name, b.name) })
	if r.AuthAge != nil {
		age, err := time.ParseDuration(*r.AuthAge)
		if err != nil || age < time.Second {
			return fmt.Errorf(`require.auth_age is %q; write a duration of a second or more, as "15m"`, *r.AuthAge)
		}
		rule.require.authAge = age
	}
	return nil
}

// checkClaim accepts what scalarsEqual can compare, and lists of it.
func checkClaim(want any) error {
	switch w := want.(type) {
	case string, bool, int64, float64:
		return nil
	case []any:
		for _, one := range w {
			if _, nested := one.([]any); nested || checkClaim(one) != nil {
				return errors.New("a list holds strings, numbers and booleans")
			}
		}
		if len(w) > 0 {
			return nil
		}
	}
	return errors.New("a claim is compared with a string, a number, a boolean, or a list of them")
}

func (rule *Rule) readWhen(d *definition, _ *Options) (err error) {
	switch {
	case d.When == nil:
		return nil
	case strings.TrimSpace(*d.When) == "":
		return errors.New("when is empty; leave it out to ask for nothing")
	}
	if rule.when, err = compile(*d.When); err != nil {
		return fmt.Errorf("when %w", err)
	}
	return nil
}

// headerLines gives the lines of the [[rules]] headers, from 1, in order. The library tells lines by key, and all rules share
// theirs. Where rules are written in another way there are none.
func headerLines(data []byte) []int {
	var at []int
	fence := "" // that ends the multi-line string which a line stands in
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		text := strings.ReplaceAll(strings.ReplaceAll(line, " ", ""), "\t", "")
		if fence == "" && strings.HasPrefix(text, "[[rules]]") {
			at = append(at, n)
		}
		for rest := line; ; {
			i, mark := nextFence(rest, fence)
			if i < 0 {
				break
			}
			if fence == "" {
				fence = mark
			} else {
				fence = ""
			}
			rest = rest[i+len(mark):]
		}
	}
	return at
}

// nextFence finds what opens a multi-line string, or what closes the one that is open.
func nextFence(line, open string) (int, string) {
	if open != "" {
		return strings.Index(line, open), open
	}
	literal, basic := strings.Index(line, "'''"), strings.Index(line, `"""`)
	if basic < 0 || literal >= 0 && literal < basic {
		return literal, "'''"
	}
	return basic, `"""`
}

// place is "rules.toml:14", where rule number n begins.
func place(file string, lines []int, n int) string {
	if n < len(lines) {
		return fmt.Sprintf("%s:%d", file, lines[n])
	}
	return file
}

// typeError is what the library says of a value of the wrong type, with a line that may be another rule's.
var typeError = regexp.MustCompile(`^toml: (?:line \d+ )?\(last key "rules\.([^"]*)"\): (.*)$`)

// plain drops that line.
func plain(err error) error {
	if m := typeError.FindStringSubmatch(err.Error()); m != nil {
		return fmt.Errorf("%s: %s", m[1], m[2])
	}
	return err
}

// atLine turns an error of the library into "rules.toml:14: …".
func atLine(file string, err error) error {
	var pe toml.ParseError
	if !errors.As(err, &pe) {
		return fmt.Errorf("%s: %w", file, err)
	}
	if pe.LastKey != "" && !strings.Contains(pe.Message, pe.LastKey) {
		return fmt.Errorf("%s:%d: %s: %s", file, pe.Position.Line, pe.LastKey, pe.Message)
	}
	return fmt.Errorf("%s:%d: %s", file, pe.Position.Line, pe.Message)
}
