package agent_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/keyring"
)

// TestSlowClients keeps connections open without sending what was promised: the server ends each
// by its own time limits, on a clock that runs as fast as it can.
func TestSlowClients(t *testing.T) {
	newWorld(t).listen("mem").do("GET", "/healthz", "") // fasthttp's clock for Date starts here, outside the bubble
	for _, c := range []struct {
		name, sends string
		closes      time.Duration
		answers     string
	}{
		{"nothing", "", 10 * time.Second, "HTTP/1.1 408 "},
		{"half a header", "POST /v1/verify HTTP/1.1\r\nHost: a\r\nAuthor", 10 * time.Second, "HTTP/1.1 408 "},
		{"half a body", "POST /v1/verify HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n{\"token\":", 10 * time.Second, "HTTP/1.1 408 "},
		{"half of a chunk", "POST /v1/verify HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{", 10 * time.Second, "HTTP/1.1 408 "},
		{"idle after an answer", "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 2 * time.Minute, "HTTP/1.1 200 "},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := newWorld(t).agent.Server()
				client, server := net.Pipe()
				served := make(chan error, 1)
				go func() { served <- srv.ServeConn(server) }()
				start := time.Now()
				go func() { _, _ = io.WriteString(client, c.sends) }()
				answer, _ := io.ReadAll(client)
				if took := time.Since(start).Round(time.Second); took != c.closes {
					t.Errorf("closed after %s, want %s", took, c.closes)
				}
				if !strings.HasPrefix(string(answer), c.answers) {
					t.Errorf("got %.100q, want %s", answer, c.answers)
				}
				<-served
				_ = client.Close()
			})
		})
	}
}

// TestConnectionLimit opens one connection more than are allowed: it is told so at once, and the
// others go on.
func TestConnectionLimit(t *testing.T) {
	w := newWorld(t, func(c *agent.Config) { c.MaxConnections = 2 })
	h := w.listen("unix")
	ask := func(c net.Conn) int {
		if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode
	}
	var open []net.Conn
	for i, want := range []int{200, 200, 503} {
		c, err := h.dial()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
		if i == 2 { // it is refused unasked
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil || resp.StatusCode != want {
				t.Errorf("connection %d: got %v (%v), want %d", i, resp, err, want)
			}
			continue
		}
		if got := ask(c); got != want {
			t.Errorf("connection %d: got %d, want %d", i, got, want)
		}
	}
	if got := ask(open[0]); got != 200 {
		t.Errorf("the first connection afterwards: got %d, want 200", got)
	}
}

// TestPipelined sends several requests at once on one connection: each is answered for itself,
// in order, out of buffers that they share.
func TestPipelined(t *testing.T) {
	w := newWorld(t)
	good := w.token()
	bad := good[:len(good)-4] + "AAAA"
	var requests strings.Builder
	for i, token := range []string{good, bad, good, bad, good} {
		end := ""
		if i == 4 {
			end = "Connection: close\r\n"
		}
		body := `{"token":"` + token + `"}`
		fmt.Fprintf(&requests, "POST /v1/verify HTTP/1.1\r\nHost: a\r\n%s\r\n%sContent-Length: %d\r\n\r\n%s", asJSON, end, len(body), body)
	}
	r := bufio.NewReader(strings.NewReader(w.listen("tcp").raw(requests.String())))
	for i, want := range []int{200, 401, 200, 401, 200} {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		if resp.StatusCode != want {
			t.Errorf("answer %d: got %d, want %d", i, resp.StatusCode, want)
		}
	}
}

