package lease

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// How often an agent speaks.
const (
	ackApart   = 50 * time.Millisecond // acknowledgements: at once, then at most 20 a second;
	ackRetry   = 200 * time.Millisecond
	ackAgain   = time.Second      // then once more, since one may be lost, and less and less often
	ackSlowest = 32 * time.Second // while there is nothing but ticks
	askWithin  = 3 * time.Second  // for an answer, which comes with the issuer's next tick;
	askShort   = time.Second / 2  // of a short lease a sixth of it, but not less than this
	askAgain   = 200 * time.Millisecond
	askSlowest = 5 * time.Second
	askLate    = 10 * time.Second // who still has a lease at its start asks up to this later
)

// Line is an agent's line to the issuers: *bus.Conn.
type Line interface {
	AskLease(ctx context.Context, agent string, body, signature []byte) (bus.Spoken, error)
	Acknowledge(agent string, body, signature []byte) error
	Connected() bool
}

// Applied is what an agent has applied: *replica.Replica.
type Applied interface {
	// Cursor is what is visible to the verify path, and the chain there.
	Cursor() bus.Cursor
	// ChainAt gives the chain at an earlier sequence, while it is remembered.
	ChainAt(seq uint64) (bus.Chain, bool)
	// Due is the newest entry applied that an issuer waits for: no tick, as a rule.
	Due() uint64
	// Changed is closed when Cursor moves after the call.
	Changed() <-chan struct{}
}

// Renewer keeps an agent's lease alive and acknowledges what is applied. All members but Clock, Stuck and Alive are required.
type Renewer struct {
	Holder    *Holder
	Agent     string
	Key       ed25519.PrivateKey   // the agent's own
	Authority keyring.AuthorityKey // whose grants are believed
	Line      Line
	Applied   Applied
	Clock     Clock
	Logger    hclog.Logger
	// Stuck says why nothing more can be applied, nil while it can: a lease would not come into force,
	// and everybody would wait for its end. nil: nothing is ever stuck.
	Stuck func() error
	// Alive is called at each turn of Renew, with how long the next may take. nil: nobody wants to know.
	Alive func(within time.Duration)

	hurry      chan struct{} // holds one while a fresher lease is wanted
	unanswered int           // questions since issuers were last quick; Renew's own
	grants     *ownGrants
}

// NewRenewer makes one of its members.
func NewRenewer(r Renewer) *Renewer {
	if r.Clock == nil {
		r.Clock = SystemClock
	}
	if r.Alive == nil {
		r.Alive = func(time.Duration) {}
	}
	r.hurry, r.grants = make(chan struct{}, 1), new(ownGrants)
	return &r
}

// Hurry asks for a new lease now: somebody wants fresher knowledge than the one in force proves. It
// does not wait.
func (r *Renewer) Hurry() {
	select {
	case r.hurry <- struct{}{}:
	default:
	}
}

// Renew asks for leases until ctx ends: when a third of the lease is over, more or less, so that two
// further thirds are there to try again. Agents that started together, or that waited together for an
// issuer, would ask together ever after; so the second time comes at any moment of the first third. Who
// has a lease from an earlier process leaves those without one a little time.
func (r *Renewer) Renew(ctx context.Context) {
	if head := r.head(); head > 0 && !r.pause(ctx, head) {
		return
	}
	again, together := 2*askAgain, true
	for {
		r.Alive(askWithin)
		err := r.ask(ctx)
		if ctx.Err() != nil {
			return
		}
		wait := r.Holder.cfg.Length / 3
		switch {
		case err != nil:
			r.Logger.Warn("could not renew the lease, trying again", "left", r.left().Round(time.Millisecond).String(), "error", err)
			again = min(again, askSlowest, max(askAgain, r.Holder.cfg.Length/10))
			wait = again - rand.N(again/2)
			again, together = 2*again, true
		case together:
			wait -= rand.N(wait * 7 / 8)
			again, together = 2*askAgain, false
		default:
			wait -= rand.N(wait/5 + 1)
		}
		if !r.pause(ctx, wait) {
			return
		}
	}
}

