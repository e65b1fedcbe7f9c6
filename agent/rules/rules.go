package rules

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Reason is why a rule decided as it did. The same word stands in the answer, the log and the metric label. "" is no denial.
type Reason string

// The reasons of a denial, beside those of the authenticators.
const (
	NoRule                 Reason = "no_rule"                          // no rule is for that host, method and path
	AuthenticationRequired Reason = "authentication_required"          // nobody is known
	AuthenticatorRefused   Reason = "authenticator_not_allowed"        // the caller is known by a scheme that the rule does not take
	InsufficientScope      Reason = "insufficient_scope"               // RFC 6750 §3.1
	RoleRequired           Reason = "role_required"                    //
	AudienceRequired       Reason = "audience_required"                //
	ClientRefused          Reason = "client_not_allowed"               //
	ClaimMismatch          Reason = "claim_mismatch"                   //
	AuthenticationTooOld   Reason = "insufficient_user_authentication" // RFC 9470 §3: log in again
	ConditionFalse         Reason = "condition_false"                  // "when" is false
	ConditionFailed        Reason = "condition_failed"                 // "when" could not be evaluated, or cost too much
)

// Request is what a rule can ask of a request. It is read during a call only.
type Request struct {
	Method  string // as it was sent
	Scheme  string // "http" or "https", "" where nobody says
	Host    string // in lower case, without a port
	Path    Path
	Query   string                   // as it was sent, without "?"
	Address netip.Addr               // of the client; the zero value: unknown
	Header  func(name string) string // a field's value, "" where it is absent; nil: there are none
}

// Principal is who is known. The zero value is nobody.
type Principal struct {
	Subject  string
	Method   string // the scheme: "bearer", "session", "token", "api_key", "basic"
	Scope    string // RFC 6749 §3.3
	Roles    []string
	Audience []string
	Client   string
	Session  string
	AuthTime int64 // NumericDate: when a password was last proven; 0: unknown
	// Claims gives all claims, decoded; nil: there are none. It is called once per decision at most, and only by a rule
	// that asks for them; what it gives is shared and not changed.
	Claims func() map[string]any
}

// known tells whether p is somebody.
func (p *Principal) known() bool { return p != nil && p.Subject != "" }

// Outcome is what a Set says of a request.
type Outcome struct {
	Rule   *Rule  // that decided; nil: none matched
	Status int    // 200, 401 or 403
	Reason Reason // "" at 200
	Detail string // for the operator: what was missing; never from the request
	Scope  string // at insufficient_scope: what the rule requires
	MaxAge int64  // at insufficient_user_authentication: seconds
}

// Allowed tells whether the request may pass.
func (o *Outcome) Allowed() bool { return o.Status == statusOK }

const (
	statusOK           = 200
	statusUnauthorized = 401
	statusForbidden    = 403
)

// Rule is one rule of a Set. It is immutable.
type Rule struct {
	Name string
	Line string // where it stands: "rules.toml:14"
	Set  string // that the log hands out and that it is of; "": a file of this host

	hosts          []string
	methods        []string // none: any
	patterns       [][]segment
	authenticators []string // none: any
	anyone         bool
	literalSlash   bool
	preflight      bool
	require        require
	when           *condition
}

// Anyone tells whether the rule lets everybody pass, known or not.
func (r *Rule) Anyone() bool { return r.anyone }

// Authenticators are the schemes by which a caller may be known here, nil: any. Do not change it.
func (r *Rule) Authenticators() []string { return r.authenticators }

// require is what must be true of who is known. Every member that is set must hold.
type require struct {
	scope    string
	scopes   []string // all of them
	roles    []string // one of them
	audience []string // one of them
	clients  []string // one of them
	claims   []claim
	authAge  time.Duration
}

type claim struct {
	name string
	want any
}

// Set is a list of rules. Make it with Parse; nil decides nothing. It is immutable.
type Set struct {
	rules   []*Rule
	index   *index
	version string
}

// Version names the text that the rules were read from: equal texts have equal versions.
func (s *Set) Version() string { return s.version }

// Len counts the rules.
func (s *Set) Len() int { return len(s.rules) }

// Rules gives the rules in their order. Do not change the slice.
func (s *Set) Rules() []*Rule { return s.rules }

// Match gives the first rule for the request's host, method and path, nil: there is none. A CORS preflight (Fetch
// standard §4.8) is matched by the method that it asks for, where the rule for that says so.
func (s *Set) Match(r *Request) *Rule {
	if asked := preflight(r); asked != "" {
		if n := s.find(r, asked); n != none && s.rules[n].preflight {
			return preflightRule(s.rules[n])
		}
	}
	if n := s.find(r, r.Method); n != none {
		return s.rules[n]
	}
	return nil
}

// PlainMethod tells whether a method has no small letters. Methods are told apart by case (RFC 9110 §9.1), but not by every
// service: what a rule for POST would not see as "post", Django takes for POST. So no rule matches such a request.
func PlainMethod(method string) bool {
	return !strings.ContainsFunc(method, func(c rune) bool { return 'a' <= c && c <= 'z' })
}

// preflightRule is the rule for the preflight of what rule is for: a browser sends no credential with one.
func preflightRule(rule *Rule) *Rule {
	return &Rule{Name: rule.Name, Line: rule.Line, Set: rule.Set, anyone: true}
}

