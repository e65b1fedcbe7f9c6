package issuer

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// A refresh token that Simple JWT made is worth one session of ours, once. The session's id follows from the token's key and
// jti, so that its record is the claim on the token: it is made by a create, which one of any number of presentations wins,
// and lives until the token has ended. To that session the token is generation 0: a retry and a reuse are judged as those of
// our own tokens are.

// proveForeign reads such a token: signature, claims and times by the rules of its key, and what is revoked. The session that
// it is worth is filled in: its id, and in SessionSeq what this issuer had applied before it looked at anything, so that a
// cutoff that comes meanwhile cuts that session off. A *keyring.Denial says why not; of a token that is revoked, the token comes
// with it.
func (i *Issuer) proveForeign(ctx context.Context, token string) (*keyring.Token, *refreshRing, error) {
	snap := i.Replica.Snapshot()
	if !snap.Ready {
		return nil, nil, fmt.Errorf("%w: the log has not been read yet", ErrUnavailable)
	}
	t, err := snap.Ring.Verify(token, keyring.Expect{
		Type: keyring.RefreshToken, Audiences: []string{i.cfg.Audience}, Leeway: i.cfg.Leeway, Now: i.now(),
	})
	if err != nil {
		return nil, nil, err
	}
	ids := replica.Fingerprint(&t.Claims)
	if i.Replica.Revoked(&ids) {
		return t, nil, keyring.Deny(keyring.Revoked, t.KeyID, nil)
	}
	rr, err := i.refreshRing(ctx, time.Time{})
	if err != nil {
		return nil, nil, err
	}
	own := *t
	own.Claims.SessionID, own.Claims.SessionSeq = foreignSession(t), snap.Position.Seq
	own.Claims.ClientID = i.cfg.DefaultClient // as of any login with a name
	return &own, rr, nil
}

// foreignSession names the session that a foreign token is worth: a UUIDv8 (RFC 9562 §5.8) of its key and jti.
func foreignSession(t *keyring.Token) string {
	h := sha256.New()
	for _, part := range []string{"sidekey-foreign-1", t.KeyID, t.Claims.ID} {
		_ = binary.Write(h, binary.BigEndian, uint32(len(part))) // a hash takes all
		h.Write([]byte(part))
	}
	var id uuid.UUID
	copy(id[:], h.Sum(nil))
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80
	return id.String()
}

// beginForeign gives the session of a foreign token that nobody has used, not yet written. The user is the one whose id the
// token names. ErrNoAccount: there is none, or it is disabled.
func (i *Issuer) beginForeign(ctx context.Context, p *presented) (*session, error) {
	c := &p.Claims
	if err := i.refuseUsedBefore(ctx, p.Token); err != nil {
		return nil, err
	}
	user, err := i.userByID(ctx, c.Subject)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, ErrNoAccount
	case err != nil:
		return nil, err
	case user.Disabled:
		return nil, ErrNoAccount
	}
	if i.cfg.MaxSessions > 0 {
		n, err := i.countLive(ctx, user.ID)
		if err != nil {
			return nil, err
		}
		if n >= i.cfg.MaxSessions {
			return nil, ErrTooManySessions
		}
	}
	now := i.now().Unix()
	return &session{
		ID: c.SessionID, Subject: user.ID, Username: user.Username, ClientID: i.cfg.DefaultClient, Scope: user.Scope,
		AuthTime: min(c.IssuedAt.Time().Unix(), now), Seq: c.SessionSeq, Created: now, ForeignExp: c.ExpiresAt.Time().Unix(), Mark: passwordMark(c.SessionID, user.Marker),
	}, nil
}

// foreignRefusal is what a refused foreign token's holder is told: that the account is gone, where it is.
func (i *Issuer) foreignRefusal(ctx context.Context, t *keyring.Token, denied error) error {
	if t == nil || keyring.ReasonOf(denied) != keyring.Revoked {
		return denied
	}
	user, err := i.userByID(ctx, t.Claims.Subject)
	if errors.Is(err, ErrNotFound) || err == nil && user.Disabled {
		return ErrNoAccount
	}
	return denied
}

