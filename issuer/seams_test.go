package issuer_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

// TestSessionTokenRevokedByItsText: who finds a browser's session token ends its session with it, by the admin API and at
// /oauth2/revoke, which must not say 200 of a token that goes on.
func TestSessionTokenRevokedByItsText(t *testing.T) {
	w := newWorld(t, newBus())
	for name, revoke := range map[string]func(token string){
		"Revoke": func(token string) {
			if _, err := w.Revoke(t.Context(), issuer.Target{Token: token}); err != nil {
				t.Errorf("Revoke(a session token): got %v", err)
			}
		},
		"/oauth2/revoke": func(token string) {
			if got := w.post("/oauth2/revoke", "", "token", token); got.Code != 200 {
				t.Errorf("/oauth2/revoke: got %d %s", got.Code, got.Body)
			}
		},
	} {
		j := newJar(w.h)
		j.login(t)
		token, csrf := j.cookies["__Host-sidekey_session"], j.cookies["__Host-sidekey_csrf"]
		if err := verifyCookie(w.replica, token); err != nil {
			t.Fatal(err)
		}
		revoke(token)
		if err := verifyCookie(w.replica, token); err == nil {
			t.Errorf("%s: the session token is good still", name)
		}
		if got := j.send("POST", "/session/renew", "", "", "X-CSRF-Token", csrf); got.Code != 401 {
			t.Errorf("%s, then a renewal: got %d %s, want 401", name, got.Code, got.Body)
		}
	}
	j := newJar(w.h)
	j.login(t)
	token := j.cookies["__Host-sidekey_session"]
	refusal(t, "another client", w.post("/oauth2/revoke", "app", "token", token), 400, "unauthorized_client")
	if err := verifyCookie(w.replica, token); err != nil {
		t.Errorf("after another client's attempt: got %v", err)
	}
}

// TestDevicesAreTheUsersOwn: a user's sessions are listed and ended with the token that the user logged in for, and not with
// what a client was given to act with, nor with a client's own.
func TestDevicesAreTheUsersOwn(t *testing.T) {
	w := newWorld(t, newBus())
	user := login(t, w.testIssuer)
	other := login(t, w.testIssuer)
	exchanged, _ := w.granted(t, "gate", exchange(user.Access, "scope", "read")...)
	own, _ := w.granted(t, "job", "grant_type", "client_credentials", "audience", issuerURL)
	for name, token := range map[string]string{"an exchanged token": exchanged, "a client's own": own} {
		for _, c := range [][2]string{{"GET", "/sessions"}, {"DELETE", "/sessions/" + other.SessionID}, {"DELETE", "/sessions?except=current"}} {
			got := ask(w.h, c[0], c[1], "", "Authorization", "Bearer "+token)
			if got.Code != 403 || strings.Contains(got.Body.String(), other.SessionID) {
				t.Errorf("%s %s with %s: got %d %s, want 403", c[0], c[1], name, got.Code, got.Body)
			}
		}
	}
	if err := verify(w.replica, other.Access); err != nil {
		t.Errorf("the user's other session: got %v", err)
	}
	if got := ask(w.h, "DELETE", "/sessions/"+other.SessionID, "", "Authorization", "Bearer "+user.Access); got.Code != 204 {
		t.Errorf("the user's own token: got %d %s, want 204", got.Code, got.Body)
	}
}

// TestForeignClaimsNotTold: introspection tells of a token that was made elsewhere what is believed of it, and no more.
func TestForeignClaimsNotTold(t *testing.T) {
	ti := withDjango(t, newBus())
	w := &world{testIssuer: ti, h: ti.PublicHandler(), secrets: make(map[string]string)}
	_, secret, err := w.AddClient(t.Context(), issuer.NewClient{ID: "gate"})
	if err != nil {
		t.Fatal(err)
	}
	w.secrets["gate"] = secret
	token := simpleJWT(t, "access", map[string]any{"scope": "admin", "sub": "8", "client_id": "job", "active": false, "roles": []string{"admin"}})
	got := decode[map[string]any](t, w.post("/oauth2/introspect", "gate", "token", token))
	if got["active"] != true || got["sub"] != "7" || got["user_id"] != "7" || got["scope"] != nil || got["client_id"] != nil || got["roles"] != nil {
		t.Errorf("introspecting a foreign token: got %v", got)
	}
}

