package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// hasherSettings has every hasher of Django, old ones too.
const hasherSettings = `
PASSWORD_HASHERS = ['django.contrib.auth.hashers.' + name for name in (
    'PBKDF2PasswordHasher', 'PBKDF2SHA1PasswordHasher', 'Argon2PasswordHasher', 'BCryptSHA256PasswordHasher', 'BCryptPasswordHasher',
    'MD5PasswordHasher')]
`

const noURLs = "urlpatterns = []\n"

// makeUsers makes one user for each hasher, and the odd ones. Django 3.2 has no scrypt: its row is in the form of Django 4's.
const makeUsers = `
import base64, hashlib
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import Group, User
for name in ('pbkdf2_sha256', 'pbkdf2_sha1', 'argon2', 'bcrypt_sha256', 'bcrypt', 'md5'):
    User.objects.create(username=name, password=make_password('pässwörd ' + name, hasher=name))
def scrypt(password):
    key = hashlib.scrypt(password.encode(), salt=b'saltysalt', n=2**14, r=8, p=1, maxmem=2**26, dklen=64)
    return 'scrypt$16384$saltysalt$8$1$' + base64.b64encode(key).decode()
User.objects.create(username='scrypt', password=scrypt('pässwörd scrypt'))
User.objects.create_user('disabled', password='pässwörd disabled', is_active=False)
User.objects.create_user('unusable')
User.objects.create(username='empty', password='')
User.objects.create_user('Ünïcode@+-_.', password='pässwörd Ünïcode@+-_.')
User.objects.create_user("o'; drop table auth_user; --", password="pässwörd o'; drop table auth_user; --")
staff = User.objects.create_user('staff', 'staff@example.org', password='pässwörd staff', is_staff=True)
staff.groups.add(*(Group.objects.create(name=name) for name in ('editors', 'site admins')))
for name in ('anna', 'ben', 'carl', 'dora'):
    User.objects.create_user(name, password='pässwörd ' + name)
`

// users are the names of makeUsers, some that are not, and what sidekey says otherwise than Django, on purpose.
var (
	userNames = []string{
		"pbkdf2_sha256", "pbkdf2_sha1", "argon2", "bcrypt_sha256", "bcrypt", "md5", "scrypt", "disabled", "unusable", "empty",
		"Ünïcode@+-_.", "o'; drop table auth_user; --", "staff", "anna", "Anna", "nobody", "' or '1'='1",
	}
	otherwise = map[string]bool{
		"md5":    false, // no protection: docs/users.md
		"scrypt": true,  // Django 3.2 does not know its successors' hash
	}
)

