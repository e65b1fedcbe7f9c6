package issuer

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/bus/trace"
	"github.com/sidekey/sidekey/keyring"
)

// The kinds of sessions, as their records name them.
const (
	kindRefresh = ""        // a family of refresh tokens
	kindSliding = "sliding" // Simple JWT's sliding tokens, and no refresh token
	kindBrowser = "browser" // a cookie with a session token, and no refresh token
)

// maxSessionToken leaves room in a cookie for its name and attributes (RFC 6265bis §5.6: 4096 bytes of name and value).
const maxSessionToken = 4000

// renewedWithin is the part of issuer.session_idle within which a renewal is given the newest session
// token again, so that a page with many tabs costs one write: a minute of 30.
const renewedWithin = 30

// BrowserSession is what a browser's session is, and what its cookies hold.
//
//	{"sid": "0198…", "sub": "0197…", "username": "alice", "scope": "read write", "roles": ["staff"],
//	 "auth_time": 1767225600, "expires": 1767227400, "ends": 0, "csrf_token": "…"}
type BrowserSession struct {
	ID       string   `json:"sid"`
	Subject  string   `json:"sub"`
	Username string   `json:"username"`
	Scope    string   `json:"scope"`
	Roles    []string `json:"roles"`
	AuthTime int64    `json:"auth_time"` // NumericDates, as the rest
	Expires  int64    `json:"expires"`   // unless it is renewed before
	Ends     int64    `json:"ends"`      // in any case; 0: as long as it is renewed
	CSRF     string   `json:"csrf_token"`

	Token string `json:"-"` // session+jwt, for the cookie only
}

// CSRFError means that a request may have been made by a page of another origin.
type CSRFError struct{ Problem string }

func (e *CSRFError) Error() string { return "CSRF: " + e.Problem }

// LoginBrowser is Login for a browser: it begins a session that has no refresh token. A session is never begun
// under a sid that the browser brought along, so nobody can prepare one for it.
func (i *Issuer) LoginBrowser(ctx context.Context, c Credentials) (*BrowserSession, error) {
	tokens, err := i.login(ctx, c, kindBrowser)
	i.metrics.logins.WithLabelValues(outcome(err)).Inc()
	if err != nil {
		return nil, err
	}
	return tokens.Browser, nil
}

// Browser tells what a session token's session is. The errors are *keyring.Denial and ErrUnavailable.
func (i *Issuer) Browser(ctx context.Context, token string) (*BrowserSession, error) {
	p, err := i.proveBrowser(token)
	if err != nil {
		return nil, err
	}
	s, _, err := i.session(ctx, p.Claims.Subject, p.Claims.SessionID)
	if errors.Is(err, ErrNotFound) {
		return nil, i.denyUnknownSoon(ctx, p)
	}
	if err != nil {
		return nil, err
	}
	if err := i.standing(ctx, s, p); err != nil {
		return nil, err
	}
	b := i.describe(s, p.Claims.Scope, p.Claims.Roles)
	b.Expires = p.Claims.ExpiresAt.Time().Unix()
	return b, nil
}

// RenewBrowser gives a session token that lives issuer.session_idle from now, within the session's own lifetime. A
// session token is not used up by it: the tabs of a browser renew at the same time, and each answer is good. The
// errors are *CSRFError, *BusyError, *keyring.Denial, ErrNoAccount and ErrUnavailable.
func (i *Issuer) RenewBrowser(ctx context.Context, token, csrf string) (*BrowserSession, error) {
	b, err := i.renewBrowser(ctx, token, csrf)
	i.metrics.renewals.WithLabelValues(outcome(err)).Inc()
	return b, err
}

func (i *Issuer) renewBrowser(ctx context.Context, token, csrf string) (*BrowserSession, error) {
	tokens, err := i.renew(ctx, renewal{
		limited: i.renewalLimited, once: i.extendOnce,
		prove: func() (*presented, error) { return i.proveUnsafe(token, csrf) },
	})
	if err != nil {
		return nil, err
	}
	return tokens.Browser, nil
}

