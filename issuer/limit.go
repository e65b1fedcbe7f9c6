package issuer

import (
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// maxLimited bounds how many names and addresses are remembered; the one longest unseen goes first. A
// name goes only once it has all its attempts back, a minute later at most: else whoever invents names
// enough could try one user's passwords without end. While there is no room, a new name waits.
// Addresses are forgotten sooner, since inventing them costs no password hash: nobody is to be locked out by that.
const maxLimited = 65536

// loginLimits slows down the guessing of passwords: per user name, and more widely per address.
// Loopback has no limit of its own, since a proxy on this host speaks for all its clients. nil
// limits nothing.
type loginLimits struct{ names, addresses *buckets }

func newLoginLimits(perMinute int) *loginLimits {
	if perMinute == 0 {
		return nil
	}
	return &loginLimits{names: newBuckets(perMinute, true), addresses: newBuckets(10*perMinute, false)}
}

// take counts an attempt, or gives the *BusyError that refuses it. The name counts whether or
// not it exists.
func (l *loginLimits) take(username, address string, now time.Time) error {
	if l == nil {
		return nil
	}
	if ip, err := netip.ParseAddr(address); err == nil && !ip.IsLoopback() {
		if wait := l.addresses.take(limitedPrefix(ip), now); wait > 0 {
			return &BusyError{Limited: true, RetryAfter: wait}
		}
	}
	if wait := l.names.take(username, now); wait > 0 {
		return &BusyError{Limited: true, RetryAfter: wait}
	}
	return nil
}

// limitedPrefix is what one client holds: an IPv4 address, or an IPv6 network of 64 bits.
func limitedPrefix(ip netip.Addr) string {
	if ip = ip.Unmap().WithZone(""); ip.Is4() {
		return ip.String()
	}
	p, _ := ip.Prefix(64) // 64 bits exist in every IPv6 address
	return p.String()
}

// buckets are token buckets by name: full at first, one token back every interval.
type buckets struct {
	size     float64
	interval time.Duration
	keep     bool // none is forgotten before it is full again

	mu   sync.Mutex
	seen *simplelru.LRU[string, *bucket]
}

type bucket struct {
	tokens float64
	at     time.Time
}

func newBuckets(perMinute int, keep bool) *buckets {
	seen, err := simplelru.NewLRU[string, *bucket](maxLimited, nil)
	if err != nil {
		panic(err) // only a size below 1 is refused
	}
	return &buckets{size: float64(perMinute), interval: time.Minute / time.Duration(perMinute), keep: keep, seen: seen}
}

// take takes a token and gives 0, or gives the time until there is one.
func (b *buckets) take(name string, now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	e, ok := b.seen.Get(name)
	if !ok {
		if wait := b.untilRoom(now); wait > 0 {
			return wait
		}
		e = &bucket{tokens: b.size, at: now}
		b.seen.Add(name, e)
	}
	e.tokens, e.at = b.tokens(e, now), now
	if e.tokens < 1 {
		return time.Duration((1-e.tokens)*float64(b.interval)) + time.Millisecond
	}
	e.tokens--
	return 0
}

// tokens gives what is in e now.
func (b *buckets) tokens(e *bucket, now time.Time) float64 {
	return min(b.size, e.tokens+float64(max(0, now.Sub(e.at)))/float64(b.interval))
}

// untilRoom gives the time until one more name can be remembered.
func (b *buckets) untilRoom(now time.Time) time.Duration {
	_, oldest, ok := b.seen.GetOldest()
	if !ok || !b.keep || b.seen.Len() < maxLimited {
		return 0
	}
	if missing := b.size - b.tokens(oldest, now); missing > 0 {
		return time.Duration(missing*float64(b.interval)) + time.Millisecond
	}
	return 0
}
