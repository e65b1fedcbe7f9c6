package main

import (
	"context"
	"encoding/base64"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

// ways is an issuer and an agent on one log in memory, and for the user alice one of everything that lets somebody in.
type ways struct {
	*testing.T
	*issuer.Issuer
	log   *bustest.Log
	keys  *bustest.Bucket
	rep   *replica.Replica // the issuer's
	agent *agent.Agent

	tokens, sliding, foreignLogin *issuer.Tokens
	browser                       *issuer.BrowserSession
	key, opaque                   *issuer.MadeCredential
	foreign, foreignRefresh       string
	in                            map[string]func(*agent.Agent) bool
}

const (
	waysURL   = "https://auth.example"
	djangoKey = "the SIGNING_KEY of a Django project of the tests"
)

// endless is an agent's lease that does not end.
type endless struct{}

func (endless) Current() *lease.Lease {
	return &lease.Lease{Begin: lease.SystemClock(), Length: 24 * time.Hour, Mode: lease.Refuse}
}

// Check makes the issuer the one whom the agent asks about passwords: the bus between them is bus's to test.
func (w *ways) Check(ctx context.Context, req bus.BasicRequest) (bus.BasicAnswer, error) {
	return w.AnswerBasic(ctx, "web-1", req), nil
}

func newWays(t *testing.T) *ways {
	w := &ways{T: t, log: bustest.NewLog(), keys: new(bustest.Bucket), in: make(map[string]func(*agent.Agent) bool)}
	feed := issuer.NewFeed()
	w.rep = replica.New(replica.Config{Open: issuer.OpenSecret(w.keys), Journal: feed.Note})
	var err error
	w.Issuer, err = issuer.New(issuer.Config{
		URL: waysURL, Alg: keyring.EdDSA, RefreshGrace: 30 * time.Second, Leeway: 5 * time.Second, Sliding: true, RotateWait: time.Second,
		Hash: issuer.Hash{Memory: 8, Time: 1, Threads: 1},
	}, issuer.Parts{
		Log: w.log, Fleet: new(bustest.Fleet), Users: new(bustest.Bucket), Subjects: new(bustest.Bucket), Sessions: new(bustest.Bucket),
		Clients: new(bustest.Bucket), Keys: w.keys, Credentials: new(bustest.Bucket), Feed: feed, Replica: w.rep,
	})
	w.must(err)
	w.follow(w.rep)
	for range 5 {
		w.must(w.Step(t.Context()))
	}
	w.agent = w.newAgent(nil)
	w.letIn()
	return w
}

func (w *ways) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// follow keeps a replica at the head of the log until the test ends.
func (w *ways) follow(r *replica.Replica) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = r.Follow(ctx, w.log) // ends with ctx
	}()
	w.Cleanup(func() { cancel(); <-done })
	synctest.Wait()
}

// newAgent starts an agent, from an image if there is one.
func (w *ways) newAgent(image []byte) *agent.Agent {
	w.Helper()
	r := replica.New(replica.Config{Open: issuer.OpenSecret(w.keys)})
	if image != nil {
		w.must(r.Load(image))
	}
	w.follow(r)
	a, err := agent.New(agent.Config{
		Name: "web-1", Leeway: 5 * time.Second,
		Authenticators: []string{"bearer", "session", "token", "api_key", "basic"},
	}, agent.Parts{Replica: r, Leases: endless{}, Passwords: w})
	w.must(err)
	w.Cleanup(func() { _ = a.Close() })
	return a
}

