package issuer

import (
	"context"
	"errors"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
)

// What the sweep leaves alone.
const (
	sweepSettled   = time.Minute         // what was changed more recently may be under way: a change takes amendWithin at most
	credentialKept = 30 * 24 * time.Hour // how long an ended credential's record is kept
	usersLooked    = time.Hour           // between two looks at the user of every credential
)

// SweepCredentials holds the records of credentials against the log, and mends what a crash left different, to the
// stricter of both: what only one of the two has is withdrawn. It suspends, restores and ends what a user's change should
// have, and drops the records of those that ended long ago; an imported one's stays, so that the next import does not
// bring back what was revoked. Run calls it, in one issuer at a time; calling it more often is harmless.
func (i *Issuer) SweepCredentials(ctx context.Context) error {
	if i.Credentials == nil {
		return nil
	}
	held := make(map[string]*replica.Credential)
	for _, c := range i.Replica.ListCredentials() { // before the records, which are written first
		held[c.ID] = c
	}
	recs, revisions, err := i.listCredentials(ctx, "")
	if err != nil {
		return err
	}
	s := &credentialSweep{Issuer: i, now: i.now().Unix(), users: make(map[string]*userRecord), thorough: i.lookAtUsers()}
	for at, c := range recs {
		s.note(s.judge(ctx, c, revisions[at], held[c.ID]))
		delete(held, c.ID)
	}
	for _, c := range held {
		s.note(s.judgeUnknown(ctx, c))
	}
	if s.mended > 0 {
		i.log.Info("swept the credentials", "mended", s.mended)
	}
	return s.failed
}

// lookAtUsers tells whether it is time to look at every credential's user. It is asked by the one goroutine that sweeps.
func (i *Issuer) lookAtUsers() bool {
	i.uses.mu.Lock()
	defer i.uses.mu.Unlock()
	every := usersLooked
	if i.Directory != nil && i.cfg.RecheckEvery > 0 {
		every = min(every, i.cfg.RecheckEvery) // nobody tells when a user is disabled there
	}
	if i.now().Sub(i.uses.looked) < every {
		return false
	}
	i.uses.looked = i.now()
	return true
}

// credentialSweep is one sweep.
type credentialSweep struct {
	*Issuer
	now      int64
	thorough bool // each credential's user is looked at
	users    map[string]*userRecord
	mended   int
	away     bool  // the Directory cannot be asked: what needs it waits for the next sweep
	failed   error // the first failure; the others are swept all the same
}

func (s *credentialSweep) note(err error) {
	if s.failed == nil {
		s.failed = err
	}
}

// judge mends one record. held is what the log has, nil: nothing.
func (s *credentialSweep) judge(ctx context.Context, c *credentialRecord, revision uint64, held *replica.Credential) error {
	over := c.Changed
	if c.State != CredentialRevoked && c.expired(s.now) {
		over = max(over, c.Expires)
	}
	switch {
	case s.now-c.Changed < int64(sweepSettled/time.Second):
		return nil
	case !c.usable(s.now) && held == nil:
		if !c.Imported && s.now-over > int64(credentialKept/time.Second) {
			return ignoreConflict(s.Credentials.Delete(ctx, c.bucketName(), revision))
		}
		return nil
	case c.State == CredentialRevoked:
		return s.end(ctx, c, c.Reason)
	case c.expired(s.now):
		return nil // the log drops it by itself, in a moment
	case c.State == CredentialActive && held == nil:
		return s.end(ctx, c, "its making or its end was interrupted")
	}
	cut := held != nil && s.Replica.CredentialRevoked(held)
	differs := held != nil && (c.State == CredentialSuspended || !sameCredential(held.Credential, c.fact()))
	if !s.thorough && !cut && !differs && c.State == CredentialActive {
		return nil
	}
	return s.hold(ctx, c, held, cut, differs)
}

// hold brings a credential to what its user is.
func (s *credentialSweep) hold(ctx context.Context, c *credentialRecord, held *replica.Credential, cut, differs bool) error {
	if s.away {
		return nil
	}
	user, err := s.userOf(ctx, c)
	switch {
	case err != nil:
		return err
	case user == nil && s.Directory == nil:
		return s.end(ctx, c, "user deleted")
	case user == nil:
		// That nobody is found may be a database that was set wrongly: they come back with the user.
		user = &userRecord{User: User{Disabled: true}}
	}
	switch {
	case user.Disabled && (held != nil || c.State == CredentialActive):
		s.mended++
		_, err := s.suspend(ctx, []*credentialRecord{c})
		return err
	case user.Disabled:
		return nil
	case cut && s.settledCut(held):
		// All of the user was revoked, and whoever did it came no further.
		return s.end(ctx, c, "cut off")
	case cut:
		return nil
	case differs || c.behind(user):
		s.mended++
		_, _, err := s.amend(ctx, c.bucketName(), restore)
		var over *ConflictError // withdrawn meanwhile: the next sweep sees
		if errors.Is(err, ErrNotFound) || errors.As(err, &over) {
			err = nil
		}
		return err
	}
	return nil
}

// settledCut tells whether what cut a credential off is so old that whoever did it is at work no longer.
func (s *credentialSweep) settledCut(c *replica.Credential) bool {
	return s.Replica.CredentialCutAt(c) < s.now-int64(sweepSettled/time.Second)
}

func (s *credentialSweep) end(ctx context.Context, c *credentialRecord, reason string) error {
	s.mended++
	_, err := s.endCredentials(ctx, []*credentialRecord{c}, reason)
	return err
}

// userOf reads a credential's user, nil: there is none. Each is read once a sweep.
func (s *credentialSweep) userOf(ctx context.Context, c *credentialRecord) (*userRecord, error) {
	if user, known := s.users[c.Subject]; known {
		return user, nil
	}
	var broken *RecordError
	user, _, err := s.owner(ctx, "", c.Subject)
	if err != nil && !errors.Is(err, ErrNotFound) {
		s.away = s.Directory != nil && !errors.As(err, &broken)
		return nil, err
	}
	s.users[c.Subject] = user
	return user, nil
}

// judgeUnknown withdraws what the log has and no record knows. A read may come from a follower that is late, so a
// compare-and-set proves first that there is none; the mark that it leaves ends as any revoked one.
func (s *credentialSweep) judgeUnknown(ctx context.Context, held *replica.Credential) error {
	mark := &credentialRecord{
		Credential: Credential{ID: held.ID, Type: held.Type, Subject: held.Subject, Created: held.IssuedAt, State: CredentialRevoked, Reason: "no record"},
		Hash:       held.Hash, Changed: s.now,
	}
	_, err := s.Credentials.Create(ctx, mark.bucketName(), encode(mark))
	if errors.Is(err, bus.ErrExists) {
		return nil
	}
	if err != nil {
		return unavailable("sweeping credential", held.ID, err)
	}
	return s.end(ctx, mark, mark.Reason)
}

func sameCredential(a, b *bus.Credential) bool { return string(encode(a)) == string(encode(b)) }

func ignoreConflict(err error) error {
	if errors.Is(err, bus.ErrConflict) {
		return nil // changed meanwhile: the next sweep sees
	}
	return err
}
