package issuer_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

// directory is users in memory, by name; broken answers for it where it is set.
type directory struct {
	mu     sync.Mutex
	users  map[string]issuer.Account
	broken error
}

func (d *directory) find(is func(issuer.Account) bool) (*issuer.Account, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, a := range d.users {
		if is(a) && d.broken == nil {
			return &a, nil
		}
	}
	if d.broken != nil {
		return nil, d.broken
	}
	return nil, issuer.ErrNotFound
}

func (d *directory) Lookup(_ context.Context, name string) (*issuer.Account, error) {
	return d.find(func(a issuer.Account) bool { return strings.EqualFold(a.Username, name) || a.Email == name })
}

func (d *directory) ByID(_ context.Context, id string) (*issuer.Account, error) {
	return d.find(func(a issuer.Account) bool { return a.ID == id })
}

// set changes one user, or adds it.
func (d *directory) set(name string, change func(*issuer.Account)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.users[name]
	change(&a)
	d.users[name] = a
}

func (d *directory) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.broken = err
}

func newDirectory() *directory {
	d := &directory{users: map[string]issuer.Account{}}
	for at, name := range []string{"anna", "ben"} {
		hash := djangoHashes["argon2i"]
		d.users[name] = issuer.Account{
			User:         issuer.User{ID: fmt.Sprint(at + 1), Username: name, Scope: "read", Roles: []string{"staff"}, Email: name + "@example.org"},
			PasswordHash: hash, Marker: hash,
		}
	}
	return d
}

// elsewhere makes an issuer whose users live in d.
func elsewhere(t *testing.T, d issuer.Directory) *testIssuer {
	t.Helper()
	ti := newIssuer(t, newBus(), func(_ *issuer.Config, p *issuer.Parts) { p.Directory = d })
	ti.steps(t)
	return ti
}

func loginAs(t *testing.T, ti *testIssuer, name string) *issuer.Tokens {
	t.Helper()
	tokens, err := ti.Login(t.Context(), issuer.Credentials{Username: name, Password: djangoPassword})
	if err != nil {
		t.Fatalf("logging in as %s: %v", name, err)
	}
	return tokens
}

func TestDirectoryLogin(t *testing.T) {
	d := newDirectory()
	ti := elsewhere(t, d)
	got := claims(t, loginAs(t, ti, "anna").Access)
	if got["sub"] != "1" || got["user_id"] != "1" || got["scope"] != "read" || fmt.Sprint(got["roles"]) != "[staff]" {
		t.Errorf("the access token says %v", got)
	}
	loginAs(t, ti, "ANNA") // a database may not tell upper and lower case apart
	loginAs(t, ti, "anna@example.org")
	d.set("disabled", func(a *issuer.Account) { *a = d.users["anna"]; a.ID, a.Username, a.Disabled = "3", "disabled", true })
	d.set("unusable", func(a *issuer.Account) {
		*a = d.users["anna"]
		a.ID, a.Username, a.PasswordHash = "4", "unusable", "!x"
	})
	d.set("clear", func(a *issuer.Account) {
		*a = d.users["anna"]
		a.ID, a.Username, a.PasswordHash = "5", "clear", djangoPassword
	})
	d.set("odd", func(a *issuer.Account) { *a = d.users["anna"]; a.ID, a.Username, a.Scope = "6", "odd", `a"b` })
	for name, password := range map[string]string{
		"anna": "wrong", "nobody": djangoPassword, "disabled": djangoPassword, "unusable": "!x", "clear": djangoPassword, "odd": djangoPassword,
		"": djangoPassword, "a\x00": djangoPassword, "ben": "",
	} {
		if _, err := ti.Login(t.Context(), issuer.Credentials{Username: name, Password: password}); !errors.Is(err, issuer.ErrCredentials) {
			t.Errorf("Login(%q, %q): got %v, want %v", name, password, err, issuer.ErrCredentials)
		}
	}
	d.fail(&issuer.RecordError{Problem: "two rows"})
	if _, err := ti.Login(t.Context(), issuer.Credentials{Username: "anna", Password: djangoPassword}); !errors.Is(err, issuer.ErrCredentials) {
		t.Errorf("two rows: got %v, want %v", err, issuer.ErrCredentials)
	}
	d.fail(errors.New("away"))
	if _, err := ti.Login(t.Context(), issuer.Credentials{Username: "anna", Password: djangoPassword}); !errors.Is(err, issuer.ErrUnavailable) {
		t.Errorf("away: got %v, want %v", err, issuer.ErrUnavailable)
	}
	for _, secret := range []string{djangoPassword, d.users["anna"].PasswordHash, "wrong"} {
		if strings.Contains(ti.logged.String(), secret) {
			t.Errorf("the log shows %q", secret)
		}
	}
	for _, said := range []string{"two rows", "cannot log in before there is another password", `it is of no known form`} {
		if !strings.Contains(ti.logged.String(), said) {
			t.Errorf("the log does not say %q", said)
		}
	}
}

