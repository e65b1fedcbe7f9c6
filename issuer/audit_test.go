package issuer_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/issuer"
)

// withTrail gives an issuer a trail in memory, and a file.
func withTrail(trail *bustest.AuditTrail, file *syncBuffer) setup {
	return func(c *issuer.Config, p *issuer.Parts) {
		c.Name, p.Trail = "auth-1", trail
		if file != nil {
			p.AuditFile = file
		}
	}
}

// events reads the audit through the admin API, which waits until what was noted is written.
func events(t testing.TB, ti *testIssuer, query string) (all []issuer.AuditEvent) {
	t.Helper()
	w := ask(ti.LocalAdminHandler(), "GET", "/admin/v1/audit?"+query, "")
	var answer struct {
		Events []issuer.AuditEvent `json:"events"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != 200 {
		t.Fatalf("GET /admin/v1/audit?%s: got %d %s", query, w.Code, w.Body)
	}
	return answer.Events
}

// audited reads until the event is there: what nobody waits for is written a moment later.
func awaitEvent(t testing.TB, ti *testIssuer, what string) issuer.AuditEvent {
	t.Helper()
	for begun := time.Now(); time.Since(begun) < 10*time.Second; {
		if all := events(t, ti, "limit=1000&event="+strings.ReplaceAll(what, " ", "+")); len(all) > 0 {
			return all[len(all)-1]
		}
	}
	t.Fatalf("the audit has no event %q", what)
	return issuer.AuditEvent{}
}

func TestAuditTellsWhoDidWhat(t *testing.T) {
	trail, file := new(bustest.AuditTrail), new(syncBuffer)
	ti := start(t, newBus(), withTrail(trail, file))
	tokens := login(t, ti)
	e := awaitEvent(t, ti, "session began")
	if e.Outcome != issuer.Done || e.Issuer != "auth-1" || e.Details["sid"] != tokens.SessionID {
		t.Errorf("the event of a login: got %+v", e)
	}
	if !strings.Contains(file.String(), `"event":"session began"`) {
		t.Errorf("the file lacks the event: %s", file)
	}
	const typed = "my-password-in-the-wrong-field"
	for range 2 {
		ask(ti.PublicHandler(), "POST", "/api/token/", `{"username":"`+typed+`","password":"x"}`, "Content-Type", "application/json", "User-Agent", "probe/1")
	}
	awaitEvent(t, ti, "login refused")
	refused := events(t, ti, "event=login+refused")
	if len(refused) != 2 || refused[0].Outcome != issuer.Refused || refused[0].Address != "192.0.2.1" || refused[0].UserAgent != "probe/1" {
		t.Fatalf("the events of two refused logins: got %+v", refused)
	}
	if h := refused[0].Details["name_hash"]; h == nil || h != refused[1].Details["name_hash"] {
		t.Errorf("the name's hash: got %v and %v, want one", h, refused[1].Details["name_hash"])
	}
	if strings.Contains(file.String(), typed) || strings.Contains(ti.logged.String(), typed) {
		t.Error("what was typed as a name is written")
	}
}

// TestAuditOfAnAdminsCall: an attempt and an end, under one id, with who, what, from where, and how it ended.
func TestAuditOfAnAdminsCall(t *testing.T) {
	ti := start(t, newBus(), withTrail(new(bustest.AuditTrail), nil))
	admin := ti.AdminHandler(only("t0ken"))
	auth := []string{"Authorization", "Bearer t0ken", "Content-Type", "application/json"}
	ask(admin, "POST", "/admin/v1/users", `{"username":"bob","password":"looking-glass"}`, auth...)
	ask(admin, "DELETE", "/admin/v1/users/nobody", "", auth...)
	ask(admin, "GET", "/admin/v1/users", "", auth...)
	ask(admin, "GET", "/admin/v1/users", "") // without the token
	var got []string
	for _, e := range events(t, ti, "event=admin+call") {
		got = append(got, fmt.Sprint(e.Outcome, " ", e.Actor, " ", e.Address, " ", e.Details["method"], " ", e.Details["path"], " ", e.Details["status"]))
	}
	want := []string{
		"attempt admin token 192.0.2.1 POST /admin/v1/users <nil>", "done admin token 192.0.2.1 POST /admin/v1/users 201",
		"attempt admin token 192.0.2.1 DELETE /admin/v1/users/nobody <nil>", "refused admin token 192.0.2.1 DELETE /admin/v1/users/nobody 404",
		"done admin token 192.0.2.1 GET /admin/v1/users 200",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the events of admin calls: got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	calls := events(t, ti, "event=admin+call")
	if calls[0].Details["call"] == nil || calls[0].Details["call"] != calls[1].Details["call"] || calls[0].Details["call"] == calls[2].Details["call"] {
		t.Errorf("the calls' ids: got %v, %v, %v", calls[0].Details["call"], calls[1].Details["call"], calls[2].Details["call"])
	}
	if e := awaitEvent(t, ti, "admin request without the admin token"); e.Outcome != issuer.Refused || e.Details["path"] != "/admin/v1/users" {
		t.Errorf("the event of a call without the token: got %+v", e)
	}
	if e := awaitEvent(t, ti, "user added"); e.Details["username"] != "alice" && e.Actor != "admin token" {
		t.Errorf("the event of a user added: got %+v", e)
	}
}

// TestNoAuditNoAdmin: without an audit nothing is done and nothing shown to an administrator, and users are served.
func TestNoAuditNoAdmin(t *testing.T) {
	trail := new(bustest.AuditTrail)
	ti := start(t, newBus(), withTrail(trail, nil))
	trail.Fail(errors.New("the bus is away"))
	admin := ti.LocalAdminHandler()
	w := ask(admin, "POST", "/admin/v1/users", `{"username":"bob","password":"looking-glass"}`, "Content-Type", "application/json")
	if w.Code != 503 || !strings.Contains(w.Body.String(), "nothing was done: the audit cannot be written") {
		t.Errorf("adding a user: got %d %s, want 503", w.Code, w.Body)
	}
	if _, err := ti.User(t.Context(), "bob"); !errors.Is(err, issuer.ErrNotFound) {
		t.Errorf("bob: got %v, want that he was not added", err)
	}
	if w := ask(admin, "GET", "/admin/v1/users", ""); w.Code != 503 || strings.Contains(w.Body.String(), "alice") {
		t.Errorf("listing users: got %d %s, want 503 and no user", w.Code, w.Body)
	}
	tokens := login(t, ti)
	refresh(t, ti, tokens.Refresh)
	trail.Fail(nil)
	if e := awaitEvent(t, ti, "session refreshed"); e.Details["sid"] != tokens.SessionID {
		t.Errorf("the event of a refresh while the bus was away: got %+v", e)
	}
}

// failAfter lets so many writes through.
type failAfter struct {
	*bustest.AuditTrail
	after int
}

func (f *failAfter) Write(ctx context.Context, content []byte) (string, error) {
	if f.after--; f.after < 0 {
		return "", errors.New("the bus is away")
	}
	return f.AuditTrail.Write(ctx, content)
}

// TestAnswerWithheld: a call that was carried out, but whose end cannot be written, does not answer what it answered.
func TestAnswerWithheld(t *testing.T) {
	trail := &failAfter{AuditTrail: new(bustest.AuditTrail), after: 1 << 30}
	ti := start(t, newBus(), func(_ *issuer.Config, p *issuer.Parts) { p.Trail = trail })
	if err := ti.Close(); err != nil { // what was noted until now is written
		t.Fatal(err)
	}
	trail.after = 1
	w := ask(ti.LocalAdminHandler(), "POST", "/admin/v1/revocations", `{"jti":"j1"}`, "Content-Type", "application/json")
	if w.Code != 503 || !strings.Contains(w.Body.String(), "the answer is withheld") || strings.Contains(w.Body.String(), `"seq"`) {
		t.Errorf("revoking: got %d %s, want 503 without the receipt", w.Code, w.Body)
	}
}

func TestAuditQueries(t *testing.T) {
	ti := start(t, newBus(), withTrail(new(bustest.AuditTrail), nil))
	for _, c := range []struct{ query, want string }{
		{"since=yesterday", `\"since\" must be a time (2026-01-31T08:00:00Z), a NumericDate or a duration such as 1h`},
		{"limit=0", `\"limit\" must be 1 to 1000`},
		{"limit=1001", `\"limit\" must be 1 to 1000`},
		{"follow=yes", `\"follow\" must be 1 or 0`},
		{"until=1h", `\"until\" is no parameter of the audit`},
	} {
		if w := ask(ti.LocalAdminHandler(), "GET", "/admin/v1/audit?"+c.query, ""); w.Code != 400 || !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("?%s: got %d %s, want 400 with %s", c.query, w.Code, w.Body, c.want)
		}
	}
	login(t, ti)
	awaitEvent(t, ti, "session began")
	if got := events(t, ti, "since="+strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10)); len(got) != 0 {
		t.Errorf("since the future: got %v, want nothing", got)
	}
	if got := events(t, ti, "limit=1"); len(got) != 1 || got[0].Event != "admin call" {
		t.Errorf("the newest one: got %v", got)
	}
	if got := events(t, ti, "sub=nobody"); len(got) != 0 {
		t.Errorf("of a user that is none: got %v, want nothing", got)
	}
	without := start(t, newBus())
	if w := ask(without.LocalAdminHandler(), "GET", "/admin/v1/audit", ""); w.Code != 404 || !strings.Contains(w.Body.String(), "this issuer keeps none") {
		t.Errorf("where there is no trail: got %d %s, want 404", w.Code, w.Body)
	}
}