// pause waits for so long, or for a Hurry, and tells whether ctx goes on.
func (r *Renewer) pause(ctx context.Context, wait time.Duration) bool {
	r.Alive(wait)
	select {
	case <-time.After(wait):
	case <-r.hurry:
		select {
		case <-time.After(askAgain): // who asks for it is a client: it may not set the pace
		case <-ctx.Done():
		}
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// head is how long the first question may wait: 0 without a lease, and never so long that a lease
// that is there could end meanwhile.
func (r *Renewer) head() time.Duration {
	most := min(r.Holder.keptLeft()/3, r.Holder.cfg.Length/30, askLate)
	if most <= 0 {
		return 0
	}
	return rand.N(most)
}

func (r *Renewer) left() time.Duration {
	if l := r.Holder.Current(); l != nil {
		return l.Left(r.Clock())
	}
	return 0
}

// patience is how long an answer is waited for. Of several issuers one gets the question, and that one may be gone: there has to be
// time for others. But issuers that all answer late, on a slow disk, answer too: the more questions have had none, the longer is
// waited for the next one's, up to the lease's length, behind which it would be worth nothing.
func (r *Renewer) patience() time.Duration {
	return min(askWithin, max(r.short(), min(r.Holder.cfg.Length, r.short()<<min(r.unanswered, 8))))
}

func (r *Renewer) short() time.Duration { return max(askShort, r.Holder.cfg.Length/6) }

func (r *Renewer) ask(ctx context.Context) error {
	if !r.Line.Connected() {
		return errors.New("the bus is away")
	}
	if r.Stuck != nil {
		if err := r.Stuck(); err != nil {
			return fmt.Errorf("not asking for a lease: %w", err)
		}
	}
	req := r.Holder.Ask()
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("asking for a lease: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, r.patience())
	defer cancel()
	began := time.Now()
	ans, err := r.Line.AskLease(ctx, r.Agent, body, ed25519.Sign(r.Key, signed(contextRequest, body)))
	if err != nil {
		r.unanswered++
		return err
	}
	if time.Since(began) < r.short() {
		r.unanswered = 0 // they are quick again
	}
	if len(ans.Signature) == 0 {
		var no refusal
		json.Unmarshal(ans.Body, &no) //nolint:errcheck // what cannot be read is a refusal too
		return fmt.Errorf("asking for a lease: the issuer refused: %q", no.Error)
	}
	if !r.Authority.Verify(signed(contextGrant, ans.Body), ans.Signature) {
		return fmt.Errorf("taking a lease: %w", bus.ErrForged)
	}
	var g Grant
	if err := json.Unmarshal(ans.Body, &g); err != nil {
		return fmt.Errorf("taking a lease: %w", err)
	}
	if err := r.Holder.Take(g); err != nil {
		return err
	}
	r.grants.offer(signedGrant{g, ans.Body, ans.Signature})
	err = r.Holder.Applied(r.Applied.Cursor().Position, r.Applied.ChainAt)
	r.grants.keep(r.Holder.Current())
	return err
}

// Acknowledge lets leases come into force as the log is applied, and tells the issuers how far that
// is, until ctx ends: at once, and then at most every ackApart. The floor is written before an
// acknowledgement leaves.
//
// Ticks, of which there is one a second, are acknowledged with the rest: nobody waits for them, and a
// thousand agents' words about each would cost every issuer a thousand proofs a second.
func (r *Renewer) Acknowledge(ctx context.Context) {
	pace := time.NewTimer(0) // fires when the next acknowledgement may leave
	defer pace.Stop()
	again := time.NewTimer(ackAgain) // fires when the last one is to be repeated
	defer again.Stop()
	var said bus.Position
	var warned time.Time
	mayLeave, repeat, pause := false, false, ackAgain
	for {
		changed := r.Applied.Changed()
		due, at, had := r.Applied.Due(), r.Applied.Cursor(), r.Holder.Current() != nil
		if err := r.Holder.Applied(at.Position, r.Applied.ChainAt); err != nil {
			r.Logger.Error("not taking a lease", "error", err)
		}
		r.grants.keep(r.Holder.Current())
		if had && r.Holder.Current() == nil {
			r.Hurry() // the log was begun anew, and its leases with it
		}
		fresh := due > said.Seq || at.Epoch != said.Epoch
		if mayLeave && at.Position != said && (fresh || repeat) {
			mayLeave = false
			sent, err := r.acknowledge(at)
			if err != nil && time.Since(warned) > warnApart {
				r.Logger.Warn("could not acknowledge, trying again: receipts wait for this agent", "seq", at.Seq, "error", err)
				warned = time.Now()
			}
			if sent {
				if pause = min(2*pause, ackSlowest); fresh {
					pause = ackAgain
				}
				said, repeat = at.Position, false
				again.Reset(pause - rand.N(pause/4))
				pace.Reset(ackApart)
			} else {
				pace.Reset(ackRetry)
			}
		}
		select {
		case <-changed:
		case <-pace.C:
			mayLeave = true
		case <-again.C:
			repeat = true
		case <-ctx.Done():
			return
		}
	}
}

// acknowledge tells whether the acknowledgement has left.
func (r *Renewer) acknowledge(at bus.Cursor) (bool, error) {
	if at.Position == (bus.Position{}) || !r.Line.Connected() {
		return false, nil
	}
	if err := r.Holder.Floor(at); err != nil {
		return false, err
	}
	body, err := json.Marshal(acked{Agent: r.Agent, Run: r.Holder.Run(), Position: at.Position, Chain: at.Chain})
	if err != nil {
		return false, fmt.Errorf("acknowledging: %w", err)
	}
	err = r.Line.Acknowledge(r.Agent, body, ed25519.Sign(r.Key, signed(contextAck, body)))
	return err == nil, err
}
