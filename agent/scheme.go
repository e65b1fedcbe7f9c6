package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/keyring"
)

// Scheme is a way of one's own for a request to say who it is from. docs/authenticators.md shows how to build one in.
type Scheme interface {
	// Authenticate looks at a request:
	//
	//	nil, nil        the request has no credential of this scheme: the next scheme is tried
	//	nil, *Refusal   it has one, and that is wrong: nothing else is tried
	//	p, nil          it has one, and that is right
	//	nil, any error  nobody can tell now: 503
	//
	// It must return when ctx ends, which is after a few seconds; many run at once. It is called at most once a
	// request, and never while the agent has no lease. What it accepts is refused all the same if it is revoked or
	// expired; see Principal. Credentials are to be compared in constant time.
	Authenticate(ctx context.Context, r *Request) (*Principal, error)
	// Challenge is its WWW-Authenticate (RFC 9110 §11.6.1), "": it has none. It is asked for once.
	Challenge() string
}

// SchemeConfig is what a Scheme is made from.
type SchemeConfig struct {
	Name   string         // in agent.authenticators, and X-Auth-Method's word
	Table  map[string]any // [agent.schemes.NAME], as it was read
	Realm  string         // agent.realm, for a challenge
	Logger hclog.Logger
}

// Decode reads the table into a struct, by its json tags. A key that the struct lacks is an error.
func (c *SchemeConfig) Decode(into any) error {
	text, err := json.Marshal(c.Table)
	if err != nil {
		return fmt.Errorf("reading [agent.schemes.%s]: %w", c.Name, err)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("reading [agent.schemes.%s]: %w", c.Name, err)
	}
	return nil
}

// Refusal says that a credential is a Scheme's own and wrong. The zero Refusal is a 401 with the reason Refused.
type Refusal struct {
	// Reason is told to the client and logged: lower-case letters, digits and underscores. Never a secret.
	Reason keyring.Reason
	// Forbidden makes it 403: another credential would not help.
	Forbidden bool
	// RetryAfter makes it 429, where it is over zero.
	RetryAfter time.Duration
}

func (r *Refusal) Error() string { return "credential refused: " + string(r.Reason) }

var (
	schemesMu sync.Mutex
	schemes   = map[string]func(SchemeConfig) (Scheme, error){}

	schemeName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`)
	reasonWord = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)
)

// RegisterScheme makes a scheme known under a name, for agent.authenticators. It is for an init function, and panics if
// the name is taken or none.
func RegisterScheme(name string, build func(SchemeConfig) (Scheme, error)) {
	schemesMu.Lock()
	defer schemesMu.Unlock()
	if !schemeName.MatchString(name) || slices.Contains(builtIn, name) || schemes[name] != nil {
		panic(fmt.Sprintf("agent: scheme %q is taken, or is no name of letters, digits and underscores", name))
	}
	schemes[name] = build
}

// builtIn are the names that are no stranger's.
var builtIn = []string{MethodBearer, MethodSession, MethodToken, MethodAPIKey, MethodBasic, schemeWebhook, "anonymous", noScheme}

// Schemes are the names that agent.authenticators can have.
func Schemes() []string {
	schemesMu.Lock()
	defer schemesMu.Unlock()
	return append([]string{MethodBearer, MethodSession, MethodToken, MethodAPIKey, MethodBasic, schemeWebhook}, slices.Sorted(maps.Keys(schemes))...)
}

// schemePatience bounds the time that a scheme of somebody's own may take.
const schemePatience = 5 * time.Second

// customWay is a Scheme in the chain.
type customWay struct {
	*Agent
	place  int
	name   string
	scheme Scheme
	text   string // its challenge
}

func (a *Agent) newCustom(place int, name string) (way, error) {
	schemesMu.Lock()
	build := schemes[name]
	schemesMu.Unlock()
	if build == nil {
		return nil, fmt.Errorf("there is no such scheme; this binary has %s", strings.Join(Schemes(), ", "))
	}
	s, err := build(SchemeConfig{Name: name, Table: a.cfg.Schemes[name], Realm: a.cfg.Realm, Logger: a.log.Named(name)})
	if err != nil {
		return nil, err
	}
	w := &customWay{a, place, name, s, s.Challenge()}
	if !headerSafe(w.text) {
		return nil, fmt.Errorf("its challenge %q cannot stand in a header", w.text)
	}
	return w, nil
}

func (w *customWay) judge(at *view, r *Request, d *Decision) step {
	ans := r.answer(w.place)
	if ans == nil {
		return asks
	}
	return w.judgeAnswer(at, ans, d)
}

func (w *customWay) challenge(*Request, *Decision) string { return w.text }

func (w *customWay) ask(r *Request, seq uint64) answered {
	ctx, cancel := context.WithTimeout(context.Background(), schemePatience)
	defer cancel()
	p, err := w.scheme.Authenticate(ctx, r)
	var refusal *Refusal
	switch {
	case errors.As(err, &refusal):
		return refused(refusal)
	case err != nil:
		return w.unknown(w.name, r, err)
	case p == nil:
		return answered{}
	}
	return w.accept(w.name, r, *p, seq)
}

// accept takes a principal in that a scheme has made after the agent had applied seq.
func (a *Agent) accept(name string, r *Request, p Principal, seq uint64) answered {
	p.Method = name
	if err := p.check(); err != nil {
		return a.unknown(name, r, err)
	}
	p.mapped = p.mapClaims(a.claims)
	if !p.presentable() {
		return answered{verdict: Verdict{Status: http.StatusForbidden, Reason: UnsafeClaim, Description: sentences[UnsafeClaim]}}
	}
	return answered{verdict: Verdict{Status: http.StatusOK}, who: &remembered{Principal: p, ids: p.ids(seq)}}
}

// refused is the answer of a scheme that refuses.
func refused(why *Refusal) answered {
	ans := answered{verdict: Verdict{Status: http.StatusUnauthorized, Reason: why.Reason}, retry: why.RetryAfter}
	if !reasonWord.MatchString(string(why.Reason)) {
		ans.verdict.Reason = Refused
	}
	switch {
	case why.RetryAfter > 0:
		ans.verdict.Status = http.StatusTooManyRequests
	case why.Forbidden:
		ans.verdict.Status = http.StatusForbidden
	}
	if ans.verdict.Description = sentences[ans.verdict.Reason]; ans.verdict.Description == "" {
		ans.verdict.Description = sentences[Refused]
	}
	return ans
}

// unknown is the answer of a scheme that cannot tell. It fails closed.
func (a *Agent) unknown(name string, r *Request, err error) answered {
	a.log.Warn("an authenticator cannot tell whether a credential is right", append([]any{"authenticator", name, "error", err}, r.trace().Pairs()...)...)
	return answered{verdict: Verdict{}.unavailable(Unavailable)}
}

// judgeAnswer judges by the view what a scheme that asks was told.
func (a *Agent) judgeAnswer(at *view, ans *answered, d *Decision) step {
	seq := d.Seq
	switch ans.verdict.Status {
	case 0:
		return notMine
	case http.StatusOK:
		if why := a.stands(at, &ans.who.Principal, &ans.who.ids); why != nil {
			d.refuse(a.denial(why))
			return decided
		}
		d.grant(&ans.who.Principal)
	default:
		d.Verdict, d.RetryAfter = ans.verdict, ans.retry
		d.Seq = seq
	}
	return decided
}
