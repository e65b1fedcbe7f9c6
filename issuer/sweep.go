package issuer

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// closeRevoked closes the records of the sessions that this issuer reads are revoked, whoever
// revoked them, until ctx ends.
func (i *Issuer) closeRevoked(ctx context.Context) {
	for {
		select {
		case <-i.Feed.wake:
		case <-ctx.Done():
			return
		}
		for _, r := range i.Feed.take() {
			if err := i.Replica.Wait(ctx, r.Seq); err != nil {
				return
			}
			i.closeSeen(ctx, r)
		}
	}
}

// closeSeen closes what one revocation ends. What fails is left to the next sweep.
func (i *Issuer) closeSeen(ctx context.Context, r SeenRevocation) {
	switch {
	case r.SessionID != "":
		if _, err := i.closeByID(ctx, r.SessionID, r.Reason, r.ExpiresAt); err != nil && ctx.Err() == nil {
			i.log.Warn("could not close a revoked session, the next sweep will", "sid", r.SessionID, "error", err)
		}
	case r.Subject != "":
		i.closeCutOff(ctx, r)
	}
}

// closeCutOff closes the sessions of a subject that began before the cutoff. The cutoff refuses
// their tokens without that; closing spares every later read of them.
func (i *Issuer) closeCutOff(ctx context.Context, r SeenRevocation) {
	recs, _, err := i.listSessions(ctx, subjectSessions(r.Subject))
	for _, s := range recs {
		if s.Closed == 0 && s.Seq < r.Seq {
			_, cerr := i.closeSession(ctx, s.Subject, s.ID, r.Reason, r.ExpiresAt)
			err = errors.Join(err, cerr)
		}
	}
	if err != nil && ctx.Err() == nil {
		i.log.Warn("could not close all sessions of a subject, the next sweep will", "sub", r.Subject, "error", err)
	}
}

// closeFound closes a session that was found revoked by who asked for it.
func (i *Issuer) closeFound(ctx context.Context, s *session) {
	if s.Closed != 0 {
		return
	}
	if _, err := i.closeSession(ctx, s.Subject, s.ID, "revoked", i.revokedUntil(s)); err != nil {
		i.log.Warn("could not close a revoked session, the next sweep will", "sid", s.ID, "error", err)
	}
}

// revokedUntil is how long what revoked a session surely lives: a cutoff longer than any session
// that it refuses, the revocation of a sid, whose own exp is not known here, not a moment.
func (i *Issuer) revokedUntil(s *session) int64 {
	ids := replica.Fingerprint(&keyring.Claims{SessionID: s.ID})
	if i.Replica.Revoked(&ids) {
		return i.now().Unix()
	}
	return math.MaxInt64
}

// sweepPause is the time between two sweeps: short beside a revocation's life, since a session
// whose revocation was missed must be closed before that is forgotten.
func (i *Issuer) sweepPause() time.Duration {
	return min(max(i.cfg.AccessLifetime/3, 10*time.Second), 5*time.Minute)
}

// keepSwept sweeps, at once and then every sweepPause, until ctx ends. One issuer does at a time, and two do no harm: each record
// is dropped, closed and mended by compare-and-set on the revision that was judged.
func (i *Issuer) keepSwept(ctx context.Context) {
	for {
		if i.Replica.Snapshot().Ready {
			if err := i.Sweep(ctx); err != nil && ctx.Err() == nil {
				i.log.Warn("could not sweep the sessions, trying again later", "error", err)
			}
			if err := i.SweepCredentials(ctx); err != nil && ctx.Err() == nil {
				i.log.Warn("could not sweep the credentials, trying again later", "error", err)
			}
		}
		t := time.NewTimer(jitter(i.sweepPause()))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// Sweep drops the records of sessions that have expired, closes those that are revoked but open,
// appends again the revocations that end too early for what a closed record shows (in both cases a
// crash came between), and drops the private halves of keys that have ended and the assertions that clients
// used and that have expired. Run calls it; calling it more often is harmless.
func (i *Issuer) Sweep(ctx context.Context) error {
	recs, revisions, err := i.listSessions(ctx, "")
	if err != nil {
		return err
	}
	now, dropped, closed := i.now(), 0, 0
	for at, s := range recs {
		switch {
		case max(s.Expires, s.AccessLast, s.ForeignExp)+i.tail() < now.Unix():
			// A conflict means that it was used or dropped meanwhile: the next sweep sees.
			if i.Sessions.Delete(ctx, s.name(), revisions[at]) == nil {
				dropped++
			}
		case s.Closed == 0 && i.revoked(s):
			if _, err := i.closeSession(ctx, s.Subject, s.ID, "revoked", i.revokedUntil(s)); err != nil {
				return err
			}
			closed++
		case s.Closed != 0 && i.endsEarly(s, s.Until):
			if _, err := i.outlive(ctx, s, revisions[at], s.Until); err != nil {
				return err
			}
		}
	}
	if dropped+closed > 0 {
		i.log.Info("swept the sessions", "dropped", dropped, "closed", closed)
	}
	return errors.Join(i.dropPrivate(ctx), i.dropAssertions(ctx))
}

// dropPrivate deletes the private halves of keys that are retired or revoked.
func (i *Issuer) dropPrivate(ctx context.Context) error {
	recs, err := i.Keys.List(ctx, bus.Under("ring"))
	if err != nil {
		return unavailable("listing", "private keys", err)
	}
	live := make(map[string]bool)
	ring := i.Replica.Snapshot().Ring
	for _, rec := range ring.Records() {
		live[privateName(rec.KeyID)] = rec.State != keyring.Retired && rec.State != keyring.Revoked
		if !live[privateName(rec.KeyID)] {
			i.private.drop(rec.KeyID)
		}
	}
	for _, r := range recs {
		// One that is not in the ring is left alone: its announcement may not have been read here yet.
		if is, known := live[r.Name]; is || !known {
			continue
		}
		if err := i.Keys.Delete(ctx, r.Name, r.Revision); err == nil {
			i.log.Info("dropped the private half of a key that has ended")
		}
	}
	return nil
}
