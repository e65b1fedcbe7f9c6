package issuer_test

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

func withClaims(c map[string]string) setup {
	return func(cfg *issuer.Config, _ *issuer.Parts) { cfg.Claims = c }
}

// TestClaims: each template gives the value that it should, with its type, and is left out where there is none.
func TestClaims(t *testing.T) {
	ti := start(t, newBus(), withClaims(map[string]string{
		"tenant": "${attributes.tenant}", "level": "${attributes.level}", "vip": "${attributes.vip}", "teams": "${attributes.teams}",
		"nothing": "${attributes.nothing}", "null": "${attributes.null}", "groups": "${roles}", "mail": "${email}",
		"person": "urn:${username}:${attributes.level}:${attributes.vip}", "incomplete": "a ${attributes.nothing}", "price": "$${5}", "fixed": "x",
	}))
	attributes := json.RawMessage(`{"tenant":"a\"b","level":9007199254740993,"vip":true,"teams":["x",{"y":1}],"null":null}`)
	if _, err := ti.ChangeUser(t.Context(), "alice", issuer.UserChange{Attributes: &attributes}); err != nil {
		t.Fatal(err)
	}
	tokens := login(t, ti)
	got := claims(t, tokens.Access)
	for name, want := range map[string]any{
		"tenant": `a"b`, "vip": true, "teams": []any{"x", map[string]any{"y": 1.0}}, "nothing": nil, "null": nil, "groups": []any{"staff"},
		"mail": nil, "person": "urn:alice:9007199254740993:true", "incomplete": nil, "price": "${5}", "fixed": "x",
	} {
		if !reflect.DeepEqual(got[name], want) {
			t.Errorf("claim %s: got %#v, want %#v", name, got[name], want)
		}
	}
	if err := verify(ti.replica, tokens.Access); err != nil {
		t.Errorf("verify: %v", err)
	}
	if c := claims(t, tokens.Refresh); c["tenant"] != nil {
		t.Errorf("the refresh token has a custom claim: %v", c)
	}
	changed := json.RawMessage(`{"tenant":"other"}`)
	if _, err := ti.ChangeUser(t.Context(), "alice", issuer.UserChange{Attributes: &changed}); err != nil {
		t.Fatal(err)
	}
	if c := claims(t, refresh(t, ti, tokens.Refresh).Access); c["tenant"] != "other" || c["vip"] != nil {
		t.Errorf("after the attributes changed, a refresh says %v: it is frozen", c)
	}
}

func TestClaimsRefusedAtLoad(t *testing.T) {
	for name, test := range map[string]struct{ template, want string }{
		"sub":       {"x", `claim "sub" has a meaning of its own; take another name`},
		"SCOPE":     {"x", `claim "SCOPE" has a meaning of its own; take another name`},
		"uid":       {"x", `claim "uid" has a meaning of its own; take another name`},
		"user_id":   {"x", `claim "user_id" has a meaning of its own; take another name`},
		"active":    {"x", `claim "active" has a meaning of its own; take another name`},
		"":          {"x", `claim "": want a name of 1 to 128 bytes without control characters`},
		"open":      {"a ${email", `claim "open": a ${ has no }; write $${ for the characters themselves`},
		"password":  {"${password}", `claim "password": ${password} is nothing of a user: want ${username}, ${email}, ${roles}, ${scope} or ${attributes.NAME}`},
		"namesless": {"${attributes.}", `claim "namesless": ${attributes.} is nothing of a user: want ${username}, ${email}, ${roles}, ${scope} or ${attributes.NAME}`},
		"long":      {strings.Repeat("x", 1025), `claim "long": want 1024 bytes at most, got 1025`},
	} {
		err := issuer.CheckClaims(map[string]string{name: test.template}, "uid")
		if err == nil || err.Error() != test.want {
			t.Errorf("CheckClaims(%s): got %v, want %s", name, err, test.want)
		}
	}
}

// TestClaimsTooLarge: a user whose claims cannot be made is refused when it is written; one that is there already gets no token, and
// can be disabled all the same.
func TestClaimsTooLarge(t *testing.T) {
	b := newBus()
	plain := start(t, b)
	large := json.RawMessage(`{"a":"` + strings.Repeat("x", 1100) + `","list":[1]}`)
	if _, err := plain.ChangeUser(t.Context(), "alice", issuer.UserChange{Attributes: &large}); err != nil {
		t.Fatal(err)
	}
	before := login(t, plain)
	for _, template := range []string{"${attributes.a}", "text ${attributes.list}"} {
		ti := newIssuer(t, b, withClaims(map[string]string{"a": template}))
		if err := ti.replica.Wait(t.Context(), plain.position().Seq); err != nil {
			t.Fatal(err)
		}
		if _, err := ti.ChangeUser(t.Context(), "alice", issuer.UserChange{Attributes: &large}); !isInput(err) || !strings.Contains(err.Error(), `claim "a"`) {
			t.Errorf("ChangeUser: got %v, want it refused with the claim's name", err)
		}
		if _, err := ti.Login(t.Context(), issuer.Credentials{Username: "alice", Password: "wonderland"}); !errors.Is(err, issuer.ErrClaims) {
			t.Errorf("Login: got %v, want ErrClaims", err)
		}
		if _, err := ti.Refresh(t.Context(), before.Refresh); !errors.Is(err, issuer.ErrClaims) {
			t.Errorf("Refresh: got %v, want ErrClaims", err)
		}
	}
	refresh(t, plain, before.Refresh) // it was not used up
	ti := newIssuer(t, b, withClaims(map[string]string{"a": "${attributes.a}"}))
	disabled := true
	if _, err := ti.ChangeUser(t.Context(), "alice", issuer.UserChange{Disabled: &disabled}); err != nil {
		t.Errorf("disabling a user whose claims are too large: %v", err)
	}
}

