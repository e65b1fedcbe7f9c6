package issuer_test

import (
	"encoding/json"
	"errors"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/issuer"
)

// accepted tells whether an agent that has read what this issuer has would take a credential's text.
func (ti *testIssuer) accepted(text string) bool {
	hash := bus.HashCredential([]byte(text))
	c := ti.replica.Credential(&hash)
	return c != nil && !ti.replica.CredentialRevoked(c) && (c.ExpiresAt == 0 || c.ExpiresAt > time.Now().Unix())
}

// accepts holds what an agent makes of a credential's text.
func accepts(t testing.TB, ti *testIssuer, what, text string, want bool) {
	t.Helper()
	if got := ti.accepted(text); got != want {
		t.Errorf("%s: accepted: got %v, want %v", what, got, want)
	}
}

func addCredential(t testing.TB, ti *testIssuer, n issuer.NewCredential) *issuer.MadeCredential {
	t.Helper()
	if n.Name == "" {
		n.Name = "ci"
	}
	if n.Username == "" && n.Subject == "" {
		n.Username = "alice"
	}
	c, err := ti.AddCredential(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func credentialState(t testing.TB, ti *testIssuer, id string) issuer.CredentialState {
	t.Helper()
	c, err := ti.Credential(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return c.State
}

func ptr[T any](v T) *T { return &v }

// TestCredentialText holds what docs/api.md tells the makers of scanners.
func TestCredentialText(t *testing.T) {
	ti := start(t, newBus())
	form := regexp.MustCompile(`^sidekey_[0-9A-Za-z]{49}$`)
	seen := map[string]bool{}
	for range 50 {
		text := addCredential(t, ti, issuer.NewCredential{}).Secret
		if !form.MatchString(text) || !issuer.CheckCredentialText(text) || seen[text] {
			t.Fatalf("AddCredential: got a text of another form, or twice: %q", text)
		}
		seen[text] = true
		at := len("sidekey_") + len(seen)%49
		other := byte('0')
		if text[at] == '0' {
			other = '1'
		}
		if altered := text[:at] + string(other) + text[at+1:]; issuer.CheckCredentialText(altered) {
			t.Errorf("CheckCredentialText(one character changed at %d): got true", at)
		}
	}
	for _, text := range []string{"", "sidekey_", "sidekey_" + strings.Repeat("0", 48), "sidekey_" + strings.Repeat("0", 48) + "-", "Sidekey_" + strings.Repeat("0", 49)} {
		if issuer.CheckCredentialText(text) {
			t.Errorf("CheckCredentialText(%q): got true", text)
		}
	}
	if !issuer.CheckCredentialText("sidekey_" + strings.Repeat("0", 43) + "2CZclj") {
		t.Error("CheckCredentialText(a known answer): got false")
	}
}

func TestCredentialShownOnce(t *testing.T) {
	b := newBus()
	ti := start(t, b)
	c := addCredential(t, ti, issuer.NewCredential{Name: "ci", Networks: []string{"10.0.0.0/8", "192.0.2.7"}, ExpiresIn: "1h", ClientID: "deploy"})
	accepts(t, ti, "a new one", c.Secret, true)
	hash := bus.HashCredential([]byte(c.Secret))
	held := ti.replica.Credential(&hash)
	if held.Scope != "read write" || !slices.Equal(held.Roles, []string{"staff"}) || held.ClientID != "deploy" || len(held.Networks) != 2 || held.Type != bus.APIKey {
		t.Errorf("the entry: got %+v, want the user's scope and roles, the client and two networks", held.Credential)
	}
	all, err := ti.ListCredentials(t.Context(), "", "alice")
	if err != nil || len(all) != 1 || all[0].ID != c.ID || all[0].State != issuer.CredentialActive {
		t.Errorf("ListCredentials: got %+v, %v, want the one", all, err)
	}
	recs, err := b.credentials.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	shown, _ := json.Marshal(all)
	for what, text := range map[string]string{"the list": string(shown), "the record": string(recs[0].Value), "the log of the process": ti.logged.String()} {
		if strings.Contains(text, c.Secret) || strings.Contains(text, c.Secret[8:]) {
			t.Errorf("%s holds the text", what)
		}
	}
}

func TestCredentialBounds(t *testing.T) {
	ti := start(t, newBus(), func(c *issuer.Config, _ *issuer.Parts) { c.MaxCredentials = 2 })
	for name, n := range map[string]issuer.NewCredential{
		"no name":              {Username: "alice"},
		"long name":            {Username: "alice", Name: strings.Repeat("x", 129)},
		"no user":              {Name: "a"},
		"two users":            {Name: "a", Username: "alice", Subject: "x"},
		"type":                 {Name: "a", Username: "alice", Type: "jwt"},
		"past":                 {Name: "a", Username: "alice", Expires: 1},
		"both expiries":        {Name: "a", Username: "alice", Expires: time.Now().Unix() + 100, ExpiresIn: "1h"},
		"expiry":               {Name: "a", Username: "alice", ExpiresIn: "-1h"},
		"scope of others":      {Name: "a", Username: "alice", Scope: ptr("read admin")},
		"malformed scope":      {Name: "a", Username: "alice", Scope: ptr("read  write")},
		"role of others":       {Name: "a", Username: "alice", Roles: &[]string{"root"}},
		"network":              {Name: "a", Username: "alice", Networks: []string{"10.0.0.0/33"}},
		"network's bits":       {Name: "a", Username: "alice", Networks: []string{"10.0.0.1/8"}},
		"IPv4 in IPv6":         {Name: "a", Username: "alice", Networks: []string{"::ffff:10.0.0.0/104"}},
		"too many networks":    {Name: "a", Username: "alice", Networks: make([]string, 65)},
		"long client":          {Name: "a", Username: "alice", ClientID: strings.Repeat("x", 1025)},
		"control in the name":  {Name: "a\x1b[2J", Username: "alice"},
		"blank around a name":  {Name: " a", Username: "alice"},
		"scope's control byte": {Name: "a", Username: "alice", Scope: ptr("re\x00ad")},
	} {
		if _, err := ti.AddCredential(t.Context(), n); !isInput(err) {
			t.Errorf("AddCredential(%s): got %v, want an InputError", name, err)
		}
	}
	for name, n := range map[string]issuer.NewCredential{"name": {Name: "a", Username: "nobody"}, "sub": {Name: "a", Subject: "nobody"}} {
		if _, err := ti.AddCredential(t.Context(), n); !errors.Is(err, issuer.ErrNotFound) {
			t.Errorf("AddCredential(unknown %s): got %v, want ErrNotFound", name, err)
		}
	}
	first := addCredential(t, ti, issuer.NewCredential{})
	addCredential(t, ti, issuer.NewCredential{})
	if _, err := ti.AddCredential(t.Context(), issuer.NewCredential{Name: "third", Username: "alice"}); !errors.Is(err, issuer.ErrTooManyCredentials) {
		t.Errorf("AddCredential beyond the limit: got %v, want ErrTooManyCredentials", err)
	}
	if _, err := ti.Revoke(t.Context(), issuer.Target{ID: first.ID}); err != nil {
		t.Fatal(err)
	}
	addCredential(t, ti, issuer.NewCredential{}) // a revoked one does not count
}

func TestCredentialRevoked(t *testing.T) {
	for name, target := range map[string]func(*issuer.MadeCredential) issuer.Target{
		"by its id":     func(c *issuer.MadeCredential) issuer.Target { return issuer.Target{ID: c.ID} },
		"by its text":   func(c *issuer.MadeCredential) issuer.Target { return issuer.Target{Token: c.Secret} },
		"by its user":   func(c *issuer.MadeCredential) issuer.Target { return issuer.Target{Subject: c.Subject} },
		"by its client": func(*issuer.MadeCredential) issuer.Target { return issuer.Target{ClientID: "deploy"} },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBus()
			ti := start(t, b)
			b.fleet.Join("web-1", nil)
			c, other := addCredential(t, ti, issuer.NewCredential{ClientID: "deploy"}), addCredential(t, ti, issuer.NewCredential{ClientID: "other"})
			receipt, err := ti.Revoke(t.Context(), target(c))
			if err != nil || receipt.Seq == 0 || len(receipt.Pending) != 1 {
				t.Fatalf("Revoke: got %+v, %v, want a receipt with web-1 pending", receipt, err)
			}
			accepts(t, ti, "the revoked one", c.Secret, false)
			accepts(t, ti, "the user's other one", other.Secret, name != "by its user")
			if ti.replica.CredentialByID(c.ID) != nil {
				t.Error("the log has it still: it would come back when the revocation is forgotten")
			}
			if got := credentialState(t, ti, c.ID); got != issuer.CredentialRevoked {
				t.Errorf("state: got %s, want revoked", got)
			}
			_, _, err = ti.ChangeCredential(t.Context(), c.ID, issuer.CredentialChange{Name: ptr("again")})
			if !isConflict(err) {
				t.Errorf("ChangeCredential(revoked): got %v, want a ConflictError", err)
			}
			accepts(t, ti, "the revoked one, after a change was tried", c.Secret, false)
		})
	}
}

func isConflict(err error) bool {
	var conflict *issuer.ConflictError
	return errors.As(err, &conflict)
}

func TestCredentialsFollowTheirUser(t *testing.T) {
	ti := start(t, newBus())
	key := addCredential(t, ti, issuer.NewCredential{})
	narrow := addCredential(t, ti, issuer.NewCredential{Scope: ptr("read"), Roles: &[]string{}})
	change := func(ch issuer.UserChange) {
		t.Helper()
		if _, err := ti.ChangeUser(t.Context(), "alice", ch); err != nil {
			t.Fatal(err)
		}
	}
	change(issuer.UserChange{Password: ptr("looking-glass")})
	accepts(t, ti, "after a new password", key.Secret, true)

	change(issuer.UserChange{Disabled: ptr(true)})
	accepts(t, ti, "of a disabled user", key.Secret, false)
	if got := credentialState(t, ti, key.ID); got != issuer.CredentialSuspended {
		t.Errorf("state of a disabled user's: got %s, want suspended", got)
	}
	if ti.replica.CredentialByID(key.ID) != nil {
		t.Error("the log has a disabled user's credential: it would come back when the cutoff is forgotten")
	}
	if _, err := ti.AddCredential(t.Context(), issuer.NewCredential{Name: "x", Username: "alice"}); !isConflict(err) {
		t.Errorf("AddCredential for a disabled user: got %v, want a ConflictError", err)
	}
	if _, _, err := ti.ChangeCredential(t.Context(), key.ID, issuer.CredentialChange{Name: ptr("renamed")}); err != nil {
		t.Fatal(err)
	}
	accepts(t, ti, "of a disabled user, changed", key.Secret, false)

	change(issuer.UserChange{Disabled: ptr(false)})
	accepts(t, ti, "of a user who is enabled again", key.Secret, true)

	change(issuer.UserChange{Scope: ptr("write"), Roles: &[]string{}})
	for id, want := range map[string]string{key.ID: "write", narrow.ID: ""} {
		held := ti.replica.CredentialByID(id)
		if held == nil || held.Scope != want || len(held.Roles) != 0 {
			t.Errorf("after the user lost scope and roles: got %+v, want the scope %q", held, want)
		}
	}
	change(issuer.UserChange{Scope: ptr("read write admin")})
	if got := ti.replica.CredentialByID(narrow.ID).Scope; got != "read" {
		t.Errorf("after the user got scope: a limited credential has %q, want its limit", got)
	}

	if err := ti.DeleteUser(t.Context(), "alice"); err != nil {
		t.Fatal(err)
	}
	accepts(t, ti, "of a deleted user", key.Secret, false)
	if got := credentialState(t, ti, key.ID); got != issuer.CredentialRevoked || len(ti.replica.ListCredentials()) != 0 {
		t.Errorf("of a deleted user: got %s and %d in the log, want revoked and none", got, len(ti.replica.ListCredentials()))
	}
}

func TestChangeCredential(t *testing.T) {
	ti := start(t, newBus())
	c := addCredential(t, ti, issuer.NewCredential{Scope: ptr("read")})
	for name, ch := range map[string]issuer.CredentialChange{
		"name": {Name: ptr("")}, "expiry": {Expires: ptr(int64(1))}, "expiry in": {ExpiresIn: ptr("soon")},
		"network": {Networks: &[]string{"x"}}, "wider scope": {Scope: ptr("read write")},
	} {
		if _, _, err := ti.ChangeCredential(t.Context(), c.ID, ch); !isInput(err) {
			t.Errorf("ChangeCredential(%s): got %v, want an InputError", name, err)
		}
	}
	exp := time.Now().Add(time.Hour).Unix()
	got, pos, err := ti.ChangeCredential(t.Context(), c.ID, issuer.CredentialChange{Name: ptr("new"), Expires: &exp, Networks: &[]string{"10.0.0.0/8"}, Scope: ptr("")})
	if err != nil || pos.Seq == 0 || got.Name != "new" {
		t.Fatalf("ChangeCredential: got %+v at %v, %v", got, pos, err)
	}
	held := ti.replica.CredentialByID(c.ID)
	if held.ExpiresAt != exp || len(held.Networks) != 1 || held.Scope != "" {
		t.Errorf("the entry: got %+v, want what was changed", held.Credential)
	}
	accepts(t, ti, "a changed one", c.Secret, true)
	cut(t, ti, c.Subject)
	if _, _, err := ti.ChangeCredential(t.Context(), c.ID, issuer.CredentialChange{Name: ptr("newer")}); !isConflict(err) {
		t.Errorf("ChangeCredential(cut off): got %v, want a ConflictError", err)
	}
	if _, _, err := ti.ChangeCredential(t.Context(), "cred_unheard", issuer.CredentialChange{}); !errors.Is(err, issuer.ErrNotFound) {
		t.Errorf("ChangeCredential(unknown): got %v, want ErrNotFound", err)
	}
}

func TestRotateCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		ti := start(t, b)
		old := addCredential(t, ti, issuer.NewCredential{Name: "ci", Scope: ptr("read"), Networks: []string{"10.0.0.0/8"}})
		made, was, _, err := ti.RotateCredential(t.Context(), old.ID, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if made.Replaces != old.ID || was.ReplacedBy != made.ID || made.Name != "ci" || made.Scope != "read" || len(made.Networks) != 1 || made.Secret == old.Secret {
			t.Errorf("RotateCredential: got %+v and %+v, want two that name each other, with the same rights", made.Credential, was)
		}
		accepts(t, ti, "the old one within the overlap", old.Secret, true)
		accepts(t, ti, "the new one", made.Secret, true)
		if _, _, _, err := ti.RotateCredential(t.Context(), old.ID, time.Hour); !isConflict(err) {
			t.Errorf("RotateCredential(the old one again): got %v, want a ConflictError", err)
		}
		time.Sleep(time.Hour + time.Second)
		accepts(t, ti, "the old one after the overlap", old.Secret, false)
		accepts(t, ti, "the new one after the overlap", made.Secret, true)
		if got := credentialState(t, ti, old.ID); got != issuer.CredentialExpired {
			t.Errorf("the old one: got %s, want expired", got)
		}
		next, _, pos, err := ti.RotateCredential(t.Context(), made.ID, 0)
		if err != nil || pos.Seq == 0 {
			t.Fatalf("RotateCredential without overlap: got %v, %v, want where the old one's end stands", pos, err)
		}
		accepts(t, ti, "the old one without overlap", made.Secret, false)
		accepts(t, ti, "the new one without overlap", next.Secret, true)
		if _, _, _, err := ti.RotateCredential(t.Context(), next.ID, -1); !isInput(err) {
			t.Errorf("RotateCredential(overlap -1): got %v, want an InputError", err)
		}
	})
}

