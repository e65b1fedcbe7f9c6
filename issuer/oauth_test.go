package issuer_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

const (
	formType   = "application/x-www-form-urlencoded"
	exchangeBy = "urn:ietf:params:oauth:grant-type:token-exchange"
	typeAccess = "urn:ietf:params:oauth:token-type:access_token"
)

// world is an issuer with the clients that the tests use, and their secrets.
type world struct {
	*testIssuer
	h       http.Handler
	secrets map[string]string
}

func allowPassword(cfg *issuer.Config, _ *issuer.Parts) { cfg.AllowPasswordGrant = true }

// newWorld adds: job (client credentials, two audiences), app (password and refresh), gate (exchange, short tokens) and spa
// (public), to an issuer with the user alice.
func newWorld(t testing.TB, b *testBus, with ...setup) *world {
	t.Helper()
	w := &world{testIssuer: start(t, b, append([]setup{allowPassword}, with...)...), secrets: make(map[string]string)}
	w.h = w.PublicHandler()
	for _, n := range []issuer.NewClient{
		{ID: "job", Scope: "read jobs", Audiences: []string{"https://jobs.example", issuerURL}, Roles: []string{"robot"}},
		{ID: "app", Scope: "read", Grants: []string{"password", "refresh_token"}},
		{ID: "gate", Scope: "read write jobs", Grants: []string{exchangeBy}, Audiences: []string{issuerURL, "https://jobs.example"}, AccessLifetime: "2m"},
		{ID: "spa", Scope: "read write", AuthMethods: []string{"none"}, Grants: []string{"refresh_token", "password"}},
	} {
		_, secret, err := w.AddClient(t.Context(), n)
		if err != nil {
			t.Fatalf("AddClient(%s): got %v", n.ID, err)
		}
		w.secrets[n.ID] = secret
	}
	return w
}

func basic(id, secret string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(id)+":"+url.QueryEscape(secret)))
}

// post sends a form to an endpoint, as a client by Basic; "" as nobody.
func (w *world) post(path, as string, pairs ...string) *httptest.ResponseRecorder {
	header := []string{"Content-Type", formType}
	if as != "" {
		header = append(header, "Authorization", basic(as, w.secrets[as]))
	}
	return ask(w.h, "POST", path, encoded(pairs...), header...)
}

func encoded(pairs ...string) string {
	v := make(url.Values)
	for at := 0; at < len(pairs); at += 2 {
		v.Add(pairs[at], pairs[at+1])
	}
	return v.Encode()
}

// granted is a good answer of the token endpoint.
func (w *world) granted(t testing.TB, as string, pairs ...string) (access, refresh string) {
	t.Helper()
	got := w.post("/oauth2/token", as, pairs...)
	var a struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
		Type    string `json:"token_type"`
		Expires int    `json:"expires_in"`
	}
	if err := json.Unmarshal(got.Body.Bytes(), &a); err != nil || got.Code != 200 || a.Type != "Bearer" || a.Expires <= 0 {
		t.Fatalf("POST /oauth2/token %v: got %d %s, want a token", pairs, got.Code, got.Body)
	}
	if got.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("POST /oauth2/token: Cache-Control: got %q, want no-store", got.Header().Get("Cache-Control"))
	}
	return a.Access, a.Refresh
}

// refusal holds an answer against a status and a code.
func refusal(t testing.TB, name string, got *httptest.ResponseRecorder, status int, code string) {
	t.Helper()
	var e struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	_ = json.Unmarshal(got.Body.Bytes(), &e) // what is no JSON has no error member
	if got.Code != status || e.Error != code || e.Description == "" {
		t.Errorf("%s: got %d %s, want %d %q", name, got.Code, got.Body, status, code)
	}
	if strings.ContainsAny(e.Description, "\"\\") || got.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("%s: got %s with %v: RFC 6749 §5.2 allows no such text, or it may be cached", name, got.Body, got.Header())
	}
}

