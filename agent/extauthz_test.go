package agent_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// serveGRPC serves the agent's gRPC face on ln until the test ends, and gives a connection to it.
func (w *world) serveGRPC(ln net.Listener, options ...grpc.DialOption) (*agent.GRPCServer, *grpc.ClientConn) {
	w.Helper()
	srv := w.agent.GRPCServer()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	target := "passthrough:///" + ln.Addr().String()
	if ln.Addr().Network() == "unix" {
		target = "unix:" + ln.Addr().String()
	}
	if len(options) == 0 {
		options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	conn, err := grpc.NewClient(target, options...)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() {
		_ = conn.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		srv.Shutdown(ctx)
		if err := <-served; err != nil {
			w.Errorf("Serve: %v", err)
		}
	})
	return srv, conn
}

// envoy is Envoy before a service: it asks by unix socket.
func (w *world) envoy() *envoy {
	w.Helper()
	ln, err := net.Listen("unix", filepath.Join(w.TempDir(), "grpc.sock"))
	if err != nil {
		w.Fatal(err)
	}
	_, conn := w.serveGRPC(ln)
	return &envoy{w, authv3.NewAuthorizationClient(conn)}
}

type envoy struct {
	*world
	client authv3.AuthorizationClient
}

// envoyAsks is what Envoy asks about "GET app.example/path", with header lines "name: value", from 10.1.2.3.
func envoyAsks(what string, header ...string) *authv3.CheckRequest {
	method, rest, _ := strings.Cut(what, " ")
	host, path, _ := strings.Cut(rest, "/")
	headers := map[string]string{":method": method, ":path": "/" + path, ":authority": host, ":scheme": "https", "user-agent": "test"}
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		headers[name] = value
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source: peer("10.1.2.3"),
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Method: method, Host: host, Path: "/" + path, Scheme: "https", Headers: headers,
		}},
	}}
}

func peer(ip string) *authv3.AttributeContext_Peer {
	return &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: ip}}}}
}

// raw puts the headers of a request where encode_raw_headers has them, and more beside.
func raw(req *authv3.CheckRequest, more ...string) *authv3.CheckRequest {
	is := req.Attributes.Request.Http
	is.HeaderMap = new(corev3.HeaderMap)
	for name, value := range is.Headers {
		is.HeaderMap.Headers = append(is.HeaderMap.Headers, &corev3.HeaderValue{Key: name, RawValue: []byte(value)})
	}
	for _, line := range more {
		name, value, _ := strings.Cut(line, ": ")
		is.HeaderMap.Headers = append(is.HeaderMap.Headers, &corev3.HeaderValue{Key: name, RawValue: []byte(value)})
	}
	is.Headers = nil
	return req
}

// told is an answer as Envoy acts on it.
type told struct {
	*authv3.CheckResponse
	status int
	fields map[string][]string // set on the request, or on the denial
}

func (e *envoy) check(req *authv3.CheckRequest) told {
	e.Helper()
	answer, err := e.client.Check(e.Context(), req)
	if err != nil {
		e.Fatalf("Check: %v; want an answer: Envoy may let an error through", err)
	}
	return tell(e, answer)
}

func tell(t testing.TB, answer *authv3.CheckResponse) told {
	t.Helper()
	got := told{CheckResponse: answer, fields: make(map[string][]string)}
	allowed, denied := answer.GetOkResponse(), answer.GetDeniedResponse()
	headers := allowed.GetHeaders()
	switch code := codes.Code(answer.GetStatus().GetCode()); {
	case code == codes.OK && allowed != nil && denied == nil:
		got.status = 200
	case code != codes.OK && denied != nil && allowed == nil:
		got.status, headers = int(denied.GetStatus().GetCode()), denied.GetHeaders()
	default:
		t.Fatalf("got code %s with %v, want a body of its kind", code, answer)
	}
	for _, h := range headers {
		name := h.GetHeader().GetKey()
		want := corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
		if name == "www-authenticate" {
			want = corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD
		}
		if h.GetAppendAction() != want {
			t.Errorf("%s: got %s, want %s", name, h.GetAppendAction(), want)
		}
		got.fields[name] = append(got.fields[name], h.GetHeader().GetValue())
	}
	return got
}