// letIn makes one of everything.
func (w *ways) letIn() {
	ctx := w.Context()
	_, err := w.ImportKey(ctx, issuer.Import{Secret: djangoKey, Accept: keyring.Accept{Kind: keyring.SimpleJWT}})
	w.must(err)
	_, err = w.AddUser(ctx, issuer.NewUser{ID: "7", Username: "alice", Password: "wonderland", Scope: "read write"})
	w.must(err)
	alice := issuer.Credentials{Username: "alice", Password: "wonderland"}
	if w.tokens, err = w.Login(ctx, alice); err == nil {
		w.sliding, err = w.LoginSliding(ctx, alice)
	}
	w.must(err)
	w.browser, err = w.LoginBrowser(ctx, alice)
	w.must(err)
	w.key, err = w.AddCredential(ctx, issuer.NewCredential{Username: "alice", Name: "ci"})
	w.must(err)
	w.opaque, err = w.AddCredential(ctx, issuer.NewCredential{Username: "alice", Type: bus.Opaque, Name: "phone", ClientID: "job"})
	w.must(err)
	w.foreign, w.foreignRefresh = w.django("access", "a"), w.django("refresh", "r")
	w.foreignLogin, err = w.Refresh(ctx, w.django("refresh", "used"))
	w.must(err)
	exchanged, own := w.clientTokens()
	w.in = map[string]func(*agent.Agent) bool{
		"access":          w.header("Authorization", "Bearer "+w.tokens.Access),
		"refresh":         func(*agent.Agent) bool { return w.Issuer.Check(ctx, w.tokens.Refresh) == nil },
		"sliding":         w.header("Authorization", "Bearer "+w.sliding.Access),
		"sliding refresh": func(*agent.Agent) bool { _, err := w.RefreshSliding(ctx, w.sliding.Access); return err == nil },
		"foreign access":  w.header("Authorization", "Bearer "+w.foreign),
		"foreign refresh": func(*agent.Agent) bool { return w.Issuer.Check(ctx, w.foreignRefresh) == nil },
		"made of foreign": w.header("Authorization", "Bearer "+w.foreignLogin.Access),
		"session":         w.header("Cookie", "__Host-sidekey_session="+w.browser.Token),
		"renewal": func(*agent.Agent) bool {
			_, err := w.RenewBrowser(ctx, w.browser.Token, w.browser.CSRF)
			return err == nil
		},
		"api key":   w.header("X-Api-Key", w.key.Secret),
		"opaque":    w.header("Authorization", "Token "+w.opaque.Secret),
		"basic":     w.header("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("alice:wonderland"))),
		"exchanged": w.header("Authorization", "Bearer "+exchanged),
		"client":    w.header("Authorization", "Bearer "+own),
	}
}

func (w *ways) header(name, value string) func(*agent.Agent) bool {
	return func(a *agent.Agent) bool {
		d := a.Authenticate(agent.NewRequest("GET", "https", "app.example", "/", http.Header{name: {value}}, netip.MustParseAddr("192.0.2.1")))
		return d.Status == http.StatusOK
	}
}

// django is a token as Simple JWT makes it for the user 7.
func (w *ways) django(kind, jti string) string {
	now := time.Now().Unix()
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
		"token_type": kind, "exp": now + 3600, "iat": now - 1, "jti": jti, "user_id": 7,
	}).SignedString([]byte(djangoKey))
	w.must(err)
	return token
}

// clientTokens are one that the client gate got for alice's, and one of the client job's own.
func (w *ways) clientTokens() (exchanged, own string) {
	const exchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	secret := make(map[string]string)
	for id, grant := range map[string]string{"gate": exchange, "job": "client_credentials"} {
		_, text, err := w.AddClient(w.Context(), issuer.NewClient{ID: id, Scope: "read", Grants: []string{grant}})
		w.must(err)
		secret[id] = text
	}
	exchanged = oauthToken(w.T, w.PublicHandler(), "gate", secret["gate"], "grant_type", exchange, "subject_token", w.tokens.Access,
		"subject_token_type", "urn:ietf:params:oauth:token-type:access_token")
	return exchanged, oauthToken(w.T, w.PublicHandler(), "job", secret["job"], "grant_type", "client_credentials")
}

// stands gives what lets somebody in at an agent, in order.
func (w *ways) stands(a *agent.Agent) []string {
	synctest.Wait() // the agents have applied what there is
	var names []string
	for _, name := range slices.Sorted(maps.Keys(w.in)) {
		if w.in[name](a) {
			names = append(names, name)
		}
	}
	return names
}

// of the user alice, of one login, of one browser; and what lives longer than tokens.
var (
	ofLogin   = []string{"access", "refresh", "exchanged"}
	ofBrowser = []string{"session", "renewal"}
	ofTokens  = slices.Concat(ofLogin, ofBrowser, []string{"sliding", "sliding refresh", "foreign access", "foreign refresh", "made of foreign"})
	lasting   = []string{"api key", "opaque", "basic"}
)

