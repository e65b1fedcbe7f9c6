package agent_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

const asForm = "Content-Type: application/x-www-form-urlencoded"

func TestIntrospect(t *testing.T) {
	w := newWorld(t)
	w.apply(&bus.Revocation{ID: "gone", ExpiresAt: 1 << 40})
	good := w.token()
	odd := w.token(func(c *keyring.Claims) { c.Extra = map[string]any{"active": "no", "x": map[string]any{"active": 1}} })
	revoked := w.token(func(c *keyring.Claims) { c.ID = "gone" })
	for _, network := range []string{"tcp", "unix"} {
		h := w.listen(network)
		for _, c := range []struct {
			name, body string
			header     []string
			status     int
			want       string
		}{
			{"form", "token=" + good + "&token_type_hint=access_token", []string{asForm}, 200, `{"active":true,"iss":"` + keyringtest.Issuer + `",`},
			{"JSON", `{"token":"` + good + `","resource":"x"}`, []string{asJSON}, 200, `{"active":true,"iss":`},
			{"the caller's own credential", "token=" + good, []string{asForm, "Authorization: Bearer " + revoked}, 200, `{"active":true,`},
			{"Authorization is never the token", "", []string{asForm, "Authorization: Bearer " + good}, 400, `{"error":"invalid_request",`},
			{"a claim named active", "token=" + odd, []string{asForm}, 200, `{"active":true,"iss":`},
			{"revoked", "token=" + revoked, []string{asForm}, 200, `{"active":false}`},
			{"refresh token", "token=" + w.tokenOf(w.key, keyring.RefreshToken), []string{asForm}, 200, `{"active":false}`},
			{"nonsense", "token=a", []string{asForm}, 200, `{"active":false}`},
			{"empty", "token=", []string{asForm}, 200, `{"active":false}`},
			{"twice", "token=a&token=b", []string{asForm}, 400, `{"error":"invalid_request","error_description":"the parameter 'token' is there twice"}`},
			{"not UTF-8", "token=%ff", []string{asForm}, 400, `{"error":"invalid_request"`},
			{"token a number", `{"token":1}`, []string{asJSON}, 400, `{"error":"invalid_request"`},
			{"no JSON", `token`, []string{asJSON}, 400, `{"error":"invalid_request"`},
			{"text", "token=a", []string{"Content-Type: text/plain"}, 415, `{"type":"about:blank"`},
		} {
			got := h.do("POST", "/oauth2/introspect", c.body, c.header...)
			if got.StatusCode != c.status || !strings.HasPrefix(got.body, c.want) || got.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s %s: got %d %s, want %d %s…", network, c.name, got.StatusCode, got.body, c.status, c.want)
			}
			m := got.json(t)
			if c.name == "a claim named active" && (m["active"] != true || fmt.Sprint(m["x"]) != "map[active:1]" || strings.Count(got.body, `"active"`) != 2) {
				t.Errorf("%s: got %s, want one active of the answer's own, and the other claims", c.name, got.body)
			}
			if c.status == 200 && m["active"] == true && (m["sub"] != "alice" || m["sid"] == "") {
				t.Errorf("%s: got %s, want the claims", c.name, got.body)
			}
		}
	}
}

// TestIntrospectFromAfar asks over connections that other hosts can make: refused, whatever the token.
func TestIntrospectFromAfar(t *testing.T) {
	w := newWorld(t)
	if got := w.listen("mem").do("POST", "/oauth2/introspect", "token="+w.token(), asForm); got.StatusCode != 401 {
		t.Errorf("a connection of unknown kind: got %d, want 401 (fails closed)", got.StatusCode)
	}
	addr := func(s string) net.Addr { a, _ := net.ResolveTCPAddr("tcp", s); return a }
	for _, c := range []struct {
		here, there string
		want        int
	}{
		{"127.0.0.1:7461", "127.0.0.1:5000", 200},
		{"[::1]:7461", "[::1]:5000", 200},
		{"10.0.0.1:7461", "10.0.0.2:5000", 401},
		{"10.0.0.1:7461", "127.0.0.1:5000", 401},
		{"127.0.0.1:7461", "10.0.0.2:5000", 401},
	} {
		var ctx fasthttp.RequestCtx
		ctx.Init2(&addressed{here: addr(c.here), there: addr(c.there)}, nil, false)
		ctx.Request.Header.SetMethod("POST")
		ctx.Request.SetRequestURI("/oauth2/introspect")
		ctx.Request.Header.SetContentType("application/x-www-form-urlencoded")
		ctx.Request.SetBodyString("token=" + w.token())
		w.agent.Handler()(&ctx)
		if got := ctx.Response.StatusCode(); got != c.want {
			t.Errorf("%s to %s: got %d, want %d", c.there, c.here, got, c.want)
		}
		if c.want == 401 && !strings.HasPrefix(string(ctx.Response.Body()), `{"error":"invalid_client"`) {
			t.Errorf("%s to %s: got %s, want invalid_client", c.there, c.here, ctx.Response.Body())
		}
	}
}

