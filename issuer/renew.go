package issuer

import (
	"context"
	"errors"
	"fmt"
)

// renewal is one way of renewing a session. All of them go through Issuer.renew, so that none has a limit or a check less
// than another.
type renewal struct {
	limited limitedEvent
	prove   func() (*presented, error)
	// once reads the session, judges and writes, once; errAgain: read again. It asks fromElsewhere before it gives anything.
	once func(context.Context, *presented) (*Tokens, error)
}

// limitedEvent writes the event of a 429.
type limitedEvent func(ctx context.Context, pairs ...any)

func (i *Issuer) refreshLimited(ctx context.Context, pairs ...any) {
	i.refusal(ctx, "refresh limited", pairs...)
}

func (i *Issuer) renewalLimited(ctx context.Context, pairs ...any) {
	i.refusal(ctx, "renewal limited", pairs...)
}

func (i *Issuer) revocationLimited(ctx context.Context, pairs ...any) {
	i.refusal(ctx, "revocation limited", pairs...)
}

// renew proves what is presented, counts it for its session and its source, and renews.
func (i *Issuer) renew(ctx context.Context, r renewal) (*Tokens, error) {
	p, err := i.proveLimited(ctx, r.limited, r.prove)
	if err != nil {
		return nil, err
	}
	sub, sid := p.Claims.Subject, p.Claims.SessionID
	if err := i.refreshes.take(sid, originOf(ctx).Address, i.now()); err != nil {
		r.limited(ctx, "sub", sub, "sid", sid)
		return nil, err
	}
	turn := i.turn(sid)
	turn.Lock()
	defer turn.Unlock()
	for attempt := range maxAttempts {
		settle := i.vouch()
		tokens, err := r.once(ctx, p)
		if err == nil {
			err = settle() // one that stood still meanwhile may have signed with a key retired since
		}
		if err == nil {
			return tokens, nil
		}
		if !errors.Is(err, errAgain) {
			return nil, err
		}
		if !pause(ctx, attempt) {
			break
		}
	}
	return nil, fmt.Errorf("renewing session %q: %w", sid, ErrUnavailable)
}

// proveLimited is limitSource for a token of a session. What is good is counted by who asks, with its session.
func (i *Issuer) proveLimited(ctx context.Context, limited limitedEvent, prove func() (*presented, error)) (*presented, error) {
	var p *presented
	err := i.limitSource(ctx, limited, func() (err error) {
		p, err = prove()
		return err
	})
	return p, err
}

// limitSource lets a source prove something unless it has presented too much that is not good: then it is sent away before that is
// looked at.
func (i *Issuer) limitSource(ctx context.Context, limited limitedEvent, prove func() error) error {
	address := originOf(ctx).Address
	if err := i.refreshes.peekSource(address, i.now()); err != nil {
		limited(ctx)
		return err
	}
	err := prove()
	if err != nil && !errors.Is(err, ErrUnavailable) && ctx.Err() == nil {
		_ = i.refreshes.takeSource(address, i.now()) // it is told by the next
	}
	return err
}