// wantTold holds an answer against a status, and at 200 the method, else the reason.
func wantTold(t testing.TB, name string, got told, status int, word string) {
	t.Helper()
	field := "sidekey-reason"
	if status == 200 {
		field = "x-auth-method"
	}
	if got.status != status || !slices.Equal(got.fields[field], []string{word}) {
		t.Errorf("%s: got %d %q, want %d %q", name, got.status, got.fields[field], status, word)
	}
	if status == 200 {
		return
	}
	var problem struct{ Status int }
	if err := json.Unmarshal([]byte(got.GetDeniedResponse().GetBody()), &problem); err != nil || problem.Status != status {
		t.Errorf("%s: got body %q (%v), want a problem of %d", name, got.GetDeniedResponse().GetBody(), err, status)
	}
	for field := range got.fields {
		if strings.HasPrefix(field, "x-auth-") {
			t.Errorf("%s: a denial has %s", name, field)
		}
	}
}

// TestEnvoyAllows: the service gets who it is from, whatever the client sent, in a first answer and in one that is remembered.
func TestEnvoyAllows(t *testing.T) {
	w := newWorld(t, func(c *agent.Config) { c.Headers = map[string]string{"email": "X-Auth-Email", "team": "X-Team"} })
	e := w.envoy()
	token := w.token(func(c *keyring.Claims) {
		c.Subject, c.Scope, c.SessionID = "alice", "read write", ""
		c.Roles, c.Extra = []string{"staff", "ops"}, map[string]any{"email": "a@b.example"}
	})
	for _, form := range []string{"first", "remembered"} {
		got := e.check(envoyAsks("GET app.example/orders?id=1", "authorization: Bearer "+token, "x-auth-subject: root", "x-team: root"))
		wantTold(t, form, got, 200, "bearer")
		want := map[string][]string{"x-auth-subject": {"alice"}, "x-auth-scope": {"read write"}, "x-auth-roles": {"staff,ops"}, "x-auth-client": {"sidekey"}, "x-auth-method": {"bearer"}, "x-auth-email": {"a@b.example"}}
		if !maps.EqualFunc(got.fields, want, slices.Equal) {
			t.Errorf("%s: sets %v, want %v", form, got.fields, want)
		}
		if removes := slices.Sorted(slices.Values(got.GetOkResponse().GetHeadersToRemove())); !slices.Equal(removes, []string{"x-auth-claims", "x-auth-session", "x-team"}) {
			t.Errorf("%s: removes %q, want what has no value", form, removes)
		}
		m := got.GetDynamicMetadata().AsMap()
		claims, _ := m["claims"].(map[string]any)
		if m["subject"] != "alice" || m["method"] != "bearer" || claims["email"] != "a@b.example" || claims["sub"] != "alice" {
			t.Errorf("%s: metadata %v, want the claims", form, m)
		}
	}
	got := e.check(envoyAsks("GET app.example/", "authorization: Bearer "+token, "x_auth_subject: root", "x-auth_method: root", "x_other: 1"))
	wantTold(t, "look-alikes", got, 200, "bearer")
	if removes := slices.Sorted(slices.Values(got.GetOkResponse().GetHeadersToRemove())); !slices.Equal(removes, []string{"x-auth-claims", "x-auth-session", "x-auth_method", "x-team", "x_auth_subject"}) {
		t.Errorf("look-alikes: removes %q, want x_auth_subject and x-auth_method too", removes)
	}
	w.apply(&bus.Revocation{Subject: "alice", ExpiresAt: time.Now().Unix() + 3600, Time: time.Now().Unix() + 1})
	wantTold(t, "revoked", e.check(envoyAsks("GET app.example/", "authorization: Bearer "+token)), 401, "revoked")
}

