//go:build linux

package faults

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"
)

// How long a client waits for an answer.
const (
	verifyWithin = 2 * time.Second
	issueWithin  = 4 * time.Second
	revokeWithin = 15 * time.Second
)

// token is one that an issuer gave, with what its claims say.
type token struct {
	text string
	kid  string
	ID   string `json:"jti"`
	SID  string `json:"sid"`
	Sub  string `json:"sub"`
	Gen  int    `json:"gen"`
}

// readToken reads a token's claims. It proves nothing.
func readToken(text string) (t token, err error) {
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return t, fmt.Errorf("%d parts", len(parts))
	}
	t.text = text
	var header struct{ Kid string }
	for n, into := range []any{&header, &t} {
		raw, err := base64.RawURLEncoding.DecodeString(parts[n])
		if err == nil {
			err = json.Unmarshal(raw, into)
		}
		if err != nil {
			return t, err
		}
	}
	t.kid = header.Kid
	return t, nil
}

// pair is what a login or a refresh gives.
type pair struct{ access, refresh token }

// workload is the clients of one run.
type workload struct {
	*site
	h    *history
	seed uint64

	late      bool // somebody was not back in time
	mayRefuse bool // a fault of the run may make agents refuse good tokens

	mu       sync.Mutex
	tokens   []token // to be checked again and again: the newest,
	revoked  []token // those whose revocation was acknowledged,
	steady   []token // and the newest of those that nobody revokes, but with their key
	made     []token // every access token
	doubtful []pair  // somebody ended their session, and was not answered
}

// watched bounds the tokens that are checked again and again.
const watched = 60

// do asks a node and writes it down.
func (w *workload) do(o *op, n *node, within time.Duration, method, path, bearer string, body, answer any) *op {
	o.Node = n.name
	return w.h.do(o, func(o *op) {
		status, err := n.call(context.Background(), within, method, path, bearer, body, answer)
		o.Status = status
		if err != nil {
			o.Status, o.Reason = 0, err.Error()
		}
	})
}

func (w *workload) anyIssuer(rng *rand.Rand) *node { return w.issuers[rng.IntN(len(w.issuers))] }

// login logs a user in. ok is false where no tokens came.
func (w *workload) login(n *node, user string) (p pair, ok bool) {
	var answer struct{ Access, Refresh string }
	o := &op{Kind: opLogin, User: user, Node: n.name}
	w.h.do(o, func(o *op) {
		status, err := n.call(context.Background(), issueWithin, "POST", "/api/token/", "", map[string]string{"username": user, "password": password}, &answer)
		o.Status = status
		if p, ok = readPair(answer.Access, answer.Refresh); ok && err == nil && status == 200 {
			o.ID, o.SID, o.Sub, o.Kid, o.Out, o.OutGen = p.access.ID, p.access.SID, p.access.Sub, p.access.kid, p.refresh.ID, p.refresh.Gen
		} else {
			ok = false
		}
	})
	if ok {
		w.watch(p.access)
	}
	return p, ok
}

const password = "wonderland"

func readPair(access, refresh string) (p pair, ok bool) {
	var err error
	if p.access, err = readToken(access); err != nil {
		return p, false
	}
	p.refresh, err = readToken(refresh)
	return p, err == nil
}

// refresh presents a refresh token. ok is false where no tokens came.
func (w *workload) refresh(n *node, t token) (p pair, o *op) {
	var answer struct{ Access, Refresh string }
	o = &op{Kind: opRefresh, Node: n.name, SID: t.SID, Sub: t.Sub, In: t.ID, InGen: t.Gen}
	w.h.do(o, func(o *op) {
		status, err := n.call(context.Background(), issueWithin, "POST", "/api/token/refresh/", "", map[string]string{"refresh": t.text}, &answer)
		o.Status = status
		if err != nil {
			o.Reason = err.Error()
		}
		var ok bool
		switch p, ok = readPair(answer.Access, answer.Refresh); {
		case status == 200 && ok && err == nil:
			o.ID, o.Kid, o.Out, o.OutGen = p.access.ID, p.access.kid, p.refresh.ID, p.refresh.Gen
		case status == 200:
			o.Status = 0 // it broke off
		}
	})
	if o.Out != "" {
		w.watch(p.access)
	}
	return p, o
}

