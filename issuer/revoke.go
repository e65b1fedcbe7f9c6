package issuer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// Target is what a revocation withdraws: exactly one member but Reason is set.
type Target struct {
	Token     string `json:"token"`     // an access token: itself; a refresh, sliding or browser's session token: its session; a credential's text: that
	ID        string `json:"jti"`       // one token, or credential
	SessionID string `json:"sid"`       // a session and all its tokens
	Subject   string `json:"sub"`       // everything of that user that began before now
	ClientID  string `json:"client_id"` // everything of that client that began before now
	Reason    string `json:"reason"`    // for the log and the audit, at most 1024 bytes
}

func (t *Target) check() error {
	n := 0
	for _, v := range []string{t.Token, t.ID, t.SessionID, t.Subject, t.ClientID} {
		if v != "" {
			n++
		}
		if len(v) > bus.MaxID && v != t.Token {
			return &InputError{"jti, sid, sub, client_id", fmt.Sprintf("must be %d bytes at most", bus.MaxID)}
		}
	}
	switch {
	case n != 1:
		return &InputError{"token, jti, sid, sub, client_id", "must be exactly one of them"}
	case len(t.Reason) > 1024 || !printable(t.Reason):
		return &InputError{"reason", "must be 1024 bytes at most, without control characters"}
	}
	return nil
}

// Revoke withdraws a token, a session, or everything of a user or client. The entry is durable,
// the session's record closed, and this issuer itself refuses, when it returns. The errors are
// *InputError, *keyring.Denial (of the token given) and ErrUnavailable; after the last the
// revocation may be in the log: asking again is harmless. The receipt is as it stands then; it is
// of the last entry that the revocation needed (PROTOCOL 14), so that it covers them all.
func (i *Issuer) Revoke(ctx context.Context, t Target) (*Receipt, error) {
	return i.RevokeAndAwait(ctx, t, 0)
}

// RevokeAndAwait is Revoke and then Await.
func (i *Issuer) RevokeAndAwait(ctx context.Context, t Target, timeout time.Duration) (*Receipt, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	return i.settled(ctx, timeout, func() (bus.Position, error) { return i.revoke(ctx, &t) })
}

// settled does something to the log and awaits its receipt, whose time counts from before. The
// receipt is nil where nothing was appended.
func (i *Issuer) settled(ctx context.Context, timeout time.Duration, do func() (bus.Position, error)) (*Receipt, error) {
	began := time.Now()
	pos, err := do()
	if err != nil || pos == (bus.Position{}) {
		return nil, err
	}
	r, err := i.Await(ctx, pos, timeout)
	if err != nil {
		return nil, err
	}
	r.Elapsed = time.Since(began)
	return r, nil
}

func (i *Issuer) revoke(ctx context.Context, t *Target) (bus.Position, error) {
	switch {
	case t.Token != "":
		return i.revokeToken(ctx, t)
	case t.ID != "":
		if pos, err := i.revokeNamed(ctx, t.ID, t.Reason); !errors.Is(err, ErrNotFound) {
			return pos, err
		}
		return i.append(ctx, &bus.Revocation{ID: t.ID, ExpiresAt: i.longest().Unix(), Reason: t.Reason})
	case t.SessionID != "":
		return i.revokeSession(ctx, t.SessionID, t.Reason)
	}
	// The cutoff refuses all credentials at once. It is forgotten one day, so each is withdrawn too.
	pos, err := i.cutoff(ctx, &bus.Revocation{Subject: t.Subject, ClientID: t.ClientID, Reason: t.Reason})
	if err != nil {
		return pos, err
	}
	last, err := i.endCredentialsOf(ctx, t.Subject, t.ClientID, cmp.Or(t.Reason, "revoked"))
	return later(pos, last), err
}

// revokeNamed revokes the credential of an id. ErrNotFound: it is no credential's.
func (i *Issuer) revokeNamed(ctx context.Context, id, reason string) (bus.Position, error) {
	if i.Credentials == nil || !isCredentialID(id) {
		return bus.Position{}, ErrNotFound
	}
	return i.revokeCredential(ctx, id, cmp.Or(reason, "revoked"))
}

// revokeToken revokes what it can prove was signed here. A token that has expired is as good as
// revoked, but is revoked all the same (RFC 7009 §2.2): clocks differ.
func (i *Issuer) revokeToken(ctx context.Context, t *Target) (bus.Position, error) {
	if credentialText(t.Token) {
		pos, err := i.revokeNamed(ctx, credentialID(bus.HashCredential([]byte(t.Token))), t.Reason)
		if !errors.Is(err, ErrNotFound) {
			return pos, err
		}
	}
	if keyring.Foreign(t.Token) {
		return i.revokeForeign(ctx, t)
	}
	tok, err := i.Replica.Snapshot().Ring.Prove(t.Token, keyring.AccessToken)
	if err == nil && tok.Claims.TokenType == "sliding" { // it is a refresh token too: who had it may have exchanged it
		return i.endSession(ctx, tok.Claims.Subject, tok.Claims.SessionID, t.Reason)
	}
	if err == nil {
		exp := max(tok.Claims.ExpiresAt.Time().Unix(), i.now().Unix()) + i.tail()
		return i.append(ctx, &bus.Revocation{ID: tok.Claims.ID, ExpiresAt: exp, Reason: t.Reason})
	}
	if keyring.ReasonOf(err) != keyring.WrongType {
		return bus.Position{}, err
	}
	if tok, err = i.Replica.Snapshot().Ring.Prove(t.Token, keyring.SessionToken); keyring.ReasonOf(err) != keyring.WrongType {
		if err != nil {
			return bus.Position{}, err
		}
		return i.endSession(ctx, tok.Claims.Subject, tok.Claims.SessionID, t.Reason)
	}
	rr, err := i.refreshRing(ctx, i.now().Add(-refreshKeyAge))
	if err != nil {
		return bus.Position{}, err
	}
	if tok, err = rr.ring.Prove(t.Token, keyring.RefreshToken); err != nil {
		return bus.Position{}, err
	}
	return i.endSession(ctx, tok.Claims.Subject, tok.Claims.SessionID, t.Reason)
}