// EndBrowser ends the session of a session token on every agent: logout. One that has ended already stays so.
func (i *Issuer) EndBrowser(ctx context.Context, token, csrf string) error {
	p, err := i.proveLimited(ctx, i.renewalLimited, func() (*presented, error) { return i.proveUnsafe(token, csrf) })
	if err != nil {
		return err
	}
	return i.endBrowser(ctx, p, "logout")
}

func (i *Issuer) endBrowser(ctx context.Context, p *presented, reason string) error {
	_, err := i.endSession(ctx, p.Claims.Subject, p.Claims.SessionID, reason)
	if err == nil {
		i.event(ctx, "session ended", "kind", kindBrowser, "sub", p.Claims.Subject, "sid", p.Claims.SessionID, "reason", reason)
	}
	return err
}

// endReplaced ends the session that a browser had before it logged in again. It is a courtesy: a failure is logged,
// and the session then ends when it is not renewed.
func (i *Issuer) endReplaced(ctx context.Context, token string) {
	p, err := i.proveBrowser(token)
	if err == nil {
		err = i.endBrowser(ctx, p, "logged in again")
	}
	if err != nil && keyring.ReasonOf(err) == "" {
		i.log.Warn("could not end the session that a login replaced", append([]any{"error", err}, trace.Of(ctx).Pairs()...)...)
	}
}

// extendOnce reads the session, judges and writes, once, as exchange does: a session token leaves it only after the
// compare-and-set that fixed its id and times (PROTOCOL 14).
func (i *Issuer) extendOnce(ctx context.Context, p *presented) (*Tokens, error) {
	s, revision, err := i.session(ctx, p.Claims.Subject, p.Claims.SessionID)
	if errors.Is(err, ErrNotFound) {
		return nil, i.denyUnknown(ctx, p)
	}
	if err != nil {
		return nil, err
	}
	if err := i.standing(ctx, s, p); err != nil {
		return nil, err
	}
	now := i.now()
	if s.Kind != kindBrowser {
		return nil, keyring.Deny(keyring.WrongType, p.KeyID, errors.New("the session is no browser's"))
	}
	if end := s.ends(&i.cfg); end != 0 && end <= now.Unix() {
		return nil, keyring.Deny(keyring.Expired, p.KeyID, errors.New("the session has had its whole lifetime"))
	}
	key, err := i.signer(ctx, i.cfg.Audience)
	if err != nil {
		return nil, err
	}
	user, err := i.account(ctx, s)
	if err != nil {
		return nil, err
	}
	if slices.Contains(p.tried, s.AccessID) {
		return i.tokens(key, nil, s, user, ask{})
	}
	before := s.latest()
	if err := i.fromElsewhere(ctx, s, p); err != nil {
		return nil, err
	}
	if s.latest() == before && i.renewedJustNow(s, now) {
		return i.tokens(key, nil, s, user, ask{})
	}
	s.extend(now, &i.cfg)
	p.tried = append(p.tried, s.AccessID)
	signing := i.sign(key, nil, s, user, ask{})
	if _, err := i.Sessions.Update(ctx, s.name(), encode(s), revision); err != nil {
		_, _ = signing() // never handed out
		i.log.Debug("a session's compare-and-set failed, reading it again", "sid", s.ID, "error", err)
		return nil, errAgain
	}
	i.event(ctx, "session renewed", "sub", s.Subject, "sid", s.ID, "jti", s.AccessID, "kid", key.ID())
	return signing()
}

// renewedJustNow tells whether the record's newest session token is young enough to be given again.
func (i *Issuer) renewedJustNow(s *session, now time.Time) bool {
	ids := replica.Fingerprint(&keyring.Claims{ID: s.AccessID})
	return now.Unix()-s.AccessIssued <= int64(i.cfg.SessionIdle/time.Second)/renewedWithin &&
		s.AccessIssued <= now.Unix() && s.AccessExpires > now.Unix() && !i.Replica.Revoked(&ids)
}

