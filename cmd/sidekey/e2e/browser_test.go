package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// site is an application behind nginx with the configuration of deploy/, and a page of another origin.
type site struct {
	*cluster
	app, evil, neighbour string // origins; the last is of the same site, so that browsers send cookies with its requests

	posts atomic.Int64 // that reached the application
	own   int64        // of its own pages
}

// newSite runs sidekey, the application, nginx in front of it, and the other origin.
func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{cluster: dev(t, "", "")}
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			s.posts.Add(1)
		}
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, "<title>%s</title>%s %s", r.URL.Path, r.Method, r.Header.Get("X-Auth-Subject"))
	}))
	t.Cleanup(app.Close)
	port := freePort(t)
	s.app = "https://app.test:" + port
	runNginx(t, port, strings.NewReplacer(
		"http://127.0.0.1:7460", s.Issuer, "http://127.0.0.1:7461", s.Agent, "http://127.0.0.1:8000", app.URL,
		"app.example;", "app.test;"))

	evil := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, "<title>evil</title>")
	}))
	t.Cleanup(evil.Close)
	s.evil = strings.Replace(evil.URL, "127.0.0.1", "evil.test", 1)
	s.neighbour = strings.Replace(evil.URL, "127.0.0.1", "evil.app.test", 1)
	return s
}