// addressed is a connection that has addresses and nothing else.
type addressed struct {
	net.Conn
	here, there net.Addr
}

func (a *addressed) LocalAddr() net.Addr  { return a.here }
func (a *addressed) RemoteAddr() net.Addr { return a.there }

func TestSimpleJWT(t *testing.T) {
	w := newWorld(t)
	w.apply(&bus.Revocation{ID: "gone", ExpiresAt: 1 << 40})
	good := w.token()
	h := w.listen("unix")
	invalid := `{"detail":"Token is invalid","code":"token_not_valid"}`
	for _, c := range []struct {
		name, body, header string
		status             int
		want               string
	}{
		{"form", "token=" + good, asForm, 200, `{}`},
		{"JSON", `{"token":"` + good + `"}`, asJSON, 200, `{}`},
		{"trimmed", `{"token":" ` + good + `\n"}`, asJSON, 200, `{}`},
		{"other fields", `{"token":"` + good + `","x":1}`, asJSON, 200, `{}`},
		{"the last of two", "token=a&token=" + good, asForm, 200, `{}`},
		{"invalid", `{"token":"a"}`, asJSON, 401, invalid},
		{"a number", `{"token":12}`, asJSON, 401, invalid},
		{"expired", "token=" + w.token(func(c *keyring.Claims) { c.ExpiresAt = c.IssuedAt - 60 }), asForm, 401, `{"detail":"Token is expired","code":"token_not_valid"}`},
		{"refresh token", "token=" + w.tokenOf(w.key, keyring.RefreshToken), asForm, 401, `{"detail":"Token has wrong type","code":"token_not_valid"}`},
		{"revoked", "token=" + w.token(func(c *keyring.Claims) { c.ID = "gone" }), asForm, 401, `{"detail":"Token is blacklisted","code":"token_not_valid"}`},
		{"no field", `{}`, asJSON, 400, `{"token":["This field is required."]}`},
		{"no field, form", "x=y", asForm, 400, `{"token":["This field is required."]}`},
		{"no body", "", asForm, 400, `{"token":["This field is required."]}`},
		{"blank", `{"token":""}`, asJSON, 400, `{"token":["This field may not be blank."]}`},
		{"blanks", "token=++", asForm, 400, `{"token":["This field may not be blank."]}`},
		{"null", `{"token":null}`, asJSON, 400, `{"token":["This field may not be null."]}`},
		{"a list", `{"token":["a"]}`, asJSON, 400, `{"token":["Not a valid string."]}`},
		{"true", `{"token":true}`, asJSON, 400, `{"token":["Not a valid string."]}`},
		{"no JSON", `token`, asJSON, 400, `{"detail":"JSON parse error - the body must be one JSON object"}`},
		{"text", `token`, "Content-Type: text/plain", 415, `{"detail":"Unsupported media type \"text/plain\" in request."}`},
	} {
		for _, path := range []string{"/api/token/verify/", "/api/token/verify"} {
			got := h.do("POST", path, c.body, c.header)
			if got.StatusCode != c.status || got.body != c.want || got.Header.Get("Content-Type") != "application/json" {
				t.Errorf("%s at %s: got %d %s, want %d %s", c.name, path, got.StatusCode, got.body, c.status, c.want)
			}
			if c.status == 401 && got.Header.Get("WWW-Authenticate") != `Bearer realm="api"` {
				t.Errorf("%s: challenge: got %q", c.name, got.Header.Get("WWW-Authenticate"))
			}
		}
	}
	got := h.do("GET", "/api/token/verify/", "")
	if got.StatusCode != 405 || got.body != `{"detail":"Method \"GET\" not allowed."}` || got.Header.Get("Allow") != "POST" {
		t.Errorf("GET: got %d %s, want 405 as Django REST Framework says it", got.StatusCode, got.body)
	}
}

