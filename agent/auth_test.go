package agent_test

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// forwarded is what Caddy and Traefik tell of a request.
func forwarded(method string, more ...string) []string {
	return append([]string{
		"X-Forwarded-Method: " + method, "X-Forwarded-Uri: /orders?id=1", "X-Forwarded-Host: app.example",
		"X-Forwarded-Proto: https", "X-Forwarded-For: 203.0.113.9, 10.1.2.3",
	}, more...)
}

// credential puts an API key or token into the log.
func (w *world) credential(typ bus.CredentialType, text string, change ...func(*bus.Credential)) {
	w.Helper()
	hash := bus.HashCredential([]byte(text))
	c := &bus.Credential{ID: "k_" + text[:4], Type: typ, Hash: hash[:], Subject: "svc", ClientID: "billing", Scope: "read", Roles: []string{"a", "b c"}, IssuedAt: time.Now().Unix()}
	for _, f := range change {
		f(c)
	}
	w.apply(c)
}

const csrfToken = "the csrf token"

func csrfHash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// session makes a browser's cookie field.
func (w *world) session(change ...func(*keyring.Claims)) string {
	w.Helper()
	return "Cookie: a=b; __Host-sidekey_session=" + w.tokenOf(w.key, keyring.SessionToken, append([]func(*keyring.Claims){
		func(c *keyring.Claims) { c.CSRF = csrfHash(csrfToken) }}, change...)...) + "; c=d"
}

// checkAuth holds an answer of a forward-auth face against what is wanted: a status, and at 200 the method, else the reason.
func checkAuth(t *testing.T, name string, got reply, status int, word string) {
	t.Helper()
	word2 := got.Header.Get("Sidekey-Reason")
	if status == 200 {
		word2 = got.Header.Get("X-Auth-Method")
	}
	if got.StatusCode != status || word2 != word {
		t.Errorf("%s: got %d %q %s, want %d %q", name, got.StatusCode, word2, got.body, status, word)
	}
	for field := range got.Header {
		if status != 200 && strings.HasPrefix(field, "X-Auth-") {
			t.Errorf("%s: a denial carries %s", name, field)
		}
	}
	if got.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%s: Cache-Control: got %q", name, got.Header.Get("Cache-Control"))
	}
}

