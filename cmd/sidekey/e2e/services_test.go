package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestDjangoExample: deploy/examples/django in a real project of Django REST Framework.
func TestDjangoExample(t *testing.T) {
	needPython(t, "django", "rest_framework", "gunicorn")
	c := dev(t, "", "")
	example, err := filepath.Abs("../../../deploy/examples/django")
	if err != nil {
		t.Fatal(err)
	}
	d := newDjango(t, fmt.Sprintf(`
import sys
sys.path.append(%q)
SIDEKEY_AGENT = %q
REST_FRAMEWORK = {
    'DEFAULT_AUTHENTICATION_CLASSES': ['sidekey_auth.SidekeyAuthentication'],
    'DEFAULT_PERMISSION_CLASSES': ['rest_framework.permissions.IsAuthenticated'],
    'DEFAULT_RENDERER_CLASSES': ['rest_framework.renderers.JSONRenderer'],
}
`, example, strings.TrimPrefix(c.Agent, "http://")), `
from django.urls import path
from rest_framework import permissions, response, views
def view(permission):
    class View(views.APIView):
        permission_classes = [permission]
        def get(self, request):
            u = request.user
            return response.Response({'subject': u.id if u.is_authenticated else None, 'scopes': sorted(getattr(u, 'scopes', []))})
    return View.as_view()
from sidekey_auth import HasScope
urlpatterns = [
    path('whoami', view(permissions.IsAuthenticated)), path('open', view(permissions.AllowAny)),
    path('write', view(HasScope.of('write'))), path('admin', view(HasScope.of('admin'))),
]
`)
	d.serve(1, "/open")
	tryExample(t, c, d.URL, `{"subject":%q,"scopes":["read","write"]}`, `{"subject":null,"scopes":[]}`)
}

// TestExpressExample: deploy/examples/express in a real Express.
func TestExpressExample(t *testing.T) {
	need(t, "node --version", "npm --version")
	c := dev(t, "", "")
	dir := t.TempDir()
	for _, name := range []string{"package.json", "package-lock.json"} {
		copyFile(t, filepath.Join("testdata", "npm", name), filepath.Join(dir, name))
	}
	copyFile(t, "../../../deploy/examples/express/sidekey.mjs", filepath.Join(dir, "sidekey.mjs"))
	copyFile(t, "testdata/express.mjs", filepath.Join(dir, "app.mjs"))
	install := exec.CommandContext(t.Context(), "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("npm ci: %v\n%s", err, out)
	}
	port := freePort(t)
	app := exec.Command("node", "app.mjs", port, strings.TrimPrefix(c.Agent, "http://127.0.0.1:"))
	app.Dir = dir
	start(t, app)
	url := "http://127.0.0.1:" + port
	await(t, "Express", func() error {
		res, err := http.Get(url + "/open")
		if err == nil {
			res.Body.Close()
		}
		return err
	})
	tryExample(t, c, url, `{"subject":%q,"scopes":["read","write"]}`, `{"subject":null,"scopes":[]}`)
}

// tryExample asks a service with /whoami, /open, /write and /admin as its clients do, then revokes alice's session, then stops the agent.
func tryExample(t *testing.T, c *cluster, url, known, nobody string) {
	t.Helper()
	access, _ := c.login()
	res, body := do(t, http.MethodPost, c.Agent+"/v1/verify", http.Header{"Authorization": {"Bearer " + access}}, "")
	sub := decodeAny(t, body, "sub")
	if res.StatusCode != http.StatusOK || sub == "" {
		t.Fatalf("verifying: got %d %s", res.StatusCode, body)
	}
	known = fmt.Sprintf(known, sub)
	bearer := http.Header{"Authorization": {"Bearer " + access}, "X-Auth-Subject": {"root"}}
	ask := func(what, path string, header http.Header, status int, want, challenge string) {
		t.Helper()
		res, body := do(t, http.MethodGet, url+path, header, "")
		got := strings.Join(res.Header.Values("WWW-Authenticate"), ", ")
		if res.StatusCode != status || !strings.Contains(body, want) || !strings.HasPrefix(got, challenge) || challenge == "" && got != "" {
			t.Errorf("%s: got %d %s %q, want %d %s %q", what, res.StatusCode, body, got, status, want, challenge)
		}
		if (status == http.StatusServiceUnavailable) != (res.Header.Get("Retry-After") != "") {
			t.Errorf("%s: got Retry-After %q with %d", what, res.Header.Get("Retry-After"), res.StatusCode)
		}
	}
	const bare, invalid = `Bearer realm="sidekey"`, `Bearer realm="sidekey", error="invalid_token"`
	ask("known", "/whoami", bearer, 200, known, "")
	ask("known, with a query", "/whoami?a=%20b", bearer, 200, known, "")
	ask("nobody", "/whoami", nil, 401, "", bare)
	ask("identity of the client's own alone", "/whoami", http.Header{"X-Auth-Subject": {"root"}, "X-Auth-Method": {"bearer"}}, 401, "", bare)
	ask("wrong", "/whoami", http.Header{"Authorization": {"Bearer x"}}, 401, "", invalid)
	ask("a scope that is granted", "/write", bearer, 200, known, "")
	ask("an open route", "/open", nil, 200, nobody, "")
	res, body = do(t, http.MethodGet, url+"/admin", bearer, "")
	if res.StatusCode != http.StatusForbidden {
		t.Errorf("a scope that lacks: got %d %s, want 403", res.StatusCode, body)
	}
	c.sidekey("revoke", "--token", access, "--wait")
	ask("revoked", "/whoami", bearer, 401, "", invalid)
	c.proc.stop()
	ask("the agent is down", "/whoami", bearer, 503, "", "")
}

func decodeAny(t *testing.T, text, member string) string {
	t.Helper()
	_, rest, _ := strings.Cut(text, `"`+member+`":"`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, text, 0o600); err != nil {
		t.Fatal(err)
	}
}
