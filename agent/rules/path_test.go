package rules_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/sidekey/sidekey/agent/rules"
)

func TestCanonical(t *testing.T) {
	for raw, want := range map[string]string{
		"/": "/", "/a": "/a", "/a/": "/a", "/a/b": "/a/b", "/%61": "/a", "/a%2Fb": "/a%2Fb", "/a%2fb": "/a%2Fb",
		"/caf%C3%A9": "/café", "/café": "/café", "/a%3Fb": "/a?b", "/a%20b": "/a b", "/a..b": "/a..b", "/...": "/...", "/a:b@c": "/a:b@c",
	} {
		got, err := rules.Canonical(raw)
		if err != nil || got.Text != want {
			t.Errorf("Canonical(%q): got %q, %v, want %q", raw, got.Text, err, want)
		}
	}
}

func TestCanonicalRefuses(t *testing.T) {
	for raw, why := range map[string]string{
		"":                               "slash",
		"a":                              "slash",
		"*":                              "slash",
		"http://h/a":                     "slash",
		"//":                             `"//"`,
		"//a":                            `"//"`,
		"/a//b":                          `"//"`,
		"/a//":                           `"//"`,
		"/.":                             `"." or ".."`,
		"/a/./b":                         `"." or ".."`,
		"/..":                            `"." or ".."`,
		"/a/../b":                        `"." or ".."`,
		"/a/..":                          `"." or ".."`,
		"/%2e%2e/a":                      `"." or ".."`,
		"/%2E./a":                        `"." or ".."`,
		"/a/%2e":                         `"." or ".."`,
		"/a/..%2fb":                      `"." or ".."`,
		"/a/b%2F%2e%2E":                  `"." or ".."`,
		"/a/b%2F.%2fc":                   `"." or ".."`,
		"/a%c2%85b":                      "control",
		"/a\u2028b":                      "control",
		"/a;b":                           `";"`,
		"/a%3bb":                         `";"`,
		"/a\\b":                          "backslash",
		"/a%5cb":                         "backslash",
		"/a%5C..%5Cb":                    "backslash",
		"/a\x00":                         "control",
		"/a%00":                          "control",
		"/a%0d%0aX:1":                    "control",
		"/a\tb":                          "control",
		"/a%7f":                          "control",
		"/%":                             "escapes nothing",
		"/%4":                            "escapes nothing",
		"/%zz":                           "escapes nothing",
		"/%u0041":                        "escapes nothing",
		"/%252e%252e/a":                  "escaped percent",
		"/%25":                           "escaped percent",
		"/%c0%ae%c0%ae/a":                "UTF-8",
		"/%ff":                           "UTF-8",
		"/\xff":                          "UTF-8",
		"/%ed%a0%80":                     "UTF-8", // a surrogate
		"/a?b":                           "query",
		"/a#b":                           "fragment",
		"/" + strings.Repeat("a", 1<<13): "too long",
		strings.Repeat("/a", 129):        "segments",
	} {
		got, err := rules.Canonical(raw)
		if !errors.Is(err, rules.ErrAmbiguous) || !strings.Contains(err.Error(), why) {
			t.Errorf("Canonical(%.40q): got %q, %v, want an error with %q", raw, got.Text, err, why)
		}
	}
}

// FuzzCanonical: what passes is in the one form, and stays so.
func FuzzCanonical(f *testing.F) {
	for _, seed := range []string{"/", "/a/%2Fb", "/%2e", "/a/../b", "/caf%C3%A9/"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		p, err := rules.Canonical(raw)
		if err != nil {
			return
		}
		for part := range strings.SplitSeq(strings.ReplaceAll(p.Text, "%2F", "/")[1:], "/") {
			if part == "." || part == ".." {
				t.Errorf("Canonical(%q) left %q in %q", raw, part, p.Text)
			}
		}
		if strings.ContainsAny(p.Text, ";\\\x00") || strings.Contains(p.Text, "//") {
			t.Errorf("Canonical(%q) gave %q", raw, p.Text)
		}
		if strings.ContainsAny(p.Text, "?#") {
			return // escaped once, so that it cannot be sent as it is compared
		}
		again, err := rules.Canonical(p.Text)
		if err != nil || again.Text != p.Text {
			t.Errorf("Canonical(%q) gave %q, and of that %q, %v", raw, p.Text, again.Text, err)
		}
	})
}
