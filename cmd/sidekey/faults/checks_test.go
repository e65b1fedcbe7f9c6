//go:build linux

package faults

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// The names of the checks: a planted fault says which one must find it.
const (
	checkFamily    = "refresh family"            // porcupine: see family_test.go
	checkSuccessor = "one successor"             // of any presentations of a refresh token at most one successor exists
	checkRevoked   = "revoked is refused"        // no accept that began after a revocation was confirmed
	checkUnknown   = "no unknown key"            // no good token is refused for a key that an agent does not know
	checkGood      = "good is accepted"          // nor for anything else
	checkOrder     = "applied never decreases"   // within a process and an epoch
	checkLease     = "no lease, no word"         // nobody vouches whose lease has ended
	checkLost      = "acknowledged is kept"      // what was acknowledged is there at the end
	checkClosed    = "closed is refused"         // what the issuers hold closed, the agents refuse
	checkBack      = "everyone is back"          // at the head in time, without a hand
	checkDecided   = "somebody was asked at all" // a run in which nothing happened has shown nothing
	checkOpen      = "the family is decided"     // porcupine came to an end: neither way it has shown anything
)

// violation is a promise broken, and how.
type violation struct{ check, text string }

func (v violation) String() string { return v.check + ": " + v.text }

// verdict is what the checks say of a run: how much each has looked at, and what it found.
type verdict struct {
	checked map[string]int
	found   []violation
}

// check holds a history against every promise that a history shows.
func (h *history) check(s *site) *verdict {
	v := &verdict{checked: make(map[string]int)}
	add := func(name string, checked int, found []violation) {
		v.checked[name] += checked
		v.found = append(v.found, found...)
	}
	for name, scan := range map[string]func() (int, []violation){
		checkFamily:    func() (int, []violation) { return checkFamilies(h, s.grace) },
		checkSuccessor: h.successors,
		checkRevoked:   h.revokedRefused,
		checkUnknown:   h.unknownKeys,
		checkGood:      h.goodAccepted,
		checkOrder:     h.appliedOrder,
		checkClosed:    func() (int, []violation) { return h.closedRefused(s.lease) },
		checkLease:     func() (int, []violation) { return h.leased(s.lease) },
	} {
		checked, found := scan()
		add(name, checked, found)
	}
	return v
}

// successors: of any number of presentations of one refresh token, at most one successor exists.
func (h *history) successors() (checked int, found []violation) {
	next := make(map[string]string)
	for _, o := range h.of(opRefresh) {
		if o.Out == "" {
			continue
		}
		checked++
		if have, ok := next[o.In]; ok && have != o.Out {
			found = append(found, violation{checkSuccessor, fmt.Sprintf("session %s, generation %d: %s and %s", o.SID, o.InGen, have, o.Out)})
		}
		next[o.In] = o.Out
	}
	return checked, found
}

// confirmed is when which tokens were known to be refused everywhere.
type confirmed struct {
	ids, sids, kids map[string]*op
	subs            map[string][]*op
}

func (h *history) confirmed() *confirmed {
	c := &confirmed{ids: map[string]*op{}, sids: map[string]*op{}, kids: map[string]*op{}, subs: map[string][]*op{}}
	first := func(m map[string]*op, id string, o *op) {
		if have := m[id]; have == nil || o.End < have.End {
			m[id] = o
		}
	}
	for _, o := range h.ops {
		switch {
		case !o.Confirmed:
		case o.Kind == opRotate:
			for _, kid := range o.Revoked {
				first(c.kids, kid, o)
			}
		case o.Target == "jti":
			first(c.ids, o.ID, o)
		case o.Target == "sid":
			first(c.sids, o.SID, o)
		case o.Target == "sub":
			c.subs[o.Sub] = append(c.subs[o.Sub], o)
		}
	}
	return c
}

