package fleettest

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// Patience is how long anything that must come is waited for; far above what a loaded machine needs.
const Patience = 20 * time.Second

// IssuerLease is how long an issuer of these tests goes on after a tick of its own.
const IssuerLease = 2 * time.Second

// Fleet is a bus with the keys of those who belong to it. It ends with the test.
type Fleet struct {
	testing.TB
	Bus *bustest.Bus
	Key *keyring.Key // of the tokens, active

	mu      sync.Mutex
	members map[string]ed25519.PrivateKey // enrolled agents
}

// Start starts a bus without issuers and agents.
func Start(t testing.TB) *Fleet {
	t.Helper()
	return StartOn(t, bustest.Start(t))
}

// StartOn is Start on a bus that is there.
func StartOn(t testing.TB, b *bustest.Bus) *Fleet {
	t.Helper()
	return &Fleet{TB: t, Bus: b, Key: keyringtest.RSA(t), members: make(map[string]ed25519.PrivateKey)}
}

func (f *Fleet) proxy() *bustest.Proxy { f.Helper(); return bustest.NewProxy(f, f.Bus.URL()) }

// member gives an agent's key, and enrols it where it is not.
func (f *Fleet) member(name string) ed25519.PrivateKey {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.members[name] == nil {
		_, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.members[name] = key
	}
	return f.members[name]
}

// Remove strikes an agent off: it gets no further lease, and is not heard.
func (f *Fleet) Remove(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.members, name)
}

func (f *Fleet) key(_ context.Context, name string) (ed25519.PublicKey, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.members[name] == nil {
		return nil, fmt.Errorf("agent %q: %w", name, bus.ErrNotFound)
	}
	return f.members[name].Public().(ed25519.PublicKey), nil
}

// Token makes an access token for an hour.
func (f *Fleet) Token(jti string) string {
	f.Helper()
	return keyringtest.Token(f, f.Key, func(c *keyring.Claims) { c.ID = jti })
}

// Issuer is an issuer's side of log and leases.
type Issuer struct {
	*Fleet
	IssuerName string
	Run        string
	Log        *bus.Log
	Replica    *replica.Replica
	Ledger     *lease.Ledger
	Proxy      *bustest.Proxy // between it and the bus

	stop func()
}

// Issuer starts one, with clocks of its own (nil: the machine's), and lets the log have the fleet's key.
func (f *Fleet) Issuer(name string, clock lease.Clock) *Issuer {
	f.Helper()
	i := &Issuer{Fleet: f, IssuerName: name, Run: name + "-run", Ledger: lease.NewLedger(clock), Proxy: f.proxy()}
	conn := f.Bus.Via(i.Proxy).Connect(f)
	var err error
	if i.Log, err = bus.OpenLog(f.Context(), conn, bus.LogConfig{Authority: f.Bus.Authority, Issuer: name, Replicas: f.Bus.Replicas()}); err != nil {
		f.Fatal(err)
	}
	books := &lease.Bookkeeper{
		Ledger: i.Ledger, Grants: i.Log.ReadGrants, Held: i.Log.Held, Key: f.key, IssuerLease: IssuerLease, Clock: clock, Logger: Logger(f),
	}
	i.Replica = replica.New(replica.Config{Journal: func(entries []bus.Entry) error { books.Note(entries); return nil }})
	granter := lease.NewGranter(lease.GranterConfig{
		Issuer: name, Run: i.Run, Authority: f.Bus.Authority, Log: i.Log, Key: f.key, Logger: Logger(f),
		Applied: func() uint64 { return i.Replica.Snapshot().Position.Seq },
	})
	silent, err := conn.Listen(granter.Hear, books.Hear)
	if err != nil {
		f.Fatal(err)
	}
	run := running(f, func(ctx context.Context) { i.Replica.Follow(ctx, i.Log) }, books.Run, granter.Run)
	i.stop = func() { silent(); run() }
	f.Cleanup(i.Stop)
	if err := i.ready(); err != nil {
		f.Fatal(err)
	}
	return i
}

