package rules_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sidekey/sidekey/agent/rules"
)

// BenchmarkMatch finds the rule for a path among 10,000. Floor: the path's look-up in a map of 10,000 whole paths.
func BenchmarkMatch(b *testing.B) {
	var text strings.Builder
	exact := make(map[string]int)
	for n := range 10_000 {
		fmt.Fprintf(&text, "[[rules]]\nname = \"%d\"\nhosts = [\"h%d.example.com\"]\npaths = [\"/api/v%d/{id}/items/**\"]\nmethods = [\"GET\"]\n", n, n%10, n)
		exact[fmt.Sprintf("/api/v%d/7/items/9", n)] = n
	}
	s := parse(b, text.String())
	var requests []*rules.Request
	for n := range 1000 {
		requests = append(requests, request(b, fmt.Sprintf("GET h%d.example.com/api/v%d/7/items/9", n%10, n*7%10_000/10*10+n%10)))
	}
	b.Run("rules", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			if s.Match(requests[i%len(requests)]) == nil {
				b.Fatal("no rule")
			}
		}
	})
	b.Run("floor", func(b *testing.B) {
		for i := range b.N {
			if _, ok := exact[requests[i%len(requests)].Path.Text]; !ok {
				b.Fatal("no rule")
			}
		}
	})
}

// BenchmarkWhen evaluates a rule of ordinary length.
func BenchmarkWhen(b *testing.B) {
	s := parse(b, "[[rules]]\nname='r'\npaths=['/users/{id}']\nwhen='''claims.org == \"acme\" && (request.params.id == principal.subject || \"staff\" in principal.roles)'''")
	r, p := request(b, "GET h/users/bob"), alice()
	claims := p.Claims()
	p.Claims = func() map[string]any { return claims }
	b.ReportAllocs()
	for range b.N {
		if o := s.Decide(r, p, now); !o.Allowed() {
			b.Fatal(o.Reason, o.Detail)
		}
	}
}

// BenchmarkCanonical reads an ordinary path.
func BenchmarkCanonical(b *testing.B) {
	b.ReportAllocs()
	for range b.N {
		if _, err := rules.Canonical("/api/v1/users/0198a/posts"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadSet reads sets of 64 KiB as the log hands them out: for so long a revocation behind one waits. The forms are
// the slowest that were found.
func BenchmarkReadSet(b *testing.B) {
	nested := "true" // as deep as may be
	for n := range 14 {
		nested = fmt.Sprintf("[1].all(x%d,%s)", n, nested)
	}
	for _, c := range []struct{ name, when string }{
		{"ordinary", `request.params.id == principal.subject || "staff" in principal.roles`},
		{"short", "true"},
		{"nested", nested},
		{"macros", strings.Repeat("[1].all(x,x==1)&&", 60) + "true"},
		{"brackets", strings.Repeat("[", 14) + strings.Repeat("]", 14) + "==[]"},
		{"maps", strings.Repeat("{1:", 14) + "1" + strings.Repeat("}", 14) + "=={}"},
		{"regular", `"".matches('.{230}')`},
		{"regulars", strings.Repeat(`"".matches('.{230}')||`, 150) + "true"},
	} {
		b.Run(c.name, func(b *testing.B) {
			var text strings.Builder
			for n := 0; ; n++ {
				rule := fmt.Sprintf("[[rules]]\nname=\"%d\"\npaths=[\"/%d\"]\nwhen=\"\"\"%s\"\"\"\n", n, n, c.when)
				if text.Len()+len(rule) > 64<<10 {
					break
				}
				text.WriteString(rule)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := rules.ParseSet("base", text.String(), rules.Options{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