// TestSchemes tries each scheme's right and wrong credentials, and each one's in the place of another.
func TestSchemes(t *testing.T) {
	w := newWorld(t)
	w.credential(bus.APIKey, "key0-good")
	w.credential(bus.Opaque, "tok0-good", func(c *bus.Credential) { c.Roles = nil })
	w.credential(bus.APIKey, "late-key", func(c *bus.Credential) { c.ExpiresAt = time.Now().Unix() })
	w.credential(bus.APIKey, "net4-key", func(c *bus.Credential) { c.Networks = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")} })
	w.credential(bus.APIKey, "net6-key", func(c *bus.Credential) { c.Networks = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")} })
	w.credential(bus.APIKey, "revoked-key", func(c *bus.Credential) { c.ID = "gone" })
	w.credential(bus.APIKey, "control-key", func(c *bus.Credential) { c.Scope = "read\r\nX-Auth-Roles: admin" })
	w.credential(bus.APIKey, "comma-key", func(c *bus.Credential) { c.Roles = []string{"a,admin"} })
	w.credential(bus.APIKey, "space-key", func(c *bus.Credential) { c.Subject = "alice " })
	w.apply(&bus.Revocation{ID: "gone", ExpiresAt: time.Now().Add(time.Hour).Unix()})
	access, session := w.token(), w.session()
	cookieToken := strings.TrimSuffix(strings.TrimPrefix(session, "Cookie: a=b; __Host-sidekey_session="), "; c=d")
	h := w.listen("unix")
	for _, c := range []struct {
		name   string
		header []string
		status int
		word   string
	}{
		{"nothing", nil, 401, "missing"},
		{"bearer", []string{"Authorization: Bearer " + access}, 200, "bearer"},
		{"bearer in any case", []string{"Authorization: bEARER   " + access}, 200, "bearer"},
		{"empty bearer", []string{"Authorization: Bearer"}, 401, "missing"},
		{"bearer and a word", []string{"Authorization: Bearer " + access + " x"}, 401, "malformed"},
		{"bearer with a tab", []string{"Authorization: Bearer\t" + access}, 401, "missing"},
		{"another scheme that begins alike", []string{"Authorization: Bearerx " + access}, 401, "missing"},
		{"an unknown scheme", []string{"Authorization: Digest x"}, 401, "missing"},
		{"basic, not configured", []string{"Authorization: Basic YTpi"}, 401, "missing"},
		{"expired bearer", []string{"Authorization: Bearer " + w.token(func(c *keyring.Claims) { c.ExpiresAt = 1 })}, 401, "expired"},
		{"session", []string{session}, 200, "session"},
		{"session as bearer", []string{"Authorization: Bearer " + cookieToken}, 401, "wrong_type"},
		{"access token as session", []string{"Cookie: __Host-sidekey_session=" + access}, 401, "wrong_type"},
		{"refresh token as session", []string{"Cookie: __Host-sidekey_session=" + w.tokenOf(keyringtest.Secret(w), keyring.RefreshToken)}, 401, "wrong_type"},
		{"session in another cookie", []string{"Cookie: sidekey_session=" + cookieToken}, 401, "missing"},
		{"session, name in another case", []string{"Cookie: __host-sidekey_session=" + cookieToken}, 401, "missing"},
		{"session, quoted", []string{`Cookie: __Host-sidekey_session="` + cookieToken + `"`}, 401, "malformed"},
		{"two sessions", []string{session + "; __Host-sidekey_session=x"}, 403, "ambiguous_request"},
		{"two cookie fields", []string{session, "Cookie: x=y"}, 403, "ambiguous_request"},
		{"empty session", []string{"Cookie: __Host-sidekey_session="}, 401, "missing"},
		{"huge session", []string{"Cookie: __Host-sidekey_session=" + strings.Repeat("a", 20_000)}, 401, "malformed"},
		{"expired session", []string{w.session(func(c *keyring.Claims) { c.ExpiresAt = 1 })}, 401, "expired"},
		{"expired session and an API key", []string{w.session(func(c *keyring.Claims) { c.ExpiresAt = 1 }), "X-API-Key: key0-good"}, 200, "api_key"},
		{"revoked session", []string{w.session(func(c *keyring.Claims) { c.ID = "gone" })}, 401, "revoked"},
		{"API key", []string{"X-API-Key: key0-good"}, 200, "api_key"},
		{"empty API key", []string{"X-API-Key: "}, 401, "missing"},
		{"two API keys", []string{"X-API-Key: key0-good", "X-API-Key: key0-good"}, 403, "ambiguous_request"},
		{"two API keys in one", []string{"X-API-Key: key0-good, key0-good"}, 401, "unknown_credential"},
		{"unknown API key", []string{"X-API-Key: key0-goo"}, 401, "unknown_credential"},
		{"the id of an API key", []string{"X-API-Key: k_key0"}, 401, "unknown_credential"},
		{"huge API key", []string{"X-API-Key: " + strings.Repeat("a", 20_000)}, 401, "unknown_credential"},
		{"token as API key", []string{"X-API-Key: tok0-good"}, 401, "wrong_type"},
		{"API key as token", []string{"Authorization: Token key0-good"}, 401, "wrong_type"},
		{"access token as API key", []string{"X-API-Key: " + access}, 401, "unknown_credential"},
		{"token", []string{"Authorization: Token tok0-good"}, 200, "token"},
		{"token in any case", []string{"Authorization: tOKEN tok0-good"}, 200, "token"},
		{"empty token", []string{"Authorization: Token "}, 401, "missing"},
		{"token of two words", []string{"Authorization: Token tok0-good x"}, 401, "unknown_credential"},
		{"token as bearer", []string{"Authorization: Bearer tok0-good"}, 401, "malformed"},
		{"expired key", []string{"X-API-Key: late-key"}, 401, "expired"},
		{"revoked key", []string{"X-API-Key: revoked-key"}, 401, "revoked"},
		{"key from its network", []string{"X-API-Key: net4-key"}, 200, "api_key"},
		{"key from a network that the client made up", []string{"X-API-Key: net6-key"}, 401, "wrong_network"},
		{"key with a line break in its scope", []string{"X-API-Key: control-key"}, 403, "unsafe_claim"},
		{"key with a comma in a role", []string{"X-API-Key: comma-key"}, 403, "unsafe_claim"},
		{"key whose subject ends in a space", []string{"X-API-Key: space-key"}, 403, "unsafe_claim"},
		{"bearer with a control character", []string{"Authorization: Bearer " + w.token(func(c *keyring.Claims) { c.Subject = "a\u0085b" })}, 403, "unsafe_claim"},
		{"two Authorization", []string{"Authorization: Bearer " + access, "Authorization: Bearer " + access}, 403, "ambiguous_request"},
		{"two Authorization of two kinds", []string{"Authorization: Bearer " + access, "Authorization: Token tok0-good"}, 403, "ambiguous_request"},
		{"the first of two kinds is right", []string{"Authorization: Bearer " + access, "X-API-Key: nonsense"}, 200, "bearer"},
		{"the first of two kinds is wrong", []string{"Authorization: Bearer nonsense", "X-API-Key: key0-good"}, 401, "malformed"},
	} {
		checkAuth(t, c.name, h.do("GET", "/v1/auth/forward", "", forwarded("GET", c.header...)...), c.status, c.word)
	}
	want := map[string]bool{"k_key0": true, "k_net4": true, "k_tok0": true}
	if got := w.agent.Used(); len(got) != len(want) || got["k_key0"] == 0 || got["k_tok0"] == 0 || len(w.agent.Used()) != 0 {
		t.Errorf("Used: got %v, want the keys that were accepted, once", got)
	}
}

// TestPrincipalHeaders holds that each field is in each 200, once, whatever the client sent.
func TestPrincipalHeaders(t *testing.T) {
	w := newWorld(t, func(c *agent.Config) {
		c.Headers = map[string]string{"email": "X-Auth-Email", "groups": "x-groups", "n": "X-N", "jti": "X-Id"}
	})
	w.credential(bus.APIKey, "key0-good")
	token := w.token(func(c *keyring.Claims) {
		c.Subject, c.Roles, c.ID = "ålice", []string{"staff", "team lead"}, "id-1"
		c.Extra = map[string]any{"email": "a@b.example", "groups": []string{"x", "y"}, "n": 1.5}
	})
	h := w.listen("unix")
	forged := []string{"X-Auth-Subject: root", "X-Auth-Roles: admin"}
	for _, c := range []struct {
		name, header string
		want         map[string]string
	}{
		{"bearer", "Authorization: Bearer " + token, map[string]string{
			"X-Auth-Subject": "ålice", "X-Auth-Scope": "read write", "X-Auth-Roles": "staff,team lead", "X-Auth-Client": "sidekey", "X-Auth-Method": "bearer",
			"X-Auth-Email": "a@b.example", "X-Groups": "x,y", "X-N": "1.5", "X-Id": "id-1"}},
		{"key", "X-API-Key: key0-good", map[string]string{
			"X-Auth-Subject": "svc", "X-Auth-Scope": "read", "X-Auth-Roles": "a,b c", "X-Auth-Client": "billing", "X-Auth-Session": "", "X-Auth-Method": "api_key",
			"X-Auth-Email": "", "X-Groups": "", "X-N": "", "X-Id": "k_key0"}},
	} {
		for range 2 {
			got := h.do("GET", "/v1/auth/forward", "", forwarded("GET", append(forged, c.header)...)...)
			if got.StatusCode != 200 || got.body != "" {
				t.Errorf("%s: got %d %q, want 200 and no body", c.name, got.StatusCode, got.body)
			}
			for name, want := range c.want {
				if v, ok := got.Header[name]; !ok || len(v) != 1 || v[0] != want {
					t.Errorf("%s: %s: got %q, want %q", c.name, name, v, want)
				}
			}
		}
	}
	bad := w.token(func(c *keyring.Claims) { c.Extra = map[string]any{"email": "a\nb"} })
	checkAuth(t, "a mapped claim with a line break", h.do("GET", "/v1/auth/forward", "", forwarded("GET", "Authorization: Bearer "+bad)...), 403, "unsafe_claim")
}

// TestCSRF tries what a page of another origin can send, and what the session's own does.
func TestCSRF(t *testing.T) {
	w := newWorld(t)
	session, bare := w.session(), w.session(func(c *keyring.Claims) { c.CSRF = "" })
	h := w.listen("unix")
	good := "X-CSRF-Token: " + csrfToken
	for _, c := range []struct {
		name, method string
		header       []string
		status       int
		word         string
	}{
		{"safe", "GET", nil, 200, "session"},
		{"safe, from elsewhere", "HEAD", []string{"Origin: https://evil.example", "Sec-Fetch-Site: cross-site"}, 200, "session"},
		{"a method in small letters is none of the safe ones", "get", nil, 403, "csrf_missing"},
		{"no token", "POST", nil, 403, "csrf_missing"},
		{"no token, an unknown method", "BREW", nil, 403, "csrf_missing"},
		{"token", "POST", []string{good}, 200, "session"},
		{"token by Django's name", "DELETE", []string{"X-CSRFToken: " + csrfToken}, 200, "session"},
		{"token by both names", "POST", []string{good, "X-CSRFToken: " + csrfToken}, 200, "session"},
		{"two tokens", "POST", []string{good, "X-CSRFToken: other"}, 403, "csrf_mismatch"},
		{"token twice", "POST", []string{good, good}, 403, "ambiguous_request"},
		{"another session's token", "POST", []string{"X-CSRF-Token: another"}, 403, "csrf_mismatch"},
		{"the hash for the token", "POST", []string{"X-CSRF-Token: " + csrfHash(csrfToken)}, 403, "csrf_mismatch"},
		{"own origin", "POST", []string{good, "Origin: https://app.example", "Sec-Fetch-Site: same-origin"}, 200, "session"},
		{"own origin with its port", "POST", []string{good, "Origin: https://APP.example:443"}, 200, "session"},
		{"typed by a person", "POST", []string{good, "Sec-Fetch-Site: none"}, 200, "session"},
		{"another origin", "POST", []string{good, "Origin: https://evil.example"}, 403, "csrf_origin"},
		{"another port", "POST", []string{good, "Origin: https://app.example:8443"}, 403, "csrf_origin"},
		{"in clear", "POST", []string{good, "Origin: http://app.example"}, 403, "csrf_origin"},
		{"an origin that begins alike", "POST", []string{good, "Origin: https://app.example.evil"}, 403, "csrf_origin"},
		{"null", "POST", []string{good, "Origin: null"}, 403, "csrf_origin"},
		{"an empty origin", "POST", []string{good, "Origin: "}, 403, "csrf_origin"},
		{"a sibling", "POST", []string{good, "Sec-Fetch-Site: same-site"}, 403, "csrf_origin"},
		{"cross-site with a right origin", "POST", []string{good, "Origin: https://app.example", "Sec-Fetch-Site: cross-site"}, 403, "csrf_origin"},
		{"two origins", "POST", []string{good, "Origin: https://app.example", "Origin: https://app.example"}, 403, "ambiguous_request"},
		{"a WebSocket from elsewhere", "GET", []string{"Origin: https://evil.example", "Sec-Fetch-Mode: websocket"}, 403, "csrf_origin"},
		{"a WebSocket of its own", "GET", []string{"Origin: https://app.example", "Sec-Fetch-Mode: websocket"}, 200, "session"},
	} {
		got := h.do("GET", "/v1/auth/forward", "", forwarded(c.method, append(c.header, session)...)...)
		checkAuth(t, c.name, got, c.status, c.word)
		if got.Header.Get("WWW-Authenticate") != "" {
			t.Errorf("%s: a CSRF failure has the challenge %q", c.name, got.Header.Get("WWW-Authenticate"))
		}
	}
	for proto, status := range map[string]int{"wss": 200, "ws": 403} { // the scheme of a handshake, as Traefik may say it
		got := h.do("GET", "/v1/auth/forward", "", "X-Forwarded-Method: GET", "X-Forwarded-Uri: /", "X-Forwarded-Host: app.example", "X-Forwarded-Proto: "+proto,
			"Upgrade: websocket", "Origin: https://app.example", session)
		checkAuth(t, "a WebSocket of its own by "+proto, got, status, map[int]string{200: "session", 403: "csrf_origin"}[status])
	}
	checkAuth(t, "a session without the claim", h.do("GET", "/v1/auth/forward", "", forwarded("POST", "X-CSRF-Token: ", bare)...), 403, "csrf_missing")
	checkAuth(t, "a session without the claim, a token", h.do("GET", "/v1/auth/forward", "", forwarded("POST", good, bare)...), 403, "csrf_mismatch")
	checkAuth(t, "no scheme known, an origin", h.do("GET", "/v1/auth/nginx", "", "X-Original-Method: POST", "X-Original-URI: /", "X-Original-Host: app.example",
		good, "Origin: https://app.example", session), 403, "csrf_origin")
	checkAuth(t, "a bearer needs none", h.do("GET", "/v1/auth/forward", "", forwarded("POST", "Origin: https://evil.example", "Authorization: Bearer "+w.token())...), 200, "bearer")
}

// TestProfiles holds that each face believes its own profile's fields and no other's.
func TestProfiles(t *testing.T) {
	w := newWorld(t)
	w.credential(bus.APIKey, "key0-good", func(c *bus.Credential) { c.Networks = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")} })
	key := "X-API-Key: key0-good"
	original := func(more ...string) []string {
		return append([]string{"X-Original-Method: GET", "X-Original-URI: /a?b", "X-Original-Remote-Addr: 10.1.2.3", key}, more...)
	}
	h := w.listen("unix")
	for _, c := range []struct {
		name, path string
		header     []string
		status     int
		word       string
	}{
		{"nginx", "nginx", original(), 200, "api_key"},
		{"nginx, the check URL's query", "nginx?uri=/admin&X-API-Key=x", original(), 200, "api_key"},
		{"nginx, by URL", "nginx", []string{"X-Original-Method: GET", "X-Original-URL: https://app.example/a?b", "Authorization: Bearer " + w.token()}, 200, "bearer"},
		{"nginx, by URL, an address that the client made up", "nginx", []string{"X-Original-Method: GET", "X-Original-URL: https://app.example/a?b", "X-Original-Remote-Addr: 10.1.2.3:5000", key}, 401, "wrong_network"},
		{"nginx, address and port", "nginx", []string{"X-Original-Method: GET", "X-Original-URI: /a?b", "X-Original-Remote-Addr: 10.1.2.3:5000", key}, 200, "api_key"},
		{"nginx, URI and URL", "nginx", original("X-Original-URL: https://app.example/a?b"), 403, "ambiguous_request"},
		{"nginx, a host beside the URL", "nginx", []string{"X-Original-Method: GET", "X-Original-URL: https://app.example/", "X-Original-Host: other.example", key}, 403, "ambiguous_request"},
		{"nginx, a scheme beside the URL", "nginx", []string{"X-Original-Method: GET", "X-Original-URL: http://app.example/", "X-Original-Proto: https", key}, 403, "ambiguous_request"},
		{"nginx, no path in the URL", "nginx", []string{"X-Original-Method: GET", "X-Original-URL: https://app.example", key}, 403, "ambiguous_request"},
		{"nginx, an absolute URI", "nginx", []string{"X-Original-Method: GET", "X-Original-URI: https://app.example/", key}, 403, "ambiguous_request"},
		{"nginx, method twice", "nginx", original("X-Original-Method: POST"), 403, "ambiguous_request"},
		{"nginx, address twice", "nginx", original("X-Original-Remote-Addr: 10.1.2.3"), 403, "ambiguous_request"},
		{"nginx, no method", "nginx", []string{"X-Original-URI: /", key}, 403, "ambiguous_request"},
		{"nginx, no URI", "nginx", []string{"X-Original-Method: GET", key}, 403, "ambiguous_request"},
		{"nginx, a method that is none", "nginx", []string{"X-Original-Method: G ET", "X-Original-URI: /", key}, 403, "ambiguous_request"},
		{"nginx, Traefik's fields", "nginx", forwarded("GET", key), 403, "ambiguous_request"},
		{"nginx, the address in another profile's field", "nginx", []string{"X-Original-Method: GET", "X-Original-URI: /", "X-Forwarded-For: 10.1.2.3", "X-Envoy-External-Address: 10.1.2.3", "X-Real-IP: 10.1.2.3", "Forwarded: for=10.1.2.3", key}, 401, "wrong_network"},
		{"haproxy", "haproxy", original(), 200, "api_key"},
		{"haproxy, Traefik's fields", "haproxy", forwarded("GET", key), 403, "ambiguous_request"},
		{"forward", "forward", forwarded("GET", key), 200, "api_key"},
		{"forward, nginx's fields", "forward", original(), 403, "ambiguous_request"},
		{"forward, nginx's fields beside its own", "forward", forwarded("GET", key, "X-Original-URI: /x", "X-Original-Remote-Addr: 203.0.113.9"), 200, "api_key"},
		{"forward, For twice", "forward", forwarded("GET", key, "X-Forwarded-For: 10.1.2.3"), 403, "ambiguous_request"},
		{"forward, a scheme that is none", "forward", []string{"X-Forwarded-Method: GET", "X-Forwarded-Uri: /", "X-Forwarded-Proto: https,http", key}, 403, "ambiguous_request"},
		{"forward, a WebSocket's scheme over TLS, as Traefik says it", "forward", []string{"X-Forwarded-Method: GET", "X-Forwarded-Uri: /", "X-Forwarded-Proto: wss", "X-Forwarded-For: 10.1.2.3", key}, 200, "api_key"},
		{"forward, a WebSocket's scheme in clear", "forward", []string{"X-Forwarded-Method: GET", "X-Forwarded-Uri: /", "X-Forwarded-Proto: ws", "X-Forwarded-For: 10.1.2.3", key}, 200, "api_key"},
		{"forward, two schemes of WebSockets", "forward", []string{"X-Forwarded-Method: GET", "X-Forwarded-Uri: /", "X-Forwarded-Proto: ws,wss", "X-Forwarded-For: 10.1.2.3", key}, 403, "ambiguous_request"},
		{"forward, a WebSocket's scheme in capitals", "forward", []string{"X-Forwarded-Method: GET", "X-Forwarded-Uri: /", "X-Forwarded-Proto: WSS", "X-Forwarded-For: 10.1.2.3", key}, 403, "ambiguous_request"},
		{"nginx, a WebSocket's scheme", "nginx", []string{"X-Original-Method: GET", "X-Original-URI: /", "X-Original-Proto: wss", "X-Original-Remote-Addr: 10.1.2.3", key}, 403, "ambiguous_request"},
		{"forward, no address", "forward", []string{"X-Forwarded-Method: GET", "X-Forwarded-Uri: /", key}, 401, "wrong_network"},
		{"envoy", "envoy/a/b?c", []string{"X-Envoy-External-Address: 10.1.2.3", key}, 200, "api_key"},
		{"envoy, root", "envoy/", []string{"X-Envoy-External-Address: 10.1.2.3", key}, 200, "api_key"},
		{"envoy, no path", "envoy", []string{"X-Envoy-External-Address: 10.1.2.3", key}, 403, "ambiguous_request"},
		{"envoy, another profile's fields", "envoy/a", forwarded("POST", "X-Original-Remote-Addr: 10.1.2.3", key), 401, "wrong_network"},
		{"envoy, address twice", "envoy/a", []string{"X-Envoy-External-Address: 10.1.2.3", "X-Envoy-External-Address: 10.1.2.3", key}, 403, "ambiguous_request"},
	} {
		checkAuth(t, c.name, h.do("GET", "/v1/auth/"+c.path, "", c.header...), c.status, c.word)
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PROPFIND"} {
		checkAuth(t, "check by "+method, h.do(method, "/v1/auth/forward", "", forwarded("GET", key)...), 200, "api_key")
	}
	for _, path := range []string{"/v1/auth/", "/v1/auth", "/v1/auth/other", "/v1/auth/nginx/", "/v1/auth/envoyx", "//v1/auth/nginx"} {
		if got := h.do("GET", path, "", original()...); got.StatusCode != 404 {
			t.Errorf("%s: got %d, want 404", path, got.StatusCode)
		}
	}
}

// TestDenialsByProfile holds statuses and bodies against what each proxy takes.
func TestDenialsByProfile(t *testing.T) {
	w := newWorld(t)
	h := w.listen("unix")
	starting := newStartingWorld(t).listen("unix")
	original := []string{"X-Original-Method: GET", "X-Original-URI: /"}
	for _, c := range []struct {
		path       string
		header     []string
		empty      bool
		challenges []string
		starting   int
	}{
		{"nginx", original, true, []string{`Bearer realm="sidekey", Token`}, 500},
		{"haproxy", original, true, []string{`Bearer realm="sidekey", Token`}, 503},
		{"forward", forwarded("GET"), false, []string{`Bearer realm="sidekey"`, "Token"}, 503},
		{"envoy/x", nil, false, []string{`Bearer realm="sidekey"`, "Token"}, 503},
	} {
		got := h.do("GET", "/v1/auth/"+c.path, "", c.header...)
		checkAuth(t, c.path, got, 401, "missing")
		if ch := got.Header.Values("WWW-Authenticate"); !slices.Equal(ch, c.challenges) {
			t.Errorf("%s: challenges: got %q, want %q", c.path, ch, c.challenges)
		}
		want := `{"type":"about:blank","title":"Unauthorized","status":401,"reason":"missing","detail":"No credential was given."}`
		if c.empty {
			want = ""
		}
		if got.body != want {
			t.Errorf("%s: body: got %s, want %s", c.path, got.body, want)
		}
		got = starting.do("GET", "/v1/auth/"+c.path, "", append([]string{"Authorization: Bearer " + w.token()}, c.header...)...)
		checkAuth(t, c.path+" while starting", got, c.starting, "starting")
		if got.Header.Get("Retry-After") == "" {
			t.Errorf("%s while starting: no Retry-After", c.path)
		}
	}
	w.lease.Store(nil)
	checkAuth(t, "without a lease", h.do("GET", "/v1/auth/forward", "", forwarded("GET", "Authorization: Bearer "+w.token())...), 503, "stale")
}

// TestChallenges holds status and challenges for lists of schemes, as Django REST Framework has them and as RFC 9110 lets us.
func TestChallenges(t *testing.T) {
	bad := "Authorization: Bearer nonsense"
	wrong := `Bearer realm="sidekey", error="invalid_token", error_description="The token is malformed."`
	for _, c := range []struct {
		list, challenges string
		header           []string
		status           int
		want             []string
	}{
		{"bearer session token api_key", "all", nil, 401, []string{`Bearer realm="sidekey"`, "Token"}},
		{"bearer session token api_key", "all", []string{bad}, 401, []string{wrong, "Token"}},
		{"token bearer", "all", []string{bad}, 401, []string{"Token", wrong}},
		{"session api_key", "all", nil, 403, nil},
		{"api_key", "all", []string{"X-API-Key: x"}, 403, nil},
		{"session bearer", "first", nil, 403, nil},
		{"session bearer", "first", []string{bad}, 403, nil},
		{"bearer session", "first", nil, 401, []string{`Bearer realm="sidekey"`}},
		{"bearer session", "first", []string{bad}, 401, []string{wrong}},
		{"token bearer", "first", []string{bad}, 401, []string{"Token"}},
	} {
		w := newWorld(t, func(cfg *agent.Config) { cfg.Authenticators, cfg.Challenges = strings.Fields(c.list), c.challenges })
		got := w.listen("unix").do("GET", "/v1/auth/forward", "", forwarded("GET", c.header...)...)
		if ch := got.Header.Values("WWW-Authenticate"); got.StatusCode != c.status || !slices.Equal(ch, c.want) {
			t.Errorf("%s, %s, %q: got %d %q, want %d %q", c.list, c.challenges, c.header, got.StatusCode, ch, c.status, c.want)
		}
	}
}

// TestAuthBodies sends what fasthttp would wait for: the answer comes without it, and what follows is no request.
func TestAuthBodies(t *testing.T) {
	w := newWorld(t)
	h := w.listen("unix")
	fields := strings.Join(forwarded("POST", "Authorization: Bearer "+w.token()), "\r\n") + "\r\n"
	smuggled := "GET /v1/status HTTP/1.1\r\nHost: a\r\n\r\n"
	for name, more := range map[string]string{
		"a body that never comes":  "Content-Length: 1000000000\r\n\r\n",
		"a body that is a request": fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(smuggled), smuggled),
		"chunks":                   "Transfer-Encoding: chunked\r\n\r\n" + smuggled,
		"expecting a word":         "Content-Length: 10\r\nExpect: 100-continue\r\n\r\n",
	} {
		got := h.raw("POST /v1/auth/forward HTTP/1.1\r\nHost: a\r\n" + fields + more)
		if !strings.HasPrefix(got, "HTTP/1.1 200 OK\r\n") || strings.Count(got, "HTTP/1.1 ") != 1 || !strings.Contains(got, "Connection: close\r\n") {
			t.Errorf("%s: got %q, want one 200, and the connection closed", name, got)
		}
	}
	got := h.raw("POST /v1/auth/forward HTTP/1.1\r\nHost: a\r\n" + fields + "\r\nGET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	if strings.Count(got, "HTTP/1.1 200") != 2 {
		t.Errorf("without a body: got %q, want the connection to go on", got)
	}
}

// TestAuthFollowsTheLog revokes what was accepted a moment before.
func TestAuthFollowsTheLog(t *testing.T) {
	w := newWorld(t)
	w.credential(bus.APIKey, "key0-good")
	w.credential(bus.APIKey, "key1-good")
	h := w.listen("unix")
	session := w.session(func(c *keyring.Claims) { c.SessionID = "sid-1" })
	ask := func(header string) reply { return h.do("GET", "/v1/auth/forward", "", forwarded("GET", header)...) }
	exp := time.Now().Add(time.Hour).Unix()
	checkAuth(t, "before", ask("X-API-Key: key0-good"), 200, "api_key")
	checkAuth(t, "before", ask(session), 200, "session")
	w.apply(&bus.Revocation{ID: "k_key0", ExpiresAt: exp}, &bus.Revocation{SessionID: "sid-1", ExpiresAt: exp})
	checkAuth(t, "revoked", ask("X-API-Key: key0-good"), 401, "revoked")
	checkAuth(t, "another", ask("X-API-Key: key1-good"), 200, "api_key")
	checkAuth(t, "revoked", ask(session), 401, "revoked")
	w.apply(&bus.Revocation{Subject: "svc", ExpiresAt: exp, Time: time.Now().Unix()})
	checkAuth(t, "its subject cut off", ask("X-API-Key: key1-good"), 401, "revoked")
	got := h.do("GET", "/metrics", "").body
	for _, want := range []string{
		`sidekey_agent_authentications_total{outcome="ok",scheme="api_key"} 2`, `sidekey_agent_authentications_total{outcome="refused",scheme="session"} 1`,
	} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("metrics: want %s", want)
		}
	}
}

func TestChainRefuses(t *testing.T) {
	rep := newStartingWorld(t).rep
	for want, cfg := range map[string]agent.Config{
		`authenticator "token" is listed twice`: {Authenticators: []string{"token", "token"}},
		`authenticator "magic": there is no such scheme; this binary has bearer, session, token, api_key, basic, webhook`: {Authenticators: []string{"magic"}},
		`challenges is "some"`:                                           {Challenges: "some"},
		`header "a b", which is no field name`:                           {Headers: map[string]string{"x": "a b"}},
		`claim "x" cannot go to header "X-Auth-Subject"`:                 {Headers: map[string]string{"x": "X-Auth-Subject"}},
		`claim "x" cannot go to header "set-cookie"`:                     {Headers: map[string]string{"x": "set-cookie"}},
		`claim "y" cannot go to header "X-A"`:                            {Headers: map[string]string{"x": "x-a", "y": "X-A"}},
		`authenticator "webhook": it needs the names of 1 to 16 headers`: {Authenticators: []string{"webhook"}},
	} {
		_, err := agent.New(cfg, agent.Parts{Replica: rep, Leases: always{}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// TestAuthenticateAllocates holds that a cached token and a key cost no garbage but the request's own.
func TestAuthenticateAllocates(t *testing.T) {
	w := newWorld(t)
	w.credential(bus.APIKey, "key0-good")
	for name, header := range map[string]http.Header{
		"bearer":  {"Authorization": {"Bearer " + w.token()}},
		"api_key": {"X-Api-Key": {"key0-good"}},
	} {
		r := agent.NewRequest("GET", "https", "app.example", "/", header, netip.Addr{})
		if n := testing.AllocsPerRun(100, func() {
			if d := w.agent.Authenticate(r); !d.Active() {
				t.Fatalf("%s: got %d %s", name, d.Status, d.Reason)
			}
		}); n != 0 {
			t.Errorf("%s: Authenticate allocates %v times, want 0", name, n)
		}
	}
}
