package agent_test

import (
	"sync"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// TestCachedIsLookedAtAgain takes something away from a token that is cached, and wants it refused.
func TestCachedIsLookedAtAgain(t *testing.T) {
	exp := time.Now().Add(time.Hour).Unix()
	for _, c := range []struct {
		name   string
		reason keyring.Reason
		happen func(w *world)
	}{
		{"jti revoked", keyring.Revoked, func(w *world) { w.apply(&bus.Revocation{ID: "j", ExpiresAt: exp}) }},
		{"sid revoked", keyring.Revoked, func(w *world) { w.apply(&bus.Revocation{SessionID: "s", ExpiresAt: exp}) }},
		{"sub cut off", keyring.Revoked, func(w *world) { w.apply(&bus.Revocation{Subject: "alice", ExpiresAt: exp}) }},
		{"client cut off", keyring.Revoked, func(w *world) { w.apply(&bus.Revocation{ClientID: "sidekey", ExpiresAt: exp}) }},
		{"key revoked", keyring.KeyRevoked, func(w *world) { w.apply(w.fact(w.key, keyring.Revoked)) }},
		{"key retired", keyring.UnknownKey, func(w *world) {
			w.apply(w.fact(w.key, keyring.Retiring), w.fact(w.key, keyring.Retired))
		}},
		{"key retiring before the token was made", keyring.UnknownKey, func(w *world) {
			f := w.fact(w.key, keyring.Retiring)
			f.RetiredAt = time.Now().Add(-time.Minute).Unix()
			w.apply(f)
		}},
		{"key dropped by expiry", keyring.UnknownKey, func(w *world) {
			f := w.fact(w.key, keyring.Retiring)
			f.ExpiresAt = time.Now().Add(time.Minute).Unix()
			w.apply(f, &bus.Tick{Time: time.Now().Add(2 * time.Minute).UnixMilli(), Issuer: "i", Chain: make([]byte, 32)})
		}},
		{"expired by the clock", keyring.Expired, func(w *world) { w.skew.Store(int64(time.Hour + 6*time.Second)) }},
		{"expired by the log's clock, the own being behind", keyring.Expired, func(w *world) {
			w.skew.Store(int64(-time.Hour))
			w.apply(&bus.Tick{Time: time.Now().Add(time.Hour + 6*time.Second).UnixMilli(), Issuer: "i", Chain: make([]byte, 32)})
		}},
		{"clock set back before nbf", keyring.NotYetValid, func(w *world) { w.skew.Store(int64(-time.Hour)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			h := w.listen("mem")
			token := w.token(func(c *keyring.Claims) { c.ID, c.SessionID = "j", "s" })
			for range 2 {
				if got := h.verify(token); got.StatusCode != 200 {
					t.Fatalf("before: got %d %s, want 200", got.StatusCode, got.body)
				}
			}
			c.happen(w)
			for range 2 {
				checkDenied(t, w, h.verify(token), c.reason)
			}
		})
	}
}

// TestCutoffSparesTheNext logs a user out everywhere: a session begun after it is accepted.
func TestCutoffSparesTheNext(t *testing.T) {
	w := newWorld(t)
	older := w.token()
	w.apply(&bus.Revocation{Subject: "alice", ExpiresAt: time.Now().Add(time.Hour).Unix(), Time: time.Now().Unix()})
	newer := w.token(func(c *keyring.Claims) { c.SessionSeq = w.seq })
	for range 2 {
		if v := w.agent.Verify(older, agent.Query{}); v.Reason != keyring.Revoked || v.Seq != w.seq {
			t.Errorf("older: got %d %q at %d, want revoked at %d", v.Status, v.Reason, v.Seq, w.seq)
		}
		if v := w.agent.Verify(newer, agent.Query{}); !v.Active() {
			t.Errorf("newer: got %d %q, want 200", v.Status, v.Reason)
		}
	}
}

// TestKeyWrittenAnew brings another key under the kid of the one that a cached token was proven
// by: what that one has proven counts no more.
func TestKeyWrittenAnew(t *testing.T) {
	w := newWorld(t)
	first, err := keyring.Generate(keyring.EdDSA, 0)
	if err != nil {
		t.Fatal(err)
	}
	second, err := keyring.Generate(keyring.EdDSA, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.apply(w.fact(first.WithID("k"), keyring.Active))
	token := w.tokenOf(first.WithID("k"), keyring.AccessToken)
	for range 2 {
		if v := w.agent.Verify(token, agent.Query{}); !v.Active() {
			t.Fatalf("before: got %d %q, want 200", v.Status, v.Reason)
		}
	}
	w.apply(w.fact(second.WithID("k"), keyring.Active))
	if v := w.agent.Verify(token, agent.Query{}); v.Reason != keyring.BadSignature {
		t.Errorf("after: got %d %q, want bad_signature", v.Status, v.Reason)
	}
}

// TestCacheHoldsNoRefusals offers tokens that are refused: none may take a place in the cache.
func TestCacheHoldsNoRefusals(t *testing.T) {
	w := newWorld(t)
	for _, r := range refusals() {
		if r.reason == keyring.Revoked {
			continue // proven, and so remembered; refused at each look
		}
		w.agent.Verify(r.token(w), agent.Query{})
	}
	if got := w.agent.Status().Cache.Entries; got != 0 {
		t.Errorf("entries: got %d, want 0", got)
	}
}

func TestCacheIsBounded(t *testing.T) {
	w := newWorld(t, func(c *agent.Config) { c.CacheSize = 3 })
	for range 10 {
		if v := w.agent.Verify(w.token(), agent.Query{}); !v.Active() {
			t.Fatalf("got %d %q, want 200", v.Status, v.Reason)
		}
	}
	if got := w.agent.Status().Cache.Entries; got != 3 {
		t.Errorf("entries: got %d, want 3", got)
	}
}

// TestCacheKeyIsACopy changes the bytes of a token after it was verified, as the next request on
// a connection does to the buffer. If the cache had kept them, the new bytes would be vouched for.
func TestCacheKeyIsACopy(t *testing.T) {
	w := newWorld(t)
	token := w.token()
	forged := token[:len(token)-4] + "AAAA"
	var ctx fasthttp.RequestCtx
	ctx.Init(&fasthttp.Request{}, nil, nil)
	send := func(token string) int {
		// The same buffers serve both requests: the header's and the body's.
		ctx.Response.Reset()
		ctx.Request.Header.SetMethod("POST")
		ctx.Request.Header.SetRequestURI("/v1/verify")
		ctx.Request.Header.SetContentType("application/json")
		ctx.Request.SetBodyString(`{"token":"` + token + `"}`)
		w.agent.Handler()(&ctx)
		return ctx.Response.StatusCode()
	}
	if got := send(token); got != 200 {
		t.Fatalf("first: got %d %s, want 200", got, ctx.Response.Body())
	}
	body := ctx.Request.Body()
	copy(body[len(`{"token":"`):], forged) // in place, under whatever kept it
	if v := w.agent.Verify(forged, agent.Query{}); v.Active() {
		t.Fatal("a forged token was accepted: the cache's key lies in a request's buffer")
	}
	if v := w.agent.Verify(token, agent.Query{}); !v.Active() {
		t.Errorf("the good token: got %d %q, want 200", v.Status, v.Reason)
	}
	if got := send(forged); got != 401 {
		t.Errorf("forged, in the same buffer: got %d, want 401", got)
	}
	if c := w.agent.Status().Cache; c.Entries != 1 || c.Hits != 1 {
		t.Errorf("cache: got %+v, want one entry, found once", c)
	}
}

// TestManyAtOnce verifies, revokes and rotates at the same time, for the race detector; after a
// revocation has been applied no goroutine may accept its token.
func TestManyAtOnce(t *testing.T) {
	w := newWorld(t, func(c *agent.Config) { c.CacheSize = 8 })
	const n = 32
	var tokens [n]string
	var gone [n]chan struct{}
	for i := range tokens {
		tokens[i] = w.token(func(c *keyring.Claims) { c.ID = string(rune('A' + i)) })
		gone[i] = make(chan struct{})
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range tokens {
				w.agent.Verify(tokens[i], agent.Query{})
				<-gone[i]
				if v := w.agent.Verify(tokens[i], agent.Query{}); v.Reason != keyring.Revoked {
					t.Errorf("token %d: got %d %q after its revocation was applied, want revoked", i, v.Status, v.Reason)
				}
			}
		})
	}
	for i := range tokens {
		w.apply(&bus.Revocation{ID: string(rune('A' + i)), ExpiresAt: time.Now().Add(time.Hour).Unix()})
		if i == n/2 {
			w.apply(w.fact(keyringtest.EC(t), keyring.Active))
		}
		close(gone[i])
	}
	wg.Wait()
}

func TestVerifyCachedDoesNotAllocate(t *testing.T) {
	w := newWorld(t)
	token := w.token()
	for _, q := range []agent.Query{{}, {Audience: keyringtest.Audience, Scope: "read write", AtLeastSeq: 1}} {
		if got := testing.AllocsPerRun(100, func() { w.agent.Verify(token, q) }); got != 0 {
			t.Errorf("Verify(cached, %+v): got %v allocations, want 0", q, got)
		}
	}
}

// forgetful has dropped the revocations of all tokens up to a time that the snapshot does not know yet.
type forgetful struct {
	*replica.Replica
	until int64
}

func (f forgetful) Forgotten(exp int64) bool { return exp <= f.until }

// TestForgottenIsExpired asks for a token whose revocation may just have been dropped (PROTOCOL 15).
func TestForgottenIsExpired(t *testing.T) {
	w := newWorld(t)
	exp := time.Now().Add(time.Hour).Truncate(time.Second)
	token := w.token(func(c *keyring.Claims) { c.ExpiresAt = keyring.At(exp) + 0.5 })
	for until, want := range map[int64]keyring.Reason{exp.Unix() + 5: "", exp.Unix() + 6: keyring.Expired} { // the leeway is 5 s
		w.build(forgetful{w.rep, until})
		for range 2 {
			if v := w.agent.Verify(token, agent.Query{}); v.Reason != want {
				t.Errorf("exp %d, dropped until %d: got %d %q, want %q", exp.Unix(), until, v.Status, v.Reason, want)
			}
		}
	}
}
