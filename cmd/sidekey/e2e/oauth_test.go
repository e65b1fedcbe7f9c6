package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sidekey/sidekey/keyring"
)

const grantExchange = "urn:ietf:params:oauth:grant-type:token-exchange"

// addClient registers a client and gives its secret.
func (c *cluster) addClient(args ...string) string {
	c.t.Helper()
	var answer struct {
		Secret string `json:"client_secret"`
	}
	if err := json.Unmarshal([]byte(c.sidekey(append([]string{"clients", "add", "--format", "json"}, args...)...)), &answer); err != nil {
		c.t.Fatal(err)
	}
	return answer.Secret
}

// addRobot registers the client robot, which authenticates with key.
func (c *cluster) addRobot(key *keyring.Key) {
	c.t.Helper()
	public, err := key.PublicJWK()
	if err != nil {
		c.t.Fatal(err)
	}
	file := filepath.Join(c.t.TempDir(), "robot.jwks.json")
	if err := os.WriteFile(file, []byte(`{"keys":[`+string(public)+`]}`), 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.addClient("robot", "--scope", "read", "--jwks", "@"+file)
}

// findings are what a suite of client libraries has seen.
type findings struct {
	Same   bool // both ways of discovery give the same
	Tokens []struct {
		Sub, Scope    string
		Expires       int
		Before, After bool // active, before and after the revocation
	}
	Refreshed bool
	Exchanged string
	Refused   struct{ Code, Error string }
}

func (f *findings) check(t *testing.T, subjects ...string) {
	t.Helper()
	if len(f.Tokens) != len(subjects) {
		t.Fatalf("got %+v, want tokens of %v", f, subjects)
	}
	for at, sub := range subjects {
		if got := f.Tokens[at]; got.Sub != sub || got.Scope != "read" || got.Expires != 900 || !got.Before || got.After {
			t.Errorf("token %d: got %+v, want one of %s for 900 s, active until revoked", at, got, sub)
		}
	}
	if !f.Refreshed {
		t.Error("the refresh of a user's session: got no successor with user_id")
	}
}

// runWith runs a suite with input on its standard input, and reads its findings.
func runWith(t *testing.T, cmd *exec.Cmd, input any) *findings {
	t.Helper()
	text, err := json.Marshal(input)
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(text), &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s%s", cmd.Args, err, out, stderr.String())
	}
	f := new(findings)
	if err := json.Unmarshal(out, f); err != nil {
		t.Fatalf("%v: got %s: %v", cmd.Args, out, err)
	}
	return f
}

// TestAuthlib: Authlib, unmodified, gets tokens in every way, verifies them from the metadata's JWK Set, and has them
// introspected, refreshed and revoked.
func TestAuthlib(t *testing.T) {
	needPython(t, "authlib", "requests")
	c := dev(t, "", "")
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	key, err := keyring.ParsePEM(text, "")
	if err != nil {
		t.Fatal(err)
	}
	c.addRobot(key)
	secret := c.addClient("authlib", "--scope", "read write")
	_, refresh := c.login()
	cmd := exec.CommandContext(t.Context(), python, filepath.Join("testdata", "authlib_clients.py"))
	got := runWith(t, cmd, map[string]any{"issuer": c.Issuer, "secret": secret, "pem": string(text), "refresh": refresh})
	got.check(t, "authlib", "authlib", "robot")
	if got.Refused.Error != "invalid_client" {
		t.Errorf("a wrong secret: Authlib reads %q, want invalid_client", got.Refused.Error)
	}
}

