package replica

import (
	"crypto/sha256"
	"sync"
)

// hashMap finds credentials by hash. One writer, any number of readers. At a million keys a look-up takes a third of the
// time of sync.Map's, which is a tree that is some five unrelated places in memory deep. The zero value is empty.
type hashMap struct {
	shards [shardCount]struct {
		mu sync.RWMutex
		m  map[[sha256.Size]byte]*Credential
	}
}

// load gives the credential of a hash, nil: there is none.
func (h *hashMap) load(hash *[sha256.Size]byte) *Credential {
	sh := &h.shards[hash[0]%shardCount]
	sh.mu.RLock()
	c := sh.m[*hash]
	sh.mu.RUnlock()
	return c
}

// swap stores c under a hash, and gives what was there, nil: nothing.
func (h *hashMap) swap(hash []byte, c *Credential) *Credential {
	key := [sha256.Size]byte(hash)
	sh := &h.shards[key[0]%shardCount]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.m == nil {
		sh.m = make(map[[sha256.Size]byte]*Credential)
	}
	before := sh.m[key]
	sh.m[key] = c
	return before
}

// remove takes c away, unless another one has its hash by now.
func (h *hashMap) remove(c *Credential) {
	key := [sha256.Size]byte(c.Hash)
	sh := &h.shards[key[0]%shardCount]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.m[key] == c {
		delete(sh.m, key)
	}
}

// clear empties it.
func (h *hashMap) clear() {
	for i := range h.shards {
		sh := &h.shards[i]
		sh.mu.Lock()
		sh.m = nil
		sh.mu.Unlock()
	}
}
