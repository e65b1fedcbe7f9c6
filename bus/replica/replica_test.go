package replica_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

func revocation(jti string) *bus.Revocation {
	return &bus.Revocation{ID: jti, ExpiresAt: time.Now().Add(24 * time.Hour).Unix()}
}

func revoked(r *replica.Replica, c keyring.Claims) bool {
	ids := replica.Fingerprint(&c)
	return r.Revoked(&ids)
}

func jti(id string) keyring.Claims { return keyring.Claims{ID: id} }

func keyFact(t testing.TB, kid string, state keyring.State) *bus.KeyFact {
	t.Helper()
	jwk, err := keyringtest.Ed(t).WithID(kid).PublicJWK()
	if err != nil {
		t.Fatal(err)
	}
	return &bus.KeyFact{KeyID: kid, Alg: "EdDSA", State: string(state), JWK: jwk, Issuer: "https://issuer", Audience: "https://api"}
}

type appender interface {
	Append(ctx context.Context, facts ...bus.Fact) (bus.Position, error)
}

func mustAppend(t testing.TB, l appender, facts ...bus.Fact) bus.Position {
	t.Helper()
	pos, err := l.Append(t.Context(), facts...)
	if err != nil {
		t.Fatalf("Append: %v", err)
	}
	return pos
}

// running is a replica that follows until it is stopped.
type running struct {
	*replica.Replica
	stop func()
}

func start(t testing.TB, r *replica.Replica, l replica.Log) running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Follow(ctx, l) }()
	var stopped atomic.Bool
	stop := func() {
		cancel()
		if stopped.CompareAndSwap(false, true) {
			if err := <-done; err != nil {
				t.Errorf("Follow: %v", err)
			}
		}
	}
	t.Cleanup(stop)
	return running{r, stop}
}

func wait(t testing.TB, r *replica.Replica, seq uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := r.Wait(ctx, seq); err != nil {
		t.Fatal(err)
	}
}

// until waits for something that comes with a new Snapshot.
func until(t testing.TB, r *replica.Replica, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	look := time.NewTicker(2 * time.Millisecond)
	defer look.Stop()
	for {
		changed := r.Changed()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-look.C:
		case <-ctx.Done():
			t.Fatalf("not within twenty seconds: %s", what)
		}
	}
}

// caught follows a log up to its head, and stops.
func caught(t testing.TB, r *replica.Replica, l replica.Log, seq uint64) {
	t.Helper()
	run := start(t, r, l)
	wait(t, r, seq)
	until(t, r, "the first full sync", func() bool { return r.Snapshot().Ready })
	run.stop()
}

// TestRevoked: each kind of revocation refuses what it names, and nothing else.
func TestRevoked(t *testing.T) {
	l, r := bustest.NewLog(), replica.New(replica.Config{})
	exp := time.Now().Add(time.Hour).Unix()
	now := time.Now().Unix()
	pos := mustAppend(t, l,
		&bus.Revocation{ID: "same", ExpiresAt: exp}, &bus.Revocation{SessionID: "s1", ExpiresAt: exp},
		&bus.Revocation{Subject: "alice", ExpiresAt: exp, Time: now}, &bus.Revocation{ClientID: "app", ExpiresAt: exp, Time: now})
	caught(t, r, l, pos.Seq)
	began := func(c keyring.Claims, seq uint64) keyring.Claims {
		c.SessionSeq, c.HasSessionSeq = seq, true
		return c
	}
	for name, c := range map[string]struct {
		claims keyring.Claims
		want   bool
	}{
		"jti":                      {keyring.Claims{ID: "same"}, true},
		"another jti":              {keyring.Claims{ID: "other"}, false},
		"a sid of a jti's name":    {keyring.Claims{ID: "x", SessionID: "same"}, false},
		"sid":                      {keyring.Claims{ID: "x", SessionID: "s1"}, true},
		"a jti of a sid's name":    {keyring.Claims{ID: "s1"}, false},
		"no id":                    {keyring.Claims{}, false},
		"sub, began before":        {began(keyring.Claims{ID: "x", Subject: "alice"}, 2), true},
		"sub, began at the cutoff": {began(keyring.Claims{ID: "x", Subject: "alice"}, 3), false},
		"sub, began after":         {began(keyring.Claims{ID: "x", Subject: "alice"}, 9), false},
		"sub, issued then":         {keyring.Claims{ID: "x", Subject: "alice", IssuedAt: keyring.NumericDate(now)}, true},
		"sub, a fraction later":    {keyring.Claims{ID: "x", Subject: "alice", IssuedAt: keyring.NumericDate(float64(now) + 0.9)}, true},
		"sub, issued later":        {keyring.Claims{ID: "x", Subject: "alice", IssuedAt: keyring.NumericDate(now + 1)}, false},
		"sub, no iat":              {keyring.Claims{ID: "x", Subject: "alice"}, true},
		"client, began before":     {began(keyring.Claims{ID: "x", ClientID: "app"}, 3), true},
		"client, began after":      {began(keyring.Claims{ID: "x", ClientID: "app"}, 4), false},
		"a sub of a client's name": {began(keyring.Claims{ID: "x", Subject: "app"}, 0), false},
	} {
		if got := revoked(r, c.claims); got != c.want {
			t.Errorf("Revoked(%s): got %v, want %v", name, got, c.want)
		}
	}
	ids := replica.Fingerprint(&keyring.Claims{ID: "x", SessionID: "s2", Subject: "bob", ClientID: "web"})
	if n := testing.AllocsPerRun(100, func() { r.Revoked(&ids) }); n != 0 {
		t.Errorf("Revoked allocates %v times", n)
	}
}