// TestSessionLifetime: no token of a session goes beyond its end, and no refresh either.
func TestSessionLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		ti := start(t, b, func(c *issuer.Config, _ *issuer.Parts) { c.SessionLifetime = time.Hour })
		began := time.Now().Unix()
		tokens := login(t, ti)
		for range 3 {
			if exp := claims(t, tokens.Refresh)["exp"]; exp != float64(began+3600) {
				t.Errorf("the refresh token ends at %v, want at the session's end, %d", exp, began+3600)
			}
			time.Sleep(17 * time.Minute)
			tokens = refresh(t, ti, tokens.Refresh)
		}
		if exp := claims(t, tokens.Access)["exp"]; exp != float64(began+3600) {
			t.Errorf("the access token made in the last minutes ends at %v, want at the session's end, %d", exp, began+3600)
		}
		time.Sleep(9*time.Minute + 10*time.Second)
		_, err := ti.Refresh(t.Context(), tokens.Refresh)
		refused(t, "a refresh past the session's end", err, keyring.Expired)

		long := start(t, newBus())
		old := login(t, long)
		time.Sleep(2 * time.Hour)
		shorter := newIssuer(t, long.bus, func(c *issuer.Config, _ *issuer.Parts) { c.SessionLifetime = time.Hour })
		if err := shorter.replica.Wait(t.Context(), long.position().Seq); err != nil {
			t.Fatal(err)
		}
		_, err = shorter.Refresh(t.Context(), old.Refresh)
		refused(t, "a session from before the end was set", err, keyring.Expired)
	})
}

// TestSliding: a sliding token is an access token, is exchanged until refresh_exp, and ends with its session.
func TestSliding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ti := start(t, newBus(), func(c *issuer.Config, _ *issuer.Parts) {
			c.Sliding, c.SlidingLifetime, c.SlidingRefreshLifetime = true, 20*time.Minute, 50*time.Minute
		})
		first, err := ti.LoginSliding(t.Context(), issuer.Credentials{Username: "alice", Password: "wonderland"})
		if err != nil || first.Refresh != "" {
			t.Fatalf("LoginSliding: got %+v, %v", first, err)
		}
		began := float64(time.Now().Unix())
		if c := claims(t, first.Access); c["token_type"] != "sliding" || c["refresh_exp"] != began+3000 || c["exp"] != began+1200 {
			t.Errorf("the sliding token says %v", c)
		}
		token := first.Access
		for range 2 {
			time.Sleep(19 * time.Minute)
			next, err := ti.RefreshSliding(t.Context(), token)
			if err != nil || next.SessionID != first.SessionID {
				t.Fatalf("RefreshSliding: got %+v, %v", next, err)
			}
			token = next.Access
		}
		c := claims(t, token)
		if c["refresh_exp"] != began+3000 || c["exp"] != began+3000 {
			t.Errorf("near its end the token says %v, want no exp beyond refresh_exp", c)
		}
		if err := verify(ti.replica, token); err != nil {
			t.Errorf("verify: %v", err)
		}
		if _, err := ti.Refresh(t.Context(), token); keyring.ReasonOf(err) != keyring.WrongType && keyring.ReasonOf(err) != keyring.UnknownKey {
			t.Errorf("Refresh(a sliding token): got %v", err)
		}
		_, err = ti.RefreshSliding(t.Context(), login(t, ti).Access)
		refused(t, "RefreshSliding(an access token)", err, keyring.WrongType)
		time.Sleep(12*time.Minute + 1*time.Second)
		_, err = ti.RefreshSliding(t.Context(), token)
		refused(t, "past refresh_exp", err, keyring.Expired)

		second, err := ti.LoginSliding(t.Context(), issuer.Credentials{Username: "alice", Password: "wonderland"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ti.Revoke(t.Context(), issuer.Target{SessionID: second.SessionID}); err != nil {
			t.Fatal(err)
		}
		_, err = ti.RefreshSliding(t.Context(), second.Access)
		refused(t, "of a revoked session", err, keyring.Revoked)
		refused(t, "verify(of a revoked session)", verify(ti.replica, second.Access), keyring.Revoked)
	})
}

func TestSlidingIsOff(t *testing.T) {
	ti := start(t, newBus())
	if _, err := ti.LoginSliding(t.Context(), issuer.Credentials{}); !errors.Is(err, issuer.ErrOff) {
		t.Errorf("LoginSliding: got %v, want ErrOff", err)
	}
	if _, err := ti.RefreshSliding(t.Context(), "x"); !errors.Is(err, issuer.ErrOff) {
		t.Errorf("RefreshSliding: got %v, want ErrOff", err)
	}
}

// TestLastLogin: it is written at the first login, and again once an hour at most.
func TestLastLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ti := start(t, newBus(), func(c *issuer.Config, _ *issuer.Parts) { c.UpdateLastLogin = true })
		last := func() int64 {
			u, err := ti.User(t.Context(), "alice")
			if err != nil {
				t.Fatal(err)
			}
			return u.LastLogin
		}
		if got := last(); got != 0 {
			t.Errorf("before any login: %d", got)
		}
		first := time.Now().Unix()
		for range 3 {
			login(t, ti)
			if got := last(); got != first {
				t.Errorf("got %d, want the first login of the hour, %d", got, first)
			}
			time.Sleep(19 * time.Minute)
		}
		time.Sleep(4 * time.Minute)
		login(t, ti)
		if got, want := last(), time.Now().Unix(); got != want {
			t.Errorf("after an hour: got %d, want %d", got, want)
		}
	})
}