func TestClientCredentials(t *testing.T) {
	w := newWorld(t, newBus())
	access, refresh := w.granted(t, "job", "grant_type", "client_credentials")
	c := claims(t, access)
	want := map[string]any{
		"iss": issuerURL, "sub": "job", "client_id": "job", "aud": "https://jobs.example", "scope": "read jobs", "token_type": "access",
	}
	for name, v := range want {
		if c[name] != v {
			t.Errorf("claim %s: got %v, want %v", name, c[name], v)
		}
	}
	for _, absent := range []string{"sid", "user_id", "auth_time", "gen"} {
		if v, ok := c[absent]; ok {
			t.Errorf("claim %s: got %v, want none: no user stands behind it", absent, v)
		}
	}
	if c["session_seq"] == nil || c["jti"] == "" || fmt.Sprint(c["roles"]) != "[robot]" || refresh != "" {
		t.Errorf("got %v and refresh token %q", c, refresh)
	}
	access, _ = w.granted(t, "job", "grant_type", "client_credentials", "resource", issuerURL, "scope", "read")
	if c := claims(t, access); c["aud"] != issuerURL || c["scope"] != "read" {
		t.Errorf("narrowed: got aud %v, scope %v", c["aud"], c["scope"])
	}
	if err := verify(w.replica, access); err != nil {
		t.Errorf("verifying it as an agent does: got %v", err)
	}
	// Nobody can be given the client's id as a user's.
	if _, err := w.AddUser(t.Context(), issuer.NewUser{ID: "job", Username: "mallory", Password: "correct horse"}); err == nil {
		t.Error("AddUser with a client's id as sub: got a user, want ErrExists")
	}
}