// revokeSession revokes a session of which only the sid is known: its record, if there is one,
// knows the subject.
func (i *Issuer) revokeSession(ctx context.Context, sid, reason string) (bus.Position, error) {
	pos, until, err := i.appendEnd(ctx, sid, reason)
	if err != nil {
		return pos, err
	}
	again, err := i.closeByID(ctx, sid, reason, until)
	return later(pos, again), err
}

// closeByID is closeSession for who does not know the subject.
func (i *Issuer) closeByID(ctx context.Context, sid, reason string, until int64) (again bus.Position, err error) {
	recs, _, err := i.listSessions(ctx, bus.Ending(sid))
	for _, s := range recs {
		pos, cerr := i.closeSession(ctx, s.Subject, sid, reason, until)
		again, err = later(again, pos), errors.Join(err, cerr)
	}
	return again, err
}

// later gives the later of two positions: who knows that one knows both.
func later(a, b bus.Position) bus.Position {
	if a.Before(b) {
		return b
	}
	return a
}

// endSession revokes a session: the log first, the record second, so that a crash between the two
// leaves the stricter state. Whoever reads the entry closes the record too.
func (i *Issuer) endSession(ctx context.Context, sub, sid, reason string) (bus.Position, error) {
	pos, until, err := i.appendEnd(ctx, sid, reason)
	if err != nil {
		return pos, err
	}
	again, err := i.closeSession(ctx, sub, sid, reason, until)
	return later(pos, again), err
}

func (i *Issuer) appendEnd(ctx context.Context, sid, reason string) (bus.Position, int64, error) {
	until := i.longest().Unix()
	pos, err := i.append(ctx, &bus.Revocation{SessionID: sid, ExpiresAt: until, Reason: reason})
	return pos, until, err
}

// EndSession ends one session of which the sid is known, and awaits the agents as Await does.
// ErrNotFound: there is no record of it (revoke the sid to be certain).
func (i *Issuer) EndSession(ctx context.Context, sid, reason string, timeout time.Duration) (*Receipt, error) {
	recs, _, err := i.listSessions(ctx, bus.Ending(sid))
	if err != nil {
		return nil, err
	}
	if len(recs) == 0 {
		return nil, fmt.Errorf("ending session %q: %w", sid, ErrNotFound)
	}
	return i.RevokeAndAwait(ctx, Target{SessionID: sid, Reason: reason}, timeout)
}

// EndOthers ends the sessions of a subject but one.
func (i *Issuer) EndOthers(ctx context.Context, sub, keep string) (int, error) {
	recs, _, err := i.listSessions(ctx, subjectSessions(sub))
	if err != nil {
		return 0, err
	}
	ended := 0
	for _, s := range recs {
		if s.ID == keep || !s.live(i.now()) || i.revoked(s) {
			continue
		}
		if _, err := i.endSession(ctx, sub, s.ID, "ended by its user"); err != nil {
			return ended, err
		}
		ended++
	}
	return ended, nil
}

// cutoff appends one: it lives as long as the longest session that it refuses can go on without
// asking an issuer, which is until its refresh token has expired.
func (i *Issuer) cutoff(ctx context.Context, r *bus.Revocation) (bus.Position, error) {
	now := i.now()
	r.Time = now.Unix()
	r.ExpiresAt = now.Add(i.cfg.longestUnused()+i.cfg.longestToken()+retiredSlack).Unix() + i.tail()
	r.ExpiresAt = max(r.ExpiresAt, i.longest().Unix()) // foreign tokens may live longer than ours
	pos, err := i.append(ctx, r)
	if err != nil {
		return pos, err
	}
	if r.Subject != "" {
		i.closeCutOff(ctx, SeenRevocation{pos.Seq, *r})
	}
	return pos, nil
}

// longest is when the last access token that is alive now, of any key, has expired for everyone.
func (i *Issuer) longest() time.Time {
	life := i.cfg.longestToken()
	for _, rec := range i.Replica.Snapshot().Ring.Records() {
		if rec.State == keyring.Active || rec.State == keyring.Retiring || rec.State == keyring.Announced {
			life = max(life, rec.MaxLifetime)
		}
	}
	return i.now().Add(life + time.Duration(i.tail())*time.Second)
}

// append writes one revocation and waits until this issuer itself has read it.
func (i *Issuer) append(ctx context.Context, r *bus.Revocation) (bus.Position, error) {
	pos, err := i.Log.Append(ctx, r)
	if err != nil {
		return pos, fmt.Errorf("revoking: %w: %w", ErrUnavailable, err)
	}
	i.metrics.revocations.Inc()
	i.event(ctx, "revoked", "seq", pos.Seq, "jti", r.ID, "sid", r.SessionID, "sub", r.Subject, "client_id", r.ClientID, "reason", r.Reason)
	return pos, i.settle(ctx, pos)
}
