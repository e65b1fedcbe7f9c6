//go:build linux

package faults

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// Bounds of a run.
const (
	backWithin = 45 * time.Second       // on a machine with much else to do; after the last fault everybody is at the head again
	calm       = 500 * time.Millisecond // before, between and after faults
)

// plan is one run.
type plan struct {
	name   string
	site   siteConfig
	faults []*fault
	times  int // how often each; 0: once
	seed   uint64

	backWithin time.Duration // 0: backWithin
}

// result is what a run has shown.
type result struct {
	*verdict
	plan
	ops  int
	back time.Duration // the longest from a fault's end until everybody was at the head
	late []violation   // who was not in time
	h    *history
}

// awaitBack waits until everybody is back from a fault that ended then, and notes how long that took at most.
func (r *result) awaitBack(w *workload, ended time.Time) {
	back, found := w.backAtHead(ended, cmp.Or(r.backWithin, backWithin))
	r.back, r.late = max(r.back, back), append(r.late, found...)
	w.late = len(r.late) > 0
}

// run does what a plan says and checks what came of it. It fails only where it cannot: violations are in the result.
func (p plan) run(t *testing.T) *result {
	t.Helper()
	s := newSite(t, p.site)
	w := &workload{site: s, h: newHistory(), seed: p.seed, mayRefuse: p.costs(violation{check: checkGood})}
	w.prepare()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	clients := w.start(ctx)
	rng := newRand(p.seed, "faults")
	r := &result{plan: p, h: w.h}
	rest(ctx, calm)
	for range max(p.times, 1) {
		for _, f := range p.faults {
			r.awaitBack(w, w.suffer(f, rng))
			rest(ctx, 3*calm)
		}
	}
	rest(ctx, calm)
	stop()
	clients.Wait()
	w.h.note("the clients have ended")
	r.verdict = w.h.check(s)
	r.found = append(r.found, r.late...)
	for _, look := range []func() (string, int, []violation){w.lost, w.closedRefused} {
		name, checked, found := look()
		r.checked[name] += checked
		r.found = append(r.found, found...)
	}
	r.checked[checkBack] += max(p.times, 1) * len(p.faults)
	r.ops = int(w.h.count.Load())
	if r.checked[checkRevoked] == 0 || r.checked[checkSuccessor] == 0 || r.checked[checkGood] == 0 {
		r.found = append(r.found, violation{checkDecided, fmt.Sprint(r.checked)})
	}
	r.found = slices.DeleteFunc(r.found, p.costs)
	return r
}

// costs tells whether a violation is what one of the plan's faults may cost.
func (p *plan) costs(v violation) bool {
	return slices.ContainsFunc(p.faults, func(f *fault) bool { return slices.Contains(f.costs, v.check) })
}

// suffer has a fault begin, last and end, and gives when what ends it began.
func (w *workload) suffer(f *fault, rng *rand.Rand) (ended time.Time) {
	w.h.note(f.name)
	heal := f.inject(w, rng)
	time.Sleep(f.length(w.site))
	ended = time.Now()
	heal()
	w.h.note("over: " + f.name)
	return ended
}

