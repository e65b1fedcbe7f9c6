package agent_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// BenchmarkAuthAPIKey checks 10,000 API keys in turn through /v1/auth/forward. The floor is the same face and the same
// request with 10,000 cached access tokens: x-floor 1.25 is 0.8 times their rate.
func BenchmarkAuthAPIKey(b *testing.B) {
	const hot = 10_000
	w := newWorld(b)
	w.apply(w.fact(keyringtest.Ed(b), keyring.Active))
	tokens, keys := make([]string, hot), make([]string, hot)
	for i := range tokens {
		tokens[i] = "Bearer " + w.tokenOf(keyringtest.Ed(b), keyring.AccessToken, func(c *keyring.Claims) {
			c.Extra = map[string]any{"pad": strings.Repeat("a", 192)} // as long as with RS256
		})
		keys[i] = fmt.Sprintf("sk_%040d", i)
		w.credential(bus.APIKey, keys[i], func(c *bus.Credential) { c.ID = fmt.Sprint("k", i) })
	}
	var ctx fasthttp.RequestCtx
	ctx.Init(&fasthttp.Request{}, nil, nil)
	ctx.Request.SetRequestURI("/v1/auth/forward")
	for _, line := range forwarded("GET", "User-Agent: bench", "Accept: */*") {
		name, value, _ := strings.Cut(line, ": ")
		ctx.Request.Header.Set(name, value)
	}
	handler := w.agent.Handler()
	run := func(field string, values []string) func(int) time.Duration {
		return func(n int) time.Duration {
			ctx.Request.Header.Del("Authorization")
			ctx.Request.Header.Del("X-API-Key")
			return timed(n, func(i int) {
				ctx.Request.Header.Set(field, values[i%hot])
				ctx.Response.Reset()
				handler(&ctx)
				if got := ctx.Response.StatusCode(); got != 200 {
					b.Fatalf("got %d %s", got, ctx.Response.Body())
				}
			})
		}
	}
	run("Authorization", tokens)(hot) // proven
	b.ReportAllocs()
	b.ResetTimer()
	compare(b, b.N, run("Authorization", tokens), run("X-API-Key", keys))
}

// BenchmarkHTTPAuthAPIKey is the same over a unix socket, one token and one key, by the server's CPU time.
func BenchmarkHTTPAuthAPIKey(b *testing.B) {
	w := newWorld(b)
	w.credential(bus.APIKey, "key0-good-and-long-enough-to-be-one")
	address := listenAt(b, w.agent.Server(), "unix")
	load := func(credential string) func(int) time.Duration {
		request := "GET /v1/auth/forward HTTP/1.1\r\nHost: a\r\n" + strings.Join(forwarded("GET", "User-Agent: bench", credential), "\r\n") + "\r\n\r\n"
		return func(n int) time.Duration {
			return served(b, "unix", address, request, n)
		}
	}
	compare(b, max(b.N, 20_000), load("Authorization: Bearer "+w.token()), load("X-API-Key: key0-good-and-long-enough-to-be-one"))
}