// TestJoseAndOAuth4WebAPI: the two libraries of npm, unmodified, at the versions that the lock file has.
func TestJoseAndOAuth4WebAPI(t *testing.T) {
	need(t, "node --version", "npm --version")
	dir := t.TempDir()
	for _, name := range []string{"package.json", "package-lock.json", "clients.mjs"} {
		text, err := os.ReadFile(filepath.Join("testdata", "npm", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	install := exec.CommandContext(t.Context(), "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("npm ci: %v\n%s", err, out)
	}
	c := dev(t, "", "")
	key, err := keyring.Generate(keyring.ES256, 0)
	if err != nil {
		t.Fatal(err)
	}
	jwk, err := key.PrivateJWK()
	if err != nil {
		t.Fatal(err)
	}
	c.addRobot(key)
	secret := c.addClient("npm", "--scope", "read write", "--grant", "client_credentials", "--grant", grantExchange)
	_, refresh := c.login()
	cmd := exec.CommandContext(t.Context(), "node", "clients.mjs")
	cmd.Dir = dir
	got := runWith(t, cmd, map[string]any{
		"issuer": c.Issuer, "audience": c.Issuer, "secret": secret, "jwk": json.RawMessage(jwk), "refresh": refresh,
	})
	got.check(t, "npm", "npm", "robot")
	if !got.Same || got.Exchanged != "read" {
		t.Errorf("got %+v, want one metadata in both places, and an exchanged token for read", got)
	}
	if got.Refused.Code != "OAUTH_WWW_AUTHENTICATE_CHALLENGE" && got.Refused.Error != "invalid_client" {
		t.Errorf("a wrong secret: oauth4webapi reads %+v, want invalid_client or the challenge", got.Refused)
	}
}

// simpleJWTViews are two views, as a project has them: one looks the user up in its database, one believes the token.
const simpleJWTViews = `
from django.urls import path
from rest_framework.permissions import IsAuthenticated
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework_simplejwt.authentication import JWTAuthentication, JWTStatelessUserAuthentication

class Looked(APIView):
    authentication_classes = [JWTAuthentication]
    permission_classes = [IsAuthenticated]
    def get(self, request):
        return Response({'id': str(request.user.pk), 'name': request.user.get_username()})

class Believed(Looked):
    authentication_classes = [JWTStatelessUserAuthentication]
    def get(self, request):
        return Response({'id': str(request.user.id), 'scope': request.auth['scope']})

urlpatterns = [path('looked/', Looked.as_view()), path('believed/', Believed.as_view())]
`

// TestSimpleJWTByJWKURL: a Django project whose Simple JWT, unmodified, gets its keys from our JWK Set.
func TestSimpleJWTByJWKURL(t *testing.T) {
	needPython(t, "django", "rest_framework", "rest_framework_simplejwt")
	need(t, python+" -m gunicorn --version")
	c := dev(t, "", "")
	d := newDjango(t, fmt.Sprintf(`
SIMPLE_JWT = {
    'ALGORITHM': 'RS256', 'SIGNING_KEY': '', 'JWK_URL': '%[1]s/.well-known/jwks.json',
    'ISSUER': '%[1]s', 'AUDIENCE': '%[1]s', 'USER_ID_FIELD': 'id', 'USER_ID_CLAIM': 'user_id',
}
`, c.Issuer), simpleJWTViews)
	id := strings.TrimSpace(d.shell("from django.contrib.auth.models import User\nprint(User.objects.create_user('bob').pk)"))
	d.serve(1, "/believed/")
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("correct horse battery"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.sidekey("users", "add", "bob", "--id", id, "--password", "@"+password, "--scope", "read")
	_, body := do(t, http.MethodPost, c.Issuer+"/api/token/", http.Header{"Content-Type": {"application/json"}},
		`{"username":"bob","password":"correct horse battery"}`)
	var bob struct{ Access, Refresh string }
	if err := json.Unmarshal([]byte(body), &bob); err != nil {
		t.Fatal(err)
	}
	alice, _ := c.login()
	secret := c.addClient("service", "--scope", "read")
	_, body = do(t, http.MethodPost, c.Issuer+"/oauth2/token", http.Header{"Content-Type": {"application/x-www-form-urlencoded"}},
		"grant_type=client_credentials&client_id=service&client_secret="+secret)
	var service struct {
		Access string `json:"access_token"`
	}
	if err := json.Unmarshal([]byte(body), &service); err != nil || service.Access == "" {
		t.Fatalf("a token of the service: got %s", body)
	}
	for _, tc := range []struct {
		name, path, token string
		status            int
		want              string
	}{
		{"bob, looked up", "/looked/", bob.Access, 200, `{"id":"` + id + `","name":"bob"}`},
		{"bob, believed", "/believed/", bob.Access, 200, `{"id":"` + id + `","scope":"read"}`},
		{"alice, believed", "/believed/", alice, 200, `"scope":"read write"`},
		{"a refresh token", "/believed/", bob.Refresh, 401, "token_not_valid"},
		{"a tampered token", "/believed/", bob.Access[:len(bob.Access)-6] + "AAAAAA", 401, "token_not_valid"},
		{"a service, which is no user", "/believed/", service.Access, 401, "token_not_valid"},
		{"a service, looked up", "/looked/", service.Access, 401, "token_not_valid"},
	} {
		res, got := do(t, http.MethodGet, d.URL+tc.path, http.Header{"Authorization": {"Bearer " + tc.token}}, "")
		if res.StatusCode != tc.status || !strings.Contains(got, tc.want) {
			t.Errorf("%s: got %d %s, want %d %s", tc.name, res.StatusCode, got, tc.status, tc.want)
		}
	}
}
