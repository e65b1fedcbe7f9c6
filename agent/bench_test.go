package agent_test

import (
	"crypto"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// Each benchmark reports x-floor: how many times the cost of what it cannot do without, measured
// in the same run, in rounds that take turns; the median of five. The command is
//
//	go test -run '^$' -bench . ./agent
const rounds = 5

// compare runs floor and subject in turns, n operations each, and reports the median ratio of
// what they cost.
func compare(b *testing.B, n int, floor, subject func(n int) time.Duration) {
	b.Helper()
	floor(min(n, 1000)) // warm
	subject(min(n, 1000))
	var ratios, low, high []float64
	for range rounds {
		f, s := floor(n), subject(n)
		ratios = append(ratios, float64(s)/float64(f))
		low = append(low, float64(f)/float64(n))
		high = append(high, float64(s)/float64(n))
	}
	b.ReportMetric(median(ratios), "x-floor")
	b.ReportMetric(median(low), "ns-floor/op")
	b.ReportMetric(median(high), "ns-cost/op")
	b.ReportMetric(0, "ns/op") // the sum of both, which means nothing
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// timed is the time that n calls of f take.
func timed(n int, f func(i int)) time.Duration {
	start := time.Now()
	for i := range n {
		f(i)
	}
	return time.Since(start)
}

// BenchmarkVerifyCached verifies 10,000 tokens in turn that are all cached. The floor is what no
// check can do without: finding the token, and reading the two clocks.
func BenchmarkVerifyCached(b *testing.B) {
	const hot = 10_000
	w := newWorld(b)
	w.apply(w.fact(keyringtest.Ed(b), keyring.Active))
	bare, err := lru.New[string, *int](hot)
	if err != nil {
		b.Fatal(err)
	}
	// Signed with Ed25519, which is quick, and padded to the length of an RS256 token.
	tokens := make([]string, hot)
	for i := range tokens {
		tokens[i] = w.tokenOf(keyringtest.Ed(b), keyring.AccessToken, func(c *keyring.Claims) {
			c.Extra = map[string]any{"pad": strings.Repeat("a", 192)}
		})
		bare.Add(strings.Clone(tokens[i]), new(int))
		if v := w.agent.Verify(tokens[i], agent.Query{}); !v.Active() {
			b.Fatalf("got %d %q, want 200", v.Status, v.Reason)
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	compare(b, b.N, func(n int) time.Duration {
		return timed(n, func(i int) {
			p, ok := bare.Get(tokens[i%hot])
			if !ok || p == nil || !readBootClock() || time.Now().IsZero() {
				b.Fatal("the floor failed")
			}
		})
	}, func(n int) time.Duration {
		return timed(n, func(i int) {
			if v := w.agent.Verify(tokens[i%hot], agent.Query{}); !v.Active() {
				b.Fatalf("got %d %q, want 200", v.Status, v.Reason)
			}
		})
	})
}

// verifyFirst verifies tokens that are not cached, against a floor that checks the same
// signature: two in turn, in a cache for one.
func verifyFirst(b *testing.B, k *keyring.Key, floor func(signed string, sig []byte) bool) {
	w := newWorld(b, func(c *agent.Config) { c.CacheSize = 1 })
	w.apply(w.fact(k, keyring.Active))
	tokens := []string{w.tokenOf(k, keyring.AccessToken), w.tokenOf(k, keyring.AccessToken)}
	var signed [2]string
	var sigs [2][]byte
	for i, token := range tokens {
		at := strings.LastIndexByte(token, '.')
		sig, err := base64.RawURLEncoding.DecodeString(token[at+1:])
		if err != nil {
			b.Fatal(err)
		}
		signed[i], sigs[i] = token[:at], sig
	}
	turn := 0 // goes on from round to round: the same token twice would be a hit
	b.ReportAllocs()
	b.ResetTimer()
	compare(b, b.N, func(n int) time.Duration {
		return timed(n, func(i int) {
			if !floor(signed[i%2], sigs[i%2]) {
				b.Fatal("the floor failed")
			}
		})
	}, func(n int) time.Duration {
		return timed(n, func(int) {
			turn++
			if v := w.agent.Verify(tokens[turn%2], agent.Query{}); !v.Active() {
				b.Fatalf("got %d %q, want 200", v.Status, v.Reason)
			}
		})
	})
	if got := w.agent.Status().Cache.Hits; got != 0 {
		b.Fatalf("%d tokens were cached, want none", got)
	}
}

// BenchmarkVerifyFirstRS256 has crypto/rsa on the same key as its floor, the hash made beforehand.
func BenchmarkVerifyFirstRS256(b *testing.B) {
	k := keyringtest.RSA(b)
	jwk, err := k.PublicJWK()
	if err != nil {
		b.Fatal(err)
	}
	var m struct{ N string }
	if err := json.Unmarshal(jwk, &m); err != nil {
		b.Fatal(err)
	}
	n, err := base64.RawURLEncoding.DecodeString(m.N)
	if err != nil {
		b.Fatal(err)
	}
	public := &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537}
	hashes := make(map[string][sha256.Size]byte)
	verifyFirst(b, k, func(signed string, sig []byte) bool {
		h, ok := hashes[signed]
		if !ok {
			h = sha256.Sum256([]byte(signed))
			hashes[signed] = h
		}
		return rsa.VerifyPKCS1v15(public, crypto.SHA256, h[:], sig) == nil
	})
}

// BenchmarkVerifyFirstHS256 has crypto/hmac as its floor.
func BenchmarkVerifyFirstHS256(b *testing.B) {
	k := keyringtest.Secret(b)
	verifyFirst(b, k, func(signed string, sig []byte) bool {
		mac := hmac.New(sha256.New, k.Secret())
		mac.Write([]byte(signed))
		return hmac.Equal(mac.Sum(nil), sig)
	})
}
