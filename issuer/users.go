package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/sidekey/sidekey/bus"
)

// User is what may be known of a user; the password's hash is not in it.
//
//	{"id":"0198…","username":"alice","scope":"read write","roles":["staff"],"email":"","attributes":{},
//	 "disabled":false,"created":1767225600,"password_changed":1767225600}
type User struct {
	ID              string          `json:"id"` // the sub of the user's tokens; never changes
	Username        string          `json:"username"`
	Scope           string          `json:"scope"` // RFC 6749 §3.3: what a login grants
	Roles           []string        `json:"roles"`
	Email           string          `json:"email,omitempty"`
	Attributes      json.RawMessage `json:"attributes,omitempty"` // a JSON object, the operator's own
	Disabled        bool            `json:"disabled"`
	Created         int64           `json:"created"`              // NumericDate
	PasswordChanged int64           `json:"password_changed"`     // NumericDate
	LastLogin       int64           `json:"last_login,omitempty"` // NumericDate, to the hour; 0: not known, see Config.UpdateLastLogin
}

// userRecord is a user as the bucket "users" holds it, under bus.Name(username):
//
//	{…User…, "password": "$argon2id$v=19$m=65536,t=3,p=4$…", "seq": 411}
//
// Seq is the log's sequence that the writer had applied. Where a cutoff of the user is newer, the
// record may have been read from a follower that lags: see Issuer.current.
type userRecord struct {
	User
	Password string `json:"password"`
	Seq      uint64 `json:"seq"`
	Marker   string `json:"-"` // Account.Marker, of a user who lives elsewhere
}

// NewUser is what AddUser needs; all but Username and Password may be left out.
type NewUser struct {
	ID       string `json:"id"` // "": a new UUIDv7
	Username string `json:"username"`
	Password string `json:"password"`
	// PasswordHash is instead of Password: a hash that another made (docs/users.md), or "!…" for none. The first login makes
	// our own of it.
	PasswordHash string          `json:"password_hash"`
	Scope        string          `json:"scope"`
	Roles        []string        `json:"roles"`
	Email        string          `json:"email"`
	Attributes   json.RawMessage `json:"attributes"`
	Disabled     bool            `json:"disabled"`
}

// UserChange is what ChangeUser changes: members that are nil stay.
type UserChange struct {
	Password   *string          `json:"password"`
	Scope      *string          `json:"scope"`
	Roles      *[]string        `json:"roles"`
	Email      *string          `json:"email"`
	Attributes *json.RawMessage `json:"attributes"`
	Disabled   *bool            `json:"disabled"`
}

// AddUser creates a user. The errors are *InputError, ErrExists (name or id is taken), *BusyError
// and ErrUnavailable.
func (i *Issuer) AddUser(ctx context.Context, n NewUser) (*User, error) {
	if i.Directory != nil {
		return nil, ErrElsewhere
	}
	now := i.now().Unix()
	rec := userRecord{Seq: i.Replica.Snapshot().Position.Seq, User: User{
		ID: n.ID, Username: n.Username, Scope: n.Scope, Roles: n.Roles, Email: n.Email,
		Attributes: n.Attributes, Disabled: n.Disabled, Created: now, PasswordChanged: now,
	}}
	if rec.ID == "" {
		rec.ID = newUUID()
	}
	if err := rec.check(); err != nil {
		return nil, err
	}
	if err := i.checkClaims(&rec); err != nil {
		return nil, err
	}
	var err error
	if rec.Password, err = i.newHash(ctx, &n); err != nil {
		return nil, err
	}
	// The sub is claimed first, so that no two users ever share one.
	claimed, err := i.claimSubject(ctx, rec.ID, rec.Username)
	if err != nil {
		return nil, err
	}
	if _, err := i.Users.Create(ctx, bus.Name(rec.Username), encode(rec)); err != nil {
		if errors.Is(err, bus.ErrExists) {
			i.releaseSubject(ctx, rec.ID, claimed)
			return nil, fmt.Errorf("adding user %q: %w", rec.Username, ErrExists)
		}
		return nil, unavailable("adding user", rec.Username, err)
	}
	i.event(ctx, "user added", "username", rec.Username, "sub", rec.ID)
	return &rec.User, nil
}