// TestTokenEndpointRefuses is the table of what is wrong with a request to POST /oauth2/token.
func TestTokenEndpointRefuses(t *testing.T) {
	w := newWorld(t, newBus())
	s := w.secrets
	job := basic("job", s["job"])
	const grant = "grant_type=client_credentials"
	for _, tc := range []struct {
		name, target, header, body string
		status                     int
		code                       string
	}{
		{"nothing", "", job, "", 400, "invalid_request"},
		{"JSON", "", job, `{"grant_type":"client_credentials"}`, 400, "invalid_request"},
		{"secret behind the URL", "?client_id=job&client_secret=" + s["job"], "", grant, 400, "invalid_request"},
		{"anything behind the URL", "?grant_type=client_credentials", job, grant, 400, "invalid_request"},
		{"duplicate grant_type", "", job, grant + "&" + grant, 400, "invalid_request"},
		{"duplicate scope", "", job, grant + "&scope=read&scope=jobs", 400, "invalid_request"},
		{"duplicate client_id", "", "", grant + "&client_id=job&client_id=app&client_secret=" + s["job"], 400, "invalid_request"},
		{"no form", "", job, grant + "&x=%zz", 400, "invalid_request"},
		{"semicolons", "", job, grant + ";scope=read", 400, "invalid_request"},
		{"not UTF-8", "", job, grant + "&scope=%ff", 400, "invalid_request"},
		{"too many parameters", "", job, grant + strings.Repeat("&resource=https://a.example", 64), 400, "invalid_request"},
		{"unknown grant", "", job, "grant_type=authorization_code", 400, "unsupported_grant_type"},
		{"a grant that the client has not", "", job, "grant_type=refresh_token&refresh_token=x", 400, "unauthorized_client"},
		{"scope widened", "", job, grant + "&scope=read+write", 400, "invalid_scope"},
		{"scope malformed", "", job, grant + "&scope=read++jobs", 400, "invalid_scope"},
		{"audience widened", "", job, grant + "&audience=https://other.example", 400, "invalid_target"},
		{"one audience of two widened", "", job, grant + "&audience=https://jobs.example&audience=https://other.example", 400, "invalid_target"},
		{"resource relative", "", job, grant + "&resource=jobs", 400, "invalid_target"},
		{"resource with fragment", "", job, grant + "&resource=https://jobs.example%23x", 400, "invalid_target"},

		{"wrong secret", "", basic("job", s["app"]), grant, 401, "invalid_client"},
		{"unknown client", "", basic("nobody", s["job"]), grant, 401, "invalid_client"},
		{"empty secret", "", basic("job", ""), grant, 401, "invalid_client"},
		{"no base64", "", "Basic job:" + s["job"], grant, 401, "invalid_client"},
		{"Bearer", "", "Bearer " + s["job"], grant, 401, "invalid_client"},
		{"wrong secret in the body", "", "", grant + "&client_id=job&client_secret=x", 401, "invalid_client"},
		{"secret without client", "", "", grant + "&client_secret=" + s["job"], 401, "invalid_client"},
		{"client without secret", "", "", grant + "&client_id=job", 401, "invalid_client"},
		{"nobody", "", "", grant, 401, "invalid_client"},
		{"a public client", "", "", grant + "&client_id=spa", 401, "invalid_client"},
		{"a public client with a secret", "", basic("spa", "x"), grant, 401, "invalid_client"},
		{"two ways at once", "", job, grant + "&client_secret=" + s["job"], 400, "invalid_request"},
		{"two ways, secret and assertion", "", "", grant + "&client_id=job&client_secret=x&client_assertion=a.b.c&client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer", 400, "invalid_request"},
		{"two clients at once", "", job, grant + "&client_id=app", 400, "invalid_request"},
		{"assertion of another type", "", "", grant + "&client_assertion=a.b.c&client_assertion_type=saml", 400, "invalid_request"},
		{"assertion from a client with secrets", "", "", grant + "&client_id=job&client_assertion=a.b.c&client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer", 401, "invalid_client"},

		{"refresh: nothing", "", "", "grant_type=refresh_token", 400, "invalid_request"},
		{"refresh: nonsense", "", "", "grant_type=refresh_token&refresh_token=x.y.z", 400, "invalid_grant"},
		{"password: wrong", "", "", "grant_type=password&username=alice&password=x", 400, "invalid_grant"},
		{"password: unknown user", "", "", "grant_type=password&username=bob&password=x", 400, "invalid_grant"},
		{"password: none", "", "", "grant_type=password&username=alice", 400, "invalid_request"},
		{"password: scope widened", "", "", "grant_type=password&username=alice&password=wonderland&scope=admin", 400, "invalid_scope"},
		{"password: audience", "", "", "grant_type=password&username=alice&password=wonderland&audience=https://jobs.example", 400, "invalid_target"},
	} {
		header := []string{"Content-Type", formType}
		if strings.HasPrefix(tc.body, "{") {
			header[1] = "application/json"
		}
		if tc.header != "" {
			header = append(header, "Authorization", tc.header)
		}
		got := ask(w.h, "POST", "/oauth2/token"+tc.target, tc.body, header...)
		refusal(t, tc.name, got, tc.status, tc.code)
		challenge := strings.HasPrefix(got.Header().Get("WWW-Authenticate"), "Basic ")
		if want := tc.status == 401 && tc.header != ""; challenge != want {
			t.Errorf("%s: challenged with Basic: got %v, want %v (RFC 6749 §5.2)", tc.name, challenge, want)
		}
	}
	if got := ask(w.h, "GET", "/oauth2/token", ""); got.Code != 405 || got.Header().Get("Allow") != "POST" {
		t.Errorf("GET: got %d, Allow %q, want 405 with POST", got.Code, got.Header().Get("Allow"))
	}
	r := httptest.NewRequest("POST", "/oauth2/token", strings.NewReader(grant))
	r.Header.Set("Content-Type", formType)
	r.Header["Authorization"] = []string{job, job}
	two := httptest.NewRecorder()
	w.h.ServeHTTP(two, r)
	refusal(t, "two Authorization", two, 400, "invalid_request")
	if logged := w.logged.String(); strings.Contains(logged, s["job"]) || strings.Contains(logged, "wonderland") {
		t.Error("a secret is in the log")
	}
}

// TestPasswordGrantIsOff: nobody gets it who has not asked for it.
func TestPasswordGrantIsOff(t *testing.T) {
	w := newWorld(t, newBus(), func(cfg *issuer.Config, _ *issuer.Parts) { cfg.AllowPasswordGrant = false })
	got := w.post("/oauth2/token", "app", "grant_type", "password", "username", "alice", "password", "wonderland")
	refusal(t, "password", got, 400, "unsupported_grant_type")
}