// ready returns when the issuer has read its own beginning, in which the fleet's key stands.
func (i *Issuer) ready() error {
	ctx, cancel := context.WithTimeout(i.Context(), Patience)
	defer cancel()
	jwk, err := i.Key.PublicJWK()
	if err != nil {
		return err
	}
	at, err := i.Log.Append(ctx, &bus.KeyFact{
		KeyID: i.Key.ID(), Alg: string(i.Key.Alg()), Bits: i.Key.Bits(), State: string(keyring.Active), JWK: jwk,
		Issuer: keyringtest.Issuer, Audience: keyringtest.Audience, MaxLifetime: 86400, Created: time.Now().Unix(),
	})
	if err != nil {
		return err
	}
	return i.Replica.Wait(ctx, at.Seq)
}

// Stop ends it, as a crash does.
func (i *Issuer) Stop() {
	i.stop()
	i.Log.Close()
}

// Revoke revokes a token by its id.
func (i *Issuer) Revoke(jti string) bus.Position {
	i.Helper()
	ctx, cancel := context.WithTimeout(i.Context(), Patience)
	defer cancel()
	at, err := i.Log.Append(ctx, &bus.Revocation{ID: jti, ExpiresAt: time.Now().Add(2 * time.Hour).Unix()})
	if err != nil {
		i.Fatal(err)
	}
	return at
}

// Receipt is the receipt of an entry as it stands, nil while it cannot be given.
func (i *Issuer) Receipt(at bus.Position) *lease.Receipt { return i.Ledger.Receipt(at, i.Run) }

// Settle waits until an entry is settled and tells how long that took.
func (i *Issuer) Settle(at bus.Position) time.Duration {
	i.Helper()
	begun := time.Now()
	i.Eventually(fmt.Sprintf("the receipt of entry %d is settled", at.Seq), func() bool { return i.Receipt(at).Settled() })
	return time.Since(begun)
}

// Watch asks an agent about a token until an entry is settled. It tells how long after the call the
// agent last vouched, how long the settling took, and fails if the agent vouches when it is settled, or
// in the half second after.
func (i *Issuer) Watch(at bus.Position, a *Agent, token string) (vouched, settled time.Duration) {
	i.Helper()
	begun, look := time.Now(), time.NewTicker(time.Millisecond)
	defer look.Stop()
	for !i.Receipt(at).Settled() {
		if a.Verify(token) == 200 {
			vouched = time.Since(begun)
		}
		<-look.C
		if time.Since(begun) > Patience {
			i.Fatalf("after %s entry %d is not settled: %+v", Patience, at.Seq, i.Receipt(at))
		}
	}
	settled = time.Since(begun)
	i.While(500*time.Millisecond, "agent "+a.AgentName+" does not vouch after the receipt", func() bool { return a.Verify(token) != 200 })
	return vouched.Round(time.Millisecond), settled.Round(time.Millisecond)
}

// Eventually waits until something holds.
func (f *Fleet) Eventually(what string, holds func() bool) {
	f.Helper()
	deadline, look := time.After(Patience), time.NewTicker(2*time.Millisecond)
	defer look.Stop()
	for !holds() {
		select {
		case <-look.C:
		case <-deadline:
			f.Fatalf("after %s still not: %s", Patience, what)
		}
	}
}

// While looks again and again, for so long, that something holds, and tells how often it has looked.
func (f *Fleet) While(d time.Duration, what string, holds func() bool) (looks int) {
	f.Helper()
	end, look := time.After(d), time.NewTicker(time.Millisecond)
	defer look.Stop()
	for {
		if looks++; !holds() {
			f.Fatalf("it does not hold: %s", what)
		}
		select {
		case <-look.C:
		case <-end:
			return looks
		}
	}
}

// running runs these until the function that it returns is called, which may be called twice.
func running(t testing.TB, run ...func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, fn := range run {
		wg.Go(func() { fn(ctx) })
	}
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return stop
}

// Logger writes to the test's own log, so that lines show only where a test fails.
func Logger(t testing.TB) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Name: "test", Level: hclog.Error, Output: t.Output()})
}

// MemoryDir is a folder in memory, which ends with the test; the test is skipped where there is none.
func MemoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "sidekey-fleet-")
	if err != nil {
		t.Skipf("there is no folder in memory here: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// CopyDir copies the files of a folder, also those below.
func CopyDir(t testing.TB, to, from string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(filepath.Clean(from))); err != nil {
		t.Fatal(err)
	}
}
