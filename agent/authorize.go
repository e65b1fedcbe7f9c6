package agent

import (
	"net/http"
	"slices"
	"strings"

	"github.com/sidekey/sidekey/agent/rules"
	"github.com/sidekey/sidekey/keyring"
)

// MethodAnonymous is the word of X-Auth-Method where a rule lets everybody pass.
const MethodAnonymous = "anonymous"

const authenticationTooOld = keyring.Reason(rules.AuthenticationTooOld)

// authorize decides a request: who it is from, and whether the rules let them. It is Authenticate where there are no
// rules. What is denied whoever asks asks for no credential, and so for no lease; nor does what this host's own file allows
// to everybody, where it decides alone. Together with sets of the log (Config.RuleSets) it decides only while none of them is
// withdrawn, and that an agent without a lease does not know.
//
// The rules that decide are those in force when it returns: whoever has waited until an agent had others finds no decision
// by the old ones after that, also where a credential was long in being checked.
func (a *Agent) authorize(r *Request) {
	faulty := r.faulty
	for range maxLooks {
		b := a.book.Load()
		a.authorizeBy(b, r)
		if a.book.Load() == b { // behind the look at the lease: what that lease covers is in this book
			return
		}
		r.faulty, r.rule, r.outcome = faulty, nil, rules.Outcome{}
	}
	a.unready(r, Stale) // they change faster than a request is checked. Fails closed
}

func (a *Agent) authorizeBy(b *book, r *Request) {
	set, handed := b.main, b.handed
	if r.named {
		set, handed = b.named(r.ruleSet), true
	}
	if set == nil || r.faulty || r.doubled {
		a.authenticate(r)
		return
	}
	if set == nobody && !a.replica.Snapshot().Ready {
		a.unready(r, Starting) // what the log hands out is not known yet
		return
	}
	if !r.describe() {
		r.faulty = true // its path can be read in two ways
		a.authenticate(r)
		return
	}
	r.rule = set.Match(&r.wanted)
	switch {
	case r.doubled: // a field that the match asked for
		a.authenticate(r)
	case r.rule == nil && r.wanted.Path.Slashes():
		r.faulty = true // no rule takes it, or the one that it is for does not take it literally
		a.authenticate(r)
	case r.rule == nil:
		o := rules.Outcome{Status: http.StatusForbidden, Reason: rules.NoRule}
		if set == nobody {
			o.Detail = b.lack(r)
		}
		a.dismiss(r, o)
	case r.rule.Anyone():
		a.admit(r, handed)
	default:
		a.authenticate(r)
	}
}

// admit lets a request pass that is anybody's. Rules that are, or some of which are, of the log (handed) may have been replaced
// or withdrawn where this agent does not hear of it: by those nobody passes whom it could not vouch for.
func (a *Agent) admit(r *Request, handed bool) {
	at := a.look()
	r.outcome = rules.Outcome{Rule: r.rule, Status: http.StatusOK}
	r.d = Decision{Scheme: MethodAnonymous, asks: -1}
	r.d.Seq = at.snap.Position.Seq
	r.d.grant(&Principal{Method: MethodAnonymous, mapped: a.unmapped})
	if handed {
		switch {
		case !at.snap.Ready:
			r.d.Verdict = r.d.unavailable(Starting)
		case at.lease == nil:
			r.d.Verdict = r.d.unavailable(Stale)
		default:
			r.d.Verdict = a.settle(&at, r.d.Verdict, &Query{})
		}
	}
	if !r.d.Active() {
		r.d.Principal, r.d.Scheme, r.outcome = Principal{}, "", rules.Outcome{Rule: r.rule, Status: r.d.Status}
	}
	a.chain.count(&r.d)
}

// unready gives no decision.
func (a *Agent) unready(r *Request, reason keyring.Reason) {
	r.rule, r.outcome = nil, rules.Outcome{}
	r.d = Decision{asks: -1}
	r.d.Seq = a.replica.Snapshot().Position.Seq
	r.d.Verdict = r.d.unavailable(reason)
	a.chain.count(&r.d)
}

// lack says, for the operator, why nothing at all is allowed.
func (b *book) lack(r *Request) string {
	if r.named {
		return "the set of rules that the proxy names is not there"
	}
	return b.status.Fault
}

// dismiss refuses a request whoever it is from.
func (a *Agent) dismiss(r *Request, o rules.Outcome) {
	r.outcome = o
	r.d = Decision{asks: -1}
	r.d.Seq = a.replica.Snapshot().Position.Seq
	r.d.deny(&o)
	a.chain.count(&r.d)
}

// permit holds who is known against the request's rule. It stands within the view that proved them.
func (a *Agent) permit(at *view, r *Request) {
	p := &r.d.Principal
	who := rules.Principal{
		Subject: p.Subject, Method: p.Method, Scope: p.Scope, Roles: p.Roles, Audience: p.Audience, Client: p.Client, Session: p.Session, Claims: p.decoded,
	}
	if !p.AuthTime.IsZero() {
		who.AuthTime = p.AuthTime.Unix()
	}
	if who.Claims == nil && len(p.Claims) > 0 {
		claims := p.Claims
		who.Claims = func() map[string]any { return claims }
	}
	r.outcome = r.rule.Decide(&r.wanted, &who, at.now)
	switch {
	case r.doubled: // a field that the rule asked for stands there twice
		r.d.forbid(Ambiguous)
	case !r.outcome.Allowed():
		r.d.deny(&r.outcome)
	}
}

// deny takes a rule's denial over.
func (d *Decision) deny(o *rules.Outcome) {
	d.Principal = Principal{}
	d.Status, d.Reason, d.Description = o.Status, keyring.Reason(o.Reason), ruleSentences[o.Reason]
}

// ruleSentences are fixed texts for the client, ASCII without quotes. They do not say which rule it was.
var ruleSentences = map[rules.Reason]string{
	rules.NoRule:                 "Nothing here is for anybody.",
	rules.AuthenticationRequired: "No credential was given.",
	rules.AuthenticatorRefused:   "The credential is of a kind that is not taken here.",
	rules.InsufficientScope:      "The token lacks a scope that is required.",
	rules.RoleRequired:           "A role that is required is missing.",
	rules.AudienceRequired:       "The token is for another audience.",
	rules.ClientRefused:          "The client may not do this.",
	rules.ClaimMismatch:          "A claim is not as it must be.",
	rules.AuthenticationTooOld:   "The last login is too long ago.",
	rules.ConditionFalse:         "This is not allowed.",
	rules.ConditionFailed:        "This is not allowed.",
}

// takes tells whether the rule of the request, if there is one, takes a scheme.
func (r *Request) takes(scheme string) bool {
	return r.rule == nil || len(r.rule.Authenticators()) == 0 || slices.Contains(r.rule.Authenticators(), scheme)
}

// describe makes what rules are given; false: the method, the path or the host can be read in two ways.
func (r *Request) describe() bool {
	if strings.ContainsFunc(r.method, func(c rune) bool { return 'a' <= c && c <= 'z' }) {
		return false // methods are told apart by case (RFC 9110 §9.1), and there are services that do not: "delete" is none of ours
	}
	raw, query, _ := strings.Cut(r.target, "?")
	path, err := rules.Canonical(raw)
	if err != nil {
		return false
	}
	host, ok := rules.Host(r.host)
	if !ok {
		return false
	}
	r.wanted = rules.Request{Method: r.method, Scheme: r.proto, Host: host, Path: path, Query: query, Address: r.client, Header: r.field}
	return true
}