// TestCredentialFaults: whatever write fails, what is left is known to a record, or nobody, after a sweep.
func TestCredentialFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, stored := range map[string]bool{"not stored": false, "stored though the answer was lost": true} {
			b := newBus()
			ti := start(t, b)
			kept := addCredential(t, ti, issuer.NewCredential{})
			b.log.Fail(bustest.Failure{Err: errLost, Stored: stored}, bustest.Failure{Err: errLost}) // and what takes it back
			if _, err := ti.AddCredential(t.Context(), issuer.NewCredential{Name: "x", Username: "alice"}); !errors.Is(err, issuer.ErrUnavailable) {
				t.Errorf("%s: AddCredential: got %v, want ErrUnavailable", name, err)
			}
			doomed := addCredential(t, ti, issuer.NewCredential{Name: "doomed"})
			b.credentials.Fail(bustest.Failure{Err: errLost, Stored: stored})
			if _, err := ti.Revoke(t.Context(), issuer.Target{ID: doomed.ID}); err == nil && !stored {
				t.Errorf("%s: Revoke: got nil, want the record's error", name)
			}
			accepts(t, ti, name+": one whose record could not be closed", doomed.Secret, false)
			time.Sleep(24 * time.Hour)
			if err := ti.SweepCredentials(t.Context()); err != nil {
				t.Fatal(err)
			}
			accepts(t, ti, name+": a day later", doomed.Secret, false)
			accepts(t, ti, name+": the one that nothing happened to", kept.Secret, true)
			all, err := ti.ListCredentials(t.Context(), "", "alice")
			if err != nil {
				t.Fatal(err)
			}
			inLog := 0
			for _, c := range all {
				if held := ti.replica.CredentialByID(c.ID); (held != nil) != (c.State == issuer.CredentialActive) {
					t.Errorf("%s: %s %q: in the log: got %v", name, c.State, c.Name, held != nil)
				} else if held != nil {
					inLog++
				}
			}
			if n := len(ti.replica.ListCredentials()); n != inLog {
				t.Errorf("%s: %d in the log, of which records know %d", name, n, inLog)
			}
		}
	})
}

