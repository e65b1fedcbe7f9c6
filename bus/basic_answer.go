package bus

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats.go"

	"github.com/sidekey/sidekey/keyring"
)

// Bounds of what issuers do about passwords that agents ask about.
const (
	maxBasicSpoken   = 12 << 10 // bytes of a question
	maxBasicAnswer   = 32 << 10 // and of an answer
	maxBasicAsking   = 32       // questions of one agent under way; it asks no more at once
	maxBasicWaiting  = 1024     // questions under way here, right or wrong; more are dropped unread
	maxBasicChecking = 64       // passwords being checked here; more are answered "busy" at once
	basicAge         = time.Minute
	maxBasicSeen     = 1 << 16 // questions remembered within basicAge, so that none is answered twice
)

// BasicAnswerer is an issuer's side: it says whether a password is right that an agent asks about. All
// members but Known are required.
type BasicAnswerer struct {
	Conn      *Conn
	Authority *keyring.Authority
	// Key gives the key that an agent signs with, read now. An error refuses it: it is not enrolled, or removed.
	Key func(ctx context.Context, agent string) (ed25519.PublicKey, error)
	// Known is Key from memory, a few seconds old at most: what it does not believe costs no read of the bus. nil: Key.
	Known func(ctx context.Context, agent string) (ed25519.PublicKey, error)
	// Open opens a box sealed to the issuers' sealing key of that id.
	Open func(ctx context.Context, id string, box []byte, info ...[]byte) ([]byte, error)
	// Time is the log's, as this issuer has applied it. A question that is older or newer by more than a
	// minute of it is not looked into, so that none can be kept and put again.
	Time func() time.Time
	// Check says whether the password is right: of the answer, Outcome and what follows. It must cost the
	// same whether or not there is such a user.
	Check  func(ctx context.Context, agent string, req BasicRequest) BasicAnswer
	Logger hclog.Logger

	running  sync.WaitGroup
	checking chan struct{}

	mu      sync.Mutex
	waiting int
	asking  map[string]int // by agent
	seen    [2]map[[sha256.Size]byte]struct{}
	since   time.Time // when seen[0] was begun, by the log's time
	warned  time.Time
}

// Listen answers until stop is called, which waits for the answers under way. Of several issuers one
// gets each question. Call it once.
func (a *BasicAnswerer) Listen() (stop func(), err error) {
	if a.Known == nil {
		a.Known = a.Key
	}
	a.checking, a.asking = make(chan struct{}, maxBasicChecking), make(map[string]int)
	ctx, cancel := context.WithCancel(context.Background())
	prefix := a.Conn.subjects.basic("")
	sub, err := a.Conn.nc.QueueSubscribe(prefix+Any, "issuers", func(m *nats.Msg) {
		s, err := spokenUpTo(m, m.Subject[len(prefix):], maxBasicSpoken)
		if err != nil || s.Reply == nil || !a.admit(s.Agent) {
			return
		}
		a.running.Go(func() {
			defer a.dismiss(s.Agent)
			ctx, cancel := context.WithTimeout(ctx, basicWithin)
			defer cancel()
			if err := a.answer(ctx, s); err != nil {
				a.warn(s.Agent, err)
			}
		})
	})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("listening to questions about passwords: %w", err)
	}
	if a.Conn.Connected() {
		a.Conn.nc.FlushTimeout(attempt) //nolint:errcheck // it is heard of a little later, then
	}
	return func() {
		sub.Unsubscribe() //nolint:errcheck // the connection may be closed already
		cancel()
		a.running.Wait()
	}, nil
}

// admit counts a question, of which nothing is proven, and tells whether it is worth a look. The bus lets an
// agent speak under its own name only.
func (a *BasicAnswerer) admit(agent string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.waiting >= maxBasicWaiting || a.asking[agent] >= maxBasicAsking {
		return false
	}
	a.waiting++
	a.asking[agent]++
	return true
}

func (a *BasicAnswerer) dismiss(agent string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting--
	if a.asking[agent]--; a.asking[agent] == 0 {
		delete(a.asking, agent)
	}
}

