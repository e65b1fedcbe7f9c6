package issuer_test

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

// TestForeignTokenOverARestore: whether somebody else's refresh token was used between a backup and its being restored is not
// known, so it is refused; one that was made after the restore is good.
func TestForeignTokenOverARestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ti := withDjango(t, newBus())
		r := issuer.Restoring{Now: time.Now()}
		name, value := r.Mark()
		if _, err := ti.bus.key.Create(t.Context(), name, value); err != nil {
			t.Fatal(err)
		}
		before := simpleJWT(t, "refresh", nil)
		refused(t, "Check of a token of before", ti.Check(t.Context(), before), keyring.Revoked)
		_, err := ti.Refresh(t.Context(), before)
		refused(t, "Refresh of a token of before", err, keyring.Revoked)
		refresh(t, ti, simpleJWT(t, "refresh", map[string]any{"iat": time.Now().Unix() + 1, "jti": "after"}))
	})
}

// TestRestoring judges records of each kind.
func TestRestoring(t *testing.T) {
	now := time.Unix(1767225600, 0)
	record := func(v any) bus.Record {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return bus.Record{Name: "n", Value: text}
	}
	session := func(more map[string]any) bus.Record {
		s := map[string]any{"sid": "s", "sub": "u", "gen": 3, "exp": now.Unix() + 100}
		for k, v := range more {
			s[k] = v
		}
		return record(s)
	}
	for name, c := range map[string]struct {
		bucket string
		rec    bus.Record
		keep   bool
		want   string // in what is written; "": nothing is
	}{
		"a session":                    {bus.BucketSessions, session(nil), false, ""},
		"a session that is kept":       {bus.BucketSessions, session(nil), true, `"gen":3`},
		"the claim on a foreign token": {bus.BucketSessions, session(map[string]any{"foreign_exp": now.Unix() + 50}), false, `"closed":1767225600`},
		"one of a token that ended":    {bus.BucketSessions, session(map[string]any{"foreign_exp": now.Unix() - 1}), false, ""},
		"an unused join token":         {bus.BucketJoins, record(map[string]any{"role": "agent", "name": "a"}), false, ""},
		"an unused one, kept":          {bus.BucketJoins, record(map[string]any{"role": "agent", "name": "a"}), true, ""},
		"a used one":                   {bus.BucketJoins, record(map[string]any{"role": "agent", "name": "a", "used": 7}), false, `"used":7`},
		"a user":                       {bus.BucketUsers, record(map[string]any{"username": "bob"}), false, `"bob"`},
		"the refresh tokens' keys":     {bus.BucketKeys, bus.Record{Name: bus.Name("refresh"), Value: []byte("k")}, false, ""},
		"they, kept":                   {bus.BucketKeys, bus.Record{Name: bus.Name("refresh"), Value: []byte("k")}, true, "k"},
		"an earlier restore":           {bus.BucketKeys, bus.Record{Name: bus.Name("restored"), Value: []byte("k")}, true, ""},
		"the admin token":              {bus.BucketKeys, bus.Record{Name: bus.Name("shared", "admin-token"), Value: []byte("k")}, false, ""},
		"it, kept":                     {bus.BucketKeys, bus.Record{Name: bus.Name("shared", "admin-token"), Value: []byte("k")}, true, "k"},
		"the authority's key":          {bus.BucketKeys, bus.Record{Name: bus.Name("shared", "authority"), Value: []byte("k")}, false, "k"},
	} {
		r := issuer.Restoring{KeepSessions: c.keep, Now: now}
		got, err := r.Record(c.bucket, c.rec)
		if err != nil || (got == nil) != (c.want == "") || !strings.Contains(string(got), c.want) {
			t.Errorf("%s: got %q and %v, want %q", name, got, err, c.want)
		}
	}
	for _, bucket := range []string{bus.BucketSessions, bus.BucketJoins} {
		if _, err := new(issuer.Restoring).Record(bucket, bus.Record{Name: "n", Value: []byte("{")}); err == nil {
			t.Errorf("a damaged record of %s: got no error", bucket)
		}
	}
	for name, c := range map[string]struct {
		fact bus.KeyFact
		keep bool
		want bool
	}{
		"signs":              {bus.KeyFact{State: "active"}, false, true},
		"stands by":          {bus.KeyFact{State: "announced"}, false, true},
		"was revoked":        {bus.KeyFact{State: "revoked"}, false, true},
		"verifies":           {bus.KeyFact{State: "active", VerifyOnly: true}, false, false},
		"accepts Simple JWT": {bus.KeyFact{State: "active", Accept: "simplejwt"}, false, false},
		"signs, kept":        {bus.KeyFact{State: "active"}, true, false},
	} {
		if got := (&issuer.Restoring{KeepSessions: c.keep}).ForgetsKey(&c.fact); got != c.want {
			t.Errorf("a key that %s is forgotten: got %t, want %t", name, got, c.want)
		}
	}
}

// TestFirstKeyBesideImported: a key that only verified, and was revoked, keeps the first own key waiting for nobody, as after a restore.
func TestFirstKeyBesideImported(t *testing.T) {
	b := newBus()
	ti := withDjango(t, b)
	if _, ok := ti.replica.Snapshot().Ring.Active(); !ok {
		t.Fatal("no key is active")
	}
	var own []*bus.KeyFact
	for _, f := range ti.replica.Keys() {
		if !f.VerifyOnly {
			own = append(own, f)
		}
	}
	if len(own) == 0 {
		t.Fatal("the issuer has no key of its own")
	}
	restored := newBus()
	for _, f := range ti.replica.Keys() {
		if f.VerifyOnly {
			revoked := *f
			revoked.State = string(keyring.Revoked)
			if _, err := restored.log.Append(t.Context(), f, &revoked); err != nil {
				t.Fatal(err)
			}
		}
	}
	restored.fleet.Join("web-1", nil) // which acknowledges nothing
	again := newIssuer(t, restored, func(_ *issuer.Config, p *issuer.Parts) { p.Keys = &b.key })
	again.steps(t)
	if err := again.StepSealing(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := again.Ready(); err != nil {
		t.Errorf("Ready: got %v, though there is nobody to wait for", err)
	}
}
