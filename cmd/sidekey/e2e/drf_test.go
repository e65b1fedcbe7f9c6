package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// drfOrders are the authentication_classes of the views, and agent.authenticators of the agents.
var drfOrders = [][]string{
	{"basic"}, {"session"}, {"token"}, {"basic", "session", "token"}, {"session", "token", "basic"}, {"token", "session", "basic"},
}

// drfSide is what one side's clients hold.
type drfSide struct {
	session string // the Cookie field of alice's session
	csrf    string // its CSRF token
	dead    string // a session that is over
	token   string // alice's
	bob     string // the token of bob, who is disabled
}

// drfCase is one request, made of what a side's client holds.
type drfCase struct {
	name, method string
	header       func(s *drfSide) http.Header
}

func basicHeader(text string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(text))
}

func drfCases() []drfCase {
	authorization := func(name, value string) drfCase {
		return drfCase{name, "GET", func(*drfSide) http.Header { return http.Header{"Authorization": {value}} }}
	}
	token := func(name, method string, value func(s *drfSide) string) drfCase {
		return drfCase{name, method, func(s *drfSide) http.Header { return http.Header{"Authorization": {value(s)}} }}
	}
	session := func(name, method, authorization string, csrf func(s *drfSide) string) drfCase {
		return drfCase{name, method, func(s *drfSide) http.Header {
			h := http.Header{"Cookie": {s.session}}
			if csrf != nil {
				h.Set("X-CSRFToken", csrf(s))
			}
			if authorization != "" {
				h.Set("Authorization", strings.ReplaceAll(authorization, "TOKEN", s.token))
			}
			return h
		}}
	}
	dead := func(name, method, authorization string) drfCase {
		return drfCase{name, method, func(s *drfSide) http.Header {
			h := http.Header{"Cookie": {s.dead}}
			if authorization != "" {
				h.Set("Authorization", strings.ReplaceAll(authorization, "TOKEN", s.token))
			}
			return h
		}}
	}
	right, wrong := basicHeader("alice:wonderland"), basicHeader("alice:no")
	return []drfCase{
		{"nothing", "GET", func(*drfSide) http.Header { return http.Header{} }},
		{"nothing, to write", "POST", func(*drfSide) http.Header { return http.Header{} }},
		authorization("an unknown scheme", "Digest x"),
		authorization("a bearer", "Bearer x"),
		authorization("Basic", right),
		authorization("basic in small letters", "basic"+right[5:]),
		authorization("Basic, wrong", wrong),
		authorization("Basic, unknown user", basicHeader("nobody:x")),
		authorization("Basic, disabled user", basicHeader("bob:wonderland")),
		authorization("Basic alone", "Basic"),
		authorization("Basic, two words", right+" x"),
		authorization("Basic, no base64", "Basic !"),
		authorization("Basic, no colon", basicHeader("alice")),
		authorization("Basic, no name", basicHeader(":wonderland")),
		authorization("Basic, no password", basicHeader("alice:")),
		token("Token", "GET", func(s *drfSide) string { return "Token " + s.token }),
		token("Token, to write", "POST", func(s *drfSide) string { return "Token " + s.token }),
		token("token in small letters", "GET", func(s *drfSide) string { return "token " + s.token }),
		token("Token, another", "GET", func(s *drfSide) string { return "Token " + strings.ToUpper(s.token) + "0" }),
		token("Token, disabled user", "GET", func(s *drfSide) string { return "Token " + s.bob }),
		token("Token, two words", "GET", func(s *drfSide) string { return "Token " + s.token + " x" }),
		token("Token as Basic", "GET", func(s *drfSide) string { return "Basic " + s.token }),
		token("Token as Bearer", "GET", func(s *drfSide) string { return "Bearer " + s.token }),
		authorization("Token alone", "Token"),
		authorization("Basic's as Token", "Token "+right[6:]),
		session("session", "GET", "", nil),
		session("session, OPTIONS", "OPTIONS", "", nil),
		session("session, to write without CSRF token", "POST", "", nil),
		session("session, to delete without CSRF token", "DELETE", "", nil),
		session("session, to write", "POST", "", func(s *drfSide) string { return s.csrf }),
		session("session, to write with a wrong CSRF token", "POST", "", func(s *drfSide) string { return strings.Repeat("a", len(s.csrf)) }),
		session("session, to write with an empty CSRF token", "POST", "", func(*drfSide) string { return "" }),
		session("session and a wrong password", "GET", wrong, nil),
		session("session and a wrong token", "GET", "Token wrong", nil),
		session("session without CSRF token, and a token", "POST", "Token TOKEN", nil),
		session("session without CSRF token, and a password", "POST", right, nil),
		dead("a session that is over", "GET", ""),
		dead("a session that is over, to write", "POST", ""),
		dead("a session that is over, and a token", "GET", "Token TOKEN"),
		dead("a session that is over, and a wrong token", "GET", "Token wrong"),
		dead("a session that is over, and a password", "POST", right),
		{"the session between other cookies", "GET", func(s *drfSide) http.Header { return http.Header{"Cookie": {"a=b; " + s.session + "; c=d"}} }},
	}
}

