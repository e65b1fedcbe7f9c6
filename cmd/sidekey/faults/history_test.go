//go:build linux

package faults

import (
	"bufio"
	"encoding/json"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// kind is what a client asked for.
type kind string

const (
	opLogin   kind = "login"
	opRefresh kind = "refresh"
	opVerify  kind = "verify"
	opRevoke  kind = "revoke"
	opRotate  kind = "rotate"
	opUser    kind = "user"
	opStatus  kind = "status"
)

// op is one question of a client and what became of it. Start is before its first byte left, End after its last byte came.
type op struct {
	Kind   kind          `json:"kind"`
	Node   string        `json:"node"`             // who was asked
	Start  time.Duration `json:"start"`            // since the history's beginning, by one monotonic clock
	End    time.Duration `json:"end"`              //
	Status int           `json:"status"`           // HTTP; 0: there was no answer
	Reason string        `json:"reason,omitempty"` // of a refusal, or why there was no answer

	// What it was about: the access token's id, session and key, or the user.
	ID   string `json:"jti,omitempty"`
	SID  string `json:"sid,omitempty"`
	Sub  string `json:"sub,omitempty"`
	Kid  string `json:"kid,omitempty"`
	User string `json:"user,omitempty"`

	// A refresh: the token that was presented and the one that was given; a login gives its first.
	In     string `json:"in,omitempty"`
	InGen  int    `json:"in_gen,omitempty"`
	Out    string `json:"out,omitempty"`
	OutGen int    `json:"out_gen,omitempty"`

	// A revocation or rotation.
	Target    string   `json:"target,omitempty"` // "jti", "sid" or "sub": which of the above it names; "emergency"
	Confirmed bool     `json:"confirmed,omitempty"`
	Revoked   []string `json:"revoked,omitempty"` // keys
	Seq       uint64   `json:"seq,omitempty"`

	// A status.
	Run     string `json:"run,omitempty"`
	Process int    `json:"process,omitempty"` // how often it had been started before the question
	Epoch   uint64 `json:"epoch,omitempty"`
	Lease   int64  `json:"lease_ms,omitempty"`
}

// answered tells whether the one who was asked has decided: what it says then stands.
func (o *op) answered() bool { return o.Status != 0 && o.Status < 500 && o.Status != 429 }

// dark is a time in which an agent can have begun no lease: nothing that was asked after From was answered before To. Whatever it
// had ends one lease after From.
type dark struct {
	Agent    string
	From, To time.Duration // To 0: it lasts
	Why      string
}

// history is what the clients of one run have seen.
type history struct {
	began time.Time
	count atomic.Int64

	mu    sync.Mutex
	ops   []*op
	darks []*dark
	notes []string // faults, as they began and ended
}

func newHistory() *history { return &history{began: time.Now()} }

// now is the history's clock.
func (h *history) now() time.Duration { return time.Since(h.began) }

// do writes an operation down: ask fills in what came back.
func (h *history) do(o *op, ask func(*op)) *op {
	o.Start = h.now()
	ask(o)
	o.End = h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, o)
	h.count.Add(1)
	return o
}

// darken says that from now on agents can begin no lease, until the function that it gives is called: before that is ended.
func (h *history) darken(why string, agents ...*node) (light func()) {
	return h.darkenSince(h.now(), why, agents...)
}

// darkenSince is darken from a moment that is over.
func (h *history) darkenSince(from time.Duration, why string, agents ...*node) (light func()) {
	var all []*dark
	for _, a := range agents {
		all = append(all, &dark{Agent: a.name, From: from, Why: why})
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.darks = append(h.darks, all...)
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, d := range all {
			if d.To == 0 {
				d.To = h.now()
			}
		}
	}
}

func (h *history) note(text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.notes = append(h.notes, h.now().Round(time.Millisecond).String()+" "+text)
}

// of gives the operations of a kind, in the order in which they ended.
func (h *history) of(k kind) []*op {
	var all []*op
	for _, o := range h.ops {
		if o.Kind == k {
			all = append(all, o)
		}
	}
	return all
}

// keep writes the history to a file, a line an operation, and says where.
func (h *history) keep(t testing.TB) {
	f, err := os.CreateTemp("", "sidekey-history-*.jsonl")
	if err != nil {
		t.Logf("keeping the history: %v", err)
		return
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	enc := json.NewEncoder(w)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, line := range []any{h.notes, h.darks} {
		err = enc.Encode(line)
	}
	for _, o := range h.ops {
		err = enc.Encode(o)
	}
	if ferr := w.Flush(); err != nil || ferr != nil {
		t.Logf("keeping the history: %v %v", err, ferr)
	}
	t.Logf("the history is in %s", f.Name())
}
