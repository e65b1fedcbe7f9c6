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

// SetRules puts a set of rules in force for every request that begins from now on. nil: a request is allowed to anybody
// who is known. Any goroutine may call it.
func (a *Agent) SetRules(s *rules.Set) { a.rules.Store(s) }

// SetRulesFault says why the newest rules are not in force, nil: they are. It shows in the status.
func (a *Agent) SetRulesFault(err error) {
	if err == nil {
		a.rulesFault.Store(nil)
		return
	}
	text := err.Error()
	a.rulesFault.Store(&text)
}

// Rules gives the set in force, nil: there is none.
func (a *Agent) Rules() *rules.Set { return a.rules.Load() }

// authorize decides a request: who it is from, and whether the rules let them. It is Authenticate where there are no
// rules. What is denied whoever asks, and what is allowed to everybody, asks for no credential, and so for no lease.
func (a *Agent) authorize(r *Request) {
	set := a.rules.Load()
	if set == nil || r.faulty || r.doubled {
		a.authenticate(r)
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
		a.dismiss(r, rules.Outcome{Status: http.StatusForbidden, Reason: rules.NoRule})
	case r.rule.Anyone():
		r.outcome = rules.Outcome{Rule: r.rule, Status: http.StatusOK}
		r.d = Decision{Scheme: MethodAnonymous, asks: -1}
		r.d.Seq = a.replica.Snapshot().Position.Seq
		r.d.grant(&Principal{Method: MethodAnonymous, mapped: a.unmapped})
		a.chain.count(&r.d)
	default:
		a.authenticate(r)
	}
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