// TestAuditFollow: a stream of lines over HTTP, which ends with the client.
func TestAuditFollow(t *testing.T) {
	ti := start(t, newBus(), withTrail(new(bustest.AuditTrail), nil))
	srv := httptest.NewServer(ti.LocalAdminHandler())
	defer srv.Close()
	client := srv.Client()
	client.Timeout = 30 * time.Second
	resp, err := client.Get(srv.URL + "/admin/v1/audit?follow=1&event=session+began")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	tokens := login(t, ti)
	dec := json.NewDecoder(resp.Body)
	var e issuer.AuditEvent
	if err := dec.Decode(&e); err != nil || e.Event != "session began" || e.Details["sid"] != tokens.SessionID {
		t.Errorf("the first line: got %+v, %v", e, err)
	}
	if kind := resp.Header.Get("Content-Type"); kind != "application/jsonl" {
		t.Errorf("Content-Type: got %q", kind)
	}
}

// TestRefusalsDoNotFloodTheAudit: whoever can be refused at will does not push out what others did.
func TestRefusalsDoNotFloodTheAudit(t *testing.T) {
	var file syncBuffer
	ti := start(t, newBus(), withTrail(new(bustest.AuditTrail), &file))
	h := ti.AdminHandler(only("t0ken"))
	const calls = 3000
	for range calls {
		ask(h, "GET", "/admin/v1/users", "")
	}
	if err := ti.Close(); err != nil {
		t.Fatal(err)
	}
	written := strings.Count(file.String(), "admin request without the admin token")
	m := regexp.MustCompile(`sidekey_audit_lost_total\{reason="flood"\} (\d+)`).FindStringSubmatch(ask(ti.PublicHandler(), "GET", "/metrics", "").Body.String())
	lost, _ := strconv.Atoi(m[1])
	if written < 1000 || written > 2000 || written+lost != calls {
		t.Errorf("of %d refusals: %d written and %d counted, want 1000 and a few written, and all told", calls, written, lost)
	}
}

