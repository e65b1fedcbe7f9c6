package rules_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/sidekey/sidekey/agent/rules"
)

// naive is a rule as the reference reads it: text by text, one rule after the other.
type naive struct{ hosts, methods, paths []string }

func (n naive) matches(host, method, path string) bool {
	return (len(n.hosts) == 0 || slices.ContainsFunc(n.hosts, func(h string) bool {
		domain, wild := strings.CutPrefix(h, "*")
		return h == host || wild && strings.HasSuffix(host, domain) && len(host) > len(domain)
	})) && (len(n.methods) == 0 || slices.Contains(n.methods, method)) &&
		slices.ContainsFunc(n.paths, func(p string) bool { return naivePath(split(p), split(path)) })
}

func split(path string) []string {
	if path = strings.Trim(path, "/"); path == "" {
		return nil
	}
	return strings.Split(path, "/")
}

func naivePath(pattern, path []string) bool {
	switch {
	case len(pattern) == 0:
		return len(path) == 0
	case pattern[0] == "**":
		return naivePath(pattern[1:], path) || len(path) > 0 && naivePath(pattern, path[1:])
	case len(path) == 0:
		return false
	}
	return (pattern[0] == "*" || pattern[0][0] == '{' || pattern[0] == path[0]) && naivePath(pattern[1:], path[1:])
}

// TestIndexAgrees: the index finds the rule that a look at each in turn finds, for generated rules and requests.
func TestIndexAgrees(t *testing.T) {
	part := rapid.SampledFrom([]string{"a", "b", "c", "*", "{x}", "**"})
	pattern := rapid.Custom(func(t *rapid.T) string {
		var parts []string
		rests := 0
		for range rapid.IntRange(0, 5).Draw(t, "segments") {
			p := part.Draw(t, "part")
			if p == "{x}" && slices.Contains(parts, p) {
				p = "*"
			}
			if p == "**" {
				if rests++; rests > 2 || len(parts) > 0 && parts[len(parts)-1] == "**" {
					p = "b"
				}
			}
			parts = append(parts, p)
		}
		return "/" + strings.Join(parts, "/")
	})
	hosts := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"h", "a.h", "*.h", "*.a.h"}), 0, 2, rapid.ID)
	methods := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"GET", "POST"}), 0, 2, rapid.ID)
	rapid.Check(t, func(t *rapid.T) {
		var all []naive
		var text strings.Builder
		for n := range rapid.IntRange(0, 12).Draw(t, "rules") {
			one := naive{hosts.Draw(t, "hosts"), methods.Draw(t, "methods"), rapid.SliceOfN(pattern, 1, 3).Draw(t, "paths")}
			all = append(all, one)
			fmt.Fprintf(&text, "[[rules]]\nname = \"%d\"\n%s%s%s", n, list("hosts", one.hosts), list("methods", one.methods), list("paths", one.paths))
		}
		s, err := rules.Parse("generated", []byte(text.String()), rules.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			host := rapid.SampledFrom([]string{"h", "a.h", "b.a.h", "x"}).Draw(t, "host")
			method := rapid.SampledFrom([]string{"GET", "POST", "PUT"}).Draw(t, "method")
			path := "/" + strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", "d"}), 0, 6).Draw(t, "path"), "/")
			want := slices.IndexFunc(all, func(n naive) bool { return n.matches(host, method, path) })
			p, err := rules.Canonical(path)
			if err != nil {
				t.Fatal(err)
			}
			got := -1
			if rule := s.Match(&rules.Request{Method: method, Host: host, Path: p}); rule != nil {
				fmt.Sscan(rule.Name, &got)
			}
			if got != want {
				t.Fatalf("%s %s%s: got rule %d, want %d of\n%s", method, host, path, got, want, text.String())
			}
		}
	})
}

// list is a member of a rule, left out where there is nothing.
func list(name string, all []string) string {
	if len(all) == 0 {
		return ""
	}
	quoted := make([]string, len(all))
	for i, one := range all {
		quoted[i] = fmt.Sprintf("%q", one)
	}
	return name + " = [" + strings.Join(quoted, ",") + "]\n"
}

// TestLookUpIsBounded: a path that makes a look-up branch without end is refused, and no rule behind it decides.
func TestLookUpIsBounded(t *testing.T) {
	s := parse(t, "[[rules]]\nname = \"1\"\npaths = [\"/**/a/**/y\"]\n[[rules]]\nname = \"2\"\npaths = [\"/**/*/**/z\"]\n"+
		"[[rules]]\nname = \"open\"\npaths = [\"/**\"]\nallow = \"anyone\"\n")
	for path, want := range map[string]string{strings.Repeat("/a", 128): "", "/a/b/c": "open"} {
		p, err := rules.Canonical(path)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if rule := s.Match(&rules.Request{Method: "GET", Host: "h", Path: p}); rule != nil {
			got = rule.Name
		}
		if got != want {
			t.Errorf("%.20s: got rule %q, want %q", path, got, want)
		}
	}
}