// newHash gives what a new user's record has as its password.
func (i *Issuer) newHash(ctx context.Context, n *NewUser) (string, error) {
	if n.PasswordHash == "" {
		if err := i.checkNewPassword(n.Username, n.Password); err != nil {
			return "", err
		}
		return i.hash.make(ctx, n.Password)
	}
	if n.Password != "" {
		return "", &InputError{"password_hash", "may not be beside password"}
	}
	switch _, err := parseStored(n.PasswordHash); {
	case errors.Is(err, errNoHash):
		return "!", nil
	case err != nil:
		return "", &InputError{"password_hash", "cannot be used: " + err.Error()}
	}
	return n.PasswordHash, nil
}

// claimSubject takes a sub for a user name. A claim that an interrupted AddUser left behind for
// the same name is taken over. The revision is 0 then: it is not this call's to release.
func (i *Issuer) claimSubject(ctx context.Context, sub, username string) (uint64, error) {
	revision, err := i.Subjects.Create(ctx, bus.Name(sub), []byte(username))
	if err == nil {
		return revision, nil
	}
	if !errors.Is(err, bus.ErrExists) {
		return 0, unavailable("claiming id", sub, err)
	}
	held, err := i.Subjects.Get(ctx, bus.Name(sub))
	if err != nil {
		return 0, unavailable("claiming id", sub, err)
	}
	if string(held.Value) != username {
		return 0, fmt.Errorf("claiming the id %q: %w", sub, ErrExists)
	}
	return 0, nil
}

func (i *Issuer) releaseSubject(ctx context.Context, sub string, revision uint64) {
	if revision == 0 {
		return
	}
	if err := i.Subjects.Delete(ctx, bus.Name(sub), revision); err != nil {
		i.log.Warn("leaving an unused subject behind", "sub", sub, "error", err)
	}
}

// User gives one user, or ErrNotFound.
func (i *Issuer) User(ctx context.Context, username string) (*User, error) {
	if i.Directory != nil {
		return i.userElsewhere(ctx, username)
	}
	rec, _, err := i.user(ctx, username)
	if err != nil {
		return nil, err
	}
	return &rec.User, nil
}

// ListUsers gives all users, by name.
func (i *Issuer) ListUsers(ctx context.Context) ([]User, error) {
	if i.Directory != nil {
		return nil, ErrElsewhere
	}
	recs, err := i.Users.List(ctx, "")
	if err != nil {
		return nil, unavailable("listing", "users", err)
	}
	users := make([]User, 0, len(recs))
	for _, r := range recs {
		var rec userRecord
		if err := json.Unmarshal(r.Value, &rec); err != nil {
			return nil, fmt.Errorf("reading user record %q: %w", r.Name, err)
		}
		users = append(users, rec.User)
	}
	slices.SortFunc(users, func(a, b User) int { return strings.Compare(a.Username, b.Username) })
	return users, nil
}

// ChangeUser changes what ch names. A new password, or disabling, ends every session of the user:
// a cutoff goes into the log first, the record is written second, so that a crash between the two
// leaves the stricter state.
func (i *Issuer) ChangeUser(ctx context.Context, username string, ch UserChange) (*User, error) {
	user, _, err := i.changeUser(ctx, username, ch)
	return user, err
}

// changeUser gives also where the newest cutoff stands, the zero Position if there was none.
func (i *Issuer) changeUser(ctx context.Context, username string, ch UserChange) (*User, bus.Position, error) {
	var phc string
	var cut bus.Position
	if i.Directory != nil {
		return nil, cut, ErrElsewhere
	}
	if ch.Password != nil {
		if err := i.checkNewPassword(username, *ch.Password); err != nil {
			return nil, cut, err
		}
		var err error
		if phc, err = i.hash.make(ctx, *ch.Password); err != nil {
			return nil, cut, err
		}
	}
	for attempt := range maxAttempts {
		rec, revision, err := i.user(ctx, username)
		if err != nil {
			return nil, cut, err
		}
		cuts := ch.Password != nil || ch.Disabled != nil && *ch.Disabled
		ch.apply(rec, phc, i.now().Unix())
		if err := rec.check(); err != nil {
			return nil, cut, err
		}
		if ch.Attributes != nil || ch.Email != nil || ch.Roles != nil || ch.Scope != nil { // else nothing may keep a user from being disabled
			if err := i.checkClaims(rec); err != nil {
				return nil, cut, err
			}
		}
		if cuts {
			if cut, err = i.cutoff(ctx, ch.cutoff(rec)); err != nil {
				return nil, cut, err
			}
		}
		rec.Seq = i.Replica.Snapshot().Position.Seq
		_, err = i.Users.Update(ctx, bus.Name(username), encode(rec), revision)
		switch {
		case err == nil:
			i.event(ctx, "user changed", "username", username, "sub", rec.ID, "password_changed", ch.Password != nil, "disabled", rec.Disabled)
			if ch.Disabled == nil && ch.Scope == nil && ch.Roles == nil {
				return &rec.User, cut, nil
			}
			last, err := i.followUser(ctx, rec)
			return &rec.User, later(cut, last), err
		case !errors.Is(err, bus.ErrConflict):
			return nil, cut, unavailable("changing user", username, err)
		case !pause(ctx, attempt):
			return nil, cut, ctx.Err()
		}
	}
	return nil, cut, unavailable("changing user", username, bus.ErrConflict)
}

