package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// doorRules are what the proxies' agents go by. What an attacker would like to be taken for is open: the path /public/, the
// method GET of /mixed, the host public.test.
const doorRules = `
[[rules]]
name = "public"
paths = ["/public/**"]
allow = "anyone"

[[rules]]
name = "public host"
hosts = ["public.test"]
paths = ["/**"]
allow = "anyone"

[[rules]]
name = "reading"
methods = ["GET", "HEAD"]
paths = ["/mixed"]
allow = "anyone"

[[rules]]
name = "writing"
paths = ["/mixed"]

[[rules]]
name = "admin"
paths = ["/admin/**"]
require = { scopes = ["admin"] }

[[rules]]
name = "api"
paths = ["/api/**", "/private"]
`

// proxyKind is a kind of proxy that asks the agent's forward-auth faces.
type proxyKind struct {
	name    string
	needs   string
	begin   func(t *testing.T, d *door, app string)
	down    int  // the status while the agent is away
	hangs   int  // the status while it takes connections, and does not answer
	problem bool // the agent's body reaches the client
}

var proxyKinds = []proxyKind{
	{"nginx", "test -x /usr/sbin/nginx", beginNginx, http.StatusInternalServerError, http.StatusInternalServerError, false},
	{"Caddy", "test -x /usr/bin/caddy", beginCaddy, http.StatusBadGateway, http.StatusGatewayTimeout, true},
	{"HAProxy", "test -x /usr/sbin/haproxy", beginHAProxy, http.StatusServiceUnavailable, http.StatusServiceUnavailable, false},
}

func beginNginx(t *testing.T, d *door, app string) {
	block := shipped(t, "nginx.conf", "listen 443", "listen "+d.addr, "app.example;", doorHost+" public.test;",
		"/etc/ssl/app.example.pem", "DIR/cert.pem", "/etc/ssl/private/app.example.key", "DIR/key.pem",
		"127.0.0.1:8000", app, "127.0.0.1:7461", d.relay.addr)
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;\n" // or its workers could not read the folder
	}
	dir := writeFiles(t, map[string]string{"nginx.conf": user + "daemon off; worker_processes 2; pid DIR/pid; error_log stderr warn;\n" +
		"worker_rlimit_nofile 16384;\nevents { worker_connections 4096; }\nhttp {\naccess_log off;\nclient_body_temp_path DIR/b; proxy_temp_path DIR/p; " +
		"fastcgi_temp_path DIR/f; uwsgi_temp_path DIR/u; scgi_temp_path DIR/s;\n" + block + "}\n"})
	d.run(exec.Command("/usr/sbin/nginx", "-c", filepath.Join(dir, "nginx.conf"), "-e", "stderr", "-p", dir))
}

func beginCaddy(t *testing.T, d *door, app string) {
	_, port, _ := strings.Cut(d.addr, ":")
	site := fmt.Sprintf("https://%s:%s, https://public.test:%s {\n\tbind 127.0.0.1\n\ttls DIR/cert.pem DIR/key.pem\n", doorHost, port, port)
	block := shipped(t, "Caddyfile", "\napp.example {\n", "\n"+site, "127.0.0.1:8000", app, "127.0.0.1:7461", d.relay.addr)
	// The comment at the head holds the example's name too, and is none of the site's.
	dir := writeFiles(t, map[string]string{"Caddyfile": "{\n\tadmin off\n\tauto_https disable_redirects\n}\n" + block})
	cmd := exec.Command("/usr/bin/caddy", "run", "--adapter", "caddyfile", "--config", filepath.Join(dir, "Caddyfile"))
	cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir, "HOME="+dir)
	d.run(cmd)
}

func beginHAProxy(t *testing.T, d *door, app string) {
	abns := "sidekey-agent-" + freePort(t) // of this test alone
	dir := writeFiles(t, map[string]string{
		"haproxy.cfg": shipped(t, "haproxy.cfg", ":443", d.addr, "/etc/haproxy/app.example.pem", "DIR/both.pem",
			"/etc/haproxy/sidekey.lua", "DIR/sidekey.lua", "127.0.0.1:8000", app, "127.0.0.1:7461", d.relay.addr, "abns@sidekey-agent", "abns@"+abns),
		"sidekey.lua": shipped(t, "sidekey.lua", "abns@sidekey-agent", "abns@"+abns),
	})
	d.run(exec.Command("/usr/sbin/haproxy", "-db", "-f", filepath.Join(dir, "haproxy.cfg")))
}

// TestProxies runs one table through the real proxies, each with the file that deploy/proxies has for it.
func TestProxies(t *testing.T) {
	for _, kind := range proxyKinds {
		t.Run(kind.name, func(t *testing.T) {
			need(t, kind.needs)
			rules := filepath.Join(t.TempDir(), "rules.toml")
			if err := os.WriteFile(rules, []byte(doorRules), 0o600); err != nil {
				t.Fatal(err)
			}
			d := newDoor(t, fmt.Sprintf("rules = %q\n", rules), "")
			app, served := newApplication(t)
			d.served = served
			kind.begin(t, d, app)
			p := &proxyTest{door: d, kind: kind}
			p.token, _ = d.login()
			t.Run("allowed", p.allowed)
			t.Run("refused", p.refused)
			t.Run("not believed", p.notBelieved)
			t.Run("ambiguous", p.ambiguous)
			t.Run("bodies", p.bodies)
			t.Run("credential", p.credential)
			t.Run("browser's session", p.browser)
			t.Run("revoked while the connection is kept", p.revoked)
			t.Run("connections", p.connections)
			t.Run("a thousand clients", p.thousand)
			t.Run("agent hangs", func(t *testing.T) { p.hanging(t, kind.hangs) })
			t.Run("agent down", p.agentDown)
		})
	}
}

type proxyTest struct {
	*door
	kind  proxyKind
	token string
}

// with is the token and more fields: name, value, …
func (p *proxyTest) with(more ...string) http.Header {
	h := http.Header{"Authorization": {"Bearer " + p.token}}
	for i := 0; i < len(more); i += 2 {
		h[more[i]] = append(h[more[i]], more[i+1])
	}
	return h
}

// reaches holds that a request arrived as alice's, with that URI.
func (p *proxyTest) reaches(t *testing.T, a doorAnswer, uri string) {
	t.Helper()
	if a.StatusCode != http.StatusOK || a.app == nil {
		t.Errorf("%.80s: got %d %q, want 200 of the application", uri, a.StatusCode, a.body)
		return
	}
	if a.app.URI != uri {
		t.Errorf("the application got the URI %q, want %q", a.app.URI, uri)
	}
	p.isAlice(t, a)
}

func (p *proxyTest) isAlice(t *testing.T, a doorAnswer) {
	t.Helper()
	for name, values := range a.app.Header {
		plain := strings.ReplaceAll(strings.ToLower(name), "_", "-")
		if strings.HasPrefix(plain, "x-auth-") && (len(values) != 1 || name != http.CanonicalHeaderKey(plain) || strings.Contains(values[0], "mallory")) {
			t.Errorf("the application got %s: %q, of which one is the client's", name, values)
		}
	}
	h := a.app.Header
	if got := h.Get("X-Auth-Subject"); got == "" || got != p.subject(t) {
		t.Errorf("X-Auth-Subject: got %q, want alice's id %q", got, p.subject(t))
	}
	if got := h.Get("X-Auth-Method"); got != "bearer" {
		t.Errorf("X-Auth-Method: got %q, want bearer", got)
	}
	for _, name := range []string{"Authorization", "X-Api-Key"} {
		if got := h.Values(name); len(got) > 1 || len(got) == 1 && got[0] != "" {
			t.Errorf("the application got the credential in %s", name)
		}
	}
}

