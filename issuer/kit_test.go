package issuer_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

const issuerURL = "https://auth.example"

// testBus is one bus in memory, which any number of issuers share.
type testBus struct {
	real                                    *bustest.Bus // the embedded server instead of all that is in memory
	log                                     *bustest.Log
	fleet                                   *bustest.Fleet
	users, subjects, sessions, clients, key bustest.Bucket
	credentials                             bustest.Bucket
}

func newBus() *testBus { return &testBus{log: bustest.NewLog(), fleet: new(bustest.Fleet)} }

// newRealBus is the shipped embedded server, with the fleet in memory.
func newRealBus(t testing.TB) *testBus {
	t.Helper()
	return &testBus{real: bustest.Start(t), fleet: new(bustest.Fleet)}
}

// testIssuer is an Issuer, its own replica, and what it has logged.
type testIssuer struct {
	*issuer.Issuer
	bus     *testBus
	replica *replica.Replica
	logged  *syncBuffer
}

// setup changes what newIssuer makes.
type setup func(*issuer.Config, *issuer.Parts)

// newIssuer makes an issuer with a follower of the log, which runs until the test ends. Its ring is
// EdDSA, and its password hash cheap, so that tests are quick.
func newIssuer(t testing.TB, b *testBus, with ...setup) *testIssuer {
	t.Helper()
	ti := &testIssuer{bus: b, logged: new(syncBuffer)}
	feed := issuer.NewFeed()
	cfg := issuer.Config{
		URL: issuerURL, Alg: keyring.EdDSA, RefreshGrace: 30 * time.Second, RotateWait: 50 * time.Millisecond,
		Leeway: 5 * time.Second, Hash: issuer.Hash{Memory: 8, Time: 1, Threads: 1},
	}
	parts := issuer.Parts{
		Log: b.log, Fleet: b.fleet, Users: &b.users, Subjects: &b.subjects, Sessions: &b.sessions, Clients: &b.clients, Keys: &b.key, Credentials: &b.credentials,
		Feed:   feed,
		Logger: hclog.New(&hclog.LoggerOptions{Output: ti.logged, Level: hclog.Trace}),
	}
	var source replica.Log = b.log
	if b.real != nil {
		log := b.real.Log(t)
		source, parts.Log = log, log
		parts.Users, parts.Subjects = b.real.Bucket(t, bus.BucketUsers), b.real.Bucket(t, bus.BucketSubjects)
		parts.Clients = b.real.Bucket(t, bus.BucketClients)
		parts.Sessions, parts.Keys = b.real.Bucket(t, bus.BucketSessions), b.real.Bucket(t, bus.BucketKeys)
		parts.Credentials = b.real.Bucket(t, bus.BucketCredentials)
	}
	for _, change := range with {
		change(&cfg, &parts)
	}
	ti.replica = replica.New(replica.Config{Open: issuer.OpenSecret(parts.Keys), Journal: feed.Note})
	parts.Replica = ti.replica
	var err error
	if ti.Issuer, err = issuer.New(cfg, parts); err != nil {
		t.Fatal(err)
	}
	follow(t, ti.replica, source)
	return ti
}

// follow keeps a replica at the head of the log until the test ends, and waits for its first full sync.
func follow(t testing.TB, r *replica.Replica, log replica.Log) {
	t.Helper()
	feed(t, r, log)
	for changed := r.Changed(); !r.Snapshot().Ready; changed = r.Changed() {
		if r.Snapshot().Ready {
			return
		}
		<-changed
	}
}

// feed is follow without the waiting.
func feed(t testing.TB, r *replica.Replica, log replica.Log) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = r.Follow(ctx, log) // ends with ctx
	}()
	t.Cleanup(func() { cancel(); <-done })
}

// start makes an issuer that is Ready, and the user alice.
func start(t testing.TB, b *testBus, with ...setup) *testIssuer {
	t.Helper()
	ti := newIssuer(t, b, with...)
	ti.steps(t)
	if err := ti.StepSealing(t.Context()); err != nil {
		t.Fatal(err)
	}
	addAlice(t, ti)
	return ti
}

