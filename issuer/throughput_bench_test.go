package issuer_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/issuer"
)

func TestMain(m *testing.M) {
	bustest.Main()
	os.Exit(m.Run())
}

const (
	askers = 32                     // clients at once
	rounds = 5                      // of each figure and its floor, by turns
	round  = 500 * time.Millisecond // and how long one takes
)

// BenchmarkThroughput is what one issuer answers in a second to 32 clients at once, on nats-servers in processes of their own that sync each
// write, with one replica and with three, signing RS256 and keeping an audit. Each is held against what it cannot do without, by as many at
// once: a signature, an acknowledged write, or both, by turns; reported is the median of the rounds. What a call takes of the processors, here and in
// the servers, says what limits it: where it is much less than the cores there are, calls wait for the disk, or for one another. What only
// computes is to be read by x-floor-cpu: on a machine that others use, who never waits gets less of it than who does. The login's hash is the cheapest there is; a real one is 100 times the rest.
func BenchmarkThroughput(b *testing.B) {
	for _, servers := range []int{1, 3} {
		b.Run(fmt.Sprint("replicas-", servers), func(b *testing.B) { throughput(b, servers) })
	}
}

func throughput(b *testing.B, servers int) {
	real, apart := bustest.StartApart(b, servers)
	trail, err := bus.OpenAudit(b.Context(), real.Connect(b), bus.AuditConfig{Issuer: "issuer-1", Master: real.Master, MaxBytes: 64 << 20, Replicas: servers})
	if err != nil {
		b.Fatal(err)
	}
	w := newWorld(b, &testBus{real: real, fleet: new(bustest.Fleet)}, rs256, func(_ *issuer.Config, p *issuer.Parts) { p.Trail = trail })
	w.run(b)
	sign, write := floors(b, real)
	both := func(ctx context.Context, client int) error { return errors.Join(sign(ctx, client), write(ctx, client)) }
	var held [askers]*issuer.Tokens
	for n := range held {
		addUser(b, w.testIssuer, fmt.Sprint("user", n))
		if held[n], err = w.Login(b.Context(), issuer.Credentials{Username: fmt.Sprint("user", n), Password: "wonderland"}); err != nil {
			b.Fatal(err)
		}
	}
	var jti atomic.Int64
	for _, c := range []struct {
		name      string
		do, floor func(ctx context.Context, client int) error
	}{
		{"login", func(ctx context.Context, client int) error {
			_, err := w.Login(ctx, issuer.Credentials{Username: fmt.Sprint("user", client), Password: "wonderland"})
			return err
		}, both},
		{"refresh", func(ctx context.Context, client int) (err error) {
			held[client], err = w.Refresh(ctx, held[client].Refresh)
			return err
		}, both},
		{"client-credentials", func(context.Context, int) error {
			if got := w.post("/oauth2/token", "job", "grant_type", "client_credentials"); got.Code != 200 {
				return fmt.Errorf("client credentials: %d %s", got.Code, got.Body)
			}
			return nil
		}, sign},
		{"revoke", func(ctx context.Context, _ int) error {
			_, err := w.Revoke(ctx, issuer.Target{ID: fmt.Sprint("jti-", jti.Add(1))})
			return err
		}, write},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				var ours, least, ratios []float64
				var mine, theirs, floors time.Duration
				calls, plain := 0, 0
				for range rounds {
					before := ownCPU(b)
					floor, n := rate(b, c.floor)
					floors, plain = floors+ownCPU(b)-before, plain+n
					before, servers := ownCPU(b), apart.Usage(b).CPU
					got, n := rate(b, c.do)
					mine, theirs, calls = mine+ownCPU(b)-before, theirs+apart.Usage(b).CPU-servers, calls+n
					ours, least, ratios = append(ours, got), append(least, floor), append(ratios, floor/got)
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(median(ours), "a-second")
				b.ReportMetric(median(least), "floor-a-second")
				b.ReportMetric(median(ratios), "x-floor")
				b.ReportMetric(float64(mine.Microseconds())/float64(calls), "µs-cpu")
				b.ReportMetric(float64(mine)/float64(calls)/(float64(floors)/float64(plain)), "x-floor-cpu")
				b.ReportMetric(float64(theirs.Microseconds())/float64(calls), "µs-cpu-bus")
			}
		})
	}
}

// floors are an RSA signature, and a write to a bucket that is acknowledged by all the replicas that have to.
func floors(b *testing.B, real *bustest.Bus) (sign, write func(context.Context, int) error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	digest, bucket := sha256.Sum256([]byte("a token")), real.Bucket(b, "floor")
	var written atomic.Int64
	sign = func(context.Context, int) error {
		_, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
		return err
	}
	write = func(ctx context.Context, _ int) error {
		_, err := bucket.Create(ctx, bus.Name("floor", fmt.Sprint(written.Add(1))), make([]byte, 600))
		return err
	}
	return sign, write
}

// rate is how often a second all clients together do something, one thing after the other each, and how often they did.
func rate(b *testing.B, do func(ctx context.Context, client int) error) (aSecond float64, calls int) {
	b.Helper()
	var all sync.WaitGroup
	var done atomic.Int64
	begun := time.Now()
	for client := range askers {
		all.Go(func() {
			for time.Since(begun) < round {
				if err := do(b.Context(), client); err != nil {
					b.Error(err)
					return
				}
				done.Add(1)
			}
		})
	}
	all.Wait()
	return float64(done.Load()) / time.Since(begun).Seconds(), int(done.Load())
}

func median(of []float64) float64 {
	slices.Sort(of)
	return of[len(of)/2]
}

// ownCPU is what this process has used of the processors.
func ownCPU(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