// subject is alice's id, as the agent tells it.
func (p *proxyTest) subject(t *testing.T) string {
	t.Helper()
	res, _ := do(t, http.MethodGet, p.Agent+"/v1/auth/nginx", p.with("X-Original-Method", "GET", "X-Original-URI", "/private"), "")
	return res.Header.Get("X-Auth-Subject")
}

// stopped holds that a request was answered with that status and did not reach the application.
func (p *proxyTest) stopped(t *testing.T, what string, before int64, a doorAnswer, status ...int) {
	t.Helper()
	if !slices.Contains(status, a.StatusCode) {
		t.Errorf("%s: got %d %q, want %v", what, a.StatusCode, a.body, status)
	}
	if p.served.Load() != before {
		t.Errorf("%s: the application was reached: %+v", what, a.app)
	}
}

func (p *proxyTest) allowed(t *testing.T) {
	long := "/api/" + strings.Repeat(strings.Repeat("long", 12)+"/", 120) + "end?q=" + strings.Repeat("v", 1000)
	for _, uri := range []string{
		"/private", "/api/orders?page=2", long, "/api/a%20b%C3%A9/c+d?q=%2F..%2F&x=%00", "/api/~x/$y/@z", "/api/?", "/api/x?next=https://evil.test//a",
	} {
		p.reaches(t, p.send(t, http.MethodGet, uri, p.with(), nil), uri)
	}
	h2 := p.newClient()
	h2.Transport.(*http.Transport).ForceAttemptHTTP2 = true
	a, err := p.try(t.Context(), h2, http.MethodGet, "/api/x?http=2", p.with("X-Auth-Subject", "mallory", "x_auth_subject", "mallory"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if p.reaches(t, a, "/api/x?http=2"); a.ProtoMajor != 2 {
		t.Errorf("got %s, want HTTP/2", a.Proto)
	}
	if a := p.send(t, http.MethodHead, "/api/x", p.with(), nil); a.StatusCode != 200 || a.Header.Get("App-Method") != "HEAD" || a.Header.Get("App-Subject") != p.subject(t) {
		t.Errorf("HEAD: got %d %v", a.StatusCode, a.Header)
	}
	for _, method := range []string{"PUT", "PATCH", "DELETE", "OPTIONS"} {
		if a := p.send(t, method, "/api/x", p.with(), nil); a.app == nil || a.app.Method != method {
			t.Errorf("%s: got %d %q", method, a.StatusCode, a.body)
		}
	}
	// Nobody in particular: there is no identity, whatever the client says.
	a = p.send(t, http.MethodGet, "/public/x", http.Header{"X-Auth-Subject": {"mallory"}, "X-Auth-Roles": {"admin"}}, nil)
	if a.app == nil || a.app.Header.Get("X-Auth-Subject") != "" || a.app.Header.Get("X-Auth-Roles") != "" || a.app.Header.Get("X-Auth-Method") != "anonymous" {
		t.Errorf("a public path: got %d %q", a.StatusCode, a.body)
	}
}

func (p *proxyTest) refused(t *testing.T) {
	for _, c := range []struct {
		what, path string
		header     http.Header
		status     int
		challenge  string // begins so; "": there need be none
	}{
		{"nobody", "/private", nil, 401, `Bearer realm="sidekey"`},
		{"a wrong token", "/private", http.Header{"Authorization": {"Bearer x.y.z"}}, 401, `Bearer realm="sidekey", error="invalid_token"`},
		{"a wrong API key", "/private", http.Header{"X-API-Key": {"none"}}, 401, `Bearer realm="sidekey"`},
		{"short of scope", "/admin/x", p.with(), 403, `Bearer realm="sidekey", error="insufficient_scope"`},
		{"no rule", "/elsewhere", p.with(), 403, ""},
	} {
		before := p.served.Load()
		a := p.send(t, http.MethodGet, c.path, c.header, nil)
		p.stopped(t, c.what, before, a, c.status)
		if got := strings.Join(a.Header.Values("WWW-Authenticate"), ", "); !strings.HasPrefix(got, c.challenge) {
			t.Errorf("%s: got the challenge %q, want one that begins with %q", c.what, got, c.challenge)
		}
		for name := range a.Header {
			if strings.HasPrefix(name, "X-Auth-") {
				t.Errorf("%s: the client is told %s", c.what, name)
			}
		}
	}
}

// notBelieved: nothing of what a client says in a proxy's name has an effect.
func (p *proxyTest) notBelieved(t *testing.T) {
	for _, name := range []string{
		"X-Auth-Subject", "x-auth-subject", "X-AUTH-SUBJECT", "x_auth_subject", "X_AUTH_SUBJECT", "X-Auth_Subject", "X_Auth-Subject",
		"X-Auth-Roles", "x_auth_roles", "X-Auth-Scope", "X-Auth-Client", "X-Auth-Session", "X-Auth-Method", "X-Auth-Claims", "x-aUTH-mETHOD",
	} {
		a := p.raw(t, "GET /private HTTP/1.1", "Host: "+doorHost, "Authorization: Bearer "+p.token, name+": mallory", name+": mallory, too")
		p.reaches(t, a, "/private")
	}
	// Fields of every convention that would make the request an open one.
	for _, fields := range [][]string{
		{"X-Original-URI: /public/x"}, {"X-Original-URL: /public/x"}, {"X-Original-Url: https://app.test/public/x"}, {"x_original_uri: /public/x"},
		{"X-Forwarded-Uri: /public/x"}, {"x-forwarded-uri: /public/x", "X-Forwarded-Uri: /public/x"}, {"x_forwarded_uri: /public/x"},
		{"X-Forwarded-Host: public.test"}, {"X-Original-Host: public.test"}, {"Forwarded: host=public.test"}, {"X-Forwarded-Server: public.test"},
		{"X-Rewrite-URL: /public/x"}, {"X-Forwarded-Prefix: /public"}, {"X-Forwarded-Path: /public/x"},
		{"X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1", "X-Original-Remote-Addr: 127.0.0.1"},
		{"X-Original-Method: OPTIONS", "X-Forwarded-Method: OPTIONS"},
		{"Connection: X-Original-URI, X-Original-Method, X-Forwarded-Uri, X-Forwarded-Method"},
	} {
		before := p.served.Load()
		a := p.raw(t, append([]string{"GET /private HTTP/1.1", "Host: " + doorHost}, fields...)...)
		p.stopped(t, strings.Join(fields, " "), before, a, 400, 401, 403) // an agent that sees one twice says 403
	}
	for _, name := range []string{"X-Original-Method", "X-Forwarded-Method", "x_forwarded_method", "X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"} {
		before := p.served.Load()
		a := p.raw(t, "POST /mixed HTTP/1.1", "Host: "+doorHost, "Content-Length: 0", name+": GET")
		p.stopped(t, name, before, a, 401, 403)
		// Nor does the application learn of another method than the one that was decided on.
		a = p.raw(t, "GET /mixed HTTP/1.1", "Host: "+doorHost, name+": DELETE")
		if a.app == nil {
			t.Errorf("GET /mixed: got %d %q", a.StatusCode, a.body)
		} else if got := a.app.Header.Get(name); got == "DELETE" {
			t.Errorf("the application got %s: %s", name, got)
		}
	}
	for _, name := range []string{"X-Original-URL", "X-Original-URI", "X-Rewrite-URL", "X-Forwarded-Uri", "X-Forwarded-Prefix", "X-Forwarded-Host", "Forwarded"} {
		a := p.raw(t, "GET /public/x HTTP/1.1", "Host: "+doorHost, name+": /private")
		if a.app == nil {
			t.Errorf("GET /public/x with %s: got %d %q", name, a.StatusCode, a.body)
		} else if got := a.app.Header.Get(name); strings.Contains(got, "/private") {
			t.Errorf("the application got %s: %s", name, got)
		}
	}
}

// ambiguous: what an application could read otherwise than the agent does not reach it.
func (p *proxyTest) ambiguous(t *testing.T) {
	for _, target := range []string{
		"/public/../private", "/public/%2e%2e/private", "/public/..%2fprivate", "/public/%2e%2e%2fprivate", "/public/..;/private",
		"//private", "/public//../private", "/public/x%00", "/public/..%5cprivate", `/public/..\private`, "/public/%ff", "/public/%c0%ae%c0%ae/private",
		"/public/x;y=/../private", "/public/%252e%252e/private/%zz",
	} {
		before := p.served.Load()
		a := p.raw(t, "GET "+target+" HTTP/1.1", "Host: "+doorHost)
		p.stopped(t, target, before, a, 400, 401, 403, 404)
	}
	for _, c := range [][]string{
		{"GET /private HTTP/1.1", "Host: " + doorHost, "Authorization: Bearer " + p.token, "Authorization: Bearer " + p.token},
		{"GET /private HTTP/1.1", "Host: " + doorHost, "Authorization: Bearer x", "authorization: Bearer " + p.token},
		{"GET /private HTTP/1.1", "Host: " + doorHost, "Host: public.test"},
		{"GET https://public.test/private HTTP/1.1", "Host: " + doorHost},
		{"GET http://app.test/public/../private HTTP/1.1", "Host: " + doorHost},
		{"GET /private HTTP/1.1", "Host: public.test/"},
		{"GET /private HTTP/1.1", "Host: " + doorHost + "@public.test"},
		{"get /private HTTP/1.1", "Host: " + doorHost},
	} {
		before := p.served.Load()
		a := p.raw(t, c...)
		if a.app != nil && a.app.Host == "public.test" {
			continue // decided for the host that the application sees: it is that host's request, and open
		}
		p.stopped(t, strings.Join(c[:2], " "), before, a, 400, 401, 403, 404, 405, 421)
	}
}

func (p *proxyTest) bodies(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	sum := fmt.Sprintf("%x", sha256.Sum256(body))
	for _, c := range []struct {
		what string
		body io.Reader
	}{
		{"with a length", bytes.NewReader(body)},
		{"chunked", struct{ io.Reader }{bytes.NewReader(body)}},
	} {
		a := p.send(t, http.MethodPost, "/api/x", p.with("Content-Type", "application/octet-stream"), c.body)
		if a.app == nil || a.app.Length != len(body) || a.app.Sum != sum {
			t.Errorf("%s: got %d, the application got %+v, want %d bytes with the sum %s", c.what, a.StatusCode, a.app, len(body), sum)
			continue
		}
		p.reaches(t, a, "/api/x")
	}
	before := p.served.Load()
	a := p.send(t, http.MethodPost, "/api/x", nil, strings.NewReader("x"))
	p.stopped(t, "a body from nobody", before, a, 401)
	p.reaches(t, p.send(t, http.MethodPost, "/api/x", p.with("Expect", "100-continue"), bytes.NewReader(body)), "/api/x")
}

// credential: the session's cookie does not reach the application, every other cookie does.
func (p *proxyTest) credential(t *testing.T) {
	for _, c := range []struct{ sent, want string }{
		{"a=b", "a=b"},
		{"a=b; __Host-sidekey_session=x.y.z; c=d", "a=b; c=d"},
		{"__Host-sidekey_session=x.y.z; c=d", "c=d"},
		{"a=b; __Host-sidekey_session=x.y.z", "a=b"},
		{"__Host-sidekey_session=x.y.z", ""},
		{"a=b;__Host-sidekey_session=x.y.z;c=d", "a=b; c=d"},
	} {
		a := p.send(t, http.MethodGet, "/private", p.with("Cookie", c.sent), nil)
		p.reaches(t, a, "/private")
		if a.app == nil {
			continue
		}
		var got []string
		for _, pair := range strings.Split(a.app.Header.Get("Cookie"), ";") {
			if pair = strings.TrimSpace(pair); pair != "" {
				got = append(got, pair)
			}
		}
		if strings.Join(got, "; ") != c.want {
			t.Errorf("Cookie %q: the application got %q, want %q", c.sent, got, c.want)
		}
	}
}

// session logs alice in as a browser does: the session's cookie, and its CSRF token.
func (p *proxyTest) session(t *testing.T) (cookie, csrf string) {
	t.Helper()
	res, body := do(t, http.MethodPost, p.Issuer+"/session/login", http.Header{"Content-Type": {"application/json"}}, `{"username":"alice","password":"wonderland"}`)
	var got struct {
		CSRFToken string `json:"csrf_token"`
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatalf("logging in: %d %s: %v", res.StatusCode, body, err)
	}
	for _, c := range res.Cookies() {
		if c.Name == "__Host-sidekey_session" {
			return c.Value, got.CSRFToken
		}
	}
	t.Fatalf("logging in: got %d and no session", res.StatusCode)
	return "", ""
}

// browser: what a browser says of itself reaches the agent, and so does what the proxy says: scheme and host.
func (p *proxyTest) browser(t *testing.T) {
	cookie, csrf := p.session(t)
	own, evil := "https://"+doorHost, "https://evil.test"
	for _, c := range []struct {
		method string
		fields []string
		status int
	}{
		{"GET", nil, 200},
		{"POST", nil, 403},
		{"POST", []string{"X-CSRF-Token", csrf}, 200},
		{"POST", []string{"X-CSRFToken", csrf, "Origin", own, "Sec-Fetch-Site", "same-origin"}, 200},
		{"POST", []string{"X-CSRF-Token", "x" + csrf, "Origin", own}, 403},
		{"POST", []string{"X-CSRF-Token", csrf, "Origin", evil}, 403},
		{"POST", []string{"X-CSRF-Token", csrf, "Origin", "http://" + doorHost}, 403},
		{"POST", []string{"X-CSRF-Token", csrf, "Sec-Fetch-Site", "cross-site"}, 403},
		{"POST", []string{"X-CSRF-Token", csrf, "Origin", evil, "X-Forwarded-Host", "evil.test", "X-Original-Host", "evil.test"}, 403},
		{"GET", []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==", "Origin", own}, 200},
		{"GET", []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==", "Origin", evil}, 403},
		{"GET", []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==", "Origin", evil, "Sec-Fetch-Mode", "websocket"}, 403},
	} {
		header := http.Header{"Cookie": {"__Host-sidekey_session=" + cookie}}
		for i := 0; i < len(c.fields); i += 2 {
			header[c.fields[i]] = []string{c.fields[i+1]}
		}
		before := p.served.Load()
		a := p.send(t, c.method, "/api/x", header, nil)
		if what := fmt.Sprintf("%s %q", c.method, c.fields); c.status != http.StatusOK {
			p.stopped(t, what, before, a, c.status)
		} else if a.app == nil || a.app.Header.Get("X-Auth-Method") != "session" || a.app.Header.Get("X-Auth-Subject") != p.subject(t) || strings.Contains(a.app.Header.Get("Cookie"), "sidekey_session") {
			t.Errorf("%s: got %d %q", what, a.StatusCode, a.body)
		}
	}
}

func (p *proxyTest) revoked(t *testing.T) {
	token := p.token
	defer func() { p.token = token }()
	p.token, _ = p.login()
	client := p.newClient()
	var reused bool
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { reused = c.Reused }})
	a, err := p.try(ctx, client, http.MethodGet, "/private", p.with(), nil)
	if err != nil {
		t.Fatal(err)
	}
	p.reaches(t, a, "/private")
	p.sidekey("revoke", "--token", p.token, "--wait")
	before := p.served.Load()
	if a, err = p.try(ctx, client, http.MethodGet, "/private", p.with(), nil); err != nil {
		t.Fatal(err)
	}
	p.stopped(t, "a revoked token", before, a, 401)
	if got := a.Header.Get("WWW-Authenticate"); !strings.Contains(got, `error="invalid_token"`) {
		t.Errorf("a revoked token: got the challenge %q", got)
	}
	if !reused {
		t.Error("the connection was not kept")
	}
}

// connections: the proxy keeps its connections to the agent.
func (p *proxyTest) connections(t *testing.T) {
	before := p.relay.accepted.Load()
	const requests = 200
	for i := range requests {
		p.reaches(t, p.send(t, http.MethodGet, fmt.Sprintf("/api/%d", i), p.with(), nil), fmt.Sprintf("/api/%d", i))
	}
	opened := p.relay.accepted.Load() - before
	t.Logf("%d requests, %d connections to the agent", requests, opened)
	if p.relay.accepted.Load() == 0 {
		t.Error("the proxy does not ask through the relay: nothing was counted")
	}
	if opened > 10 {
		t.Errorf("%d requests opened %d connections to the agent, want 10 at most", requests, opened)
	}
}

// thousand: a thousand clients, each with a connection of its own, ask at once, and get each its own answer. On a busy machine the
// proxy's time may end before the agent has answered: a few may be refused for that, none may be let in.
func (p *proxyTest) thousand(t *testing.T) {
	const clients, each = 1000, 3
	opened, served := p.relay.accepted.Load(), p.served.Load()
	subject := p.subject(t)
	var let, slow atomic.Int64
	ask := func(client *http.Client, n, i int) {
		uri, header, status := fmt.Sprintf("/api/%d/%d", n, i), p.with(), http.StatusOK
		if n%10 == 9 {
			header, status = http.Header{"Authorization": {fmt.Sprintf("Bearer none.%d.x", n)}}, http.StatusUnauthorized
		}
		a, err := p.try(t.Context(), client, http.MethodGet, uri, header, nil)
		switch {
		case err != nil:
			t.Errorf("client %d: %v", n, err)
		case a.StatusCode >= 500 || p.kind.begin == nil && a.StatusCode == http.StatusUnauthorized && status == http.StatusOK:
			slow.Add(1)
		case a.StatusCode != status:
			t.Errorf("client %d: got %d, want %d", n, a.StatusCode, status)
		case status == http.StatusOK && (a.app == nil || a.app.URI != uri || a.app.Header.Get("X-Auth-Subject") != subject):
			t.Errorf("client %d: got another's answer: %q", n, a.body)
		case status == http.StatusOK:
			let.Add(1)
		}
	}
	var wg sync.WaitGroup
	var ready sync.WaitGroup
	begin := make(chan struct{})
	handshakes := make(chan struct{}, 32) // at a time: this process is to ask, and not to be busy with TLS
	ready.Add(clients)
	for n := range clients {
		client := p.newClient()
		wg.Go(func() {
			handshakes <- struct{}{}
			ask(client, n, 0)
			<-handshakes
			ready.Done()
			<-begin
			for i := 1; i < each; i++ {
				ask(client, n, i)
			}
			client.CloseIdleConnections()
		})
	}
	ready.Wait()
	close(begin)
	wg.Wait()
	t.Logf("%d requests of %d clients: %d let in, %d refused for slowness, %d connections to the agent", clients*each, clients, let.Load(), slow.Load(), p.relay.accepted.Load()-opened)
	if got := p.served.Load() - served; got != let.Load() {
		t.Errorf("the application was reached %d times, and %d clients know of it", got, let.Load())
	}
	if slow.Load() > clients*each/20 {
		t.Errorf("%d of %d requests were refused for slowness", slow.Load(), clients*each)
	}
}
