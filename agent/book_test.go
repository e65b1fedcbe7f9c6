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
// not know whether they stand. The host's own need none where they decide alone; together with the log's they do.
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
	w.rules(set("/own"))
	if got := w.passes("/own", "/a"); got != "/own /a" {
		t.Errorf("both, on_stale = serve: got %q", got)
	}
	w.lease.Store(nil)
	if got := w.passes("/own", "/a", "/b"); got != "/own:503 stale /a:503 stale" {
		t.Errorf("both without a lease: got %q, want 503 for the host's own too", got)
	}
	own := newWorld(t)
	own.rules(set("/a"))
	own.lease.Store(nil)
	if got := own.passes("/a"); got != "/a" {
		t.Errorf("the host's own without a lease: got %q", got)
	}
	own.apply(handsOut("b", 1, set("/b")))
	if got := own.passes("/a", "/b"); got != "/a" {
		t.Errorf("the host's own beside a set that is not merged: got %q", got)
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

// TestOwnFileAwaited: an agent that has a file of rules decides by nothing before that is read, and by nothing where it does not
// go with the sets that the log had already handed out: those alone would allow what the file denies.
func TestOwnFileAwaited(t *testing.T) {
	const own = "[[rules]]\nname = \"admin\"\npaths = [\"/admin\"]\nrequire = { roles = [\"admin\"] }\n"
	open := "[[rules]]\nname = \"open\"\npaths = [\"/**\"]\nallow = \"anyone\"\n"
	w := newHandedWorld(t, false)
	w.apply(handsOut("a", 1, open+set("/a")))
	restart := func() { // with what the replica has restored
		w.build(w.rep, func(c *agent.Config) { c.RuleSets, c.LocalRules = []string{"a"}, true })
		w.checks = nil
	}
	restart()
	if got, st := w.passes("/admin", "/a"), w.agent.Status().Rules; got != "" || st.Fault != "this host's own file is not read yet" || st.Rules != 0 || st.Version != "" {
		t.Errorf("before the file is read: %q pass, and the status is %+v", got, st)
	}
	w.agent.SetRulesFault(nil) // makes a new book
	w.apply(handsOut("other", 1, set("/c")))
	if got := w.passes("/admin", "/a"); got != "" {
		t.Errorf("before the file is read, behind more of the log: %q pass", got)
	}
	if log := w.log.String(); strings.Contains(log, "not whole") {
		t.Errorf("an agent that begins complains: %s", log)
	}
	w.rules2(own)
	if got := w.passes("/admin", "/a"); got != "/admin:401 missing /a" {
		t.Errorf("with both: %q", got)
	}

	w.apply(handsOut("a", 2, strings.Replace(open, "open", "admin", 1)))
	if got, fault := w.passes("/admin", "/a"), w.agent.Status().Rules.Fault; got != "/admin:401 missing /a" || !strings.Contains(fault, "the name is taken") {
		t.Errorf("a set that does not go with the file: %q, and the fault is %q; want what was in force", got, fault)
	}
	restart()
	w.rules2(own)
	if got, st := w.passes("/admin", "/a"), w.agent.Status().Rules; got != "" || !strings.Contains(st.Fault, "the name is taken") || st.Version != "" {
		t.Errorf("restarted, and the file does not go with the set: %q pass, and the status is %+v; want that nobody passes", got, st)
	}
	w.apply(handsOut("a", 3, open+set("/a")))
	if got := w.passes("/admin", "/a"); got != "/admin:401 missing /a" {
		t.Errorf("with one that does: %q", got)
	}

	alone := newWorld(t, func(c *agent.Config) { c.LocalRules = true })
	_, d := alone.check(fmt.Sprintf(`{"method":"GET","host":"h","path":"/x","headers":{"Authorization":"Bearer %s"}}`, alone.token()))
	if d["decision"] != "deny" || d["reason"] != "no_rule" || d["detail"] != "this host's own file is not read yet" {
		t.Errorf("a file alone that is not read yet: got %v, want a denial, also of who is known", d)
	}
	alone.rules(set("/x"))
	if got := alone.passes("/x"); got != "/x" {
		t.Errorf("a file alone: %q", got)
	}
}

// TestUnseenVersion: what stood before a version that this agent did not see may have been withdrawn by that. It does not stay
// in force for one that cannot be taken, in whichever way versions were passed over: in one batch, in a checkpoint, in a log
// that was begun anew.
func TestUnseenVersion(t *testing.T) {
	const faulty = "[[rules]]\nname = \"x\"\npaths = [\"x\"]\n"
	first := []bus.Fact{handsOut("a", 1, set("/a")), handsOut("b", 1, set("/b"))}
	batch := func(facts ...bus.Fact) func(*world) {
		return func(w *world) { w.applyTo(w.rep, facts...) }
	}
	checkpoint := func(facts ...bus.Fact) func(*world) {
		return func(w *world) { load(w, w.rep, w.ahead(facts...)) }
	}
	// A log that was begun anew: nothing is read of it at first, and then its newest versions, once or more.
	anew := func(states ...[]bus.Fact) func(*world) {
		return func(w *world) {
			w.agent.TakeRules(&replica.Snapshot{})
			for n, facts := range states {
				other := replica.New(replica.Config{})
				new(world).applyTo(other, facts...)
				w.agent.TakeRules(&replica.Snapshot{Position: bus.Position{Epoch: 2, Seq: uint64(n + 1)}, Rules: other.Snapshot().Rules})
			}
		}
	}
	for name, c := range map[string]struct {
		seen []bus.Fact // one after the other
		then func(*world)
		pass string // of /own /a /b /c
		kept bool   // the set a, by its name, allows /a as before
	}{
		"one by one, faulty":               {[]bus.Fact{handsOut("a", 2, "")}, batch(handsOut("a", 3, faulty)), "", false},
		"one batch, faulty":                {nil, batch(handsOut("a", 2, ""), handsOut("a", 3, faulty)), "", false},
		"one batch, the file's name":       {nil, batch(handsOut("a", 2, ""), handsOut("a", 3, set("/own"))), "", false},
		"one batch, another set's name":    {nil, batch(handsOut("a", 2, ""), handsOut("a", 3, set("/b"))), "", false},
		"one batch, another set faulty":    {nil, batch(handsOut("a", 2, ""), handsOut("b", 2, faulty), handsOut("a", 3, set("/a"))), "", true},
		"one batch, and more of them":      {nil, batch(handsOut("a", 2, ""), handsOut("a", 3, faulty), handsOut("a", 4, faulty)), "", false},
		"a faulty one before":              {[]bus.Fact{handsOut("a", 2, faulty)}, batch(handsOut("a", 3, ""), handsOut("a", 4, faulty)), "", false},
		"one batch, and one that can":      {nil, batch(handsOut("a", 2, ""), handsOut("a", 3, set("/c"))), "/own /b /c", false},
		"a checkpoint, faulty":             {nil, checkpoint(handsOut("a", 2, ""), handsOut("a", 3, faulty)), "", false},
		"a checkpoint, the file's name":    {nil, checkpoint(handsOut("a", 2, ""), handsOut("a", 3, set("/own"))), "", false},
		"nothing between, faulty":          {nil, batch(handsOut("a", 2, faulty)), "/own /a /b", true},
		"nothing between, twice faulty":    {[]bus.Fact{handsOut("a", 2, faulty)}, batch(handsOut("a", 3, faulty)), "/own /a /b", true},
		"nothing between, the file's name": {nil, batch(handsOut("a", 2, set("/own"))), "/own /a /b", false},
		"nothing between, a checkpoint":    {nil, checkpoint(handsOut("a", 2, faulty)), "/own /a /b", true},
		"of another set that is not merged": {[]bus.Fact{handsOut("c", 1, set("/c")), handsOut("b", 2, faulty)},
			batch(handsOut("c", 2, ""), handsOut("c", 3, faulty)), "/own /a /b", true},
		"anew, faulty":                     {nil, anew([]bus.Fact{handsOut("a", 2, faulty), first[1]}), "", false},
		"anew, an older one, faulty":       {[]bus.Fact{handsOut("a", 2, set("/a"))}, anew([]bus.Fact{handsOut("a", 1, faulty), first[1]}), "", false},
		"anew, the file's name":            {nil, anew([]bus.Fact{handsOut("a", 2, set("/own")), first[1]}), "", false},
		"anew, as faulty as before":        {[]bus.Fact{handsOut("a", 2, faulty)}, anew([]bus.Fact{handsOut("a", 2, faulty), first[1]}), "", false},
		"anew, not taken before either":    {[]bus.Fact{handsOut("a", 2, set("/own"))}, anew([]bus.Fact{handsOut("a", 2, set("/own")), first[1]}), "", false},
		"anew, the same":                   {nil, anew(first), "/own /a /b", true},
		"anew, the same, and one is not":   {nil, anew([]bus.Fact{first[0]}), "/own /a /b", true},
		"anew, the same, the other faulty": {nil, anew([]bus.Fact{first[0], handsOut("b", 2, faulty)}), "", true},
		"anew, by its checkpoint at once": {nil, func(w *world) {
			other := replica.New(replica.Config{})
			new(world).applyTo(other, handsOut("a", 2, faulty), first[1])
			w.agent.TakeRules(&replica.Snapshot{Position: bus.Position{Epoch: 2, Seq: 2}, Rules: other.Snapshot().Rules})
		}, "", false},
		"anew without it, then faulty": {nil, anew(first[1:], append(first[1:], handsOut("a", 2, faulty))), "", false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newHandedWorld(t, false, "a", "b")
			w.rules2(set("/own"))
			w.apply(first...)
			w.apply(c.seen...)
			c.then(w)
			if got := w.passes("/own", "/a", "/b", "/c"); got != c.pass {
				t.Errorf("%q pass, want %q; the fault is %q", got, c.pass, w.agent.Status().Rules.Fault)
			}
			req := envoyAsks("GET h/a")
			req.Attributes.ContextExtensions = map[string]string{"sidekey.rules": "a"}
			if c.kept {
				wantTold(t, "the set by its name", w.envoy().check(req), 200, "anonymous")
			} else {
				wantTold(t, "the set by its name", w.envoy().check(req), 403, "no_rule")
			}
		})
	}
}

// applyTo appends facts to the world's log, and lets a replica have them in one batch.
func (w *world) applyTo(r *replica.Replica, facts ...bus.Fact) {
	entries := make([]bus.Entry, len(facts))
	for n, f := range facts {
		w.seq++
		entries[n] = bus.Entry{Position: bus.Position{Epoch: 1, Seq: w.seq}, Fact: f}
	}
	if err := r.Apply(entries...); err != nil {
		panic(err)
	}
}

// ahead gives the world's log with more facts that its agent has not read.
func (w *world) ahead(facts ...bus.Fact) *replica.Replica {
	w.Helper()
	ahead := replica.New(replica.Config{})
	load(w, ahead, w.rep)
	w.applyTo(ahead, facts...)
	return ahead
}

// load has a replica take another's checkpoint.
func load(t testing.TB, to, from *replica.Replica) {
	t.Helper()
	img, _, err := from.Image()
	if err == nil {
		err = to.Load(img)
	}
	if err != nil {
		t.Fatal(err)
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
