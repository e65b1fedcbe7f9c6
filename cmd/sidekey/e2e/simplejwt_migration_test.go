package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestSimpleJWTMigration is the walk of docs/simplejwt.md, for both kinds of SIGNING_KEY: the project's key is imported, its
// users come with their ids, and the tokens that they hold are verified by the agent and refreshed into ours, once.
func TestSimpleJWTMigration(t *testing.T) {
	needPython(t, "django", "rest_framework_simplejwt", "cryptography")
	for _, alg := range []string{"HS256", "RS256"} {
		t.Run(alg, func(t *testing.T) { migrate(t, alg) })
	}
}

func migrate(t *testing.T, alg string) {
	dir := t.TempDir()
	keyFile, toSign := filepath.Join(dir, "signing.key"), filepath.Join(dir, "private.pem")
	accept := []string{"keys", "import", keyFile, "--accept", "simplejwt", "--iss", "shop"}
	if alg == "HS256" {
		write(t, keyFile, signingKey+"\n")
		write(t, toSign, signingKey)
		accept = append(accept, "--alg", "HS256", "--agents", "web")
	} else {
		out := runScript(t, `
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import rsa
key = rsa.generate_private_key(65537, 2048)
print(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()).decode() + '#' +
      key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo).decode())
`)
		private, public, _ := strings.Cut(out, "#")
		write(t, toSign, private)
		write(t, keyFile, public)
	}
	d := newDjango(t, fmt.Sprintf(`
INSTALLED_APPS += ['rest_framework_simplejwt', 'rest_framework_simplejwt.token_blacklist']
SIMPLE_JWT = {'ALGORITHM': %q, 'SIGNING_KEY': open(%q).read(), 'ISSUER': 'shop'}
`, alg, toSign), "urlpatterns = []\n")
	made := strings.Fields(d.shell(`
from django.contrib.auth.models import User
from rest_framework_simplejwt.tokens import RefreshToken
user = User.objects.create_user('ina', id=41, password='x')
refresh = RefreshToken.for_user(user)
print(refresh, refresh.access_token, RefreshToken.for_user(user).access_token)
`))
	c := dev(t, "", "[agent]\nname = \"web\"")
	password := filepath.Join(dir, "password")
	write(t, password, pass)
	c.sidekey(accept...)
	c.sidekey("users", "add", ina, "--id", "41", "--password", "@"+password)
	refresh, access, other := made[0], made[1], made[2]

	verify := func(token string) (int, string) {
		res, body := do(t, http.MethodPost, c.Agent+"/v1/verify", http.Header{"Content-Type": {kindJSON}}, fmt.Sprintf(`{"token":%q}`, token))
		return res.StatusCode, body
	}
	await(t, "the agent to know the key", func() error {
		if status, body := verify(access); status != http.StatusOK || !strings.Contains(body, `"sub":"41"`) {
			return fmt.Errorf("got %d %s", status, body)
		}
		return nil
	})
	if status, body := verify(refresh); status != http.StatusUnauthorized || !strings.Contains(body, "wrong_type") {
		t.Errorf("a refresh token at the agent: got %d %s", status, body)
	}
	s := &side{t: t, url: c.Issuer}
	ours := s.obtain("/api/token/refresh/", fmt.Sprintf(`{"refresh":%q}`, refresh))
	if status, body := verify(ours["access"]); status != http.StatusOK || !strings.Contains(body, `"sub":"41"`) {
		t.Errorf("what the foreign refresh token gave: got %d %s", status, body)
	}
	s.obtain("/api/token/refresh/", fmt.Sprintf(`{"refresh":%q}`, ours["refresh"]))
	res, body := do(t, http.MethodPost, c.Issuer+"/api/token/refresh/", http.Header{"Content-Type": {kindJSON}}, fmt.Sprintf(`{"refresh":%q}`, refresh))
	if res.StatusCode != http.StatusUnauthorized || body != `{"detail":"Token is blacklisted","code":"token_not_valid"}` {
		t.Errorf("the foreign refresh token used again: got %d %s", res.StatusCode, body)
	}
	c.sidekey("revoke", "--token", access, "--wait")
	if status, body := verify(access); status != http.StatusUnauthorized || !strings.Contains(body, "revoked") {
		t.Errorf("a revoked foreign token: got %d %s", status, body)
	}
	var keys struct {
		Keys []struct {
			KeyID  string `json:"kid"`
			Accept string `json:"accept"`
		} `json:"keys"`
	}
	if err := json.Unmarshal([]byte(c.sidekey("keys", "list", "--format", "json")), &keys); err != nil {
		t.Fatal(err)
	}
	for _, k := range keys.Keys {
		if k.Accept == "simplejwt" {
			c.sidekey("keys", "revoke", "--wait", "--", k.KeyID)
		}
	}
	if status, body := verify(other); status != http.StatusUnauthorized || !strings.Contains(body, "key_revoked") {
		t.Errorf("a token of a revoked key: got %d %s", status, body)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// runScript runs Python and gives what it prints.
func runScript(t *testing.T, code string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "script.py")
	write(t, file, code)
	out, err := exec.CommandContext(t.Context(), python, file).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}
