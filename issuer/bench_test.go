package issuer_test

import (
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
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

// floor is what a login or a refresh cannot do without: one RSA signature and one write to a
// bucket, acknowledged. It is measured in turns with what is compared to it.
type floor struct {
	key     *rsa.PrivateKey
	digest  [sha256.Size]byte
	bucket  issuer.Bucket
	written int
}

func newFloor(b *testing.B, bucket issuer.Bucket) *floor {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	return &floor{key: key, digest: sha256.Sum256([]byte("a token")), bucket: bucket}
}

func (f *floor) once(b *testing.B) {
	if _, err := rsa.SignPKCS1v15(rand.Reader, f.key, crypto.SHA256, f.digest[:]); err != nil {
		b.Fatal(err)
	}
	f.written++
	if _, err := f.bucket.Create(b.Context(), bus.Name("floor", strconv.Itoa(f.written)), make([]byte, 600)); err != nil {
		b.Fatal(err)
	}
}

// compare runs do and the floor in turns, and reports the ratio of their medians.
func compare(b *testing.B, do, floor func()) {
	var took, least []time.Duration
	for b.Loop() {
		began := time.Now()
		do()
		took = append(took, time.Since(began))
		b.StopTimer()
		began = time.Now()
		floor()
		least = append(least, time.Since(began))
		b.StartTimer()
	}
	slices.Sort(took)
	slices.Sort(least)
	b.ReportMetric(float64(least[len(least)/2].Microseconds()), "µs-floor")
	b.ReportMetric(float64(took[len(took)/2])/float64(least[len(least)/2]), "x-floor")
}

// onBuses runs a benchmark on the bus in memory, where the write costs nothing, and on the
// embedded server, which syncs each write.
func onBuses(b *testing.B, run func(*testing.B, *testBus, issuer.Bucket)) {
	b.Run("memory", func(b *testing.B) { run(b, newBus(), new(bustest.Bucket)) })
	b.Run("nats", func(b *testing.B) {
		tb := newRealBus(b)
		run(b, tb, tb.real.Bucket(b, "floor"))
	})
}

func rs256(c *issuer.Config, p *issuer.Parts) {
	c.Alg, c.MaxSessions, p.Logger = keyring.RS256, 1000, nil
}

// BenchmarkLogin is a login with the cheapest of hashes, which its floor computes too. Every tenth
// user is another one, so that none has many sessions.
func BenchmarkLogin(b *testing.B) {
	onBuses(b, func(b *testing.B, tb *testBus, bucket issuer.Bucket) {
		ti := start(b, tb, rs256)
		f := newFloor(b, bucket)
		salt := make([]byte, 16)
		n := 0
		addUser(b, ti, "user0")
		compare(b, func() {
			c := issuer.Credentials{Username: "user" + strconv.Itoa(n/10), Password: "wonderland"}
			if _, err := ti.Login(b.Context(), c); err != nil {
				b.Fatal(err)
			}
			n++
		}, func() {
			argon2.IDKey([]byte("wonderland"), salt, 1, 8, 1, 32)
			f.once(b)
			if n%10 == 0 {
				addUser(b, ti, "user"+strconv.Itoa(n/10))
			}
		})
	})
}

func addUser(b *testing.B, ti *testIssuer, name string) {
	if _, err := ti.AddUser(b.Context(), issuer.NewUser{Username: name, Password: "wonderland", Scope: "read write"}); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkRefresh is a refresh by the current token.
func BenchmarkRefresh(b *testing.B) {
	onBuses(b, func(b *testing.B, tb *testBus, bucket issuer.Bucket) {
		ti := start(b, tb, rs256)
		f := newFloor(b, bucket)
		tokens := login(b, ti)
		compare(b, func() { tokens = refresh(b, ti, tokens.Refresh) }, func() { f.once(b) })
	})
}

// BenchmarkStep is one look at an HS256 ring at rest, of so many agents: it is taken up to 50 times
// a second.
func BenchmarkStep(b *testing.B) {
	for _, agents := range []int{10, 1000} {
		b.Run(strconv.Itoa(agents), func(b *testing.B) {
			tb := newBus()
			for n := range agents {
				k, err := keyring.GenerateSealingKey()
				if err != nil {
					b.Fatal(err)
				}
				name := "web-" + strconv.Itoa(n)
				tb.fleet.Join(name, k.Public())
				tb.fleet.Tell(name)
			}
			ti := newIssuer(b, tb, hs256)
			ti.steps(b)
			for b.Loop() {
				if err := ti.Step(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