func TestJWKS(t *testing.T) {
	w := newWorld(t)
	h := w.listen("unix")
	secret := keyringtest.Secret(t)
	w.apply(w.fact(secret, keyring.Active), w.fact(keyringtest.EC(t), keyring.Announced))
	got := h.do("GET", "/.well-known/jwks.json", "")
	for name, want := range map[string]string{"Access-Control-Allow-Origin": "*", "Cache-Control": "public, max-age=300", "Content-Type": "application/jwk-set+json"} {
		if v := got.Header.Get(name); v != want {
			t.Errorf("%s: got %q, want %q", name, v, want)
		}
	}
	keys, err := keyring.ParseJWKS([]byte(got.body))
	if err != nil || len(keys) != 2 || strings.Contains(got.body, secret.ID()) || strings.Contains(got.body, `"oct"`) {
		t.Errorf("got %s (%v), want the two public keys and no symmetric one", got.body, err)
	}
	etag := got.Header.Get("ETag")
	for list, want := range map[string]int{etag: 304, `"x", W/` + etag: 304, "*": 304, `"x"`: 200, "": 200} {
		if got := h.do("GET", "/.well-known/jwks.json", "", "If-None-Match: "+list); got.StatusCode != want || want == 304 && got.body != "" {
			t.Errorf("If-None-Match %s: got %d %q, want %d", list, got.StatusCode, got.body, want)
		}
	}
	w.apply(w.fact(w.key, keyring.Revoked))
	if got := h.do("GET", "/.well-known/jwks.json", "", "If-None-Match: "+etag); got.StatusCode != 200 || strings.Contains(got.body, w.key.ID()) {
		t.Errorf("after a revocation: got %d %s, want the new set, without that key", got.StatusCode, got.body)
	}
}

func TestStatus(t *testing.T) {
	w := newWorld(t)
	w.lease.Store(&lease.Lease{Length: time.Minute})
	w.clock = func() lease.Reading { return lease.Reading{} }
	w.apply(&bus.Revocation{ID: "gone", ExpiresAt: 1 << 40})
	token := w.token()
	for range 3 {
		w.agent.Verify(token, agent.Query{})
	}
	want := fmt.Sprintf(`{"agent":"web-1","run":"run-1","version":"v0.test","connected":true,"epoch":1,"applied_seq":2,"head_seq":2,"stale":false,`+
		`"lease_ms":60000,"serving":false,"clock_off_ms":0,"audiences":[],"keys":[{"kid":%q,"alg":"RS256","state":"active"}],"revocations":1,"cache":{"entries":1,"hits":2,"misses":1}}`, w.key.ID())
	if got := w.listen("unix").do("GET", "/v1/status", ""); got.body != want || got.Header.Get("Content-Type") != "application/json" {
		t.Errorf("got %s, want %s", got.body, want)
	}
	rec := httptest.NewRecorder()
	w.agent.OpsHandler().ServeHTTP(rec, httptest.NewRequest("GET", "/v1/status", nil))
	if rec.Body.String() != want {
		t.Errorf("ops: got %s, want the same", rec.Body)
	}
	empty, _ := json.Marshal(newStartingWorld(t).agent.Status())
	if !strings.Contains(string(empty), `"stale":true,"lease_ms":`) {
		t.Errorf("before anything: got %s, want stale, though it has a lease", empty)
	}
}

func TestOpsHandler(t *testing.T) {
	ops := newWorld(t).agent.OpsHandler()
	for path, want := range map[string]int{
		"GET /healthz": 200, "HEAD /readyz": 200, "GET /readyz": 200, "GET /metrics": 200, "POST /healthz": 405,
		"GET /v1/verify": 404, "POST /oauth2/introspect": 404, "GET /.well-known/jwks.json": 404,
	} {
		method, target, _ := strings.Cut(path, " ")
		rec := httptest.NewRecorder()
		ops.ServeHTTP(rec, httptest.NewRequest(method, target, nil))
		if rec.Code != want {
			t.Errorf("%s: got %d, want %d", path, rec.Code, want)
		}
	}
	rec := httptest.NewRecorder()
	newStartingWorld(t).agent.OpsHandler().ServeHTTP(rec, httptest.NewRequest("GET", "/readyz", nil))
	if rec.Code != 503 || rec.Header().Get("Retry-After") == "" || rec.Body.String() != "starting\n" {
		t.Errorf("readyz while starting: got %d %s, want 503 starting", rec.Code, rec.Body)
	}
}