// backAtHead waits until every agent is at the head again and vouches, without a hand, and tells how long after the fault's end that was. What
// a revocation of now answers is the head.
func (w *workload) backAtHead(ended time.Time, within time.Duration) (time.Duration, []violation) {
	for {
		why := w.away()
		switch took := time.Since(ended); {
		case took > within:
			return took, []violation{{checkBack, fmt.Sprintf("after %s: %s", took, cmp.Or(why, "only then"))}}
		case why == "":
			return took, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// away says who is not back, "" if everybody is.
func (w *workload) away() string {
	for _, n := range w.nodes() {
		if status, err := n.call(context.Background(), time.Second, "GET", "/readyz", "", nil, nil); status != 200 {
			return fmt.Sprintf("%s is not ready: %d %v", n.name, status, err)
		}
	}
	p, ok := w.login(w.issuers[0], "steady")
	if !ok {
		return "nobody can log in"
	}
	for _, a := range w.agents {
		if o := w.verify(a, p.access); o.Status != 200 && !(w.mayRefuse && o.answered()) {
			return fmt.Sprintf("%s does not accept a token of now: %d %s", a.name, o.Status, o.Reason)
		}
	}
	o := w.revoke(w.issuers[0], p.access, "jti")
	if !o.Confirmed {
		return fmt.Sprintf("a revocation is not confirmed: %d %s", o.Status, o.Reason)
	}
	for _, a := range w.agents {
		if at := w.status(a); at.Seq < o.Seq || at.Lease <= 0 {
			return fmt.Sprintf("%s is at %d with a lease of %d ms, the head is at %d", a.name, at.Seq, at.Lease, o.Seq)
		}
	}
	return ""
}

// lost reads back what was acknowledged: users, sessions, revocations, keys.
func (w *workload) lost() (name string, checked int, found []violation) {
	lost := func(format string, args ...any) {
		found = append(found, violation{checkLost, fmt.Sprintf(format, args...)})
	}
	for _, n := range w.issuers {
		var users struct {
			Users []struct{ Username, ID string }
		}
		var keys struct{ Keys []struct{ Kid string } }
		var sessions map[string]bool
		err := w.read(n, "/admin/v1/users", &users)
		if err == nil {
			err = w.read(n, "/admin/v1/keys", &keys)
		}
		if err == nil {
			sessions, err = w.sessionsAt(n, users.Users)
		}
		if err != nil { // who cannot be asked has lost nothing yet
			found = append(found, violation{checkBack, err.Error()})
			continue
		}
		for _, o := range w.h.ops {
			switch {
			case o.Kind == opUser && o.Status == 201:
				checked++
				if !slices.ContainsFunc(users.Users, func(u struct{ Username, ID string }) bool { return u.Username == o.User }) {
					lost("user %s, added at %s, is not at %s", o.User, o.End, n.name)
				}
			case o.Kind == opLogin && o.SID != "":
				checked++
				if !sessions[o.SID] {
					lost("session %s of %s, begun at %s, is not at %s", o.SID, o.User, o.End, n.name)
				}
			case o.Kind == opRotate && o.Status == 200 && o.Kid != "":
				checked++
				if !slices.ContainsFunc(keys.Keys, func(k struct{ Kid string }) bool { return k.Kid == o.Kid }) {
					lost("key %s, made at %s, is not at %s", o.Kid, o.End, n.name)
				}
			}
		}
	}
	return checkLost, checked + w.revokedStill(lost), found
}

// read reads what an issuer's administrators may, and asks again where there is no answer.
func (w *workload) read(n *node, path string, into any) error {
	within := backWithin
	if w.late { // it was waited for already
		within = 0
	}
	deadline := time.Now().Add(within)
	for {
		status, err := n.call(context.Background(), issueWithin, "GET", path, w.admin, nil, into)
		switch {
		case status == 200 && err == nil:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("%s does not answer %s: %d %v", n.name, path, status, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// sessionsAt gives the sids that an issuer knows, of the users of the run.
func (w *workload) sessionsAt(n *node, users []struct{ Username, ID string }) (map[string]bool, error) {
	all := make(map[string]bool)
	for _, u := range users {
		if strings.HasPrefix(u.Username, "new-") {
			continue // nobody logs in as those
		}
		var answer struct{ Sessions []struct{ SID string } }
		if err := w.read(n, "/admin/v1/sessions?sub="+u.ID, &answer); err != nil {
			return nil, err
		}
		for _, s := range answer.Sessions {
			all[s.SID] = true
		}
	}
	return all, nil
}

// revokedStill asks every agent once more about the tokens whose revocation was acknowledged, confirmed or not.
func (w *workload) revokedStill(lost func(string, ...any)) (checked int) {
	w.mu.Lock()
	tokens := make(map[string]token)
	for _, t := range w.made {
		tokens[t.ID] = t
	}
	w.mu.Unlock()
	for _, o := range w.h.of(opRevoke) {
		t, ok := tokens[o.ID]
		if o.Seq == 0 || !ok {
			continue
		}
		for _, a := range w.agents {
			checked++
			if v := w.verify(a, t); v.Status == 200 {
				lost("%s accepts %s, whose revocation by %s at %s was acknowledged as entry %d", a.name, o.ID, o.Target, o.End, o.Seq)
			}
		}
	}
	return checked
}

// closedRefused: when everybody is back, a family of refresh tokens that the issuers have ended is over at the agents too.
func (w *workload) closedRefused() (name string, checked int, found []violation) {
	w.mu.Lock()
	newest := make(map[string]token) // by session
	for _, t := range w.made {
		newest[t.SID] = t
	}
	doubtful := w.doubtful
	w.mu.Unlock()
	for _, p := range doubtful {
		w.refresh(w.issuers[0], p.refresh)
	}
	refused := make(map[string]bool)
	for _, o := range w.h.of(opRefresh) {
		if o.Status != 401 || refused[o.SID] || newest[o.SID].text == "" {
			continue
		}
		refused[o.SID] = true
		for _, a := range w.agents {
			checked++
			if v := w.verify(a, newest[o.SID]); v.Status == 200 {
				found = append(found, violation{checkClosed, fmt.Sprintf("%s accepts %s of session %s, whose refresh token %s refused at %s", a.name, v.ID, o.SID, o.Node, o.End)})
			}
		}
	}
	return checkClosed, checked, found
}

// report fails the test for what a run has found.
func (r *result) report(t *testing.T) {
	t.Helper()
	r.noteRun()
	t.Logf("%s: %d operations, everyone back after %s; looked at: %v", r.name, r.ops, r.back.Round(10*time.Millisecond), r.checked)
	if len(r.found) == 0 {
		return
	}
	r.h.keep(t)
	for n, v := range r.found {
		if n == 20 {
			t.Errorf("and %d more", len(r.found)-n)
			break
		}
		t.Errorf("%s (%d notes: %s)", v, len(r.h.notes), strings.Join(r.h.notes, "; "))
	}
}