// usersConfig takes the configuration for one driver from docs/users.md, as it stands there.
func usersConfig(t *testing.T, driver, dsn, recheck string) string {
	t.Helper()
	page, err := os.ReadFile("../../../docs/users.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		if !strings.Contains(block[1], fmt.Sprintf("driver = %q", driver)) {
			continue
		}
		path := filepath.Join(t.TempDir(), "users.dsn")
		if err := os.WriteFile(path, []byte(dsn+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		text := strings.Replace(block[1], `"/etc/sidekey/users.dsn"`, fmt.Sprintf("%q", path), 1)
		return strings.Replace(text, `users = "sql"`, fmt.Sprintf("users = \"sql\"\nusers_recheck = %q", recheck), 1)
	}
	t.Fatalf("docs/users.md has no configuration for %s", driver)
	return ""
}

// loginAs tries a login.
func (c *cluster) loginAs(name, password string) (status int, access, refresh string) {
	c.t.Helper()
	body, err := json.Marshal(map[string]string{"username": name, "password": password})
	if err != nil {
		c.t.Fatal(err)
	}
	res, text := do(c.t, http.MethodPost, c.Issuer+"/api/token/", http.Header{"Content-Type": {"application/json"}}, string(body))
	var got struct{ Access, Refresh string }
	_ = json.Unmarshal([]byte(text), &got) // a refusal has neither
	return res.StatusCode, got.Access, got.Refresh
}

func (c *cluster) refreshWith(token string) (status int, body string) {
	c.t.Helper()
	res, text := do(c.t, http.MethodPost, c.Issuer+"/api/token/refresh/", http.Header{"Content-Type": {"application/json"}}, `{"refresh":"`+token+`"}`)
	return res.StatusCode, text
}

// agentSays is the status of /v1/verify.
func (c *cluster) agentSays(access string) (int, string) {
	c.t.Helper()
	res, text := do(c.t, http.MethodGet, c.Agent+"/v1/verify", http.Header{"Authorization": {"Bearer " + access}}, "")
	return res.StatusCode, text
}

// TestDjangoUsers holds the logins of a Django project's users against Django's own authenticate(), over the queries that docs/users.md
// has, and what follows when Django changes a user.
func TestDjangoUsers(t *testing.T) {
	needPython(t, "django", "rest_framework", "argon2", "bcrypt", "psycopg2")
	t.Run("sqlite", func(t *testing.T) {
		d := newDjango(t, hasherSettings, noURLs)
		d.shell(makeUsers)
		c := dev(t, "", usersConfig(t, "sqlite", filepath.Join(d.Dir, "db.sqlite3"), "0s"))
		compareLogins(t, d, c)
		changesAtRefresh(t, d, c)
		signalFromDjango(t, d, c)
		refusalsTakeTheSame(t, c)
		c.writesNoUser()
	})
	t.Run("postgres", func(t *testing.T) {
		p := newPostgres(t)
		d := newDjango(t, hasherSettings+p.djangoDatabase(), noURLs)
		d.shell(makeUsers)
		c := dev(t, "", usersConfig(t, "postgres", p.dsn(), "1s"))
		compareLogins(t, d, c)
		changesAtRecheck(t, d, c)
		c.writesNoUser()
	})
}

// TestDjangoUsersOnMariaDB is TestDjangoUsers on MariaDB, whose collation takes é for e and upper case for lower.
func TestDjangoUsersOnMariaDB(t *testing.T) {
	needPython(t, "django", "rest_framework", "argon2", "bcrypt", "MySQLdb")
	m := newMariaDB(t)
	d := newDjango(t, hasherSettings+m.djangoDatabase(), noURLs)
	d.shell(makeUsers)
	c := dev(t, "", usersConfig(t, "mysql", m.dsn(), "1s"))
	compareLogins(t, d, c)
	changesAtRecheck(t, d, c)
	c.writesNoUser()
}

// compareLogins tries each name with the right and with wrong passwords at both.
func compareLogins(t *testing.T, d *django, c *cluster) {
	t.Helper()
	type try struct{ Name, Password string }
	var tries []try
	for _, name := range userNames {
		for _, password := range []string{"pässwörd " + name, "pässwörd anna", "wrong", "!", "PÄSSWÖRD " + name} {
			tries = append(tries, try{name, password})
		}
	}
	// Here first: authenticate() makes the hash anew by the first hasher.
	statuses, in := make([]int, len(tries)), 0
	for at, try := range tries {
		status, access, _ := c.loginAs(try.Name, try.Password)
		statuses[at] = status
		if access == "" {
			continue
		}
		in++
		if status, text := c.agentSays(access); status != http.StatusOK || try.Name == "staff" && !strings.Contains(text, `"roles":["editors","site admins"]`) {
			t.Errorf("%s: the agent says %d %s", try.Name, status, text)
		}
	}
	list, err := json.Marshal(tries)
	if err != nil {
		t.Fatal(err)
	}
	var django []bool
	said := d.shell(fmt.Sprintf("import json\nfrom django.contrib.auth import authenticate\nprint(json.dumps([authenticate(username=t['Name'], password=t['Password']) is not None for t in json.loads(%q)]))", list))
	if err := json.Unmarshal([]byte(said), &django); err != nil || len(django) != len(tries) {
		t.Fatalf("Django said %s: %v", said, err)
	}
	for at, try := range tries {
		want := django[at]
		if here, ok := otherwise[try.Name]; ok && try.Password == "pässwörd "+try.Name {
			if want == here {
				t.Errorf("%s: Django says %v too; it is no exception", try.Name, want)
			}
			want = here
		}
		if got := statuses[at] == http.StatusOK; got != want || !got && statuses[at] != http.StatusUnauthorized {
			t.Errorf("%q with %q: got %d, want a login: %v", try.Name, try.Password, statuses[at], want)
		}
	}
	t.Logf("%d logins compared with Django's authenticate(), %d of them successful", len(tries), in)
}

// changesAtRefresh changes users in Django and refreshes.
func changesAtRefresh(t *testing.T, d *django, c *cluster) {
	t.Helper()
	for name, test := range map[string]struct{ change, want string }{
		"anna": {"u.is_active = False; u.save()", `{"detail":"No active account found for the given token."}`},
		"ben":  {"u.set_password('another'); u.save()", `{"detail":"Token is blacklisted","code":"token_not_valid"}`},
		"carl": {"u.delete()", `{"detail":"No active account found for the given token."}`},
	} {
		status, access, refresh := c.loginAs(name, "pässwörd "+name)
		if status != http.StatusOK {
			t.Fatalf("%s: got %d", name, status)
		}
		d.shell("from django.contrib.auth.models import User\nu = User.objects.get(username='" + name + "'); " + test.change)
		if status, text := c.refreshWith(refresh); status != http.StatusUnauthorized || text != test.want {
			t.Errorf("%s after %s: a refresh is %d %s, want 401 %s", name, test.change, status, text, test.want)
		}
		await(t, "the agent to refuse "+name, func() error {
			if status, text := c.agentSays(access); status != http.StatusUnauthorized || !strings.Contains(text, `"reason":"revoked"`) {
				return fmt.Errorf("it says %d %s", status, text)
			}
			return nil
		})
	}
	if status, _, _ := c.loginAs("ben", "another"); status != http.StatusOK {
		t.Errorf("the new password: got %d", status)
	}
}

// changesAtRecheck changes users in Django and waits.
func changesAtRecheck(t *testing.T, d *django, c *cluster) {
	t.Helper()
	access := map[string]string{}
	for _, name := range []string{"anna", "ben", "carl", "dora"} {
		_, access[name], _ = c.loginAs(name, "pässwörd "+name)
	}
	d.shell("from django.contrib.auth.models import User\nUser.objects.filter(username='anna').update(is_active=False)\n" +
		"u = User.objects.get(username='ben'); u.set_password('another'); u.save()\nUser.objects.get(username='carl').delete()")
	for _, name := range []string{"anna", "ben", "carl"} {
		await(t, "the agent to refuse "+name, func() error {
			if status, text := c.agentSays(access[name]); status != http.StatusUnauthorized || !strings.Contains(text, `"reason":"revoked"`) {
				return fmt.Errorf("it says %d %s", status, text)
			}
			return nil
		})
	}
	if status, text := c.agentSays(access["dora"]); status != http.StatusOK {
		t.Errorf("a user who was not changed: the agent says %d %s", status, text)
	}
}

// signalFromDjango runs the lines that docs/users.md has for Django: when save returns, the agent refuses.
func signalFromDjango(t *testing.T, d *django, c *cluster) {
	t.Helper()
	page, err := os.ReadFile("../../../docs/users.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```python\n(.*?)```").FindSubmatch(page)
	if block == nil {
		t.Fatal("docs/users.md has no lines for Django")
	}
	_, access, _ := c.loginAs("dora", "pässwörd dora")
	_, bystander, _ := c.loginAs("staff", "pässwörd staff")
	env := fmt.Sprintf("import os\nos.environ['SIDEKEY_ADDR'], os.environ['SIDEKEY_TOKEN_FILE'] = %q, %q\n", c.Issuer, filepath.Join(c.DataDir, "admin.token"))
	d.shell(env + string(block[1]) + "\nfrom django.contrib.auth.models import User\nu = User.objects.get(username='dora')\nu.email = 'x@y'; u.save()\n")
	if status, text := c.agentSays(access); status != http.StatusOK {
		t.Errorf("another mail address: the agent says %d %s", status, text)
	}
	d.shell(env + string(block[1]) + "\nfrom django.contrib.auth.models import User\nu = User.objects.get(username='dora')\nu.is_active = False; u.save()\n")
	if status, text := c.agentSays(access); status != http.StatusUnauthorized || !strings.Contains(text, `"reason":"revoked"`) {
		t.Errorf("disabled: the agent says %d %s", status, text)
	}
	if status, text := c.agentSays(bystander); status != http.StatusOK {
		t.Errorf("somebody else: the agent says %d %s", status, text)
	}
}

// refusalsTakeTheSame measures what a refused login takes, with the database and the hash: the median of 15, taken in turns, since
// a machine is not equally busy all the time.
func refusalsTakeTheSame(t *testing.T, c *cluster) {
	t.Helper()
	tries := map[string][2]string{
		"wrong password": {"pbkdf2_sha256", "wrong"}, "unknown": {"nobody", "wrong"},
		"disabled, right password": {"disabled", "pässwörd disabled"}, "unusable": {"unusable", "wrong"},
	}
	took := map[string][]time.Duration{}
	for range 15 {
		for what, try := range tries {
			began := time.Now()
			if status, _, _ := c.loginAs(try[0], try[1]); status != http.StatusUnauthorized {
				t.Fatalf("%s: got %d", what, status)
			}
			took[what] = append(took[what], time.Since(began))
		}
	}
	median := func(what string) time.Duration {
		slices.Sort(took[what])
		return took[what][len(took[what])/2]
	}
	wrong := median("wrong password")
	for what := range tries {
		m := median(what)
		t.Logf("refused in %s: %s", m, what)
		if m < wrong/2 || m > wrong*2 { // no hash at all is a tenth of it
			t.Errorf("%s takes %s, a wrong password %s", what, m, wrong)
		}
	}
}

// writesNoUser holds that the CLI says where users live.
func (c *cluster) writesNoUser() {
	c.t.Helper()
	token, err := os.ReadFile(filepath.Join(c.DataDir, "admin.token"))
	if err != nil {
		c.t.Fatal(err)
	}
	header := http.Header{"Authorization": {"Bearer " + strings.TrimSpace(string(token))}, "Content-Type": {"application/json"}}
	res, text := do(c.t, http.MethodPost, c.Issuer+"/admin/v1/users", header, `{"username":"x","password":"correct horse battery"}`)
	if res.StatusCode != http.StatusConflict || !strings.Contains(text, "users live elsewhere") {
		c.t.Errorf("adding a user: got %d %s", res.StatusCode, text)
	}
	if res, text = do(c.t, http.MethodGet, c.Issuer+"/admin/v1/users/staff", header, ""); res.StatusCode != http.StatusOK || !strings.Contains(text, `"email":"staff@example.org"`) || strings.Contains(text, "pbkdf2") {
		c.t.Errorf("reading a user: got %d %s", res.StatusCode, text)
	}
}
