package agent_test

import (
	"crypto/sha256"
	"testing"
	"time"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// asked is the question about a token of the world's key, as an issuer puts it that has proven it.
func asked(t testing.TB, w *world, token string) bus.Question {
	t.Helper()
	tok, err := keyringtest.Ring(t, keyringtest.Issuer, keyringtest.Audience, w.key).Prove(token, keyring.AccessToken)
	if err != nil {
		t.Fatal(err)
	}
	c, sum := &tok.Claims, sha256.Sum256([]byte(token))
	q := bus.Question{
		Token: sum[:], ID: c.ID, SessionID: c.SessionID, Subject: c.Subject, ClientID: c.ClientID, KeyID: tok.KeyID, Alg: string(tok.Alg),
		Issuer: c.Issuer, Audience: c.Audience, IssuedAt: float64(c.IssuedAt), NotBefore: float64(c.NotBefore), ExpiresAt: float64(c.ExpiresAt),
	}
	if c.HasSessionSeq {
		q.SessionSeq = &c.SessionSeq
	}
	return q
}

// TestAnswerIsTheVerdict: what an agent answers an issuer is what it tells a service, for every reason
// that does not lie in the signature.
func TestAnswerIsTheVerdict(t *testing.T) {
	later := time.Now().Add(time.Hour).Unix()
	for name, tc := range map[string]struct {
		token func(*keyring.Claims)
		world func(*world)
	}{
		"good":            {},
		"expired":         {token: func(c *keyring.Claims) { c.ExpiresAt = keyring.NumericDate(time.Now().Add(-time.Minute).Unix()) }},
		"not yet":         {token: func(c *keyring.Claims) { c.NotBefore = keyring.NumericDate(time.Now().Add(time.Minute).Unix()) }},
		"other audience":  {token: func(c *keyring.Claims) { c.Audience = []string{"https://other.example"} }},
		"other issuer":    {token: func(c *keyring.Claims) { c.Issuer = "https://other.example" }},
		"jti revoked":     {token: func(c *keyring.Claims) { c.ID = "j" }, world: func(w *world) { w.apply(&bus.Revocation{ID: "j", ExpiresAt: later}) }},
		"session revoked": {token: func(c *keyring.Claims) { c.SessionID = "s" }, world: func(w *world) { w.apply(&bus.Revocation{SessionID: "s", ExpiresAt: later}) }},
		"cut off": {token: func(c *keyring.Claims) { c.Subject, c.SessionSeq, c.HasSessionSeq = "u", 1, true },
			world: func(w *world) { w.apply(&bus.Revocation{Subject: "u", Time: time.Now().Unix(), ExpiresAt: later}) }},
		"began behind the cutoff": {token: func(c *keyring.Claims) { c.Subject, c.SessionSeq, c.HasSessionSeq = "u", 99, true },
			world: func(w *world) { w.apply(&bus.Revocation{Subject: "u", Time: time.Now().Unix(), ExpiresAt: later}) }},
		"key revoked": {world: func(w *world) { w.apply(w.fact(w.key, keyring.Revoked)) }},
		"no lease":    {world: func(w *world) { w.lease.Store(nil) }},
		"lease over":  {world: func(w *world) { w.lease.Store(&lease.Lease{Length: time.Millisecond}) }},
		"serving":     {world: func(w *world) { w.lease.Store(&lease.Lease{Length: time.Millisecond, Mode: lease.Serve}) }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			edit := tc.token
			if edit == nil {
				edit = func(*keyring.Claims) {}
			}
			token := w.token(edit)
			if tc.world != nil {
				tc.world(w)
			}
			v := w.agent.Verify(token, agent.Query{})
			got := w.agent.Answer(asked(t, w, token))
			if got.Status != v.Status || got.Reason != string(v.Reason) || got.Seq != v.Seq || got.Serving != v.Serving {
				t.Errorf("Answer: got %+v, want what Verify says: %d %q at %d, serving %v", got, v.Status, v.Reason, v.Seq, v.Serving)
			}
			if v.Active() && !got.Cached {
				t.Error("Answer: a token that was accepted a moment ago is not remembered")
			}
			if other := w.agent.Answer(asked(t, w, w.token())); other.Cached {
				t.Error("Answer: a token that was never shown is remembered")
			}
		})
	}
}

// TestAnswerToABareID: only its revocation is judged.
func TestAnswerToABareID(t *testing.T) {
	w := newWorld(t)
	if got := w.agent.Answer(bus.Question{ID: "j"}); got.Status != 200 || got.Cached {
		t.Errorf("Answer before it is revoked: got %+v, want 200", got)
	}
	w.apply(&bus.Revocation{ID: "j", ExpiresAt: time.Now().Add(time.Hour).Unix()})
	if got := w.agent.Answer(bus.Question{ID: "j"}); got.Status != 401 || got.Reason != string(keyring.Revoked) || got.Seq != 2 {
		t.Errorf("Answer once it is revoked: got %+v, want 401 revoked at 2", got)
	}
}