// verify asks an agent about a token.
func (w *workload) verify(a *node, t token) *op {
	var answer struct{ Reason string }
	o := w.do(&op{Kind: opVerify, ID: t.ID, SID: t.SID, Sub: t.Sub, Kid: t.kid}, a, verifyWithin, "POST", "/v1/verify", "", map[string]string{"token": t.text}, &answer)
	if o.Reason == "" {
		o.Reason = answer.Reason
	}
	return o
}

// revoke withdraws what target names of a token ("jti", "sid" or "sub") and waits for the fleet.
func (w *workload) revoke(n *node, t token, target string) *op {
	var answer struct {
		Seq       uint64
		Confirmed bool
	}
	body := map[string]string{target: map[string]string{"jti": t.ID, "sid": t.SID, "sub": t.Sub}[target], "wait": "fleet", "timeout": (w.lease + 8*time.Second).String()}
	o := &op{Kind: opRevoke, ID: t.ID, SID: t.SID, Sub: t.Sub, Target: target}
	o.Node = n.name
	return w.h.do(o, func(o *op) {
		status, err := n.call(context.Background(), w.lease+revokeWithin, "POST", "/admin/v1/revocations", w.admin, body, &answer)
		if o.Status = status; err != nil {
			o.Status, o.Reason = 0, err.Error()
		}
		o.Seq, o.Confirmed = answer.Seq, o.Status == 200 && answer.Confirmed
	})
}

// watch has a token checked by the clients that do nothing else.
func (w *workload) watch(t token) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.made = append(w.made, t)
	if w.tokens = append(w.tokens, t); len(w.tokens) > watched {
		w.tokens = w.tokens[1:]
	}
}

func (w *workload) anyToken(rng *rand.Rand) (token, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := rng.IntN(4); n == 0 && len(w.steady) > 0 {
		return w.steady[rng.IntN(len(w.steady))], true
	} else if n == 1 && len(w.revoked) > 0 {
		return w.revoked[rng.IntN(len(w.revoked))], true
	}
	if len(w.tokens) == 0 {
		return token{}, false
	}
	return w.tokens[rng.IntN(len(w.tokens))], true
}

// keepSteady has a token that nobody revokes checked again and again, until newer ones take its place.
func (w *workload) keepSteady(t token) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.steady = append(w.steady, t)
	w.steady = w.steady[max(len(w.steady)-3, 0):]
}

// prepare makes the users and the tokens that nobody revokes.
func (w *workload) prepare() {
	w.Helper()
	for n := range w.families() {
		w.addUser(w.issuers[0], familyUser(n))
	}
	w.addUser(w.issuers[0], "victim")
	w.addUser(w.issuers[0], "leaver")
	w.addUser(w.issuers[0], "steady")
	var p pair
	w.eventually("the steady user logs in", func() (ok bool) { p, ok = w.login(w.issuers[0], "steady"); return ok })
	w.keepSteady(p.access)
	for _, a := range w.agents { // everybody holds the key by now, or soon
		w.eventually(a.name+" accepts a token", func() bool { return w.verify(a, p.access).Status == 200 })
	}
}

// families is how many clients refresh at once.
func (w *workload) families() int { return w.ofMany(3) }

// ofMany is how many clients of a kind there are.
func (w *workload) ofMany(n int) int {
	if w.few {
		return 1
	}
	return n
}

func familyUser(n int) string { return fmt.Sprint("user-", n) }

func (w *workload) addUser(n *node, name string) *op {
	return w.do(&op{Kind: opUser, User: name}, n, issueWithin, "POST", "/admin/v1/users", w.admin, map[string]string{"username": name, "password": password}, nil)
}

