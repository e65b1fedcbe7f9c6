package agent_test

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// nearMissBatch is how many refusals one sample times: a single one is too short for the clock.
const nearMissBatch = 200

// BenchmarkNearMiss times refusals of guesses that differ from a secret in their first character against such as differ in
// the last only, by turns, and reports the share of pairs in which the first were quicker: 0.5 says nothing (Mann-Whitney). A
// comparison that stops at the first difference would show there.
func BenchmarkNearMiss(b *testing.B) {
	w := newWorld(b)
	secret := keyringtest.Secret(w)
	w.apply(w.fact(secret, keyring.Active))
	key := "sidekey_" + strings.Repeat("k", 49)
	w.credential(bus.APIKey, key)
	session := w.session()
	mac := w.tokenOf(secret, keyring.AccessToken)
	cut := strings.LastIndexByte(mac, '.') + 1
	for _, c := range []struct {
		name, secret, reason string
		request              func(guess string) *agent.Request
	}{
		{"api_key", key, "unknown_credential", func(guess string) *agent.Request {
			return nearMiss("GET", "X-Api-Key", guess)
		}},
		{"csrf", csrfToken, "csrf_mismatch", func(guess string) *agent.Request {
			return nearMiss("POST", "Cookie", strings.TrimPrefix(session, "Cookie: "), "X-Csrf-Token", guess)
		}},
		{"hs256", mac[cut:], "bad_signature", func(guess string) *agent.Request {
			return nearMiss("GET", "Authorization", "Bearer "+mac[:cut]+guess)
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			other := func(ch byte) string { return string('A' + (ch-'A'+1)%26) }
			n := len(c.secret)
			first, last := c.request(other(c.secret[0])+c.secret[1:]), c.request(c.secret[:n-2]+other(c.secret[n-2])+c.secret[n-1:])
			took := [2][]time.Duration{}
			for round := 0; b.Loop(); round++ {
				for _, at := range []int{round % 2, 1 - round%2} {
					r := []*agent.Request{first, last}[at]
					began := time.Now()
					for range nearMissBatch {
						if d := w.agent.Authenticate(r); string(d.Reason) != c.reason {
							b.Fatalf("got %d %q, want %q", d.Status, d.Reason, c.reason)
						}
					}
					took[at] = append(took[at], time.Since(began))
				}
			}
			b.ReportMetric(quicker(took[0], took[1]), "P(first<last)")
			for at, name := range []string{"ns-first", "ns-last"} {
				slices.Sort(took[at])
				b.ReportMetric(float64(took[at][len(took[at])/2].Nanoseconds())/nearMissBatch, name)
			}
		})
	}
}

func nearMiss(method string, fields ...string) *agent.Request {
	h := make(http.Header)
	for i := 0; i < len(fields); i += 2 {
		h.Set(fields[i], fields[i+1])
	}
	return agent.NewRequest(method, "https", "app.example", "/x", h, netip.MustParseAddr("192.0.2.1"))
}

// quicker is the share of pairs in which the one of xs is the smaller.
func quicker(xs, ys []time.Duration) float64 {
	wins := 0.0
	for _, x := range xs {
		for _, y := range ys {
			switch {
			case x < y:
				wins++
			case x == y:
				wins += 0.5
			}
		}
	}
	return wins / float64(len(xs)*len(ys))
}
