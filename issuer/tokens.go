package issuer

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// Tokens are what a login or a refresh gives.
type Tokens struct {
	Access, Refresh string
	SessionID       string
	Scope           string    // of the access token
	ExpiresAt       time.Time // of the access token
	RefreshUntil    time.Time // when the refresh token expires

	Browser *BrowserSession // of a browser's session, instead of access and refresh token
}

// Sign makes a token of claims whose times and ids are fixed already, with the key that signs for
// their audience now. An HS256 token has exactly one. ErrUnavailable: no key signs for it (yet).
func (i *Issuer) Sign(ctx context.Context, typ keyring.TokenType, c keyring.Claims) (string, error) {
	if len(c.Audience) == 0 {
		return "", &InputError{"aud", "is missing"}
	}
	key, err := i.signer(ctx, c.Audience[0])
	if err != nil {
		return "", err
	}
	if key.Alg().Symmetric() && len(c.Audience) != 1 {
		return "", &InputError{"aud", "must be exactly one audience: the ring is HS256"}
	}
	return key.Sign(typ, c)
}

// signer gives the key that signs for an audience now: the one that this issuer's own replica shows
// active, and none before that has been read (PROTOCOL 16).
func (i *Issuer) signer(ctx context.Context, audience string) (*keyring.Key, error) {
	if err := i.maySign(); err != nil {
		return nil, err
	}
	rec, ok := i.Replica.Snapshot().Ring.ActiveFor(audience)
	if !ok {
		return nil, fmt.Errorf("signing for audience %q: %w: no HS256 key is for it; one is made as soon as an agent that has joined serves it (agent.audiences)", audience, ErrUnavailable)
	}
	k, err := i.privateKey(ctx, rec.KeyID)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if k.key == nil || !k.key.CanSign() {
		return nil, fmt.Errorf("%w: the active key %q has no private half here", ErrUnavailable, rec.KeyID)
	}
	return k.key, nil
}

// activeKey gives the key that signs for the issuer's audience: the newest active one that is held.
// After an activation the earlier key is active too, in the log, until its retirement is appended
// (PROTOCOL 17): it signs nothing any more.
func (i *Issuer) activeKey(ring *keyring.Ring) (*keyring.KeyRecord, bool) {
	return ring.ActiveFor(i.cfg.Audience)
}

// accessToken signs the session's newest access token, whose jti and times the record has fixed.
func (i *Issuer) accessToken(key *keyring.Key, s *session, user *userRecord) (string, error) {
	c, err := i.accessClaims(s, user)
	if err != nil {
		return "", err
	}
	return key.Sign(keyring.AccessToken, c)
}

// sessionToken signs a browser's newest session token. It says what an access token says, with another
// type, so that who reads typ or token_type takes neither for the other.
func (i *Issuer) sessionToken(key *keyring.Key, s *session, user *userRecord) (string, error) {
	c, err := i.accessClaims(s, user)
	if err != nil {
		return "", err
	}
	c.TokenType, c.CSRF = "session", csrfHash(s.CSRF)
	return key.Sign(keyring.SessionToken, c)
}

// accessClaims are what agents read of a session.
func (i *Issuer) accessClaims(s *session, user *userRecord) (keyring.Claims, error) {
	extra, err := i.custom.of(user)
	if err != nil {
		return keyring.Claims{}, err
	}
	c := i.claims(s)
	c.Audience = []string{i.cfg.Audience}
	c.ID, c.TokenType, c.Roles, c.Extra = s.AccessID, "access", user.Roles, extra
	if s.Kind == kindSliding {
		if c.Extra == nil {
			c.Extra = make(map[string]any, 1)
		}
		c.TokenType, c.Extra["refresh_exp"] = "sliding", keyring.NumericDate(s.Expires)
	}
	c.IssuedAt, c.NotBefore, c.ExpiresAt = keyring.NumericDate(s.AccessIssued), keyring.NumericDate(s.AccessIssued), keyring.NumericDate(s.AccessExpires)
	return c, nil
}