func TestRefreshBelongsToItsClient(t *testing.T) {
	w := newWorld(t, newBus())
	_, first := w.granted(t, "app", "grant_type", "password", "username", "alice", "password", "wonderland")
	if c := claims(t, first); c["client_id"] != "app" || c["scope"] != "read" {
		t.Errorf("the session: got client_id %v, scope %v, want app and what alice and app both have", c["client_id"], c["scope"])
	}
	for name, got := range map[string]*httptest.ResponseRecorder{
		"another client": w.post("/oauth2/token", "", "grant_type", "refresh_token", "refresh_token", first, "client_id", "spa"),
		"nobody":         w.post("/oauth2/token", "", "grant_type", "refresh_token", "refresh_token", first),
	} {
		refusal(t, name, got, 400, "invalid_grant")
	}
	refusal(t, "its id without its secret", w.post("/oauth2/token", "", "grant_type", "refresh_token", "refresh_token", first, "client_id", "app"), 401, "invalid_client")
	if _, err := w.Refresh(t.Context(), first); keyring.ReasonOf(err) != keyring.WrongAudience {
		t.Errorf("Simple JWT's refresh of a confidential client's session: got %v, want a denial", err)
	}
	refusal(t, "scope widened", w.post("/oauth2/token", "app", "grant_type", "refresh_token", "refresh_token", first, "scope", "read write"), 400, "invalid_scope")

	// None of these has used the token up.
	access, second := w.granted(t, "app", "grant_type", "refresh_token", "refresh_token", first)
	if err := verify(w.replica, access); err != nil || second == first {
		t.Errorf("its own client: got %v, and the token again: %v", err, second == first)
	}
	// A narrower scope is for the access token alone (RFC 6749 §6).
	user := login(t, w.testIssuer)
	access, next := w.granted(t, "", "grant_type", "refresh_token", "refresh_token", user.Refresh, "scope", "read")
	if claims(t, access)["scope"] != "read" || claims(t, next)["scope"] != "read write" {
		t.Errorf("narrowed: got %v, and the session %v, want read and read write", claims(t, access)["scope"], claims(t, next)["scope"])
	}
	// The single use is the same as everywhere.
	_, _ = w.granted(t, "", "grant_type", "refresh_token", "refresh_token", next)
	refusal(t, "reuse", w.post("/oauth2/token", "", "grant_type", "refresh_token", "refresh_token", user.Refresh), 400, "invalid_grant")
	if err := verify(w.replica, access); keyring.ReasonOf(err) != keyring.Revoked {
		t.Errorf("after the reuse: got %v, want the session revoked", err)
	}
}

// exchange is the form of RFC 8693.
func exchange(token string, more ...string) []string {
	return append([]string{"grant_type", exchangeBy, "subject_token", token, "subject_token_type", typeAccess}, more...)
}

func TestTokenExchange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, newBus())
		user := login(t, w.testIssuer)
		time.Sleep(5 * time.Minute)
		access, refresh := w.granted(t, "gate", exchange(user.Access, "scope", "read")...)
		from, to := claims(t, user.Access), claims(t, access)
		for _, same := range []string{"iss", "sub", "sid", "session_seq", "aud", "auth_time", "user_id", "token_type"} {
			if fmt.Sprint(from[same]) != fmt.Sprint(to[same]) {
				t.Errorf("claim %s: got %v, want the subject token's %v", same, to[same], from[same])
			}
		}
		if to["client_id"] != "gate" || to["subject_client_id"] != "sidekey" || to["scope"] != "read" || to["jti"] == from["jti"] || refresh != "" {
			t.Errorf("got %v", to)
		}
		if act := fmt.Sprint(to["act"]); act != "map[client_id:gate sub:gate]" {
			t.Errorf("act: got %s", act)
		}
		if life := to["exp"].(float64) - to["iat"].(float64); life != 120 {
			t.Errorf("life: got %v s, want the client's own 120", life)
		}
		time.Sleep(9 * time.Minute)
		late, _ := w.granted(t, "gate", exchange(user.Access)...)
		if exp := claims(t, late)["exp"]; exp != from["exp"] {
			t.Errorf("exp: got %v, want the subject token's %v at the latest", exp, from["exp"])
		}
		if sc := claims(t, late)["scope"]; sc != "read write" {
			t.Errorf("scope: got %v, want all that both have", sc)
		}
		if _, err := w.Revoke(t.Context(), issuer.Target{SessionID: user.SessionID}); err != nil {
			t.Fatal(err)
		}
		refused(t, "an exchanged token of a revoked session", verify(w.replica, late), keyring.Revoked)
		refusal(t, "exchange after revocation", w.post("/oauth2/token", "gate", exchange(user.Access)...), 400, "invalid_request")
	})
}

