package issuer

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/trace"
	"github.com/sidekey/sidekey/keyring"
)

// Directory is where users live who do not live in the bucket "users": a database or a service of somebody else. It is only ever
// read. Package issuer/directory has the two that configuration can name.
type Directory interface {
	// Lookup gives the user who logs in under that name. It returns ErrNotFound, or *RecordError; any other error means that the
	// directory cannot be asked now.
	Lookup(ctx context.Context, username string) (*Account, error)
	// ByID gives the user whose Account.ID that is, with the same errors. Each refresh asks it.
	ByID(ctx context.Context, id string) (*Account, error)
}

// Prover is a Directory that proves passwords itself, and gives no hash of them.
type Prover interface {
	Directory
	// Prove gives the user whose password it is, or ErrCredentials; the other errors are Lookup's, and *BusyError.
	Prove(ctx context.Context, c Credentials) (*Account, error)
}

// Account is a user of a Directory. Created and PasswordChanged need not be known.
type Account struct {
	User
	PasswordHash string // in one of the forms of docs/users.md; "": nobody can log in as the user
	// Marker changes with the password, and need mean nothing else: a session ends at its next refresh after it has changed.
	// "": nothing tells of a new password.
	Marker string
}

// RecordError means that what the directory holds of a user cannot be believed: two users of one name, a column that is NULL.
// Problem holds nothing that a client sent.
type RecordError struct{ Problem string }

func (e *RecordError) Error() string { return "a user's record cannot be believed: " + e.Problem }

// record is the account as the rest of the package knows users.
func (a *Account) record() (*userRecord, error) {
	rec := &userRecord{User: a.User, Password: a.PasswordHash, Marker: a.Marker}
	if err := rec.check(); err != nil {
		return nil, &RecordError{err.Error()}
	}
	return rec, nil
}

// authenticateElsewhere is authenticate for users of the Directory. The sequence is taken before the directory is asked: who
// disables a user there and then revokes it here cuts off whatever was begun on the old answer.
func (i *Issuer) authenticateElsewhere(ctx context.Context, c Credentials) (*userRecord, uint64, error) {
	seq := i.Replica.Snapshot().Position.Seq
	prove := i.proveHere
	if p, ok := i.Directory.(Prover); ok {
		prove = func(ctx context.Context, c Credentials) (*Account, error) {
			if checkUsername(c.Username) != nil || len(c.Password) > maxPassword {
				return nil, ErrCredentials
			}
			return p.Prove(ctx, c)
		}
	}
	account, err := prove(ctx, c)
	var busy *BusyError
	var broken *RecordError
	switch {
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrCredentials):
		return nil, 0, ErrCredentials
	case errors.As(err, &busy):
		return nil, 0, err
	case errors.As(err, &broken):
		i.log.Error("refusing a login", append([]any{"error", err}, trace.Of(ctx).Pairs()...)...)
		return nil, 0, ErrCredentials
	case err != nil:
		return nil, 0, fmt.Errorf("asking the directory: %w: %w", ErrUnavailable, err)
	case account.Disabled:
		return nil, 0, ErrCredentials
	}
	rec, err := account.record()
	if err == nil {
		err = i.checkNoClient(ctx, rec.ID)
	}
	if errors.As(err, &broken) {
		i.log.Error("refusing a login", append([]any{"sub", account.ID, "error", err}, trace.Of(ctx).Pairs()...)...)
		return nil, 0, ErrCredentials
	}
	return rec, seq, err
}

// checkNoClient refuses a user of the Directory whose id is an OAuth client's: the client's own tokens and the user's would have
// one sub (RFC 9068 §5). A client's id begins with a letter, so ids that are numbers cost nothing.
func (i *Issuer) checkNoClient(ctx context.Context, sub string) error {
	if !validClientID(sub) {
		return nil
	}
	held, err := i.Subjects.Get(ctx, bus.Name(sub))
	switch {
	case errors.Is(err, bus.ErrNotFound):
		return nil
	case err != nil:
		return unavailable("reading whose id it is", sub, err)
	case string(held.Value) == clientSubject(sub):
		return &RecordError{"its id is that of an OAuth client; delete the client, or give one of them another id"}
	}
	return nil
}

