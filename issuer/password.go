package issuer

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/crypto/argon2"
)

// Hash is the cost of argon2id (RFC 9106 §4). The zero value is refused.
type Hash struct {
	Memory  uint32 // KiB
	Time    uint32 // passes
	Threads uint8
}

// DefaultHash is RFC 9106's second recommended choice: 64 MiB, 3 passes, 4 lanes.
var DefaultHash = Hash{Memory: 64 << 10, Time: 3, Threads: 4}

// The bounds within which a stored hash is computed at all: a forged or mistaken record must not
// take the memory or the minutes that it names.
const (
	maxHashMemory  = 128 << 10
	maxHashTime    = 16
	maxHashThreads = 16
	hashLength     = 32
	saltLength     = 16
	maxPassword    = 1024 // bytes
	maxHashWait    = 5 * time.Second
)

func (h Hash) check() error {
	if h.Memory < 8*uint32(h.Threads) || h.Memory > maxHashMemory || h.Time < 1 || h.Time > maxHashTime || h.Threads < 1 || h.Threads > maxHashThreads {
		return fmt.Errorf("argon2id with m=%d, t=%d, p=%d is outside of m=%d..%d, t=1..%d, p=1..%d", h.Memory, h.Time, h.Threads, 8*uint32(h.Threads), maxHashMemory, maxHashTime, maxHashThreads)
	}
	return nil
}

// hasher computes password hashes, few at a time: each takes 64 MiB and a core, so a flood of
// logins waits in a short queue and is then sent away, and memory stays bounded.
type hasher struct {
	cost    Hash
	slots   chan struct{}
	queue   chan struct{}
	usual   *habits // what a user name that does not exist costs
	seconds prometheus.Observer
}

// newHasher makes one. foreign: the hashes are made by somebody else, Django until others were seen.
func newHasher(cost Hash, foreign bool, seconds prometheus.Observer) *hasher {
	slots := min(max(runtime.GOMAXPROCS(0), 1), 8)
	h := &hasher{cost: cost, slots: make(chan struct{}, slots), queue: make(chan struct{}, 16*slots), seconds: seconds}
	salt := make([]byte, saltLength)
	rand.Read(salt) // never fails (crypto/rand, Go 1.24)
	key := make([]byte, hashLength)
	rand.Read(key)
	first := formatPHC(cost, salt, key)
	if foreign {
		first = "pbkdf2_sha256$600000$" + hex.EncodeToString(salt) + "$" + base64.StdEncoding.EncodeToString(key)
	}
	s, err := parseStored(first)
	if err != nil {
		panic(err) // it is well-formed, and its cost was checked
	}
	h.usual = newHabits(s)
	return h
}

// enter takes a slot; leave it by calling the function returned. A *BusyError means that the
// queue is full, or that the wait in it was too long.
func (h *hasher) enter(ctx context.Context) (leave func(), err error) {
	select {
	case h.queue <- struct{}{}:
	default:
		return nil, &BusyError{RetryAfter: 2 * time.Second}
	}
	defer func() { <-h.queue }()
	late := time.NewTimer(maxHashWait)
	defer late.Stop()
	select {
	case h.slots <- struct{}{}:
		return func() { <-h.slots }, nil
	case <-late.C:
		return nil, &BusyError{RetryAfter: maxHashWait}
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting to hash a password: %w", ctx.Err())
	}
}

// make hashes a new password.
func (h *hasher) make(ctx context.Context, password string) (string, error) {
	leave, err := h.enter(ctx)
	if err != nil {
		return "", err
	}
	defer leave()
	salt := make([]byte, saltLength)
	rand.Read(salt)
	return formatPHC(h.cost, salt, h.derive(password, salt, h.cost, hashLength)), nil
}

// verify tells whether the password is the hash's, and whether the hash should be made anew in our own form with today's
// cost. No hash ("", or Django's "!…") and one that cannot be read do the usual work for a password that is never right;
// the latter is errHash.
func (h *hasher) verify(ctx context.Context, text, password string) (ok, stale bool, err error) {
	leave, err := h.enter(ctx)
	if err != nil {
		return false, false, err
	}
	defer leave()
	s, unreadable := parseStored(text)
	known := unreadable == nil
	if known {
		h.usual.note(text, s)
	} else {
		s = h.usual.most()
	}
	began := time.Now()
	ok = s.match([]byte(password)) && known
	h.seconds.Observe(time.Since(began).Seconds())
	if errors.Is(unreadable, errNoHash) {
		unreadable = nil
	}
	return ok, ok && s.own != h.cost, unreadable
}

func (h *hasher) derive(password string, salt []byte, cost Hash, n uint32) []byte {
	began := time.Now()
	key := argon2.IDKey([]byte(password), salt, cost.Time, cost.Memory, cost.Threads, n)
	h.seconds.Observe(time.Since(began).Seconds())
	return key
}

// formatPHC gives the PHC string: $argon2id$v=19$m=65536,t=3,p=4$<salt>$<hash>, both in base64
// without padding.
func formatPHC(cost Hash, salt, key []byte) string {
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, cost.Memory, cost.Time, cost.Threads,
		base64.RawStdEncoding.EncodeToString(salt), base64.RawStdEncoding.EncodeToString(key))
}

// jitter spreads d over half of it to one and a half of it.
func jitter(d time.Duration) time.Duration { return d/2 + mathrand.N(d+1) }