// waysOut are what ends something, and what that is; the rest goes on.
var waysOut = map[string]struct {
	do   func(*ways) error
	ends []string
}{
	"nothing":               {func(*ways) error { return nil }, nil},
	"jti":                   {func(w *ways) error { return w.end(issuer.Target{Token: w.tokens.Access}) }, []string{"access"}},
	"sid":                   {func(w *ways) error { return w.end(issuer.Target{SessionID: w.tokens.SessionID}) }, ofLogin},
	"refresh token revoked": {func(w *ways) error { return w.end(issuer.Target{Token: w.tokens.Refresh}) }, ofLogin},
	"blacklisted":           {func(w *ways) error { return w.EndWith(w.Context(), w.tokens.Refresh) }, ofLogin},
	"reused": {func(w *ways) error {
		next, err := w.Refresh(w.Context(), w.tokens.Refresh)
		if err == nil {
			_, err = w.Refresh(w.Context(), next.Refresh)
		}
		if err == nil {
			_, _ = w.Refresh(w.Context(), w.tokens.Refresh) // refused, which others test
		}
		return err
	}, ofLogin},
	"session token revoked": {func(w *ways) error { return w.end(issuer.Target{Token: w.browser.Token}) }, ofBrowser},
	"browser's logout":      {func(w *ways) error { return w.EndBrowser(w.Context(), w.browser.Token, w.browser.CSRF) }, ofBrowser},
	"sliding's sid":         {func(w *ways) error { return w.end(issuer.Target{SessionID: w.sliding.SessionID}) }, []string{"sliding", "sliding refresh"}},
	"sliding token revoked": {func(w *ways) error { return w.end(issuer.Target{Token: w.sliding.Access}) }, []string{"sliding", "sliding refresh"}},
	"foreign access":        {func(w *ways) error { return w.end(issuer.Target{Token: w.foreign}) }, []string{"foreign access"}},
	"foreign refresh":       {func(w *ways) error { return w.end(issuer.Target{Token: w.foreignRefresh}) }, []string{"foreign refresh"}},
	"made of foreign":       {func(w *ways) error { return w.EndWith(w.Context(), w.foreignLogin.Refresh) }, []string{"made of foreign"}},
	"api key by id":         {func(w *ways) error { return w.end(issuer.Target{ID: w.key.ID}) }, []string{"api key"}},
	"opaque by its text":    {func(w *ways) error { return w.end(issuer.Target{Token: w.opaque.Secret}) }, []string{"opaque"}},
	// The password is right still, so that Basic, asked for again, lets in.
	"sub": {func(w *ways) error { return w.end(issuer.Target{Subject: "7"}) }, slices.Concat(ofTokens, []string{"api key", "opaque"})},
	"password": {func(w *ways) error {
		text := "correct horse battery"
		_, err := w.ChangeUser(w.Context(), "alice", issuer.UserChange{Password: &text})
		return err
	}, slices.Concat(ofTokens, []string{"basic"})},
	"disabled": {func(w *ways) error {
		yes := true
		_, err := w.ChangeUser(w.Context(), "alice", issuer.UserChange{Disabled: &yes})
		return err
	}, slices.Concat(ofTokens, lasting)},
	"deleted":               {func(w *ways) error { return w.DeleteUser(w.Context(), "alice") }, slices.Concat(ofTokens, lasting)},
	"client of logins":      {func(w *ways) error { return w.end(issuer.Target{ClientID: "sidekey"}) }, slices.Concat(ofLogin, ofBrowser, []string{"sliding", "sliding refresh", "made of foreign"})},
	"client that exchanged": {func(w *ways) error { return w.DeleteClient(w.Context(), "gate") }, []string{"exchanged"}},
	"client revoked":        {func(w *ways) error { return w.end(issuer.Target{ClientID: "job"}) }, []string{"client", "opaque"}},
	"signing key": {func(w *ways) error {
		_, err := w.RevokeKey(w.Context(), w.kid(func(k *issuer.KeyStatus) bool { return k.State == keyring.Active }), issuer.Waiting{})
		return err
	}, []string{"access", "exchanged", "client", "sliding", "sliding refresh", "made of foreign", "session", "renewal"}},
	"Django's key": {func(w *ways) error {
		_, err := w.RevokeKey(w.Context(), w.kid(func(k *issuer.KeyStatus) bool { return k.Alg == keyring.HS256 }), issuer.Waiting{})
		return err
	}, []string{"foreign access", "foreign refresh"}},
}

func (w *ways) end(t issuer.Target) error {
	_, err := w.Revoke(w.Context(), t)
	return err
}

// kid finds a key.
func (w *ways) kid(is func(*issuer.KeyStatus) bool) string {
	keys, err := w.ListKeys(w.Context())
	w.must(err)
	for _, k := range keys {
		if is(&k) {
			return k.KeyID
		}
	}
	w.Fatal("there is no such key")
	return ""
}

// TestEveryWayInAndOut: each way out ends what it is to end, and nothing else, at the agent that was there, at one that reads the
// log from its beginning, at one that starts from an image, and, of what lives longer than tokens, also when all revocations have
// been forgotten.
func TestEveryWayInAndOut(t *testing.T) {
	for name, out := range waysOut {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWays(t)
				if got, all := w.stands(w.agent), slices.Sorted(maps.Keys(w.in)); !slices.Equal(got, all) {
					t.Fatalf("before: %q let in, want all of %q", got, all)
				}
				w.must(out.do(w))
				var want []string
				for _, in := range slices.Sorted(maps.Keys(w.in)) {
					if !slices.Contains(out.ends, in) {
						want = append(want, in)
					}
				}
				image, _, err := w.rep.Image()
				w.must(err)
				for which, a := range map[string]*agent.Agent{"the agent": w.agent, "a new agent": w.newAgent(nil), "one from an image": w.newAgent(image)} {
					if got := w.stands(a); !slices.Equal(got, want) {
						t.Errorf("%s lets in %q, want %q", which, got, want)
					}
				}
				w.later(want)
			})
		})
	}
}

// later holds that 100 days on nothing is good again, and what lasts is as good as it was.
func (w *ways) later(before []string) {
	w.Helper()
	want := slices.DeleteFunc(slices.Clone(before), func(name string) bool { return !slices.Contains(lasting, name) })
	time.Sleep(100 * 24 * time.Hour)
	w.must(w.Step(w.Context()))
	w.must(w.Sweep(w.Context()))
	_, err := w.log.Tick(w.Context())
	w.must(err)
	synctest.Wait()
	image, _, err := w.rep.Image()
	w.must(err)
	for which, a := range map[string]*agent.Agent{"the agent": w.agent, "a new agent": w.newAgent(nil), "one from an image": w.newAgent(image)} {
		if got := w.stands(a); !slices.Equal(got, want) {
			w.Errorf("100 days later %s lets in %q, want %q", which, got, want)
		}
	}
}
