package agent_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// networks are the listeners that every answer is tried on.
var networks = []string{"mem", "tcp", "unix"}

func TestVerifyAccepts(t *testing.T) {
	w := newWorld(t)
	token := w.token(func(c *keyring.Claims) {
		c.ID, c.Extra = "jti-1", map[string]any{"quote": `"\é`, "active": false}
	})
	for _, network := range networks {
		h := w.listen(network)
		ways := map[string]func() reply{
			"body": func() reply { return h.verify(token) },
			"body, escaped": func() reply {
				return h.do("POST", "/v1/verify", `{"tok\u0065n":"\u0065`+token[1:]+`"}`, "Content-Type: Application/JSON; charset=utf-8")
			},
			"header, POST": func() reply { return h.do("POST", "/v1/verify", "", "Authorization: Bearer "+token) },
			"header, GET":  func() reply { return h.do("GET", "/v1/verify?token=none", "", "authorization: bEARER   "+token) },
		}
		for name, way := range ways {
			t.Run(network+" "+name, func(t *testing.T) {
				for range 2 { // proven first, cached then
					checkAccepted(t, w, way(), token)
				}
			})
		}
	}
	if got := w.agent.Status().Cache; got.Entries != 1 || got.Misses != 1 || got.Hits != 23 {
		t.Errorf("Status().Cache: got %+v, want one entry, one miss and 23 hits: all ways share one proof", got)
	}
}

func checkAccepted(t *testing.T, w *world, got reply, token string) {
	t.Helper()
	if got.StatusCode != http.StatusOK {
		t.Fatalf("status: got %d %s, want 200", got.StatusCode, got.body)
	}
	for name, want := range map[string]string{"Cache-Control": "no-store", "Content-Type": "application/json", "Server": "", "Www-Authenticate": ""} {
		if v := got.Header.Get(name); v != want {
			t.Errorf("%s: got %q, want %q", name, v, want)
		}
	}
	m := got.json(t)
	for name, want := range map[string]any{
		"active": true, "iss": keyringtest.Issuer, "sub": "alice", "aud": keyringtest.Audience, "jti": "jti-1", "client_id": "sidekey",
		"scope": "read write", "token_type": "access", "kid": w.key.ID(), "alg": "RS256", "seq": 1.0,
	} {
		if m[name] != want {
			t.Errorf("member %q: got %v, want %v", name, m[name], want)
		}
	}
	claims, _ := m["claims"].(map[string]any)
	if claims["quote"] != `"\é` || claims["sub"] != "alice" || claims["active"] != false || claims["user_id"] != "alice" {
		t.Errorf("claims: got %v, want all of the token's", claims)
	}
	if m["exp"] != claims["exp"] || m["iat"] != claims["iat"] || m["sid"] != claims["sid"] {
		t.Errorf("exp, iat or sid: got %v, want them as in the claims %v", m, claims)
	}
}

// TestAnswerSaysWhatWasSigned holds the members of an answer against the claims, for values of
// every shape that a token may have.
func TestAnswerSaysWhatWasSigned(t *testing.T) {
	w := newWorld(t, func(c *agent.Config) { c.Audiences = []string{"b"} })
	h := w.listen("unix")
	for name, change := range map[string]func(c *keyring.Claims){
		"two audiences": func(c *keyring.Claims) { c.Audience = []string{"a\"", "b"} },
		"one audience":  func(c *keyring.Claims) { c.Audience = []string{"b"} },
		"fractions": func(c *keyring.Claims) {
			c.Audience, c.ExpiresAt, c.IssuedAt = []string{"b"}, c.ExpiresAt+0.25, c.IssuedAt-0.5
		},
		"odd texts": func(c *keyring.Claims) {
			c.Audience, c.Subject, c.Scope, c.ID = []string{"b"}, "é\\\"\x7f\t\u2028", "<&>", "😀"
		},
		"little": func(c *keyring.Claims) {
			c.Audience, c.SessionID, c.ClientID, c.Scope, c.TokenType = []string{"b"}, "", "", "", ""
		},
	} {
		m := h.verify(w.token(change)).json(t)
		claims, _ := m["claims"].(map[string]any)
		for _, claim := range []string{"iss", "sub", "aud", "exp", "iat", "jti", "sid", "client_id", "scope", "token_type"} {
			got, has := m[claim]
			want, signed := claims[claim]
			if has != signed || fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: member %s: got %v, want %v as in the claims", name, claim, got, want)
			}
		}
	}
}

// refusal is one way for a token to be refused.
type refusal struct {
	name   string
	reason keyring.Reason
	token  func(w *world) string
}

