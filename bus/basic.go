package bus

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sidekey/sidekey/keyring"
)

// What the signatures of a question about a password and of its answer begin with, and its box's info.
const (
	contextBasicRequest = "sidekey-basic-request-1\x00"
	contextBasicAnswer  = "sidekey-basic-answer-1\x00"
	contextBasicBox     = "sidekey-basic-box-1"
)

// Bounds of a user name and password, in bytes, and of what is said about them.
const (
	MaxBasicUsername = 255
	MaxBasicPassword = 4096
	maxBasicAddress  = 64
	// paddedBasic is the length of what is sealed, whatever is in it: the length of a box tells nothing.
	paddedBasic = 3*2 + MaxBasicUsername + MaxBasicPassword + maxBasicAddress
	// MaxBasicLife bounds how long an agent may go by an answer.
	MaxBasicLife = 60 * time.Second
	basicWithin  = 10 * time.Second // for the answer, where ctx allows longer
)

// ErrBasic means that no issuer could be asked whether a password is right, or none has answered as it
// should: neither yes nor no is known.
var ErrBasic = errors.New("no issuer has said whether the password is right")

// BasicRequest is a user name and a password, as somebody presented them to an agent. It prints as nothing.
type BasicRequest struct {
	Username string // MaxBasicUsername at most
	Password string // MaxBasicPassword at most
	Address  string // of the client, for its limit; "": not known
}

// String keeps a password out of logs.
func (BasicRequest) String() string { return "(user name and password)" }

// GoString is String.
func (r BasicRequest) GoString() string { return r.String() }

// BasicOutcome is what an issuer says of a password.
type BasicOutcome string

// The outcomes.
const (
	BasicOK          BasicOutcome = "ok"
	BasicRefused     BasicOutcome = "refused"     // no active user has this name and password
	BasicLimited     BasicOutcome = "limited"     // too many attempts for this name, or from there
	BasicBusy        BasicOutcome = "busy"        // the issuers have too much to do
	BasicUnavailable BasicOutcome = "unavailable" // the issuer cannot decide now
)

// BasicAnswer is an issuer's answer, signed by the authority over contextBasicAnswer and the JSON. Of the
// principal's members none is set unless Outcome is ok.
//
//	{"nonce": "base64 of 16 bytes", "agent": "web-1", "run": "…", "asked": "base64 of 32 bytes", "outcome": "ok",
//	 "retry_after": 0, "sub": "0197…", "username": "alice", "client_id": "sidekey", "scope": "read", "roles": ["staff"],
//	 "seq": 411, "life": 60}
type BasicAnswer struct {
	Nonce      []byte       `json:"nonce"`
	Agent      string       `json:"agent"`
	Run        string       `json:"run"`
	Asked      []byte       `json:"asked"` // SHA-256 of the request's body
	Outcome    BasicOutcome `json:"outcome"`
	RetryAfter int          `json:"retry_after,omitempty"` // seconds; limited and busy

	Subject  string   `json:"sub,omitempty"`
	Username string   `json:"username,omitempty"`
	ClientID string   `json:"client_id,omitempty"`
	Scope    string   `json:"scope,omitempty"`
	Roles    []string `json:"roles,omitempty"`
	// Seq is the sequence that the issuer had applied before it looked, as a token's session_seq: a cutoff
	// of the subject or client behind it refuses what the answer says.
	Seq uint64 `json:"seq,omitempty"`
	// Life is for how many seconds, counted from before the question was asked, the answer may be gone by;
	// MaxBasicLife at most.
	Life int `json:"life,omitempty"`
}

// basicRequest is the body of a question, on <prefix>.basic.<agent>, signed with the agent's key. The box
// holds user name, password and address, each behind its length in two bytes, and then zeros up to
// paddedBasic; its info binds it to all the other members.
//
//	{"nonce": "base64 of 16 bytes", "agent": "web-1", "run": "…", "time": 1767225600123, "key": "0b6f…", "box": "base64"}
type basicRequest struct {
	Nonce []byte `json:"nonce"`
	Agent string `json:"agent"`
	Run   string `json:"run"`
	Time  int64  `json:"time"` // the log's, as the agent has applied it, milliseconds
	Key   string `json:"key"`  // SealingFact.ID
	Box   []byte `json:"box"`
}

func (r *basicRequest) info() [][]byte {
	return [][]byte{[]byte(contextBasicBox), []byte(r.Key), []byte(r.Agent), []byte(r.Run), r.Nonce, binary.BigEndian.AppendUint64(nil, uint64(r.Time))}
}

// BasicChecker is an agent's side: it asks the issuers whether a password is right. All members are
// required. It may be used by any goroutine.
type BasicChecker struct {
	Conn      *Conn
	Authority keyring.AuthorityKey
	Agent     string
	Run       string
	Key       ed25519.PrivateKey // the agent's own
	// Sealing gives the issuers' newest sealing key, nil: there is none, and the log's time, as this agent has
	// applied them.
	Sealing func() (*SealingFact, time.Time)

	asking atomic.Int64
}

