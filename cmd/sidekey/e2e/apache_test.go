package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// apacheModules are those that the shipped file names, and what a server needs to run at all.
const apacheModules = "mpm_event authn_core authz_core authz_user env headers setenvif proxy proxy_http ssl socache_shmcb auth_openidc"

// beginApache runs Apache with the shipped file. It reaches the agent over TLS, by the relay; ca is the folder with its certificate.
func beginApache(t *testing.T, d *door, app, ca string, defines ...string) {
	_, port, _ := strings.Cut(d.relay.addr, ":")
	conf := "ServerRoot DIR\nServerName app.test\nPidFile DIR/pid\nErrorLog /dev/stderr\nLogLevel warn\nListen " + d.addr + "\n" +
		"ThreadsPerChild 64\nMaxRequestWorkers 256\nAsyncRequestWorkerFactor 16\nKeepAliveTimeout 60\nMutex file:DIR\n"
	if os.Geteuid() == 0 {
		conf += "User www-data\nGroup www-data\n"
	}
	for _, m := range strings.Fields(apacheModules) {
		conf += fmt.Sprintf("LoadModule %s_module /usr/lib/apache2/modules/mod_%s.so\n", m, m)
	}
	conf += shipped(t, "apache.conf", "*:443", d.addr, "/etc/ssl/app.example.pem", "DIR/cert.pem", "/etc/ssl/private/app.example.key", "DIR/key.pem",
		"app.example", doorHost, "127.0.0.1:8000", app, "https://localhost:7462", "https://localhost:"+port,
		"/etc/sidekey/agent-ca.pem", ca+"/cert.pem", "http://127.0.0.1:7460", d.Issuer)
	dir := writeFiles(t, map[string]string{"apache.conf": conf})
	// Its workers are another user, and read the agent's certificate.
	for path, mode := range map[string]os.FileMode{filepath.Dir(ca): 0o755, ca: 0o755, filepath.Join(ca, "cert.pem"): 0o644} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"-D", "FOREGROUND", "-f", filepath.Join(dir, "apache.conf")}
	for _, define := range defines {
		args = append(args, "-D", define)
	}
	d.run(exec.Command("/usr/sbin/apache2", args...))
}

// TestApache runs the shipped file in both its ways.
func TestApache(t *testing.T) {
	for _, jwks := range []bool{false, true} {
		name, defines := "introspection", []string(nil)
		if jwks {
			name, defines = "JWKS", []string{"SIDEKEY_JWKS"}
		}
		t.Run(name, func(t *testing.T) {
			need(t, "test -x /usr/sbin/apache2", "test -e /usr/lib/apache2/modules/mod_auth_openidc.so")
			tls, ca := "127.0.0.1:"+freePort(t), writeFiles(t, map[string]string{})
			d := newDoor(t, fmt.Sprintf("tls_listen = [%q]\ntls_cert = \"%s/cert.pem\"\ntls_key = \"%[2]s/key.pem\"\n", tls, ca), tls)
			app, served := newApplication(t)
			d.served = served
			beginApache(t, d, app, ca, defines...)
			a := &apacheTest{&proxyTest{door: d}, jwks}
			a.token, _ = d.login()
			t.Run("agent down before it was asked", a.unknown)
			t.Run("allowed", a.allowed)
			t.Run("refused", a.refused)
			t.Run("not believed", a.notBelieved)
			t.Run("revoked", a.revoked)
			t.Run("a thousand clients", a.thousand)
			if !jwks { // else nobody is asked
				t.Run("agent hangs", func(t *testing.T) { a.hanging(t, http.StatusUnauthorized) })
			}
			t.Run("agent down", a.agentDown)
		})
	}
}

type apacheTest struct {
	*proxyTest
	jwks bool
}

// unknown: nothing passes before the agent could be asked, and it is asked again once it is back.
func (a *apacheTest) unknown(t *testing.T) {
	a.relay.down()
	before := a.served.Load()
	a.stopped(t, "the agent is down", before, a.send(t, http.MethodGet, "/private", a.with(), nil), 401)
	a.relay.up()
	a.reaches(t, a.send(t, http.MethodGet, "/private", a.with(), nil), "/private")
}

func (a *apacheTest) allowed(t *testing.T) {
	long := "/api/" + strings.Repeat(strings.Repeat("long", 12)+"/", 120) + "end?q=" + strings.Repeat("v", 1000)
	for _, uri := range []string{"/api/orders?page=2", long, "/api/a%20b%C3%A9/c+d?q=%2F..%2F", "/api/~x/$y/@z"} {
		a.reaches(t, a.send(t, http.MethodGet, uri, a.with(), nil), uri)
	}
	if got := a.send(t, http.MethodHead, "/api/x", a.with(), nil); got.StatusCode != 200 || got.Header.Get("App-Subject") != a.subject(t) {
		t.Errorf("HEAD: got %d %v", got.StatusCode, got.Header)
	}
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	got := a.send(t, http.MethodPost, "/api/x", a.with(), bytes.NewReader(body))
	if got.app == nil || got.app.Length != len(body) {
		t.Errorf("POST: got %d %q", got.StatusCode, got.body)
	}
	got = a.send(t, http.MethodGet, "/api/x", a.with(), nil)
	if h := got.app.Header; h.Get("X-Auth-Scope") != "read write" || h.Get("X-Auth-Roles") != "staff" || h.Get("X-Auth-Client") != "sidekey" || h.Get("X-Auth-Session") == "" {
		t.Errorf("the application got %v", h)
	}
}

