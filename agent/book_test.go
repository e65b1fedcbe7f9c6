package agent_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/agent/rules"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/bus/replica"
)

// set is a text of rules that let everybody pass at paths, which are also their names.
func set(paths ...string) string {
	text := ""
	for _, path := range paths {
		text += fmt.Sprintf("[[rules]]\nname = %q\npaths = [%q]\nallow = \"anyone\"\n", path, path)
	}
	return text
}

func handsOut(name string, version uint64, text string) *bus.RulesFact {
	return &bus.RulesFact{Name: name, Version: version, Time: 1, Text: text, Withdrawn: text == ""}
}

// newHandedWorld is a world whose agent merges these sets.
func newHandedWorld(t testing.TB, starting bool, names ...string) *world {
	build := newWorld
	if starting {
		build = newStartingWorld
	}
	return build(t, func(c *agent.Config) { c.RuleSets = names })
}

// passes gives those of the paths that everybody may pass, and the status of the others.
func (w *world) passes(paths ...string) string {
	w.Helper()
	var all []string
	for _, path := range paths {
		_, d := w.check(fmt.Sprintf(`{"method":"GET","host":"h","path":%q}`, path))
		switch {
		case d["decision"] == "allow":
			all = append(all, path)
		case d["status"] != float64(403) || d["reason"] != "no_rule":
			all = append(all, fmt.Sprint(path, ":", d["status"], " ", d["reason"]))
		}
	}
	return strings.Join(all, " ")
}

// TestHandedOutRules: sets of the log are in force together behind the host's own, as soon as they are applied, whole or not
// at all; while one was never there, or is withdrawn, nobody passes.
func TestHandedOutRules(t *testing.T) {
	const faulty = "[[rules]]\nname = \"x\"\npaths = [\"x\"]\n"
	local := set("/own")
	type step struct {
		fact  *bus.RulesFact
		local string // in place of a fact
		pass  string // of /own /a /b /c
		fault string
	}
	for name, steps := range map[string][]step{
		"one after the other": {
			{handsOut("a", 1, set("/a")), "", "", `rules "b" were never handed out`},
			{handsOut("b", 1, set("/b")), "", "/own /a /b", ""},
			{handsOut("other", 1, set("/c")), "", "/own /a /b", ""},
			{handsOut("b", 2, set("/c")), "", "/own /a /c", ""},
			{handsOut("b", 1, set("/b")), "", "/own /a /c", ""}, // of one who had not read the newest
		},
		"a faulty one": {
			{handsOut("a", 1, set("/a")), "", "", "never"},
			{handsOut("b", 1, faulty), "", "", `version 1 of rules "b": b:1: rule "x": path "x": a path begins with a slash`},
			{handsOut("b", 2, set("/b")), "", "/own /a /b", ""},
			{handsOut("a", 2, faulty), "", "/own /a /b", `version 2 of rules "a"`},
			{handsOut("b", 3, set("/c")), "", "/own /a /b", `version 2 of rules "a"`}, // whole or not at all
			{handsOut("a", 3, set("/a")), "", "/own /a /c", ""},
		},
		"a withdrawn one": {
			{handsOut("a", 1, set("/a")), "", "", "never"},
			{handsOut("b", 1, set("/b")), "", "/own /a /b", ""},
			{handsOut("a", 2, ""), "", "", `rules "a" were withdrawn by version 2`},
			{handsOut("b", 2, set("/c")), "", "", "withdrawn"},
			{handsOut("a", 3, faulty), "", "", "a path begins"}, // nothing of before comes back
			{handsOut("a", 4, set("/a")), "", "/own /a /c", ""},
		},
		"the same name twice": {
			{handsOut("a", 1, set("/a")), "", "", "never"},
			{handsOut("b", 1, set("/a")), "", "", `b:1: rule "/a": the name is taken by the rule at a:1`},
			{handsOut("b", 2, set("/b")), "", "/own /a /b", ""},
			{handsOut("b", 3, set("/own")), "", "/own /a /b", `b:1: rule "/own": the name is taken by the rule at own.toml:1`},
			{nil, set("/c"), "/own /a /c", ""},
		},
		"more than rules": {
			{handsOut("b", 1, set("/b")), "", "", "never"},
			{handsOut("a", 1, set("/a")+"[webhook]\nurl = \"x\"\n"), "", "", `a: unknown member "webhook"`},
			{handsOut("a", 2, "# nothing\n"), "", "", "a: it has no [[rules]]"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newHandedWorld(t, false, "a", "b")
			w.rules2(local)
			if got := w.passes("/own", "/a"); got != "" {
				t.Errorf("before any was handed out: %q pass", got)
			}
			for n, s := range steps {
				if s.fact != nil {
					w.apply(s.fact)
				} else {
					w.rules2(s.local)
				}
				st := w.agent.Status().Rules
				if got := w.passes("/own", "/a", "/b", "/c"); got != s.pass {
					t.Errorf("step %d: %q pass, want %q", n, got, s.pass)
				}
				if (st.Fault == "") != (s.fault == "") || !strings.Contains(st.Fault, s.fault) {
					t.Errorf("step %d: the fault is %q, want %q", n, st.Fault, s.fault)
				}
			}
		})
	}
}

