package agent

import (
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/sidekey/sidekey/keyring"
)

// The reasons that a Decision can have beside those of a Verdict. A scheme of somebody's own may have others.
const (
	// Ambiguous: the request can be read in two ways: a credential or a field of the profile is there twice, or the proxy
	// does not say what was asked for. 403.
	Ambiguous keyring.Reason = "ambiguous_request"
	// UnknownCredential: there is no such API key or token, or no more.
	UnknownCredential keyring.Reason = "unknown_credential"
	// WrongNetwork: the API key or token may not be used from where it was used.
	WrongNetwork keyring.Reason = "wrong_network"
	// BadPassword: no active user has this name and password.
	BadPassword keyring.Reason = "bad_password"
	// Insecure: a password was sent in clear over a network. 403.
	Insecure keyring.Reason = "insecure_transport"
	// Limited: too many attempts. 429.
	Limited keyring.Reason = "rate_limited"
	// Unavailable: whom the scheme must ask has not answered. 503.
	Unavailable keyring.Reason = "unavailable"
	// UnsafeClaim: a claim cannot stand in a header. 403.
	UnsafeClaim keyring.Reason = "unsafe_claim"
	// Refused: a scheme that gives no reason has refused its credential.
	Refused keyring.Reason = "refused"
	// CSRFMissing, CSRFMismatch and CSRFOrigin: the session is good, and nothing shows that its own page sent the request. 403.
	CSRFMissing  keyring.Reason = "csrf_missing"
	CSRFMismatch keyring.Reason = "csrf_mismatch"
	CSRFOrigin   keyring.Reason = "csrf_origin"
)

// The names of the schemes that are built in; those of the first block are also the words of X-Auth-Method.
const (
	MethodBearer  = "bearer"
	MethodSession = "session"
	MethodToken   = "token"
	MethodAPIKey  = "api_key"
	MethodBasic   = "basic"

	schemeWebhook = "webhook"
)

// What Config.Challenges can say.
const (
	ChallengeAll   = "all"   // a challenge of each scheme that has one; none has: 403
	ChallengeFirst = "first" // as Django REST Framework: the first scheme's, and 403 if that has none
)

// defaultAuthenticators are those that need nothing but the log.
var defaultAuthenticators = []string{MethodBearer, MethodSession, MethodToken, MethodAPIKey}

// Decision is who a request is from, or why that is not said. The zero Decision vouches for nobody.
type Decision struct {
	// Verdict has the outcome: 200; 401, 403, 429 and 503 with a Reason. It has no Token.
	Verdict
	// Scheme is the scheme that decided, "" where none took the request for its own.
	Scheme string
	// Principal is whom the request is from, at 200.
	Principal Principal
	// RetryAfter is when to try again, at 429; 0: not known.
	RetryAfter time.Duration

	asks int // the scheme that must ask somebody before it can say more
}

// step is what a scheme says of a request.
type step int

const (
	notMine step = iota // there is no credential of its kind: the next scheme is tried
	// lapsed: there is one that came by itself, a browser's cookie, and is good no more. The next scheme is tried, and if
	// none takes the request its reason is told. It gives nobody a thing that they would not have without it.
	lapsed
	decided // mine, and right or wrong: the Decision has which
	asks    // mine, and somebody must be asked
)

// way is a scheme of the chain.
type way interface {
	// judge judges a request by the view, and fills in the Decision. It does not wait.
	judge(at *view, r *Request, d *Decision) step
	// challenge is its WWW-Authenticate for a request, "": it has none. refused is the Decision, if it is this scheme's own.
	challenge(r *Request, refused *Decision) string
}

// asker is a way that asks somebody outside, and so must not hold a view while it does.
type asker interface {
	way
	// ask asks, in bounded time, and returns what it was told.
	ask(r *Request, seq uint64) answered
}

// chain is the ordered list of schemes.
type chain struct {
	names []string
	ways  []way
	first bool                // ChallengeFirst
	meter map[string]outcomes // by scheme
}

// newChain builds the schemes that cfg names.
func newChain(a *Agent, parts *Parts) (*chain, error) {
	c := &chain{names: a.cfg.Authenticators, first: a.cfg.Challenges == ChallengeFirst}
	for i, name := range c.names {
		if slices.Contains(c.names[:i], name) {
			return nil, fmt.Errorf("authenticator %q is listed twice", name)
		}
		w, err := a.newWay(i, name, parts)
		if err != nil {
			return nil, fmt.Errorf("authenticator %q: %w", name, err)
		}
		c.ways = append(c.ways, w)
	}
	c.meter = a.metrics.schemes(append(slices.Clone(c.names), MethodAnonymous))
	return c, nil
}

func (a *Agent) newWay(place int, name string, parts *Parts) (way, error) {
	switch name {
	case MethodBearer:
		return &bearerWay{a}, nil
	case MethodSession:
		return &sessionWay{a}, nil
	case MethodToken:
		return &tokenWay{credentialWay{a, name}}, nil
	case MethodAPIKey:
		return &apiKeyWay{credentialWay{a, name}}, nil
	case MethodBasic:
		return a.newBasic(place, parts.Passwords)
	case schemeWebhook:
		return a.newWebhook(place)
	}
	return a.newCustom(place, name)
}

// Authenticate finds who a request is from. It is the one decision of all faces that take more than a token, with the
// order of Verify: the lease first, then what the request stands on, last whether that lease still lives. Of the
// schemes in their order, the first that takes the request for its own decides: right, or refused. No later one is
// asked then. What a scheme must ask of somebody is asked outside of any view, once, and judged by a new one.
func (a *Agent) Authenticate(r *Request) Decision {
	a.authenticate(r)
	return r.d
}

