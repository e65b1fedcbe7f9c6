package issuer_test

import (
	"strings"
	"testing"

	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/issuer"
)

// TestTraceInTheAudit: an event and its line in the log name the trace that the request says it belongs to; what is no
// traceparent leaves none.
func TestTraceInTheAudit(t *testing.T) {
	const trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	ti := start(t, newBus(), func(_ *issuer.Config, p *issuer.Parts) { p.Trail = new(bustest.AuditTrail) })
	refused := func(parent string) issuer.AuditEvent {
		t.Helper()
		before := len(events(t, ti, "event=login+refused&limit=1000"))
		ask(ti.PublicHandler(), "POST", "/api/token/", `{"username":"alice","password":"wrong"}`, "Traceparent", parent)
		awaitEvent(t, ti, "login refused")
		for {
			if all := events(t, ti, "event=login+refused&limit=1000"); len(all) > before {
				return all[len(all)-1]
			}
		}
	}
	if e := refused("00-" + trace + "-" + span + "-01"); e.TraceID != trace || e.SpanID != span {
		t.Errorf("the event: got %q and %q, want %q and %q", e.TraceID, e.SpanID, trace, span)
	}
	if want := "trace_id=" + trace + " span_id=" + span; !strings.Contains(ti.logged.String(), want) {
		t.Errorf("the log has no %q", want)
	}
	if e := refused("00-" + strings.ToUpper(trace) + "-" + span + "-01"); e.TraceID != "" || e.SpanID != "" {
		t.Errorf("of no traceparent: got %q and %q", e.TraceID, e.SpanID)
	}
}
