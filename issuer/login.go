package issuer

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/bus/trace"
	"github.com/sidekey/sidekey/keyring"
)

// Credentials are what a login presents.
type Credentials struct {
	Username, Password string
	Address            string // of the client, for its limit; "": none
}

// Login proves a password and begins a session. The errors are ErrCredentials, *BusyError,
// ErrTooManySessions and ErrUnavailable. An unknown user costs what a wrong password costs.
func (i *Issuer) Login(ctx context.Context, c Credentials) (*Tokens, error) {
	tokens, err := i.login(ctx, c, kindRefresh)
	i.metrics.logins.WithLabelValues(outcome(err)).Inc()
	return tokens, err
}

func (i *Issuer) login(ctx context.Context, c Credentials, kind string) (*Tokens, error) {
	return i.loginFor(ctx, c, func(u *userRecord) (grant, error) {
		return grant{ClientID: i.cfg.DefaultClient, Scope: u.Scope, Kind: kind}, nil
	})
}

// loginFor is login for what granted gives the user. Its error is given back as it is, and no session is begun.
func (i *Issuer) loginFor(ctx context.Context, c Credentials, granted func(*userRecord) (grant, error)) (*Tokens, error) {
	user, seq, err := i.admit(ctx, c)
	if err != nil {
		return nil, err
	}
	g, err := granted(user)
	if err != nil {
		return nil, err
	}
	return i.begin(ctx, user, seq, g)
}

// admit is authenticate for a login: within its limits, and told to the audit where it is refused.
func (i *Issuer) admit(ctx context.Context, c Credentials) (*userRecord, uint64, error) {
	if err := i.limits.take(limitedName(c.Username), c.Address, i.now()); err != nil {
		i.refusal(ctx, "login limited", "name_hash", i.audits.pseudonym(c.Username))
		return nil, 0, err
	}
	if err := i.maySign(); err != nil {
		return nil, 0, err
	}
	user, seq, err := i.authenticate(ctx, c)
	if errors.Is(err, ErrCredentials) {
		// The name itself is not written: people type passwords into that field.
		i.refusal(ctx, "login refused", "name_hash", i.audits.pseudonym(c.Username))
	}
	return user, seq, err
}

// grant is what a session is begun with, beside whose it is.
type grant struct {
	ClientID string
	Scope    string  // RFC 6749 §3.3; what the user has no more is not granted later either
	Client   *caller // ClientID's, where it is registered; nil: none that bounds the tokens
	Kind     string  // of the session: kindRefresh, kindBrowser or kindSliding
}

// limitedName keeps names that no user can have from filling memory: they share one limit. Upper and lower case share one too,
// since a database may not tell them apart.
func limitedName(username string) string {
	if checkUsername(username) != nil {
		return ""
	}
	return strings.ToLower(username)
}

// authenticate gives the user whose password it is, and the sequence that this issuer had applied
// before it read the record: a password changed since then cuts the session off.
func (i *Issuer) authenticate(ctx context.Context, c Credentials) (*userRecord, uint64, error) {
	if i.Directory != nil {
		return i.authenticateElsewhere(ctx, c)
	}
	for attempt := range maxAttempts {
		seq := i.Replica.Snapshot().Position.Seq
		rec, revision, err := i.user(ctx, c.Username)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, 0, err
		}
		phc, password := "", c.Password
		if rec != nil && len(password) <= maxPassword {
			phc = rec.Password
		} else {
			password = ""
		}
		ok, stale, err := i.proven(ctx, rec, phc, password)
		if err != nil {
			return nil, 0, err
		}
		if !ok || rec.Disabled {
			return nil, 0, ErrCredentials
		}
		err = i.refreshUser(ctx, rec, revision, password, stale)
		switch {
		case err == nil:
			return rec, seq, nil
		case !errors.Is(err, bus.ErrConflict):
			return nil, 0, unavailable("reading user", c.Username, err)
		case !pause(ctx, attempt):
			return nil, 0, ctx.Err()
		}
	}
	return nil, 0, unavailable("reading user", c.Username, bus.ErrConflict)
}

// proven is hash.verify, for rec, nil of nobody. A hash that cannot be read is the operator's to mend: the client hears what
// everybody hears.
func (i *Issuer) proven(ctx context.Context, rec *userRecord, text, password string) (ok, stale bool, err error) {
	ok, stale, err = i.hash.verify(ctx, text, password)
	if errors.Is(err, errHash) {
		i.log.Error("a user cannot log in before there is another password", append([]any{"sub", rec.ID, "error", err}, trace.Of(ctx).Pairs()...)...)
		return false, false, nil
	}
	return ok, stale, err
}

