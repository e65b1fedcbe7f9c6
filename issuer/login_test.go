package issuer_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

func TestLoginClaims(t *testing.T) {
	b := newBus()
	ti := newIssuer(t, b)
	ti.steps(t)
	user, err := ti.AddUser(t.Context(), issuer.NewUser{ID: "user-42", Username: "alice", Password: "wonderland", Scope: "read write", Roles: []string{"staff"}})
	if err != nil {
		t.Fatal(err)
	}
	tokens := login(t, ti)
	if err := verify(ti.replica, tokens.Access); err != nil {
		t.Fatalf("verify(access): got %v, want nil", err)
	}
	access, refresh := claims(t, tokens.Access), claims(t, tokens.Refresh)
	for name, want := range map[string]any{
		"iss": issuerURL, "sub": user.ID, "aud": issuerURL, "client_id": "sidekey", "scope": "read write",
		"user_id": "user-42", "sid": tokens.SessionID, "session_seq": float64(ti.position().Seq),
	} {
		if access[name] != want || refresh[name] != want {
			t.Errorf("claim %q: got %v (access) and %v (refresh), want %v", name, access[name], refresh[name], want)
		}
	}
	for name, want := range map[string][2]any{
		"token_type": {"access", "refresh"}, "gen": {nil, 1.0},
	} {
		if access[name] != want[0] || refresh[name] != want[1] {
			t.Errorf("claim %q: got %v and %v, want %v", name, access[name], refresh[name], want)
		}
	}
	if roles, _ := access["roles"].([]any); len(roles) != 1 || roles[0] != "staff" || refresh["roles"] != nil {
		t.Errorf("roles: got %v (access) and %v (refresh), want [staff] and none", access["roles"], refresh["roles"])
	}
	if access["jti"] == refresh["jti"] || access["auth_time"] != access["iat"] || access["exp"].(float64)-access["iat"].(float64) != 900 {
		t.Errorf("times and ids: got %v", access)
	}
	if a, r := part(t, tokens.Access, 0), part(t, tokens.Refresh, 0); a["typ"] != "at+jwt" || r["typ"] != "rt+jwt" || r["alg"] != "HS256" || a["kid"] == r["kid"] {
		t.Errorf("headers: got %v and %v", a, r)
	}
}

// hashes is how many password hashes were computed.
func hashes(t *testing.T, reg *prometheus.Registry) uint64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "sidekey_password_hash_seconds" {
			return histogram(f).GetSampleCount()
		}
	}
	t.Fatal("no sidekey_password_hash_seconds")
	return 0
}

func histogram(f *dto.MetricFamily) *dto.Histogram { return f.GetMetric()[0].GetHistogram() }

func TestLoginRefusedAlike(t *testing.T) {
	reg := prometheus.NewRegistry()
	ti := start(t, newBus(), func(_ *issuer.Config, p *issuer.Parts) { p.Registry = reg })
	yes := true
	if _, err := ti.AddUser(t.Context(), issuer.NewUser{Username: "bob", Password: "builder", Disabled: yes}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]issuer.Credentials{
		"wrong password":     {Username: "alice", Password: "looking-glass"},
		"empty password":     {Username: "alice"},
		"unknown user":       {Username: "mallory", Password: "wonderland"},
		"no possible name":   {Username: strings.Repeat("x", 300) + "\x00", Password: "wonderland"},
		"disabled":           {Username: "bob", Password: "builder"},
		"very long":          {Username: "alice", Password: strings.Repeat("x", 1025)},
		"upper case":         {Username: "Alice", Password: "wonderland"},
		"name of a wildcard": {Username: "*", Password: "wonderland"},
	} {
		before := hashes(t, reg)
		_, err := ti.Login(t.Context(), c)
		if !errors.Is(err, issuer.ErrCredentials) || err.Error() != issuer.ErrCredentials.Error() {
			t.Errorf("Login(%s): got %v, want ErrCredentials and nothing more", name, err)
		}
		if n := hashes(t, reg) - before; n != 1 {
			t.Errorf("Login(%s): computed %d hashes, want 1", name, n)
		}
	}
}