// rules2 is rules for a text whose rules may not go with those of the log.
func (w *world) rules2(text string) {
	w.Helper()
	s, err := rules.Parse("own.toml", []byte(text), rules.Options{})
	if err != nil {
		w.Fatal(err)
	}
	_ = w.agent.SetRules(s) // the status tells
}

// TestHandedOutStatus: the status says which version of each set decides, and why it is not the newest.
func TestHandedOutStatus(t *testing.T) {
	w := newHandedWorld(t, false, "z", "a")
	w.apply(handsOut("other", 7, set("/c")), handsOut("a", 1, set("/a")), handsOut("a", 2, "x"), handsOut("gone", 3, ""))
	st := w.agent.Status().Rules
	want := []agent.RuleSetStatus{
		{Name: "z", Merged: true, Fault: "it was never handed out"},
		{Name: "a", Version: 1, Merged: true, Fault: st.Sets[1].Fault},
		{Name: "gone", Version: 3, Withdrawn: true},
		{Name: "other", Version: 7},
	}
	if !slices.Equal(st.Sets, want) || !strings.HasPrefix(st.Sets[1].Fault, "a:1") {
		t.Errorf("got %+v, want %+v", st.Sets, want)
	}
	for n := range bus.MaxRuleSets {
		w.apply(handsOut(fmt.Sprintf("%064d", n), 1, strings.Repeat("x", bus.MaxRulesText)))
	}
	if text := fmt.Sprintf("%+v", w.agent.Status()); len(text) > 48<<10 {
		t.Errorf("with %d faults the status has %d bytes: issuers hear no more than 64 KiB", bus.MaxRuleSets, len(text))
	}
}

// TestHandedOutAnyone: what the log's rules allow to everybody they allow while there is a lease: an agent that is cut off does
// not know whether they stand. The host's own need none.
func TestHandedOutAnyone(t *testing.T) {
	w := newHandedWorld(t, false, "a")
	w.apply(handsOut("a", 1, set("/a")))
	if got := w.passes("/a"); got != "/a" {
		t.Fatalf("with a lease: %q", got)
	}
	w.lease.Store(nil)
	if got := w.passes("/a", "/b"); got != "/a:503 stale" {
		t.Errorf("without a lease: got %q, want 503", got)
	}
	ended := lease.Lease{Begin: lease.SystemClock(), Length: 1, Mode: lease.Refuse}
	w.lease.Store(&ended)
	if got := w.passes("/a"); got != "/a:503 stale" {
		t.Errorf("with one that has ended: got %q, want 503", got)
	}
	serving := lease.Lease{Begin: lease.SystemClock(), Length: 1, Mode: lease.Serve}
	w.lease.Store(&serving)
	if got := w.passes("/a"); got != "/a" {
		t.Errorf("on_stale = serve: got %q", got)
	}
	own := newWorld(t)
	own.rules(set("/a"))
	own.lease.Store(nil)
	if got := own.passes("/a"); got != "/a" {
		t.Errorf("the host's own without a lease: got %q", got)
	}
}