func TestTokenExchangeRefuses(t *testing.T) {
	w := newWorld(t, newBus())
	user := login(t, w.testIssuer)
	jobs, _ := w.granted(t, "job", "grant_type", "client_credentials", "audience", "https://jobs.example")
	other, secret, err := w.AddClient(t.Context(), issuer.NewClient{ID: "stranger", Scope: "read", Grants: []string{exchangeBy}, Audiences: []string{"https://else.example"}})
	if err != nil {
		t.Fatal(err)
	}
	w.secrets[other.ID] = secret
	narrow, _ := w.granted(t, "gate", exchange(user.Access, "scope", "read")...)
	for _, tc := range []struct {
		name, as string
		form     []string
		status   int
		code     string
	}{
		{"nobody", "", exchange(user.Access), 401, "invalid_client"},
		{"a client without the grant", "job", exchange(user.Access), 400, "unauthorized_client"},
		{"a refresh token", "gate", exchange(user.Refresh), 400, "invalid_request"},
		{"nonsense", "gate", exchange("x.y.z"), 400, "invalid_request"},
		{"no token", "gate", exchange(""), 400, "invalid_request"},
		{"an ID token", "gate", []string{"grant_type", exchangeBy, "subject_token", user.Access, "subject_token_type", "urn:ietf:params:oauth:token-type:id_token"}, 400, "invalid_request"},
		{"a refresh token wanted", "gate", exchange(user.Access, "requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token"), 400, "invalid_request"},
		{"an actor", "gate", exchange(user.Access, "actor_token", user.Access, "actor_token_type", typeAccess), 400, "invalid_request"},
		{"scope beyond the token's", "gate", exchange(jobs, "scope", "write"), 400, "invalid_scope"},
		{"scope beyond the client's", "gate", exchange(user.Access, "scope", "admin"), 400, "invalid_scope"},
		{"scope that was narrowed away", "gate", exchange(narrow, "scope", "read write"), 400, "invalid_scope"},
		{"audience beyond the token's, though the client's", "gate", exchange(user.Access, "audience", "https://jobs.example"), 400, "invalid_target"},
		{"a token that is neither of nor for the client", "stranger", exchange(user.Access), 400, "invalid_request"},
	} {
		refusal(t, tc.name, w.post("/oauth2/token", tc.as, tc.form...), tc.status, tc.code)
	}
	again, _ := w.granted(t, "gate", exchange(narrow)...)
	if c := claims(t, again); c["subject_client_id"] != "sidekey" || c["scope"] != "read" {
		t.Errorf("exchanged again: got %v, want the first client still named", c)
	}
}

// TestExchangedTokenHasTwoClients: what cuts off either refuses it, and nothing that happened to one before.
func TestExchangedTokenHasTwoClients(t *testing.T) {
	for _, client := range []string{"sidekey", "gate"} {
		w := newWorld(t, newBus())
		user := login(t, w.testIssuer)
		// A cutoff of the exchanging client from before the exchange is over, though the session is older.
		if _, err := w.Revoke(t.Context(), issuer.Target{ClientID: "gate"}); err != nil {
			t.Fatal(err)
		}
		access, _ := w.granted(t, "gate", exchange(user.Access)...)
		if err := verify(w.replica, access); err != nil {
			t.Errorf("after an old cutoff of gate: got %v, want it accepted", err)
		}
		if _, err := w.Revoke(t.Context(), issuer.Target{ClientID: client}); err != nil {
			t.Fatal(err)
		}
		refused(t, "after the cutoff of "+client, verify(w.replica, access), keyring.Revoked)
	}
}