// TestEnvoyDecisions goes through the decisions by what Envoy tells.
func TestEnvoyDecisions(t *testing.T) {
	w := newWorld(t, func(c *agent.Config) { c.Authenticators = []string{"bearer", "session", "token", "api_key"} })
	w.rules(doorRules)
	e := w.envoy()
	w.credential(bus.APIKey, "sk_a-good-key", func(c *bus.Credential) { c.Networks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} })
	good := "authorization: Bearer " + w.token(func(c *keyring.Claims) { c.Subject, c.Scope, c.Roles = "alice", "read", []string{"staff"} })
	old := "authorization: Bearer " + w.token(func(c *keyring.Claims) { c.AuthTime = keyring.At(time.Now().Add(-time.Hour)) })
	change := func(req *authv3.CheckRequest, f func(*authv3.AttributeContext)) *authv3.CheckRequest {
		f(req.Attributes)
		return req
	}
	for _, c := range []struct {
		name   string
		req    *authv3.CheckRequest
		status int
		word   string
	}{
		{"a rule's scope", envoyAsks("GET h/api/x", good), 200, "bearer"},
		{"raw headers", raw(envoyAsks("GET h/api/x", good)), 200, "bearer"},
		{"anybody", envoyAsks("GET app.example/static/a.css"), 200, "anonymous"},
		{"anybody, with a token that is none", envoyAsks("GET app.example/", "authorization: Bearer x"), 200, "anonymous"},
		{"an API key from its network", envoyAsks("GET h/machine/1", "x-api-key: sk_a-good-key"), 200, "api_key"},
		{"a claim and a header", envoyAsks("GET h/api/users/alice", good, "x-tenant: acme"), 200, "bearer"},
		{"nobody", envoyAsks("GET h/api/x"), 401, "missing"},
		{"a token that is none", envoyAsks("GET h/api/x", "authorization: Bearer x"), 401, "malformed"},
		{"two tokens that Envoy joined", envoyAsks("GET h/api/x", good+","+good), 401, "malformed"},
		{"an old login", envoyAsks("GET h/transfer", old), 401, "insufficient_user_authentication"},
		{"another network", change(envoyAsks("GET h/machine/1", "x-api-key: sk_a-good-key"), func(at *authv3.AttributeContext) { at.Source = peer("192.0.2.1") }), 403, "wrong_network"},
		{"no address", change(envoyAsks("GET h/machine/1", "x-api-key: sk_a-good-key"), func(at *authv3.AttributeContext) { at.Source = nil }), 403, "wrong_network"},
		{"no rule", envoyAsks("GET h/other", good), 403, "no_rule"},
		{"a scope that is missing", envoyAsks("POST h/api/x", good), 403, "insufficient_scope"},
		{"a condition", envoyAsks("GET h/api/users/bob", good, "x-tenant: acme"), 403, "condition_false"},
		{"an authenticator that is not taken", envoyAsks("GET h/machine/1", good), 403, "missing"},
		{"a doubled credential", raw(envoyAsks("GET h/api/x", good), good), 403, "ambiguous_request"},
		{"a doubled field that a rule asks for", raw(envoyAsks("GET h/api/users/alice", good, "x-tenant: acme"), "x-tenant: other"), 403, "ambiguous_request"},
		{"a path of two meanings", envoyAsks("GET h/static/../api/x", good), 403, "ambiguous_request"},
		{"an encoded slash", envoyAsks("GET h/api%2fx", good), 403, "ambiguous_request"},
		{"upper case", envoyAsks("GET h/api/x", "Authorization"+good[len("authorization"):]), 403, "ambiguous_request"},
		{"headers twice", change(raw(envoyAsks("GET h/api/x", good)), func(at *authv3.AttributeContext) { at.Request.Http.Headers = map[string]string{"a": "b"} }), 403, "ambiguous_request"},
		{"a value twice", change(raw(envoyAsks("GET h/api/x", good)), func(at *authv3.AttributeContext) { at.Request.Http.HeaderMap.Headers[0].Value = "other" }), 403, "ambiguous_request"},
		{"a query beside the path", change(envoyAsks("GET h/api/x", good), func(at *authv3.AttributeContext) { at.Request.Http.Query = "a=b" }), 403, "ambiguous_request"},
		{"a fragment", change(envoyAsks("GET h/api/x", good), func(at *authv3.AttributeContext) { at.Request.Http.Fragment = "a" }), 403, "ambiguous_request"},
		{"another scheme", change(envoyAsks("GET h/api/x", good), func(at *authv3.AttributeContext) { at.Request.Http.Scheme = "ftp" }), 403, "ambiguous_request"},
		{"no method", envoyAsks(" h/api/x", good), 403, "ambiguous_request"},
		{"no path", change(envoyAsks("GET h/api/x", good), func(at *authv3.AttributeContext) { at.Request.Http.Path = "" }), 403, "ambiguous_request"},
		{"no host", change(envoyAsks("GET h/api/x", good), func(at *authv3.AttributeContext) { at.Request.Http.Host = "" }), 403, "ambiguous_request"},
		{"rules that are not here", change(envoyAsks("GET h/api/x", good), func(at *authv3.AttributeContext) { at.ContextExtensions = map[string]string{"sidekey.rules": "x"} }), 403, "no_rule"},
		{"extensions of others", change(envoyAsks("GET h/api/x", good), func(at *authv3.AttributeContext) { at.ContextExtensions = map[string]string{"virtual_host": "x"} }), 200, "bearer"},
		{"an empty request", &authv3.CheckRequest{}, 403, "ambiguous_request"},
		{"attributes without a request", &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Source: peer("10.1.2.3")}}, 403, "ambiguous_request"},
		{"a TCP connection", &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: new(authv3.AttributeContext_Request)}}, 403, "ambiguous_request"},
		{"a nil header", change(raw(envoyAsks("GET h/api/x", good)), func(at *authv3.AttributeContext) {
			at.Request.Http.HeaderMap.Headers = append(at.Request.Http.HeaderMap.Headers, new(corev3.HeaderValue))
		}), 200, "bearer"},
	} {
		wantTold(t, c.name, e.check(c.req), c.status, c.word)
	}
}

