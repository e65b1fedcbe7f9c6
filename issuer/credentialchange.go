package issuer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// Bounds of a change.
const (
	amendWithin    = 20 * time.Second // beyond, whoever sweeps may take it for interrupted
	endBatch       = 128              // credentials that are withdrawn by one append
	overlapDefault = 24 * time.Hour
	overlapLongest = 90 * 24 * time.Hour
)

// CredentialChange is what ChangeCredential changes: members that are nil stay.
type CredentialChange struct {
	Name      *string   `json:"name"`
	Expires   *int64    `json:"expires"` // NumericDate, 0: never
	ExpiresIn *string   `json:"expires_in"`
	Networks  *[]string `json:"networks"`
	Scope     *string   `json:"scope"` // within what it has now
}

// ChangeCredential changes what ch names, and waits for nobody: use the sequence as at_least_seq where an agent has to
// know it. The errors are *InputError, *ConflictError (it is revoked), ErrNotFound and ErrUnavailable.
func (i *Issuer) ChangeCredential(ctx context.Context, id string, ch CredentialChange) (*Credential, bus.Position, error) {
	found, _, err := i.credential(ctx, id)
	if err != nil {
		return nil, bus.Position{}, err
	}
	c, pos, err := i.amend(ctx, found.bucketName(), func(c *credentialRecord, _ *userRecord, _ uint64) error {
		if c.State == CredentialRevoked {
			return &ConflictError{fmt.Sprintf("credential %q is revoked", id)}
		}
		return i.applyChange(c, &ch)
	})
	if err != nil {
		return nil, pos, err
	}
	i.event(ctx, "credential changed", "id", id, "sub", c.Subject, "name", c.Name, "scope", c.Scope, "expires", c.Expires)
	return i.shown(c), pos, nil
}

func (i *Issuer) applyChange(c *credentialRecord, ch *CredentialChange) (err error) {
	set(&c.Name, ch.Name)
	if ch.Expires != nil || ch.ExpiresIn != nil {
		var at int64
		var in string
		set(&at, ch.Expires)
		set(&in, ch.ExpiresIn)
		if c.Expires, err = i.expiry(at, in); err != nil {
			return err
		}
	}
	if ch.Networks != nil {
		if c.Networks, err = readNetworks(*ch.Networks); err != nil {
			return err
		}
	}
	if ch.Scope != nil {
		if len(strings.Fields(narrow(*ch.Scope, c.Scope))) != len(strings.Fields(*ch.Scope)) {
			return &InputError{"scope", "must be within what the credential has: make another for more"}
		}
		c.ScopeLimit = ch.Scope
	}
	return c.check()
}

// amend changes one credential, its record by compare-and-set and then the log, and gives where that stands; the zero
// Position where the log need not know. No other entry of a credential may come between what was read and what is
// written, so that the log never has an older content behind a newer one. One change runs at a time, so that only
// issuers compete. change gets the user, and the sequence known before the user was read; it is called again after a
// lost race, and its error ends it all.
func (i *Issuer) amend(ctx context.Context, name string, change func(c *credentialRecord, user *userRecord, known uint64) error) (*credentialRecord, bus.Position, error) {
	ctx, cancel := context.WithTimeout(ctx, amendWithin)
	defer cancel()
	select {
	case <-i.amends:
		defer func() { i.amends <- struct{}{} }()
	case <-ctx.Done():
		return nil, bus.Position{}, unavailable("changing", "a credential", ctx.Err())
	}
	for attempt := range maxAttempts {
		behind := i.Replica.Snapshot().Position.Seq
		c, revision, err := i.credentialAgain(ctx, name)
		if err != nil {
			return nil, bus.Position{}, err
		}
		user, known, err := i.owner(ctx, "", c.Subject)
		if err == nil && c.State == CredentialActive {
			err = i.standsNow(c)
		}
		if err == nil {
			err = change(c, user, known)
		}
		if err != nil {
			return nil, bus.Position{}, err
		}
		c.grant(user)
		c.Changed = i.now().Unix()
		pos, err := i.write(ctx, c, revision, behind)
		switch {
		case err == nil:
			return c, pos, nil
		case !errors.Is(err, bus.ErrConflict):
			return nil, pos, unavailable("changing credential", c.ID, err)
		case !pause(ctx, attempt):
			return nil, pos, ctx.Err()
		}
	}
	return nil, bus.Position{}, unavailable("changing", "a credential", bus.ErrConflict)
}

// standsNow refuses to change what the log has withdrawn, or let expire, though its record does not say so yet: a new entry
// with the old KnownSeq would bring it back once the cutoff is forgotten.
func (i *Issuer) standsNow(c *credentialRecord) error {
	if held := i.Replica.CredentialByID(c.ID); held == nil || i.Replica.CredentialRevoked(held) {
		return &ConflictError{fmt.Sprintf("credential %q stands no more", c.ID)}
	}
	return nil
}