// userByID gives the user whose tokens' sub is id, ErrNotFound, or errAgain where the record that was read is an old one.
func (i *Issuer) userByID(ctx context.Context, id string) (*userRecord, error) {
	if i.Directory != nil {
		user, why, err := i.stands(ctx, id)
		switch {
		case err != nil:
			return nil, fmt.Errorf("asking the directory for %q: %w: %w", id, ErrUnavailable, err)
		case why != "":
			return nil, fmt.Errorf("%s: %w", why, ErrNotFound)
		}
		return user, nil
	}
	r, err := i.Subjects.Get(ctx, bus.Name(id))
	if errors.Is(err, bus.ErrNotFound) {
		return nil, fmt.Errorf("reading the user with id %q: %w", id, ErrNotFound)
	}
	if err != nil {
		return nil, unavailable("reading the user with id", id, err)
	}
	user, revision, err := i.user(ctx, string(r.Value))
	switch {
	case err != nil:
		return nil, err
	case user.ID != id: // the claim of an interrupted AddUser
		return nil, fmt.Errorf("reading the user with id %q: %w", id, ErrNotFound)
	}
	err = i.refreshUser(ctx, user, revision, "", false)
	switch {
	case errors.Is(err, bus.ErrConflict):
		return nil, errAgain
	case err != nil:
		return nil, unavailable("reading user", user.Username, err)
	}
	return user, nil
}

// endForeign withdraws a foreign refresh token that nobody has used: in the log, for every issuer, and by a closed record in
// the place of its session.
func (i *Issuer) endForeign(ctx context.Context, t *keyring.Token, reason string) (bus.Position, error) {
	c := &t.Claims
	exp := c.ExpiresAt.Time().Unix()
	pos, err := i.append(ctx, &bus.Revocation{ID: c.ID, ExpiresAt: max(exp, i.now().Unix()) + i.tail(), Reason: reason})
	if err != nil {
		return pos, err
	}
	mark := session{ID: c.SessionID, Subject: c.Subject, Expires: exp, ForeignExp: exp, Closed: i.now().Unix(), Reason: reason}
	if _, err := i.Sessions.Create(ctx, mark.name(), encode(mark)); err != nil && !errors.Is(err, bus.ErrExists) {
		return pos, unavailable("closing session", mark.ID, err)
	} else if err == nil {
		return pos, nil
	}
	ended, err := i.endSession(ctx, c.Subject, c.SessionID, reason) // somebody used it a moment ago
	return later(pos, ended), err
}

// revokeForeign is revokeToken for a token that was made elsewhere: of an access token itself, of a refresh or sliding token
// also the session that was made from it.
func (i *Issuer) revokeForeign(ctx context.Context, t *Target) (bus.Position, error) {
	ring := i.Replica.Snapshot().Ring
	tok, err := ring.Prove(t.Token, keyring.AccessToken)
	if keyring.ReasonOf(err) != keyring.WrongType {
		if err != nil {
			return bus.Position{}, err
		}
		exp := max(tok.Claims.ExpiresAt.Time().Unix(), i.now().Unix()) + i.tail()
		pos, err := i.append(ctx, &bus.Revocation{ID: tok.Claims.ID, ExpiresAt: exp, Reason: t.Reason})
		if err != nil || tok.Claims.TokenType != "sliding" {
			return pos, err
		}
		ended, err := i.endSession(ctx, tok.Claims.Subject, foreignSession(tok), t.Reason) // if it was exchanged for one
		return later(pos, ended), err
	}
	if tok, err = ring.Prove(t.Token, keyring.RefreshToken); err != nil {
		return bus.Position{}, err
	}
	own := *tok
	own.Claims.SessionID = foreignSession(tok)
	return i.endForeign(ctx, &own, t.Reason)
}