// Check asks one issuer, under a nonce of its own, and believes none but the authority's answer to this very
// question. The error is ErrBasic: nothing is known then. A name or password that is too long for anybody's
// is refused without asking, and one too many at once is answered "busy". The password is sent sealed to the issuers' key.
func (b *BasicChecker) Check(ctx context.Context, req BasicRequest) (BasicAnswer, error) {
	if len(req.Username) > MaxBasicUsername || len(req.Password) > MaxBasicPassword {
		return BasicAnswer{Outcome: BasicRefused}, nil
	}
	if b.asking.Add(1) > maxBasicAsking {
		b.asking.Add(-1)
		return BasicAnswer{Outcome: BasicBusy, RetryAfter: 1}, nil
	}
	defer b.asking.Add(-1)
	ctx, cancel := context.WithTimeout(ctx, basicWithin)
	defer cancel()
	ans, err := b.ask(ctx, req)
	if err == nil && ans.Outcome == BasicUnavailable {
		ans, err = b.ask(ctx, req) // perhaps of another issuer
	}
	return ans, err
}

// ask puts one question.
func (b *BasicChecker) ask(ctx context.Context, req BasicRequest) (BasicAnswer, error) {
	body, asked, err := b.request(req)
	if err != nil {
		return BasicAnswer{}, fmt.Errorf("%w: %w", ErrBasic, err)
	}
	c := b.Conn
	m, err := c.nc.RequestMsgWithContext(ctx, &nats.Msg{
		Subject: c.subjects.basic(encodePart(b.Agent)), Data: body, Header: signatureHeader(ed25519.Sign(b.Key, append([]byte(contextBasicRequest), body...))),
	})
	if err != nil {
		return BasicAnswer{}, fmt.Errorf("%w: %w; is an issuer up?", ErrBasic, err)
	}
	ans, err := b.prove(m, body, asked)
	if err != nil {
		return BasicAnswer{}, fmt.Errorf("%w: %w", ErrBasic, err)
	}
	return ans, nil
}

// request makes a question.
func (b *BasicChecker) request(req BasicRequest) (body []byte, asked *basicRequest, err error) {
	key, at := b.Sealing()
	if key == nil {
		return nil, nil, errors.New("the log has no sealing key of the issuers yet; is an issuer of this version up?")
	}
	asked = &basicRequest{Nonce: make([]byte, 16), Agent: b.Agent, Run: b.Run, Time: at.UnixMilli(), Key: key.ID}
	rand.Read(asked.Nonce) // never fails
	plain := padBasic(req)
	defer clear(plain)
	if asked.Box, err = keyring.SealTo(key.Public, plain, asked.info()...); err != nil {
		return nil, nil, err
	}
	body, err = json.Marshal(asked)
	return body, asked, err
}

// prove checks that the authority has answered this very question.
func (b *BasicChecker) prove(m *nats.Msg, body []byte, asked *basicRequest) (ans BasicAnswer, err error) {
	s, err := spokenUpTo(m, encodePart(b.Agent), maxBasicAnswer)
	if err != nil {
		return ans, err
	}
	if !b.Authority.Verify(append([]byte(contextBasicAnswer), s.Body...), s.Signature) {
		return ans, ErrForged
	}
	if err := json.Unmarshal(s.Body, &ans); err != nil {
		return BasicAnswer{}, err
	}
	sum := sha256.Sum256(body)
	if !bytes.Equal(ans.Nonce, asked.Nonce) || ans.Agent != b.Agent || ans.Run != b.Run || !bytes.Equal(ans.Asked, sum[:]) {
		return BasicAnswer{}, fmt.Errorf("%w: it answers another question, or another agent's", ErrForged)
	}
	return ans, ans.check()
}

func (a *BasicAnswer) check() error {
	switch a.Outcome {
	case BasicOK:
		if a.Subject == "" || a.Life < 0 || a.Life > int(MaxBasicLife/time.Second) {
			return fmt.Errorf("an answer for %q that lives %d s", a.Subject, a.Life)
		}
		return nil
	case BasicRefused, BasicLimited, BasicBusy, BasicUnavailable:
		if a.Subject != "" || a.RetryAfter < 0 {
			return errors.New("an answer that refuses somebody and names them")
		}
		return nil
	}
	return fmt.Errorf("an answer with outcome %q", a.Outcome)
}

// padBasic gives what is sealed. The parts must be within their bounds, but for the address, which is cut.
func padBasic(req BasicRequest) []byte {
	b := make([]byte, 0, paddedBasic)
	for _, part := range []string{req.Username, req.Password, req.Address[:min(len(req.Address), maxBasicAddress)]} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(part)))
		b = append(b, part...)
	}
	return b[:paddedBasic]
}

var errBasicBox = errors.New("the box does not hold a user name and a password")

// unpadBasic reads what padBasic wrote, and nothing else.
func unpadBasic(b []byte) (req BasicRequest, err error) {
	if len(b) != paddedBasic {
		return req, errBasicBox
	}
	for _, part := range []struct {
		to      *string
		longest int
	}{{&req.Username, MaxBasicUsername}, {&req.Password, MaxBasicPassword}, {&req.Address, maxBasicAddress}} {
		n := int(binary.BigEndian.Uint16(b))
		if b = b[2:]; n > part.longest {
			return BasicRequest{}, errBasicBox
		}
		*part.to, b = string(b[:n]), b[n:]
	}
	if len(bytes.Trim(b, "\x00")) > 0 {
		return BasicRequest{}, errBasicBox
	}
	return req, nil
}
