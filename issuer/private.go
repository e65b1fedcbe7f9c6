package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// privateRecord is a ring key's secret half as the bucket "keys" holds it, under
// bus.Name("ring", kid). It is written before the key's first entry in the log, and never changed:
//
//	{"jwk": {…private…}, "created": 1767225600}
//	{"master": {…the secret that others are derived from too…}, "aud": "https://…", "created": 1767225600}
//
// The second is an HS256 key of our own: its secret is derived from the master for that audience and
// kid, and the master never leaves the issuers. A key imported to verify only has a "jwk" only where
// it is symmetric (agents that come later need it sealed to them too).
type privateRecord struct {
	JWK      json.RawMessage `json:"jwk,omitempty"`
	Master   json.RawMessage `json:"master,omitempty"`
	Audience string          `json:"aud,omitempty"`
	Created  int64           `json:"created"` // NumericDate
}

// privateKey is a privateRecord, read. It never changes.
type privateKey struct {
	key    *keyring.Key // nil: not held
	master *keyring.Key // HS256 of our own: what key is derived from
}

// privateKeys is what this process remembers of the ring beside the log. The zero value is empty.
type privateKeys struct {
	mu   sync.Mutex
	byID map[string]*privateKey // read from the bucket "keys"

	idle    map[string]time.Time // active keys that sign nothing any more, since this process has known that
	holders *holders             // the newest look at who has joined
}

func (p *privateKeys) get(kid string) *privateKey {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.byID[kid]
}

func (p *privateKeys) put(kid string, k *privateKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byID == nil {
		p.byID = make(map[string]*privateKey)
	}
	p.byID[kid] = k
}

func (p *privateKeys) drop(kid string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.byID, kid)
}

// privateKey gives a ring key's secret half, from memory once it has been read.
func (i *Issuer) privateKey(ctx context.Context, kid string) (*privateKey, error) {
	if k := i.private.get(kid); k != nil {
		return k, nil
	}
	k, err := readPrivate(ctx, i.Keys, kid)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, fmt.Errorf("reading the private half of key %q: %w", kid, ErrNotFound)
	}
	if err != nil {
		return nil, unavailable("reading the private half of key", kid, err)
	}
	i.private.put(kid, k)
	return k, nil
}

func readPrivate(ctx context.Context, keys Bucket, kid string) (*privateKey, error) {
	r, err := keys.Get(ctx, privateName(kid))
	if err != nil {
		return nil, err
	}
	var rec privateRecord
	if err := json.Unmarshal(r.Value, &rec); err != nil {
		return nil, errors.New("the record is no JSON") // not err: it may quote the secret
	}
	k := new(privateKey)
	switch {
	case rec.Master != nil:
		if k.master, err = keyring.ParseJWK(rec.Master); err == nil {
			k.key, err = k.master.Derive(kid, rec.Audience)
		}
	case rec.JWK != nil:
		if k.key, err = keyring.ParseJWK(rec.JWK); err == nil {
			k.key = k.key.WithID(kid)
		}
	}
	if err != nil {
		return nil, err
	}
	return k, nil
}

// storePrivate writes the secret half before the key's first entry. A record left by an interrupted
// attempt with the same kid is written over.
func (i *Issuer) storePrivate(ctx context.Context, n *newKey) error {
	key, rec, secret := n.key, privateRecord{Created: i.now().Unix()}, n.key
	if n.master != nil {
		rec.Audience, secret = n.audience, n.master
	}
	if !n.verifyOnly || key.Alg().Symmetric() {
		jwk, err := secret.PrivateJWK()
		if err != nil {
			return fmt.Errorf("storing the private half of key %q: %w", key.ID(), err)
		}
		if n.master != nil {
			rec.Master = jwk
		} else {
			rec.JWK = jwk
		}
	}
	_, err := i.Keys.Create(ctx, privateName(key.ID()), encode(rec))
	if errors.Is(err, bus.ErrExists) {
		var old bus.Record
		if old, err = i.Keys.Get(ctx, privateName(key.ID())); err == nil {
			_, err = i.Keys.Update(ctx, old.Name, encode(rec), old.Revision)
		}
	}
	if err != nil {
		return unavailable("storing the private half of key", key.ID(), err)
	}
	i.private.drop(key.ID())
	return nil
}

func privateName(kid string) string { return bus.Name("ring", kid) }

// OpenSecret is the replica.Config.Open of an issuer: it gives an HS256 key from the bucket
// "keys", so that the issuer can verify what the ring's keys signed.
func OpenSecret(keys Bucket) func(*bus.KeyFact) (*keyring.Key, error) {
	return func(f *bus.KeyFact) (*keyring.Key, error) {
		ctx, cancel := context.WithTimeout(context.Background(), applyTimeout)
		defer cancel()
		k, err := readPrivate(ctx, keys, f.KeyID)
		switch {
		case errors.Is(err, bus.ErrNotFound), err == nil && k.key == nil:
			return nil, replica.ErrNotHeld // deleted since: the key has ended, as a later entry says
		case err != nil:
			return nil, fmt.Errorf("reading the secret of key %q: %w", f.KeyID, err)
		}
		return k.key, nil
	}
}
