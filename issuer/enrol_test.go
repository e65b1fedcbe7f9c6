package issuer_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/issuer"
)

// enrolment is one of no bus.
type enrolment struct{ members map[string]bus.Member }

func (e *enrolment) Invite(_ context.Context, role bus.Role, name string, life time.Duration, _ ...string) (string, error) {
	if m, ok := e.members[name]; ok && !m.Removed() {
		return "", bus.ErrExists
	}
	return "token for " + string(role) + " " + name + " " + life.String(), nil
}

func (e *enrolment) Members(context.Context, bus.Role) (all []bus.Member, err error) {
	for _, m := range e.members {
		all = append(all, m)
	}
	return all, nil
}

func (e *enrolment) Remove(_ context.Context, _ bus.Role, name string) error {
	if _, ok := e.members[name]; !ok {
		return bus.ErrNotFound
	}
	delete(e.members, name)
	return nil
}

// TestEnrolmentAPI is the table of calls about agents and issuers.
func TestEnrolmentAPI(t *testing.T) {
	e := &enrolment{members: map[string]bus.Member{"there": {Name: "there", Joined: 1}, "gone": {Name: "gone", Joined: 1, RemovedAt: 2}}}
	ti := newIssuer(t, newBus(), func(_ *issuer.Config, p *issuer.Parts) { p.Enrolment = e })
	admin := ti.LocalAdminHandler()
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"POST", "/admin/v1/agents", `{"name":"new"}`, 201, `"token":"token for agent new 0s"`},
		{"POST", "/admin/v1/agents", `{"name":"new","expires":"5m"}`, 201, `"token for agent new 5m0s"`},
		{"POST", "/admin/v1/agents", `{"name":"gone"}`, 201, `"token for agent gone`},
		{"POST", "/admin/v1/agents", `{"name":"there"}`, 409, `remove it first`},
		{"POST", "/admin/v1/agents", `{"name":""}`, 400, `"name\" must be`},
		{"POST", "/admin/v1/agents", `{"name":"a b"}`, 400, `must be 1 to 128 bytes`},
		{"POST", "/admin/v1/agents", `{"name":"x","expires":"200h"}`, 400, `must be a duration from 1s to 168h`},
		{"POST", "/admin/v1/agents", `{"name":"x","expires":"-1s"}`, 400, `must be a duration`},
		{"POST", "/admin/v1/agents", `{"nmae":"x"}`, 400, ``},
		{"POST", "/admin/v1/issuers", `{"name":"second"}`, 201, `"token for issuer second`},
		{"GET", "/admin/v1/issuers", ``, 200, `{"name":"gone","joined":1,"removed":2}`},
		{"GET", "/admin/v1/agents", ``, 200, `{"name":"gone","joined":1,"removed":2}`},
		{"DELETE", "/admin/v1/issuers/there", ``, 204, ``},
		{"DELETE", "/admin/v1/issuers/there", ``, 404, `not found`},
		{"PUT", "/admin/v1/issuers", ``, 405, `takes GET, POST`},
	} {
		r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		admin.ServeHTTP(w, r)
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.want) || w.Body.Len() > 0 && !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s %s %s: got %d %s, want %d with %s", c.method, c.path, c.body, w.Code, w.Body, c.status, c.want)
		}
	}
	none := newIssuer(t, newBus())
	if _, err := none.Invite(t.Context(), bus.RoleAgent, "x", 0); !errors.Is(err, issuer.ErrUnavailable) {
		t.Errorf("Invite where nobody can be let in: got %v, want ErrUnavailable", err)
	}
	w := httptest.NewRecorder()
	none.LocalAdminHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/admin/v1/issuers", nil))
	if w.Code != http.StatusOK || strings.TrimSpace(w.Body.String()) != `{"issuers":[]}` {
		t.Errorf("GET issuers of none: got %d %s", w.Code, w.Body)
	}
}

// TestUnsound: an issuer whose state was rolled back is not ready and makes no token.
func TestUnsound(t *testing.T) {
	var bad error
	ti := newIssuer(t, newBus(), func(_ *issuer.Config, p *issuer.Parts) { p.Sound = func() error { return bad } })
	ti.steps(t)
	addAlice(t, ti)
	login(t, ti)
	bad = bus.ErrRollback
	if err := ti.Ready(); !errors.Is(err, bus.ErrRollback) {
		t.Errorf("Ready: got %v, want ErrRollback", err)
	}
	if _, err := ti.Login(t.Context(), issuer.Credentials{Username: "alice", Password: "wonderland"}); !errors.Is(err, issuer.ErrUnavailable) {
		t.Errorf("Login: got %v, want ErrUnavailable", err)
	}
}