// TestForgotten: at any time, a token whose revocation the log has had is revoked, or is known to be
// over by the log's own time (PROTOCOL 15); and what the log knows no longer takes no memory.
func TestForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, r := bustest.NewLog(), replica.New(replica.Config{})
		type known struct {
			claims keyring.Claims
			exp    int64
		}
		var all []known
		run := start(t, r, l)
		for n := range 60 {
			exp := time.Now().Add(time.Duration(n%7)*25*time.Minute + time.Minute).Unix()
			k := known{jti(fmt.Sprint(n)), exp}
			rev := &bus.Revocation{ID: fmt.Sprint(n), ExpiresAt: exp}
			if n%3 == 0 {
				k.claims = keyring.Claims{ID: "x", Subject: fmt.Sprint("user-", n)}
				rev = &bus.Revocation{Subject: fmt.Sprint("user-", n), ExpiresAt: exp, Time: time.Now().Unix()}
			}
			all = append(all, k)
			mustAppend(t, l, rev)
			time.Sleep(11 * time.Minute)
			pos, err := l.Tick(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			wait(t, r, pos.Seq)
			for _, k := range all {
				if !revoked(r, k.claims) && !r.Forgotten(k.exp) {
					t.Fatalf("%+v is neither revoked nor known to be over at %d", k, time.Now().Unix())
				}
				if r.Forgotten(time.Now().Unix() + 1) {
					t.Fatal("a token that has not ended is said to be forgotten")
				}
			}
		}
		time.Sleep(5 * time.Hour)
		pos, err := l.Tick(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		wait(t, r, pos.Seq)
		if n := r.Revocations(); n != 0 {
			t.Errorf("%d revocations are left after all have expired", n)
		}
		run.stop()
	})
}

// TestKeys: the ring follows the log's states; illegal ones are ignored, unknown ones stop it.
func TestKeys(t *testing.T) {
	l, r := bustest.NewLog(), replica.New(replica.Config{})
	pos := mustAppend(t, l,
		keyFact(t, "k1", keyring.Announced), keyFact(t, "k1", keyring.Active), keyFact(t, "k2", keyring.Announced),
		keyFact(t, "k2", keyring.Revoked), keyFact(t, "k2", keyring.Active)) // the last is illegal
	run := start(t, r, l)
	wait(t, r, pos.Seq)
	ring := r.Snapshot().Ring
	if k, ok := ring.Active(); !ok || k.KeyID != "k1" || ring.Issuer() != "https://issuer" || ring.Audience() != "https://api" {
		t.Errorf("the active key: got %+v of %q", k, ring.Issuer())
	}
	if k, ok := ring.Record("k2"); !ok || k.State != keyring.Revoked || k.Key != nil {
		t.Errorf("a revoked key: got %+v", k)
	}
	mustAppend(t, l, keyFact(t, "k1", "paused"))
	until(t, r, "a fault", func() bool { return r.Fault() != nil })
	if err := r.Fault(); !errors.Is(err, bus.ErrUnknown) {
		t.Errorf("Fault at an unknown state: got %v, want ErrUnknown", err)
	}
	if at := r.Snapshot().Position; at != pos {
		t.Errorf("an unknown state was applied: at %v, want %v", at, pos)
	}
	run.stop()
}