// TestHandedOutStarting: before the log is read, nobody can say what is allowed: 503, and not a denial.
func TestHandedOutStarting(t *testing.T) {
	w := newHandedWorld(t, true, "a")
	if got := w.passes("/a"); got != "/a:503 starting" {
		t.Errorf("got %q, want 503", got)
	}
}

// TestHandedOutRestored: what a restarted agent knows of the log it enforces from its first request.
func TestHandedOutRestored(t *testing.T) {
	r := replica.New(replica.Config{})
	apply := func(seq uint64, f bus.Fact) {
		if err := r.Apply(bus.Entry{Position: bus.Position{Epoch: 1, Seq: seq}, Fact: f}); err != nil {
			t.Fatal(err)
		}
	}
	apply(1, handsOut("a", 1, set("/a")))
	w := newHandedWorld(t, false)
	w.build(r, func(c *agent.Config) { c.RuleSets = []string{"a"} })
	if st := w.agent.Status().Rules; st == nil || st.Rules != 1 || st.Fault != "" {
		t.Errorf("got %+v, want the one rule", st)
	}
}

// TestNamedRules: a route's context_extensions name the set that decides, whatever else the agent has; one that is not there
// denies, and only the proxy can name one.
func TestNamedRules(t *testing.T) {
	w := newWorld(t)
	w.rules(set("/own"))
	w.apply(handsOut("a", 1, set("/a")), handsOut("b", 1, set("/b")), handsOut("b", 2, ""), handsOut("c", 1, set("/c")), handsOut("c", 2, "faulty"))
	e := w.envoy()
	asks := func(path string, extensions ...string) *authv3.CheckRequest {
		req := envoyAsks("GET h"+path, "sidekey.rules: a", "x-sidekey-rules: a")
		req.Attributes.ContextExtensions = map[string]string{"virtual_host": "x"}
		for n := 0; n < len(extensions); n += 2 {
			req.Attributes.ContextExtensions[extensions[n]] = extensions[n+1]
		}
		return req
	}
	for name, c := range map[string]struct {
		req    *authv3.CheckRequest
		status int
		word   string
	}{
		"no name":                 {asks("/own"), 200, "anonymous"},
		"no name, another's path": {asks("/a"), 403, "no_rule"},
		"a set":                   {asks("/a", "sidekey.rules", "a"), 200, "anonymous"},
		"a set, the host's path":  {asks("/own", "sidekey.rules", "a"), 403, "no_rule"},
		"a withdrawn set":         {asks("/b", "sidekey.rules", "b"), 403, "no_rule"},
		"the last good of one":    {asks("/c", "sidekey.rules", "c"), 200, "anonymous"},
		"an unknown set":          {asks("/own", "sidekey.rules", "x"), 403, "no_rule"},
		"the empty name":          {asks("/own", "sidekey.rules", ""), 403, "no_rule"},
		"a name of no set":        {asks("/own", "sidekey.rules", "A*"), 403, "no_rule"},
		"another key of ours":     {asks("/own", "sidekey.rule", "a"), 403, "ambiguous_request"},
		"a set, and another key":  {asks("/a", "sidekey.rules", "a", "sidekey.x", ""), 403, "ambiguous_request"},
	} {
		wantTold(t, name, e.check(c.req), c.status, c.word)
	}
	w.apply(handsOut("a", 2, set("/b")))
	wantTold(t, "a newer version", e.check(asks("/b", "sidekey.rules", "a")), 200, "anonymous")
	wantTold(t, "a request behind one that named a set", e.check(asks("/b")), 403, "no_rule")
	bare := newWorld(t)
	wantTold(t, "an agent without rules", bare.envoy().check(asks("/own", "sidekey.rules", "a")), 403, "no_rule")
}

// hooked is a replica that does something while a token is checked.
type hooked struct {
	*replica.Replica
	during func()
}