// preflight gives the method that a CORS preflight asks for, "" for any other request. A list of origins is no browser's: two
// fields, which a proxy has made one.
func preflight(r *Request) string {
	if r.Method != "OPTIONS" || r.Header == nil {
		return ""
	}
	if origin := r.Header("Origin"); origin == "" || strings.ContainsAny(origin, ", ") {
		return ""
	}
	return r.Header("Access-Control-Request-Method")
}

// find gives the number of the first rule for host, method and path. Whether it takes an escaped slash is asked of that rule
// alone: were it passed over, a path below it would fall to a later rule that allows more.
func (s *Set) find(r *Request, method string) int {
	if !PlainMethod(method) {
		return none
	}
	n := s.index.find(r.Host, r.Path.segments, func(n int) bool {
		return len(s.rules[n].methods) == 0 || slices.Contains(s.rules[n].methods, method)
	})
	if n != none && r.Path.slashes && !s.rules[n].literalSlash {
		return none
	}
	return n
}

// Decide is Match, then Rule.Decide.
func (s *Set) Decide(r *Request, p *Principal, now time.Time) Outcome {
	rule := s.Match(r)
	if rule == nil {
		return Outcome{Status: statusForbidden, Reason: NoRule}
	}
	return rule.Decide(r, p, now)
}

// Decide says what the rule, which matches the request, makes of who is known; nil: nobody is. It fails closed: only its
// first and its last line allow.
func (rule *Rule) Decide(r *Request, p *Principal, now time.Time) Outcome {
	if rule.anyone {
		return Outcome{Rule: rule, Status: statusOK}
	}
	if !p.known() {
		return Outcome{Rule: rule, Status: statusUnauthorized, Reason: AuthenticationRequired}
	}
	if len(rule.authenticators) > 0 && !slices.Contains(rule.authenticators, p.Method) {
		return Outcome{Rule: rule, Status: statusForbidden, Reason: AuthenticatorRefused, Detail: "known by " + p.Method}
	}
	var claims map[string]any
	if p.Claims != nil && rule.readsClaims() {
		claims = p.Claims()
	}
	if o, ok := rule.require.check(p, claims, now); !ok {
		o.Rule = rule
		return o
	}
	if reason, detail := rule.when.check(&evaluation{rule: rule, request: r, principal: p, claims: claims, now: now}); reason != "" {
		return Outcome{Rule: rule, Status: statusForbidden, Reason: reason, Detail: detail}
	}
	return Outcome{Rule: rule, Status: statusOK}
}

func (rule *Rule) readsClaims() bool { return len(rule.require.claims) > 0 || rule.when != nil }

// check gives the denial of the first requirement that does not hold.
func (q *require) check(p *Principal, claims map[string]any, now time.Time) (Outcome, bool) {
	deny := func(reason Reason, detail string) (Outcome, bool) {
		return Outcome{Status: statusForbidden, Reason: reason, Detail: detail}, false
	}
	for _, scope := range q.scopes {
		if !hasWord(p.Scope, scope) {
			o, _ := deny(InsufficientScope, "scope "+scope)
			o.Scope = q.scope
			return o, false
		}
	}
	switch {
	case !oneOf(q.roles, p.Roles...):
		return deny(RoleRequired, "one of "+strings.Join(q.roles, ", "))
	case !oneOf(q.audience, p.Audience...):
		return deny(AudienceRequired, "one of "+strings.Join(q.audience, ", "))
	case !oneOf(q.clients, p.Client):
		return deny(ClientRefused, "one of "+strings.Join(q.clients, ", "))
	}
	for _, c := range q.claims {
		if !claimFits(c.want, claims[c.name]) {
			return deny(ClaimMismatch, "claim "+c.name)
		}
	}
	if q.authAge > 0 && (p.AuthTime == 0 || now.Sub(time.Unix(p.AuthTime, 0)) > q.authAge) {
		return Outcome{Status: statusUnauthorized, Reason: AuthenticationTooOld, MaxAge: int64(q.authAge / time.Second)}, false
	}
	return Outcome{}, true
}

// oneOf tells whether one of have is among want; nothing wanted: it is.
func oneOf(want []string, have ...string) bool {
	return len(want) == 0 || slices.ContainsFunc(have, func(h string) bool { return h != "" && slices.Contains(want, h) })
}

// hasWord tells whether a blank-separated list has a word (RFC 6749 §3.3).
func hasWord(list, word string) bool {
	for one := range strings.SplitSeq(list, " ") {
		if one == word {
			return true
		}
	}
	return false
}

// claimFits tells whether a claim is as it must be: equal, or among the values wanted, or, an array itself, with one
// such member. A claim that is absent never fits.
func claimFits(want, have any) bool {
	if all, ok := want.([]any); ok {
		return slices.ContainsFunc(all, func(one any) bool { return claimFits(one, have) })
	}
	if all, ok := have.([]any); ok {
		return slices.ContainsFunc(all, func(one any) bool { return scalarsEqual(want, one) })
	}
	return scalarsEqual(want, have)
}

// scalarsEqual compares a value of TOML with one of JSON: strings, booleans and numbers, never one kind with another.
func scalarsEqual(want, have any) bool {
	if n, ok := have.(json.Number); ok {
		f, err := n.Float64()
		if err != nil {
			return false
		}
		have = f
	}
	switch w := want.(type) {
	case int64:
		f, ok := have.(float64)
		return ok && f == float64(w)
	case float64:
		f, ok := have.(float64)
		return ok && f == w
	case string:
		s, ok := have.(string)
		return ok && s == w
	case bool:
		b, ok := have.(bool)
		return ok && b == w
	}
	return false
}
