package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// session is a login and its family of refresh tokens, or a browser's session (browser.go), as the bucket "sessions" holds it under
// bus.Name(sub, sid). It says all that its current tokens say, so no token is stored, and each can
// be made again. Every change is a compare-and-set.
//
//	{"sid": "0198…", "sub": "0197…", "username": "alice", "client_id": "sidekey", "scope": "read write",
//	 "auth_time": 1767225600, "session_seq": 411, "gen": 2, "kid": "…", "jti": "…", "iat": 1767226000,
//	 "exp": 1767830800, "access_jti": "…", "access_iat": 1767226000, "access_exp": 1767226900,
//	 "access_last": 1767226900, "rotated_at": 1767226000123, "created": 1767225600, "closed": 0}
type session struct {
	ID       string `json:"sid"`
	Subject  string `json:"sub"`
	Username string `json:"username"`
	ClientID string `json:"client_id"`
	Scope    string `json:"scope,omitempty"`
	AuthTime int64  `json:"auth_time"`
	Seq      uint64 `json:"session_seq"`    // what its issuer had applied when it began; cutoffs compare it
	Mark     string `json:"mark,omitempty"` // of the password that began it, where users live elsewhere: see passwordMark

	Gen       uint64 `json:"gen"` // of the current refresh token, from 1
	KeyID     string `json:"kid"` // what signs it
	RefreshID string `json:"jti"`
	Issued    int64  `json:"iat"`
	Expires   int64  `json:"exp"`

	AccessID      string `json:"access_jti"` // of the newest access token
	AccessIssued  int64  `json:"access_iat"`
	AccessExpires int64  `json:"access_exp"`
	AccessLast    int64  `json:"access_last"` // the latest exp of any access token of the session

	// ForeignExp is the exp of the foreign token that the session was made from: until then the record is the claim on it.
	ForeignExp int64 `json:"foreign_exp,omitempty"`

	Kind string `json:"kind,omitempty"` // kindBrowser or kindSliding; "": a family of refresh tokens
	CSRF string `json:"csrf,omitempty"` // of a browser: the token that its unsafe requests carry; the same as long as the session

	RotatedAt int64  `json:"rotated_at"` // milliseconds since 1970: when the generation before was first used
	Created   int64  `json:"created"`
	From      place  `json:"from,omitzero"`   // where its login came from
	Last      place  `json:"last,omitzero"`   // and its newest refresh
	Closed    int64  `json:"closed"`          // NumericDate, 0: open. It is never opened again
	Until     int64  `json:"until,omitempty"` // closed: its revocation in the log lives at least as long (NumericDate)
	Reason    string `json:"reason,omitempty"`
}

// Session is what may be known of a session.
type Session struct {
	ID       string `json:"sid"`
	Subject  string `json:"sub"`
	ClientID string `json:"client_id"`
	Kind     string `json:"kind,omitempty"` // "browser", or none: of refresh tokens
	Created  int64  `json:"created"`        // NumericDates, as the rest
	LastUsed int64  `json:"last_used"`      // when the newest tokens were made
	Expires  int64  `json:"expires"`        // of the current refresh token
	Gen      uint64 `json:"gen"`
	Closed   int64  `json:"closed"`        // 0: open
	From     place  `json:"from,omitzero"` // {"network": "192.0.2.0/24", "user_agent": "…"} of its login
	Last     place  `json:"last,omitzero"` // the same of its newest refresh
}

// use is what presenting a refresh token of a session amounts to.
type use int

const (
	useFirst use = iota // it is the current one
	useAgain            // it was used a moment ago and its successor was not: a retry
	useReuse            // any other second use
	useAhead            // the record read is older than the token: read again
)

