package issuer

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/sidekey/sidekey/bus"
)

// maxImport bounds the tokens of one call.
const maxImport = 500

// ForeignToken is a row of Django REST Framework's table authtoken_token, or what is like one.
type ForeignToken struct {
	Key     string `json:"key"`     // the text that clients present
	UserID  string `json:"user_id"` // the user's id here: the sub
	Created int64  `json:"created"` // NumericDate; 0: now
	Name    string `json:"name"`    // "": authtoken
}

// Imported says what became of one ForeignToken.
type Imported struct {
	ID     string       `json:"id,omitempty"` // of the credential, where there is one
	Result ImportResult `json:"result"`
	Detail string       `json:"detail,omitempty"`
}

// ImportResult is what became of a token that was to be imported.
type ImportResult string

// The results.
const (
	ImportDone    ImportResult = "imported"
	ImportPresent ImportResult = "present" // it was imported before, and stands
	ImportEnded   ImportResult = "revoked" // it was imported before and revoked since: it stays so
	ImportRefused ImportResult = "refused"
)

// ImportTokens takes in opaque tokens that were made elsewhere, so that their clients keep them, and says of each what
// became of it, in order. It may be called with the same ones again: that changes nothing, and finishes what an
// interrupted call has begun. One whose user does not exist, or is disabled, is refused.
func (i *Issuer) ImportTokens(ctx context.Context, kind bus.CredentialType, tokens []ForeignToken) ([]Imported, error) {
	if _, err := i.credentials(); err != nil {
		return nil, err
	}
	if kind == "" {
		kind = bus.Opaque
	}
	if len(tokens) == 0 || len(tokens) > maxImport {
		return nil, &InputError{"tokens", fmt.Sprintf("must be 1 to %d", maxImport)}
	}
	results := make([]Imported, len(tokens))
	var fresh []*credentialRecord
	for at := range tokens {
		c, err := i.importOne(ctx, kind, &tokens[at], &results[at])
		if err == nil && c != nil {
			fresh = append(fresh, c)
		}
		if err = i.importRefused(err, &results[at]); err != nil {
			return nil, err
		}
	}
	for some := range slices.Chunk(fresh, endBatch) {
		if _, err := i.stand(ctx, some...); err != nil {
			// Those of a user who is disabled by now are suspended or ended by who did that, or by the sweep. The next
			// call says of each how it is.
			return nil, fmt.Errorf("importing tokens: %w: %w", ErrUnavailable, err)
		}
	}
	if len(fresh) > 0 {
		i.event(ctx, "credentials imported", "credentials", len(fresh), "type", kind)
	}
	return results, nil
}

// importRefused notes in a result an error that concerns this token alone; others it gives back.
func (i *Issuer) importRefused(err error, result *Imported) error {
	var input *InputError
	var conflict *ConflictError
	switch {
	case errors.As(err, &input), errors.As(err, &conflict), errors.Is(err, ErrTooManyCredentials):
		result.Result, result.Detail = ImportRefused, err.Error()
		return nil
	case errors.Is(err, ErrNotFound):
		result.Result, result.Detail = ImportRefused, "there is no such user"
		return nil
	}
	return err
}

// importOne writes the record of one token. It gives the record where its entry is to be appended.
func (i *Issuer) importOne(ctx context.Context, kind bus.CredentialType, t *ForeignToken, result *Imported) (*credentialRecord, error) {
	if err := checkForeignText(t.Key); err != nil {
		return nil, err
	}
	now := i.now().Unix()
	if t.Created < 0 || t.Created > now+int64(clockSkew.Seconds()) {
		return nil, &InputError{"created", "must be a time that has been (NumericDate)"}
	}
	c := &credentialRecord{Credential: Credential{Type: kind, Name: t.Name, Created: t.Created, Imported: true}}
	if c.Name == "" {
		c.Name = "authtoken"
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	c.identify(t.Key)
	if t.UserID == "" {
		return nil, &InputError{"user_id", "may not be empty"}
	}
	user, known, err := i.owner(ctx, "", t.UserID)
	if err != nil {
		return nil, err
	}
	if old, err := i.importedBefore(ctx, c, t.UserID, result); old != nil || err != nil || result.Result != "" {
		return old, err
	}
	if err := i.own(c, user, known); err != nil {
		return nil, err
	}
	if err := i.roomFor(ctx, user.ID); err != nil {
		return nil, err
	}
	if _, err := i.Credentials.Create(ctx, c.bucketName(), encode(c)); err != nil && !errors.Is(err, bus.ErrExists) {
		return nil, unavailable("importing a token of", user.Username, err)
	}
	result.ID, result.Result = c.ID, ImportDone
	return c, nil
}

// importedBefore says of a token that has a record already how it stands. It gives the record where an interrupted
// import has left its entry out.
func (i *Issuer) importedBefore(ctx context.Context, c *credentialRecord, sub string, result *Imported) (*credentialRecord, error) {
	if held := i.Replica.CredentialByID(c.ID); held != nil && held.Subject != sub {
		return nil, &ConflictError{"the same text is another user's credential"}
	}
	old, _, err := i.credentialAgain(ctx, bus.Name(sub, c.ID))
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	result.ID = old.ID
	switch {
	case i.shown(old).State == CredentialRevoked:
		result.Result = ImportEnded
		return nil, nil
	}
	result.Result = ImportPresent
	if old.State == CredentialActive && !old.expired(i.now().Unix()) && i.Replica.CredentialByID(old.ID) == nil {
		result.Result = ImportDone
		return old, nil
	}
	return nil, nil
}
