package issuer

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// revocable is what a client may have revoked, and whose it is: a token or, by its text, a credential.
type revocable struct {
	id, owner string
	over      bool // it is revoked already
}

// oauthRevoke is POST /oauth2/revoke (RFC 7009): a refresh token or a browser's session token ends its session, an access token
// itself, the text of an API key or opaque token that. What is nothing of ours is done already. token_type_hint is not needed.
func (i *Issuer) oauthRevoke(r *http.Request, f form, c *caller) (any, error) {
	ctx, token := r.Context(), f.get("token")
	if token == "" {
		return nil, oauthFault(invalidRequest, "the parameter token is missing")
	}
	var what *revocable
	err := i.limitSource(ctx, i.revocationLimited, func() (err error) {
		what, err = i.revocable(ctx, token)
		return err
	})
	if keyring.ReasonOf(err) != "" || errors.Is(err, ErrNotFound) || err == nil && what.over {
		return struct{}{}, nil // RFC 7009 §2.2
	}
	if err != nil {
		return nil, err
	}
	if err := i.refreshes.take(what.id, originOf(ctx).Address, i.now()); err != nil {
		i.revocationLimited(ctx, "jti", what.id)
		return nil, err
	}
	if err := i.mayRevoke(ctx, what.owner, c); err != nil {
		i.refusal(ctx, "revocation refused: the token is another client's", "client_id", c.ID, "owner", what.owner, "jti", what.id)
		return nil, err
	}
	if _, err := i.Revoke(ctx, Target{Token: token, Reason: "revoked by its client"}); err != nil {
		return nil, err
	}
	return struct{}{}, nil
}

// revocable finds out what a text is. ErrNotFound or a *keyring.Denial: nothing of ours.
func (i *Issuer) revocable(ctx context.Context, token string) (*revocable, error) {
	if credentialText(token) {
		c, _, err := i.credential(ctx, credentialID(bus.HashCredential([]byte(token))))
		if err != nil {
			return nil, err
		}
		return &revocable{c.ID, cmp.Or(c.ClientID, i.cfg.DefaultClient), c.State == CredentialRevoked}, nil
	}
	t, err := i.signedHere(ctx, token)
	if err != nil {
		return nil, err
	}
	owner := t.Claims.ClientID
	if t.Accept != "" {
		owner = i.cfg.DefaultClient
	}
	return &revocable{id: t.Claims.ID, owner: owner}, nil
}

// signedHere gives a token of ours, of any kind, or one made elsewhere that is honoured, whatever has become of it.
func (i *Issuer) signedHere(ctx context.Context, token string) (*keyring.Token, error) {
	ring := i.Replica.Snapshot().Ring
	t, err := ring.Prove(token, keyring.AccessToken)
	if keyring.ReasonOf(err) != keyring.WrongType {
		return t, err
	}
	if keyring.Foreign(token) {
		return ring.Prove(token, keyring.RefreshToken)
	}
	if t, err := ring.Prove(token, keyring.SessionToken); keyring.ReasonOf(err) != keyring.WrongType {
		return t, err
	}
	rr, err := i.refreshRing(ctx, i.now().Add(-refreshKeyAge))
	if err != nil {
		return nil, err
	}
	return rr.ring.Prove(token, keyring.RefreshToken)
}

// mayRevoke holds RFC 7009 §2.1: a client revokes its own tokens. What belongs to no confidential client may be revoked by
// whoever holds it and names nobody else.
func (i *Issuer) mayRevoke(ctx context.Context, owner string, c *caller) error {
	if c.ID == owner {
		return nil
	}
	if i.isDefault(c) {
		rec, _, err := i.client(ctx, owner)
		switch {
		case errors.Is(err, ErrNotFound):
			return nil
		case err != nil:
			return err
		case rec.confidential():
			return errClient(false)
		}
		return nil
	}
	return oauthFault(unauthorizedClient, "the token was issued to another client")
}

// inactive is RFC 7662 §2.2's answer to everything that is not to be told more of.
var inactive = json.RawMessage(`{"active":false}`)

// oauthIntrospect is POST /oauth2/introspect (RFC 7662), for clients that have proven who they are: a client is told of its
// own tokens, and of access tokens for an audience of its own.
func (i *Issuer) oauthIntrospect(r *http.Request, f form, c *caller) (any, error) {
	if !c.proven {
		return nil, errClient(true)
	}
	token := f.get("token")
	if token == "" {
		return nil, oauthFault(invalidRequest, "the parameter token is missing")
	}
	var t *keyring.Token
	err := i.vouchFor(func() (err error) {
		t, err = i.introspected(r.Context(), token)
		return err
	})
	if keyring.ReasonOf(err) != "" || err == nil && !i.concerns(t, c) {
		return inactive, nil
	}
	if err != nil {
		return nil, err
	}
	members := bytes.TrimLeft(t.Believed(), " \t\r\n{") // a token has claims: exp is required
	return json.RawMessage(append([]byte(`{"active":true,`), members...)), nil
}

// introspected gives an access or refresh token that stands now, as check judges it.
func (i *Issuer) introspected(ctx context.Context, token string) (*keyring.Token, error) {
	t, err := i.proveAny(token)
	if keyring.ReasonOf(err) != keyring.WrongType {
		return t, err
	}
	if err := i.check(ctx, token); err != nil {
		return nil, err
	}
	t, _, err = i.proveRefresh(ctx, token)
	return t, err
}

// concerns tells whether a client has to do with a token.
func (i *Issuer) concerns(t *keyring.Token, c *caller) bool {
	if t.Accept != "" { // made elsewhere: as one for the issuer's audience
		return slices.Contains(c.Audiences, i.cfg.Audience)
	}
	if t.Claims.ClientID == c.ID || t.Claims.SubjectClientID == c.ID {
		return true
	}
	return t.Type == keyring.AccessToken &&
		slices.ContainsFunc(t.Claims.Audience, func(aud string) bool { return slices.Contains(c.Audiences, aud) })
}
