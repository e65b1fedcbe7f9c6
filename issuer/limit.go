package issuer

import (
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// maxLimited bounds how many names and addresses are remembered; the one longest unseen goes first.
const maxLimited = 65536

// loginLimits slows down the guessing of passwords: per user name, and more widely per address.
// Loopback has no limit of its own, since a proxy on this host speaks for all its clients. nil
// limits nothing.
type loginLimits struct{ names, addresses *buckets }

func newLoginLimits(perMinute int) *loginLimits {
	if perMinute == 0 {
		return nil
	}
	return &loginLimits{newBuckets(perMinute), newBuckets(10 * perMinute)}
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

	mu   sync.Mutex
	seen *simplelru.LRU[string, *bucket]
}

type bucket struct {
	tokens float64
	at     time.Time
}

func newBuckets(perMinute int) *buckets {
	seen, err := simplelru.NewLRU[string, *bucket](maxLimited, nil)
	if err != nil {
		panic(err) // only a size below 1 is refused
	}
	return &buckets{size: float64(perMinute), interval: time.Minute / time.Duration(perMinute), seen: seen}
}

// take takes a token and gives 0, or gives the time until there is one.
func (b *buckets) take(name string, now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	e, ok := b.seen.Get(name)
	if !ok {
		e = &bucket{tokens: b.size, at: now}
		b.seen.Add(name, e)
	}
	if passed := now.Sub(e.at); passed > 0 {
		e.tokens = min(b.size, e.tokens+float64(passed)/float64(b.interval))
	}
	e.at = now
	if e.tokens < 1 {
		return time.Duration((1-e.tokens)*float64(b.interval)) + time.Millisecond
	}
	e.tokens--
	return 0
}