// drfMeant is how ours may differ from DRF's challenge: Basic says in which encoding it reads a name (RFC 7617 §2.1), which
// DRF's, that tries two, cannot. The realm is agent.realm, "api" here as DRF's. The bodies are the proxy's to show and are not compared: DRF's
// is {"detail"}, ours a problem (RFC 9457).
var drfMeant = strings.NewReplacer(`Basic realm="api"`, `Basic realm="api", charset="UTF-8"`)

// TestDRF sends the same requests to Django REST Framework's own BasicAuthentication, SessionAuthentication and TokenAuthentication, in
// several orders, and to agents with the same orders and challenges = "first": the status and the challenge are the same.
func TestDRF(t *testing.T) {
	needPython(t, "django", "rest_framework", "gunicorn")
	d, theirs := drfDjango(t)
	cases := drfCases()
	compared := 0
	for _, order := range drfOrders {
		list, _ := json.Marshal(order)
		c := dev(t, "", "[agent]\nrealm = \"api\"\nchallenges = \"first\"\nauthenticators = "+string(list))
		ours := drfOurs(t, c)
		for _, one := range cases {
			name := fmt.Sprintf("%v: %s %s", order, one.method, one.name)
			res, body := do(t, one.method, d.URL+"/"+strings.Join(order, "-"), one.header(theirs), "")
			header := one.header(ours)
			header.Set("X-Forwarded-Method", one.method)
			header.Set("X-Forwarded-Uri", "/")
			header.Set("X-Forwarded-Host", "app.example")
			header.Set("X-Forwarded-Proto", "https")
			header.Set("X-Forwarded-For", "203.0.113.9")
			got, problem := do(t, http.MethodGet, c.Agent+"/v1/auth/forward", header, "")
			want := drfMeant.Replace(strings.Join(res.Header.Values("WWW-Authenticate"), ", "))
			if have := strings.Join(got.Header.Values("WWW-Authenticate"), ", "); got.StatusCode != res.StatusCode || have != want {
				t.Errorf("%s: got %d %q %s, DRF says %d %q %s", name, got.StatusCode, have, problem, res.StatusCode, want, body)
			}
			if got.StatusCode == http.StatusOK && got.Header.Get("X-Auth-Method") != res.Header.Get("X-Method") {
				t.Errorf("%s: got method %q, DRF's class is %q", name, got.Header.Get("X-Auth-Method"), res.Header.Get("X-Method"))
			}
			compared++
		}
		c.proc.stop()
	}
	t.Logf("%d requests were compared", compared)
}

// drfDjango serves a project with a view for each order, behind IsAuthenticated, that names the class which has authenticated.
func drfDjango(t *testing.T) (*django, *drfSide) {
	t.Helper()
	orders, _ := json.Marshal(drfOrders)
	d := newDjango(t, `
INSTALLED_APPS += ['rest_framework.authtoken']
REST_FRAMEWORK = {'DEFAULT_RENDERER_CLASSES': ['rest_framework.renderers.JSONRenderer']}
`, fmt.Sprintf(`
import json
from django.urls import path
from rest_framework import authentication, permissions, response, views
CLASSES = {'basic': authentication.BasicAuthentication, 'session': authentication.SessionAuthentication, 'token': authentication.TokenAuthentication}
NAMES = {c: name for name, c in CLASSES.items()}
def answer(self, request):
    return response.Response({}, headers={'X-Method': NAMES[type(request.successful_authenticator)]})
def view(order):
    return type('View', (views.APIView,), {
        'authentication_classes': [CLASSES[name] for name in order], 'permission_classes': [permissions.IsAuthenticated],
        'get': answer, 'post': answer, 'delete': answer, 'options': answer,
    }).as_view()
urlpatterns = [path('-'.join(order), view(order)) for order in json.loads(%q)]
`, orders))
	made := strings.Fields(d.shell(`
from django.contrib.auth.models import User
from django.middleware.csrf import _get_new_csrf_token
from django.test import Client
from rest_framework.authtoken.models import Token
for name in 'alice', 'bob':
    user = User.objects.create_user(name, password='wonderland')
    print(Token.objects.create(user=user).key)
def session():
    c = Client()
    c.force_login(User.objects.get(username='alice'))
    return c
print(session().cookies['sessionid'].value)
over = session()
print(over.cookies['sessionid'].value)
over.logout()
print(_get_new_csrf_token())
User.objects.filter(username='bob').update(is_active=False)
`))
	if len(made) != 5 {
		t.Fatalf("preparing Django: got %q", made)
	}
	d.serve(1, "/token")
	return d, &drfSide{
		token: made[0], bob: made[1], csrf: made[4],
		session: "sessionid=" + made[2] + "; csrftoken=" + made[4], dead: "sessionid=" + made[3] + "; csrftoken=" + made[4],
	}
}