// TestEnvoyChallenges: each challenge reaches the client as a field of its own.
func TestEnvoyChallenges(t *testing.T) {
	w := newWorld(t)
	w.rules("[[rules]]\nname='w'\npaths=['/w']\nrequire={scopes=['write','post']}\n[[rules]]\nname='r'\npaths=['/**']")
	e := w.envoy()
	if got := e.check(envoyAsks("GET h/")).fields["www-authenticate"]; !slices.Equal(got, []string{`Bearer realm="sidekey"`, "Token"}) {
		t.Errorf("nobody: got %q, want both challenges", got)
	}
	got := e.check(envoyAsks("GET h/", "authorization: Bearer x"))
	if c := got.fields["www-authenticate"]; len(c) != 2 || !strings.Contains(c[0], `error="invalid_token"`) || codes.Code(got.GetStatus().GetCode()) != codes.Unauthenticated {
		t.Errorf("a bad token: got %q with code %d, want invalid_token and Unauthenticated", c, got.GetStatus().GetCode())
	}
	got = e.check(envoyAsks("GET h/w", "authorization: Bearer "+w.token()))
	if c := got.fields["www-authenticate"]; len(c) != 1 || !strings.Contains(c[0], `error="insufficient_scope"`) || !strings.Contains(c[0], `scope="write post"`) || codes.Code(got.GetStatus().GetCode()) != codes.PermissionDenied {
		t.Errorf("a scope: got %q with code %d, want it named and PermissionDenied", c, got.GetStatus().GetCode())
	}
	if got.fields["content-type"][0] != "application/problem+json" || got.fields["cache-control"][0] != "no-store" {
		t.Errorf("a denial: got %v, want a problem that is not stored", got.fields)
	}
}

