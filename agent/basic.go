package agent

import (
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// Passwords tells whether a password is right: *bus.BasicChecker, which asks an issuer. An error means that nobody
// knows. It bounds how much it asks at once, and returns when ctx ends.
type Passwords interface {
	Check(ctx context.Context, req bus.BasicRequest) (bus.BasicAnswer, error)
}

// basicPatience is how long a request waits for an issuer.
const basicPatience = 5 * time.Second

// basicWay is Authorization: Basic (RFC 7617): an issuer says whether the password is right. No password is kept here, nor a
// hash of one: a yes is remembered under an HMAC with a key of this process, for a minute at most, and not beyond a
// revocation of the user.
type basicWay struct {
	*Agent
	place  int
	asks   Passwords
	memory *memory
	held   *lru.Cache[memoryKey, time.Time] // until when an issuer wants to hear no more of a name from there
	flight singleflight.Group               // one question at once about one name and password
	text   string
}

func (a *Agent) newBasic(place int, asks Passwords) (way, error) {
	if asks == nil {
		return nil, errors.New("there is nobody who could be asked about passwords")
	}
	w := &basicWay{Agent: a, place: place, asks: asks, text: `Basic realm="` + a.cfg.Realm + `", charset="UTF-8"`}
	var err error
	if w.memory, err = newMemory(a.cfg.CacheSize, maxMemory); err != nil {
		return nil, err
	}
	w.held, err = lru.New[memoryKey, time.Time](a.cfg.CacheSize)
	return w, err
}

func (w *basicWay) judge(at *view, r *Request, d *Decision) step {
	text, mine := after(r.authorization, "basic")
	if !mine {
		return notMine
	}
	username, password, ok := readBasic(text)
	switch {
	case text == "":
		d.refuse(keyring.Deny(keyring.Missing, "", nil))
		return decided
	case !ok:
		d.refuse(keyring.Deny(keyring.Malformed, "", nil))
		return decided
	case r.proto != "https" && !r.loopback():
		d.forbid(Insecure)
		return decided
	}
	if ans := r.answer(w.place); ans != nil {
		return w.judgeAnswer(at, ans, d)
	}
	key := w.memory.sum(username, password)
	if who := w.memory.get(key, w.now()); who != nil {
		if w.stands(at, &who.Principal, &who.ids) == nil {
			d.grant(&who.Principal)
			return decided
		}
		w.memory.who.Remove(key) // the user was revoked since: is the password still right?
	}
	return asks
}

// challenge is left out for a page's own script: a browser would open its dialog.
func (w *basicWay) challenge(r *Request, _ *Decision) string {
	if r.script() {
		return ""
	}
	return w.text
}

// readBasic reads user name and password (RFC 7617 §2): UTF-8, as our challenge says, without control characters.
func readBasic(text string) (username, password string, ok bool) {
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || !utf8.Valid(b) {
		return "", "", false
	}
	username, password, ok = strings.Cut(string(b), ":")
	control := func(r rune) bool { return r < ' ' || r == 0x7f }
	return username, password, ok && username != "" && !strings.ContainsFunc(string(b), control)
}

func (w *basicWay) ask(r *Request, _ uint64) answered {
	text, _ := after(r.authorization, "basic")
	username, password, _ := readBasic(text)
	req := bus.BasicRequest{Username: username, Password: password}
	if r.client.IsValid() {
		req.Address = r.client.String()
	}
	since := w.now()
	place := w.memory.sum(username, "", req.Address)
	if until, ok := w.held.Get(place); ok {
		if left := until.Sub(since); left > 0 {
			return limited(left)
		}
		w.held.Remove(place)
	}
	key := w.memory.sum(username, password)
	got, err, _ := w.flight.Do(string(key[:])+req.Address, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.Background(), basicPatience)
		defer cancel()
		return w.asks.Check(ctx, req)
	})
	if err != nil {
		return w.unknown(MethodBasic, r, err)
	}
	ans := got.(bus.BasicAnswer)
	switch ans.Outcome {
	case bus.BasicOK:
		return w.right(r, key, &ans, since)
	case bus.BasicRefused:
		return refused(&Refusal{Reason: BadPassword})
	case bus.BasicLimited:
		wait := max(time.Duration(ans.RetryAfter)*time.Second, time.Second)
		w.held.Add(place, since.Add(wait))
		return limited(wait)
	}
	return w.unknown(MethodBasic, r, errors.New("the issuer says "+string(ans.Outcome)))
}

// right takes in a principal whose password is right, and remembers it for as long as the issuer allows. The user's
// cutoffs behind what the issuer had applied refuse it, here and from memory.
func (w *basicWay) right(r *Request, key memoryKey, ans *bus.BasicAnswer, since time.Time) answered {
	p := Principal{Subject: ans.Subject, Scope: ans.Scope, Roles: ans.Roles, Client: ans.ClientID, Claims: map[string]any{"username": ans.Username}}
	got := w.accept(MethodBasic, r, p, ans.Seq)
	if got.who != nil {
		w.memory.add(key, got.who, since, time.Duration(ans.Life)*time.Second)
	}
	return got
}

func limited(wait time.Duration) answered {
	return answered{verdict: Verdict{Status: http.StatusTooManyRequests, Reason: Limited, Description: sentences[Limited]}, retry: wait}
}
