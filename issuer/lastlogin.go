package issuer

import (
	"context"
	"errors"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/trace"
)

// lastLoginStep is how old User.LastLogin may be before it is written again, in seconds. Each write costs a durable one on every
// server of the bus, and a conflict for whoever changes the user meanwhile. The question that the member answers, who has not been
// here for weeks, needs no minutes; when somebody logged in, the audit says.
const lastLoginStep = 3600

// noteLogin writes when a user has logged in, where that is wanted. A login goes on without it.
func (i *Issuer) noteLogin(ctx context.Context, user *userRecord) {
	now := i.now().Unix()
	if !i.cfg.UpdateLastLogin || i.Directory != nil || user.LastLogin+lastLoginStep > now {
		return
	}
	rec, revision, err := i.user(ctx, user.Username)
	if err == nil && rec.ID == user.ID && rec.LastLogin+lastLoginStep <= now {
		rec.LastLogin = now
		_, err = i.Users.Update(ctx, bus.Name(rec.Username), encode(rec), revision)
	}
	if err != nil && !errors.Is(err, bus.ErrConflict) {
		i.log.Warn("could not note a login, the next one will be", append([]any{"sub", user.ID, "error", err}, trace.Of(ctx).Pairs()...)...)
	}
}