// TestEnvoyUnavailable: an agent that does not know enough denies with 503, or goes on where that was asked for and says so.
func TestEnvoyUnavailable(t *testing.T) {
	starting := newStartingWorld(t)
	got := starting.envoy().check(envoyAsks("GET h/", "authorization: Bearer x"))
	wantTold(t, "starting", got, 503, "starting")
	if !slices.Equal(got.fields["retry-after"], []string{"1"}) || codes.Code(got.GetStatus().GetCode()) != codes.Unavailable {
		t.Errorf("starting: got %v, code %d, want Retry-After and Unavailable", got.fields, got.GetStatus().GetCode())
	}
	w := newWorld(t)
	e := w.envoy()
	good := envoyAsks("GET h/", "authorization: Bearer "+w.token())
	wantTold(t, "with a lease", e.check(good), 200, "bearer")
	w.lease.Store(nil)
	wantTold(t, "without a lease", e.check(good), 503, "stale")
	ended := lease.Lease{Begin: lease.Reading{}, Length: time.Nanosecond, Mode: lease.Serve}
	w.lease.Store(&ended)
	got = e.check(good)
	wantTold(t, "going on", got, 200, "bearer")
	if h := got.GetOkResponse().GetResponseHeadersToAdd(); len(h) != 1 || h[0].GetHeader().GetKey() != "sidekey-stale" {
		t.Errorf("going on: got %v for the client, want Sidekey-Stale", h)
	}
}

// TestEnvoyStrips: with strip_credentials the service sees no credential of the agent's, and all its own cookies.
func TestEnvoyStrips(t *testing.T) {
	w := newWorld(t, func(c *agent.Config) { c.StripCredentials = true })
	w.rules("[[rules]]\nname='p'\npaths=['/p']\nallow='anyone'\n[[rules]]\nname='r'\npaths=['/**']")
	e := w.envoy()
	bearer := "authorization: Bearer " + w.token()
	session := strings.Replace(w.session(), "Cookie", "cookie", 1)
	alone := "cookie: " + strings.TrimSuffix(strings.TrimPrefix(session, "cookie: a=b; "), "; c=d") + ";__Secure-sidekey_refresh=x"
	for _, c := range []struct {
		name    string
		req     *authv3.CheckRequest
		method  string
		removes bool
		cookie  string // set to; "-": removed; "": left alone
	}{
		{"a token", envoyAsks("GET h/", bearer), "bearer", true, ""},
		{"a token remembered", envoyAsks("GET h/", bearer), "bearer", true, ""},
		{"a token beside cookies", envoyAsks("GET h/", bearer, "cookie: a=b"), "bearer", true, ""},
		{"a session", envoyAsks("GET h/", session), "session", true, "a=b; c=d"},
		{"a session alone", envoyAsks("GET h/", alone), "session", true, "-"},
		{"anybody", envoyAsks("GET h/p", bearer, session), "anonymous", false, ""},
	} {
		got := e.check(c.req)
		wantTold(t, c.name, got, 200, c.method)
		removes := got.GetOkResponse().GetHeadersToRemove()
		if slices.Contains(removes, "authorization") != c.removes || slices.Contains(removes, "x-api-key") != c.removes {
			t.Errorf("%s: removes %q, want the credentials: %v", c.name, removes, c.removes)
		}
		if slices.Contains(removes, "cookie") != (c.cookie == "-") {
			t.Errorf("%s: removes %q, want cookie: %v", c.name, removes, c.cookie == "-")
		}
		if set := strings.Join(got.fields["cookie"], ""); set != strings.TrimPrefix(c.cookie, "-") {
			t.Errorf("%s: sets cookie %q, want %q", c.name, set, c.cookie)
		}
	}
	without := newWorld(t)
	if got := without.envoy().check(envoyAsks("GET h/", "authorization: Bearer "+without.token())); slices.Contains(got.GetOkResponse().GetHeadersToRemove(), "authorization") {
		t.Error("the credential is removed though strip_credentials is off")
	}
}

