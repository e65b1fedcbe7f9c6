package issuer

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/trace"
)

// ObtainToken proves a password, as Login does, and gives an opaque token instead of a session: POST /api-token-auth/.
// lifetime 0: it does not expire. The errors are Login's, ErrTooManyCredentials in the place of ErrTooManySessions.
func (i *Issuer) ObtainToken(ctx context.Context, c Credentials, lifetime time.Duration) (string, error) {
	text, err := i.obtainToken(ctx, c, lifetime)
	i.metrics.logins.WithLabelValues(outcome(err)).Inc()
	return text, err
}

func (i *Issuer) obtainToken(ctx context.Context, c Credentials, lifetime time.Duration) (string, error) {
	user, known, err := i.admit(ctx, c)
	if err != nil {
		return "", err
	}
	text, err := i.loginToken(ctx, user, known, lifetime)
	if err == nil {
		i.noteLogin(ctx, user)
	}
	return text, err
}

// loginTokenName is the name of the tokens that logins get, and loginTokens how many of them one user keeps.
const (
	loginTokenName = "api-token-auth"
	loginTokens    = 10
)

// loginToken makes an opaque token for a user who has just proven a password: POST /api-token-auth/. DRF gives the
// same token at each login, which takes keeping its text; here each login gets one of its own, so that one device's can
// be withdrawn alone. Of more than loginTokens the least recently used end. lifetime 0: it does not expire.
// known is what authenticate gave. The errors are ErrTooManyCredentials, *ConflictError and ErrUnavailable.
func (i *Issuer) loginToken(ctx context.Context, user *userRecord, known uint64, lifetime time.Duration) (string, error) {
	if _, err := i.credentials(); err != nil {
		return "", err
	}
	c := &credentialRecord{Credential: Credential{Type: bus.Opaque, Name: loginTokenName, ClientID: i.cfg.DefaultClient}}
	if lifetime > 0 {
		c.Expires = i.now().Add(lifetime).Unix()
	}
	recs, _, err := i.listCredentials(ctx, bus.Under(user.ID))
	if err != nil {
		return "", err
	}
	made, err := i.makeCredential(ctx, c, user, known)
	if err != nil {
		return "", err
	}
	now := i.now().Unix()
	old := slices.DeleteFunc(recs, func(c *credentialRecord) bool {
		return c.Name != loginTokenName || c.Type != bus.Opaque || c.Imported || !c.usable(now)
	})
	slices.SortFunc(old, func(a, b *credentialRecord) int {
		return cmp.Compare(max(b.LastUsed, b.Created), max(a.LastUsed, a.Created))
	})
	if len(old) >= loginTokens {
		if _, err := i.endCredentials(ctx, old[loginTokens-1:], "newer logins"); err != nil {
			i.log.Warn("could not end a user's oldest login tokens, the next login tries again", append([]any{"sub", user.ID, "error", err}, trace.Of(ctx).Pairs()...)...)
		}
	}
	return made.Secret, nil
}
