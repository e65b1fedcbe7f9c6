package replica

import (
	"container/heap"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/sidekey/sidekey/bus"
)

// Credential is a credential as it stood in the log when it was asked for; ask for every request. It is
// shared, and never changes but that it may be withdrawn: see CredentialRevoked.
type Credential struct {
	*bus.Credential
	Seq uint64 // since when it stands: its KnownSeq, or the sequence of its entry

	id, sub, client id
	// withdrawn: it stands no more. It is set before what withdrew it can be forgotten, so that whoever
	// finds neither a credential's revocation nor this has a credential that stands.
	withdrawn atomic.Bool
}

// credentials are the API keys and opaque tokens, by hash. One writer, many readers. The zero value is empty.
//
// What stands is a matter of the log's order alone, so that all readers agree: an id has the hash of its
// newest entry, a hash is the credential of the newest entry that names it, and what a revocation or a
// cutoff has withdrawn does not come back when that expires.
type credentials struct {
	byHash hashMap
	count  atomic.Int64

	// The writer's.
	byID  map[string]*Credential
	dying map[string]*Credential // withdrawn by a revocation of their ids; found until that is forgotten
	ends  ends
	words map[string]string // one copy of what many have alike
}

// maxWords bounds what is shared.
const maxWords = 1 << 16

// set takes an entry in. revoked: its id was revoked as a jti, and is not used again while that is remembered:
// the entry is the loser of a race between issuers (PROTOCOL 11).
func (c *credentials) set(f *bus.Credential, seq uint64, revoked bool) {
	old := c.byID[f.ID]
	if f.Gone {
		c.remove(old)
		return
	}
	if revoked && old != nil {
		c.revoke(f.ID) // where an image brings the revocation, nothing else has done so
		return
	}
	if f.KnownSeq != 0 {
		seq = min(seq, f.KnownSeq)
	}
	held := &Credential{Credential: c.shared(f), Seq: seq, id: fingerprint('j', f.ID), sub: fingerprint('u', f.Subject)}
	if f.ClientID != "" {
		held.client = fingerprint('c', f.ClientID)
	}
	if c.byID == nil {
		c.byID = make(map[string]*Credential)
	}
	if revoked {
		if hash := [sha256.Size]byte(f.Hash); c.byHash.load(&hash) == nil {
			c.byHash.swap(f.Hash, held)
			c.byID[f.ID] = held
			c.revoke(f.ID)
			c.expiring(held)
			c.count.Store(int64(len(c.byID)))
		}
		return
	}
	c.byID[f.ID] = held
	if other := c.byHash.swap(f.Hash, held); other != nil && other.ID != f.ID {
		other.withdrawn.Store(true)
		delete(c.byID, other.ID)
		delete(c.dying, other.ID)
	}
	if old != nil && !slices.Equal(old.Hash, f.Hash) {
		old.withdrawn.Store(true)
		c.byHash.remove(old)
	}
	c.expiring(held)
	c.count.Store(int64(len(c.byID)))
}

// shared is f, with texts that many credentials have alike held once.
func (c *credentials) shared(f *bus.Credential) *bus.Credential {
	if len(c.words) >= maxWords {
		c.words = nil
	}
	if c.words == nil {
		c.words = make(map[string]string)
	}
	word := func(s string) string {
		if had, ok := c.words[s]; ok {
			return had
		}
		c.words[s] = s
		return s
	}
	fact := *f
	fact.Type, fact.ClientID, fact.Scope = bus.CredentialType(word(string(f.Type))), word(f.ClientID), word(f.Scope)
	if len(f.Roles) > 0 {
		fact.Roles = make([]string, len(f.Roles))
		for n, role := range f.Roles {
			fact.Roles[n] = word(role)
		}
	}
	return &fact
}

// revoke withdraws the credential of an id for good: the revocation expires, a credential need not. It is
// found as long as the revocation is remembered, so that its user is told.
func (c *credentials) revoke(id string) {
	held := c.byID[id]
	if held == nil {
		return
	}
	held.withdrawn.Store(true)
	if c.dying == nil {
		c.dying = make(map[string]*Credential)
	}
	c.dying[id] = held
}

// bury drops those whose revocation is remembered no more.
func (c *credentials) bury(revoked func(id string) bool) {
	for id, held := range c.dying {
		if !revoked(id) {
			c.remove(held)
		}
	}
}