// TestSweepMendsCredentials: what a crash between two writes leaves is mended to the stricter of both.
func TestSweepMendsCredentials(t *testing.T) {
	for name, tc := range map[string]struct {
		crash func(*testing.T, *testIssuer, *issuer.MadeCredential) // what was written last
		want  issuer.CredentialState
		held  bool
	}{
		"entry without a record": {func(t *testing.T, ti *testIssuer, c *issuer.MadeCredential) {
			rec, err := ti.bus.credentials.Get(t.Context(), bus.Name(c.Subject, c.ID))
			if err != nil {
				t.Fatal(err)
			}
			if err := ti.bus.credentials.Delete(t.Context(), rec.Name, rec.Revision); err != nil {
				t.Fatal(err)
			}
		}, issuer.CredentialRevoked, false},
		"record without an entry": {func(t *testing.T, ti *testIssuer, c *issuer.MadeCredential) {
			withdraw(t, ti, c)
		}, issuer.CredentialRevoked, false},
		"cutoff of a user who stays": {func(t *testing.T, ti *testIssuer, c *issuer.MadeCredential) {
			cut(t, ti, c.Subject)
		}, issuer.CredentialRevoked, false},
		"disabled, and no further": {func(t *testing.T, ti *testIssuer, c *issuer.MadeCredential) {
			ti.bus.credentials.Fail(bustest.Failure{Err: errLost})
			if _, err := ti.ChangeUser(t.Context(), "alice", issuer.UserChange{Disabled: ptr(true)}); !errors.Is(err, issuer.ErrUnavailable) {
				t.Errorf("ChangeUser: got %v, want ErrUnavailable", err)
			}
		}, issuer.CredentialSuspended, false},
		"deleted, and no further": {func(t *testing.T, ti *testIssuer, c *issuer.MadeCredential) {
			rec, err := ti.bus.users.Get(t.Context(), bus.Name("alice"))
			if err != nil {
				t.Fatal(err)
			}
			if err := ti.bus.users.Delete(t.Context(), rec.Name, rec.Revision); err != nil {
				t.Fatal(err)
			}
		}, issuer.CredentialRevoked, false},
		"enabled, and no further": {func(t *testing.T, ti *testIssuer, c *issuer.MadeCredential) {
			if _, err := ti.ChangeUser(t.Context(), "alice", issuer.UserChange{Disabled: ptr(true)}); err != nil {
				t.Fatal(err)
			}
			ti.bus.credentials.Fail(bustest.Failure{Err: errLost})
			if _, err := ti.ChangeUser(t.Context(), "alice", issuer.UserChange{Disabled: ptr(false)}); !errors.Is(err, issuer.ErrUnavailable) {
				t.Errorf("ChangeUser: got %v, want ErrUnavailable", err)
			}
		}, issuer.CredentialActive, true},
		"nothing": {func(*testing.T, *testIssuer, *issuer.MadeCredential) {}, issuer.CredentialActive, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ti := start(t, newBus())
				c := addCredential(t, ti, issuer.NewCredential{})
				tc.crash(t, ti, c)
				// A sweep at once leaves alone what may be under way, but for users that are gone.
				time.Sleep(2 * time.Hour)
				for range 2 { // the second finds nothing to do
					if err := ti.SweepCredentials(t.Context()); err != nil {
						t.Fatal(err)
					}
					time.Sleep(2 * time.Minute)
				}
				if got := credentialState(t, ti, c.ID); got != tc.want {
					t.Errorf("state: got %s, want %s", got, tc.want)
				}
				if got := ti.replica.CredentialByID(c.ID) != nil; got != tc.held {
					t.Errorf("in the log: got %v, want %v", got, tc.held)
				}
				accepts(t, ti, "after the sweep", c.Secret, tc.held)
				at := ti.position().Seq
				time.Sleep(time.Hour)
				if err := ti.SweepCredentials(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got := ti.position().Seq; got != at {
					t.Errorf("a further sweep wrote %d entries, want none", got-at)
				}
			})
		})
	}
}

