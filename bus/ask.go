package bus

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats.go"

	"github.com/sidekey/sidekey/keyring"
)

// What the signatures of a question and of its answers begin with.
const (
	contextAsk    = "sidekey-ask-1\x00"
	contextAnswer = "sidekey-answer-1\x00"
)

// answerApart is the least time between two questions that an agent looks at, forged ones included:
// whoever owns the bus can replay or invent them, and may set neither the pace nor fill the log.
const (
	answerApart = 20 * time.Millisecond
	warnApart   = 10 * time.Second
	maxWaiting  = 64 // questions; more are dropped
)

// Question asks every agent what it would say of one token. The token itself is not in it: its
// SHA-256 hash is, and what an issuer read in it once its signature was proven; or a bare jti.
//
//	{"nonce": "base64 of 16 bytes", "token": "base64 of 32 bytes", "jti": "…", "sid": "…", "sub": "…", "client_id": "…",
//	 "session_seq": 411, "kid": "…", "alg": "RS256", "iss": "…", "aud": ["…"], "iat": 1767225600, "nbf": 1767225600, "exp": 1767226500}
type Question struct {
	Nonce      []byte   `json:"nonce"`
	Token      []byte   `json:"token,omitempty"` // none: the jti is all that is asked about
	ID         string   `json:"jti,omitempty"`
	SessionID  string   `json:"sid,omitempty"`
	Subject    string   `json:"sub,omitempty"`
	ClientID   string   `json:"client_id,omitempty"`
	SessionSeq *uint64  `json:"session_seq,omitempty"`
	KeyID      string   `json:"kid,omitempty"`
	Alg        string   `json:"alg,omitempty"`
	Issuer     string   `json:"iss,omitempty"`
	Audience   []string `json:"aud,omitempty"`
	IssuedAt   float64  `json:"iat,omitempty"` // NumericDates
	NotBefore  float64  `json:"nbf,omitempty"`
	ExpiresAt  float64  `json:"exp,omitempty"`
}

// Answer is one agent's, signed with its own key: what its verify path says now, but for the
// signature, which it cannot judge without the token.
//
//	{"nonce": "…", "agent": "web-1", "run": "…", "epoch": …, "seq": 412, "status": 401, "reason": "revoked", "cached": true, "serving": false}
type Answer struct {
	Nonce []byte `json:"nonce"`
	Agent string `json:"agent"`
	Run   string `json:"run"`
	Position
	Status  int    `json:"status"` // as POST /v1/verify has it: 200, 401 or 503
	Reason  string `json:"reason,omitempty"`
	Cached  bool   `json:"cached"`  // it has proven this token before and remembers it
	Serving bool   `json:"serving"` // it has no lease, and says so all the same
}

// Asker puts questions to all agents. All members are required.
type Asker struct {
	Conn      *Conn
	Authority *keyring.Authority
	// Key gives the key that an agent signs with; it may be a few seconds old.
	Key    func(ctx context.Context, agent string) (ed25519.PublicKey, error)
	Logger hclog.Logger
}

// Ask puts q, under a nonce of its own, to all agents, and calls heard with each answer that is the
// agent's own, one at a time, until ctx ends. The error is that it could not be asked.
func (a *Asker) Ask(ctx context.Context, q Question, heard func(Answer)) error {
	q.Nonce = make([]byte, 16)
	rand.Read(q.Nonce) // never fails
	body, err := json.Marshal(q)
	if err != nil {
		return fmt.Errorf("asking the agents: %w", err)
	}
	if len(body) > maxSpoken {
		return fmt.Errorf("asking the agents: the token's claims are too long to be asked about: %d bytes", len(body))
	}
	c := a.Conn
	answers := make(chan *nats.Msg, 4096)
	sub, err := c.nc.ChanSubscribe(c.subjects.answer(Any), answers)
	if err != nil {
		return fmt.Errorf("asking the agents: %w", err)
	}
	defer sub.Unsubscribe() //nolint:errcheck // the connection may be closed already
	m := &nats.Msg{Subject: c.subjects.ask(), Data: body, Header: signatureHeader(a.Authority.Sign(append([]byte(contextAsk), body...)))}
	if err := c.nc.PublishMsg(m); err != nil {
		return fmt.Errorf("asking the agents: %w", err)
	}
	for {
		select {
		case m := <-answers:
			if ans, err := a.prove(ctx, m, q.Nonce); err == nil {
				heard(ans)
			} else {
				a.Logger.Debug("ignoring an answer", "subject", m.Subject, "error", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// prove checks that the agent itself has answered this very question.
func (a *Asker) prove(ctx context.Context, m *nats.Msg, nonce []byte) (ans Answer, err error) {
	s, err := spoken(m, m.Subject[len(a.Conn.subjects.answer("")):])
	if err != nil {
		return ans, err
	}
	if err := json.Unmarshal(s.Body, &ans); err != nil {
		return ans, err
	}
	if !bytes.Equal(ans.Nonce, nonce) || ans.Agent != s.Agent {
		return ans, fmt.Errorf("%w: it answers another question, or for another agent", ErrForged)
	}
	key, err := a.Key(ctx, ans.Agent)
	if err != nil {
		return ans, err
	}
	if !ed25519.Verify(key, append([]byte(contextAnswer), s.Body...), s.Signature) {
		return ans, ErrForged
	}
	return ans, nil
}

// Answerer is an agent's side: it answers the authority's questions and nobody else's. All members
// are required.
type Answerer struct {
	Conn      *Conn
	Authority keyring.AuthorityKey
	Agent     string
	Run       string
	Key       ed25519.PrivateKey // the agent's own
	// Judge says what the agent would say of the token; Agent, Run and Nonce are filled in here.
	Judge  func(Question) Answer
	Logger hclog.Logger
}

// Listen answers until stop is called.
func (a *Answerer) Listen() (stop func(), err error) {
	var last, warned time.Time // the subscription's one goroutine has them
	sub, err := a.Conn.nc.Subscribe(a.Conn.subjects.ask(), func(m *nats.Msg) {
		time.Sleep(answerApart - time.Since(last))
		err := a.answer(m)
		last = time.Now()
		if err != nil && last.Sub(warned) >= warnApart {
			warned = last
			a.Logger.Warn("not answering a question about a token; further ones are not reported for a while", "error", err)
		}
	})
	if err == nil {
		err = sub.SetPendingLimits(maxWaiting, maxWaiting*maxSpoken)
	}
	if err != nil {
		return nil, fmt.Errorf("listening to questions: %w", err)
	}
	return func() { sub.Unsubscribe() }, nil //nolint:errcheck // the connection may be closed already
}

func (a *Answerer) answer(m *nats.Msg) error {
	s, err := spoken(m, encodePart("")) // its sender is whoever has the authority's key
	if err != nil {
		return err
	}
	if !a.Authority.Verify(append([]byte(contextAsk), s.Body...), s.Signature) {
		return ErrForged
	}
	var q Question
	if err := json.Unmarshal(s.Body, &q); err != nil {
		return err
	}
	ans := a.Judge(q)
	ans.Nonce, ans.Agent, ans.Run = q.Nonce, a.Agent, a.Run
	body, err := json.Marshal(ans)
	if err != nil {
		return err
	}
	c := a.Conn
	return c.nc.PublishMsg(&nats.Msg{
		Subject: c.subjects.answer(encodePart(a.Agent)), Data: body, Header: signatureHeader(ed25519.Sign(a.Key, append([]byte(contextAnswer), body...))),
	})
}