// proveHere reads the hash and compares. Whatever the reason is, a refusal costs a hash.
func (i *Issuer) proveHere(ctx context.Context, c Credentials) (*Account, error) {
	account, password := &Account{}, c.Password
	var lookup error = ErrNotFound
	if checkUsername(c.Username) == nil && len(password) <= maxPassword {
		account, lookup = i.Directory.Lookup(ctx, c.Username)
	}
	var broken *RecordError
	switch {
	case lookup == nil && !sameName(c.Username, account.Username) && !sameName(c.Username, account.Email):
		// One name more than its limit knows, as where a database takes é for e.
		lookup = ErrNotFound
	case lookup != nil && !errors.Is(lookup, ErrNotFound) && !errors.As(lookup, &broken):
		return nil, lookup
	}
	hash := ""
	if lookup == nil {
		hash = account.PasswordHash
	} else {
		account, password = &Account{}, ""
	}
	ok, _, err := i.proven(ctx, &userRecord{User: account.User}, hash, password)
	switch {
	case err != nil:
		return nil, err
	case lookup != nil:
		return nil, lookup
	case !ok:
		return nil, ErrCredentials
	}
	return account, nil
}

// sameName tells whether two names share one limit.
func sameName(typed, held string) bool { return limitedName(typed) == limitedName(held) }

// accountElsewhere is account for users of the Directory, which tells nobody when one is disabled or has a new password: it is
// asked at each refresh, and what is over is ended at every agent.
func (i *Issuer) accountElsewhere(ctx context.Context, s *session) (*userRecord, error) {
	rec, why, err := i.stands(ctx, s.Subject)
	if err != nil {
		return nil, fmt.Errorf("asking the directory for %q: %w: %w", s.Subject, ErrUnavailable, err)
	}
	if why == "" && !hmac.Equal([]byte(s.Mark), []byte(passwordMark(s.ID, rec.Marker))) {
		why = passwordChanged
	}
	if why == "" {
		return rec, nil
	}
	if err := i.endElsewhere(ctx, s, why); err != nil {
		return nil, err
	}
	if why == passwordChanged {
		return nil, keyring.Deny(keyring.Revoked, "", errors.New(why))
	}
	return nil, ErrNoAccount
}

// Why the sessions of a user of the Directory end.
const (
	userGone        = "user gone from the directory"
	userDisabled    = "user disabled in the directory"
	passwordChanged = "password changed in the directory"
)

// stands gives the user, or why nothing of theirs stands any more.
func (i *Issuer) stands(ctx context.Context, sub string) (rec *userRecord, why string, err error) {
	account, err := i.Directory.ByID(ctx, sub)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, userGone, nil
	case err != nil:
		return nil, "", err
	case account.ID != sub:
		return nil, "", &RecordError{"the query by id gave another id"}
	case account.Disabled:
		return nil, userDisabled, nil
	}
	if rec, err = account.record(); err == nil {
		err = i.checkNoClient(ctx, sub)
	}
	if err != nil {
		return nil, "", err
	}
	return rec, "", nil
}

// endElsewhere ends what is over. A disabled user loses everything, and API keys until enabled again. One that is gone loses the sessions: that nobody
// is found may be a database that was set wrongly, and sessions can be begun again. With a new password, each session that began
// with the old one ends on its own, since others may have begun with the new one.
func (i *Issuer) endElsewhere(ctx context.Context, s *session, why string) (err error) {
	switch why {
	case userDisabled:
		if _, err = i.cutoff(ctx, &bus.Revocation{Subject: s.Subject, Reason: why}); err == nil {
			_, err = i.followUser(ctx, &userRecord{User: User{ID: s.Subject, Disabled: true}})
		}
	case userGone:
		_, err = i.cutoff(ctx, &bus.Revocation{Subject: s.Subject, Reason: why, Sessions: true})
	default:
		_, err = i.endSession(ctx, s.Subject, s.ID, why)
	}
	if err == nil {
		i.refusal(ctx, "session ended by the directory", "sub", s.Subject, "sid", s.ID, "reason", why)
	}
	return err
}

// passwordMark is what a session keeps of the password that began it: enough to see that it was changed, as Django's own session
// hash is, and another for every session. It opens nothing.
func passwordMark(sid, marker string) string {
	if marker == "" {
		return ""
	}
	mac := hmac.New(sha256.New, []byte(sid))
	mac.Write([]byte(marker))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:16])
}

// userElsewhere reads one user.
func (i *Issuer) userElsewhere(ctx context.Context, username string) (*User, error) {
	if checkUsername(username) != nil {
		return nil, fmt.Errorf("reading a user: %w", ErrNotFound)
	}
	account, err := i.Directory.Lookup(ctx, username)
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrElsewhere) {
		return nil, fmt.Errorf("reading user %q: %w", username, err)
	}
	if err != nil {
		return nil, fmt.Errorf("asking the directory: %w: %w", ErrUnavailable, err)
	}
	rec, err := account.record()
	if err != nil {
		return nil, err
	}
	return &rec.User, nil
}