func (a *apacheTest) refused(t *testing.T) {
	_, refresh := a.login()
	session, _ := a.session(t)
	for _, c := range []struct {
		what, path string
		header     http.Header
		status     int
		challenge  string
	}{
		{"nobody", "/private", nil, 401, `Bearer realm="sidekey"`},
		{"a wrong token", "/private", http.Header{"Authorization": {"Bearer x.y.z"}}, 401, `Bearer realm="sidekey", error="invalid_token"`},
		{"a refresh token", "/private", http.Header{"Authorization": {"Bearer " + refresh}}, 401, `Bearer realm="sidekey", error="invalid_token"`},
		{"a token in the query", "/private?access_token=" + a.token, nil, 401, "Bearer"},
		{"short of scope", "/admin/x", a.with(), 403, ""},
		{"short of scope, encoded", "/%61dmin/x", a.with(), 403, ""},
		{"short of scope, two slashes", "//admin/x", a.with(), 403, ""},
		{"short of scope, dots", "/api/../admin/x", a.with(), 403, ""},
		{"short of scope, parameter", "/admin;x/y", a.with(), 403, ""},
		{"short of scope, case", "/ADMIN/x", a.with(), 403, ""},
		{"encoded slash", "/admin%2fx", a.with(), 404, ""},
	} {
		before := a.served.Load()
		lines := []string{"GET " + c.path + " HTTP/1.1", "Host: " + doorHost}
		for name, values := range c.header {
			lines = append(lines, name+": "+values[0])
		}
		got := a.raw(t, lines...)
		a.stopped(t, c.what, before, got, c.status)
		if challenge := got.Header.Get("WWW-Authenticate"); !strings.HasPrefix(challenge, c.challenge) {
			t.Errorf("%s: got the challenge %q, want one that begins with %q", c.what, challenge, c.challenge)
		}
	}
	before := a.served.Load()
	a.stopped(t, "a browser's session as a token", before,
		a.send(t, http.MethodGet, "/private", http.Header{"Authorization": {"Bearer " + session}}, nil), 401, 403)
}

func (a *apacheTest) notBelieved(t *testing.T) {
	for _, name := range []string{"X-Auth-Subject", "x-auth-subject", "X-AUTH-SUBJECT", "X-Auth-Roles", "X-Auth-Method", "X-Auth-Claims", "X-Auth-Client"} {
		got := a.raw(t, "GET /private HTTP/1.1", "Host: "+doorHost, "Authorization: Bearer "+a.token, name+": mallory", name+": mallory, too")
		a.reaches(t, got, "/private")
	}
	for _, name := range []string{"x_auth_subject", "X_AUTH_SUBJECT", "X-Auth_Subject", "X_Auth-Subject", "X_Auth_Anything", "X-Original_URL", "x_forwarded_for"} {
		before := a.served.Load()
		got := a.raw(t, "GET /private HTTP/1.1", "Host: "+doorHost, "Authorization: Bearer "+a.token, name+": mallory")
		a.stopped(t, name, before, got, 403)
	}
	for _, name := range []string{"X-Original-URL", "X-Original-URI", "X-Rewrite-URL", "X-Forwarded-Uri", "X-Forwarded-Prefix", "X-Forwarded-Host", "X-Forwarded-For",
		"X-Forwarded-Proto", "X-Real-IP", "Forwarded", "X-HTTP-Method-Override", "OIDC_CLAIM_sub", "OIDC_CLAIM_scope"} {
		got := a.raw(t, "GET /private HTTP/1.1", "Host: "+doorHost, "Authorization: Bearer "+a.token, name+": mallory")
		a.reaches(t, got, "/private")
		if got.app != nil && strings.Contains(got.app.Header.Get(name), "mallory") {
			t.Errorf("the application got %s: %s", name, got.app.Header.Get(name))
		}
	}
}

// revoked: with introspection the next request is refused, on the same connection; with the keys alone nobody learns of it, as the file says.
func (a *apacheTest) revoked(t *testing.T) {
	token := a.token
	defer func() { a.token = token }()
	a.token, _ = a.login()
	client := a.newClient()
	var reused bool
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { reused = c.Reused }})
	got, err := a.try(ctx, client, http.MethodGet, "/private", a.with(), nil)
	if err != nil {
		t.Fatal(err)
	}
	a.reaches(t, got, "/private")
	a.sidekey("revoke", "--token", a.token, "--wait")
	before := a.served.Load()
	if got, err = a.try(ctx, client, http.MethodGet, "/private", a.with(), nil); err != nil {
		t.Fatal(err)
	}
	if !reused {
		t.Error("the connection was not kept")
	}
	if a.jwks {
		if got.StatusCode != http.StatusOK {
			t.Errorf("with SIDEKEY_JWKS a revoked token got %d: say so in apache.conf and docs/proxies.md", got.StatusCode)
		}
		return
	}
	a.stopped(t, "a revoked token", before, got, 401)
}

func (a *apacheTest) agentDown(t *testing.T) {
	a.relay.down()
	before := a.served.Load()
	got := a.send(t, http.MethodGet, "/private", a.with(), nil)
	if a.jwks {
		a.reaches(t, got, "/private") // the keys are known
		return
	}
	a.stopped(t, "the agent is down", before, got, 401)
}
