package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// reached is how many agents a revocation has to reach.
const reached = 100

// BenchmarkRevocationReach measures how long it takes from the call that revokes a token to the last of
// 100 agents' refusing it, each with a connection of its own, beside what no design can do without on
// the same server: one write that is on the disk, and one message of the same size to 100 subscribers.
// A fleet proves the entry's signature on 100 machines at once; here the same cores prove it 100 times,
// so that time is measured too and taken away in the last figure.
func BenchmarkRevocationReach(b *testing.B) {
	server := bustest.Start(b)
	log := server.Log(b)
	key := keyringtest.Ed(b)
	fact, tokens := reachTokens(b, key, b.N+1)
	announced := *fact
	announced.State = string(keyring.Announced)
	if _, err := log.Append(b.Context(), &announced, fact); err != nil {
		b.Fatal(err)
	}
	agents := make([]*reachAgent, reached)
	for n := range agents {
		agents[n] = newReachAgent(b, server, fmt.Sprintf("web-%d", n), tokens[0])
	}
	floor := newFloor(b, server)
	var ours, written, published, proven time.Duration
	revoke := func(n int) time.Duration {
		var all, waiting sync.WaitGroup
		for _, a := range agents {
			waiting.Add(1)
			all.Go(func() { a.refuses(b, tokens[n], waiting.Done) })
		}
		waiting.Wait()
		began := time.Now()
		if _, err := log.Append(context.Background(), &bus.Revocation{ID: fmt.Sprint("jti-", n), ExpiresAt: time.Now().Add(time.Hour).Unix()}); err != nil {
			b.Error(err)
		}
		all.Wait()
		return time.Since(began)
	}
	revoke(0)
	floor.measure(b)
	b.ResetTimer()
	for n := range b.N {
		ours += revoke(n + 1)
		w, p := floor.measure(b)
		written, published, proven = written+w, published+p, proven+prove(b, server.Authority)
	}
	for unit, d := range map[string]time.Duration{"ms/last-refusal": ours, "ms/write": written, "ms/publish": published, "ms/100-proofs": proven} {
		b.ReportMetric(float64(d.Microseconds())/1000/float64(b.N), unit)
	}
	b.ReportMetric(float64(ours-written)/float64(published), "publishes-beyond-write")
	b.ReportMetric(float64(ours-written-proven)/float64(published), "publishes-beyond-write-and-proofs")
}

// reachTokens makes a key's entry and tokens of it, jti-0 and on.
func reachTokens(b *testing.B, key *keyring.Key, n int) (*bus.KeyFact, []string) {
	b.Helper()
	jwk, err := key.PublicJWK()
	if err != nil {
		b.Fatal(err)
	}
	tokens := make([]string, n)
	for i := range tokens {
		tokens[i] = keyringtest.Token(b, key, func(c *keyring.Claims) { c.ID = fmt.Sprint("jti-", i) })
	}
	return &bus.KeyFact{
		KeyID: key.ID(), Alg: string(key.Alg()), State: string(keyring.Active), JWK: jwk, Issuer: keyringtest.Issuer, Audience: keyringtest.Audience,
		MaxLifetime: 86400, Created: time.Now().Unix(),
	}, tokens
}

// reachAgent is an agent on the bus, with what wakes it.
type reachAgent struct {
	*agent.Agent
	replica *replica.Replica
}

type endlessLease struct{ *lease.Lease }

func (l endlessLease) Current() *lease.Lease { return l.Lease }

func newReachAgent(b *testing.B, server *bustest.Bus, name, token string) *reachAgent {
	b.Helper()
	r := replica.New(replica.Config{})
	a, err := agent.New(agent.Config{Name: name, Leeway: 5 * time.Second}, agent.Parts{
		Replica: r, Leases: endlessLease{&lease.Lease{Begin: lease.SystemClock(), Length: lease.MaxLength, Mode: lease.Refuse}},
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = r.Follow(ctx, bus.NewReader(server.ConnectAgent(b, name), server.Authority.Public())) // ends with ctx
	}()
	b.Cleanup(func() { cancel(); <-done })
	ra := &reachAgent{a, r}
	ra.until(token, http.StatusOK)
	return ra
}

// refuses returns when the agent refuses the token, which it has proven and accepted when it calls ready.
func (a *reachAgent) refuses(b *testing.B, token string, ready func()) {
	if v := a.Verify(token, agent.Query{}); !v.Active() {
		b.Errorf("Verify: got %s, want it accepted", v.Reason)
	}
	ready()
	if v := a.until(token, http.StatusUnauthorized); v.Reason != keyring.Revoked {
		b.Errorf("Verify: got %s, want revoked", v.Reason)
	}
}

func (a *reachAgent) until(token string, status int) agent.Verdict {
	for {
		changed := a.replica.Changed()
		if v := a.Verify(token, agent.Query{}); v.Status == status {
			return v
		}
		<-changed
	}
}

// floor is what a revocation cannot be faster than: a durable write, and a message to everybody.
type floor struct {
	js    jetstream.JetStream
	nc    *nats.Conn
	heard chan struct{}
}

func newFloor(b *testing.B, server *bustest.Bus) *floor {
	b.Helper()
	creds, err := server.Issuer(b).Creds()
	if err != nil {
		b.Fatal(err)
	}
	path := filepath.Join(b.TempDir(), "issuer.creds")
	if err := os.WriteFile(path, creds, 0o600); err != nil {
		b.Fatal(err)
	}
	connect := func() *nats.Conn {
		nc, err := nats.Connect(server.Server.URL(), nats.UserCredentials(path))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(nc.Close)
		return nc
	}
	f := &floor{nc: connect(), heard: make(chan struct{}, reached)}
	for range reached {
		nc := connect()
		_, err := nc.Subscribe("bench.live", func(*nats.Msg) { f.heard <- struct{}{} })
		if err := errors.Join(err, nc.Flush()); err != nil {
			b.Fatal(err)
		}
	}
	if f.js, err = jetstream.New(f.nc); err != nil {
		b.Fatal(err)
	}
	if _, err := f.js.CreateStream(b.Context(), jetstream.StreamConfig{Name: "bench", Subjects: []string{"bench.log"}, Storage: jetstream.FileStorage}); err != nil {
		b.Fatal(err)
	}
	return f
}

// prove takes the time of 100 goroutines' proving one signature each.
func prove(b *testing.B, authority *keyring.Authority) time.Duration {
	body := make([]byte, 300)
	signature := authority.Sign(body)
	public := authority.Public()
	var all sync.WaitGroup
	began := time.Now()
	for range reached {
		all.Go(func() {
			if !public.Verify(body, signature) {
				b.Error("the signature does not verify")
			}
		})
	}
	all.Wait()
	return time.Since(began)
}

// measure takes the time of each, one after the other.
func (f *floor) measure(b *testing.B) (written, published time.Duration) {
	b.Helper()
	body := make([]byte, 300) // as an entry has, with its headers
	began := time.Now()
	if _, err := f.js.Publish(context.Background(), "bench.log", body); err != nil {
		b.Fatal(err)
	}
	written = time.Since(began)
	if err := f.nc.Publish("bench.live", body); err != nil {
		b.Fatal(err)
	}
	for range reached {
		<-f.heard
	}
	return written, time.Since(began) - written
}
