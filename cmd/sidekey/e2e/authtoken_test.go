package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestAuthTokenImport: the tokens that Django REST Framework's own authtoken made are taken from its database, and its clients go
// on with them at an agent.
func TestAuthTokenImport(t *testing.T) {
	needPython(t, "django", "rest_framework.authtoken")
	for _, database := range []string{"sqlite", "postgres", "mysql", "csv"} {
		t.Run(database, func(t *testing.T) {
			settings, source := "INSTALLED_APPS += ['rest_framework.authtoken']\n", []string(nil)
			dsn := filepath.Join(t.TempDir(), "dsn")
			if database == "postgres" {
				needPython(t, "psycopg2")
				p := newPostgres(t)
				settings += p.djangoDatabase()
				if err := os.WriteFile(dsn, []byte(p.dsn()+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				source = []string{"--database", "postgres", "--dsn", "@" + dsn}
			}
			if database == "mysql" {
				needPython(t, "MySQLdb")
				m := newMariaDB(t)
				settings += m.djangoDatabase()
				if err := os.WriteFile(dsn, []byte(m.dsn()+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				source = []string{"--database", "mysql", "--dsn", "@" + dsn}
			}
			d := newDjango(t, settings, "urlpatterns = []\n")
			switch database {
			case "sqlite":
				source = []string{"--database", "sqlite", "--dsn", filepath.Join(d.Dir, "db.sqlite3")}
			case "csv":
				source = []string{filepath.Join(d.Dir, "tokens.csv")}
			}
			importDjangoTokens(t, d, source)
		})
	}
}

func importDjangoTokens(t *testing.T, d *django, source []string) {
	var users []struct{ ID, Name, Key string }
	made := d.shell(`
import csv, json
from django.contrib.auth.models import User
from rest_framework.authtoken.models import Token
users = [User.objects.create_user(name) for name in ('ann', 'ben', 'cas')]
tokens = [Token.objects.create(user=u) for u in users]
with open('tokens.csv', 'w', newline='') as f:
    out = csv.writer(f)
    out.writerow(['key', 'created', 'user_id'])
    out.writerows([t.key, t.created, t.user_id] for t in Token.objects.all())
print(json.dumps([{'id': str(t.user_id), 'name': t.user.username, 'key': t.key} for t in tokens]))
`)
	if err := json.Unmarshal([]byte(made), &users); err != nil || len(users) != 3 {
		t.Fatalf("the tokens that Django made: %v in %s", err, made)
	}
	c := dev(t, "", "")
	for _, u := range users[:2] {
		c.sidekey("users", "add", u.Name, "--id", u.ID, "--password", "a-password-of-theirs")
	}
	// cas is not here yet: named by id, and nobody else is lost.
	out, status := c.tryImport(source)
	if status != 1 || !strings.Contains(out, `"imported": 2`) || !strings.Contains(out, `"user_id": "`+users[2].ID+`"`) {
		t.Errorf("the first import: exit status %d and %s, want 1, 2 imported, and the user that is missing", status, out)
	}
	for _, u := range users {
		if strings.Contains(out, u.Key) {
			t.Error("the import shows a token")
		}
	}
	c.sidekey("users", "add", users[2].Name, "--id", users[2].ID, "--password", "a-password-of-theirs")
	if out, status = c.tryImport(source); status != 0 || !strings.Contains(out, `"imported": 1`) || !strings.Contains(out, `"present": 2`) {
		t.Errorf("the second import: exit status %d and %s, want 0, 1 imported and 2 here already", status, out)
	}
	for _, u := range users {
		await(t, "the agent to know "+u.Name, func() error {
			req, err := http.NewRequest(http.MethodGet, c.Agent+"/v1/auth/forward", nil)
			if err != nil {
				return err
			}
			for name, value := range map[string]string{
				"Authorization": "Token " + u.Key, "X-Forwarded-Method": "GET", "X-Forwarded-Uri": "/", "X-Forwarded-Host": "app.example",
				"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.1",
			} {
				req.Header.Set(name, value)
			}
			res, err := http.DefaultClient.Do(req)
			if err == nil && res.StatusCode == http.StatusOK && res.Header.Get("X-Auth-Subject") != u.ID {
				t.Errorf("X-Auth-Subject: got %q, want %q", res.Header.Get("X-Auth-Subject"), u.ID)
			}
			return expectStatus(http.StatusOK)(res, err)
		})
	}
	var listed struct {
		Credentials []struct {
			Created  int64
			Imported bool
		}
	}
	if err := json.Unmarshal([]byte(c.sidekey("credentials", "list", "--user", users[0].Name, "--format", "json")), &listed); err != nil {
		t.Fatal(err)
	}
	if len(listed.Credentials) != 1 || !listed.Credentials[0].Imported || listed.Credentials[0].Created == 0 {
		t.Errorf("the list: got %+v, want the imported one with its time", listed)
	}
}

// tryImport runs `sidekey credentials import`, and gives its output and exit status.
func (c *cluster) tryImport(source []string) (string, int) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), binary, append([]string{"credentials", "import", "--format", "json"}, source...)...)
	cmd.Env = append(os.Environ(), "SIDEKEY_ADDR="+c.Issuer, "SIDEKEY_TOKEN_FILE="+filepath.Join(c.DataDir, "admin.token"))
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		c.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}