// by gives the confirmed revocation that was over before a check of this token began, nil if there is none. begun tells when the
// token's session began: a revocation of all a user's sessions is about those that had begun before it was asked for.
func (c *confirmed) by(o *op, begun map[string]time.Duration) *op {
	for _, r := range []*op{c.ids[o.ID], c.sids[o.SID], c.kids[o.Kid]} {
		if r != nil && r.End < o.Start {
			return r
		}
	}
	for _, r := range c.subs[o.Sub] {
		if at, ok := begun[o.SID]; ok && at < r.Start && r.End < o.Start {
			return r
		}
	}
	return nil
}

// sessions tells when each session's login was answered.
func (h *history) sessions() map[string]time.Duration {
	begun := make(map[string]time.Duration)
	for _, o := range h.of(opLogin) {
		if o.SID != "" {
			begun[o.SID] = o.End
		}
	}
	return begun
}

// revokedRefused: who asks an agent after a revocation was confirmed is not told that the token is good.
func (h *history) revokedRefused() (checked int, found []violation) {
	c, begun := h.confirmed(), h.sessions()
	for _, o := range h.of(opVerify) {
		r := c.by(o, begun)
		if r == nil {
			continue
		}
		checked++
		if o.Status == 200 {
			found = append(found, violation{checkRevoked, fmt.Sprintf("%s accepted %s, asked at %s; %s of entry %d was confirmed at %s", o.Node, o.ID, o.Start, r.Kind, r.Seq, r.End)})
		}
	}
	return checked, found
}

// unknownKeys: a token of ours is never refused for its key not being known.
func (h *history) unknownKeys() (checked int, found []violation) {
	for _, o := range h.of(opVerify) {
		checked++
		if o.Reason == "unknown_key" {
			found = append(found, violation{checkUnknown, fmt.Sprintf("%s refused %s, asked at %s, for its key %s", o.Node, o.ID, o.Start, o.Kid)})
		}
	}
	return checked, found
}

// suspects are the tokens that somebody may have had a reason to refuse, and from when on.
func (h *history) suspects() func(o *op) bool {
	since := make(map[string]time.Duration) // by "jti …", "sid …", "sub …"
	at := func(name string, o *op) {
		if have, ok := since[name]; !ok || o.Start < have {
			since[name] = o.Start
		}
	}
	presented := make(map[string]bool)
	for _, o := range sortedByStart(h.ops) {
		switch {
		case o.Kind == opRefresh && presented[o.In], o.Kind == opRefresh && o.Status == 401:
			at("sid "+o.SID, o) // it may be a second use
		case o.Kind == opRefresh:
			presented[o.In] = true
		case o.Kind == opRotate && o.Target == "emergency" && o.answered():
			for _, kid := range o.Revoked {
				at("kid "+kid, o)
			}
		case o.Kind == opRevoke:
			at(o.Target+" "+map[string]string{"jti": o.ID, "sid": o.SID, "sub": o.Sub}[o.Target], o)
		}
	}
	doubtful := h.doubtfulKeys()
	return func(o *op) bool {
		if doubtful(o) {
			return true
		}
		for _, name := range []string{"kid " + o.Kid, "jti " + o.ID, "sid " + o.SID, "sub " + o.Sub} {
			if at, ok := since[name]; ok && at <= o.End {
				return true
			}
		}
		return false
	}
}

// doubtfulKeys tells of a check whether its token's key may have been revoked by an emergency rotation that was not answered. It is over
// by the end of the next one that the same issuer has answered, and revokes what signs then: not a key that signs later.
func (h *history) doubtfulKeys() func(o *op) bool {
	signs := make(map[string]time.Duration) // by kid, since when at the latest
	for _, o := range h.ops {
		if have, ok := signs[o.Kid]; o.Kind != opRotate && (!ok || o.Start < have) {
			signs[o.Kid] = o.Start
		}
	}
	type doubt struct{ from, until time.Duration }
	var doubts []doubt
	for _, o := range h.of(opRotate) {
		if o.Target != "emergency" || o.answered() {
			continue
		}
		d := doubt{o.Start, math.MaxInt64}
		for _, next := range h.of(opRotate) {
			if next.Node == o.Node && next.Start > o.End && next.answered() {
				d.until = min(d.until, next.End)
			}
		}
		doubts = append(doubts, d)
	}
	return func(o *op) bool {
		return slices.ContainsFunc(doubts, func(d doubt) bool { return d.from <= o.End && signs[o.Kid] < d.until })
	}
}

