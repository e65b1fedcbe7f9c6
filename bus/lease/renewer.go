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
	ackApart   = 50 * time.Millisecond // acknowledgements: at once, then at most 20 a second
	askWithin  = 3 * time.Second       // for an answer, which comes with the issuer's next tick;
	askShort   = time.Second / 2       // of a short lease a sixth of it, but not less than this
	askAgain   = 200 * time.Millisecond
	askSlowest = 5 * time.Second
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
	// Changed is closed when Cursor moves after the call.
	Changed() <-chan struct{}
}

// Renewer keeps an agent's lease alive and acknowledges what is applied. All members but Clock and Stuck are required.
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

	hurry chan struct{} // holds one while a fresher lease is wanted
}

// NewRenewer makes one of its members.
func NewRenewer(r Renewer) *Renewer {
	if r.Clock == nil {
		r.Clock = SystemClock
	}
	r.hurry = make(chan struct{}, 1)
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

// Renew asks for leases until ctx ends: a third of the lease's length before it has to, more or
// less, so that agents that started together do not ask together.
func (r *Renewer) Renew(ctx context.Context) {
	pause := askAgain
	for ctx.Err() == nil {
		err := r.ask(ctx)
		wait := pause
		if err == nil {
			pause = askAgain
			wait = r.Holder.cfg.Length / 3
			wait -= rand.N(wait/5 + 1)
		} else {
			r.Logger.Warn("could not renew the lease, trying again", "left", r.left().Round(time.Millisecond).String(), "error", err)
			pause = min(2*pause, askSlowest, max(askAgain, r.Holder.cfg.Length/10))
		}
		select {
		case <-time.After(wait):
		case <-r.hurry:
			select {
			case <-time.After(askAgain): // who asks for it is a client: it may not set the pace
			case <-ctx.Done():
			}
		case <-ctx.Done():
		}
	}
}

func (r *Renewer) left() time.Duration {
	if l := r.Holder.Current(); l != nil {
		return l.Left(r.Clock())
	}
	return 0
}

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
	// Of several issuers one gets the question, and that one may be gone: there has to be time for others.
	ctx, cancel := context.WithTimeout(ctx, min(askWithin, max(askShort, r.Holder.cfg.Length/6)))
	defer cancel()
	ans, err := r.Line.AskLease(ctx, r.Agent, body, ed25519.Sign(r.Key, signed(contextRequest, body)))
	if err != nil {
		return err
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
	return r.Holder.Applied(r.Applied.Cursor().Position, r.Applied.ChainAt)
}

// Acknowledge lets leases come into force as the log is applied, and tells the issuers how far that
// is, until ctx ends: at once, and then at most every ackApart. The floor is written before an
// acknowledgement leaves.
func (r *Renewer) Acknowledge(ctx context.Context) {
	pace := time.NewTimer(0) // fires when the next acknowledgement may leave
	defer pace.Stop()
	var said bus.Position
	mayLeave := false
	for {
		changed := r.Applied.Changed()
		at, had := r.Applied.Cursor(), r.Holder.Current() != nil
		if err := r.Holder.Applied(at.Position, r.Applied.ChainAt); err != nil {
			r.Logger.Error("not taking a lease", "error", err)
		}
		if had && r.Holder.Current() == nil {
			r.Hurry() // the log was begun anew, and its leases with it
		}
		if mayLeave && at.Position != said {
			if err := r.acknowledge(at); err != nil {
				r.Logger.Warn("could not acknowledge", "seq", at.Seq, "error", err)
			}
			said, mayLeave = at.Position, false
			pace.Reset(ackApart)
		}
		select {
		case <-changed:
		case <-pace.C:
			mayLeave = true
		case <-ctx.Done():
			return
		}
	}
}

func (r *Renewer) acknowledge(at bus.Cursor) error {
	if at.Position == (bus.Position{}) || !r.Line.Connected() {
		return nil
	}
	if err := r.Holder.Floor(at); err != nil {
		return err
	}
	body, err := json.Marshal(acked{Agent: r.Agent, Run: r.Holder.Run(), Position: at.Position, Chain: at.Chain})
	if err != nil {
		return fmt.Errorf("acknowledging: %w", err)
	}
	return r.Line.Acknowledge(r.Agent, body, ed25519.Sign(r.Key, signed(contextAck, body)))
}
