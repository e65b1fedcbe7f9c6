package agent

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// The reasons that a Verdict can have beside keyring.Reasons. They are the same word in answer,
// log and metric label.
const (
	// InsufficientScope: the token is good and lacks a scope that was asked for (RFC 6750 §3.1).
	InsufficientScope keyring.Reason = "insufficient_scope"
	// Starting: the agent has not had its first full sync, and vouches for nobody before it.
	Starting keyring.Reason = "starting"
	// Stale: the agent has no lease, or none as fresh as the caller asked for, or it has not applied
	// what the caller asked for: it does not know what the log holds now.
	Stale keyring.Reason = "stale"
)

// Query is what a caller demands of a token beyond its being good. The zero value demands nothing.
// Its strings are read during Verify only.
type Query struct {
	Audience   string // the one audience to accept; "": those of the agent's Config
	Scope      string // scope tokens, separated by spaces, that the token must have all (RFC 6749 §3.3)
	AtLeastSeq uint64 // a sequence that a revocation answered: the agent must have applied it
	// MaxStaleness bounds how old the agent's knowledge may be; 0: as old as its lease may become.
	MaxStaleness time.Duration
}

// Verdict is the outcome of a check. The zero Verdict vouches for nothing.
type Verdict struct {
	// Status is the HTTP status that means this outcome: 200, 401 (Reason is one of
	// keyring.Reasons), 403 (InsufficientScope) or 503 (Starting, Stale).
	Status int
	// Reason is why the token is not accepted; "" at 200.
	Reason keyring.Reason
	// Seq is the sequence that the agent had applied, and by which it judged.
	Seq uint64
	// Description is a fixed sentence for the client (RFC 6750 §3), "" at 200.
	Description string
	// Serving: the agent had no lease and went on, as agent.on_stale = "serve" has it.
	Serving bool

	proof *proof // what was proven; nil but at 200 and 403
}

// Active tells whether the token is good and has the scope that was asked for.
func (v *Verdict) Active() bool { return v.Status == http.StatusOK }

// Token is what was proven, at 200 and 403; else nil. It is shared: do not change it.
func (v *Verdict) Token() *keyring.Token {
	if v.proof == nil {
		return nil
	}
	return v.proof.token
}

// view is what one request stands on. It is taken whole before anything else is looked at, and
// everything in the request is judged by it alone.
type view struct {
	lease *lease.Lease // taken first: see settle
	snap  *replica.Snapshot
	now   time.Time
}

// Verify is the one decision: every face of the agent asks it, and nothing else accepts a token.
// It answers from memory and does not wait. The token's bytes are kept by nobody: what is
// remembered of it is copied.
//
// The order within a request (PROTOCOL 2): first look takes what the request stands on, the lease
// before the rest, then judge reads ring and revocations, last settle looks whether that same lease
// still lives. A revocation is visible to judge before a snapshot that covers it is, so
// a verdict never claims a sequence whose revocations it has not seen.
//
// An entry may be applied, acknowledged and reported as known to every agent while a check is under
// way that has not seen it. So a check over whose course a newer snapshot came is done again: what
// is accepted is accepted by the newest one there is when it is decided.
func (a *Agent) Verify(token string, q Query) Verdict {
	var v Verdict
	for range maxLooks {
		at := a.look()
		v = a.settle(&at, a.judge(&at, token, &q), &q)
		if !v.Active() && v.Status != http.StatusForbidden || a.replica.Snapshot() == at.snap {
			a.metrics.verdict(v.Reason)
			return v
		}
	}
	// The log runs faster than a token is checked. Fails closed.
	v = Verdict{Seq: v.Seq}.unavailable(Stale)
	a.metrics.verdict(v.Reason)
	return v
}

// maxLooks bounds how often one check is done again.
const maxLooks = 8

// look takes the snapshot, once, and the time. Time is never behind the log: a wall clock that
// lags would accept what has expired for everybody else (DESIGN §3).
func (a *Agent) look() view {
	at := view{lease: a.leases.Current()}
	at.snap, at.now = a.replica.Snapshot(), a.now()
	if at.snap.TickTime.After(at.now) {
		at.now = at.snap.TickTime
	}
	return at
}

// judge decides by the view. It fails closed: only its last line vouches.
func (a *Agent) judge(at *view, token string, q *Query) Verdict {
	v := Verdict{Seq: at.snap.Position.Seq}
	switch {
	case !at.snap.Ready:
		return v.unavailable(Starting)
	case at.lease == nil, q.AtLeastSeq > v.Seq:
		return v.unavailable(Stale)
	}
	p, err := a.standing(at, keyring.AccessToken, token, q.Audience)
	if err != nil {
		return v.denied(a.denial(err))
	}
	v.proof = p
	if !covers(p.token.Claims.Scope, q.Scope) {
		v.Status, v.Reason, v.Description = http.StatusForbidden, InsufficientScope, "the token lacks a scope that is required"
		return v
	}
	v.Status = http.StatusOK
	return v
}

// standing finds the proof of a token of one kind that is good by the view: proven, in time, and not
// revoked. The error is a *keyring.Denial.
func (a *Agent) standing(at *view, typ keyring.TokenType, token, audience string) (*proof, error) {
	p, err := a.prove(at, typ, token, audience)
	if err == nil && a.replica.Revoked(&p.ids) {
		err = keyring.Deny(keyring.Revoked, p.token.KeyID, nil)
	}
	if err == nil && a.replica.Forgotten(p.end) {
		err = keyring.Deny(keyring.Expired, p.token.KeyID, errForgotten)
	}
	return p, err
}

