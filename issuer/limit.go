package issuer

import (
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"
)

// maxLimited bounds how many names and addresses are remembered; the one longest unseen goes first. A
// name goes only once it has all its attempts back, a minute later at most: else whoever invents names
// enough could try one user's passwords without end. While there is no room, a new name waits.
// Addresses are forgotten sooner, since inventing them costs no password hash: nobody is to be locked out by that.
const maxLimited = 65536

// limits slow down who tries: per principal (a user name at logins, a session at refreshes), and more widely per address.
// Loopback has no limit of its own, since a proxy on this host speaks for all its clients. nil
// limits nothing.
type limits struct{ names, addresses *buckets }

func newLimits(perMinute, sourceMultiple int) *limits {
	if perMinute == 0 {
		return nil
	}
	return &limits{names: newBuckets(perMinute, true), addresses: newBuckets(sourceMultiple*perMinute, false)}
}

// take counts an attempt, or gives the *BusyError that refuses it. The name counts whether or
// not it exists.
func (l *limits) take(username, address string, now time.Time) error {
	if l == nil {
		return nil
	}
	if err := l.takeSource(address, now); err != nil {
		return err
	}
	if wait := l.names.take(username, now); wait > 0 {
		return &BusyError{Limited: true, RetryAfter: wait}
	}
	return nil
}

// takeSource is take for the address alone.
func (l *limits) takeSource(address string, now time.Time) error {
	return l.ofSource(address, now, (*buckets).take)
}

// peekSource gives the *BusyError that sends an address away, and counts nothing.
func (l *limits) peekSource(address string, now time.Time) error {
	return l.ofSource(address, now, (*buckets).peek)
}

func (l *limits) ofSource(address string, now time.Time, ask func(*buckets, string, time.Time) time.Duration) error {
	if l == nil {
		return nil
	}
	if source, ok := limitedSource(address); ok {
		if wait := ask(l.addresses, source, now); wait > 0 {
			return &BusyError{Limited: true, RetryAfter: wait}
		}
	}
	return nil
}

// limitedSource names where a request comes from; false: from loopback, or from nowhere that is known.
func limitedSource(address string) (string, bool) {
	ip, err := netip.ParseAddr(address)
	if err != nil || ip.IsLoopback() {
		return "", false
	}
	return limitedPrefix(ip), true
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
	perMinute int
	keep      bool // none is forgotten before it is full again

	mu   sync.Mutex
	seen *simplelru.LRU[string, *rate.Limiter]
}

func newBuckets(perMinute int, keep bool) *buckets {
	seen, err := simplelru.NewLRU[string, *rate.Limiter](maxLimited, nil)
	if err != nil {
		panic(err) // only a size below 1 is refused
	}
	return &buckets{perMinute: perMinute, keep: keep, seen: seen}
}

// take takes a token and gives 0, or gives the time until there is one.
func (b *buckets) take(name string, now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	l, ok := b.seen.Get(name)
	if !ok {
		if wait := b.untilRoom(now); wait > 0 {
			return wait
		}
		l = rate.NewLimiter(rate.Limit(b.perMinute)/60, b.perMinute)
		b.seen.Add(name, l)
	}
	if l.AllowN(now, 1) {
		return 0
	}
	return b.until(l, 1, now)
}

// peek gives the time until there is a token, and takes none.
func (b *buckets) peek(name string, now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	l, ok := b.seen.Peek(name)
	if !ok || l.TokensAt(now) >= 1 {
		return 0
	}
	return b.until(l, 1, now)
}

// until gives the time until there are so many tokens, and a little more.
func (b *buckets) until(l *rate.Limiter, tokens float64, now time.Time) time.Duration {
	missing := tokens - l.TokensAt(now)
	return time.Duration(missing*float64(time.Minute)/float64(b.perMinute)) + time.Millisecond
}

// untilRoom gives the time until one more name can be remembered.
func (b *buckets) untilRoom(now time.Time) time.Duration {
	_, oldest, ok := b.seen.GetOldest()
	if !ok || !b.keep || b.seen.Len() < maxLimited || oldest.TokensAt(now) >= float64(b.perMinute) {
		return 0
	}
	return b.until(oldest, float64(b.perMinute), now)
}