// TestEventsAreDocumented holds docs/audit.md against the events that this package writes.
func TestEventsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	table := map[string]bool{}
	for _, cell := range regexp.MustCompile("(?m)^\\| (`[^|]+`) \\|").FindAllSubmatch(page, -1) {
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllSubmatch(cell[1], -1) {
			table[string(m[1])] = true
		}
	}
	written := writtenEvents(t)
	for what := range written {
		if !table[what] {
			t.Errorf("docs/audit.md lacks the event `%s` of %s: add its row", what, written[what])
		}
	}
	for what := range table {
		if written[what] == "" {
			t.Errorf("docs/audit.md has the event `%s`, which nothing writes", what)
		}
	}
}

// writtenEvents gives the events that the package's files name, and where.
func writtenEvents(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	written := map[string]string{"admin call": "adminaudit.go", "audit records are gone": "audit.go"}
	set := token.NewFileSet()
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(set, path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			fn, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			at := map[string]int{"event": 1, "refusal": 1, "issue": 3}[fn.Sel.Name] // which argument names the event
			if at == 0 || len(call.Args) <= at {
				return true
			}
			lit, ok := call.Args[at].(*ast.BasicLit)
			if named, isName := call.Args[at].(*ast.Ident); isName && named.Name == "what" {
				return true // handed on by issue, whose callers name it
			}
			if !ok {
				t.Errorf("%s: an event's name must be a literal, so that it can be listed", set.Position(call.Pos()))
				return true
			}
			what, _ := strconv.Unquote(lit.Value)
			written[what] = set.Position(call.Pos()).String()
			return true
		})
	}
	if len(written) < 10 {
		t.Fatalf("found %d events, want all that are written", len(written))
	}
	return written
}