// judge tells what presenting the token of generation gen of an open session amounts to. useReuse
// stays so whatever is written later, as a closed session stays closed, so an old read of the
// record never denies wrongly.
func (s *session) judge(gen uint64, now time.Time, grace time.Duration) use {
	switch {
	case gen == s.Gen:
		return useFirst
	case gen > s.Gen:
		return useAhead
	case gen+1 == s.Gen && grace > 0 && now.Sub(time.UnixMilli(s.RotatedAt)) <= grace:
		return useAgain
	}
	return useReuse
}

// rotate makes the next generation.
func (s *session) rotate(kid string, now time.Time, cfg *Config) {
	s.Gen++
	s.KeyID, s.RefreshID, s.RotatedAt = kid, newID(), now.UnixMilli()
	s.Issued, s.Expires = now.Unix(), cfg.within(s, now.Add(cfg.RefreshLifetime))
	s.renew(now, cfg)
}

// renew fixes a new access token beside the same refresh token.
func (s *session) renew(now time.Time, cfg *Config) {
	end := cfg.within(s, now.Add(cfg.AccessLifetime))
	if s.Kind == kindSliding {
		end = min(cfg.within(s, now.Add(cfg.SlidingLifetime)), s.Expires) // a token past its session would be a hole
	}
	s.AccessID, s.AccessIssued, s.AccessExpires = newID(), now.Unix(), end
	s.AccessLast = max(s.AccessLast, s.AccessExpires)
}

func (s *session) live(now time.Time) bool { return s.Closed == 0 && s.Expires > now.Unix() }

// revoked tells whether this issuer has read that the session has ended.
func (i *Issuer) revoked(s *session) bool {
	ids := replica.Fingerprint(&keyring.Claims{
		ID: s.RefreshID, Subject: s.Subject, SessionID: s.ID, ClientID: s.ClientID, SessionSeq: s.Seq, HasSessionSeq: true,
	})
	return i.Replica.Revoked(&ids)
}

func (s *session) name() string { return bus.Name(s.Subject, s.ID) }

func (s *session) public() Session {
	return Session{s.ID, s.Subject, s.ClientID, s.Kind, s.Created, s.AccessIssued, s.Expires, s.Gen, s.Closed, s.From, s.latest()}
}

// session reads one record.
func (i *Issuer) session(ctx context.Context, sub, sid string) (*session, uint64, error) {
	r, err := i.Sessions.Get(ctx, bus.Name(sub, sid))
	if errors.Is(err, bus.ErrNotFound) {
		return nil, 0, fmt.Errorf("reading session %q: %w", sid, ErrNotFound)
	}
	if err != nil {
		return nil, 0, unavailable("reading session", sid, err)
	}
	s, err := readSession(r)
	return s, r.Revision, err
}

func readSession(r bus.Record) (*session, error) {
	s := new(session)
	if err := json.Unmarshal(r.Value, s); err != nil {
		return nil, fmt.Errorf("reading session record %q: %w", r.Name, err)
	}
	return s, nil
}

// listSessions reads the records under a filter.
func (i *Issuer) listSessions(ctx context.Context, filter string) ([]*session, []uint64, error) {
	recs, err := i.Sessions.List(ctx, filter)
	if err != nil {
		return nil, nil, unavailable("listing", "sessions", err)
	}
	all, revisions := make([]*session, 0, len(recs)), make([]uint64, 0, len(recs))
	for _, r := range recs {
		s, err := readSession(r)
		if err != nil {
			return nil, nil, err
		}
		all, revisions = append(all, s), append(revisions, r.Revision)
	}
	return all, revisions, nil
}

// ListSessions gives the sessions of one subject, or all where sub is empty, newest first. A
// session that is revoked in the log is shown as closed, though its record may not be yet.
func (i *Issuer) ListSessions(ctx context.Context, sub string) ([]Session, error) {
	filter := ""
	if sub != "" {
		filter = bus.Under(sub)
	}
	recs, _, err := i.listSessions(ctx, filter)
	if err != nil {
		return nil, err
	}
	now := i.now()
	all := make([]Session, 0, len(recs))
	for _, s := range recs {
		if s.Gen == 0 || s.Expires <= now.Unix() {
			continue // a mark that there is no such session, or one that waits to be dropped
		}
		if s.Closed == 0 && i.revoked(s) {
			s.Closed = now.Unix()
		}
		all = append(all, s.public())
	}
	slices.SortStableFunc(all, func(a, b Session) int { return int(b.Created - a.Created) })
	return all, nil
}