// TestClaimsHeader: "*" in agent.headers is all claims, at every face, and never more than a proxy takes.
func TestClaimsHeader(t *testing.T) {
	w := newWorld(t, func(c *agent.Config) { c.Headers = map[string]string{"*": "X-Auth-Claims", "email": "X-Auth-Email"} })
	e, h := w.envoy(), w.listen("unix")
	w.credential(bus.APIKey, "sk_a-good-key")
	token := w.token(func(c *keyring.Claims) {
		c.Extra = map[string]any{"email": "é@b.example", "n": 7, "list": []string{"a,b"}}
	})
	long := w.token(func(c *keyring.Claims) { c.Extra = map[string]any{"pad": strings.Repeat("a", 5000)} })
	for _, c := range []struct {
		credential string
		status     int
		want       map[string]any
	}{
		{"authorization: Bearer " + token, 200, map[string]any{"email": "é@b.example", "n": float64(7), "list": []any{"a,b"}, "iss": keyringtest.Issuer}},
		{"x-api-key: sk_a-good-key", 200, map[string]any{"sub": "svc", "scope": "read", "client_id": "billing", "roles": []any{"a", "b c"}, "jti": "k_sk_a"}},
		{"authorization: Bearer " + long, 200, map[string]any{"pad": strings.Repeat("a", 5000)}},
	} {
		byHTTP := h.do("GET", "/v1/auth/forward", "", forwarded("GET", c.credential)...)
		byGRPC := e.check(envoyAsks("GET h/", c.credential))
		field := byHTTP.Header.Get("X-Auth-Claims")
		if byHTTP.StatusCode != c.status || byGRPC.status != c.status || !slices.Equal(byGRPC.fields["x-auth-claims"], []string{field}) {
			t.Errorf("%.30s: got %d and %d, %q and %q, want %d and the same claims", c.credential, byHTTP.StatusCode, byGRPC.status, field, byGRPC.fields["x-auth-claims"], c.status)
			continue
		}
		text, err := base64.RawURLEncoding.DecodeString(field)
		var got map[string]any
		if err != nil || json.Unmarshal(text, &got) != nil {
			t.Errorf("%.30s: %q is no base64url of JSON: %v", c.credential, field, err)
		}
		for name, want := range c.want {
			if fmt.Sprint(got[name]) != fmt.Sprint(want) {
				t.Errorf("%.30s: claim %s: got %v, want %v", c.credential, name, got[name], want)
			}
		}
		if slices.Contains(byGRPC.GetOkResponse().GetHeadersToRemove(), "x-auth-claims") {
			t.Errorf("%.30s: the header is set and removed", c.credential)
		}
	}
	w.credential(bus.APIKey, "big-credential-00", func(c *bus.Credential) {
		c.Roles = nil
		for n := range 64 {
			c.Roles = append(c.Roles, fmt.Sprint(n, strings.Repeat("r", 120)))
		}
	})
	got := h.do("GET", "/v1/auth/forward", "", forwarded("GET", "X-API-Key: big-credential-00")...)
	checkAuth(t, "more claims than a header takes", got, 403, "unsafe_claim")
	wantTold(t, "more claims than a header takes", e.check(envoyAsks("GET h/", "x-api-key: big-credential-00")), 403, "unsafe_claim")
}

// TestEnvoyCredential: the answer to an API key is remembered, and never longer than its record stands.
func TestEnvoyCredential(t *testing.T) {
	w := newWorld(t)
	e := w.envoy()
	req := envoyAsks("GET h/", "x-api-key: sk_a-good-key")
	for _, scope := range []string{"read", "read write"} {
		w.credential(bus.APIKey, "sk_a-good-key", func(c *bus.Credential) { c.Scope = scope })
		for _, form := range []string{"first", "remembered"} {
			got := e.check(req)
			wantTold(t, form, got, 200, "api_key")
			if got := got.fields["x-auth-scope"]; !slices.Equal(got, []string{scope}) {
				t.Errorf("%s: scope %q, want %q", form, got, scope)
			}
		}
	}
	hash := bus.HashCredential([]byte("sk_a-good-key"))
	w.apply(&bus.Credential{ID: "k_sk_a", Type: bus.APIKey, Hash: hash[:], Gone: true})
	wantTold(t, "withdrawn", e.check(req), 401, "unknown_credential")
}
