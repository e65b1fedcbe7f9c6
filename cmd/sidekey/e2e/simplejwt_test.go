package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// signingKey is the Django project's SIGNING_KEY. sidekey has imported it too, so that both sides know the tokens that the
// suite makes with it: expired ones, tampered ones, ones without a claim.
const signingKey = "signing-key-of-the-simple-jwt-suite-0123456789"

// The users of both sides. Their ids are the same.
const (
	ina  = "ina"  // id 1: an ordinary one
	bob  = "bob"  // id 2: disabled from the start
	carl = "carl" // id 3: disabled when the suite has his tokens
	dora = "dora" // id 4: deleted when the suite has her tokens
	pass = "Sesam-open-17"
)

// TestSimpleJWT sends the same requests to Debian's djangorestframework-simplejwt in a Django project and to sidekey, and
// compares the answers: status, body, WWW-Authenticate, Allow and Content-Type, and the claims of the tokens in them. What
// may differ stands in meant, with its reason; another difference is a failure, and so is one that no longer occurs.
func TestSimpleJWT(t *testing.T) {
	needPython(t, "django", "rest_framework_simplejwt", "gunicorn")
	d := simpleDjango(t)
	c := dev(t, "", "[issuer]\nsliding = true")
	keyFile := filepath.Join(t.TempDir(), "signing.key")
	if err := os.WriteFile(keyFile, []byte(signingKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.sidekey("keys", "import", keyFile, "--alg", "HS256", "--accept", "simplejwt")
	passFile := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(passFile, []byte(pass), 0o600); err != nil {
		t.Fatal(err)
	}
	for at, name := range []string{ina, bob, carl, dora} {
		c.sidekey("users", "add", name, "--id", fmt.Sprint(at+1), "--password", "@"+passFile)
	}
	c.sidekey("users", "disable", bob)

	theirs := &side{t: t, url: d.URL, end: func() {
		d.shell("from django.contrib.auth.models import User\nUser.objects.filter(username='carl').update(is_active=False)\nUser.objects.filter(username='dora').delete()")
	}}
	ours := &side{t: t, url: c.Issuer, end: func() {
		c.sidekey("users", "disable", carl)
		c.sidekey("users", "delete", dora)
	}}
	made := strings.Fields(d.shell(mintTokens))
	for _, s := range []*side{theirs, ours} {
		s.prepare(made)
	}
	cases := simpleCases()
	if len(cases) < 60 {
		t.Fatalf("only %d requests", len(cases))
	}
	used := make([]int, len(meant))
	for _, one := range cases {
		compare(t, meant, one, theirs.ask(one), ours.ask(one), used)
	}
	for at, n := range used {
		if n == 0 {
			t.Errorf("the difference in %s of %q, %q, does not occur any more", meant[at].what, meant[at].cases, meant[at].why)
		}
	}
	t.Logf("%d requests were compared", len(cases))
}

// simpleDjango serves a project with Simple JWT, rotation and blacklist on, and makes the users.
func simpleDjango(t *testing.T) *django {
	t.Helper()
	d := newDjango(t, fmt.Sprintf(`
from datetime import timedelta
INSTALLED_APPS += ['rest_framework_simplejwt', 'rest_framework_simplejwt.token_blacklist']
REST_FRAMEWORK = {'DEFAULT_RENDERER_CLASSES': ['rest_framework.renderers.JSONRenderer']}
SIMPLE_JWT = {
    'ROTATE_REFRESH_TOKENS': True, 'BLACKLIST_AFTER_ROTATION': True, 'SIGNING_KEY': %q,
    'ACCESS_TOKEN_LIFETIME': timedelta(minutes=15), 'REFRESH_TOKEN_LIFETIME': timedelta(days=7),
}
`, signingKey), `
from django.urls import path
from rest_framework_simplejwt import views
urlpatterns = [path('api/token/' + name, view.as_view()) for name, view in {
    '': views.TokenObtainPairView, 'refresh/': views.TokenRefreshView, 'verify/': views.TokenVerifyView,
    'blacklist/': views.TokenBlacklistView, 'sliding/': views.TokenObtainSlidingView,
    'sliding/refresh/': views.TokenRefreshSlidingView,
}.items()]
`)
	d.shell(fmt.Sprintf(`
from django.contrib.auth.models import User
for id, name in enumerate(%q.split(), 1):
    User.objects.create_user(name, id=id, password=%q, is_active=name != 'bob')
`, strings.Join([]string{ina, bob, carl, dora}, " "), pass))
	d.serve(1, "/api/token/")
	return d
}

// mintTokens prints tokens that Simple JWT itself makes with the signing key: name, blank, token. Those of users who have
// a session of their own on neither side.
const mintTokens = `
from datetime import timedelta
from rest_framework_simplejwt.tokens import AccessToken, RefreshToken, SlidingToken
import jwt
from django.conf import settings
KEY = settings.SIMPLE_JWT['SIGNING_KEY']
def make(name, kind, user=1, drop=(), key=KEY, alg='HS256', headers=None, **claims):
    token = kind()
    token['user_id'] = user
    for claim, seconds in claims.items():
        token.set_exp(claim, lifetime=timedelta(seconds=seconds))
    for claim in drop:
        del token[claim]
    print(name, jwt.encode(token.payload, key, algorithm=alg, headers=headers))
for name, kind in {'access': AccessToken, 'refresh': RefreshToken, 'sliding': SlidingToken}.items():
    make('expired_' + name, kind, exp=-60)
    make('other_key_' + name, kind, key='another-key-of-the-simple-jwt-suite-0123456789')
    make('no_type_' + name, kind, drop=['token_type'])
    make('no_exp_' + name, kind, drop=['exp'])
    make('unsigned_' + name, kind, key=None, alg='none')
    make('hs512_' + name, kind, alg='HS512')
    make('made_' + name, kind)
for endpoint in ['refresh', 'verify', 'blacklist']:
    make('unknown_user_' + endpoint, RefreshToken, user=99)
    make('disabled_user_' + endpoint, RefreshToken, user=2)
make('to_blacklist', RefreshToken)
make('sliding_over', SlidingToken, refresh_exp=-60)
make('sliding_endless', SlidingToken, drop=['refresh_exp'])
make('sliding_unknown_user', SlidingToken, user=99)
make('sliding_disabled_user', SlidingToken, user=2)
`

// side is one of the two that are compared, with the tokens that stand for {name} in a request.
type side struct {
	t    *testing.T
	url  string
	vars map[string]string
	end  func() // disables carl and deletes dora
}

// prepare gets the tokens of every kind and state.
func (s *side) prepare(made []string) {
	s.t.Helper()
	s.vars = map[string]string{}
	for ; len(made) > 1; made = made[2:] {
		s.vars[made[0]] = made[1]
	}
	for _, name := range []string{"", "form_", "spare_", "reused_", "blacklisted_", "blank_"} {
		s.vars[name+"access"], s.vars[name+"refresh"] = s.login(ina)
	}
	for _, endpoint := range []string{"refresh", "verify", "blacklist"} {
		_, s.vars["carl_"+endpoint] = s.login(carl)
		_, s.vars["dora_"+endpoint] = s.login(dora)
	}
	s.vars["sliding"] = s.obtain("/api/token/sliding/", fmt.Sprintf(`{"username":%q,"password":%q}`, ina, pass))["token"]
	s.vars["carl_sliding"] = s.obtain("/api/token/sliding/", fmt.Sprintf(`{"username":%q,"password":%q}`, carl, pass))["token"]
	once := s.obtain("/api/token/refresh/", fmt.Sprintf(`{"refresh":%q}`, s.vars["reused_refresh"]))
	s.obtain("/api/token/refresh/", fmt.Sprintf(`{"refresh":%q}`, once["refresh"])) // so that a retry is forgiven no more
	s.obtain("/api/token/blacklist/", fmt.Sprintf(`{"refresh":%q}`, s.vars["blacklisted_refresh"]))
	for _, kind := range []string{"access", "refresh", "sliding"} {
		token := s.vars[kind]
		dot := strings.LastIndexByte(token, '.')
		s.vars["tampered_"+kind] = token[:dot-1] + string(token[dot-1]^1) + token[dot:]
		s.vars["cut_"+kind] = token[:dot]
		s.vars["bad_signature_"+kind] = token[:dot+1] + strings.Repeat("A", len(token)-dot-1)
	}
	s.end()
}

func (s *side) login(name string) (access, refresh string) {
	got := s.obtain("/api/token/", fmt.Sprintf(`{"username":%q,"password":%q}`, name, pass))
	return got["access"], got["refresh"]
}

func (s *side) obtain(path, body string) map[string]string {
	s.t.Helper()
	res, text := do(s.t, http.MethodPost, s.url+path, http.Header{"Content-Type": {"application/json"}}, body)
	if res.StatusCode != http.StatusOK {
		s.t.Fatalf("%s%s: %d %s", s.url, path, res.StatusCode, text)
	}
	return decodeMap(s.t, text)
}

// ask sends a request with this side's tokens in it.
func (s *side) ask(c simpleCase) answer {
	s.t.Helper()
	var pairs []string
	for name, token := range s.vars {
		pairs = append(pairs, "{"+name+"}", token)
	}
	header := http.Header{}
	if c.kind != "" {
		header.Set("Content-Type", c.kind)
	}
	res, body := do(s.t, c.method, s.url+c.path, header, strings.NewReplacer(pairs...).Replace(c.body))
	return answer{res.StatusCode, body, res.Header.Get("WWW-Authenticate"), res.Header.Get("Allow"), res.Header.Get("Content-Type")}
}