// runNginx runs the shipped server block, with this host's names and addresses in place of the example's.
func runNginx(t *testing.T, port string, here *strings.Replacer) {
	t.Helper()
	dir := t.TempDir()
	block, err := os.ReadFile("../../../deploy/proxies/session-nginx.conf")
	if err != nil {
		t.Fatal(err)
	}
	text := here.Replace(strings.NewReplacer("listen 443 ssl", "listen 127.0.0.1:"+port+" ssl",
		"/etc/ssl/app.example.pem", dir+"/cert.pem", "/etc/ssl/private/app.example.key", dir+"/key.pem").Replace(string(block)))
	certificate(t, dir)
	conf := filepath.Join(dir, "nginx.conf")
	text = fmt.Sprintf("daemon off; worker_processes 1; pid %[1]s/pid; error_log stderr;\nevents {}\nhttp {\naccess_log off;\n"+
		"client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;\n%[2]s}\n", dir, text)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		// The worker is another user.
		if err := os.WriteFile(conf, []byte("user root;\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	nginx := start(t, exec.Command("/usr/sbin/nginx", "-c", conf, "-e", "stderr", "-p", dir))
	await(t, "nginx", func() error {
		if nginx.over() {
			t.Fatal("nginx has ended")
		}
		_, err := os.Stat(filepath.Join(dir, "pid"))
		return err
	})
}

// certificate writes cert.pem and key.pem, signed by themselves.
func certificate(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "app.test"}, DNSNames: []string{"app.test", "localhost"}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: cert}, "key.pem": {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// What pages do. The first argument is a URL or path.
const (
	readCSRF = `const csrf = (document.cookie.match(/__Host-sidekey_csrf=([^;]+)/) || [])[1];`
	postOwn  = readCSRF + `return (await fetch(args[0], {method: "POST", headers: {"X-CSRF-Token": csrf}})).status;`
	postBare = `return (await fetch(args[0], {method: "POST"})).status;`
	getOwn   = `return (await fetch(args[0])).status;`
	// In no-cors mode the answer is opaque, but the request goes out with what cookies it may have.
	postFar = `return (await fetch(args[0], {method: "POST", mode: args[1], credentials: "include"})).type;`
	// A page sends a form elsewhere; its fields are args[1].
	formFar = `const f = document.createElement("form"); f.method = "POST"; f.action = args[0];
for (const [k, v] of Object.entries(args[1])) { const i = document.createElement("input"); i.name = k; i.value = v; f.append(i); }
document.body.append(f); f.submit(); return "sent";`
	pageText = `return document.body.innerText;`
)

// TestBrowserSessions: a browser logs in by the form, its page's own requests pass the agent, those of another origin do
// not, and a logout ends it all.
func TestBrowserSessions(t *testing.T) {
	need(t, "test -x /usr/bin/chromium", "test -x /usr/bin/chromedriver", "test -x /usr/sbin/nginx")
	s := newSite(t)
	b := chromium(t, "MAP *.test 127.0.0.1")
	run := func(name string, f func(*testing.T)) {
		t.Helper()
		whole := b.t
		t.Run(name, func(t *testing.T) {
			b.t = t
			f(t)
		})
		b.t = whole
	}

	b.open(s.app + "/orders?page=2")
	b.awaitURL(s.app + "/session/login?next=/orders?page=2")
	b.fill("#username", "alice")
	b.fill("#password", "looking-glass")
	b.click("button")
	await(t, "the page to say what is wrong", func() error {
		if got, err := b.look(pageText); err != nil || !strings.Contains(got, "The user name or the password is not right.") {
			return fmt.Errorf("it says %q, %v", got, err)
		}
		return nil
	})
	b.fill("#password", "wonderland") // the name stands there still
	b.click("button")
	b.awaitURL(s.app + "/orders?page=2")

	run("cookies", func(t *testing.T) {
		got := b.cookies()
		if want := "/ Lax secure=true httponly=true"; got["__Host-sidekey_session"] != want || len(got) != 2 {
			t.Errorf("the browser keeps %v, want __Host-sidekey_session %s and another", got, want)
		}
		if want := "/ Lax secure=true httponly=false"; got["__Host-sidekey_csrf"] != want {
			t.Errorf("the browser keeps %v, want __Host-sidekey_csrf %s", got, want)
		}
		if got := b.eval(`return document.cookie;`); strings.Contains(got, "session") || !strings.HasPrefix(got, "__Host-sidekey_csrf=") {
			t.Errorf("document.cookie: got %q, want the CSRF token alone", got)
		}
	})

	s.own = 2 // of the next table
	run("same origin", func(t *testing.T) {
		for _, c := range []struct{ script, path, want string }{
			{postOwn, "/orders", "200"}, {postBare, "/orders", "403"}, {getOwn, "/orders", "200"}, {getOwn, "/session", "200"},
			{postBare, "/session/renew", "403"}, {postOwn, "/session/renew", "200"}, {postOwn, "/orders", "200"},
			{postBare, "/session/logout", "403"}, {getOwn, "/admin/v1/users", "200"}, // the application's own, not the issuer's
		} {
			if got := b.eval(c.script, c.path); got != c.want {
				t.Errorf("%s: got %s, want %s from\n%s", c.path, got, c.want, c.script)
			}
		}
	})

	run("another origin", func(t *testing.T) { s.attack(t, b, s.evil, "/session/login?next=/orders") }) // the form came without the cookie
	run("a neighbour", func(t *testing.T) { s.attack(t, b, s.neighbour, "/orders") })

	run("logout", func(t *testing.T) {
		b.open(s.app + "/")
		if got := b.eval(postOwn, "/session/logout"); got != "204" {
			t.Fatalf("the logout: got %s, want 204", got)
		}
		if got := b.eval(`return document.cookie;`); got != "" || b.cookies()["__Host-sidekey_session"] != "" {
			t.Errorf("after the logout the browser keeps %q, %v", got, b.cookies())
		}
		if got := b.eval(getOwn, "/orders"); got != "401" {
			t.Errorf("the next request: got %s, want 401", got)
		}
	})

	run("login by another origin", func(t *testing.T) {
		b.open(s.evil)
		b.eval(formFar, s.app+"/session/login", map[string]string{"username": "alice", "password": "wonderland", "form_token": "x"})
		b.awaitURL(s.app + "/session/login")
		if got := b.cookies(); got["__Host-sidekey_session"] != "" {
			t.Errorf("a page of another origin logged its visitor in: %v", got)
		}
		if got := b.eval(getOwn, "/session"); got != "401" {
			t.Errorf("GET /session: got %s, want 401", got)
		}
	})
}

// attack does what a page of another origin can try while its visitor is logged in. Nothing of it may have an effect. lands
// is where a form for /orders leads it.
func (s *site) attack(t *testing.T, b *browser, origin, lands string) {
	for _, c := range []struct{ path, lands, opaque, says string }{
		{"/orders", lands, "opaque", "403 Forbidden"},
		{"/session/logout", "/session/logout", "failed", "CSRF: the request comes from another origin"},
		{"/session/renew", "/session/renew", "failed", "CSRF: the request comes from another origin"},
	} {
		b.open(origin)
		if got := b.eval(postFar, s.app+c.path, "cors"); !strings.HasPrefix(got, "failed: ") {
			t.Errorf("a fetch of %s from another origin: got %q, want it blocked", c.path, got)
		}
		if got := b.eval(postFar, s.app+c.path, "no-cors"); !strings.HasPrefix(got, c.opaque) {
			t.Errorf("a no-cors fetch of %s from another origin: got %q, want %s", c.path, got, c.opaque)
		}
		_, _ = b.look(formFar, s.app+c.path, map[string]string{"csrf_token": "x"}) // it leaves the page; where to is what counts
		b.awaitURL(s.app + c.lands)
		if c.lands != c.path {
			continue
		}
		await(t, "the answer to a form from another origin", func() error {
			if got, err := b.look(pageText); err != nil || !strings.Contains(got, c.says) {
				return fmt.Errorf("a form for %s: got %q, %v, want %q", c.path, got, err, c.says)
			}
			return nil
		})
	}
	if n := s.posts.Load(); n != s.own {
		t.Errorf("the application has seen %d POSTs, want the %d of its own pages", n, s.own)
	}
	b.open(origin)
	if got := b.eval(`const f = document.createElement("iframe"); f.src = args[0]; const loaded = new Promise(r => f.onload = r);
document.body.append(f); await loaded; try { return f.contentDocument === null ? "blocked" : "read"; } catch { return "blocked"; }`, s.app+"/session/login"); got != "blocked" {
		t.Errorf("the login page in another origin's frame: got %s", got)
	}
	b.open(s.app + "/orders")
	if got := b.eval(postOwn, "/orders"); got != "200" {
		t.Errorf("after the attacks the user's own request: got %s, want 200", got)
	}
	s.own++
}
