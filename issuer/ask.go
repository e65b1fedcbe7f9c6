package issuer

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/sidekey/sidekey/keyring"
)

// ask is who wants a session's tokens, and for what. The zero value is Simple JWT's: nobody in particular wants all of it.
type ask struct {
	client *caller // nil: none that has named itself
	scope  string  // RFC 6749 §6: a narrower one for the access token, "": all that was granted
}

// narrowed gives what of a scope an access token gets.
func (a *ask) narrowed(scope string) string {
	if a.client != nil && a.client.registered() {
		scope = narrow(scope, a.client.Scope)
	}
	if a.scope != "" {
		scope = narrow(scope, a.scope)
	}
	return scope
}

// registered tells whether the client is one of the bucket, whose record bounds its tokens.
func (c *caller) registered() bool { return c.Created != 0 }

// lifetimes gives the configuration with the client's own lifetime of access tokens.
func (i *Issuer) lifetimes(c *caller) *Config {
	cfg := i.cfg
	if c != nil {
		cfg.AccessLifetime = c.lifetime(cfg.AccessLifetime)
	}
	return &cfg
}

// mayRefresh tells whether the client of ask may refresh with a proven token, before that is used up. A session belongs to
// the client that began it. Who has not said which client it is may refresh what belongs to no confidential one.
func (i *Issuer) mayRefresh(ctx context.Context, t *keyring.Token, a *ask) error {
	owner := t.Claims.ClientID
	switch {
	case a.client != nil && a.client.ID != owner:
		i.refusal(ctx, "refresh token of another client", "client_id", a.client.ID, "owner", owner, "sub", t.Claims.Subject, "sid", t.Claims.SessionID)
		return oauthFault(invalidGrant, "the refresh token was issued to another client")
	case a.client != nil && !within(a.scope, t.Claims.Scope):
		return oauthFault(invalidScope, "the scope may only be narrower than what was granted")
	case a.client != nil || owner == i.cfg.DefaultClient:
		return nil
	}
	c, seq, err := i.currentClient(ctx, owner)
	switch {
	case errors.Is(err, ErrNotFound): // the name that user name logins had once, or gone: then its sessions are cut off
		return nil
	case err != nil:
		return err
	case c.confidential(), c.Disabled:
		return keyring.Deny(keyring.WrongAudience, t.KeyID, errors.New("its session belongs to a client that must authenticate, at /oauth2/token"))
	}
	a.client = &caller{clientRecord: c, seq: seq}
	return nil
}

// within tells whether each word of a scope is among those of another.
func within(scope, all string) bool {
	have := strings.Fields(all)
	return !slices.ContainsFunc(strings.Fields(scope), func(word string) bool { return !slices.Contains(have, word) })
}
