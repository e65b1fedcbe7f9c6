package issuer

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// askWithin is how long the agents' answers are awaited.
const askWithin = time.Second

// Asker puts questions to all agents.
type Asker interface {
	// Ask puts q to all agents and calls heard with each answer that is proven to be the agent's
	// own, one at a time, until ctx ends. *bus.Asker is one.
	Ask(ctx context.Context, q bus.Question, heard func(bus.Answer)) error
	// Vouching gives the runs that may be vouching now, by the log. *lease.Ledger does.
	Vouching() []lease.Vouching
}

// Everywhere is what the agents say of one token, and this issuer.
//
//	{"status": 401, "reason": "revoked", "seq": 412, "agents": [{"agent": "web-2", "run": "…", "epoch": …, "seq": 411,
//	 "status": 200, "cached": true, "serving": false, "dissents": true}, …], "silent": [{"agent": "web-3", "run": "…"}]}
type Everywhere struct {
	Status int            `json:"status"` // this issuer's own verdict, as POST /v1/verify has it
	Reason keyring.Reason `json:"reason,omitempty"`
	Seq    uint64         `json:"seq"`    // what it had applied
	Agents []Said         `json:"agents"` // dissenters first, then by name
	Silent []Silent       `json:"silent"` // may be vouching, and did not answer
}

// Said is what one agent's run says.
type Said struct {
	Agent    string `json:"agent"`
	Run      string `json:"run"`
	Epoch    uint64 `json:"epoch"`
	Seq      uint64 `json:"seq"`
	Status   int    `json:"status"`
	Reason   string `json:"reason,omitempty"`
	Cached   bool   `json:"cached"`   // it has proven this token, and remembers that
	Serving  bool   `json:"serving"`  // it has no lease, and says so all the same
	Dissents bool   `json:"dissents"` // it says something else than this issuer
}

// Silent is a run that holds a lease, as far as the log tells, and did not answer.
type Silent struct {
	Agent   string `json:"agent"`
	Run     string `json:"run"`
	Serving bool   `json:"serving"`           // it holds none that ends
	LeftMS  int64  `json:"left_ms,omitempty"` // until its lease has certainly ended
}

// VerifyEverywhere asks every agent what it would say of an access token, or of a bare jti; exactly
// one is given. The token does not leave this issuer, which proves its signature: the agents judge
// the rest by what is in it. The errors are *keyring.Denial, *InputError and ErrUnavailable.
func (i *Issuer) VerifyEverywhere(ctx context.Context, token, jti string) (*Everywhere, error) {
	switch {
	case (token == "") == (jti == "") || len(jti) > bus.MaxID:
		return nil, &InputError{"token, jti", fmt.Sprintf("must be exactly one of them, a jti of %d bytes at most", bus.MaxID)}
	case i.Asker == nil:
		return nil, fmt.Errorf("asking the agents: %w: this issuer has no bus", ErrUnavailable)
	}
	settle := i.vouch()
	snap := i.Replica.Snapshot()
	t := &keyring.Token{Claims: keyring.Claims{ID: jti}}
	var err error
	if token != "" {
		if t, err = i.proveForAll(snap, token); err != nil {
			return nil, err
		}
	}
	all := &Everywhere{Status: http.StatusOK, Seq: snap.Position.Seq, Agents: []Said{}, Silent: []Silent{}}
	if reason := keyring.ReasonOf(i.judge(snap, t, token != "")); reason != "" {
		all.Status, all.Reason = http.StatusUnauthorized, reason
	}
	if err := settle(); err != nil {
		return nil, fmt.Errorf("asking the agents: %w", err)
	}
	return all, i.askAll(ctx, question(t, token), all)
}

// proveForAll proves a token's signature. A key that is revoked proves it too: what the agents make
// of its tokens is asked just then.
func (i *Issuer) proveForAll(snap *replica.Snapshot, token string) (*keyring.Token, error) {
	t, err := snap.Ring.Prove(token, keyring.AccessToken)
	var denied *keyring.Denial
	if !errors.As(err, &denied) || denied.Reason != keyring.KeyRevoked {
		return t, err
	}
	for _, f := range i.Replica.Keys() {
		if f.KeyID != denied.KeyID || len(f.JWK) == 0 {
			continue
		}
		key, kerr := keyring.ParseJWK(f.JWK)
		if kerr != nil {
			return nil, err
		}
		was := keyring.KeyRecord{KeyID: f.KeyID, Alg: keyring.Alg(f.Alg), State: keyring.Active, Key: key.WithID(f.KeyID)}
		return keyring.NewRing(snap.Ring.Issuer(), snap.Ring.Audience(), was).Prove(token, keyring.AccessToken)
	}
	return nil, err
}

