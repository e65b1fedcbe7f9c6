package issuer

import (
	"context"
	"errors"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// Principal is a user whose password was right, without a session.
type Principal struct {
	Subject, Username string
	ClientID          string
	Scope             string // RFC 6749 §3.3
	Roles             []string
	// Seq is the sequence that this issuer had applied before it read the user, as a token's session_seq: a
	// cutoff behind it refuses what was found.
	Seq uint64
}

// CheckPassword tells whose password it is, as Login does, with its limits and its cost, and begins no
// session. The errors are ErrCredentials, *BusyError and ErrUnavailable.
func (i *Issuer) CheckPassword(ctx context.Context, c Credentials) (*Principal, error) {
	p, err := i.checkPassword(ctx, c)
	i.metrics.basic.WithLabelValues(outcome(err)).Inc()
	return p, err
}

func (i *Issuer) checkPassword(ctx context.Context, c Credentials) (*Principal, error) {
	if err := i.limits.take(limitedName(c.Username), c.Address, i.now()); err != nil {
		return nil, err
	}
	if err := i.maySign(); err != nil {
		return nil, err
	}
	settle := i.vouch()
	user, seq, err := i.authenticate(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := settle(); err != nil {
		return nil, err
	}
	return &Principal{Subject: user.ID, Username: user.Username, ClientID: i.cfg.DefaultClient, Scope: user.Scope, Roles: user.Roles, Seq: seq}, nil
}

// basicLife is how long an agent may go by what AnswerBasic says.
const basicLife = bus.MaxBasicLife

// AnswerBasic is bus.BasicAnswerer's Check: CheckPassword for a client of an agent's.
func (i *Issuer) AnswerBasic(ctx context.Context, agent string, req bus.BasicRequest) bus.BasicAnswer {
	ctx = WithOrigin(ctx, Origin{Address: req.Address})
	p, err := i.CheckPassword(ctx, Credentials{Username: req.Username, Password: req.Password, Address: req.Address})
	var busy *BusyError
	switch {
	case err == nil:
		i.event(ctx, "password checked", "sub", p.Subject, "agent", agent)
		return bus.BasicAnswer{
			Outcome: bus.BasicOK, Subject: p.Subject, Username: p.Username, ClientID: p.ClientID, Scope: p.Scope, Roles: p.Roles,
			Seq: p.Seq, Life: int(basicLife / time.Second),
		}
	case errors.Is(err, ErrCredentials):
		i.refusal(ctx, "password check refused", "agent", agent) // without the name: see login
		return bus.BasicAnswer{Outcome: bus.BasicRefused}
	case errors.As(err, &busy) && busy.Limited:
		i.refusal(ctx, "password check limited", "agent", agent)
		return bus.BasicAnswer{Outcome: bus.BasicLimited, RetryAfter: seconds(busy.RetryAfter)}
	case errors.As(err, &busy):
		return bus.BasicAnswer{Outcome: bus.BasicBusy, RetryAfter: seconds(busy.RetryAfter)}
	}
	i.log.Warn("could not check a password for an agent", "agent", agent, "error", err)
	return bus.BasicAnswer{Outcome: bus.BasicUnavailable}
}

// seconds rounds up: who comes back then is not early.
func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }
