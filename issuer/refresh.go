package issuer

import (
	"context"
	"errors"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sidekey/sidekey/keyring"
)

// refreshKeyAge is how old this process's copy of the refresh tokens' keys may be when it signs.
const refreshKeyAge = time.Minute

// errAgain means that a compare-and-set was lost, or what was read is old: read and judge again.
var errAgain = errors.New("read again")

// Refresh exchanges a refresh token for its successor and a new access token. A retry within the
// grace time, while the successor is unused, gets that same successor. Any other second use ends
// the session everywhere. A session of a confidential client is refused: that authenticates at /oauth2/token.
// The errors are *keyring.Denial, ErrNoAccount and ErrUnavailable.
func (i *Issuer) Refresh(ctx context.Context, token string) (*Tokens, error) {
	return i.refreshFor(ctx, token, ask{})
}

// refreshFor is Refresh for a client, which may ask for less. What it may not have is an *oauthError.
func (i *Issuer) refreshFor(ctx context.Context, token string, a ask) (*Tokens, error) {
	tokens, err := i.doRefresh(ctx, token, a)
	i.metrics.refreshes.WithLabelValues(outcome(err)).Inc()
	return tokens, err
}

func (i *Issuer) doRefresh(ctx context.Context, token string, a ask) (*Tokens, error) {
	return i.renew(ctx, renewal{
		limited: i.refreshLimited, once: i.exchange,
		prove: func() (*presented, error) {
			t, rr, err := i.proveRefresh(ctx, token)
			if err != nil {
				return nil, i.foreignRefusal(ctx, t, err)
			}
			if err := i.mayRefresh(ctx, t, &a); err != nil {
				return nil, err
			}
			return &presented{Token: t, rr: rr, ask: a}, nil
		},
	})
}

// presented is a proven refresh token, and the access tokens' ids of the writes that this call
// has tried: where the record shows one of them, that write was stored though its answer was lost.
type presented struct {
	*keyring.Token
	rr    *refreshRing
	ask   ask
	tried []string
}

// exchange reads the session, judges and writes, once. Tokens leave it only after the
// compare-and-set that fixed their ids and times.
func (i *Issuer) exchange(ctx context.Context, p *presented) (*Tokens, error) {
	s, revision, err := i.session(ctx, p.Claims.Subject, p.Claims.SessionID)
	if errors.Is(err, ErrNotFound) {
		if p.Accept == "" {
			return nil, i.denyUnknown(ctx, p)
		}
		s, err = i.beginForeign(ctx, p)
	}
	if err != nil {
		return nil, err
	}
	if err := i.standing(ctx, s, p); err != nil {
		return nil, err
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
		return nil, err // before the token is used up
	}
	if i.cfg.over(s, i.now()) {
		return nil, keyring.Deny(keyring.Expired, p.KeyID, errors.New("the session has lived as long as it may"))
	}
	if slices.Contains(p.tried, s.AccessID) {
		return i.tokens(key, p.rr, s, user, p.ask)
	}
	now := i.now()
	verdict := s.judge(p.Claims.Gen, now, i.cfg.RefreshGrace)
	switch verdict {
	case useAhead:
		return nil, errAgain
	case useReuse:
		return nil, i.punish(ctx, s, p)
	}
	if err := i.fromElsewhere(ctx, s, p); err != nil {
		return nil, err
	}
	switch verdict {
	case useFirst:
		if p.rr, err = i.refreshRing(ctx, now.Add(-refreshKeyAge)); err != nil {
			return nil, err
		}
		s.rotate(p.rr.signing.ID(), now, i.lifetimes(p.ask.client))
	case useAgain:
		s.renew(now, i.lifetimes(p.ask.client))
		if p.rr.byID[s.KeyID] == nil { // another issuer signed with a newer key
			if p.rr, err = i.refreshRing(ctx, now); err != nil {
				return nil, err
			}
		}
	}
	p.tried = append(p.tried, s.AccessID)
	signing := i.sign(key, p.rr, s, user, p.ask)
	if err := i.writeSession(ctx, s, revision); err != nil {
		_, _ = signing() // never handed out
		i.log.Debug("a session's compare-and-set failed, reading it again", "sid", s.ID, "error", err)
		return nil, errAgain
	}
	i.event(ctx, "session refreshed", "sub", s.Subject, "sid", s.ID, "gen", s.Gen, "jti", s.AccessID, "kid", key.ID(), "retry", verdict == useAgain)
	return signing()
}

// standing refuses a token whose session is revoked or closed.
func (i *Issuer) standing(ctx context.Context, s *session, p *presented) error {
	revoked := i.revoked(s)
	if revoked {
		i.closeFound(ctx, s)
	}
	if revoked || s.Closed != 0 {
		return i.endedRefusal(ctx, s, p)
	}
	return nil
}

// endedRefusal is what the holder of a token of an ended session is told: that the account is gone, where it is, as Simple
// JWT does, else that the session has ended.
func (i *Issuer) endedRefusal(ctx context.Context, s *session, p *presented) error {
	if s.Username != "" && i.accountGone(ctx, s) {
		return ErrNoAccount
	}
	return keyring.Deny(keyring.Revoked, p.KeyID, errors.New("the session has ended"))
}

// accountGone tells whether a session's user is known to be gone or disabled.
func (i *Issuer) accountGone(ctx context.Context, s *session) bool {
	if i.Directory != nil {
		_, why, err := i.stands(ctx, s.Subject)
		return err == nil && why != ""
	}
	user, _, err := i.user(ctx, s.Username)
	return errors.Is(err, ErrNotFound) || err == nil && (user.ID != s.Subject || user.Disabled)
}

