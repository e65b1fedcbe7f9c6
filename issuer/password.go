package issuer

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"runtime"
	"strconv"
	"strings"
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
	dummy   string // verified for user names that do not exist, so that they cost the same
	seconds prometheus.Observer
}

func newHasher(cost Hash, seconds prometheus.Observer) *hasher {
	slots := min(max(runtime.GOMAXPROCS(0), 1), 8)
	h := &hasher{cost: cost, slots: make(chan struct{}, slots), queue: make(chan struct{}, 16*slots), seconds: seconds}
	salt := make([]byte, saltLength)
	rand.Read(salt) // never fails (crypto/rand, Go 1.24)
	key := make([]byte, hashLength)
	rand.Read(key)
	h.dummy = formatPHC(cost, salt, key)
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

// verify tells whether the password is the hash's, and whether the hash should be made anew with
// today's cost. An empty hash does the same work for a password that is never right.
func (h *hasher) verify(ctx context.Context, phc, password string) (ok, stale bool, err error) {
	leave, err := h.enter(ctx)
	if err != nil {
		return false, false, err
	}
	defer leave()
	known := phc != ""
	if !known {
		phc = h.dummy
	}
	cost, salt, want, err := parsePHC(phc)
	if err != nil {
		return false, false, fmt.Errorf("reading a password hash: %w", err)
	}
	got := h.derive(password, salt, cost, uint32(len(want)))
	ok = subtle.ConstantTimeCompare(got, want) == 1 && known
	return ok, ok && cost != h.cost, nil
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

// parsePHC reads what formatPHC wrote, and refuses every cost and length out of bounds. Its
// errors never hold any of the string.
func parsePHC(s string) (cost Hash, salt, key []byte, err error) {
	parts := strings.Split(s, "$")
	if len(s) > 512 || len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != "v=19" {
		return cost, nil, nil, errors.New("it is no PHC string of argon2id version 19")
	}
	params := strings.Split(parts[3], ",")
	if len(params) != 3 {
		return cost, nil, nil, errors.New("its parameters are not m, t and p")
	}
	var n [3]uint64
	for at, name := range []string{"m=", "t=", "p="} {
		text, found := strings.CutPrefix(params[at], name)
		if n[at], err = strconv.ParseUint(text, 10, 32); !found || err != nil {
			return cost, nil, nil, errors.New("its parameters are not m, t and p")
		}
	}
	if n[2] > maxHashThreads {
		return cost, nil, nil, fmt.Errorf("its p is greater than %d", maxHashThreads)
	}
	cost = Hash{Memory: uint32(n[0]), Time: uint32(n[1]), Threads: uint8(n[2])}
	if err := cost.check(); err != nil {
		return cost, nil, nil, err
	}
	salt, err = base64.RawStdEncoding.Strict().DecodeString(parts[4])
	if err == nil {
		key, err = base64.RawStdEncoding.Strict().DecodeString(parts[5])
	}
	if err != nil || len(salt) < 8 || len(salt) > 64 || len(key) < 16 || len(key) > 64 {
		return cost, nil, nil, errors.New("its salt or hash is not base64 of a sensible length")
	}
	return cost, salt, key, nil
}

// jitter spreads d over half of it to one and a half of it.
func jitter(d time.Duration) time.Duration { return d/2 + mathrand.N(d+1) }
