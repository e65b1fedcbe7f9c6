package agent_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sidekey/sidekey/agent"
)

const (
	traceID  = "4bf92f3577b34da6a3ce929d0e0e4736"
	spanID   = "00f067aa0ba902b7"
	parent   = "traceparent: 00-" + traceID + "-" + spanID + "-01"
	asLogged = "trace_id=" + traceID + " span_id=" + spanID
)

// TestTraceOfARequest: what the agent logs of a request names the trace that the request says it belongs to, and nothing
// else gets into the log that way.
func TestTraceOfARequest(t *testing.T) {
	w := newWorld(t)
	h := w.listen("unix")
	h.do("GET", "/v1/auth/forward", "", forwarded("GET", "Authorization: Bearer x", parent)...)
	if want := "route=/v1/auth/forward status=401 " + asLogged; !strings.Contains(w.log.String(), want) {
		t.Errorf("the log has no %q:\n%s", want, w.log)
	}
	h.do("GET", "/v1/verify", "", "Authorization: Bearer "+w.token(), parent)
	if want := "route=/v1/verify status=200 " + asLogged; !strings.Contains(w.log.String(), want) {
		t.Errorf("the log has no %q:\n%s", want, w.log)
	}
	before := strings.Count(w.log.String(), "trace_id")
	for _, bad := range []string{
		"traceparent: 00-" + strings.ToUpper(traceID) + "-" + spanID + "-01",
		"traceparent: 00-" + traceID + "-" + spanID + "-01 level=error",
		"traceparent: " + strings.Repeat("0", 4000),
	} {
		h.do("GET", "/v1/verify", "", "Authorization: Bearer "+w.token(), bad)
	}
	h.do("GET", "/v1/verify", "", "Authorization: Bearer "+w.token(), parent, parent)
	if got := strings.Count(w.log.String(), "trace_id"); got != before {
		t.Errorf("%d lines have a trace that is none:\n%s", got-before, w.log)
	}
}

// TestTracePassedOn: a webhook gets the field as it came, if it is one, and the log line of its failure names it.
func TestTracePassedOn(t *testing.T) {
	heard := make(chan []string, 2)
	service := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		heard <- r.Header.Values("Traceparent")
		rw.WriteHeader(500)
		_, _ = io.WriteString(rw, "no")
	}))
	defer service.Close()
	w := newWorld(t, func(c *agent.Config) {
		c.Authenticators = []string{"webhook"}
		c.Webhook = agent.WebhookConfig{URL: service.URL, Headers: []string{"X-Key"}}
	})
	h := w.listen("unix")
	h.do("GET", "/v1/auth/forward", "", forwarded("GET", "X-Key: a", parent)...)
	if got := <-heard; len(got) != 1 || "traceparent: "+got[0] != parent {
		t.Errorf("the webhook got %q, want %q", got, parent)
	}
	if !strings.Contains(w.log.String(), "cannot tell") || !strings.Contains(w.log.String(), asLogged) {
		t.Errorf("the log does not name the trace:\n%s", w.log)
	}
	h.do("GET", "/v1/auth/forward", "", forwarded("GET", "X-Key: a", "traceparent: x")...)
	if got := <-heard; len(got) != 0 {
		t.Errorf("the webhook got %q of a field that is none", got)
	}
}