// aliased finds anna under any name, as a collation can.
type aliased struct{ *directory }

func (d aliased) Lookup(ctx context.Context, _ string) (*issuer.Account, error) {
	return d.directory.Lookup(ctx, "anna")
}

// TestAliasesOfAName holds that a name which the limit takes for another is no way to try one user's passwords.
func TestAliasesOfAName(t *testing.T) {
	ti := elsewhere(t, aliased{newDirectory()})
	loginAs(t, ti, "Anna")
	for _, name := range []string{"ànna", "anna ", "anna%", "ann"} {
		if _, err := ti.Login(t.Context(), issuer.Credentials{Username: name, Password: djangoPassword}); !errors.Is(err, issuer.ErrCredentials) {
			t.Errorf("Login(%q): got %v, want %v", name, err, issuer.ErrCredentials)
		}
	}
}

// TestDirectoryChanges holds what a refresh does after something has changed in the directory, and what agents do then.
func TestDirectoryChanges(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*issuer.Account)
		denied bool // else there is no account
		other  bool // whether a session that began with the same password is over at once too
	}{
		"disabled":     {change: func(a *issuer.Account) { a.Disabled = true }, other: true},
		"gone":         {change: func(a *issuer.Account) { a.ID = "77" }, other: true},
		"new password": {change: func(a *issuer.Account) { a.Marker = "another" }, denied: true},
		"no password":  {change: func(a *issuer.Account) { a.Marker = "" }, denied: true},
	} {
		d := newDirectory()
		ti := elsewhere(t, d)
		first, second, bystander := loginAs(t, ti, "anna"), loginAs(t, ti, "anna"), loginAs(t, ti, "ben")
		first = refresh(t, ti, first.Refresh)
		d.set("anna", test.change)
		_, err := ti.Refresh(t.Context(), first.Refresh)
		if test.denied {
			refused(t, name, err, keyring.Revoked)
		} else if !errors.Is(err, issuer.ErrNoAccount) {
			t.Errorf("%s: got %v, want %v", name, err, issuer.ErrNoAccount)
		}
		if _, err = ti.Refresh(t.Context(), first.Refresh); test.denied {
			refused(t, name+", again", err, keyring.Revoked)
		} else if !errors.Is(err, issuer.ErrNoAccount) {
			t.Errorf("%s, again: got %v, want %v", name, err, issuer.ErrNoAccount)
		}
		refused(t, name+": the access token at an agent", verify(ti.replica, first.Access), keyring.Revoked)
		err = verify(ti.replica, second.Access)
		if got := keyring.ReasonOf(err) == keyring.Revoked; got != test.other {
			t.Errorf("%s: the other session's access token: got %v", name, err)
		}
		if _, err := ti.Refresh(t.Context(), second.Refresh); err == nil {
			t.Errorf("%s: the other session's refresh went through", name)
		}
		refresh(t, ti, bystander.Refresh)
		if err := verify(ti.replica, bystander.Access); err != nil {
			t.Errorf("%s: another user's token: %v", name, err)
		}
	}
}

