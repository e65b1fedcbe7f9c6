package agent_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

const asJSON = "Content-Type: application/json"

// checkProblem wants a problem (RFC 9457) of that status.
func checkProblem(t *testing.T, name string, got reply, status int) {
	t.Helper()
	if got.StatusCode != status || got.Header.Get("Content-Type") != "application/problem+json" || got.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%s: got %d %v %s, want %d and a problem that is not stored", name, got.StatusCode, got.Header, got.body, status)
		return
	}
	m := got.json(t)
	if m["status"] != float64(status) || m["type"] != "about:blank" || m["title"] != http.StatusText(status) || m["detail"] == "" {
		t.Errorf("%s: got %s, want the members of RFC 9457", name, got.body)
	}
}

func TestBadRequests(t *testing.T) {
	w := newWorld(t)
	token := w.token()
	auth := "Authorization: Bearer " + token
	for _, network := range networks {
		h := w.listen(network)
		for _, c := range []struct {
			name, method, path, body string
			header                   []string
			status                   int
			detail                   string
		}{
			{"no JSON", "POST", "/v1/verify", "token", []string{asJSON}, 400, "invalid JSON at byte 0"},
			{"half", "POST", "/v1/verify", `{"token":"`, []string{asJSON}, 400, "invalid JSON"},
			{"array", "POST", "/v1/verify", `["a"]`, []string{asJSON}, 400, "one JSON object"},
			{"two objects", "POST", "/v1/verify", `{}{}`, []string{asJSON}, 400, "invalid JSON"},
			{"not UTF-8", "POST", "/v1/verify", "{\"token\":\"\xff\"}", []string{asJSON}, 400, "Unicode"},
			{"doubled member", "POST", "/v1/verify", `{"token":"a","t\u006fken":"b"}`, []string{asJSON}, 400, "twice"},
			{"folded member", "POST", "/v1/verify", `{"Token":"a"}`, []string{asJSON}, 400, "case"},
			{"unknown member", "POST", "/v1/verify", `{"token":"a","scopes":"b"}`, []string{asJSON}, 400, `unknown member \"scopes\"`},
			{"long unknown member", "POST", "/v1/verify", `{"` + strings.Repeat("x", 999) + `":1}`, []string{asJSON}, 400, "xxx…"},
			{"token a number", "POST", "/v1/verify", `{"token":1}`, []string{asJSON}, 400, `\"token\" must be a string`},
			{"token null", "POST", "/v1/verify", `{"token":null}`, []string{asJSON}, 400, `\"token\" must be a string`},
			{"audience an array", "POST", "/v1/verify", `{"token":"a","audience":["b"]}`, []string{asJSON}, 400, `\"audience\" must be a string`},
			{"scope with a quote", "POST", "/v1/verify", `{"token":"a","scope":"\""}`, []string{asJSON}, 400, "RFC 6749"},
			{"scope with a line break", "POST", "/v1/verify", `{"token":"a","scope":"a\r\nX: y"}`, []string{asJSON}, 400, "RFC 6749"},
			{"sequence a string", "POST", "/v1/verify", `{"token":"a","at_least_seq":"1"}`, []string{asJSON}, 400, "whole number"},
			{"sequence negative", "POST", "/v1/verify", `{"token":"a","at_least_seq":-1}`, []string{asJSON}, 400, "whole number"},
			{"sequence too large", "POST", "/v1/verify", `{"token":"a","at_least_seq":18446744073709551616}`, []string{asJSON}, 400, "whole number"},
			{"both credentials", "POST", "/v1/verify", `{"token":"` + token + `"}`, []string{asJSON, auth}, 400, "two credentials"},
			{"body without token, and a header", "POST", "/v1/verify", `{}`, []string{asJSON, auth}, 400, "two credentials"},
			{"two headers", "POST", "/v1/verify", "", []string{auth, auth}, 400, "two Authorization"},
			{"two headers, GET", "GET", "/v1/verify", "", []string{auth, "authorization: Basic YTpi"}, 400, "two Authorization"},
			{"GET with a body", "GET", "/v1/verify", "{}", []string{auth}, 400, "no body"},
			{"form", "POST", "/v1/verify", "token=a", []string{"Content-Type: application/x-www-form-urlencoded"}, 415, "application/json"},
			{"text", "POST", "/v1/verify", `{"token":"a"}`, []string{"Content-Type: text/plain"}, 415, "application/json"},
			{"no type", "POST", "/v1/verify", `{"token":"a"}`, nil, 415, "application/json"},
			{"compressed", "POST", "/v1/verify", `{"token":"a"}`, []string{asJSON, "Content-Encoding: gzip"}, 415, "application/json"},
			{"multipart", "POST", "/v1/verify", "--a--", []string{"Content-Type: multipart/form-data; boundary=a"}, 415, "application/json"},
			{"batch as form", "POST", "/v1/verify/batch", "tokens=a", []string{"Content-Type: application/x-www-form-urlencoded"}, 415, "application/json"},
			{"unknown path", "GET", "/v1/nothing", "", nil, 404, "nothing here"},
			{"another spelling", "GET", "/v1/%76erify", "", []string{auth}, 404, "nothing here"},
			{"doubled slash", "GET", "//v1/verify", "", []string{auth}, 404, "nothing here"},
			{"trailing slash", "GET", "/v1/verify/", "", []string{auth}, 404, "nothing here"},
		} {
			t.Run(network+" "+c.name, func(t *testing.T) {
				got := h.do(c.method, c.path, c.body, c.header...)
				checkProblem(t, c.name, got, c.status)
				if !strings.Contains(got.body, c.detail) {
					t.Errorf("detail: got %s, want %q in it", got.body, c.detail)
				}
			})
		}
	}
}

