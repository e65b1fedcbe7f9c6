package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// sealingRecord holds the private halves of the keys that agents seal to, newest last, in the bucket
// "keys" under bus.Name("sealing"). Only issuers ever hold them; the log has the public half of the newest.
//
//	{"keys": [{"id": "0198…", "private": "base64", "created": 1767225600, "retired": 0}]}
type sealingRecord struct {
	Keys []sealingKey `json:"keys"`
}

type sealingKey struct {
	ID      string `json:"id"`
	Private []byte `json:"private"`
	Created int64  `json:"created"` // NumericDate
	Retired int64  `json:"retired"` // NumericDate, 0: it is the newest
}

// How the sealing keys are kept.
const (
	sealingHeld  = time.Hour   // a key that was replaced: for agents that have not read of the newer one
	sealingLook  = time.Minute // between two looks at the record
	sealingAgain = time.Second // and while something is to be done, or an agent names a key that is not known
)

// sealingKeys are those that this process has read. The zero value has none.
type sealingKeys struct {
	mu   sync.Mutex
	byID map[string]*keyring.SealingKey
	read time.Time
}

// keepSealing makes the sealing keys, rotates them with keys.rotate_every, and has the log name the
// newest, until ctx ends.
func (i *Issuer) keepSealing(ctx context.Context) {
	for {
		wait, changed := sealingAgain, i.Replica.Changed()
		switch done, err := i.stepSealing(ctx); {
		case ctx.Err() != nil:
			return
		case err != nil:
			i.log.Warn("could not see to the key that agents seal to, trying again", "error", err)
			changed = nil
		case done:
			wait, changed = sealingLook, nil
		}
		// What is not done waits for the log to be read, or for another issuer: nobody is Ready until then.
		if awaitAny(ctx, wait, changed) != nil || awaitAny(ctx, stepApart) != nil {
			return
		}
	}
}

// StepSealing does what is due for the key that agents seal to, as Step does for the ring. Run calls it.
func (i *Issuer) StepSealing(ctx context.Context) error {
	_, err := i.stepSealing(ctx)
	return err
}

// stepSealing does what is due, and tells whether all is as it should be.
func (i *Issuer) stepSealing(ctx context.Context) (done bool, err error) {
	snap := i.Replica.Snapshot()
	if !snap.Ready || !i.fresh() {
		return false, nil
	}
	rec, err := i.readSealing(ctx)
	if errors.Is(err, bus.ErrConflict) {
		return false, nil // another issuer was first
	}
	if err != nil {
		return false, err
	}
	newest := rec.Keys[len(rec.Keys)-1]
	if snap.Sealing != nil && snap.Sealing.ID == newest.ID {
		return true, nil
	}
	key, err := i.heldSealing(newest.ID)
	if err != nil {
		return false, err
	}
	fact := &bus.SealingFact{ID: newest.ID, Public: key.Public(), Created: newest.Created}
	if every := i.cfg.RotateEvery; every > 0 {
		fact.ExpiresAt = time.Unix(newest.Created, 0).Add(2*every + sealingHeld).Unix()
	}
	// By now each issuer finds the private half; no agent knows the public one yet.
	pos, err := i.Log.AppendIf(ctx, bus.KindSealing, snap.SealingSeq, fact)
	if errors.Is(err, bus.ErrConflict) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("announcing the key that agents seal to: %w", err)
	}
	i.log.Info("agents have a new key to seal to", "id", newest.ID, "seq", pos.Seq)
	return true, i.settle(ctx, pos)
}

