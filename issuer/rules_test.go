package issuer_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/issuer"
)

// withRules lets an issuer hand out rules: a text is good unless it says that it is not.
func withRules(_ *issuer.Config, p *issuer.Parts) {
	p.CheckRules = func(name, text string) error {
		if strings.Contains(text, "faulty") {
			return fmt.Errorf("%s:1: it is faulty", name)
		}
		return nil
	}
}

func TestAdminRules(t *testing.T) {
	b := newBus()
	ti := newIssuer(t, b, withRules)
	h := ti.LocalAdminHandler()
	b.fleet.Join("web-1", nil)
	b.fleet.Says("web-1", map[string]any{"rules": map[string]any{"rules": 7, "version": "cafe", "fault": "late", "sets": []map[string]any{{"name": "base", "version": 1, "merged": true}}}})
	b.fleet.Join("web-2", nil)
	b.fleet.Join("web-3", nil)
	b.fleet.Says("web-3", map[string]any{"rules": 7})
	const at = "/admin/v1/rules"
	longest := strings.Repeat(`\u0001`, bus.MaxRulesText)
	for _, tc := range []struct {
		method, path, body string
		status             int
		holds              string
	}{
		{"GET", at, "", 200, `"rules":[]`},
		{"GET", at, "", 200, `{"agent":"web-1","seen":0,"rules":7,"version":"cafe","fault":"late","sets":[{"name":"base","version":1,"merged":true}]},{"agent":"web-2","seen":0,"rules":0,"version":"","sets":[]},{"agent":"web-3","seen":0,"rules":0,"version":"","fault":"its status cannot be read","sets":[]}`},
		{"GET", at + "/base", "", 404, `not found`},
		{"DELETE", at + "/base", "", 404, `not found`},
		{"POST", at, `{"name":"base"}`, 400, `\"text\" must hold rules`},
		{"POST", at, `{"name":"Base","text":"x"}`, 400, `\"name\" must be 1 to 64`},
		{"POST", at, `{"name":"` + strings.Repeat("x", 65) + `","text":"x"}`, 400, `\"name\" must be`},
		{"POST", at, `{"name":"base","text":"faulty"}`, 400, `\"text\" cannot be meant: base:1: it is faulty`},
		{"POST", at, `{"name":"base","text":"x","author":"me"}`, 400, `unknown member`},
		{"POST", at, `{"name":"base","text":"x","replaces":-1}`, 400, `replaces`},
		{"POST", at, `{"name":"base","text":"x","replaces":1}`, 409, `no version of these rules was handed out yet, and this is to replace version 1`},
		{"POST", at, `{"name":"base","text":"x","replaces":1,"force":true}`, 400, `may not both be given`},
		{"POST", at, `{"name":"base","text":"x","wait":"all"}`, 400, `wait`},
		{"POST", at, `{"name":"base","text":"` + longest + `x"}`, 400, `hand it out as several sets`},
		{"POST", at, `{"name":"base","text":"one"}`, 200, `{"name":"base","version":1,`},
		{"POST", at, `{"name":"base","text":"one"}`, 200, `"version":1,`}, // again: nothing changes
		{"POST", at, `{"name":"base","text":"two"}`, 409, `rules \"base\" stand at version 1`},
		{"POST", at, `{"name":"base","text":"two","replaces":2}`, 409, `stand at version 1`},
		{"POST", at, `{"name":"base","text":"two","replaces":1,"wait":"fleet","timeout":"10ms"}`, 202, `"pending":["web-1","web-2","web-3"]`},
		{"GET", at + "/base", "", 200, `"version":2,`},
		{"GET", at + "/base", "", 200, `"text":"two"`},
		{"GET", at, "", 200, `"withdrawn":false,"bytes":3}]`},
		{"POST", at, `{"name":"base","text":"three","force":true}`, 200, `"version":3,`},
		{"POST", at, `{"name":"a","text":"` + longest + `"}`, 200, `"bytes":65536`},
		{"POST", "/admin/v1/users", `{"username":"` + longest + `"}`, 413, `larger than 65536 bytes`},
		{"DELETE", at + "/base?version=2", "", 409, `stand at version 3`},
		{"DELETE", at + "/base?version=two", "", 400, `version`},
		{"DELETE", at + "/base?wait=all", "", 400, `wait`},
		{"DELETE", at + "/base?version=3&wait=fleet&timeout=10ms", "", 202, `"withdrawn":true`},
		{"DELETE", at + "/base", "", 200, `"version":4,`}, // again: nothing changes
		{"GET", at + "/base", "", 200, `"withdrawn":true,"bytes":0}`},
		{"POST", at, `{"name":"base","text":"three"}`, 409, `were withdrawn by version 4`},
		{"POST", at, `{"name":"base","text":"three","replaces":4}`, 200, `"version":5,`},
		{"PUT", at + "/base", "", 405, `GET, DELETE`},
	} {
		w := ask(h, tc.method, tc.path, tc.body)
		if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.holds) {
			t.Errorf("%s %s %.80s: got %d %.300s, want %d with %s", tc.method, tc.path, tc.body, w.Code, w.Body, tc.status, tc.holds)
		}
		if tc.method != "GET" && strings.Contains(w.Body.String(), `"text":"`) {
			t.Errorf("%s %s: the answer repeats the text", tc.method, tc.path)
		}
	}
	if got := ti.replica.Snapshot().Rules.Get("base"); got.Version != 5 || got.Text != "three" {
		t.Errorf("in the log: got %+v, want version 5", got)
	}
	if !strings.Contains(ti.logged.String(), "rules withdrawn: name=base version=4") {
		t.Error("the audit does not say who withdrew the rules")
	}
	if w := ask(newIssuer(t, newBus()).LocalAdminHandler(), "POST", at, `{"name":"base","text":"x"}`); w.Code != 503 {
		t.Errorf("an issuer that cannot check rules: got %d %s, want 503", w.Code, w.Body)
	}
	if w := ask(ti.AdminHandler(only("t0ken")), "GET", at, ""); w.Code != 401 {
		t.Errorf("without the admin token: got %d, want 401", w.Code)
	}
}

