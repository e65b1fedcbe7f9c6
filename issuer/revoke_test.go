package issuer_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

func TestRevoke(t *testing.T) {
	for name, tc := range map[string]struct {
		target  func(*issuer.Tokens) issuer.Target
		refresh bool // the session goes on
	}{
		"access token":  {func(k *issuer.Tokens) issuer.Target { return issuer.Target{Token: k.Access} }, true},
		"refresh token": {func(k *issuer.Tokens) issuer.Target { return issuer.Target{Token: k.Refresh} }, false},
		"jti":           {func(k *issuer.Tokens) issuer.Target { return issuer.Target{ID: claims(t, k.Access)["jti"].(string)} }, true},
		"sid": {func(k *issuer.Tokens) issuer.Target {
			return issuer.Target{SessionID: k.SessionID, Reason: "lost laptop"}
		}, false},
		"sub": {func(k *issuer.Tokens) issuer.Target {
			return issuer.Target{Subject: claims(t, k.Access)["sub"].(string)}
		}, false},
		"client_id": {func(*issuer.Tokens) issuer.Target { return issuer.Target{ClientID: "sidekey"} }, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBus()
			ti := start(t, b)
			b.fleet.Join("web-1", nil)
			tokens := login(t, ti)
			receipt, err := ti.Revoke(t.Context(), tc.target(tokens))
			if err != nil {
				t.Fatal(err)
			}
			if receipt.Seq == 0 || receipt.Confirmed || len(receipt.Pending) != 1 {
				t.Errorf("receipt: got %+v, want its sequence, web-1 pending and nothing confirmed", receipt)
			}
			refused(t, "verify(access)", verify(ti.replica, tokens.Access), keyring.Revoked)
			_, err = ti.Refresh(t.Context(), tokens.Refresh)
			if tc.refresh && err != nil {
				t.Errorf("Refresh: got %v, want tokens: only one access token was revoked", err)
			}
			if !tc.refresh {
				refused(t, "Refresh", err, keyring.Revoked)
			}
			if err := verify(ti.replica, login(t, ti).Access); err != nil {
				t.Errorf("verify(a login in the same second): got %v, want nil", err)
			}
		})
	}
}

func TestRevokeBounds(t *testing.T) {
	ti := start(t, newBus())
	for name, target := range map[string]issuer.Target{
		"nothing": {}, "two": {ID: "a", SessionID: "b"}, "long": {ID: strings.Repeat("x", 1025)},
		"long reason": {ID: "a", Reason: strings.Repeat("x", 1025)},
	} {
		if _, err := ti.Revoke(t.Context(), target); !isInput(err) {
			t.Errorf("Revoke(%s): got %v, want an InputError", name, err)
		}
	}
	for token, want := range map[string]keyring.Reason{
		"nonsense": keyring.Malformed, foreignToken(t): keyring.UnknownKey,
	} {
		_, err := ti.Revoke(t.Context(), issuer.Target{Token: token})
		refused(t, "Revoke", err, want)
	}
	if _, err := ti.EndSession(t.Context(), "unheard of", "", 0); !errors.Is(err, issuer.ErrNotFound) {
		t.Errorf("EndSession(unknown): got %v, want ErrNotFound", err)
	}
	if _, err := ti.Revoke(t.Context(), issuer.Target{SessionID: "unheard of"}); err != nil {
		t.Errorf("Revoke(a sid without a record): got %v, want it in the log all the same", err)
	}
}

func foreignToken(t *testing.T) string {
	t.Helper()
	k, err := keyring.Generate(keyring.EdDSA, 0)
	if err != nil {
		t.Fatal(err)
	}
	return foreign(t, k)
}

func TestRevokeFaults(t *testing.T) {
	for name, fault := range map[string]bustest.Failure{
		"not stored":                        {Err: errLost},
		"stored though the answer was lost": {Err: errLost, Stored: true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBus()
			ti := start(t, b)
			tokens := login(t, ti)
			b.log.Fail(fault)
			if _, err := ti.Revoke(t.Context(), issuer.Target{SessionID: tokens.SessionID}); !errors.Is(err, issuer.ErrUnavailable) {
				t.Errorf("Revoke: got %v, want ErrUnavailable", err)
			}
			if _, err := ti.Revoke(t.Context(), issuer.Target{SessionID: tokens.SessionID}); err != nil {
				t.Fatal(err)
			}
			refused(t, "verify(access)", verify(ti.replica, tokens.Access), keyring.Revoked)
		})
	}
}

func TestHowLongARevocationLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		ti := start(t, b)
		tokens := login(t, ti)
		now := time.Now()
		if _, err := ti.Revoke(t.Context(), issuer.Target{Token: tokens.Access}); err != nil {
			t.Fatal(err)
		}
		if _, err := ti.Revoke(t.Context(), issuer.Target{ID: "bare"}); err != nil {
			t.Fatal(err)
		}
		if _, err := ti.Revoke(t.Context(), issuer.Target{Subject: "somebody"}); err != nil {
			t.Fatal(err)
		}
		seen := ti.Feed.Recent() // newest first
		for at, want := range []time.Duration{168*time.Hour + 15*time.Minute, 15 * time.Minute, 15 * time.Minute} {
			got := time.Unix(seen[at].ExpiresAt, 0).Sub(now)
			if got < want+5*time.Second || got > want+2*time.Hour {
				t.Errorf("%+v: lives %s, want %s and a little", seen[at].Revocation, got, want)
			}
		}
	})
}

func TestSessionsOfAUser(t *testing.T) {
	ti := start(t, newBus())
	first, second, third := login(t, ti), login(t, ti), login(t, ti)
	sub := claims(t, first.Access)["sub"].(string)
	n, err := ti.EndOthers(t.Context(), sub, second.SessionID)
	if err != nil || n != 2 {
		t.Errorf("EndOthers: got %d, %v, want 2", n, err)
	}
	for _, k := range []*issuer.Tokens{first, third} {
		refused(t, "verify(another session)", verify(ti.replica, k.Access), keyring.Revoked)
	}
	if err := verify(ti.replica, second.Access); err != nil {
		t.Errorf("verify(the session kept): got %v, want nil", err)
	}
	open := 0
	sessions, err := ti.ListSessions(t.Context(), sub)
	for _, s := range sessions {
		if s.Closed == 0 {
			open++
		}
	}
	if err != nil || len(sessions) != 3 || open != 1 {
		t.Errorf("ListSessions: got %v, %v, want 3, one of them open", sessions, err)
	}
}

func TestFeedIsBounded(t *testing.T) {
	f := issuer.NewFeed()
	for n := range 20000 {
		if err := f.Note([]bus.Entry{{Position: bus.Position{Epoch: 1, Seq: uint64(n + 1)}, Fact: &bus.Revocation{ID: "x", ExpiresAt: 1}}}); err != nil {
			t.Fatal(err)
		}
	}
	if recent := f.Recent(); len(recent) != 1000 || recent[0].Seq != 20000 {
		t.Errorf("Recent: got %d, the first at %d, want the newest 1000", len(recent), recent[0].Seq)
	}
}

// TestStarIsNoWildcard: a subject or session that is called "*" is that one, and nobody else's.
func TestStarIsNoWildcard(t *testing.T) {
	b := newBus()
	ti := start(t, b)
	alice := login(t, ti)
	for _, sub := range []string{"*", ">", "*.*"} {
		if all, err := ti.ListSessions(t.Context(), sub); err != nil || len(all) != 0 {
			t.Errorf("ListSessions(%q): got %d sessions and %v, want none", sub, len(all), err)
		}
		if n, err := ti.EndOthers(t.Context(), sub, "x"); err != nil || n != 0 {
			t.Errorf("EndOthers(%q): ended %d sessions, error %v", sub, n, err)
		}
		if _, err := ti.EndSession(t.Context(), sub, "", 0); !errors.Is(err, issuer.ErrNotFound) {
			t.Errorf("EndSession(%q): got %v, want ErrNotFound", sub, err)
		}
		if _, err := ti.Revoke(t.Context(), issuer.Target{Subject: sub}); err != nil {
			t.Errorf("Revoke(sub %q): %v", sub, err)
		}
	}
	if _, err := ti.Refresh(t.Context(), alice.Refresh); err != nil {
		t.Errorf("alice's session after all that: %v", err)
	}
}