// refreshToken signs the session's current refresh token. For one record it is the same, byte for
// byte, whenever and wherever it is made.
func (i *Issuer) refreshToken(rr *refreshRing, s *session) (string, error) {
	key := rr.byID[s.KeyID]
	if key == nil {
		return "", fmt.Errorf("%w: refresh key %q is not held", ErrUnavailable, s.KeyID)
	}
	c := i.claims(s)
	c.Audience = []string{i.cfg.URL} // only an issuer reads it
	c.ID, c.TokenType, c.Gen = s.RefreshID, "refresh", s.Gen
	c.IssuedAt, c.NotBefore, c.ExpiresAt = keyring.NumericDate(s.Issued), keyring.NumericDate(s.Issued), keyring.NumericDate(s.Expires)
	return key.Sign(keyring.RefreshToken, c)
}

// claims are those that both kinds of a session's tokens share.
func (i *Issuer) claims(s *session) keyring.Claims {
	return keyring.Claims{
		Issuer: i.cfg.URL, Subject: s.Subject, SessionID: s.ID, ClientID: s.ClientID, Scope: s.Scope,
		AuthTime: keyring.NumericDate(s.AuthTime), SessionSeq: s.Seq, HasSessionSeq: true,
		UserIDClaim: i.cfg.UserIDClaim, UserID: s.Subject,
	}
}

// proveAccess reads an access token: signature, iss, aud and times, by this issuer's own ring,
// then what is revoked. A *keyring.Denial says why not. It is for who holds a lease: see vouch.
func (i *Issuer) proveAccess(token string) (*keyring.Token, error) {
	return i.proveTyped(token, keyring.AccessToken)
}

// proveTyped is proveAccess for either type of token that agents read.
func (i *Issuer) proveTyped(token string, typ keyring.TokenType) (*keyring.Token, error) {
	snap := i.Replica.Snapshot()
	if !snap.Ready {
		return nil, fmt.Errorf("%w: the log has not been read yet", ErrUnavailable)
	}
	t, err := snap.Ring.Verify(token, keyring.Expect{
		Type: typ, Audiences: []string{i.cfg.Audience}, Leeway: i.cfg.Leeway, Now: i.now(),
	})
	if err != nil {
		return nil, err
	}
	ids := replica.Fingerprint(&t.Claims)
	if i.Replica.Revoked(&ids) {
		return nil, keyring.Deny(keyring.Revoked, t.KeyID, nil)
	}
	return t, nil
}

// proveRefresh reads a refresh token: signature, iss and times. What has become of its session is
// not asked here. A *keyring.Denial says why not.
func (i *Issuer) proveRefresh(ctx context.Context, token string) (*keyring.Token, *refreshRing, error) {
	if keyring.Foreign(token) {
		return i.proveForeign(ctx, token)
	}
	now := i.now()
	rr, err := i.refreshRing(ctx, time.Time{})
	if err != nil {
		return nil, nil, err
	}
	t, err := i.verifyRefresh(rr, token, now)
	if keyring.ReasonOf(err) == keyring.UnknownKey {
		// Another issuer may have made a new key since: read the record again, a second apart at most.
		if rr, err = i.refreshRing(ctx, now.Add(-time.Second)); err != nil {
			return nil, nil, err
		}
		t, err = i.verifyRefresh(rr, token, now)
	}
	if reason := keyring.ReasonOf(err); reason == keyring.Expired || reason == keyring.NotYetValid {
		if off := errors.Join(i.sound(), i.vouch()()); off != nil { // its clock may be what is wrong, and a 401 logs the user out
			return nil, nil, fmt.Errorf("%w: %w", ErrUnavailable, off)
		}
	}
	return t, rr, err
}

// verifyRefresh forgives a token that another issuer has made by a clock that is ahead of this one's: what it is good for says
// the record of its session.
func (i *Issuer) verifyRefresh(rr *refreshRing, token string, now time.Time) (*keyring.Token, error) {
	want := keyring.Expect{Type: keyring.RefreshToken, Audiences: []string{i.cfg.URL}, Leeway: i.cfg.Leeway, Now: now}
	t, err := rr.ring.Verify(token, want)
	if keyring.ReasonOf(err) != keyring.NotYetValid {
		return t, err
	}
	want.Now = now.Add(clockSkew)
	return rr.ring.Verify(token, want)
}

// newID gives a jti: 128 random bits.
func newID() string {
	b := make([]byte, 16)
	rand.Read(b) // never fails (crypto/rand, Go 1.24)
	return base64.RawURLEncoding.EncodeToString(b)
}