// countLive counts what issuer.max_sessions bounds. It reads the records only if there are so
// many of them that the answer can matter.
func (i *Issuer) countLive(ctx context.Context, sub string) (int, error) {
	filter := bus.Under(sub)
	n, err := i.Sessions.AtMost(ctx, filter)
	if err != nil {
		return 0, unavailable("counting the sessions of", sub, err)
	}
	if n < i.cfg.MaxSessions {
		return n, nil
	}
	recs, _, err := i.listSessions(ctx, filter)
	if err != nil {
		return 0, err
	}
	n, now := 0, i.now()
	for _, s := range recs {
		if s.live(now) && !i.revoked(s) {
			n++
		}
	}
	return n, nil
}

// closeSession closes the record of a session whose revocation, until revokedUntil, is in the log
// already (PROTOCOL 14). Where that would end before an access token that was made until the
// record closed, the revocation is appended again: again is where, and what a receipt must cover.
// Who finds the record closed does the same, since who closed it may have stopped right there.
func (i *Issuer) closeSession(ctx context.Context, sub, sid, reason string, revokedUntil int64) (again bus.Position, err error) {
	for attempt := range maxAttempts {
		s, revision, err := i.session(ctx, sub, sid)
		if errors.Is(err, ErrNotFound) {
			return again, nil
		}
		if err != nil {
			return again, err
		}
		if s.Closed == 0 {
			s.Closed, s.Reason, s.Until = i.now().Unix(), reason, revokedUntil
			if revision, err = i.Sessions.Update(ctx, s.name(), encode(s), revision); err != nil {
				if !pause(ctx, attempt) {
					return again, ctx.Err()
				}
				continue // lost to another write, or its answer was lost: the record tells
			}
		}
		return i.outlive(ctx, s, revision, revokedUntil)
	}
	return again, unavailable("closing session", sid, bus.ErrConflict)
}

// outlive appends the revocation of a closed session again if it ends too early for a token that
// the record shows, and then notes in the record that this is done, for the sweep. A closed record
// shows every token that was or can be made of the session: each was fixed by a compare-and-set.
func (i *Issuer) outlive(ctx context.Context, s *session, revision uint64, revokedUntil int64) (again bus.Position, err error) {
	if !i.endsEarly(s, revokedUntil) {
		return again, nil
	}
	s.Until = s.AccessLast + 2*i.tail()
	again, err = i.append(ctx, &bus.Revocation{SessionID: s.ID, ExpiresAt: s.Until, Reason: s.Reason})
	if err != nil {
		return again, err
	}
	if _, err := i.Sessions.Update(ctx, s.name(), encode(s), revision); err != nil {
		i.log.Debug("could not note how long a revocation lives, the next sweep appends it again", "sid", s.ID, "error", err)
	}
	return again, nil
}

// endsEarly tells whether a session's revocation would be forgotten before its last access token
// is refused for its age everywhere.
func (i *Issuer) endsEarly(s *session, revokedUntil int64) bool {
	return s.AccessLast+i.tail() > revokedUntil && s.AccessLast >= i.now().Unix()-i.tail()
}

// tail is how much longer than a token its revocation lives, in seconds: leeway, and the clocks.
func (i *Issuer) tail() int64 { return int64((i.cfg.Leeway + 2*clockSkew) / time.Second) }

// subjectSessions is the filter of one subject's sessions.
func subjectSessions(sub string) string { return bus.Under(sub) }