func refusals() []refusal {
	edit := func(f func(c *keyring.Claims)) func(*world) string {
		return func(w *world) string { return w.token(f) }
	}
	return []refusal{
		{"no token", keyring.Missing, func(*world) string { return "" }},
		{"no JWS", keyring.Malformed, func(*world) string { return "nonsense" }},
		{"too long", keyring.Malformed, func(*world) string { return strings.Repeat("a", keyring.MaxTokenLength+1) }},
		{"line break", keyring.Malformed, func(w *world) string { return w.token() + "\n" }},
		{"alg none", keyring.UnsupportedAlg, func(*world) string { return "eyJhbGciOiJub25lIiwia2lkIjoiYSIsInR5cCI6ImF0K2p3dCJ9.e30.AA" }},
		{"unknown key", keyring.UnknownKey, func(w *world) string { return w.tokenOf(keyringtest.EC(w), keyring.AccessToken) }},
		{"changed signature", keyring.BadSignature, func(w *world) string {
			token := w.token()
			at := len(token) - 9
			other := "A"
			if token[at] == 'A' {
				other = "B"
			}
			return token[:at] + other + token[at+1:]
		}},
		{"expired", keyring.Expired, edit(func(c *keyring.Claims) { c.ExpiresAt = keyring.At(time.Now().Add(-6 * time.Second)) })},
		{"nbf ahead", keyring.NotYetValid, edit(func(c *keyring.Claims) { c.NotBefore = keyring.At(time.Now().Add(time.Minute)) })},
		{"iat ahead", keyring.NotYetValid, edit(func(c *keyring.Claims) { c.IssuedAt = keyring.At(time.Now().Add(time.Minute)) })},
		{"issuer", keyring.WrongIssuer, edit(func(c *keyring.Claims) { c.Issuer = "https://else.test" })},
		{"audience", keyring.WrongAudience, edit(func(c *keyring.Claims) { c.Audience = []string{"https://else.test"} })},
		{"no audience", keyring.WrongAudience, edit(func(c *keyring.Claims) { c.Audience = nil })},
		{"refresh token", keyring.WrongType, func(w *world) string { return w.tokenOf(w.key, keyring.RefreshToken) }},
		{"refresh token, key not held", keyring.WrongType, func(w *world) string { return w.tokenOf(keyringtest.Secret(w), keyring.RefreshToken) }},
		{"session token", keyring.WrongType, func(w *world) string { return w.tokenOf(w.key, keyring.SessionToken) }},
		{"revoked", keyring.Revoked, func(w *world) string {
			w.apply(&bus.Revocation{ID: "gone", ExpiresAt: time.Now().Add(time.Hour).Unix()})
			return w.token(func(c *keyring.Claims) { c.ID = "gone" })
		}},
		{"key revoked", keyring.KeyRevoked, func(w *world) string {
			token := w.tokenOf(keyringtest.Ed(w), keyring.AccessToken)
			w.apply(w.fact(keyringtest.Ed(w), keyring.Active), w.fact(keyringtest.Ed(w), keyring.Revoked))
			return token
		}},
	}
}

func TestVerifyRefuses(t *testing.T) {
	w := newWorld(t)
	var seen []keyring.Reason
	for _, network := range networks {
		h := w.listen(network)
		for _, r := range refusals() {
			t.Run(network+" "+r.name, func(t *testing.T) {
				token := r.token(w)
				checkDenied(t, w, h.verify(token), r.reason)
				if !strings.Contains(token, "\n") {
					checkDenied(t, w, h.do("GET", "/v1/verify", "", "Authorization: Bearer "+token), r.reason)
				}
				if v := w.agent.Verify(token, agent.Query{}); v.Status != 401 || v.Reason != r.reason || v.Active() || v.Token() != nil {
					t.Errorf("Verify: got %d %q active=%t, want 401 %q", v.Status, v.Reason, v.Active(), r.reason)
				}
			})
			seen = append(seen, r.reason)
		}
	}
	for _, r := range keyring.Reasons {
		if !slices.Contains(seen, r) {
			t.Errorf("reason %q is refused by no case of this test", r)
		}
	}
}

func checkDenied(t *testing.T, w *world, got reply, reason keyring.Reason) {
	t.Helper()
	if got.StatusCode != http.StatusUnauthorized {
		t.Fatalf("status: got %d %s, want 401", got.StatusCode, got.body)
	}
	m := got.json(t)
	if m["active"] != false || m["reason"] != string(reason) || m["error_description"] == "" {
		t.Errorf("body: got %s, want active false and reason %q", got.body, reason)
	}
	challenge := got.Header.Get("WWW-Authenticate")
	if reason == keyring.Missing {
		if _, has := m["error"]; has || challenge != `Bearer realm="sidekey"` {
			t.Errorf("missing: got body %s and challenge %q, want no error and a bare challenge", got.body, challenge)
		}
		return
	}
	want := fmt.Sprintf(`Bearer realm="sidekey", error="invalid_token", error_description=%q`, m["error_description"])
	if challenge != want || m["error"] != "invalid_token" {
		t.Errorf("got challenge %s and body %s, want %s", challenge, got.body, want)
	}
	if got.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("Cache-Control: got %q, want no-store", got.Header.Get("Cache-Control"))
	}
}