// settle is the last step of every check, whatever its outcome. The lease that was taken first must
// still live now that ring and revocations have been read. One renewed meanwhile does not count: it
// may cover an entry that judge did not see. Without one even a refusal says too much: a key that is
// unknown here may be known to everybody else.
func (a *Agent) settle(at *view, v Verdict, q *Query) Verdict {
	if v.Status != http.StatusServiceUnavailable {
		now := a.clock()
		switch {
		case !at.lease.Vouches(now):
			v = Verdict{Seq: v.Seq}.unavailable(Stale)
		case q.MaxStaleness > 0 && at.lease.Age(now) > q.MaxStaleness:
			a.hurry()
			v = Verdict{Seq: v.Seq}.unavailable(Stale)
		default:
			v.Serving = !at.lease.Live(now)
		}
	}
	return v
}

var (
	errForgotten = errors.New("its revocation may have been dropped already")
	errLength    = errors.New("it is longer than any token")
)

func (v Verdict) unavailable(reason keyring.Reason) Verdict {
	v.Status, v.Reason = http.StatusServiceUnavailable, reason
	switch reason {
	case Starting:
		v.Description = "the agent has not had its first full sync"
	case Stale:
		v.Description = "the agent does not know the log's newest state, or not as new as was asked for"
	default:
		v.Description = "whom the agent must ask about this credential does not answer"
	}
	return v
}

func (v Verdict) denied(d *keyring.Denial) Verdict {
	v.Status, v.Reason, v.Description = http.StatusUnauthorized, d.Reason, d.Description()
	return v
}

// denial is the refusal in err. An error of another type is a fault of ours: it fails closed, as
// a token that could not be read.
func (a *Agent) denial(err error) *keyring.Denial {
	var d *keyring.Denial
	if !errors.As(err, &d) {
		a.log.Error("checking a token failed for no reason of the token's", "error", err)
		return keyring.Deny(keyring.Malformed, "", err)
	}
	if a.log.IsDebug() {
		a.log.Debug("token denied", "reason", d.Reason, "kid", d.KeyID, "error", d.Err)
	}
	return d
}

// expect is what the ring is asked to demand of a token of that kind. one holds the audience that the
// caller asked for; with none asked and none configured, the ring demands its default.
func (a *Agent) expect(at *view, typ keyring.TokenType, one *[1]string) keyring.Expect {
	want := keyring.Expect{Type: typ, Audiences: a.cfg.Audiences, Leeway: a.cfg.Leeway, Now: at.now}
	if one[0] != "" {
		want.Audiences = one[:]
	}
	return want
}

// prove finds the proof of a token and holds it against the ring and the time of the view. A
// token that this very key has proven is not proven again: that cannot change. Whether the key
// is still held, and whether the token is in time and for this audience, can, and is looked at on
// each hit.
func (a *Agent) prove(at *view, typ keyring.TokenType, token, audience string) (*proof, error) {
	p := a.cache.get(token)
	if p == nil {
		return a.proveFirst(at, typ, token, audience)
	}
	ring := at.snap.Ring
	if rec, ok := ring.Record(p.token.KeyID); ok && rec.Key != nil && rec.Key != p.key {
		return a.proveFirst(at, typ, token, audience) // the record was written anew: is the key the same?
	}
	one := [1]string{audience}
	if err := ring.Recheck(p.token, a.expect(at, typ, &one)); err != nil {
		return nil, err
	}
	return p, nil
}

// proveFirst proves a token that the cache does not know, and remembers it if it is good. The
// token may point into a request: what outlives the call is made from a copy.
func (a *Agent) proveFirst(at *view, typ keyring.TokenType, token, audience string) (*proof, error) {
	if len(token) > keyring.MaxTokenLength {
		return nil, keyring.Deny(keyring.Malformed, "", errLength)
	}
	token = strings.Clone(token)
	ring := at.snap.Ring
	t, err := ring.Verify(token, a.expect(at, typ, &[1]string{strings.Clone(audience)}))
	if err != nil {
		return nil, err
	}
	rec, ok := ring.Record(t.KeyID)
	if !ok {
		return nil, keyring.Deny(keyring.UnknownKey, t.KeyID, nil) // not reached: the ring has just used it
	}
	p, err := newProof(t, rec.Key, a.cfg.Leeway)
	if err != nil {
		return nil, err
	}
	a.cache.add(token, p)
	return p, nil
}

// end is the first second (NumericDate) at which the token is refused for its age, leeway included.
func end(exp time.Time, leeway time.Duration) int64 {
	t := exp.Add(leeway)
	if t.Nanosecond() > 0 {
		return t.Unix() + 1
	}
	return t.Unix()
}

// covers tells whether every scope token of want is among those of have (RFC 6749 §3.3: they are
// compared by case, their order means nothing).
func covers(have, want string) bool {
	for want != "" {
		var one string
		one, want, _ = strings.Cut(want, " ")
		if one != "" && !hasScope(have, one) {
			return false
		}
	}
	return true
}

func hasScope(have, one string) bool {
	for have != "" {
		var next string
		next, have, _ = strings.Cut(have, " ")
		if next == one {
			return true
		}
	}
	return false
}