func sortedByStart(ops []*op) []*op {
	sorted := slices.Clone(ops)
	slices.SortFunc(sorted, func(a, b *op) int { return int(a.Start - b.Start) })
	return sorted
}

// goodAccepted: a token that nobody has given a reason to refuse is accepted, or 503 says that the agent does not know.
func (h *history) goodAccepted() (checked int, found []violation) {
	suspect := h.suspects()
	for _, o := range h.of(opVerify) {
		if suspect(o) {
			continue
		}
		checked++
		if o.answered() && o.Status != 200 {
			found = append(found, violation{checkGood, fmt.Sprintf("%s refused %s, asked at %s: %d %s", o.Node, o.ID, o.Start, o.Status, o.Reason)})
		}
	}
	return checked, found
}

// appliedOrder: what an agent has applied never becomes less while it runs.
func (h *history) appliedOrder() (checked int, found []violation) {
	newest := make(map[string]*op) // of those that had ended, by process: one that was started anew reads the log again
	for _, o := range h.of(opStatus) {
		if o.Status != 200 || o.Run == "" {
			continue
		}
		checked++
		process := fmt.Sprint(o.Node, o.Process, o.Run)
		have := newest[process]
		if have != nil && have.End < o.Start && (o.Epoch < have.Epoch || o.Epoch == have.Epoch && o.Seq < have.Seq) {
			found = append(found, violation{checkOrder, fmt.Sprintf("%s, run %s: %d at %s after %d", o.Node, o.Run, o.Seq, o.Start, have.Seq)})
		}
		newest[process] = o
	}
	return checked, found
}

// leased: one lease's length after an agent could last begin one, it vouches for nobody; and it never claims a longer one.
func (h *history) leased(length time.Duration) (checked int, found []violation) {
	judged := make(map[*dark]int)
	for _, o := range h.of(opVerify) {
		for _, d := range h.darks {
			if d.Agent != o.Node || o.Start <= d.From+length || d.To != 0 && o.Start >= d.To {
				continue
			}
			checked++
			judged[d]++
			if o.Status == 200 {
				found = append(found, violation{checkLease, fmt.Sprintf("%s accepted %s, asked at %s; its last lease can have begun at %s (%s)", o.Node, o.ID, o.Start, d.From, d.Why)})
			}
		}
	}
	for _, d := range h.darks {
		if judged[d] == 0 {
			found = append(found, violation{checkDecided, fmt.Sprintf("nobody asked %s from %s to %s, when it had no lease (%s)", d.Agent, d.From+length, d.To, d.Why)})
		}
	}
	for _, o := range h.of(opStatus) {
		checked++
		if o.Lease > length.Milliseconds() {
			found = append(found, violation{checkLease, fmt.Sprintf("%s claims a lease of %d ms", o.Node, o.Lease)})
		}
	}
	return checked, found
}

// closedRefused: one lease's length after the issuers have refused a session's refresh token for good, no agent accepts a token of it. Who
// vouches then has asked for its lease since, and the log came before the record.
func (h *history) closedRefused(lease time.Duration) (checked int, found []violation) {
	refused := make(map[string]*op)
	for _, o := range h.of(opRefresh) {
		if o.Status == 401 && refused[o.SID] == nil {
			refused[o.SID] = o
		}
	}
	for _, o := range h.of(opVerify) {
		r := refused[o.SID]
		if r == nil || o.Start <= r.End+lease {
			continue
		}
		checked++
		if o.Status == 200 {
			found = append(found, violation{checkClosed, fmt.Sprintf("%s accepted %s of session %s, asked at %s; %s refused its refresh token at %s", o.Node, o.ID, o.SID, o.Start, r.Node, r.End)})
		}
	}
	return checked, found
}
