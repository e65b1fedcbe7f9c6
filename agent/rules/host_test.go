package rules_test

import (
	"strings"
	"testing"

	"github.com/sidekey/sidekey/agent/rules"
)

func TestHost(t *testing.T) {
	for text, want := range map[string]string{
		"app.example": "app.example", "APP.Example": "app.example", "app.example.": "app.example", "App.example.:443": "app.example",
		"a_b-c.example:1": "a_b-c.example", "127.0.0.1:8080": "127.0.0.1", "localhost": "localhost",
		"[::1]": "[::1]", "[0:0:0:0:0:0:0:1]:443": "[::1]", "[2001:DB8::A]": "[2001:db8::a]", strings.Repeat("a", 63) + ".b": strings.Repeat("a", 63) + ".b",
		// They are none, or could be read in two ways.
		"": "", ".": "", "..": "", ":443": "", "app.example..": "", "APP.example..": "", ".app.example": "", "app..example": "",
		"app.example:": "", "app.example:0": "", "app.example:65536": "", "app.example:+1": "", "app.example:1:2": "", "APP.example:1:2": "", "app.example:http": "", "app.example:000443": "",
		"user@app.example": "", "user:pass@app.example": "", "app.example@evil": "", "a,b": "", "a b": "", " a": "", "a\t": "", "a\x00": "", "a/b": "", "a?b": "", "a#b": "", `a\b`: "",
		"%61pp.example": "", "bücher.example": "", "a%00b": "", "::1": "", "[::1": "", "[]": "", "[::1]x": "", "[::1]:": "", "[fe80::1%25eth0]": "", "[fe80::1%eth0]": "", "[127.0.0.1]": "", "[app.example]": "",
		strings.Repeat("a", 64): "", strings.Repeat("a.", 127) + "a": "",
	} {
		got, ok := rules.Host(text)
		if got != want || ok != (want != "") {
			t.Errorf("Host(%q): got %q, %v, want %q", text, got, ok, want)
		}
	}
}

// FuzzHost: what passes is in the one form, and stays so.
func FuzzHost(f *testing.F) {
	for _, seed := range []string{"app.example", "APP.example.:443", "[::1]:1", "a..", "A:1:2"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, ok := rules.Host(text)
		if !ok {
			return
		}
		if again, ok := rules.Host(got); !ok || again != got || got != strings.ToLower(got) || strings.ContainsAny(got, "/@,%\\ ") {
			t.Errorf("Host(%q) gave %q, and of that %q", text, got, again)
		}
	})
}