func TestLoginNeedsKeyAndLog(t *testing.T) {
	ti := newIssuer(t, newBus())
	_, err := ti.Login(t.Context(), issuer.Credentials{Username: "alice", Password: "wonderland"})
	if !errors.Is(err, issuer.ErrUnavailable) {
		t.Errorf("Login without an active key: got %v, want ErrUnavailable", err)
	}
	own := &lease.Lease{Begin: lease.SystemClock(), Length: time.Hour}
	held := own
	ti = start(t, newBus(), func(_ *issuer.Config, p *issuer.Parts) { p.Lease = func() *lease.Lease { return held } })
	tokens := login(t, ti)
	held = nil
	if _, err := ti.Refresh(t.Context(), tokens.Refresh); !errors.Is(err, issuer.ErrUnavailable) {
		t.Errorf("Refresh by an issuer that is not fresh: got %v, want ErrUnavailable", err)
	}
	held = own
	refresh(t, ti, tokens.Refresh)
}

func TestMaxSessionsCountsLiveOnes(t *testing.T) {
	ti := start(t, newBus(), func(c *issuer.Config, _ *issuer.Parts) { c.MaxSessions = 2 })
	first := login(t, ti)
	login(t, ti)
	_, err := ti.Login(t.Context(), issuer.Credentials{Username: "alice", Password: "wonderland"})
	if !errors.Is(err, issuer.ErrTooManySessions) {
		t.Errorf("third Login: got %v, want ErrTooManySessions", err)
	}
	if err := ti.EndWith(t.Context(), first.Refresh); err != nil {
		t.Fatal(err)
	}
	login(t, ti)
}

// unread is a bucket whose records may not be read many at once.
type unread struct{ issuer.Bucket }

func (unread) List(context.Context, string) ([]bus.Record, error) {
	return nil, errors.New("all records are read")
}
func (unread) Count(context.Context, string) (int, error) {
	return 0, errors.New("all records are read")
}

// TestLoginReadsNoOtherSessions: what a login costs does not grow with how many sessions the user has.
func TestLoginReadsNoOtherSessions(t *testing.T) {
	ti := start(t, newBus(), func(c *issuer.Config, p *issuer.Parts) { c.MaxSessions, p.Sessions = 3, unread{p.Sessions} })
	for range 3 {
		login(t, ti)
	}
	_, err := ti.Login(t.Context(), issuer.Credentials{Username: "alice", Password: "wonderland"})
	if !errors.Is(err, issuer.ErrUnavailable) || !strings.Contains(err.Error(), "all records are read") {
		t.Errorf("Login at the limit: got %v, want an error, for there the sessions have to be read", err)
	}
}

func TestLoginLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ti := start(t, newBus(), func(c *issuer.Config, _ *issuer.Parts) { c.LoginLimit = 2 })
		try := func(name, address string) error {
			_, err := ti.Login(t.Context(), issuer.Credentials{Username: name, Password: "wrong", Address: address})
			return err
		}
		var busy *issuer.BusyError
		for _, want := range []bool{false, false, true} {
			if err := try("alice", "127.0.0.1"); errors.As(err, &busy) != want {
				t.Errorf("Login: got %v, want limited: %v", err, want)
			}
		}
		if !busy.Limited || busy.RetryAfter <= 0 || busy.RetryAfter > 31*time.Second {
			t.Errorf("BusyError: got %+v, want Limited with the time to wait", busy)
		}
		time.Sleep(31 * time.Second)
		if err := try("alice", "127.0.0.1"); !errors.Is(err, issuer.ErrCredentials) {
			t.Errorf("Login after the wait: got %v, want ErrCredentials", err)
		}
		for n := range 21 {
			err := try(strings.Repeat("x", n+1), "2001:db8::"+string(rune('1'+n%9)))
			if errors.As(err, &busy) != (n == 20) {
				t.Errorf("Login %d of one network: got %v", n, err)
			}
		}
		if err := try("another", "2001:db9::1"); !errors.Is(err, issuer.ErrCredentials) {
			t.Errorf("Login from another network: got %v, want ErrCredentials", err)
		}
	})
}

// noUsers is a bus that is away.
type noUsers struct{ issuer.Bucket }

func (noUsers) Get(context.Context, string) (bus.Record, error) {
	return bus.Record{}, errors.New("timeout")
}

// TestNamesWhileTheBusIsAway: people type passwords into the field for the name, so it is in no error.
func TestNamesWhileTheBusIsAway(t *testing.T) {
	b := newBus()
	start(t, b)
	ti := newIssuer(t, b, func(_ *issuer.Config, p *issuer.Parts) { p.Users = noUsers{p.Users} })
	ti.steps(t)
	_, err := ti.Login(t.Context(), issuer.Credentials{Username: "my-secret", Password: "x"})
	if !errors.Is(err, issuer.ErrUnavailable) || strings.Contains(err.Error(), "my-secret") {
		t.Errorf("Login while the bus is away: got %v, want ErrUnavailable without the name", err)
	}
}

