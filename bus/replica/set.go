package replica

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
	"math/bits"
	"sync"
	"sync/atomic"
)

// id is the fingerprint of a revoked thing: the first half of SHA-256 over its kind and name.
// Half of it is enough: to make two tokens' fingerprints meet takes 2^64 hashes, and only the
// issuer chooses a jti or a sid.
type id [16]byte

// fingerprint of a name of a kind ('j'ti, 's'id, s'u'b, 'c'lient_id). It does not allocate for
// the lengths that occur.
func fingerprint(kind byte, name string) id {
	var buf [128]byte
	b := append(append(buf[:0], kind), name...)
	sum := sha256.Sum256(b)
	return id(sum[:16])
}

const (
	shardCount  = 64
	bucketWidth = 3600 // seconds: an id is dropped with its bucket, up to this long after its own expiry
	maxBuckets  = 254  // bucket numbers 1 to 254; 0 marks a free slot
)

// set holds revoked ids by the million: 17 bytes a slot, at most 30 bytes an id. One writer adds
// and drops; any goroutine looks up. An id belongs to a bucket by its expiry, and is dropped with
// it; the bucket is no part of the look-up, since a jti is often revoked by somebody who does not
// know its token's exp. The zero value is an empty set.
type set struct {
	shards [shardCount]shard
	count  atomic.Int64

	// Owned by the writer: buckets[n] is the time (NumericDate) at which bucket n ends, 0 while
	// n is free.
	buckets [maxBuckets + 1]int64
	// dropped is the greatest end of a bucket dropped so far: what the set no longer knows of.
	dropped atomic.Int64
}

// shard is one open-addressing table with linear probing, locked for a few nanoseconds a look-up.
type shard struct {
	mu      sync.RWMutex
	buckets []uint8 // by slot; 0: free
	ids     []id
	n       int
}

// has tells whether k is in the set.
func (s *set) has(k id) bool {
	if s.count.Load() == 0 {
		return false
	}
	sh := s.shard(k)
	sh.mu.RLock()
	at, found := sh.find(k)
	found = found && sh.buckets[at] != 0
	sh.mu.RUnlock()
	return found
}

// add puts k into the bucket of its expiry. An id that is there already keeps the later one.
func (s *set) add(k id, exp int64) { s.addTo(s.bucket(exp), k) }

// addAll adds packed ids, 16 bytes each, of one expiry: the bucket is looked for once.
func (s *set) addAll(packed []byte, exp int64) {
	b := s.bucket(exp)
	for ; len(packed) > 0; packed = packed[len(id{}):] {
		s.addTo(b, id(packed))
	}
}

// grow makes room for so many more ids at once.
func (s *set) grow(n int) {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		if want := sh.n + n/shardCount; want*5 > len(sh.ids)*4 {
			sh.resize(want)
		}
		sh.mu.Unlock()
	}
}

func (s *set) addTo(b uint8, k id) {
	sh := s.shard(k)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if at, found := sh.find(k); found {
		if s.buckets[sh.buckets[at]] < s.buckets[b] {
			sh.buckets[at] = b
		}
		return
	}
	if (sh.n+1)*5 > len(sh.ids)*4 {
		sh.resize(sh.n + 1)
	}
	sh.insert(k, b)
	s.count.Add(1)
}

// drop forgets every bucket that ended at or before now.
func (s *set) drop(now int64) {
	var gone [maxBuckets + 1]bool
	var newest int64
	for n := 1; n <= maxBuckets; n++ {
		if end := s.buckets[n]; end != 0 && end <= now {
			gone[n], newest = true, max(newest, end)
		}
	}
	if newest == 0 {
		return
	}
	// Said before it is done: a reader that no longer finds an id sees that it was dropped.
	s.forgetUntil(newest)
	for i := range s.shards {
		s.count.Add(-int64(s.shards[i].dropBuckets(&gone)))
	}
	for n := range gone {
		if gone[n] {
			s.buckets[n] = 0
		}
	}
}

// forgetUntil notes that ids which expired until t may be missing.
func (s *set) forgetUntil(t int64) {
	if t > s.dropped.Load() {
		s.dropped.Store(t)
	}
}

// bucket finds or makes the bucket for an expiry. Where all numbers are taken, the id goes into
// the next later bucket, or the last one is made to end later: an id may stay too long, never
// too short.
func (s *set) bucket(exp int64) uint8 {
	end := int64(math.MaxInt64) / bucketWidth * bucketWidth
	if exp < end { // else the sum would overflow, and the id be dropped at once
		end = (exp + bucketWidth - 1) / bucketWidth * bucketWidth
	}
	free, later, last := 0, 0, 0
	for n := maxBuckets; n >= 1; n-- {
		switch e := s.buckets[n]; {
		case e == end:
			return uint8(n)
		case e == 0:
			free = n
		default:
			if e > end && (later == 0 || e < s.buckets[later]) {
				later = n
			}
			if last == 0 || e > s.buckets[last] {
				last = n
			}
		}
	}
	switch {
	case free != 0:
		s.buckets[free] = end
		return uint8(free)
	case later != 0:
		return uint8(later)
	}
	s.buckets[last] = end
	return uint8(last)
}

// each calls fn with every bucket's end and its ids, a bucket at a time. Only the writer may call it.
func (s *set) each(fn func(end int64, ids []id)) {
	var byBucket [maxBuckets + 1][]id
	for i := range s.shards {
		sh := &s.shards[i]
		for at, b := range sh.buckets {
			if b != 0 {
				byBucket[b] = append(byBucket[b], sh.ids[at])
			}
		}
	}
	for n := 1; n <= maxBuckets; n++ {
		if len(byBucket[n]) > 0 {
			fn(s.buckets[n], byBucket[n])
		}
	}
}

func (s *set) shard(k id) *shard { return &s.shards[k[0]%shardCount] }

// find gives k's slot, or the free slot where the search for it ended.
func (sh *shard) find(k id) (at int, found bool) {
	if len(sh.ids) == 0 {
		return 0, false
	}
	at = sh.home(k)
	for sh.buckets[at] != 0 {
		if sh.ids[at] == k {
			return at, true
		}
		if at++; at == len(sh.ids) {
			at = 0
		}
	}
	return at, false
}

// home maps k evenly onto the slots, whatever their number (the high half of a product).
func (sh *shard) home(k id) int {
	hi, _ := bits.Mul64(binary.LittleEndian.Uint64(k[8:]), uint64(len(sh.ids)))
	return int(hi)
}

func (sh *shard) insert(k id, b uint8) {
	at, _ := sh.find(k)
	sh.ids[at], sh.buckets[at] = k, b
	sh.n++
}

// resize makes room for n ids at a load of 0.57, so that the next growth is at 0.8: 21 to 30
// bytes an id, and a dozen neighbouring slots for a look-up at worst.
func (sh *shard) resize(n int) {
	oldIDs, oldBuckets := sh.ids, sh.buckets
	size := max(16, n*7/4)
	sh.buckets, sh.ids, sh.n = make([]uint8, size), make([]id, size), 0
	for at, b := range oldBuckets {
		if b != 0 {
			sh.insert(oldIDs[at], b)
		}
	}
}

// dropBuckets removes the ids of the buckets marked gone, and tells how many they were.
func (sh *shard) dropBuckets(gone *[maxBuckets + 1]bool) int {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	kept := 0
	for at, b := range sh.buckets {
		if gone[b] {
			sh.buckets[at] = 0
		} else if b != 0 {
			kept++
		}
	}
	dropped := sh.n - kept
	if dropped > 0 {
		sh.resize(kept) // the holes would end a search too early
	}
	return dropped
}