// TestTokensNeverLogged sends tokens wherever a client may put one, at the most talkative level.
func TestTokensNeverLogged(t *testing.T) {
	w := newWorld(t)
	h := w.listen("tcp")
	token := w.token(func(c *keyring.Claims) { c.Subject = "the-subject" })
	const host = "Host: a\r\nConnection: close\r\n"
	for _, request := range []string{
		"GET /v1/verify HTTP/1.1\r\n" + host + "Authorization: Bearer " + token + "\r\n\r\n",
		"GET /v1/verify HTTP/1.1\r\n" + host + "Authorization: Bearer " + token + "x\r\n\r\n",
		"GET /v1/verify HTTP/1.1\r\n" + host + "Authorization: Bearer \x02" + token + "\r\n\r\n", // invalid value
		"GET /v1/verify HTTP/1.1\r\n" + host + token + ": a\r\n\r\n",
		"GET /v1/verify HTTP/1.1\r\n" + host + token + "\r\n\r\n",         // a field without a colon
		"GET " + token + " HTTP/1.1\r\n" + host + "\r\n",                  // as the target
		"GET /" + token + " HTTP/1.1\r\n" + host + "\r\n",                 // as the path
		"GET /v1/verify?token=" + token + " HTTP/9.9\r\n" + host + "\r\n", // in the query, and a version that is none
		token + " / HTTP/1.1\r\n" + host + "\r\n",                         // as the method
		token + "\r\n\r\n",          // as the whole request line
		"GET " + token + "\r\n\r\n", // with a method before it
		"POST /v1/verify HTTP/1.1\r\n" + host + "Content-Length: " + token + "\r\n\r\n",
		"POST /v1/verify HTTP/1.1\r\n" + host + "Transfer-Encoding: " + token + "\r\n\r\n",
		"POST /v1/verify HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n" + token + "\r\n",
		"POST /v1/verify HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTrailer: X\r\n\r\n0\r\nAuthorization: " + token + "\r\n\r\n",
		"POST /v1/verify HTTP/1.1\r\n" + host + asJSON + "\r\nContent-Length: 9999\r\n\r\n{\"token\":\"" + token, // cut off
		"POST /v1/verify HTTP/1.1\r\n" + host + asJSON + fmt.Sprintf("\r\nContent-Length: %d\r\n\r\n{\"%s\":1}", len(token)+6, token),
	} {
		c, err := h.dial()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, request)
		if half, ok := c.(*net.TCPConn); ok {
			_ = half.CloseWrite()
		}
		_, _ = io.ReadAll(c)
		_ = c.Close()
	}
	h.verify(token)
	h.verify(token[:len(token)-4])
	log := w.log.String()
	if !strings.Contains(log, "token denied") || !strings.Contains(log, "serving a connection") {
		t.Fatalf("log: got %s, want that it tells of refusals and of broken connections", log)
	}
	for _, part := range append(strings.Split(token, "."), "the-subject") {
		if strings.Contains(log, part) || strings.Contains(log, part[:min(len(part), 24)]) {
			t.Errorf("the log holds a part of a token: %s", log)
		}
	}
}

// series are the names and labels of all the agent's metrics.
func series(t *testing.T, h *host) []string {
	t.Helper()
	var names []string
	for line := range strings.Lines(h.do("GET", "/metrics", "").body) {
		if !strings.HasPrefix(line, "#") {
			names = append(names, line[:strings.LastIndexByte(line, ' ')])
		}
	}
	return names
}

// TestMetricsAreAClosedSet lets clients try everything, and wants not one more series afterwards.
func TestMetricsAreAClosedSet(t *testing.T) {
	w := newWorld(t)
	h := w.listen("unix")
	before := series(t, h)
	for _, reason := range append([]keyring.Reason{"ok", agent.InsufficientScope, agent.Starting, agent.Stale}, keyring.Reasons...) {
		if !slices.Contains(before, fmt.Sprintf("sidekey_agent_verdicts_total{reason=%q}", reason)) {
			t.Errorf("verdicts: no series for %q before the first request: %q", reason, before)
		}
	}
	for _, r := range refusals() {
		h.verify(r.token(w))
	}
	h.verify(w.token())
	h.do("BREW", "/v1/verify", "")
	h.do("GET", "/secret/path?x=y", "")
	h.do("POST", "/v1/verify", `{"token":"a","scope":"x y"}`, asJSON)
	h.raw("nonsense\r\n\r\n")
	if after := series(t, h); !slices.Equal(before, after) {
		t.Errorf("series: got %q, want those of before: %q", after, before)
	}
	got := h.do("GET", "/metrics", "").body
	for _, want := range []string{
		`sidekey_agent_verdicts_total{reason="ok"} 1`, `sidekey_agent_verdicts_total{reason="key_revoked"} 1`,
		`sidekey_agent_http_requests_total{class="4xx",route="other"} 1`, `sidekey_agent_info{version="v0.test"} 1`,
		`sidekey_agent_ready 1`, `sidekey_agent_applied_seq 4`,
	} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("metrics: want %s in %s", want, got)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	rep := newStartingWorld(t).rep
	for _, c := range []struct {
		name, want string
		cfg        agent.Config
		rep        agent.Replica
	}{
		{"realm", "realm", agent.Config{Realm: `a"b`}, rep},
		{"audience", "audience is empty", agent.Config{Audiences: []string{"a", " "}}, rep},
		{"leeway", "leeway -1ns is negative", agent.Config{Leeway: -1}, rep},
		{"cache", "cache size -1", agent.Config{CacheSize: -1}, rep},
		{"connections", "connection limit -1", agent.Config{MaxConnections: -1}, rep},
		{"no replica", "needs a replica", agent.Config{}, nil},
	} {
		_, err := agent.New(c.cfg, agent.Parts{Replica: c.rep, Leases: always{}})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q in it", c.name, err, c.want)
		}
	}
}

// TestClose gives the registry to a second agent once the first has left it, and not before.
func TestClose(t *testing.T) {
	rep, registry := newStartingWorld(t).rep, prometheus.NewRegistry()
	parts := agent.Parts{Replica: rep, Leases: always{}, Registry: registry}
	first, err := agent.New(agent.Config{}, parts)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := agent.New(agent.Config{}, parts); err == nil {
		t.Error("a second agent on one registry: got no error")
	}
	for range 2 {
		if err := first.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	second, err := agent.New(agent.Config{}, parts)
	if err != nil {
		t.Fatalf("after Close: %v", err)
	}
	_ = second.Close()
}