// TestHeldSecrets: an HS256 key is held where its secret opens, and boxes add up.
func TestHeldSecrets(t *testing.T) {
	sealing := map[string]*keyring.SealingKey{}
	for _, agent := range []string{"one", "two"} {
		k, err := keyring.GenerateSealingKey()
		if err != nil {
			t.Fatal(err)
		}
		sealing[agent] = k
	}
	secret := keyringtest.Secret(t)
	fact := func(agents ...string) *bus.KeyFact {
		f := &bus.KeyFact{KeyID: secret.ID(), Alg: "HS256", State: "active", Issuer: "i", Audience: "a"}
		for _, agent := range agents {
			box, err := replica.Seal(secret, agent, sealing[agent].Public())
			if err != nil {
				t.Fatal(err)
			}
			f.Sealed = append(f.Sealed, box)
		}
		return f
	}
	l := bustest.NewLog()
	rs := map[string]*replica.Replica{}
	for agent, key := range sealing {
		rs[agent] = replica.New(replica.Config{Open: replica.OpenSealed(agent, key)})
	}
	rs["swapped"] = replica.New(replica.Config{Open: replica.OpenSealed("one", sealing["two"])})
	rs["nobody"] = replica.New(replica.Config{})
	held := func(r *replica.Replica) bool {
		k, ok := r.Snapshot().Ring.Record(secret.ID())
		return ok && k.Key != nil
	}
	pos := mustAppend(t, l, fact("one"))
	for _, r := range rs {
		caught(t, r, l, pos.Seq)
	}
	if !held(rs["one"]) || held(rs["two"]) || held(rs["swapped"]) || held(rs["nobody"]) {
		t.Error("sealed to one: want one to hold it, and nobody else")
	}
	pos = mustAppend(t, l, fact("two"))
	for _, r := range rs {
		caught(t, r, l, pos.Seq)
	}
	if !held(rs["one"]) || !held(rs["two"]) || held(rs["swapped"]) || held(rs["nobody"]) {
		t.Error("sealed to two later: want both to hold it")
	}
}

// scripted is a log that does what a test says at each Follow.
type scripted struct {
	*bustest.Log
	follows chan func(fn func([]bus.Entry, uint64) error) error
}

func (s *scripted) Follow(ctx context.Context, after bus.Cursor, fn func([]bus.Entry, uint64) error) error {
	select {
	case do := <-s.follows:
		return do(fn)
	default:
		return s.Log.Follow(ctx, after, fn)
	}
}

// TestFault: what trying again does not mend shows as the fault until the log is right again; what
// it mends does not.
func TestFault(t *testing.T) {
	for _, c := range []struct {
		err   error
		fault bool
	}{
		{bus.ErrForged, true}, {bus.ErrUnknown, true}, {bus.ErrRollback, true}, {bus.ErrBehind, true},
		{errors.New("the network"), false}, {context.DeadlineExceeded, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := &scripted{Log: bustest.NewLog(), follows: make(chan func(func([]bus.Entry, uint64) error) error, 8)}
			r := replica.New(replica.Config{})
			for range 3 {
				l.follows <- func(func([]bus.Entry, uint64) error) error { return fmt.Errorf("at entry 7: %w", c.err) }
			}
			mended := make(chan struct{})
			l.follows <- func(func([]bus.Entry, uint64) error) error { <-mended; return errors.New("again") }
			run := start(t, r, l)
			synctest.Wait()
			time.Sleep(time.Minute)
			synctest.Wait()
			if got := r.Fault(); (got != nil) != c.fault || c.fault && !errors.Is(got, c.err) {
				t.Errorf("Fault after %v: got %v", c.err, got)
			}
			if r.Snapshot().Ready {
				t.Errorf("ready after nothing but %v", c.err)
			}
			close(mended)
			pos := mustAppend(t, l, revocation("a"))
			wait(t, r, pos.Seq)
			synctest.Wait()
			if got := r.Fault(); got != nil {
				t.Errorf("Fault after the log was mended: got %v", got)
			}
			run.stop()
		})
	}
}

// TestReadyOnlyAtTheHead: nobody is vouched for before the first full sync.
func TestReadyOnlyAtTheHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &scripted{Log: bustest.NewLog(), follows: make(chan func(func([]bus.Entry, uint64) error) error, 8)}
		mustAppend(t, l, revocation("a"), revocation("b"), revocation("c"))
		var entries []bus.Entry
		errEnough := errors.New("enough")
		l.Log.Follow(t.Context(), bus.Cursor{}, func(es []bus.Entry, _ uint64) error { entries = es; return errEnough }) //nolint:errcheck // it is errEnough
		r := replica.New(replica.Config{})
		step := make(chan struct{})
		l.follows <- func(fn func([]bus.Entry, uint64) error) error {
			for _, en := range entries {
				if err := fn([]bus.Entry{en}, 3); err != nil {
					return err
				}
				<-step
			}
			return errors.New("end")
		}
		run := start(t, r, l)
		for n := range 3 {
			synctest.Wait()
			if got, want := r.Snapshot().Ready, n == 2; got != want || r.Head() != 3 {
				t.Errorf("after entry %d of 3: ready %v and head %d, want %v and 3", n+1, got, r.Head(), want)
			}
			step <- struct{}{}
		}
		run.stop()
	})
}