// writeSession is a record's compare-and-set. Revision 0: there must be none yet.
func (i *Issuer) writeSession(ctx context.Context, s *session, revision uint64) (err error) {
	if revision == 0 {
		_, err = i.Sessions.Create(ctx, s.name(), encode(s))
	} else {
		_, err = i.Sessions.Update(ctx, s.name(), encode(s), revision)
	}
	return err
}

// account gives the session's user, who must be there still, the same, and active.
func (i *Issuer) account(ctx context.Context, s *session) (*userRecord, error) {
	if i.Directory != nil {
		return i.accountElsewhere(ctx, s)
	}
	user, _, err := i.user(ctx, s.Username)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, ErrNoAccount
	case err != nil:
		return nil, err
	case user.ID != s.Subject, user.Disabled:
		return nil, ErrNoAccount
	}
	return user, nil
}

// denyUnknown refuses a token whose session has no record, once a compare-and-set has proven
// that: it leaves a closed record under the name. errAgain: there is a record after all.
func (i *Issuer) denyUnknown(ctx context.Context, p *presented) error {
	c := &p.Claims
	mark := session{ID: c.SessionID, Subject: c.Subject, Expires: c.ExpiresAt.Time().Unix(), Closed: i.now().Unix(), Reason: "no such session"}
	if _, err := i.Sessions.Create(ctx, mark.name(), encode(mark)); err != nil {
		return errAgain
	}
	return keyring.Deny(keyring.Revoked, p.KeyID, errors.New("there is no such session"))
}

// punish ends a session whose refresh token was used a second time: somebody else holds it. The
// log comes first; while that fails, the answer is "try again" and not a denial that nobody knows of.
func (i *Issuer) punish(ctx context.Context, s *session, p *presented) error {
	i.refusal(ctx, "refresh token reused, ending its session", "sub", s.Subject, "sid", s.ID, "jti", p.Claims.ID, "gen", p.Claims.Gen, "current_gen", s.Gen)
	i.metrics.reuses.Inc()
	if _, err := i.endSession(ctx, s.Subject, s.ID, "refresh token reused"); err != nil {
		return err
	}
	return keyring.Deny(keyring.Revoked, p.KeyID, errors.New("the refresh token was used before"))
}

// narrow gives the words of granted that are allowed still.
func narrow(granted, allowed string) string {
	if granted == allowed {
		return granted
	}
	have := strings.Fields(allowed)
	return strings.Join(slices.DeleteFunc(strings.Fields(granted), func(word string) bool { return !slices.Contains(have, word) }), " ")
}

var turnSeed = maphash.MakeSeed()

// turn is the lock of a session's refreshes within this process.
func (i *Issuer) turn(sid string) *sync.Mutex {
	return &i.turns[maphash.String(turnSeed, sid)%uint64(len(i.turns))]
}

// Check tells whether a token, of access or refresh, stands now: proven, its times right, not
// revoked, and, for a refresh token, the current one of an open session. A *keyring.Denial says
// why not. It decides nothing. ErrUnavailable: this issuer does not know the log's newest state.
func (i *Issuer) Check(ctx context.Context, token string) error {
	return i.vouchFor(func() error { return i.check(ctx, token) })
}

func (i *Issuer) check(ctx context.Context, token string) error {
	_, err := i.proveAccess(token)
	if err == nil {
		return nil
	}
	if r := keyring.ReasonOf(err); r != keyring.UnknownKey && r != keyring.WrongType {
		return err
	}
	p, _, err := i.proveRefresh(ctx, token)
	if err != nil {
		return err
	}
	s, _, err := i.session(ctx, p.Claims.Subject, p.Claims.SessionID)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if err != nil && p.Accept != "" {
		return i.refuseUsedBefore(ctx, p) // else nobody has used it
	}
	if err != nil || i.revoked(s) || s.Closed != 0 || p.Claims.Gen < s.Gen {
		return keyring.Deny(keyring.Revoked, p.KeyID, errors.New("the refresh token is used, or its session has ended"))
	}
	return nil
}

// EndWith ends the session of a refresh token: Simple JWT's blacklisting. A token used before is
// refused, and ends its session too.
func (i *Issuer) EndWith(ctx context.Context, token string) error {
	p, err := i.proveLimited(ctx, i.refreshLimited, func() (*presented, error) {
		t, rr, err := i.proveRefresh(ctx, token)
		return &presented{Token: t, rr: rr}, err
	})
	if err != nil {
		return err
	}
	t := p.Token
	s, _, err := i.session(ctx, t.Claims.Subject, t.Claims.SessionID)
	switch {
	case errors.Is(err, ErrNotFound) && t.Accept != "":
		_, err = i.endForeign(ctx, t, "logout")
		return err
	case errors.Is(err, ErrNotFound):
		if err = i.denyUnknown(ctx, p); errors.Is(err, errAgain) {
			err = ErrUnavailable
		}
		return err
	case err != nil:
		return err
	case i.revoked(s), s.Closed != 0:
		return keyring.Deny(keyring.Revoked, t.KeyID, errors.New("the session has ended"))
	case s.judge(t.Claims.Gen, i.now(), i.cfg.RefreshGrace) == useReuse:
		return i.punish(ctx, s, p)
	}
	_, err = i.endSession(ctx, s.Subject, s.ID, "logout")
	return err
}

func unix(sec int64) time.Time { return time.Unix(sec, 0) }
