package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// obtainMeant are the differences from obtain_auth_token that are so on purpose.
var obtainMeant = []difference{
	{"*: a word for JSON|*: a comma too many", "body", "Expecting property name enclosed in double quotes", "Expecting value", words},
	{"*: JSON and more", "body", "Extra data", "Expecting value", words},
	{"*: bad UTF-8", "body", "", "", words},
	{"*: OPTIONS", "status", "200", "204", metadata},
	{"*: OPTIONS", "body", "", "", metadata},
	{"*: OPTIONS", "type", "application/json", "", metadata},
	{"*: no slash", "status", "404", "400", slash},
	{"*: no slash", "body", "", "", slash},
	{"*: no slash", "allow", "", "", slash},
	{"*: no slash", "type", "text/html", "application/json", slash},
}

// TestObtainAuthToken sends the same requests to Debian's rest_framework.authtoken.views.obtain_auth_token and to sidekey's
// /api-token-auth/, and compares the answers as TestSimpleJWT does. The tokens that ours gives are good at the agent, each its own.
func TestObtainAuthToken(t *testing.T) {
	needPython(t, "django", "rest_framework.authtoken", "gunicorn")
	d := newDjango(t, "INSTALLED_APPS += ['rest_framework.authtoken']\n", `
from django.urls import path
from rest_framework.authtoken.views import obtain_auth_token
urlpatterns = [path('api-token-auth/', obtain_auth_token)]
`)
	d.shell(fmt.Sprintf(`
from django.contrib.auth.models import User
for name in %q.split():
    User.objects.create_user(name, password=%q, is_active=name in ('ina', 'dan'))
`, strings.Join([]string{ina, bob, carl, "dan"}, " "), pass))
	blanks := strings.TrimSpace(d.shell("from django.contrib.auth.models import User\nprint(User.objects.create_user('blanks', password=' within ').password)"))
	d.serve(1, "/api-token-auth/")

	c := dev(t, "", "[issuer]\napi_token_auth = true\napi_token_lifetime = \"24h\"")
	passFile := filepath.Join(t.TempDir(), "password")
	write(t, passFile, pass)
	for _, name := range []string{ina, bob, carl, "dan"} {
		c.sidekey("users", "add", name, "--password", "@"+passFile)
	}
	c.hashed("blanks", blanks)
	c.sidekey("users", "disable", bob)
	c.sidekey("users", "disable", carl)

	theirs, ours := &side{t: t, url: d.URL}, &side{t: t, url: c.Issuer}
	cases := obtainCases()
	used := make([]int, len(obtainMeant))
	for _, one := range cases {
		compare(t, obtainMeant, one, opaque(theirs.ask(one)), opaque(ours.ask(one)), used)
	}
	for at, n := range used {
		if n == 0 {
			t.Errorf("the difference in %s of %q, %q, does not occur any more", obtainMeant[at].what, obtainMeant[at].cases, obtainMeant[at].why)
		}
	}
	t.Logf("%d requests were compared", len(cases))
	goodAtAgent(t, c, ours)
}

func obtainCases() []simpleCase {
	const path = "/api-token-auth/"
	all := append(shapes("username", path, "username", `"password":"x"`), shapes("password", path, "password", `"username":"x"`)...)
	all = append(all, logins([2]string{"login", path})...)
	return append(all,
		post("login: a password of blanks", path, `{"username":"ina","password":"  "}`),
		post("login: the blanks of a password", path, `{"username":"blanks","password":" within "}`),
		post("login: without the blanks of a password", path, `{"username":"blanks","password":"within"}`),
		simpleCase{"login: the blanks of a password in a form", http.MethodPost, path, kindForm, "username=blanks&password=+within+"})
}

// opaque takes the token out of an answer.
func opaque(a answer) answer {
	a.body = regexp.MustCompile(`^\{"token":"[0-9A-Za-z_-]{40,}"\}$`).ReplaceAllString(a.body, `{"token":"one"}`)
	return a
}

// goodAtAgent: two logins give two tokens; the agent takes both, as DRF's TokenAuthentication would; disabling the user ends both.
func goodAtAgent(t *testing.T, c *cluster, ours *side) {
	t.Helper()
	login := fmt.Sprintf(`{"username":"dan","password":%q}`, pass)
	first, second := ours.obtain("/api-token-auth/", login)["token"], ours.obtain("/api-token-auth", login)["token"]
	if first == second {
		t.Errorf("two logins: got one token, %q", first)
	}
	ask := func(token string) int {
		res, _ := do(t, http.MethodGet, c.Agent+"/v1/auth/forward", http.Header{
			"Authorization": {"Token " + token}, "X-Forwarded-Method": {"GET"}, "X-Forwarded-Uri": {"/"}, "X-Forwarded-Host": {"app.example"},
			"X-Forwarded-Proto": {"https"},
		}, "")
		return res.StatusCode
	}
	for _, token := range []string{first, second} {
		await(t, "the agent to know the token", func() error {
			if got := ask(token); got != http.StatusOK {
				return fmt.Errorf("got %d, want 200", got)
			}
			return nil
		})
	}
	c.sidekey("users", "disable", "dan", "--wait")
	for _, token := range []string{first, second} {
		if got := ask(token); got != http.StatusUnauthorized {
			t.Errorf("a token of a disabled user: got %d, want 401", got)
		}
	}
}

// hashed adds a user whose password is Django's hash: one that sidekey would not take as a new password, since Simple JWT trims it.
func (c *cluster) hashed(name, hash string) {
	c.t.Helper()
	admin, err := os.ReadFile(filepath.Join(c.DataDir, "admin.token"))
	if err != nil {
		c.t.Fatal(err)
	}
	res, body := do(c.t, http.MethodPost, c.Issuer+"/admin/v1/users", http.Header{
		"Content-Type": {kindJSON}, "Authorization": {"Bearer " + strings.TrimSpace(string(admin))},
	}, fmt.Sprintf(`{"username":%q,"password_hash":%q}`, name, hash))
	if res.StatusCode != http.StatusCreated {
		c.t.Fatalf("adding %s: got %d %s", name, res.StatusCode, body)
	}
}