// TestSecretInThePlaceOfAnID: a secret that somebody sends as client_id, the halves of Basic swapped, is written nowhere.
func TestSecretInThePlaceOfAnID(t *testing.T) {
	w := newWorld(t, newBus())
	secret, key := w.secrets["job"], addCredential(t, w.testIssuer, issuer.NewCredential{}).Secret
	for _, id := range []string{secret, key} {
		refusal(t, "as a form field", w.post("/oauth2/token", "", "grant_type", "refresh_token", "refresh_token", "x", "client_id", id), 401, "invalid_client")
		got := ask(w.h, "POST", "/oauth2/token", "grant_type=client_credentials", "Content-Type", formType, "Authorization", basic(id, "job"))
		refusal(t, "by Basic", got, 401, "invalid_client")
		if strings.Contains(got.Body.String(), id) || strings.Contains(w.logged.String(), id) {
			t.Error("the secret is in the answer or the log")
		}
	}
	if !strings.Contains(w.logged.String(), "client refused") {
		t.Error("the refusals are not told")
	}
}

// TestObtainTokenIsAudited: guessing passwords by the way that gives opaque tokens shows as guessing them by any other.
func TestObtainTokenIsAudited(t *testing.T) {
	ti := start(t, newBus(), func(c *issuer.Config, _ *issuer.Parts) { c.LoginLimit = 2 })
	for range 3 {
		if _, err := ti.ObtainToken(t.Context(), issuer.Credentials{Username: "alice", Password: "x"}, 0); err == nil {
			t.Error("ObtainToken(wrong password): got a token")
		}
	}
	for _, what := range []string{"login refused", "login limited"} {
		if !strings.Contains(ti.logged.String(), what) {
			t.Errorf("the audit has no %q", what)
		}
	}
}

// TestSlidingTokenRevokedByItsText: a sliding token is a refresh token too, so that who had it may hold a later one: its session
// ends with it. So does the one that a foreign one was exchanged for.
func TestSlidingTokenRevokedByItsText(t *testing.T) {
	ti := withDjango(t, newBus(), func(c *issuer.Config, _ *issuer.Parts) { c.Sliding = true })
	ours, err := ti.LoginSliding(t.Context(), issuer.Credentials{Username: "alice", Password: "wonderland"})
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{
		"ours": ours.Access, "foreign": simpleJWT(t, "sliding", map[string]any{"refresh_exp": time.Now().Unix() + 3600}),
	} {
		stolen, err := ti.RefreshSliding(t.Context(), token)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := ti.Revoke(t.Context(), issuer.Target{Token: token}); err != nil {
			t.Errorf("Revoke(%s): got %v", name, err)
		}
		for what, one := range map[string]string{"itself": token, "a later one of its session": stolen.Access} {
			refused(t, name+", "+what, verify(ti.replica, one), keyring.Revoked)
			if _, err := ti.RefreshSliding(t.Context(), one); err == nil {
				t.Errorf("%s, %s: exchanged again after it was revoked", name, what)
			}
		}
	}
}

// TestNoUserIsAClient: who may choose an id in a directory does not become a client by it, nor a new client a user.
func TestNoUserIsAClient(t *testing.T) {
	d := newDirectory()
	ti := elsewhere(t, d)
	if _, _, err := ti.AddClient(t.Context(), issuer.NewClient{ID: "job"}); err != nil {
		t.Fatal(err)
	}
	tokens := loginAs(t, ti, "anna")
	d.set("ben", func(a *issuer.Account) { a.ID = "job" })
	if _, err := ti.Login(t.Context(), issuer.Credentials{Username: "ben", Password: djangoPassword}); !errors.Is(err, issuer.ErrCredentials) {
		t.Errorf("Login of a user with a client's id: got %v, want ErrCredentials", err)
	}
	if !strings.Contains(ti.logged.String(), "its id is that of an OAuth client") {
		t.Error("the log does not say why")
	}
	d.set("ben", func(a *issuer.Account) { a.ID = "gate" })
	if _, _, err := ti.AddClient(t.Context(), issuer.NewClient{ID: "gate"}); !errors.Is(err, issuer.ErrExists) {
		t.Errorf("AddClient with a user's id: got %v, want ErrExists", err)
	}
	refresh(t, ti, tokens.Refresh)
}
