package issuer_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/issuer"
)

const trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

// TestTraceInTheAudit: an event and its line in the log name the trace that the request says it belongs to; what is no
// traceparent leaves none.
func TestTraceInTheAudit(t *testing.T) {
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

// TestTraceInTheLog: what befalls a request is found in the log by its trace.
func TestTraceInTheLog(t *testing.T) {
	const parent = "00-" + trace + "-" + span + "-01"
	away := errors.New("away")
	told := func(ti *testIssuer, line string) {
		t.Helper()
		for said := range strings.SplitSeq(ti.logged.String(), "\n") {
			if strings.Contains(said, line) {
				if !strings.Contains(said, "trace_id="+trace+" span_id="+span) {
					t.Errorf("the log has no trace in %q", said)
				}
				return
			}
		}
		t.Errorf("the log does not say %q", line)
	}

	d := newDirectory()
	ti := elsewhere(t, d)
	as := func(name string) string { return `{"username":"` + name + `","password":"` + djangoPassword + `"}` }
	d.set("unknown", func(a *issuer.Account) { a.ID, a.Username, a.PasswordHash = "7", "unknown", "rot13$x" })
	ask(ti.PublicHandler(), "POST", "/api/token/", as("unknown"), "Traceparent", parent)
	told(ti, "cannot log in before there is another password: sub=7")
	d.set("odd", func(a *issuer.Account) { *a = d.users["anna"]; a.ID, a.Username, a.Scope = "6", "odd", `a"b` })
	ask(ti.PublicHandler(), "POST", "/api/token/", as("odd"), "Traceparent", parent)
	told(ti, "refusing a login: sub=6")
	d.fail(&issuer.RecordError{Problem: "two rows"})
	ask(ti.PublicHandler(), "POST", "/api/token/", as("anna"), "Traceparent", parent)
	told(ti, "refusing a login: error=")
	d.fail(away)
	j := newJar(ti.PublicHandler())
	form := j.form(t, "/session/login")
	form.Set("username", "anna")
	form.Set("password", djangoPassword)
	j.send("POST", "/session/login", pageForm, form.Encode(), "Traceparent", parent)
	told(ti, `could not answer a request: route="POST /session/login"`)

	b, trail := newBus(), new(bustest.AuditTrail)
	ti = start(t, b, func(c *issuer.Config, p *issuer.Parts) {
		c.UpdateLastLogin, c.APITokenAuth, p.Trail = true, true, trail
	})
	const alice = `{"username":"alice","password":"wonderland"}`
	b.users.Fail(bustest.Failure{Err: away})
	ask(ti.PublicHandler(), "POST", "/api/token/", alice, "Traceparent", parent)
	told(ti, "could not note a login")
	j = newJar(ti.PublicHandler())
	j.login(t)
	b.log.Fail(bustest.Failure{Err: away})
	j.send("POST", "/session/login", "application/json", alice, "Traceparent", parent)
	told(ti, "could not end the session that a login replaced")
	for range 10 {
		ask(ti.PublicHandler(), "POST", "/api-token-auth/", alice)
	}
	b.credentials.Fail(bustest.Failure{}, bustest.Failure{Err: away}, bustest.Failure{Err: away}, bustest.Failure{Err: away})
	ask(ti.PublicHandler(), "POST", "/api-token-auth/", alice, "Traceparent", parent)
	told(ti, "could not end a user's oldest login tokens")
	trail.Fail(away)
	ask(ti.LocalAdminHandler(), "POST", "/admin/v1/revocations", `{"jti":"x"}`, "Traceparent", parent)
	told(ti, "an administrator's call failed")
}
