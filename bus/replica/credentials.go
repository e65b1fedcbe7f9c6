package replica

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/sidekey/sidekey/bus"
)

// Credential is a credential as it stands in the log now. It is immutable and shared.
type Credential struct {
	*bus.Credential
	Seq uint64 // since when it stands: its KnownSeq, or the sequence of its entry

	id, sub, client id
}

// credentials are the API keys and opaque tokens, by hash. One writer, many readers. The zero value is empty.
type credentials struct {
	byHash sync.Map          // [32]byte: *Credential
	hashes map[string][]byte // by id; the writer's
	count  atomic.Int64
}

// set takes an entry in. One that is gone, or whose hash has changed, is found no more.
func (c *credentials) set(f *bus.Credential, seq uint64) {
	if c.hashes == nil {
		c.hashes = make(map[string][]byte)
	}
	if !f.Gone {
		fact := *f
		held := &Credential{Credential: &fact, Seq: seq, id: fingerprint('j', f.ID), sub: fingerprint('u', f.Subject)}
		if f.ClientID != "" {
			held.client = fingerprint('c', f.ClientID)
		}
		c.byHash.Store([sha256.Size]byte(f.Hash), held)
	}
	if old := c.hashes[f.ID]; old != nil && (f.Gone || !slices.Equal(old, f.Hash)) {
		c.forget(old, f.ID)
	}
	if f.Gone {
		delete(c.hashes, f.ID)
	} else {
		c.hashes[f.ID] = f.Hash
	}
	c.count.Store(int64(len(c.hashes)))
}

// forget drops what stands under a hash, unless that is another credential by now.
func (c *credentials) forget(hash []byte, id string) {
	key := [sha256.Size]byte(hash)
	if held, ok := c.byHash.Load(key); ok && held.(*Credential).ID == id {
		c.byHash.Delete(key)
	}
}

// replace makes what an image holds all that there is.
func (c *credentials) replace(all []imageCredential) {
	held := make(map[string]bool, len(all))
	for _, one := range all {
		held[one.Fact.ID] = true
		c.set(one.Fact, one.Seq)
	}
	for id, hash := range c.hashes {
		if !held[id] {
			c.forget(hash, id)
			delete(c.hashes, id)
		}
	}
	c.count.Store(int64(len(c.hashes)))
}

// expire drops what has expired at or before now, by the log's time.
func (c *credentials) expire(now int64) {
	for id, hash := range c.hashes {
		held, ok := c.byHash.Load([sha256.Size]byte(hash))
		if !ok || held.(*Credential).ExpiresAt == 0 || held.(*Credential).ExpiresAt > now {
			continue
		}
		c.forget(hash, id)
		delete(c.hashes, id)
	}
	c.count.Store(int64(len(c.hashes)))
}

// all gives what is held, ordered by id, so that images are reproducible.
func (c *credentials) all() []imageCredential {
	all := make([]imageCredential, 0, len(c.hashes))
	for _, hash := range c.hashes {
		if held, ok := c.byHash.Load([sha256.Size]byte(hash)); ok {
			all = append(all, imageCredential{Fact: held.(*Credential).Credential, Seq: held.(*Credential).Seq})
		}
	}
	slices.SortFunc(all, func(a, b imageCredential) int { return strings.Compare(a.Fact.ID, b.Fact.ID) })
	return all
}

// Credential gives the credential whose text has this hash (bus.HashCredential), nil: there is none. Its
// expiry and its networks are the caller's to judge, and CredentialRevoked is to be asked.
func (r *Replica) Credential(hash *[sha256.Size]byte) *Credential {
	if r.credentials.count.Load() == 0 {
		return nil
	}
	found, ok := r.credentials.byHash.Load(*hash)
	if !ok {
		return nil
	}
	held := found.(*Credential)
	if subtle.ConstantTimeCompare(held.Hash, hash[:]) != 1 {
		return nil // not reached: it stands under its own hash
	}
	return held
}

// CredentialRevoked tells whether the credential, its subject or its client is revoked.
func (r *Replica) CredentialRevoked(c *Credential) bool {
	return r.revoked.has(c.id) ||
		r.cutoffs.refusesCredential(c.sub, c.Seq) ||
		c.ClientID != "" && r.cutoffs.refusesCredential(c.client, c.Seq)
}

// Credentials counts those held.
func (r *Replica) Credentials() int { return int(r.credentials.count.Load()) }

func (c *imageCredential) check() error {
	if c.Fact == nil || c.Fact.ID == "" || len(c.Fact.Hash) != sha256.Size {
		return fmt.Errorf("%w: a credential without its fact", ErrDamaged)
	}
	return nil
}