// start starts the clients, which go on until ctx ends; wait for the WaitGroup that it gives.
func (w *workload) start(ctx context.Context) *sync.WaitGroup {
	var wg sync.WaitGroup
	client := func(name string, pause time.Duration, step func(*rand.Rand)) {
		rng := newRand(w.seed, name)
		if w.few {
			pause *= 2
		}
		wg.Go(func() {
			for ctx.Err() == nil {
				step(rng)
				rest(ctx, pause/2+time.Duration(rng.Int64N(int64(pause))))
			}
		})
	}
	for n := range w.families() {
		f := &familyClient{workload: w, user: familyUser(n)}
		client(f.user, 30*time.Millisecond, f.step)
	}
	for _, a := range w.agents {
		for n := range w.ofMany(2) {
			client(fmt.Sprint(a.name, n), 20*time.Millisecond, func(rng *rand.Rand) {
				if t, ok := w.anyToken(rng); ok {
					w.verify(a, t)
				}
			})
		}
		client(a.name+" status", 100*time.Millisecond, func(*rand.Rand) { w.status(a) })
	}
	for n := range w.ofMany(2) {
		client(fmt.Sprint("revoker ", n), 100*time.Millisecond, w.revokeOne)
	}
	client("rotator", 700*time.Millisecond, w.rotate)
	client("users", time.Second, func(rng *rand.Rand) {
		w.addUser(w.anyIssuer(rng), fmt.Sprint("new-", rng.Uint32()))
	})
	return &wg
}

// rest sleeps, or until ctx ends.
func rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (w *workload) status(a *node) *op {
	var answer struct {
		Run     string
		Epoch   uint64
		Applied uint64 `json:"applied_seq"`
		Lease   int64  `json:"lease_ms"`
	}
	o := &op{Kind: opStatus, Node: a.name, Process: a.processes()}
	return w.h.do(o, func(o *op) {
		status, err := a.call(context.Background(), verifyWithin, "GET", "/v1/status", "", nil, &answer)
		if o.Status = status; err != nil {
			o.Status, o.Reason = 0, err.Error()
		}
		o.Run, o.Epoch, o.Seq, o.Lease = answer.Run, answer.Epoch, answer.Applied, answer.Lease
	})
}

// revokeOne makes a token, has agents remember it, revokes it, and asks everybody.
func (w *workload) revokeOne(rng *rand.Rand) {
	p, ok := w.login(w.anyIssuer(rng), "victim")
	if !ok {
		return
	}
	for _, a := range w.agents {
		if rng.IntN(2) == 0 {
			w.verify(a, p.access)
		}
	}
	target := []string{"jti", "sid", "jti", "sid", "sub"}[rng.IntN(5)]
	o := w.revoke(w.anyIssuer(rng), p.access, target)
	if o.Seq != 0 {
		w.mu.Lock()
		w.revoked = append(w.revoked, p.access)
		w.mu.Unlock()
	}
	if o.Confirmed {
		for _, a := range w.agents {
			w.verify(a, p.access)
		}
	} else if target == "sid" && !o.answered() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.doubtful = append(w.doubtful, p)
	}
}

// rotate rotates the keys; one time in six it revokes those that signed.
func (w *workload) rotate(rng *rand.Rand) {
	n := w.anyIssuer(rng)
	body := map[string]any{"wait": "fleet", "timeout": "8s"}
	if rng.IntN(6) == 0 {
		body["emergency"] = true
	} else if rng.IntN(2) == 0 {
		body = map[string]any{"wait": "none"} // the next one comes at once
	}
	w.rotateBy(n, body)
	if p, ok := w.login(w.anyIssuer(rng), "steady"); ok { // by the new key, at once, everywhere
		w.keepSteady(p.access)
		for _, a := range w.agents {
			w.verify(a, p.access)
		}
	}
}

// rotateBy asks an issuer for a rotation, with such a body.
func (w *workload) rotateBy(n *node, body map[string]any) {
	o := &op{Kind: opRotate, Node: n.name}
	if body["emergency"] == true {
		o.Target = "emergency"
	}
	var answer struct {
		Kid       string
		Seq       uint64
		Confirmed bool
		Revoked   []string
	}
	w.h.do(o, func(o *op) {
		status, err := n.call(context.Background(), w.lease+revokeWithin, "POST", "/admin/v1/keys/rotate", w.admin, body, &answer)
		if o.Status = status; err != nil {
			o.Status, o.Reason = 0, err.Error()
		}
		o.Kid, o.Seq, o.Revoked, o.Confirmed = answer.Kid, answer.Seq, answer.Revoked, o.Status == 200 && answer.Confirmed
	})
}

// eventually waits until something holds.
func (s *site) eventually(what string, holds func() bool) {
	s.Helper()
	deadline, look := time.After(patience), time.NewTicker(20*time.Millisecond)
	defer look.Stop()
	for !holds() {
		select {
		case <-look.C:
		case <-deadline:
			s.Fatalf("after %s still not: %s", patience, what)
		}
	}
}