func TestVerifyQuery(t *testing.T) {
	w := newWorld(t)
	h := w.listen("unix")
	many := w.token(func(c *keyring.Claims) { c.Audience = []string{"a", "b"} })
	one := w.token()
	for _, c := range []struct{ name, token, query, want string }{
		{"audience asked for", many, `"audience":"b"`, "200"},
		{"audience not the token's", many, `"audience":"c"`, "401 wrong_audience"},
		{"audience of the ring", many, `"audience":""`, "401 wrong_audience"},
		{"audience, another than the ring's", one, `"audience":"b"`, "401 wrong_audience"},
		{"scope had", one, `"scope":"write read"`, "200"},
		{"scope lacking", one, `"scope":"read admin"`, "403 insufficient_scope"},
		{"scope is no prefix", one, `"scope":"rea"`, "403 insufficient_scope"},
		{"sequence applied", one, `"at_least_seq":1`, "200"},
		{"sequence ahead", one, `"at_least_seq":2`, "503 stale"},
		{"sequence far ahead", "", `"at_least_seq":18446744073709551615`, "503 stale"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for range 2 {
				got := h.do("POST", "/v1/verify", `{"token":"`+c.token+`",`+c.query+`}`, "Content-Type: application/json")
				reason, _ := got.json(t)["reason"].(string)
				if s := strings.TrimSpace(fmt.Sprint(got.StatusCode, " ", reason)); s != c.want {
					t.Fatalf("got %s (%s), want %s", s, got.body, c.want)
				}
				checkQueryHeaders(t, got)
			}
		})
	}
}

func checkQueryHeaders(t *testing.T, got reply) {
	t.Helper()
	switch got.StatusCode {
	case http.StatusForbidden:
		m := got.json(t)
		if m["active"] != true || m["error"] != "insufficient_scope" {
			t.Errorf("body: got %s, want active true and insufficient_scope", got.body)
		}
		c := got.Header.Get("WWW-Authenticate")
		if !strings.HasPrefix(c, `Bearer realm="sidekey", error="insufficient_scope", error_description="`) || !strings.Contains(c, `, scope="rea`) {
			t.Errorf("challenge: got %s, want insufficient_scope and the scope asked for", c)
		}
	case http.StatusServiceUnavailable:
		if got.Header.Get("Retry-After") != "1" || got.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("503: got headers %v, want Retry-After and a problem", got.Header)
		}
		if _, has := got.json(t)["active"]; has {
			t.Errorf("503: got %s, want nothing said about the token", got.body)
		}
	}
}

func TestAudiencesOfConfig(t *testing.T) {
	w := newWorld(t, func(c *agent.Config) { c.Audiences = []string{"a", "b"}; c.Realm = "orders" })
	for aud, want := range map[string]int{"a": 200, "b": 200, keyringtest.Audience: 401} {
		token := w.token(func(c *keyring.Claims) { c.Audience = []string{aud} })
		for range 2 {
			if v := w.agent.Verify(token, agent.Query{}); v.Status != want {
				t.Errorf("Verify(aud %s): got %d %s, want %d", aud, v.Status, v.Reason, want)
			}
		}
	}
	if got := w.listen("mem").verify("").Header.Get("WWW-Authenticate"); got != `Bearer realm="orders"` {
		t.Errorf("challenge: got %q, want the configured realm", got)
	}
}

// TestAlgorithms verifies a token of each algorithm, as the log brings its key.
func TestAlgorithms(t *testing.T) {
	w := newWorld(t)
	h := w.listen("unix")
	for _, k := range keyringtest.All(t) {
		if k.ID() != w.key.ID() {
			w.apply(w.fact(k, keyring.Active))
		}
		got := h.verify(w.tokenOf(k, keyring.AccessToken))
		if m := got.json(t); got.StatusCode != 200 || m["alg"] != string(k.Alg()) || m["kid"] != k.ID() || m["seq"] != float64(w.seq) {
			t.Errorf("verify(%s): got %d %s, want 200 with its alg, its kid and seq %d", k.Alg(), got.StatusCode, got.body, w.seq)
		}
	}
}

