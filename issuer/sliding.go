package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/sidekey/sidekey/keyring"
)

// Simple JWT's sliding tokens: one token that is an access token, and is exchanged for a later one of the same session until
// refresh_exp. What it lacks is rotation: an old one stays good until its exp. So it is off unless issuer.sliding says so.

// ErrOff means that the operator has not switched on what was asked for.
var ErrOff = errors.New("it is switched off")

// LoginSliding is Login for a sliding token, which is Tokens.Access.
func (i *Issuer) LoginSliding(ctx context.Context, c Credentials) (*Tokens, error) {
	if !i.cfg.Sliding {
		return nil, ErrOff
	}
	tokens, err := i.login(ctx, c, kindSliding)
	i.metrics.logins.WithLabelValues(outcome(err)).Inc()
	return tokens, err
}

// RefreshSliding exchanges a sliding token, of ours or a foreign one, for a later one of its session. The errors are Refresh's.
func (i *Issuer) RefreshSliding(ctx context.Context, token string) (*Tokens, error) {
	if !i.cfg.Sliding {
		return nil, ErrOff
	}
	tokens, err := i.doSlide(ctx, token)
	i.metrics.refreshes.WithLabelValues(outcome(err)).Inc()
	return tokens, err
}

func (i *Issuer) doSlide(ctx context.Context, token string) (*Tokens, error) {
	return i.renew(ctx, renewal{
		limited: i.refreshLimited, once: i.slide,
		prove: func() (*presented, error) {
			t, err := i.proveSliding(ctx, token)
			return &presented{Token: t}, err
		},
	})
}

// proveSliding reads a sliding token as an access token is read, and then how long it may be exchanged.
func (i *Issuer) proveSliding(ctx context.Context, token string) (*keyring.Token, error) {
	seq := i.Replica.Snapshot().Position.Seq
	t, err := i.proveAccess(token)
	if err != nil {
		return nil, i.slidingRefusal(ctx, token, err)
	}
	if t.Claims.TokenType != "sliding" {
		return nil, keyring.Deny(keyring.WrongType, t.KeyID, errors.New("it is no sliding token"))
	}
	var c struct {
		RefreshExp *float64 `json:"refresh_exp"`
	}
	switch err := json.Unmarshal(t.Claims.Raw, &c); {
	case err != nil, c.RefreshExp == nil, *c.RefreshExp < 0 || *c.RefreshExp > float64(keyring.MaxNumericDate):
		return nil, keyring.Deny(keyring.Malformed, t.KeyID, errors.New("it has no refresh_exp"))
	case *c.RefreshExp <= float64(i.now().Unix()):
		return nil, keyring.Deny(keyring.Expired, t.KeyID, errors.New("its refresh_exp has passed"))
	case t.Accept == "":
		return t, nil
	}
	own := *t
	own.Claims.SessionID, own.Claims.SessionSeq, own.Claims.ClientID = foreignSession(t), seq, i.cfg.DefaultClient
	own.Claims.ExpiresAt = keyring.NumericDate(int64(*c.RefreshExp)) // for a session that begins with it
	return &own, nil
}

// slidingRefusal is what the holder of a revoked token is told: that the account is gone, where it is.
func (i *Issuer) slidingRefusal(ctx context.Context, token string, denied error) error {
	if keyring.ReasonOf(denied) != keyring.Revoked {
		return denied
	}
	t, err := i.Replica.Snapshot().Ring.Prove(token, keyring.AccessToken)
	if err != nil {
		return denied
	}
	return i.foreignRefusal(ctx, t, denied)
}

// slide reads the session, judges and writes, once. errAgain: read again.
func (i *Issuer) slide(ctx context.Context, p *presented) (*Tokens, error) {
	c := &p.Claims
	s, revision, err := i.session(ctx, c.Subject, c.SessionID)
	if errors.Is(err, ErrNotFound) && p.Accept != "" {
		if s, err = i.beginForeign(ctx, p); err == nil {
			s.beginSliding(i.now(), &i.cfg)
			s.Expires = min(s.Expires, s.ForeignExp)
		}
	}
	now := i.now()
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, keyring.Deny(keyring.Revoked, p.KeyID, errors.New("there is no such session"))
	case err != nil:
		return nil, err
	case i.revoked(s), s.Closed != 0, s.Kind != kindSliding:
		return nil, i.endedRefusal(ctx, s, p)
	case s.Expires <= now.Unix(), i.cfg.over(s, now):
		return nil, keyring.Deny(keyring.Expired, p.KeyID, errors.New("its session is past its end"))
	}
	key, err := i.signer(ctx, i.cfg.Audience)
	if err != nil {
		return nil, err
	}
	user, err := i.account(ctx, s)
	if err != nil {
		return nil, err
	}
	if _, err := i.custom.of(user); err != nil {
		return nil, err
	}
	if err := i.fromElsewhere(ctx, s, p); err != nil {
		return nil, err
	}
	s.renew(now, &i.cfg)
	if err := i.writeSession(ctx, s, revision); err != nil {
		i.log.Debug("a session's compare-and-set failed, reading it again", "sid", s.ID, "error", err)
		return nil, errAgain
	}
	i.event(ctx, "session refreshed", "sub", s.Subject, "sid", s.ID, "jti", s.AccessID, "kid", key.ID(), "sliding", true)
	return i.tokens(key, nil, s, user, ask{})
}

// beginSliding makes a new session one of sliding tokens: Expires is their refresh_exp, and no refresh token is made.
func (s *session) beginSliding(now time.Time, cfg *Config) {
	s.Kind, s.Gen, s.RefreshID = kindSliding, 1, newID()
	s.Issued, s.Expires = now.Unix(), cfg.within(s, now.Add(cfg.SlidingRefreshLifetime))
	s.renew(now, cfg)
}

// within cuts an end off at the session's own.
func (c *Config) within(s *session, end time.Time) int64 {
	if ends := s.ends(c); ends != 0 {
		return min(end.Unix(), ends)
	}
	return end.Unix()
}

// over tells whether a session has lived as long as it may. It matters where Config.SessionLifetime was made shorter since.
func (c *Config) over(s *session, now time.Time) bool {
	ends := s.ends(c)
	return ends != 0 && ends <= now.Unix()
}

// longestUnused is the longest that a session goes on without an issuer being asked.
func (c *Config) longestUnused() time.Duration {
	if c.Sliding {
		return max(c.RefreshLifetime, c.SlidingRefreshLifetime)
	}
	return c.RefreshLifetime
}