// TestDirectoryAway holds that nothing is ended while the directory cannot be asked, or gives what cannot be believed.
func TestDirectoryAway(t *testing.T) {
	for _, broken := range []error{errors.New("away"), &issuer.RecordError{Problem: "two rows"}, context.DeadlineExceeded} {
		d := newDirectory()
		ti := elsewhere(t, d)
		tokens := loginAs(t, ti, "anna")
		d.fail(broken)
		if _, err := ti.Refresh(t.Context(), tokens.Refresh); !errors.Is(err, issuer.ErrUnavailable) {
			t.Errorf("%v: Refresh: got %v, want %v", broken, err, issuer.ErrUnavailable)
		}
		_ = ti.Recheck(t.Context())
		d.fail(nil)
		refresh(t, ti, tokens.Refresh)
	}
}

// TestRecheck holds that users who are disabled, or have a new password, lose their tokens at the agents without refreshing.
func TestRecheck(t *testing.T) {
	d := newDirectory()
	ti := elsewhere(t, d)
	anna, ben := loginAs(t, ti, "anna"), loginAs(t, ti, "ben")
	recheck := func() {
		t.Helper()
		if err := ti.Recheck(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	recheck()
	for name, tokens := range map[string]*issuer.Tokens{"anna": anna, "ben": ben} {
		if err := verify(ti.replica, tokens.Access); err != nil {
			t.Errorf("%s, with nothing changed: %v", name, err)
		}
	}
	d.set("anna", func(a *issuer.Account) { a.Disabled = true })
	d.set("ben", func(a *issuer.Account) { a.Marker = "another" })
	newer := loginAs(t, ti, "ben")
	recheck()
	refused(t, "disabled", verify(ti.replica, anna.Access), keyring.Revoked)
	refused(t, "new password", verify(ti.replica, ben.Access), keyring.Revoked)
	if err := verify(ti.replica, newer.Access); err != nil {
		t.Errorf("a session that began with the new password: %v", err)
	}
	d.set("ben", func(a *issuer.Account) { a.ID = "77" })
	recheck()
	refused(t, "gone", verify(ti.replica, newer.Access), keyring.Revoked)
}

// TestRecheckOfTheWrongDirectory holds that an empty database ends nobody's session by itself.
func TestRecheckOfTheWrongDirectory(t *testing.T) {
	d := newDirectory()
	for n := range 20 {
		name := fmt.Sprintf("user%d", n)
		d.set(name, func(a *issuer.Account) { *a = d.users["anna"]; a.ID, a.Username = "u"+name, name })
	}
	ti := elsewhere(t, d)
	var all []*issuer.Tokens
	for n := range 20 {
		all = append(all, loginAs(t, ti, fmt.Sprintf("user%d", n)))
	}
	d.mu.Lock()
	d.users = nil
	d.mu.Unlock()
	if err := ti.Recheck(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "most users with open sessions are not in the directory; is it the right one?") {
		t.Errorf("Recheck: got %v", err)
	}
	for _, tokens := range all {
		if err := verify(ti.replica, tokens.Access); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDirectoryIsNotWritten holds what the admin API says of users who live elsewhere.
func TestDirectoryIsNotWritten(t *testing.T) {
	ti := elsewhere(t, newDirectory())
	a := ti.LocalAdminHandler()
	for _, test := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/admin/v1/users", "", http.StatusConflict},
		{"POST", "/admin/v1/users", `{"username":"x","password":"a password"}`, http.StatusConflict},
		{"PATCH", "/admin/v1/users/anna", `{"disabled":true}`, http.StatusConflict},
		{"DELETE", "/admin/v1/users/anna", "", http.StatusConflict},
		{"GET", "/admin/v1/users/anna", "", http.StatusOK},
		{"GET", "/admin/v1/users/nobody", "", http.StatusNotFound},
	} {
		w := ask(a, test.method, test.path, test.body)
		if w.Code != test.status || test.status == http.StatusConflict && !strings.Contains(w.Body.String(), "users live elsewhere (issuer.users)") ||
			strings.Contains(w.Body.String(), "argon2") {
			t.Errorf("%s %s: got %d %s, want %d", test.method, test.path, w.Code, w.Body, test.status)
		}
	}
}

// prover proves passwords itself.
type prover struct{ *directory }

func (p prover) Prove(ctx context.Context, c issuer.Credentials) (*issuer.Account, error) {
	a, err := p.Lookup(ctx, c.Username)
	if err == nil && c.Password != "sesame" {
		return nil, issuer.ErrCredentials
	}
	return a, err
}

func TestProver(t *testing.T) {
	d := newDirectory()
	d.set("anna", func(a *issuer.Account) { a.PasswordHash, a.Marker = "", "" })
	ti := elsewhere(t, prover{d})
	tokens, err := ti.Login(t.Context(), issuer.Credentials{Username: "anna", Password: "sesame"})
	if err != nil {
		t.Fatal(err)
	}
	refresh(t, ti, tokens.Refresh)
	for name, password := range map[string]string{"anna": "wrong", "nobody": "sesame", "": "sesame", "ben": strings.Repeat("x", 2000)} {
		if _, err := ti.Login(t.Context(), issuer.Credentials{Username: name, Password: password}); !errors.Is(err, issuer.ErrCredentials) {
			t.Errorf("Login(%q, %q): got %v, want %v", name, password, err, issuer.ErrCredentials)
		}
	}
	d.fail(&issuer.BusyError{RetryAfter: 1})
	var busy *issuer.BusyError
	if _, err := ti.Login(t.Context(), issuer.Credentials{Username: "anna", Password: "sesame"}); !errors.As(err, &busy) {
		t.Errorf("busy: got %v", err)
	}
}

// TestDirectoryIDIsAClients: no user has the id of an OAuth client, whichever of them was there first.
func TestDirectoryIDIsAClients(t *testing.T) {
	d := newDirectory()
	ti := elsewhere(t, d)
	d.set("anna", func(a *issuer.Account) { a.ID = "reports" })
	before := loginAs(t, ti, "anna")
	if _, _, err := ti.AddClient(t.Context(), issuer.NewClient{ID: "reports"}); !errors.Is(err, issuer.ErrExists) {
		t.Errorf("a client with a user's id: got %v, want ErrExists", err)
	}
	d.fail(errors.New("the database is away"))
	if _, _, err := ti.AddClient(t.Context(), issuer.NewClient{ID: "other"}); !errors.Is(err, issuer.ErrUnavailable) {
		t.Errorf("a client while nobody knows the users: got %v, want ErrUnavailable", err)
	}
	d.fail(nil)
	d.set("anna", func(a *issuer.Account) { a.ID = "elsewhere" })
	if _, _, err := ti.AddClient(t.Context(), issuer.NewClient{ID: "reports"}); err != nil {
		t.Fatal(err)
	}
	d.set("anna", func(a *issuer.Account) { a.ID = "reports" })
	if _, err := ti.Login(t.Context(), issuer.Credentials{Username: "anna", Password: djangoPassword}); !errors.Is(err, issuer.ErrCredentials) {
		t.Errorf("a login with a client's id: got %v, want ErrCredentials", err)
	}
	if !strings.Contains(ti.logged.String(), "its id is that of an OAuth client") {
		t.Error("the log does not say why")
	}
	if _, err := ti.Refresh(t.Context(), before.Refresh); err == nil {
		t.Error("a session from before is refreshed")
	}
	loginAs(t, ti, "ben")
}