// drfOurs prepares the same at sidekey.
func drfOurs(t *testing.T, c *cluster) *drfSide {
	t.Helper()
	passFile := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(passFile, []byte("wonderland"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.sidekey("users", "add", "bob", "--password", "@"+passFile)
	s := &drfSide{token: c.credential("alice"), bob: c.credential("bob")}
	c.sidekey("users", "disable", "bob", "--wait")
	s.session, s.csrf = c.browserLogin()
	var csrf string
	s.dead, csrf = c.browserLogin()
	if res, body := do(t, http.MethodPost, c.Issuer+"/session/logout", http.Header{"Cookie": {s.dead}, "X-Csrf-Token": {csrf}}, ""); res.StatusCode != http.StatusNoContent {
		t.Fatalf("logging out: got %d %s", res.StatusCode, body)
	}
	await(t, "the agent to know all of it", func() error {
		ask := func(header http.Header, want int) error {
			header.Set("X-Forwarded-Method", "GET")
			header.Set("X-Forwarded-Uri", "/")
			header.Set("X-Forwarded-Proto", "https")
			res, _ := do(t, http.MethodGet, c.Agent+"/v1/auth/forward", header, "")
			if res.StatusCode != want {
				return fmt.Errorf("got %d, want %d", res.StatusCode, want)
			}
			return nil
		}
		if strings.Contains(c.order(), "token") {
			return ask(http.Header{"Authorization": {"Token " + s.token}}, 200)
		}
		return nil
	})
	return s
}

// order is the agent's list, as the file has it.
func (c *cluster) order() string {
	text, err := os.ReadFile(c.Config)
	if err != nil {
		c.t.Fatal(err)
	}
	return string(text)
}

// credential makes an opaque token for a user.
func (c *cluster) credential(username string) string {
	c.t.Helper()
	admin, err := os.ReadFile(filepath.Join(c.DataDir, "admin.token"))
	if err != nil {
		c.t.Fatal(err)
	}
	res, body := do(c.t, http.MethodPost, c.Issuer+"/admin/v1/credentials", http.Header{
		"Content-Type": {"application/json"}, "Authorization": {"Bearer " + strings.TrimSpace(string(admin))},
	}, fmt.Sprintf(`{"type":"token","username":%q,"name":"drf"}`, username))
	var got map[string]any
	if err := json.Unmarshal([]byte(body), &got); err != nil || res.StatusCode != http.StatusCreated {
		c.t.Fatalf("making a credential: got %d %s", res.StatusCode, body)
	}
	secret, _ := got["secret"].(string)
	if secret == "" {
		c.t.Fatalf("making a credential: got %s", body)
	}
	return secret
}

// browserLogin gives the cookie of a new session of alice's, and its CSRF token.
func (c *cluster) browserLogin() (cookie, csrf string) {
	c.t.Helper()
	res, body := do(c.t, http.MethodPost, c.Issuer+"/session/login", http.Header{"Content-Type": {"application/json"}}, `{"username":"alice","password":"wonderland"}`)
	var got struct {
		CSRF string `json:"csrf_token"`
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil || res.StatusCode != http.StatusOK {
		c.t.Fatalf("logging in: got %d %s", res.StatusCode, body)
	}
	for _, one := range res.Cookies() {
		if one.Name == "__Host-sidekey_session" {
			cookie = one.Name + "=" + one.Value
		}
	}
	return cookie, got.CSRF
}