func (a *Agent) authenticate(r *Request) {
	d := &r.d
	r.asked = r.asked[:0]
	for looks := 0; looks < maxLooks; {
		at := &r.at
		*at = a.look()
		*d = Decision{asks: -1}
		a.decide(at, r)
		d.Verdict = a.settle(at, d.Verdict, &Query{})
		switch {
		case d.Status == http.StatusServiceUnavailable:
			d.Principal = Principal{}
			a.chain.count(d)
			return
		case d.asks >= 0: // at most once a scheme
			ans := a.chain.ways[d.asks].(asker).ask(r, at.snap.Position.Seq)
			ans.way = d.asks
			r.asked = append(r.asked, ans)
			continue
		case !d.Active() || a.replica.Snapshot() == at.snap:
			if d.Active() && (d.Scheme == MethodAPIKey || d.Scheme == MethodToken) {
				a.used.note(d.Principal.ID, at.now.Unix())
			}
			a.chain.count(d)
			return
		}
		looks++
	}
	// The log runs faster than a request is checked. Fails closed.
	*d = Decision{Verdict: Verdict{Seq: d.Seq}.unavailable(Stale), asks: -1}
	a.chain.count(d)
}

// decide is judge, for a request. It fails closed: only a scheme vouches.
func (a *Agent) decide(at *view, r *Request) {
	d := &r.d
	d.Seq = at.snap.Position.Seq
	switch {
	case !at.snap.Ready:
		d.Verdict = d.unavailable(Starting)
		return
	case at.lease == nil:
		d.Verdict = d.unavailable(Stale)
		return
	case r.faulty, r.doubled:
		d.forbid(Ambiguous)
		return
	}
	var late Decision
	for i, w := range a.chain.ways {
		if !r.takes(a.chain.names[i]) {
			continue
		}
		step := w.judge(at, r, d)
		if r.doubled {
			*d = Decision{Verdict: Verdict{Seq: d.Seq}, Scheme: a.chain.names[i], asks: -1}
			d.forbid(Ambiguous)
			return
		}
		switch step {
		case decided:
			d.Scheme = a.chain.names[i]
			if d.Status == 0 {
				d.Verdict = d.unavailable(Unavailable) // not reached: a scheme that decided said what
			}
			if d.Active() && r.rule != nil {
				a.permit(at, r)
			}
			return
		case asks:
			d.asks, d.Status, d.Reason = i, http.StatusUnauthorized, keyring.Missing // vouches for nobody meanwhile
			return
		case lapsed:
			if late.Status == 0 {
				late, late.Scheme = *d, a.chain.names[i]
			}
		case notMine:
		}
		*d = Decision{Verdict: Verdict{Seq: d.Seq}, asks: -1}
	}
	if late.Status != 0 {
		*d = late
		return
	}
	d.refuse(keyring.Deny(keyring.Missing, "", nil))
}

// grant accepts.
func (d *Decision) grant(p *Principal) {
	d.Principal = *p
	d.Status, d.Reason, d.Description = http.StatusOK, "", ""
}

// refuse is 401.
func (d *Decision) refuse(why *keyring.Denial) {
	d.Verdict = d.denied(why)
	if text, ok := sentences[d.Reason]; ok {
		d.Description = text
	}
}

// forbid is 403: to come again with the same credential would not help, nor with another.
func (d *Decision) forbid(reason keyring.Reason) {
	d.Status, d.Reason, d.Description = http.StatusForbidden, reason, sentences[reason]
}

// sentences are fixed texts for the client, ASCII without quotes, as keyring.Denial.Description.
var sentences = map[keyring.Reason]string{
	keyring.Missing:   "No credential was given.",
	keyring.Revoked:   "The credential was revoked.",
	Ambiguous:         "The request can be read in two ways.",
	UnknownCredential: "The credential is not known.",
	WrongNetwork:      "The credential may not be used from this network.",
	BadPassword:       "The user name or password is wrong.",
	Insecure:          "A password must not be sent in clear.",
	Limited:           "There were too many attempts.",
	Unavailable:       "The credential cannot be checked now.",
	UnsafeClaim:       "A claim cannot stand in a header.",
	Refused:           "The credential was refused.",
	CSRFMissing:       "The CSRF token is missing.",
	CSRFMismatch:      "The CSRF token is not the session's.",
	CSRFOrigin:        "The request comes from another origin.",
}

// challenges gives the WWW-Authenticate values of a refusal; none: it is 403. They are in the order of the schemes.
func (c *chain) challenges(r *Request) []string {
	var all []string
	for i, w := range c.ways {
		if !r.takes(c.names[i]) {
			continue
		}
		var own *Decision
		if r.d.Scheme == c.names[i] {
			own = &r.d
		}
		if text := w.challenge(r, own); text != "" {
			all = append(all, text)
		}
		if c.first {
			break
		}
	}
	return all
}

// checkChain refuses a list that cannot be meant, and fills in the defaults.
func (c *Config) checkChain() error {
	if len(c.Authenticators) == 0 {
		c.Authenticators = defaultAuthenticators
	}
	if c.Challenges == "" {
		c.Challenges = ChallengeAll
	}
	if c.Challenges != ChallengeAll && c.Challenges != ChallengeFirst {
		return fmt.Errorf("checking the agent's config: challenges is %q, not %q or %q", c.Challenges, ChallengeAll, ChallengeFirst)
	}
	if err := CheckHeaders(c.Headers); err != nil {
		return fmt.Errorf("checking the agent's config: %w", err)
	}
	return nil
}
