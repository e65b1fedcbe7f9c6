package issuer_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/crypto/argon2"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

// floor is what a login or a refresh cannot do without: one RSA signature and one write to the
// bucket of sessions, acknowledged. Measured in turns with what is compared to it.
type floor struct {
	key     *rsa.PrivateKey
	digest  [sha256.Size]byte
	write   func(context.Context, string, []byte) error
	written int
}

func newFloor(b *testing.B, bus_ *testBus) *floor {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	return &floor{key: key, digest: sha256.Sum256([]byte("a token")), write: func(ctx context.Context, name string, value []byte) error {
		_, err := bus_.sessions.Create(ctx, name, value)
		return err
	}}
}

// clean empties the bucket, so that the thousandth login finds what the first did.
func clean(b *testing.B, tb *testBus) {
	recs, err := tb.sessions.List(b.Context(), "")
	if err != nil {
		b.Fatal(err)
	}
	for _, r := range recs {
		if err := tb.sessions.Delete(b.Context(), r.Name, r.Revision); err != nil {
			b.Fatal(err)
		}
	}
}

func (f *floor) once(b *testing.B) {
	if _, err := rsa.SignPKCS1v15(rand.Reader, f.key, crypto.SHA256, f.digest[:]); err != nil {
		b.Fatal(err)
	}
	f.written++
	if err := f.write(b.Context(), bus.Name("floor", strconv.Itoa(f.written)), make([]byte, 600)); err != nil {
		b.Fatal(err)
	}
}

// compare runs do and the floor in turns, tidies up, and reports the ratio of their medians.
func compare(b *testing.B, do, floor, tidy func()) {
	var took, least []time.Duration
	for b.Loop() {
		began := time.Now()
		do()
		took = append(took, time.Since(began))
		b.StopTimer()
		began = time.Now()
		floor()
		least = append(least, time.Since(began))
		tidy()
		b.StartTimer()
	}
	slices.Sort(took)
	slices.Sort(least)
	b.ReportMetric(float64(took[len(took)/2])/float64(least[len(least)/2]), "x-floor")
}

func rs256(c *issuer.Config, _ *issuer.Parts) { c.Alg, c.MaxSessions = keyring.RS256, 1<<30 }

// BenchmarkLogin is a login with the cheapest of hashes, which its floor computes too.
func BenchmarkLogin(b *testing.B) {
	tb := newBus()
	ti := start(b, tb, rs256, noLog)
	f := newFloor(b, tb)
	salt := make([]byte, 16)
	compare(b, func() { login(b, ti) }, func() {
		argon2.IDKey([]byte("wonderland"), salt, 1, 8, 1, 32)
		f.once(b)
	}, func() { clean(b, tb) })
}

// BenchmarkRefresh is a refresh by the current token.
func BenchmarkRefresh(b *testing.B) {
	tb := newBus()
	ti := start(b, tb, rs256, noLog)
	f := newFloor(b, tb)
	tokens := login(b, ti)
	compare(b, func() { tokens = refresh(b, ti, tokens.Refresh) }, func() { f.once(b) }, func() {})
}

func noLog(_ *issuer.Config, p *issuer.Parts) { p.Logger = nil }
