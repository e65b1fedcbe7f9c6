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

// refreshRecord holds the HS256 keys of the refresh tokens, newest last, in the bucket "keys"
// under bus.Name("refresh"). Only issuers ever hold them; they are never in the log.
//
//	{"keys": [{"jwk": {…}, "created": 1767225600, "retired": 0}]}
type refreshRecord struct {
	Keys []refreshKey `json:"keys"`
}

type refreshKey struct {
	JWK     json.RawMessage `json:"jwk"`
	Created int64           `json:"created"` // NumericDate
	Retired int64           `json:"retired"` // NumericDate, 0: it signs
}

// retiredSlack is how much longer than a refresh token a retired refresh key is kept: another
// issuer may have signed with it until it read the record again.
const retiredSlack = time.Hour

// refreshRing is the record, read. It never changes.
type refreshRing struct {
	ring    *keyring.Ring
	byID    map[string]*keyring.Key
	signing *keyring.Key
	created time.Time // of signing
	read    time.Time
}

// refreshKeys is the newest refreshRing that this process has read. The zero value has none.
type refreshKeys struct {
	mu  sync.Mutex
	cur *refreshRing
}

// refreshRing gives the keys of the refresh tokens, from memory unless they were last read before
// notBefore. The first issuer of all makes them.
func (i *Issuer) refreshRing(ctx context.Context, notBefore time.Time) (*refreshRing, error) {
	i.refresh.mu.Lock()
	defer i.refresh.mu.Unlock()
	if cur := i.refresh.cur; cur != nil && !cur.read.Before(notBefore) {
		return cur, nil
	}
	for attempt := range maxAttempts {
		cur, err := i.readRefreshKeys(ctx)
		switch {
		case err == nil:
			i.refresh.cur = cur
			return cur, nil
		case !errors.Is(err, bus.ErrConflict):
			return nil, unavailable("reading", "the keys of the refresh tokens", err)
		case !pause(ctx, attempt):
			return nil, ctx.Err()
		}
	}
	return nil, unavailable("reading", "the keys of the refresh tokens", bus.ErrConflict)
}

// readRefreshKeys reads the record; where there is none, or its newest key is due, it writes one
// with a new key first. bus.ErrConflict: another issuer did.
func (i *Issuer) readRefreshKeys(ctx context.Context) (*refreshRing, error) {
	now := i.now()
	r, err := i.Keys.Get(ctx, bus.Name("refresh"))
	if err != nil && !errors.Is(err, bus.ErrNotFound) {
		return nil, err
	}
	var rec refreshRecord
	if err == nil {
		if json.Unmarshal(r.Value, &rec) != nil {
			return nil, errors.New("the record is no JSON") // the cause may quote a secret
		}
	}
	if !rec.advance(now, i.cfg) {
		return i.newRefreshRing(rec, now)
	}
	if r.Revision == 0 {
		_, err = i.Keys.Create(ctx, bus.Name("refresh"), encode(rec))
	} else {
		_, err = i.Keys.Update(ctx, r.Name, encode(rec), r.Revision)
	}
	if errors.Is(err, bus.ErrExists) {
		err = bus.ErrConflict
	}
	if err != nil {
		return nil, err
	}
	i.log.Info("the refresh tokens have a new key", "keys", len(rec.Keys))
	return i.newRefreshRing(rec, now)
}

// advance adds a key where none signs or the newest is due, and drops those that nothing can
// live of; it tells whether it changed anything.
func (rec *refreshRecord) advance(now time.Time, cfg Config) bool {
	n := len(rec.Keys)
	if n > 0 && (cfg.RotateEvery == 0 || now.Before(time.Unix(rec.Keys[n-1].Created, 0).Add(cfg.RotateEvery))) {
		return false
	}
	for at := range rec.Keys {
		if rec.Keys[at].Retired == 0 {
			rec.Keys[at].Retired = now.Unix()
		}
	}
	rec.Keys = slices.DeleteFunc(rec.Keys, func(k refreshKey) bool {
		return now.After(time.Unix(k.Retired, 0).Add(cfg.RefreshLifetime + cfg.Leeway + retiredSlack))
	})
	key, err := keyring.Generate(keyring.HS256, 0)
	if err == nil {
		var jwk []byte
		if jwk, err = key.PrivateJWK(); err == nil {
			rec.Keys = append(rec.Keys, refreshKey{JWK: jwk, Created: now.Unix()})
		}
	}
	if err != nil {
		panic(fmt.Sprintf("issuer: making an HS256 key: %v", err)) // 256 random bits are always a key
	}
	return true
}

func (i *Issuer) newRefreshRing(rec refreshRecord, now time.Time) (*refreshRing, error) {
	rr := &refreshRing{byID: make(map[string]*keyring.Key), read: now}
	var records []keyring.KeyRecord
	for _, k := range rec.Keys {
		key, err := keyring.ParseJWK(k.JWK)
		if err != nil {
			return nil, fmt.Errorf("a key of the refresh tokens: %w", err)
		}
		rr.byID[key.ID()], rr.signing, rr.created = key, key, time.Unix(k.Created, 0)
		records = append(records, keyring.KeyRecord{
			KeyID: key.ID(), Alg: key.Alg(), Bits: key.Bits(), State: keyring.Active, Key: key,
			Audience: i.cfg.URL, MaxLifetime: i.cfg.RefreshLifetime, Created: rr.created,
		})
	}
	rr.ring = keyring.NewRing(i.cfg.URL, i.cfg.URL, records...)
	return rr, nil
}