// judge is this issuer's own verdict. Whom the token is for is each agent's own question.
func (i *Issuer) judge(snap *replica.Snapshot, t *keyring.Token, whole bool) error {
	if whole {
		want := keyring.Expect{Type: keyring.AccessToken, Audiences: t.Claims.Audience, Leeway: i.cfg.Leeway, Now: i.now()}
		if err := snap.Ring.Check(t, want); err != nil {
			return err
		}
	}
	if ids := replica.Fingerprint(&t.Claims); i.Replica.Revoked(&ids) {
		return keyring.Deny(keyring.Revoked, t.KeyID, nil)
	}
	return nil
}

// question is what is told of a token.
func question(t *keyring.Token, token string) bus.Question {
	c := &t.Claims
	q := bus.Question{ID: c.ID}
	if token == "" {
		return q
	}
	sum := sha256.Sum256([]byte(token))
	q.Token, q.KeyID, q.Alg = sum[:], t.KeyID, string(t.Alg)
	q.SessionID, q.Subject, q.ClientID, q.Issuer, q.Audience = c.SessionID, c.Subject, c.ClientID, c.Issuer, c.Audience
	q.IssuedAt, q.NotBefore, q.ExpiresAt = float64(c.IssuedAt), float64(c.NotBefore), float64(c.ExpiresAt)
	if c.HasSessionSeq {
		q.SessionSeq = &c.SessionSeq
	}
	return q
}

// askAll gathers the agents' answers, until everybody who may be vouching has answered or
// askWithin has passed.
func (i *Issuer) askAll(ctx context.Context, q bus.Question, all *Everywhere) error {
	ask, done := context.WithTimeout(ctx, askWithin)
	defer done()
	type run struct{ agent, id string }
	awaited := make(map[run]lease.Vouching)
	for _, v := range i.Asker.Vouching() {
		awaited[run{v.Agent, v.Run}] = v
	}
	var mu sync.Mutex
	heard := make(map[run]bool)
	err := i.Asker.Ask(ask, q, func(a bus.Answer) {
		mu.Lock()
		defer mu.Unlock()
		from := run{a.Agent, a.Run}
		if heard[from] {
			return // it answered already: somebody repeats it
		}
		heard[from] = true
		all.Agents = append(all.Agents, Said{
			Agent: a.Agent, Run: a.Run, Epoch: a.Epoch, Seq: a.Seq, Status: a.Status, Reason: a.Reason, Cached: a.Cached, Serving: a.Serving,
			Dissents: a.Status != all.Status || a.Reason != string(all.Reason),
		})
		if delete(awaited, from); len(awaited) == 0 {
			done()
		}
	})
	mu.Lock()
	defer mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("asking the agents: %w", ctx.Err())
	case err != nil:
		return unavailable("asking", "the agents", err)
	}
	for from, v := range awaited {
		all.Silent = append(all.Silent, Silent{from.agent, from.id, v.Serving, v.Left.Milliseconds()})
	}
	slices.SortFunc(all.Silent, func(a, b Silent) int { return cmp.Or(strings.Compare(a.Agent, b.Agent), strings.Compare(a.Run, b.Run)) })
	slices.SortFunc(all.Agents, func(a, b Said) int {
		if a.Dissents != b.Dissents {
			return map[bool]int{true: -1, false: 1}[a.Dissents]
		}
		return cmp.Or(strings.Compare(a.Agent, b.Agent), strings.Compare(a.Run, b.Run))
	})
	return nil
}

// adminVerify is POST /admin/v1/verify.
func (i *Issuer) adminVerify(r *http.Request) (int, any, error) {
	var in struct {
		Token string `json:"token"`
		ID    string `json:"jti"`
	}
	if err := readJSON(r, &in); err != nil {
		return 0, nil, err
	}
	all, err := i.VerifyEverywhere(r.Context(), in.Token, in.ID)
	return http.StatusOK, all, err
}