// refreshUser writes the record again if there is a reason to, else it does nothing. One reason
// is a hash of yesterday's cost. The other is a cutoff of this user behind the record's seq: the
// record may be an old copy, from before the password was changed or the user disabled, and only
// a compare-and-set can tell. bus.ErrConflict: it was.
func (i *Issuer) refreshUser(ctx context.Context, rec *userRecord, revision uint64, password string, stale bool) error {
	ids := replica.Fingerprint(&keyring.Claims{Subject: rec.ID, SessionSeq: rec.Seq, HasSessionSeq: true})
	behind := i.Replica.Revoked(&ids)
	if !behind && !stale {
		return nil
	}
	if stale {
		phc, err := i.hash.make(ctx, password)
		if err != nil {
			return err
		}
		rec.Password = phc
	}
	rec.Seq = i.Replica.Snapshot().Position.Seq
	_, err := i.Users.Update(ctx, bus.Name(rec.Username), encode(rec), revision)
	return err
}

// begin writes the session's record, while the access token is being signed, and gives its first
// tokens. Sessions begun at the same moment may exceed the limit by their number.
func (i *Issuer) begin(ctx context.Context, user *userRecord, seq uint64, g grant) (*Tokens, error) {
	settle := i.vouch()
	key, err := i.signer(ctx, i.cfg.Audience)
	if err != nil {
		return nil, err
	}
	now := i.now()
	rr, err := i.refreshRing(ctx, now.Add(-refreshKeyAge))
	if err != nil {
		return nil, err
	}
	s := &session{
		ID: newUUID(), Kind: g.Kind, Subject: user.ID, Username: user.Username, ClientID: g.ClientID, Scope: g.Scope,
		AuthTime: now.Unix(), Seq: seq, Created: now.Unix(), From: placeOf(originOf(ctx)),
	}
	s.Mark = passwordMark(s.ID, user.Marker)
	s.first(rr.signing.ID(), now, i.lifetimes(g.Client))
	if _, err := i.custom.of(user); err != nil {
		return nil, err
	}
	signing := i.sign(key, rr, s, user, ask{client: g.Client})
	if i.cfg.MaxSessions > 0 {
		n, err := i.countLive(ctx, user.ID)
		if err != nil {
			return nil, err
		}
		if n >= i.cfg.MaxSessions {
			i.refusal(ctx, "login refused: too many sessions", "sub", user.ID, "sessions", n)
			return nil, ErrTooManySessions
		}
	}
	// The sid is 74 random bits beside the time: a record of that name is our own, its
	// acknowledgement having been lost.
	if _, err := i.Sessions.Create(ctx, s.name(), encode(s)); err != nil && !errors.Is(err, bus.ErrExists) {
		return nil, unavailable("beginning a session of", user.Username, err)
	}
	tokens, err := signing()
	if err != nil {
		return nil, fmt.Errorf("signing for session %q: %w", s.ID, err)
	}
	if err := settle(); err != nil { // one that stood still meanwhile may have signed with a key retired since
		return nil, err
	}
	i.event(ctx, "session began", "kind", s.Kind, "sub", s.Subject, "sid", s.ID, "jti", s.AccessID, "client_id", s.ClientID, "session_seq", s.Seq, "kid", key.ID())
	i.noteLogin(ctx, user)
	return tokens, nil
}

// sign makes the session's current tokens in the background; the function returned waits for
// them. They may be handed out only once the record is written.
func (i *Issuer) sign(key *keyring.Key, rr *refreshRing, s *session, user *userRecord, a ask) func() (*Tokens, error) {
	type result struct {
		*Tokens
		error
	}
	done := make(chan result, 1)
	now := *s
	go func() {
		t, err := i.tokens(key, rr, &now, user, a)
		done <- result{t, err}
	}()
	return func() (*Tokens, error) {
		r := <-done
		return r.Tokens, r.error
	}
}

// tokens signs what the record says.
func (i *Issuer) tokens(key *keyring.Key, rr *refreshRing, s *session, user *userRecord, a ask) (*Tokens, error) {
	granted := *s
	granted.Scope = a.narrowed(narrow(s.Scope, user.Scope))
	refresh := ""
	var err error
	switch s.Kind {
	case kindBrowser:
		return i.browserTokens(key, &granted, user)
	case kindRefresh:
		if refresh, err = i.refreshToken(rr, s); err != nil {
			return nil, err
		}
	}
	access, err := i.accessToken(key, &granted, user)
	if err != nil {
		return nil, err
	}
	return &Tokens{
		Access: access, Refresh: refresh, SessionID: s.ID, Scope: granted.Scope,
		ExpiresAt: unix(s.AccessExpires), RefreshUntil: unix(s.Expires),
	}, nil
}