func (ch *UserChange) apply(rec *userRecord, phc string, now int64) {
	if ch.Password != nil {
		rec.Password, rec.PasswordChanged = phc, now
	}
	set(&rec.Scope, ch.Scope)
	set(&rec.Roles, ch.Roles)
	set(&rec.Email, ch.Email)
	set(&rec.Attributes, ch.Attributes)
	set(&rec.Disabled, ch.Disabled)
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

// cutoff is what goes into the log. A new password alone ends no API key.
func (ch *UserChange) cutoff(rec *userRecord) *bus.Revocation {
	if rec.Disabled {
		return &bus.Revocation{Subject: rec.ID, Reason: "user disabled"}
	}
	return &bus.Revocation{Subject: rec.ID, Reason: "password changed", Sessions: true}
}

// DeleteUser removes a user and ends all their sessions.
func (i *Issuer) DeleteUser(ctx context.Context, username string) error {
	_, err := i.deleteUser(ctx, username)
	return err
}

// deleteUser gives also where the newest cutoff stands.
func (i *Issuer) deleteUser(ctx context.Context, username string) (cut bus.Position, err error) {
	if i.Directory != nil {
		return cut, ErrElsewhere
	}
	for attempt := range maxAttempts {
		rec, revision, err := i.user(ctx, username)
		if err != nil {
			return cut, err
		}
		if cut, err = i.cutoff(ctx, &bus.Revocation{Subject: rec.ID, Reason: "user deleted"}); err != nil {
			return cut, err
		}
		err = i.Users.Delete(ctx, bus.Name(username), revision)
		switch {
		case err == nil:
			if held, err := i.Subjects.Get(ctx, bus.Name(rec.ID)); err == nil {
				i.releaseSubject(ctx, rec.ID, held.Revision)
			}
			i.event(ctx, "user deleted", "username", username, "sub", rec.ID)
			last, err := i.endCredentialsOf(ctx, rec.ID, "", "user deleted")
			return later(cut, last), err
		case !errors.Is(err, bus.ErrConflict):
			return cut, unavailable("deleting user", username, err)
		case !pause(ctx, attempt):
			return cut, ctx.Err()
		}
	}
	return cut, unavailable("deleting user", username, bus.ErrConflict)
}

// user reads one record. A name that no user can have is ErrNotFound too.
func (i *Issuer) user(ctx context.Context, username string) (*userRecord, uint64, error) {
	if checkUsername(username) != nil {
		return nil, 0, fmt.Errorf("reading a user: %w", ErrNotFound)
	}
	r, err := i.Users.Get(ctx, bus.Name(username))
	if errors.Is(err, bus.ErrNotFound) {
		return nil, 0, fmt.Errorf("reading user %q: %w", username, ErrNotFound)
	}
	if err != nil {
		// Without the name: on the way of a login it is whatever was typed, passwords too, and this is logged.
		return nil, 0, fmt.Errorf("reading a user: %w: %w", ErrUnavailable, err)
	}
	rec := new(userRecord)
	if err := json.Unmarshal(r.Value, rec); err != nil {
		return nil, 0, fmt.Errorf("reading user record %q: %w", username, err)
	}
	return rec, r.Revision, nil
}

// Check tells what of the user cannot be, nil: nothing.
func (u *User) Check() *InputError {
	var input *InputError
	if err := (&userRecord{User: *u}).check(); errors.As(err, &input) {
		return input
	}
	return nil
}

func (rec *userRecord) check() error {
	if err := checkUsername(rec.Username); err != nil {
		return err
	}
	if n := len(rec.ID); n < 1 || n > 255 || !printable(rec.ID) {
		return &InputError{"id", "must be 1 to 255 bytes without control characters"}
	}
	if !validScope(rec.Scope) {
		return &InputError{"scope", "must be words of printable ASCII without quote and backslash, one blank between them, 1024 bytes at most (RFC 6749 §3.3)"}
	}
	if err := checkRoles(rec.Roles); err != nil {
		return err
	}
	if len(rec.Email) > 254 || !printable(rec.Email) {
		return &InputError{"email", "must be 254 bytes at most, without control characters"}
	}
	if len(rec.Attributes) > 0 {
		var object map[string]json.RawMessage
		if len(rec.Attributes) > 8192 || json.Unmarshal(rec.Attributes, &object) != nil {
			return &InputError{"attributes", "must be a JSON object of 8192 bytes at most"}
		}
	}
	if rec.Roles == nil {
		rec.Roles = []string{}
	}
	return nil
}

func checkRoles(roles []string) error {
	if len(roles) > 64 {
		return &InputError{"roles", "must be 64 at most"}
	}
	for _, role := range roles {
		if len(role) < 1 || len(role) > 128 || !printable(role) || strings.Contains(role, ",") {
			return &InputError{"roles", "must each be 1 to 128 bytes without comma and control characters"}
		}
	}
	return nil
}

func checkUsername(name string) error {
	if n := len(name); n < 1 || n > 255 || !printable(name) || strings.TrimSpace(name) != name {
		return &InputError{"username", "must be 1 to 255 bytes of UTF-8 without control characters and without blanks at either end"}
	}
	return nil
}

// checkPassword bounds a new password. Simple JWT's login trims blanks from both ends, so that a
// password with one there could never be entered: it is refused when it is set.
func checkPassword(password string) error {
	switch {
	case password == "":
		return &InputError{"password", "may not be empty"}
	case len(password) > maxPassword:
		return &InputError{"password", fmt.Sprintf("must be %d bytes at most", maxPassword)}
	case !utf8.ValidString(password) || strings.ContainsRune(password, 0):
		return &InputError{"password", "must be UTF-8 without null characters"}
	case strings.TrimSpace(password) != password:
		return &InputError{"password", "may not begin or end with a blank: a login trims it away, as Simple JWT does"}
	}
	return nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// validScope holds RFC 6749 §3.3: scope-token = 1*( %x21 / %x23-5B / %x5D-7E ), one blank between.
func validScope(scope string) bool {
	if scope == "" {
		return true
	}
	if len(scope) > 1024 {
		return false
	}
	for word := range strings.SplitSeq(scope, " ") {
		if word == "" || strings.ContainsFunc(word, func(r rune) bool { return r < 0x21 || r == 0x22 || r == 0x5c || r > 0x7e }) {
			return false
		}
	}
	return true
}

// newUUID gives a UUIDv7 (RFC 9562 §5.7).
func newUUID() string { return uuid.Must(uuid.NewV7()).String() } // fails only where crypto/rand does, which it does not

// encode gives the JSON of a record of ours, which always has one.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("issuer: a record of type %T has no JSON: %v", v, err))
	}
	return b
}

// unavailable wraps what the bus answered, so that the caller knows to try again.
func unavailable(doing, what string, err error) error {
	return fmt.Errorf("%s %q: %w: %w", doing, what, ErrUnavailable, err)
}