func TestLoginFloodIsSentAway(t *testing.T) {
	ti := start(t, newBus(), func(c *issuer.Config, _ *issuer.Parts) { c.Hash = issuer.Hash{Memory: 8 << 10, Time: 2, Threads: 1} })
	var wg sync.WaitGroup
	var mu sync.Mutex
	away := 0
	for range 400 {
		wg.Go(func() {
			_, err := ti.Login(context.Background(), issuer.Credentials{Username: "alice", Password: "wrong"})
			var busy *issuer.BusyError
			if errors.As(err, &busy) {
				if busy.Limited || busy.RetryAfter <= 0 {
					t.Errorf("BusyError: got %+v, want the whole issuer's, with a time", busy)
				}
				mu.Lock()
				away++
				mu.Unlock()
			} else if !errors.Is(err, issuer.ErrCredentials) {
				t.Errorf("Login: got %v", err)
			}
		})
	}
	wg.Wait()
	if away == 0 {
		t.Error("400 logins at once: none was sent away, want a bounded queue")
	}
	login(t, ti)
}

// userRecord changes alice's stored record by hand.
func editAlice(t *testing.T, b *testBus, edit func(map[string]any)) {
	t.Helper()
	r, err := b.users.Get(t.Context(), bus.Name("alice"))
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(r.Value, &m); err != nil {
		t.Fatal(err)
	}
	edit(m)
	value, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.users.Update(t.Context(), r.Name, value, r.Revision); err != nil {
		t.Fatal(err)
	}
}

func TestStoredHashIsBounded(t *testing.T) {
	for _, phc := range []string{
		"", "plain", "$argon2id$v=19$m=99999999,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA", "$argon2id$v=19$m=8,t=4000000,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA",
		"$argon2id$v=19$m=8,t=1,p=200$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA", "$argon2id$v=19$m=8,t=1,p=0$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA", "$argon2i$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA",
		"$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$", "$argon2id$v=19$m=8,t=1,p=1$!$aGFzaGhhc2hoYXNoaGFzaA", "$argon2id$v=19$t=1,m=8,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA",
	} {
		b := newBus()
		ti := start(t, b)
		editAlice(t, b, func(m map[string]any) { m["password"] = phc })
		_, err := ti.Login(t.Context(), issuer.Credentials{Username: "alice", Password: "wonderland"})
		if err == nil || phc != "" && strings.Contains(err.Error(), phc) {
			t.Errorf("Login with the stored hash %q: got %v, want an error that does not show it", phc, err)
		}
	}
}

func TestRehashOnNewCost(t *testing.T) {
	b := newBus()
	start(t, b)
	dearer := newIssuer(t, b, func(c *issuer.Config, _ *issuer.Parts) { c.Hash = issuer.Hash{Memory: 16, Time: 2, Threads: 1} })
	login(t, dearer)
	r, err := b.users.Get(t.Context(), bus.Name("alice"))
	if err != nil || !strings.Contains(string(r.Value), "m=16,t=2,p=1") {
		t.Errorf("the stored hash: got %s (%v), want the new cost", r.Value, err)
	}
	login(t, dearer)
}

// oldCopy is a bucket whose reads come from a follower that stands still.
type oldCopy struct {
	*bustest.Bucket
	old bus.Record
	use *bool
}

func (o oldCopy) Get(ctx context.Context, name string) (bus.Record, error) {
	if *o.use && name == o.old.Name {
		*o.use = false // it catches up after one read
		return o.old, nil
	}
	return o.Bucket.Get(ctx, name)
}

func TestLoginNeverTrustsAnOldRecord(t *testing.T) {
	b := newBus()
	ti := start(t, b)
	old, err := b.users.Get(t.Context(), bus.Name("alice"))
	if err != nil {
		t.Fatal(err)
	}
	password := "looking-glass"
	if _, err := ti.ChangeUser(t.Context(), "alice", issuer.UserChange{Password: &password}); err != nil {
		t.Fatal(err)
	}
	stale := true
	late := newIssuer(t, b, func(_ *issuer.Config, p *issuer.Parts) { p.Users = oldCopy{&b.users, old, &stale} })
	_, err = late.Login(t.Context(), issuer.Credentials{Username: "alice", Password: "wonderland"})
	if !errors.Is(err, issuer.ErrCredentials) || stale {
		t.Errorf("Login with the old password, from an old copy: got %v, want ErrCredentials", err)
	}
}