// remove withdraws a credential, nil: none.
func (c *credentials) remove(held *Credential) {
	if held == nil {
		return
	}
	held.withdrawn.Store(true)
	c.byHash.remove(held)
	if c.byID[held.ID] == held {
		delete(c.byID, held.ID)
		delete(c.dying, held.ID)
	}
	c.count.Store(int64(len(c.byID)))
}

// removeIf withdraws the credentials of which gone is true.
func (c *credentials) removeIf(gone func(*Credential) bool) {
	for _, held := range c.byID {
		if gone(held) {
			c.remove(held)
		}
	}
}

// replace makes what an image holds all that there is.
func (c *credentials) replace(all []imageCredential, revoked func(id string) bool) {
	named := make(map[string]bool, len(all))
	for _, one := range all {
		named[one.Fact.ID] = true
		c.set(one.Fact, one.Seq, revoked(one.Fact.ID))
	}
	c.removeIf(func(held *Credential) bool { return !named[held.ID] })
}

// clear forgets all, for a log that is read anew. None of them is withdrawn thereby.
func (c *credentials) clear() {
	c.byHash.clear()
	c.byID, c.dying, c.ends, c.words = nil, nil, nil, nil
	c.count.Store(0)
}

// expire drops what has expired at or before now, by the log's time.
func (c *credentials) expire(now int64) {
	for len(c.ends) > 0 && c.ends[0].ExpiresAt <= now {
		held := heap.Pop(&c.ends).(*Credential)
		if c.byID[held.ID] == held {
			c.remove(held)
		}
	}
}

// expiring notes when a credential ends. Those that were changed since are passed over when their time
// comes, and cleared out before they are many.
func (c *credentials) expiring(held *Credential) {
	if held.ExpiresAt == 0 {
		return
	}
	if len(c.ends) > 2*len(c.byID)+64 {
		c.ends = slices.DeleteFunc(c.ends, func(e *Credential) bool { return c.byID[e.ID] != e })
		heap.Init(&c.ends)
	}
	heap.Push(&c.ends, held)
}

// all gives what is held.
func (c *credentials) all() []imageCredential {
	all := make([]imageCredential, 0, len(c.byID))
	for _, held := range c.byID {
		all = append(all, imageCredential{Fact: held.Credential, Seq: held.Seq})
	}
	return all
}

// ends are credentials by their expiry, soonest first: a heap.
type ends []*Credential

func (e ends) Len() int           { return len(e) }
func (e ends) Less(i, j int) bool { return e[i].ExpiresAt < e[j].ExpiresAt }
func (e ends) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }

// Push is heap.Interface's.
func (e *ends) Push(x any) { *e = append(*e, x.(*Credential)) }

// Pop is heap.Interface's.
func (e *ends) Pop() any {
	last := len(*e) - 1
	x := (*e)[last]
	(*e)[last] = nil
	*e = (*e)[:last]
	return x
}

// Credential gives the credential whose text has this hash (bus.HashCredential), nil: there is none. Its
// expiry and its networks are the caller's to judge, and CredentialRevoked is to be asked after it.
func (r *Replica) Credential(hash *[sha256.Size]byte) *Credential {
	if r.credentials.count.Load() == 0 {
		return nil
	}
	held := r.credentials.byHash.load(hash)
	if held == nil || subtle.ConstantTimeCompare(held.Hash, hash[:]) != 1 {
		return nil // the second is not reached: it stands under its own hash
	}
	return held
}

// CredentialRevoked tells whether the credential, its subject or its client is revoked, or it was withdrawn
// since it was found.
func (r *Replica) CredentialRevoked(c *Credential) bool {
	return r.revoked.has(c.id) || r.cutOff(c) || c.withdrawn.Load() // last: see there
}

func (r *Replica) cutOff(c *Credential) bool {
	return r.cutoffs.refusesCredential(c.sub, c.Seq) || c.ClientID != "" && r.cutoffs.refusesCredential(c.client, c.Seq)
}

// Credentials counts those held.
func (r *Replica) Credentials() int { return int(r.credentials.count.Load()) }

// setCredential takes an entry in. r.mu is held.
func (r *Replica) setCredential(f *bus.Credential, seq uint64) {
	r.credentials.set(f, seq, r.idRevoked(f.ID))
}

func (r *Replica) idRevoked(id string) bool { return r.revoked.has(fingerprint('j', id)) }

func (c *imageCredential) check() error {
	if c.Fact == nil {
		return fmt.Errorf("%w: a credential without its fact", ErrDamaged)
	}
	if err := bus.Check(c.Fact); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}