// TestRulesTogether: of pushes at once by several issuers that have seen the same version one counts, and the others are told.
func TestRulesTogether(t *testing.T) {
	b := newBus()
	all := []*testIssuer{newIssuer(t, b, withRules), newIssuer(t, b, withRules), newIssuer(t, b, withRules)}
	for replaces := range uint64(4) {
		var wg sync.WaitGroup
		errs := make([]error, 2*len(all))
		for n := range errs {
			wg.Go(func() {
				_, _, errs[n] = all[n%len(all)].PushRules(t.Context(), issuer.RulesPush{Name: "base", Text: fmt.Sprint(replaces, " by ", n), Replaces: replaces})
			})
		}
		wg.Wait()
		won := ""
		for n, err := range errs {
			var conflict *issuer.ConflictError
			switch {
			case err == nil && won == "":
				won = fmt.Sprint(replaces, " by ", n)
			case err == nil:
				t.Errorf("replacing %d: two were told that theirs counts", replaces)
			case !errors.As(err, &conflict):
				t.Errorf("replacing %d: got %v, want a ConflictError", replaces, err)
			}
		}
		if got := all[0].replica.Snapshot().Rules.Get("base"); got == nil || won == "" || replaces+1 != got.Version {
			t.Errorf("replacing %d: %+v stands, want version %d, %q", replaces, got, replaces+1, won)
		}
		for _, ti := range all { // who pushes next has seen it
			if err := ti.replica.Wait(t.Context(), uint64(replaces)+1); err != nil {
				t.Fatal(err)
			}
			if got := ti.replica.Snapshot().Rules.Get("base"); got.Text != won {
				t.Errorf("replacing %d: %q stands, want %q", replaces, got.Text, won)
			}
		}
	}
}

// TestRulesAreBounded: there is room for so many names, and for every name's next version.
func TestRulesAreBounded(t *testing.T) {
	ti := newIssuer(t, newBus(), withRules)
	push := func(name string) error {
		_, _, err := ti.PushRules(t.Context(), issuer.RulesPush{Name: name, Text: "x " + name, Force: true})
		return err
	}
	for n := range bus.MaxRuleSets {
		if err := push(fmt.Sprint("set-", n)); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := ti.WithdrawRules(t.Context(), "set-1", 0); err != nil {
		t.Fatal(err)
	}
	if err := push("one-more"); !isConflict(err) || !strings.Contains(err.Error(), "there are 64 sets of rules already") {
		t.Errorf("one set more: got %v, want that there are 64", err)
	}
	if err := push("set-1"); err != nil {
		t.Errorf("one that is there: %v", err)
	}
}