// TestHoles: entries that do not follow are refused, and those applied already are passed over.
func TestHoles(t *testing.T) {
	l := bustest.NewLog()
	mustAppend(t, l, revocation("a"), revocation("b"), revocation("c"))
	var entries []bus.Entry
	errEnough := errors.New("enough")
	l.Follow(t.Context(), bus.Cursor{}, func(es []bus.Entry, _ uint64) error { entries = es; return errEnough }) //nolint:errcheck // it is errEnough
	r := replica.New(replica.Config{})
	if err := r.Apply(entries[0]); err != nil {
		t.Fatal(err)
	}
	later := entries[1]
	later.Epoch++
	for name, batch := range map[string][]bus.Entry{"a hole": entries[2:], "a later epoch": {later}, "a hole within": {entries[1], entries[1]}} {
		if err := r.Apply(batch...); err == nil {
			t.Errorf("%s: applied", name)
		}
		if at := r.Snapshot().Position.Seq; at != 1 || revoked(r, jti("c")) {
			t.Errorf("%s: at %d, want 1", name, at)
		}
	}
	if err := errors.Join(r.Apply(entries...), r.Apply(entries...), r.Apply(entries[1]), r.Apply()); err != nil {
		t.Errorf("Apply of what is applied: %v", err)
	}
	if at := r.Snapshot().Position.Seq; at != 3 || r.Revocations() != 3 {
		t.Errorf("at %d with %d revocations, want 3 with 3", at, r.Revocations())
	}
}

// TestFailingEntry: an entry that cannot be folded in is not journaled, nor counted, however often
// it is tried; those before it are, once.
func TestFailingEntry(t *testing.T) {
	l := bustest.NewLog()
	mustAppend(t, l, revocation("a"),
		&bus.KeyFact{KeyID: "k", Alg: "HS256", State: "active", Issuer: "i", Audience: "a"}, revocation("b"))
	var entries []bus.Entry
	errEnough := errors.New("enough")
	l.Follow(t.Context(), bus.Cursor{}, func(es []bus.Entry, _ uint64) error { entries = es; return errEnough }) //nolint:errcheck // it is errEnough
	var journaled []uint64
	away := errors.New("the vault is away")
	opened := away
	r := replica.New(replica.Config{
		Open: func(*bus.KeyFact) (*keyring.Key, error) { return nil, opened },
		Journal: func(es []bus.Entry) error {
			for _, en := range es {
				journaled = append(journaled, en.Seq)
			}
			return nil
		},
	})
	for range 3 {
		if err := r.Apply(entries...); !errors.Is(err, away) {
			t.Fatalf("Apply: got %v, want %v", err, away)
		}
	}
	if r.Snapshot().Position.Seq != 1 || fmt.Sprint(journaled) != "[1]" {
		t.Errorf("at %d, journaled %v, want 1 and [1]", r.Snapshot().Position.Seq, journaled)
	}
	opened = replica.ErrNotHeld
	if err := r.Apply(entries...); err != nil || r.Snapshot().Position.Seq != 3 || fmt.Sprint(journaled) != "[1 2 3]" {
		t.Errorf("Apply later: %v, at %d, journaled %v", err, r.Snapshot().Position.Seq, journaled)
	}
}

// TestJournalBeforeCounting: what could not be journaled does not count as applied.
func TestJournalBeforeCounting(t *testing.T) {
	full := errors.New("no space")
	failing := full
	r := replica.New(replica.Config{Journal: func([]bus.Entry) error { return failing }})
	l := bustest.NewLog()
	mustAppend(t, l, keyFact(t, "k", keyring.Active), revocation("a"), keyFact(t, "k", keyring.Retiring))
	var entries []bus.Entry
	errEnough := errors.New("enough")
	l.Follow(t.Context(), bus.Cursor{}, func(es []bus.Entry, _ uint64) error { entries = es; return errEnough }) //nolint:errcheck // it is errEnough
	if err := r.Apply(entries...); !errors.Is(err, full) || r.Snapshot().Position.Seq != 0 || len(r.Keys()) != 0 {
		t.Errorf("Apply: %v, at %d with %d keys", err, r.Snapshot().Position.Seq, len(r.Keys()))
	}
	failing = nil
	if err := r.Apply(entries...); err != nil {
		t.Fatal(err)
	}
	if k, ok := r.Snapshot().Ring.Record("k"); !ok || k.State != keyring.Retiring || !revoked(r, jti("a")) {
		t.Errorf("after it could be journaled: got %+v", k)
	}
}