// readSealing reads the record into memory; where there is none, or its newest key is due, it writes one
// with a new key first. bus.ErrConflict: another issuer did.
func (i *Issuer) readSealing(ctx context.Context) (*sealingRecord, error) {
	r, err := i.Keys.Get(ctx, bus.Name("sealing"))
	if err != nil && !errors.Is(err, bus.ErrNotFound) {
		return nil, unavailable("reading", "the keys that agents seal to", err)
	}
	rec := new(sealingRecord)
	if err == nil && json.Unmarshal(r.Value, rec) != nil {
		return nil, errors.New("reading the keys that agents seal to: the record is no JSON") // the cause may quote a secret
	}
	changed, err := rec.advance(i.now(), i.cfg.RotateEvery)
	if err != nil {
		return nil, err
	}
	if changed {
		if r.Revision == 0 {
			_, err = i.Keys.Create(ctx, bus.Name("sealing"), encode(rec))
		} else {
			_, err = i.Keys.Update(ctx, r.Name, encode(rec), r.Revision)
		}
		if errors.Is(err, bus.ErrExists) {
			err = bus.ErrConflict
		}
		if err != nil {
			return nil, fmt.Errorf("writing the keys that agents seal to: %w", err)
		}
	}
	return rec, i.sealing.take(rec, i.now())
}

// advance adds a key where there is none or the newest is due, and drops those that nobody seals to any
// more; it tells whether it changed anything.
func (rec *sealingRecord) advance(now time.Time, every time.Duration) (changed bool, err error) {
	n := len(rec.Keys)
	rec.Keys = slices.DeleteFunc(rec.Keys, func(k sealingKey) bool {
		return k.Retired != 0 && now.After(time.Unix(k.Retired, 0).Add(sealingHeld))
	})
	changed = len(rec.Keys) != n
	if n = len(rec.Keys); n > 0 && rec.Keys[n-1].Retired == 0 && (every == 0 || now.Before(time.Unix(rec.Keys[n-1].Created, 0).Add(every))) {
		return changed, nil
	}
	for at := range rec.Keys {
		if rec.Keys[at].Retired == 0 {
			rec.Keys[at].Retired = now.Unix()
		}
	}
	key, err := keyring.GenerateSealingKey()
	if err != nil {
		return false, err
	}
	rec.Keys = append(rec.Keys, sealingKey{ID: newUUID(), Private: key.Private(), Created: now.Unix()})
	return true, nil
}

// take makes what the record holds all that is known.
func (s *sealingKeys) take(rec *sealingRecord, now time.Time) error {
	byID := make(map[string]*keyring.SealingKey, len(rec.Keys))
	for _, k := range rec.Keys {
		key, err := keyring.ParseSealingKey(k.Private)
		if err != nil {
			return fmt.Errorf("reading the keys that agents seal to: key %q is damaged", k.ID)
		}
		byID[k.ID] = key
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byID, s.read = byID, now
	return nil
}

// heldSealing gives a key from memory, or ErrNotFound.
func (i *Issuer) heldSealing(id string) (*keyring.SealingKey, error) {
	i.sealing.mu.Lock()
	defer i.sealing.mu.Unlock()
	if key := i.sealing.byID[id]; key != nil {
		return key, nil
	}
	return nil, fmt.Errorf("opening what is sealed to the issuers: %w: key %q", ErrNotFound, id)
}

// OpenSealed opens what an agent has sealed to the issuers' key of that id. The errors are ErrNotFound, no
// such key is held any more or yet, keyring.ErrSealed and ErrUnavailable.
func (i *Issuer) OpenSealed(ctx context.Context, id string, box []byte, info ...[]byte) ([]byte, error) {
	key, err := i.heldSealing(id)
	if err != nil && i.sealing.old(i.now()) { // another issuer may have made it since
		if _, err := i.readSealing(ctx); err != nil && !errors.Is(err, bus.ErrConflict) {
			return nil, err
		}
		key, err = i.heldSealing(id)
	}
	if err != nil {
		return nil, err
	}
	return key.Open(box, info...)
}

// old tells whether the record may be read again for a key that is not known, and notes that it is: agents
// can name what they like.
func (s *sealingKeys) old(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := now.Sub(s.read); d >= 0 && d < sealingAgain {
		return false
	}
	s.read = now
	return true
}