// steps brings the ring on until it stands still.
func (ti *testIssuer) steps(t testing.TB) {
	t.Helper()
	for range 20 {
		before := ti.replica.Snapshot().Position.Seq
		if err := ti.Step(t.Context()); err != nil {
			t.Fatal(err)
		}
		if ti.replica.Snapshot().Position.Seq == before {
			return
		}
	}
	t.Fatal("the ring does not come to rest")
}

// run lets the issuer's background work run until the test ends.
func (ti *testIssuer) run(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ti.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: got %v, want nil when its context ends", err)
		}
	})
}

func addAlice(t testing.TB, ti *testIssuer) *issuer.User {
	t.Helper()
	u, err := ti.AddUser(t.Context(), issuer.NewUser{Username: "alice", Password: "wonderland", Scope: "read write", Roles: []string{"staff"}})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func login(t testing.TB, ti *testIssuer) *issuer.Tokens {
	t.Helper()
	tokens, err := ti.Login(t.Context(), issuer.Credentials{Username: "alice", Password: "wonderland"})
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

func refresh(t testing.TB, ti *testIssuer, token string) *issuer.Tokens {
	t.Helper()
	tokens, err := ti.Refresh(t.Context(), token)
	if err != nil {
		t.Fatalf("Refresh: got %v, want tokens", err)
	}
	return tokens
}

// refused holds that a token is denied, for that reason.
func refused(t testing.TB, what string, err error, want keyring.Reason) {
	t.Helper()
	if got := keyring.ReasonOf(err); got != want {
		t.Errorf("%s: got %v, want a denial: %s", what, err, want)
	}
}

// verify reads an access token as an agent does, by a replica alone.
func verify(r *replica.Replica, token string) error {
	snap := r.Snapshot()
	tok, err := snap.Ring.Verify(token, keyring.Expect{Type: keyring.AccessToken, Leeway: 5 * time.Second, Now: time.Now()})
	if err != nil {
		return err
	}
	if ids := replica.Fingerprint(&tok.Claims); r.Revoked(&ids) {
		return keyring.Deny(keyring.Revoked, tok.KeyID, nil)
	}
	return nil
}

// claims reads a token's payload without proving anything.
func claims(t testing.TB, token string) map[string]any {
	t.Helper()
	return part(t, token, 1)
}

func part(t testing.TB, token string, at int) map[string]any {
	t.Helper()
	raw, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[at])
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// checkRing is the ring's invariant: one key signs, and its kid is given.
func checkRing(t testing.TB, ti *testIssuer) string {
	t.Helper()
	keys, err := ti.ListKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	active := ""
	for _, k := range keys {
		if k.State == keyring.Active {
			if active != "" {
				t.Errorf("ListKeys: %q and %q are both active, want one", active, k.KeyID)
			}
			active = k.KeyID
		}
	}
	if active == "" {
		t.Errorf("ListKeys: got %v, want an active key", keys)
	}
	return active
}

// standby is the kid of the key that stands by for the issuer's own audience.
func standby(t testing.TB, ti *testIssuer) string {
	t.Helper()
	keys, err := ti.ListKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if k.State == keyring.Announced && k.ActivatesAt.IsZero() && (k.Audience == "" || k.Audience == issuerURL) {
			return k.KeyID
		}
	}
	t.Fatalf("ListKeys: got %+v, want a key that stands by", keys)
	return ""
}

func state(t testing.TB, ti *testIssuer, kid string) keyring.State {
	t.Helper()
	k, err := ti.Key(t.Context(), kid)
	if err != nil {
		t.Fatal(err)
	}
	return k.State
}

// hs256 makes the ring symmetric.
func hs256(cfg *issuer.Config, _ *issuer.Parts) { cfg.Alg = keyring.HS256 }

// syncBuffer is a buffer that several goroutines may write.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// position is where an issuer's replica stands.
func (ti *testIssuer) position() bus.Position { return ti.replica.Snapshot().Position }

// only lets in with this token.
func only(token string) func(string) bool {
	return func(presented string) bool { return presented == token }
}
