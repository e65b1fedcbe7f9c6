package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// restoredName is the record, in the bucket "keys", that says that this state came from a backup.
var restoredName = bus.Name("restored")

// restoredRecord is it: {"at": 1767225600, "sessions": false}.
type restoredRecord struct {
	At       int64 `json:"at"`                 // NumericDate: when it was restored
	Sessions bool  `json:"sessions,omitempty"` // they were kept, and what is older is good still
}

// Restoring judges the records of a backup as they are restored (docs/backup.md says why). Nobody knows what happened between
// the backup and its being restored: which refresh token was used, which session revoked, which key found stolen. So what was
// made before is not honoured afterwards, unless KeepSessions says that nothing happened. The zero value ends everything.
type Restoring struct {
	KeepSessions bool
	Now          time.Time
	// What was done, for whoever is to be told.
	Sessions, Tokens, Keys int // sessions ended, join tokens voided, keys that signed given up
}

// Record gives what is to be written of a record, nil: nothing.
func (r *Restoring) Record(bucket string, rec bus.Record) ([]byte, error) {
	switch bucket {
	case bus.BucketSessions:
		return r.session(rec)
	case bus.BucketJoins:
		return r.join(rec)
	case bus.BucketKeys:
		return r.key(rec)
	}
	return rec.Value, nil
}

// session ends one. The record of one that was made from a foreign token is the claim on that, and stays, closed.
func (r *Restoring) session(rec bus.Record) ([]byte, error) {
	s, err := readSession(rec)
	if err != nil {
		return nil, err
	}
	live := s.live(r.Now)
	if r.KeepSessions {
		return rec.Value, nil
	}
	if live {
		r.Sessions++
	}
	if s.ForeignExp <= r.Now.Unix() {
		return nil, nil
	}
	if s.Closed == 0 {
		s.Closed, s.Reason = r.Now.Unix(), "restored from a backup"
	}
	return encode(s), nil
}

// join voids the tokens that had not been used: they may have been since, and would let somebody in once more.
func (r *Restoring) join(rec bus.Record) ([]byte, error) {
	used, err := bus.JoinUsed(rec.Value)
	if err != nil || used {
		return rec.Value, err
	}
	r.Tokens++
	return nil, nil
}

// key drops what signs.
func (r *Restoring) key(rec bus.Record) ([]byte, error) {
	if rec.Name == restoredName || rec.Name == bus.Name("sweep") || rec.Name == bus.Name("recheck") {
		return nil, nil // of the state before
	}
	if (rec.Name == bus.Name("refresh") || rec.Name == adminTokenName) && !r.KeepSessions {
		return nil, nil // a new one is made, and no token of the old one is known any more
	}
	return rec.Value, nil
}

// ForgetsKey tells whether a key of the log is given up: those that sign, or could. What was imported to verify stays: whose
// tokens those are decides elsewhere.
func (r *Restoring) ForgetsKey(f *bus.KeyFact) bool {
	if r.KeepSessions || f.VerifyOnly || f.Accept != "" {
		return false
	}
	switch keyring.State(f.State) {
	case keyring.Announced, keyring.Active, keyring.Retiring:
		r.Keys++
	}
	return true
}

// PrivateName is the name of the record with a key's private half, in the bucket "keys".
func PrivateName(kid string) string { return privateName(kid) }

// Mark is the record that says that a state was restored, to be written into the bucket "keys".
func (r *Restoring) Mark() (name string, value []byte) {
	return restoredName, encode(restoredRecord{At: r.Now.Unix(), Sessions: r.KeepSessions})
}

// usedBefore tells whether a foreign refresh token may have been used before this state was restored: nobody knows then.
func (i *Issuer) usedBefore(ctx context.Context, c *keyring.Claims) (bool, error) {
	r, err := i.Keys.Get(ctx, restoredName)
	if errors.Is(err, bus.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, unavailable("reading", "when this state was restored", err)
	}
	var rec restoredRecord
	if err := json.Unmarshal(r.Value, &rec); err != nil {
		return false, fmt.Errorf("reading when this state was restored: %w", err)
	}
	return !rec.Sessions && c.IssuedAt.Time().Unix() <= rec.At, nil
}

// refuseUsedBefore denies such a token.
func (i *Issuer) refuseUsedBefore(ctx context.Context, t *keyring.Token) error {
	before, err := i.usedBefore(ctx, &t.Claims)
	if err == nil && before {
		err = keyring.Deny(keyring.Revoked, t.KeyID, errors.New("it was made before this issuer was restored from a backup, and may have been used since"))
	}
	return err
}