// write writes a record, and its entry where it is active. bus.ErrConflict: nothing, or the record alone, was written.
func (i *Issuer) write(ctx context.Context, c *credentialRecord, revision, behind uint64) (pos bus.Position, err error) {
	if _, err = i.Credentials.Update(ctx, c.bucketName(), encode(c), revision); err != nil {
		return pos, err
	}
	if c.State != CredentialActive || c.expired(c.Changed) {
		return pos, nil
	}
	if pos, err = i.Log.AppendIf(ctx, bus.KindCredential, behind, c.fact()); err != nil {
		return pos, err
	}
	return pos, i.settle(ctx, pos)
}

// endCredentials withdraws credentials for good: the log first, the records second. Each is also revoked by its id, as a
// token is, so that a change of it that is under way elsewhere does not bring it back. It gives where the last entry
// stands.
func (i *Issuer) endCredentials(ctx context.Context, all []*credentialRecord, reason string) (pos bus.Position, err error) {
	until := i.longest().Unix()
	for some := range slices.Chunk(all, endBatch) {
		facts := make([]bus.Fact, 0, 2*len(some))
		for _, c := range some {
			facts = append(facts, &bus.Revocation{ID: c.ID, ExpiresAt: until, Reason: reason}, c.gone())
		}
		if pos, err = i.Log.Append(ctx, facts...); err != nil {
			return pos, unavailable("revoking credentials of", some[0].Username, err)
		}
		i.metrics.revocations.Add(float64(len(some)))
		for _, c := range some {
			i.event(ctx, "credential revoked", "seq", pos.Seq, "id", c.ID, "name", c.Name, "sub", c.Subject, "reason", reason)
		}
	}
	if len(all) == 0 {
		return pos, nil
	}
	if err := i.settle(ctx, pos); err != nil {
		return pos, err
	}
	for _, c := range all {
		if err := i.mark(ctx, c.bucketName(), CredentialRevoked, reason); err != nil {
			return pos, err
		}
	}
	return pos, nil
}

// mark writes a state into a record, unless that is revoked already.
func (i *Issuer) mark(ctx context.Context, name string, state CredentialState, reason string) error {
	for attempt := range maxAttempts {
		c, revision, err := i.credentialAgain(ctx, name)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if c.State == CredentialRevoked || c.State == state {
			return nil
		}
		c.State, c.Reason, c.Changed = state, reason, i.now().Unix()
		if _, err = i.Credentials.Update(ctx, name, encode(c), revision); err == nil {
			return nil
		}
		if !errors.Is(err, bus.ErrConflict) {
			return unavailable("changing credential", c.ID, err)
		}
		if !pause(ctx, attempt) {
			return ctx.Err()
		}
	}
	return unavailable("changing", "a credential", bus.ErrConflict)
}

// dropRecord deletes a record.
func (i *Issuer) dropRecord(ctx context.Context, name string) error {
	for attempt := range maxAttempts {
		_, revision, err := i.credentialAgain(ctx, name)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if err = i.Credentials.Delete(ctx, name, revision); err == nil {
			return nil
		}
		if !errors.Is(err, bus.ErrConflict) {
			return unavailable("deleting", "a credential", err)
		}
		if !pause(ctx, attempt) {
			return ctx.Err()
		}
	}
	return unavailable("deleting", "a credential", bus.ErrConflict)
}

// revokeCredential revokes one by its id. ErrNotFound: there is none.
func (i *Issuer) revokeCredential(ctx context.Context, id, reason string) (bus.Position, error) {
	c, _, err := i.credential(ctx, id)
	if err != nil {
		return bus.Position{}, err
	}
	return i.endCredentials(ctx, []*credentialRecord{c}, reason)
}

// deleteCredential revokes one and forgets its record.
func (i *Issuer) deleteCredential(ctx context.Context, id string) (bus.Position, error) {
	c, _, err := i.credential(ctx, id)
	if err != nil {
		return bus.Position{}, err
	}
	pos, err := i.endCredentials(ctx, []*credentialRecord{c}, "deleted")
	if err == nil {
		err = i.dropRecord(ctx, c.bucketName())
	}
	return pos, err
}

// endCredentialsOf revokes those of a subject, or of a client, that are not revoked yet.
func (i *Issuer) endCredentialsOf(ctx context.Context, sub, client, reason string) (bus.Position, error) {
	if i.Credentials == nil {
		return bus.Position{}, nil
	}
	filter := ""
	if sub != "" {
		filter = bus.Under(sub)
	}
	recs, _, err := i.listCredentials(ctx, filter)
	if err != nil {
		return bus.Position{}, err
	}
	return i.endCredentials(ctx, slices.DeleteFunc(recs, func(c *credentialRecord) bool {
		return c.State == CredentialRevoked && i.Replica.CredentialByID(c.ID) == nil || client != "" && c.ClientID != client
	}), reason)
}