func TestWrongMethod(t *testing.T) {
	h := newWorld(t).listen("unix")
	for path, allow := range map[string]string{
		"/v1/verify": "GET, HEAD, POST", "/v1/verify/batch": "POST", "/oauth2/introspect": "POST", "/v1/status": "GET, HEAD",
		"/.well-known/jwks.json": "GET, HEAD", "/healthz": "GET, HEAD", "/readyz": "GET, HEAD", "/metrics": "GET, HEAD",
	} {
		for _, method := range []string{"PUT", "DELETE", "PATCH", "OPTIONS", "GET", "POST"} {
			if strings.Contains(allow, method) {
				continue
			}
			got := h.do(method, path, "")
			checkProblem(t, method+" "+path, got, 405)
			if got.Header.Get("Allow") != allow {
				t.Errorf("%s %s: Allow: got %q, want %q", method, path, got.Header.Get("Allow"), allow)
			}
		}
	}
	if got := h.do("HEAD", "/healthz", ""); got.StatusCode != 200 || got.body != "" || got.ContentLength != 3 {
		t.Errorf("HEAD /healthz: got %d %q, want what GET says, without a body", got.StatusCode, got.body)
	}
}

// TestRawRequests sends what no client library would.
func TestRawRequests(t *testing.T) {
	w := newWorld(t)
	token := w.token()
	auth := "Authorization: Bearer " + token + "\r\n"
	const end = "Host: a\r\nConnection: close\r\n\r\n"
	for _, network := range networks {
		h := w.listen(network)
		for _, c := range []struct{ name, request, want string }{
			{"absolute form", "GET http://a/v1/verify HTTP/1.1\r\n" + auth + end, "400"},
			{"absolute form, other host", "GET http://evil/healthz HTTP/1.1\r\n" + end, "400"},
			{"authority form", "CONNECT a:443 HTTP/1.1\r\n" + end, "400"},
			{"asterisk form", "OPTIONS * HTTP/1.1\r\n" + end, "400"},
			{"relative target", "GET v1/verify HTTP/1.1\r\n" + auth + end, "400"},
			{"doubled header in two spellings", "GET /v1/verify HTTP/1.1\r\n" + auth + "aUTHORIZATION: Bearer x\r\n" + end, "400"},
			{"empty doubled header", "GET /v1/verify HTTP/1.1\r\n" + auth + "Authorization:\r\n" + end, "400"},
			{"credential in a trailer", "POST /v1/verify HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTrailer: Authorization\r\n" + end + "0\r\n" + auth + "\r\n", "400"},
			{"two lengths", "POST /v1/verify HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n" + end, "400"},
			{"no HTTP", "\x16\x03\x01\x02\x00\x01" + token + "\r\n\r\n", "400"},
			{"HTTP/1.1 without Host", "GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n", "400"},
			{"control in a field", "GET /v1/verify HTTP/1.1\r\nAuthorization: Bearer \x01" + token + "\r\n" + end, "400"},
			{"long header", "GET /v1/verify HTTP/1.1\r\nX: " + strings.Repeat("a", 33<<10) + "\r\n" + end, "431"},
			{"30 KiB of header", "GET /v1/verify HTTP/1.1\r\nX: " + strings.Repeat("a", 30<<10) + "\r\n" + auth + end, "200"},
			{"body promised, too long", "POST /v1/verify HTTP/1.1\r\nContent-Length: 65537\r\n" + end, "413"},
			{"body promised, far too long", "POST /v1/verify HTTP/1.1\r\nContent-Length: 9223372036854775807\r\n" + end, "413"},
			{"body in chunks, too long", "POST /v1/verify HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + end + "20000\r\n" + strings.Repeat("a", 65537), "413"},
			{"batch's bound is batch's own", "POST /v1/verify/batc HTTP/1.1\r\nContent-Length: 65537\r\n" + end, "413"},
			{"100-continue, too long", "POST /v1/verify HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 65537\r\n" + end, "413"},
			{"target of a query alone", "GET ?token HTTP/1.1\r\n" + end, "400"},
		} {
			t.Run(network+" "+c.name, func(t *testing.T) {
				got := h.raw(c.request)
				if !strings.HasPrefix(got, "HTTP/1.1 "+c.want+" ") {
					t.Errorf("got %.300q, want %s", got, c.want)
				}
			})
		}
	}
	if log := w.log.String(); strings.Contains(log, token) || strings.Contains(log, token[len(token)-40:]) {
		t.Errorf("the log holds a token: %s", log)
	}
}

// TestExpectContinue lets a client wait for leave to send its body.
func TestExpectContinue(t *testing.T) {
	w := newWorld(t)
	body := `{"token":"` + w.token() + `"}`
	got := w.listen("tcp").raw(fmt.Sprintf("POST /v1/verify HTTP/1.1\r\nHost: a\r\n%s\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", asJSON, len(body), body))
	if !strings.HasPrefix(got, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n") {
		t.Errorf("got %.200q, want 100, then 200", got)
	}
}

// broken is a replica that fails inside, with a value that may hold what the request held.
type broken struct{ *replica.Replica }

func (broken) Revoked(*replica.IDs) bool { panic("secret-in-a-panic") }

func TestPanicFailsClosed(t *testing.T) {
	w := newWorld(t)
	w.build(broken{w.rep})
	h := w.listen("unix")
	for range 2 {
		checkProblem(t, "verify", h.verify(w.token()), 500)
	}
	if got := h.do("GET", "/healthz", ""); got.StatusCode != 200 {
		t.Errorf("healthz after a panic: got %d, want 200: the process goes on", got.StatusCode)
	}
	log := w.log.String()
	if !strings.Contains(log, "this is a bug") || !strings.Contains(log, "agent_test.broken.Revoked") {
		t.Errorf("log: got %s, want the panic and its stack", log)
	}
	if strings.Contains(log, "secret-in-a-panic") {
		t.Errorf("log: got %s, want nothing of what the panic held", log)
	}
	if got := h.do("GET", "/metrics", "").body; !strings.Contains(got, "sidekey_agent_panics_total 2") {
		t.Errorf("metrics: want sidekey_agent_panics_total 2 in %s", got)
	}
	if v := func() (v agent.Verdict) {
		defer func() { _ = recover() }()
		return w.agent.Verify(w.token(), agent.Query{})
	}(); v.Active() || v.Reason != keyring.Reason("") {
		t.Errorf("Verify: got %+v, want the zero Verdict, which vouches for nothing", v)
	}
}
