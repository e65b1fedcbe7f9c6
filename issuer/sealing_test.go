package issuer_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

// namedKey waits until the log names a sealing key other than id.
func namedKey(t *testing.T, r *replica.Replica, id string) *bus.SealingFact {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		changed := r.Changed()
		if s := r.Snapshot().Sealing; s != nil && s.ID != id {
			return s
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("the log names no sealing key other than %q", id)
		}
	}
}

// TestSealingKey: issuers share one key; each opens what is sealed to it, and to the one before for an hour.
func TestSealingKey(t *testing.T) {
	b := newBus()
	now := time.Now()
	rotating := func(cfg *issuer.Config, parts *issuer.Parts) {
		cfg.RotateEvery = 24 * time.Hour
		parts.Now = func() time.Time { return now }
	}
	one, two := start(t, b, rotating), newIssuer(t, b, rotating)
	for _, i := range []*testIssuer{one, two, one} {
		if err := i.StepSealing(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	first := namedKey(t, two.replica, "")
	if want := now.Unix() + 2*86400 + 3600; first.Created != now.Unix() || first.ExpiresAt != want {
		t.Errorf("the key lives from %d to %d, want from %d to %d", first.Created, first.ExpiresAt, now.Unix(), want)
	}
	seal := func(key *bus.SealingFact) []byte {
		box, err := keyring.SealTo(key.Public, []byte("secret"), []byte("place"))
		if err != nil {
			t.Fatal(err)
		}
		return box
	}
	opens := func(i *testIssuer, key *bus.SealingFact, box []byte) error {
		text, err := i.OpenSealed(t.Context(), key.ID, box, []byte("place"))
		if err == nil && string(text) != "secret" {
			t.Fatalf("OpenSealed: got %q", text)
		}
		return err
	}
	old := seal(first)
	if err := errors.Join(opens(one, first, old), opens(two, first, old)); err != nil {
		t.Fatalf("OpenSealed: %v", err)
	}
	if _, err := two.OpenSealed(t.Context(), first.ID, old, []byte("another place")); !errors.Is(err, keyring.ErrSealed) {
		t.Errorf("OpenSealed elsewhere: got %v, want ErrSealed", err)
	}
	if entries := sealings(t, b); entries != 1 {
		t.Errorf("two issuers wrote %d entries for one key", entries)
	}

	now = now.Add(24*time.Hour + time.Second)
	if err := one.StepSealing(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := namedKey(t, two.replica, first.ID)
	// The second issuer has not looked at the record since; it does now.
	if err := errors.Join(opens(two, second, seal(second)), opens(two, first, old), opens(one, first, old)); err != nil {
		t.Errorf("OpenSealed after a rotation: %v", err)
	}
	now = now.Add(time.Hour + 2*time.Second)
	for _, i := range []*testIssuer{one, two} {
		if err := i.StepSealing(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := opens(i, first, old); !errors.Is(err, issuer.ErrNotFound) {
			t.Errorf("OpenSealed with the key of yesterday: got %v, want ErrNotFound", err)
		}
		if err := opens(i, second, seal(second)); err != nil {
			t.Errorf("OpenSealed with today's: %v", err)
		}
	}
	if entries := sealings(t, b); entries != 2 {
		t.Errorf("%d entries for two keys", entries)
	}
	rec, err := b.key.Get(t.Context(), bus.Name("sealing"))
	if err != nil {
		t.Fatal(err)
	}
	var kept struct {
		Keys []struct{ Private string } `json:"keys"`
	}
	if err := json.Unmarshal(rec.Value, &kept); err != nil || len(kept.Keys) != 1 {
		t.Fatalf("the record has %d keys, %v, want today's alone", len(kept.Keys), err)
	}
	for _, i := range []*testIssuer{one, two} {
		if strings.Contains(i.logged.String(), kept.Keys[0].Private[:40]) {
			t.Error("a private sealing key is in the log")
		}
	}
}

// TestReadyNamesSealingKey: who is Ready has told the agents what they seal passwords and sessions to. It does as soon as it may write.
func TestReadyNamesSealingKey(t *testing.T) {
	b := newBus()
	ti := newIssuer(t, b)
	ti.steps(t)
	if err := ti.Ready(); !errors.Is(err, issuer.ErrUnavailable) || !strings.Contains(err.Error(), "seal") {
		t.Errorf("Ready with a key that signs, and none to seal to: got %v, want ErrUnavailable that says so", err)
	}
	addAlice(t, ti)
	login(t, ti) // tokens do not wait for it
	if err := ti.StepSealing(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := ti.Ready(); err != nil {
		t.Errorf("Ready: got %v", err)
	}
}

// TestSealingKeyAtOnce: an issuer that may not write yet names its sealing key with the entry that shows it may, not at its next look.
func TestSealingKeyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sound atomic.Bool
		b := newBus()
		ti := newIssuer(t, b, func(_ *issuer.Config, p *issuer.Parts) {
			p.Sound = func() error {
				if sound.Load() {
					return nil
				}
				return errors.New("no tick yet")
			}
		})
		ti.run(t)
		synctest.Wait()
		if s := ti.replica.Snapshot().Sealing; s != nil {
			t.Fatal("it wrote though it may not")
		}
		time.Sleep(300 * time.Millisecond)
		sound.Store(true)
		if _, err := b.log.Append(t.Context(), &bus.Tick{Time: time.Now().UnixMilli(), Issuer: "issuer-2", Chain: make([]byte, 32)}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		namedKey(t, ti.replica, "")
		if took := time.Since(began); took > 100*time.Millisecond { // of the bubble's clock: it depends on no machine
			t.Errorf("the key was named %s after the issuer might", took)
		}
	})
}

// sealings counts the entries of sealing keys.
func sealings(t *testing.T, b *testBus) (n int) {
	t.Helper()
	enough := errors.New("enough")
	err := b.log.Follow(t.Context(), bus.Cursor{}, func(entries []bus.Entry, _ uint64) error {
		for _, en := range entries {
			if en.Fact.Kind() == bus.KindSealing {
				n++
			}
		}
		return enough
	})
	if !errors.Is(err, enough) {
		t.Fatal(err)
	}
	return n
}

// TestSealingKeyDamaged: a record that cannot be read is said, never written over, and never quoted.
func TestSealingKeyDamaged(t *testing.T) {
	b := newBus()
	ti := newIssuer(t, b)
	for _, record := range []string{`{"keys":[{"id":"a","private":"c2VjcmV0","created":1}]}`, `secret`, `{"keys":"secret"}`} {
		rec, err := b.key.Get(t.Context(), bus.Name("sealing"))
		if err == nil {
			_, err = b.key.Update(t.Context(), rec.Name, []byte(record), rec.Revision)
		} else {
			_, err = b.key.Create(t.Context(), bus.Name("sealing"), []byte(record))
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := ti.StepSealing(t.Context()); err == nil || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "c2Vj") {
			t.Errorf("%s: got %v, want an error that does not quote it", record, err)
		}
		if after, err := b.key.Get(t.Context(), bus.Name("sealing")); err != nil || string(after.Value) != record {
			t.Errorf("%s: it is now %s, %v", record, after.Value, err)
		}
	}
}

// TestCheckPassword: what a login would say, at a login's limits, and no session begins.
func TestCheckPassword(t *testing.T) {
	b := newBus()
	ti := start(t, b, func(cfg *issuer.Config, _ *issuer.Parts) { cfg.LoginLimit = 3 })
	user, err := ti.User(t.Context(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	ask := func(name, password string) bus.BasicAnswer {
		t.Helper()
		return ti.AnswerBasic(t.Context(), "web-1", bus.BasicRequest{Username: name, Password: password, Address: "192.0.2.7"})
	}
	got := ask("alice", "wonderland")
	if got.Outcome != bus.BasicOK || got.Subject != user.ID || got.Username != "alice" || got.ClientID != "sidekey" || got.Scope != "read write" ||
		len(got.Roles) != 1 || got.Roles[0] != "staff" || got.Seq == 0 || got.Seq > ti.position().Seq || got.Life != 60 {
		t.Errorf("the right password: got %+v", got)
	}
	for name, password := range map[string]string{"alice": "wonderlanD", "bob": "wonderland", "": ""} {
		if got := ask(name, password); got.Outcome != bus.BasicRefused || got.Subject != "" || got.Life != 0 {
			t.Errorf("user %q with %q: got %+v, want it refused", name, password, got)
		}
	}
	if sessions, err := ti.ListSessions(t.Context(), user.ID); err != nil || len(sessions) != 0 {
		t.Errorf("ListSessions: got %v, %v, want none", sessions, err)
	}
	if got := ask("alice", "wonderland"); got.Outcome != bus.BasicOK {
		t.Errorf("the third attempt: got %+v, want it right", got)
	}
	if got := ask("alice", "wonderland"); got.Outcome != bus.BasicLimited || got.RetryAfter < 1 || got.RetryAfter > 21 {
		t.Errorf("the fourth attempt: got %+v, want it limited for 21 seconds at most", got)
	}
	if text := ti.logged.String(); strings.Contains(text, "wonderlan") || !strings.Contains(text, "password checked") {
		t.Errorf("the log: %s", text)
	}
}

// TestCheckPasswordOfTheDisabled: whoever is disabled is refused, and what was found before is cut off.
func TestCheckPasswordOfTheDisabled(t *testing.T) {
	ti := start(t, newBus())
	p, err := ti.CheckPassword(t.Context(), issuer.Credentials{Username: "alice", Password: "wonderland"})
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]issuer.UserChange{"password changed": {Password: new("looking-glass")}, "disabled": {Disabled: new(true)}} {
		if _, err := ti.ChangeUser(t.Context(), "alice", change); err != nil {
			t.Fatal(err)
		}
		ids := replica.Fingerprint(&keyring.Claims{Subject: p.Subject, HasSessionSeq: true, SessionSeq: p.Seq})
		if !ti.replica.Revoked(&ids) {
			t.Errorf("%s: what was found before is not cut off", name)
		}
		if _, err := ti.CheckPassword(t.Context(), issuer.Credentials{Username: "alice", Password: "wonderland"}); !errors.Is(err, issuer.ErrCredentials) {
			t.Errorf("%s: got %v, want ErrCredentials", name, err)
		}
	}
}