// proveBrowser reads a session token: signature, iss, aud and times, then what is revoked, under this issuer's lease.
func (i *Issuer) proveBrowser(token string) (*presented, error) {
	var t *keyring.Token
	err := i.vouchFor(func() (err error) {
		t, err = i.proveTyped(token, keyring.SessionToken)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &presented{Token: t}, nil
}

// proveUnsafe is proveBrowser for a request that changes something.
func (i *Issuer) proveUnsafe(token, csrf string) (*presented, error) {
	p, err := i.proveBrowser(token)
	if err != nil {
		return nil, err
	}
	if csrf == "" {
		return nil, &CSRFError{"the token is missing: send it as X-CSRF-Token"}
	}
	if subtle.ConstantTimeCompare([]byte(csrfHash(csrf)), []byte(p.Claims.CSRF)) != 1 {
		return nil, &CSRFError{"the token is not this session's"}
	}
	return p, nil
}

// denyUnknownSoon is denyUnknown for who only looks: where there is a record after all, it is to ask again.
func (i *Issuer) denyUnknownSoon(ctx context.Context, p *presented) error {
	err := i.denyUnknown(ctx, p)
	if errors.Is(err, errAgain) {
		err = ErrUnavailable
	}
	return err
}

// first fixes a new session's first tokens.
func (s *session) first(kid string, now time.Time, cfg *Config) {
	switch s.Kind {
	case kindSliding:
		s.beginSliding(now, cfg)
		return
	case kindRefresh:
		s.rotate(kid, now, cfg)
		return
	}
	s.Gen, s.RefreshID, s.CSRF = 1, newID(), newCSRF()
	s.extend(now, cfg)
}

// extend fixes a new session token.
func (s *session) extend(now time.Time, cfg *Config) {
	s.AccessID, s.AccessIssued, s.AccessExpires = newID(), now.Unix(), now.Add(cfg.SessionIdle).Unix()
	if end := s.ends(cfg); end != 0 {
		s.AccessExpires = min(s.AccessExpires, end)
	}
	s.AccessLast = max(s.AccessLast, s.AccessExpires)
	s.Issued, s.Expires = s.AccessIssued, s.AccessLast
}

// ends is when the session has had its whole lifetime since the user last proved a password (NumericDate); 0: it has no end.
func (s *session) ends(cfg *Config) int64 {
	if cfg.SessionLifetime == 0 {
		return 0
	}
	return s.AuthTime + int64(cfg.SessionLifetime/time.Second)
}

// browserTokens signs what a browser's record says.
func (i *Issuer) browserTokens(key *keyring.Key, s *session, user *userRecord) (*Tokens, error) {
	token, err := i.sessionToken(key, s, user)
	if err != nil {
		return nil, err
	}
	if len(token) > maxSessionToken {
		return nil, fmt.Errorf("the session token of %q has %d bytes, and browsers drop a cookie of more than 4096: it needs fewer claims", s.Subject, len(token))
	}
	b := i.describe(s, s.Scope, user.Roles)
	b.Token = token
	return &Tokens{Browser: b, SessionID: s.ID, ExpiresAt: unix(s.AccessExpires)}, nil
}

func (i *Issuer) describe(s *session, scope string, roles []string) *BrowserSession {
	return &BrowserSession{
		ID: s.ID, Subject: s.Subject, Username: s.Username, Scope: scope, Roles: append([]string{}, roles...),
		AuthTime: s.AuthTime, Expires: s.AccessExpires, Ends: s.ends(&i.cfg), CSRF: s.CSRF,
	}
}

// newCSRF gives a CSRF token: 256 random bits.
func newCSRF() string {
	b := make([]byte, 32)
	rand.Read(b) // never fails (crypto/rand, Go 1.24)
	return base64.RawURLEncoding.EncodeToString(b)
}

// csrfHash is the claim csrf of a session whose CSRF token this is.
func csrfHash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