func TestStarting(t *testing.T) {
	w := newStartingWorld(t)
	w.apply(w.fact(w.key, keyring.Active)) // entries alone are no full sync
	h := w.listen("unix")
	token := w.token()
	form := "Content-Type: application/x-www-form-urlencoded"
	for name, got := range map[string]reply{
		"verify":     h.verify(token),
		"header":     h.do("GET", "/v1/verify", "", "Authorization: Bearer "+token),
		"introspect": h.do("POST", "/oauth2/introspect", "token="+token, form),
		"simplejwt":  h.do("POST", "/api/token/verify/", "token="+token, form),
		"readyz":     h.do("GET", "/readyz", ""),
	} {
		if got.StatusCode != 503 || got.Header.Get("Retry-After") == "" || !strings.Contains(got.body, "starting") {
			t.Errorf("%s: got %d %v %s, want 503 starting with Retry-After", name, got.StatusCode, got.Header, got.body)
		}
	}
	batch := h.do("POST", "/v1/verify/batch", `{"tokens":["`+token+`"]}`, "Content-Type: application/json")
	if batch.StatusCode != 200 || batch.Header.Get("Retry-After") == "" || !strings.Contains(batch.body, `"status":503,"reason":"starting"`) {
		t.Errorf("batch: got %d %v %s, want a result of 503 starting and Retry-After", batch.StatusCode, batch.Header, batch.body)
	}
	for _, path := range []string{"/healthz", "/v1/status", "/.well-known/jwks.json", "/metrics"} {
		if got := h.do("GET", path, ""); got.StatusCode != 200 {
			t.Errorf("%s: got %d, want 200 whatever the state", path, got.StatusCode)
		}
	}
	if !w.agent.Status().Stale {
		t.Error("Status().Stale: got false, want true before the first full sync")
	}
}

func TestBatch(t *testing.T) {
	w := newWorld(t)
	h := w.listen("tcp")
	good, bad := w.token(), w.token(func(c *keyring.Claims) { c.Issuer = "https://else.test" })
	tokens := []string{good, "", bad, good, "x"}
	body, _ := json.Marshal(map[string]any{"tokens": tokens, "scope": "read"})
	got := h.do("POST", "/v1/verify/batch", string(body), "Content-Type: application/json")
	var answer struct {
		Results []struct {
			Status int
			Active bool
			Reason keyring.Reason
			Claims map[string]any
			Seq    uint64
		}
	}
	if err := json.Unmarshal([]byte(got.body), &answer); err != nil || got.StatusCode != 200 {
		t.Fatalf("batch: got %d %s (%v), want 200", got.StatusCode, got.body, err)
	}
	want := []string{"200 ", "401 missing", "401 wrong_issuer", "200 ", "401 malformed"}
	var have []string
	for _, r := range answer.Results {
		have = append(have, fmt.Sprint(r.Status, " ", r.Reason))
		if r.Active != (r.Status == 200) || (r.Claims == nil) == r.Active || r.Seq != 1 {
			t.Errorf("result: got %+v, want active and claims at 200 only", r)
		}
	}
	if !slices.Equal(have, want) {
		t.Errorf("results: got %q, want %q in the order of the tokens", have, want)
	}
	if got := h.do("POST", "/v1/verify/batch", `{"tokens":[]}`, "Content-Type: application/json"); got.body != `{"results":[]}` {
		t.Errorf("no tokens: got %s, want no results", got.body)
	}
}

func TestBatchBounds(t *testing.T) {
	w := newWorld(t)
	h := w.listen("unix")
	list := func(n, size int) string {
		return `{"tokens":[` + strings.TrimSuffix(strings.Repeat(`"`+strings.Repeat("a", size)+`",`, n), ",") + `]}`
	}
	for _, c := range []struct {
		name, body string
		want       int
	}{
		{"1000", list(1000, 1), 200},
		{"1001", list(1001, 1), 400},
		{"1000 of 2000 bytes", list(1000, 2000), 200},
		{"no tokens", `{}`, 400},
		{"null", `{"tokens":null}`, 400},
		{"a string", `{"tokens":"a"}`, 400},
		{"a number inside", `{"tokens":["a",1]}`, 400},
		{"a token", `{"token":"a"}`, 400},
	} {
		if got := h.do("POST", "/v1/verify/batch", c.body, "Content-Type: application/json"); got.StatusCode != c.want {
			t.Errorf("%s: got %d %.200s, want %d", c.name, got.StatusCode, got.body, c.want)
		}
	}
	// It is refused by its length alone: the body is neither waited for nor read.
	if got := h.raw("POST /v1/verify/batch HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 2097153\r\n\r\n{"); !strings.HasPrefix(got, "HTTP/1.1 413 ") {
		t.Errorf("over 2 MiB: got %.200s, want 413 before the body has come", got)
	}
}