func (h *hooked) Revoked(ids *replica.IDs) bool {
	h.during()
	return h.Replica.Revoked(ids)
}

// TestRulesChangeDuringCheck: a decision that is long in the making is by the rules in force at its end.
func TestRulesChangeDuringCheck(t *testing.T) {
	w := newHandedWorld(t, false)
	h := &hooked{Replica: w.rep}
	w.build(h, func(c *agent.Config) { c.RuleSets = []string{"a"} })
	w.apply(handsOut("a", 1, "[[rules]]\nname = \"r\"\npaths = [\"/**\"]\n"))
	looks := 0
	h.during = func() {
		if looks++; looks == 1 {
			w.apply(handsOut("a", 2, set("/other")))
		}
	}
	_, d := w.check(fmt.Sprintf(`{"method":"GET","host":"h","path":"/x","headers":{"Authorization":"Bearer %s"}}`, w.token()))
	if d["decision"] != "deny" || d["reason"] != "no_rule" || looks == 0 {
		t.Errorf("got %v after %d looks, want a denial by the newer rules", d, looks)
	}
	h.during = func() {}
	looks = 3
	w.apply(handsOut("a", 3, "[[rules]]\nname = \"r\"\npaths = [\"/**\"]\n"))
	h.during = func() {
		looks++
		w.apply(handsOut("a", uint64(looks), "[[rules]]\nname = \"r\"\npaths = [\"/**\"]\n"))
	}
	_, d = w.check(fmt.Sprintf(`{"method":"GET","host":"h","path":"/x","headers":{"Authorization":"Bearer %s"}}`, w.token()))
	if d["decision"] != "deny" || d["status"] != float64(503) {
		t.Errorf("rules that change faster than a check: got %v, want 503", d)
	}
}

// check asks POST /v1/check.
func (w *world) check(body string) (int, map[string]any) {
	w.Helper()
	if w.checks == nil {
		w.checks = w.listen("mem")
	}
	r := w.checks.do("POST", "/v1/check", body, "Content-Type: application/json")
	var d map[string]any
	if err := json.Unmarshal([]byte(r.body), &d); err != nil {
		w.Fatalf("%s: %v", r.body, err)
	}
	return r.StatusCode, d
}

// TestFaultOutlivesAnEpoch: what could not be meant is no better for having been read again in a log that was begun anew. Without
// the set that is at fault those would pass whom it denied.
func TestFaultOutlivesAnEpoch(t *testing.T) {
	const faulty = "[[rules]]\nname = \"x\"\npaths = [\"x\"]\n"
	for name, before := range map[string][]*bus.RulesFact{
		"never whole":                {handsOut("a", 1, faulty)},
		"withdrawn, and then faulty": {handsOut("a", 1, set("/a")), handsOut("a", 2, ""), handsOut("a", 3, faulty)},
		"whole, and then faulty":     {handsOut("a", 1, set("/a")), handsOut("a", 2, faulty)},
	} {
		t.Run(name, func(t *testing.T) {
			w := newHandedWorld(t, false, "a", "b")
			for _, f := range append(before, handsOut("b", 1, set("/b"))) {
				w.apply(f)
			}
			pass, fault := w.passes("/a", "/b"), w.agent.Status().Rules.Fault
			if strings.Contains(pass, "/b") || !strings.Contains(fault, "a path begins") {
				t.Fatalf("before: %q pass, and the fault is %q", pass, fault)
			}
			stood := w.rep.Snapshot().Rules
			w.agent.TakeRules(&replica.Snapshot{}) // the log is begun anew: nothing is read of it yet
			if got := w.passes("/a", "/b"); got != pass {
				t.Errorf("while it is read: %q pass, want %q", got, pass)
			}
			w.agent.TakeRules(&replica.Snapshot{Rules: stood})
			if got := w.passes("/a", "/b"); got != pass {
				t.Errorf("behind it: %q pass, want %q", got, pass)
			}
			if got := w.agent.Status().Rules.Fault; got != fault {
				t.Errorf("behind it the fault is %q, want %q", got, fault)
			}
		})
	}
}