func (a *BasicAnswerer) warn(agent string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := time.Now(); now.Sub(a.warned) >= warnApart {
		a.warned = now
		a.Logger.Warn("not answering an agent's question about a password; further ones are not reported for a while", "agent", agent, "error", err)
	}
}

// answer answers one question. An error: it deserves none.
func (a *BasicAnswerer) answer(ctx context.Context, s Spoken) error {
	asked, err := a.prove(ctx, s)
	if err != nil {
		return err
	}
	ans := a.outcome(ctx, s, &asked)
	sum := sha256.Sum256(s.Body)
	ans.Nonce, ans.Agent, ans.Run, ans.Asked = asked.Nonce, asked.Agent, asked.Run, sum[:]
	body, err := json.Marshal(ans)
	if err != nil {
		return err
	}
	return s.Answer(body, a.Authority.Sign(append([]byte(contextBasicAnswer), body...)))
}

// prove checks that the agent itself asks.
func (a *BasicAnswerer) prove(ctx context.Context, s Spoken) (asked basicRequest, err error) {
	key, err := a.Known(ctx, s.Agent)
	if err != nil {
		return asked, err
	}
	if !ed25519.Verify(key, append([]byte(contextBasicRequest), s.Body...), s.Signature) {
		return asked, ErrForged
	}
	if err := json.Unmarshal(s.Body, &asked); err != nil {
		return asked, err
	}
	if asked.Agent != s.Agent || len(asked.Nonce) != 16 || len(asked.Run) > maxAgentName {
		return asked, fmt.Errorf("%w: a question of agent %q", ErrForged, asked.Agent)
	}
	return asked, nil
}

// outcome is the answer to a question that is the agent's own. No password is looked at for one that is
// old, was put before, comes from an agent struck off, or when too many are looked at already.
func (a *BasicAnswerer) outcome(ctx context.Context, s Spoken, asked *basicRequest) BasicAnswer {
	select {
	case a.checking <- struct{}{}:
		defer func() { <-a.checking }()
	default:
		return BasicAnswer{Outcome: BasicBusy, RetryAfter: 1}
	}
	ans, err := a.check(ctx, s, asked)
	if err != nil {
		a.warn(s.Agent, err)
		return BasicAnswer{Outcome: BasicUnavailable}
	}
	return ans
}

var errSeenBefore = errors.New("the question was put before")

func (a *BasicAnswerer) check(ctx context.Context, s Spoken, asked *basicRequest) (ans BasicAnswer, err error) {
	// Read anew, since a removed agent asks nothing any more; but only for whoever had its key a moment ago.
	key, err := a.Key(ctx, s.Agent)
	if err != nil {
		return ans, err
	}
	if !ed25519.Verify(key, append([]byte(contextBasicRequest), s.Body...), s.Signature) {
		return ans, ErrForged
	}
	if err := a.remember(sha256.Sum256(s.Body), time.UnixMilli(asked.Time)); err != nil {
		return ans, err
	}
	plain, err := a.Open(ctx, asked.Key, asked.Box, asked.info()...)
	if err != nil {
		return ans, err
	}
	defer clear(plain)
	req, err := unpadBasic(plain)
	if err != nil {
		return ans, err
	}
	ans = a.Check(ctx, s.Agent, req)
	return ans, ans.check()
}

// remember takes a question in. An error: it was put before, or nobody can tell.
func (a *BasicAnswerer) remember(question [sha256.Size]byte, at time.Time) error {
	now := a.Time()
	if d := now.Sub(at); d > basicAge || d < -basicAge {
		return fmt.Errorf("the agent asks from another time of the log: %s beside this issuer's", d)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.seen[0] == nil || now.Sub(a.since) > 2*basicAge {
		a.seen[1], a.seen[0], a.since = a.seen[0], make(map[[sha256.Size]byte]struct{}), now
	}
	for _, seen := range a.seen {
		if _, ok := seen[question]; ok {
			return errSeenBefore
		}
	}
	if len(a.seen[0]) >= maxBasicSeen {
		return fmt.Errorf("more than %d questions about passwords within minutes", maxBasicSeen)
	}
	a.seen[0][question] = struct{}{}
	return nil
}