func withdraw(t *testing.T, ti *testIssuer, c *issuer.MadeCredential) {
	t.Helper()
	gone := *ti.replica.CredentialByID(c.ID).Credential
	gone.Gone = true
	appended(t, ti, &gone)
}

func cut(t *testing.T, ti *testIssuer, sub string) {
	t.Helper()
	appended(t, ti, &bus.Revocation{Subject: sub, Time: time.Now().Unix(), ExpiresAt: time.Now().Add(168 * time.Hour).Unix()})
}

func appended(t *testing.T, ti *testIssuer, f bus.Fact) {
	t.Helper()
	pos, err := ti.bus.log.Append(t.Context(), f)
	if err == nil {
		err = ti.replica.Wait(t.Context(), pos.Seq)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestCredentialsRace: of changes, disabling and enabling at two issuers at once, the last word about the user holds.
func TestCredentialsRace(t *testing.T) {
	b := newBus()
	one, two := start(t, b), newIssuer(t, b)
	c := addCredential(t, one, issuer.NewCredential{})
	var wg sync.WaitGroup
	for n, ti := range []*testIssuer{one, two, one, two} {
		wg.Go(func() {
			for range 5 {
				_, _, _ = ti.ChangeCredential(t.Context(), c.ID, issuer.CredentialChange{Name: ptr("n" + string(rune('a'+n)))}) // it may lose
			}
		})
	}
	wg.Go(func() {
		for range 3 {
			for _, disabled := range []bool{true, false, true} {
				if _, err := two.ChangeUser(t.Context(), "alice", issuer.UserChange{Disabled: &disabled}); err != nil && !errors.Is(err, issuer.ErrUnavailable) {
					t.Errorf("ChangeUser: got %v", err)
				}
			}
		}
	})
	wg.Wait()
	user, err := one.User(t.Context(), "alice")
	if err != nil || !user.Disabled {
		t.Fatalf("User: got %+v, %v, want disabled", user, err)
	}
	pos, err := b.log.Append(t.Context(), &bus.Revocation{ID: "last", ExpiresAt: time.Now().Add(time.Hour).Unix()})
	if err != nil {
		t.Fatal(err)
	}
	if err := one.replica.Wait(t.Context(), pos.Seq); err != nil {
		t.Fatal(err)
	}
	accepts(t, one, "a disabled user's, after all changes", c.Secret, false)
}

func TestImportTokens(t *testing.T) {
	ti := start(t, newBus())
	alice, err := ti.User(t.Context(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ti.AddUser(t.Context(), issuer.NewUser{ID: "42", Username: "bob", Password: "builder-of-things", Disabled: true}); err != nil {
		t.Fatal(err)
	}
	hexKey := func(b string) string { return strings.Repeat(b, 40) }
	rows := []issuer.ForeignToken{
		{Key: hexKey("a"), UserID: alice.ID, Created: 1600000000},
		{Key: hexKey("b"), UserID: alice.ID},
		{Key: hexKey("c"), UserID: "7"},
		{Key: hexKey("d"), UserID: "42"},
		{Key: "tiny-7", UserID: alice.ID},
		{Key: hexKey("e") + " ", UserID: alice.ID},
		{Key: hexKey("f"), UserID: alice.ID, Created: time.Now().Add(time.Hour).Unix()},
		{Key: "sidekey_" + strings.Repeat("0", 49), UserID: alice.ID},
		{Key: hexKey("1")},
	}
	for n, want := range [][]issuer.ImportResult{
		{"imported", "imported", "refused", "refused", "refused", "refused", "refused", "refused", "refused"},
		{"present", "present", "refused", "refused", "refused", "refused", "refused", "refused", "refused"},
		{"present", "revoked", "refused", "refused", "refused", "refused", "refused", "refused", "refused"},
	} {
		got, err := ti.ImportTokens(t.Context(), "", rows)
		if err != nil {
			t.Fatal(err)
		}
		for at := range want {
			if got[at].Result != want[at] {
				t.Errorf("import %d, token %d: got %+v, want %s", n, at, got[at], want[at])
			}
			if want[at] == issuer.ImportRefused && (got[at].Detail == "" || strings.Contains(got[at].Detail, rows[at].Key)) && rows[at].Key != "" {
				t.Errorf("import %d, token %d: the detail is %q, want the reason without the token", n, at, got[at].Detail)
			}
		}
		if n == 1 {
			if _, err := ti.Revoke(t.Context(), issuer.Target{Token: hexKey("b")}); err != nil {
				t.Fatal(err)
			}
		}
	}
	accepts(t, ti, "an imported token", hexKey("a"), true)
	accepts(t, ti, "an imported token that was revoked", hexKey("b"), false)
	accepts(t, ti, "a token of nobody", hexKey("c"), false)
	hash := bus.HashCredential([]byte(hexKey("a")))
	if held := ti.replica.Credential(&hash); held.IssuedAt != 1600000000 || held.Type != bus.Opaque || held.Scope != "read write" {
		t.Errorf("the entry: got %+v, want the token's own time, its type and the user's scope", held.Credential)
	}
	if strings.Contains(ti.logged.String(), hexKey("a")) {
		t.Error("the log of the process holds a token")
	}
}

func TestCredentialUses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ti := start(t, newBus())
		c := addCredential(t, ti, issuer.NewCredential{})
		ti.run(t)
		lastUsed := func() (int64, string) {
			t.Helper()
			got, err := ti.Credential(t.Context(), c.ID)
			if err != nil {
				t.Fatal(err)
			}
			return got.LastUsed, got.LastAgent
		}
		now := time.Now().Unix()
		ti.NoteUses("web-1", map[string]int64{c.ID: now - 5, "invented": now})
		ti.NoteUses("web-2", map[string]int64{c.ID: now - 10})
		time.Sleep(61 * time.Second)
		if at, agent := lastUsed(); at != now-5 || agent != "web-1" {
			t.Errorf("last used: got %d by %s, want %d by web-1", at, agent, now-5)
		}
		ti.NoteUses("web-2", map[string]int64{c.ID: now - 600})
		time.Sleep(61 * time.Second)
		if at, _ := lastUsed(); at != now-5 {
			t.Errorf("after an older use: got %d, want it as it was", at)
		}
		ti.NoteUses("web-2", map[string]int64{c.ID: now + 1e6})
		said := time.Now().Unix()
		time.Sleep(61 * time.Second)
		if at, agent := lastUsed(); at != said || agent != "web-2" {
			t.Errorf("after a use in the future: got %d by %s, want %d by web-2", at, agent, said)
		}
	})
}

func TestObtainToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ti := start(t, newBus())
		own := addCredential(t, ti, issuer.NewCredential{Type: bus.Opaque})
		if _, err := ti.ObtainToken(t.Context(), issuer.Credentials{Username: "alice", Password: "x"}, 0); !errors.Is(err, issuer.ErrCredentials) {
			t.Errorf("ObtainToken(wrong password): got %v, want ErrCredentials", err)
		}
		var texts []string
		for range 12 {
			time.Sleep(time.Minute)
			text, err := ti.ObtainToken(t.Context(), issuer.Credentials{Username: "alice", Password: "wonderland"}, 24*time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			texts = append(texts, text)
		}
		for at, text := range texts {
			accepts(t, ti, "a login's token", text, at >= 2) // ten are kept
		}
		accepts(t, ti, "a token that no login made", own.Secret, true)
		time.Sleep(25 * time.Hour)
		accepts(t, ti, "a login's token after its life", texts[11], false)
	})
}
