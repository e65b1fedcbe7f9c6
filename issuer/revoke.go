package issuer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// Target is what a revocation withdraws: exactly one member but Reason is set.
type Target struct {
	Token     string `json:"token"`     // an access token: itself; a refresh token: its session
	ID        string `json:"jti"`       // one token
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

// Receipt says where a revocation stands in the log, and who has acknowledged it when the receipt
// was made. Nothing is waited for but the log and this issuer itself, so Confirmed is never true.
type Receipt struct {
	Seq       uint64        `json:"seq"`
	Confirmed bool          `json:"confirmed"`
	Applied   []string      `json:"applied"`
	Fenced    []string      `json:"fenced"`
	Pending   []string      `json:"pending"`
	Elapsed   time.Duration `json:"-"`
}

// Revoke withdraws a token, a session, or everything of a user or client. The entry is durable,
// the session's record closed, and this issuer itself refuses, when it returns. The errors are
// *InputError, *keyring.Denial (of the token given) and ErrUnavailable; after the last the
// revocation may be in the log: asking again is harmless.
func (i *Issuer) Revoke(ctx context.Context, t Target) (*Receipt, error) {
	began := i.now()
	if err := t.check(); err != nil {
		return nil, err
	}
	pos, err := i.revoke(ctx, &t)
	if err != nil {
		return nil, err
	}
	r, err := i.receipt(ctx, pos)
	if err != nil {
		i.log.Warn("a revocation is done, but who has acknowledged it is not known", "seq", pos.Seq, "error", err)
	}
	r.Elapsed = i.now().Sub(began)
	return &r, nil
}

// receipt asks who has acknowledged pos. It is of use also where that fails.
func (i *Issuer) receipt(ctx context.Context, pos bus.Position) (Receipt, error) {
	r := Receipt{Seq: pos.Seq, Applied: []string{}, Fenced: []string{}, Pending: []string{}}
	rec, err := i.Fleet.Receipt(ctx, pos)
	if err != nil {
		return r, unavailable("asking who has acknowledged", "the log", err)
	}
	r.Confirmed = rec.Settled()
	r.Applied, r.Fenced, r.Pending = append(r.Applied, rec.Applied...), append(r.Fenced, rec.Fenced...), append(r.Pending, rec.Pending...)
	return r, nil
}

func (i *Issuer) revoke(ctx context.Context, t *Target) (bus.Position, error) {
	switch {
	case t.Token != "":
		return i.revokeToken(ctx, t)
	case t.ID != "":
		return i.append(ctx, &bus.Revocation{ID: t.ID, ExpiresAt: i.longest().Unix(), Reason: t.Reason})
	case t.SessionID != "":
		return i.revokeSession(ctx, t.SessionID, t.Reason)
	case t.Subject != "":
		return i.cutoff(ctx, &bus.Revocation{Subject: t.Subject, Reason: t.Reason})
	}
	return i.cutoff(ctx, &bus.Revocation{ClientID: t.ClientID, Reason: t.Reason})
}

// revokeToken revokes what it can prove was signed here. A token that has expired is as good as
// revoked, but is revoked all the same (RFC 7009 §2.2): clocks differ.
func (i *Issuer) revokeToken(ctx context.Context, t *Target) (bus.Position, error) {
	tok, err := i.Replica.Snapshot().Ring.Prove(t.Token, keyring.AccessToken)
	if err == nil {
		exp := max(tok.Claims.ExpiresAt.Time().Unix(), i.now().Unix()) + i.tail()
		return i.append(ctx, &bus.Revocation{ID: tok.Claims.ID, ExpiresAt: exp, Reason: t.Reason})
	}
	if keyring.ReasonOf(err) != keyring.WrongType {
		return bus.Position{}, err
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
	return pos, i.closeByID(ctx, sid, reason, until)
}

func (i *Issuer) closeByID(ctx context.Context, sid, reason string, until int64) error {
	recs, _, err := i.listSessions(ctx, bus.Filter(bus.Any, sid))
	for _, s := range recs {
		err = errors.Join(err, i.closeSession(ctx, s.Subject, sid, reason, until))
	}
	return err
}

// endSession revokes a session: the log first, the record second, so that a crash between the two
// leaves the stricter state. Whoever reads the entry closes the record too.
func (i *Issuer) endSession(ctx context.Context, sub, sid, reason string) (bus.Position, error) {
	pos, until, err := i.appendEnd(ctx, sid, reason)
	if err != nil {
		return pos, err
	}
	return pos, i.closeSession(ctx, sub, sid, reason, until)
}

func (i *Issuer) appendEnd(ctx context.Context, sid, reason string) (bus.Position, int64, error) {
	until := i.longest().Unix()
	pos, err := i.append(ctx, &bus.Revocation{SessionID: sid, ExpiresAt: until, Reason: reason})
	return pos, until, err
}

// EndSession ends one session of which the sid is known. ErrNotFound: there is no record of it
// (revoke the sid to be certain).
func (i *Issuer) EndSession(ctx context.Context, sid, reason string) (*Receipt, error) {
	recs, _, err := i.listSessions(ctx, bus.Filter(bus.Any, sid))
	if err != nil {
		return nil, err
	}
	if len(recs) == 0 {
		return nil, fmt.Errorf("ending session %q: %w", sid, ErrNotFound)
	}
	return i.Revoke(ctx, Target{SessionID: sid, Reason: reason})
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

// cutOff ends every session that a subject has begun until now.
func (i *Issuer) cutOff(ctx context.Context, sub, reason string) error {
	_, err := i.cutoff(ctx, &bus.Revocation{Subject: sub, Reason: reason})
	return err
}

// cutoff appends one: it lives as long as the longest session that it refuses can go on without
// asking an issuer, which is until its refresh token has expired.
func (i *Issuer) cutoff(ctx context.Context, r *bus.Revocation) (bus.Position, error) {
	now := i.now()
	r.Time = now.Unix()
	r.ExpiresAt = now.Add(i.cfg.RefreshLifetime+i.cfg.AccessLifetime+retiredSlack).Unix() + i.tail()
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
	life := i.cfg.AccessLifetime
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
	i.audit.Info("revoked", "seq", pos.Seq, "jti", r.ID, "sid", r.SessionID, "sub", r.Subject, "client_id", r.ClientID, "reason", r.Reason)
	return pos, i.settle(ctx, pos)
}