// followUser brings a user's credentials to what the user is now: suspended while the user is disabled, back when the
// user is enabled, and never with more rights than the user has. It gives where the last entry stands.
func (i *Issuer) followUser(ctx context.Context, user *userRecord) (pos bus.Position, err error) {
	if i.Credentials == nil {
		return pos, nil
	}
	recs, _, err := i.listCredentials(ctx, bus.Under(user.ID))
	if err != nil {
		return pos, err
	}
	if user.Disabled {
		return i.suspend(ctx, recs)
	}
	now := i.now().Unix()
	for _, c := range recs {
		if !c.usable(now) || !c.behind(user) {
			continue
		}
		_, at, err := i.amend(ctx, c.bucketName(), restore)
		var over *ConflictError // withdrawn: the sweep closes its record
		if err != nil && !errors.Is(err, ErrNotFound) && !errors.As(err, &over) {
			return pos, err
		}
		pos = later(pos, at)
	}
	return pos, nil
}

// behind tells whether a credential is not what its enabled user's should be.
func (c *credentialRecord) behind(user *userRecord) bool {
	now := *c
	now.grant(user)
	return c.State == CredentialSuspended || now.Scope != c.Scope || !slices.Equal(now.Roles, c.Roles)
}

// restore lets a suspended credential stand again, behind the cutoff that came with the suspension.
func restore(c *credentialRecord, user *userRecord, known uint64) error {
	if c.State == CredentialSuspended && !user.Disabled {
		c.State, c.Reason, c.Known = CredentialActive, "", known
	}
	return nil
}

// suspend takes credentials out of the log until their user is enabled. The user's cutoff is in the log already, so the
// records come first: a crash in between leaves what the sweep knows how to end.
func (i *Issuer) suspend(ctx context.Context, recs []*credentialRecord) (pos bus.Position, err error) {
	var facts []bus.Fact
	for _, c := range recs {
		if c.State == CredentialRevoked {
			continue
		}
		if err := i.mark(ctx, c.bucketName(), CredentialSuspended, "user disabled"); err != nil {
			return pos, err
		}
		facts = append(facts, c.gone())
	}
	for some := range slices.Chunk(facts, endBatch) {
		if pos, err = i.Log.Append(ctx, some...); err != nil {
			return pos, unavailable("suspending", "credentials", err)
		}
	}
	if len(facts) == 0 {
		return pos, nil
	}
	i.event(ctx, "credentials suspended", "sub", recs[0].Subject, "credentials", len(facts))
	return pos, i.settle(ctx, pos)
}

// RotateCredential makes the successor of an active credential, with the same name and rights and a new text, and lets
// the old one live for overlap more, or end at once (0): then the Position is where that stands in the log. The errors
// are AddCredential's.
func (i *Issuer) RotateCredential(ctx context.Context, id string, overlap time.Duration) (made *MadeCredential, old *Credential, pos bus.Position, err error) {
	if overlap < 0 || overlap > overlapLongest {
		return nil, nil, pos, &InputError{"overlap", fmt.Sprintf("must be a duration of 0s to %s", overlapLongest)}
	}
	c, _, err := i.credential(ctx, id)
	if err != nil {
		return nil, nil, pos, err
	}
	if state := i.shown(c).State; state != CredentialActive {
		return nil, nil, pos, &ConflictError{fmt.Sprintf("credential %q is %s", id, state)}
	}
	if c.ReplacedBy != "" {
		return nil, nil, pos, &ConflictError{fmt.Sprintf("credential %q was rotated into %q already; rotate that", id, c.ReplacedBy)}
	}
	if made, err = i.successor(ctx, c); err != nil {
		return nil, nil, pos, err
	}
	c, pos, err = i.amend(ctx, c.bucketName(), func(c *credentialRecord, _ *userRecord, _ uint64) error {
		c.ReplacedBy = made.ID
		if end := i.now().Add(max(overlap, time.Second)).Unix(); c.Expires == 0 || c.Expires > end {
			c.Expires = end
		}
		return nil
	})
	if err == nil && overlap == 0 {
		pos, err = i.endCredentials(ctx, []*credentialRecord{c}, "rotated")
		c.State, c.Reason = CredentialRevoked, "rotated"
	}
	if err != nil {
		return nil, nil, pos, err
	}
	i.event(ctx, "credential rotated", "id", id, "into", made.ID, "sub", c.Subject, "expires", c.Expires)
	return made, i.shown(c), pos, nil
}

// successor makes a credential like c. It lives as long as c was to live.
func (i *Issuer) successor(ctx context.Context, c *credentialRecord) (*MadeCredential, error) {
	user, known, err := i.owner(ctx, "", c.Subject)
	if err != nil {
		return nil, err
	}
	next := &credentialRecord{Credential: Credential{
		Type: c.Type, Name: c.Name, ClientID: c.ClientID, Networks: c.Networks, Replaces: c.ID,
	}}
	if c.ScopeLimit != nil { // the user may have less by now
		scope := narrow(*c.ScopeLimit, user.Scope)
		next.ScopeLimit = &scope
	}
	if c.RolesLimit != nil {
		roles := slices.Clone(c.Roles)
		next.RolesLimit = &roles
	}
	if c.Expires != 0 {
		next.Expires = i.now().Unix() + max(c.Expires-c.Created, 1)
	}
	return i.makeCredential(ctx, next, user, known)
}