func TestPasswordChangeEndsSessions(t *testing.T) {
	b := newBus()
	ti := start(t, b)
	before := login(t, ti)
	password := "looking-glass"
	if _, err := ti.ChangeUser(t.Context(), "alice", issuer.UserChange{Password: &password}); err != nil {
		t.Fatal(err)
	}
	refused(t, "verify(access from before)", verify(ti.replica, before.Access), keyring.Revoked)
	_, err := ti.Refresh(t.Context(), before.Refresh)
	refused(t, "Refresh(from before)", err, keyring.Revoked)
	after, err := ti.Login(t.Context(), issuer.Credentials{Username: "alice", Password: password})
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(ti.replica, after.Access); err != nil {
		t.Errorf("verify(access from after, in the same second): got %v, want nil", err)
	}
	refresh(t, ti, after.Refresh)
}

func TestDisableAndDelete(t *testing.T) {
	b := newBus()
	ti := start(t, b)
	tokens := login(t, ti)
	yes, no := true, false
	if _, err := ti.ChangeUser(t.Context(), "alice", issuer.UserChange{Disabled: &yes}); err != nil {
		t.Fatal(err)
	}
	refused(t, "verify(access of a disabled user)", verify(ti.replica, tokens.Access), keyring.Revoked)
	if _, err := ti.ChangeUser(t.Context(), "alice", issuer.UserChange{Disabled: &no}); err != nil {
		t.Fatal(err)
	}
	tokens = login(t, ti)
	// Disabled behind the log's back: the record alone refuses too.
	editAlice(t, b, func(m map[string]any) { m["disabled"] = true })
	if _, err := ti.Refresh(t.Context(), tokens.Refresh); !errors.Is(err, issuer.ErrNoAccount) {
		t.Errorf("Refresh of a disabled user: got %v, want ErrNoAccount", err)
	}
	if err := ti.DeleteUser(t.Context(), "alice"); err != nil {
		t.Fatal(err)
	}
	refused(t, "verify(access of a deleted user)", verify(ti.replica, tokens.Access), keyring.Revoked)
	if err := ti.DeleteUser(t.Context(), "alice"); !errors.Is(err, issuer.ErrNotFound) {
		t.Errorf("DeleteUser again: got %v, want ErrNotFound", err)
	}
	addAlice(t, ti)
	if _, err := ti.Refresh(t.Context(), tokens.Refresh); !errors.Is(err, issuer.ErrNoAccount) {
		t.Errorf("Refresh for another user of that name: got %v, want ErrNoAccount", err)
	}
}

func TestUserBounds(t *testing.T) {
	ti := start(t, newBus())
	id := "taken"
	if _, err := ti.AddUser(t.Context(), issuer.NewUser{ID: id, Username: "first", Password: "x"}); err != nil {
		t.Fatal(err)
	}
	ok := issuer.NewUser{Username: "bob", Password: "builder"}
	for field, edit := range map[string]func(*issuer.NewUser){
		"username":   func(u *issuer.NewUser) { u.Username = "bob\n" },
		"password":   func(u *issuer.NewUser) { u.Password = " builder" },
		"scope":      func(u *issuer.NewUser) { u.Scope = "read  write" },
		"roles":      func(u *issuer.NewUser) { u.Roles = []string{"a,b"} },
		"email":      func(u *issuer.NewUser) { u.Email = "a\x00b" },
		"attributes": func(u *issuer.NewUser) { u.Attributes = json.RawMessage(`[1]`) },
		"id":         func(u *issuer.NewUser) { u.ID = strings.Repeat("x", 256) },
	} {
		u := ok
		edit(&u)
		_, err := ti.AddUser(t.Context(), u)
		var input *issuer.InputError
		if !errors.As(err, &input) || input.Field != field {
			t.Errorf("AddUser(bad %s): got %v, want an InputError of it", field, err)
		}
	}
	if _, err := ti.AddUser(t.Context(), issuer.NewUser{ID: id, Username: "second", Password: "x"}); !errors.Is(err, issuer.ErrExists) {
		t.Errorf("AddUser(id taken): got %v, want ErrExists", err)
	}
	if _, err := ti.AddUser(t.Context(), issuer.NewUser{Username: "alice", Password: "x"}); !errors.Is(err, issuer.ErrExists) {
		t.Errorf("AddUser(name taken): got %v, want ErrExists", err)
	}
	users, err := ti.ListUsers(t.Context())
	if err != nil || len(users) != 2 || users[0].Username != "alice" || users[1].ID != id {
		t.Errorf("ListUsers: got %v, %v, want alice and first", users, err)
	}
}
