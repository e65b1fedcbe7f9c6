package lease

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// What signatures of this protocol begin with, so that none can be taken for another.
const (
	contextRequest   = "sidekey-lease-request-1\x00"
	contextGrant     = "sidekey-lease-grant-1\x00"
	contextAck       = "sidekey-ack-1\x00"
	contextTestimony = "sidekey-testimony-1\x00"
)

func signed(context string, body []byte) []byte { return append([]byte(context), body...) }

// How often an issuer ticks.
const (
	tickEvery  = time.Second            // whatever happens, one issuer for all
	tickOwn    = 2 * time.Second        // and each of the others, for its own lease of 5 s
	tickApart  = 50 * time.Millisecond  // sooner when an agent asks, but not more often than this
	tickBurst  = 40                     // but so many ticks; behind them, while agents go on asking,
	tickSteady = 250 * time.Millisecond // they are this far apart: each goes to every agent there is
	tickWithin = 5 * time.Second        // and no longer on one of them than this
	maxGrants  = 4096                   // requests that wait for a tick
	maxOfAgent = 8                      // and those of one agent, right or wrong; more are dropped unread
	maxList    = 512 << 10              // bytes of a list; what does not fit waits for the next tick
)

// GrantLog is where a Granter writes: *bus.Log.
type GrantLog interface {
	// WriteGrants writes a list and returns, when it is durable, its place and hash.
	WriteGrants(ctx context.Context, list []byte) (seq uint64, hash []byte, err error)
	// AppendTick appends a tick; after an error it may stand in the log all the same.
	AppendTick(ctx context.Context, t bus.Tick) (bus.Cursor, error)
}

// GranterConfig is what a Granter needs; all members but Known, Note, Sound, Alive and Idle are required.
type GranterConfig struct {
	Issuer    string // this issuer's name
	Run       string // this process
	Authority *keyring.Authority
	Log       GrantLog
	// Key gives the key that an agent signs with. An error refuses it: it is not enrolled, or removed.
	Key func(ctx context.Context, agent string) (ed25519.PublicKey, error)
	// Known is Key from memory, a few seconds old at most: what it does not believe costs no read of the
	// bus. nil: Key alone.
	Known func(ctx context.Context, agent string) (ed25519.PublicKey, error)
	// Note writes down that an agent is about to be granted a lease of up to a length, and whether it goes on behind its
	// end, for the case that the log or its grants are lost; an error refuses the lease. nil: nobody needs to know. It
	// hears of few lengths, each a write: see rounded.
	Note func(ctx context.Context, agent string, length time.Duration, serves bool) error
	// Applied is what this issuer's own verify path has applied.
	Applied func() uint64
	// Sound tells whether this issuer's clock may be believed (Clocks.CheckIssuer): with an error it does not
	// tick. nil: it may.
	Sound func() error
	// Alive is called at each turn of Run, with how long the next may take. nil: nobody wants to know.
	Alive func(within time.Duration)
	// Idle tells whether this issuer ticks every second though nobody asks (Duty.Held); the others do every two. nil: it does.
	Idle   func() bool
	Logger hclog.Logger
}

// Granter is the issuer's pulse: it ticks at least every two seconds, and where it does so for all once a second; and each tick answers the lease
// requests that had reached it before the tick was made, and no others (PROTOCOL 6).
type Granter struct {
	cfg GranterConfig

	mu     sync.Mutex
	asked  []call
	heard  map[string]int // by agent: its requests since the last tick, and those that wait from before
	ringer chan struct{}  // holds one while somebody waits
	hurry  chan struct{}  // the same, of who cannot wait for tickSteady

	granted atomic.Uint64
}

// Granted is how many leases it has granted.
func (g *Granter) Granted() uint64 { return g.granted.Load() }

// call is a request that is proven and waits for its tick.
type call struct {
	Request
	answer func(body, signature []byte) error
}

// NewGranter makes one; Run runs it.
func NewGranter(cfg GranterConfig) *Granter {
	if cfg.Known == nil {
		cfg.Known = cfg.Key
	}
	if cfg.Alive == nil {
		cfg.Alive = func(time.Duration) {}
	}
	return &Granter{cfg: cfg, heard: make(map[string]int), ringer: make(chan struct{}, 1), hurry: make(chan struct{}, 1)}
}

// refusal is the answer to a request that is not granted. It is not signed, and believed for nothing
// but to try again: {"error": "…"}.
type refusal struct {
	Error string `json:"error"`
}

// Hear takes a request as it came from the bus. It is answered by the next tick, if it is right; a
// wrong one is refused at once, and so is every one by an issuer that may not tick: the agent asks again, and comes to another. One goroutine hears all agents, so what one agent has too much is
// dropped before it costs anything: it asks again.
func (g *Granter) Hear(s bus.Spoken) {
	if !g.admit(s.Agent) {
		return
	}
	if err := g.sound(); err != nil {
		refuse(s.Answer, err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), tickWithin)
	defer cancel()
	req, err := g.prove(ctx, s)
	if err == nil && g.cfg.Note != nil {
		err = g.cfg.Note(ctx, req.Agent, rounded(req.Length), req.Mode == Serve)
	}
	if err != nil {
		g.cfg.Logger.Warn("refusing a lease", "agent", s.Agent, "error", err)
		refuse(s.Answer, err)
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked = append(g.asked, call{Request: req, answer: s.Answer})
	g.ring()
}

func refuse(answer func(body, signature []byte) error, why error) {
	if body, err := json.Marshal(refusal{why.Error()}); err == nil {
		answer(body, nil) //nolint:errcheck // it asks again anyway
	}
}

// sound tells whether this issuer may tick.
func (g *Granter) sound() error {
	if g.cfg.Sound != nil {
		if err := g.cfg.Sound(); err != nil {
			return fmt.Errorf("this issuer does not tick, and so makes and checks no token: %w", err)
		}
	}
	return nil
}

// refuseAll refuses the calls that wait.
func (g *Granter) refuseAll(why error) {
	g.mu.Lock()
	calls := g.asked
	g.asked = nil
	clear(g.heard)
	g.mu.Unlock()
	for _, c := range calls {
		refuse(c.answer, why)
	}
}

// admit counts a request, of which nothing is proven, and tells whether it is worth a look. The bus
// lets an agent speak under its own name only.
func (g *Granter) admit(agent string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.heard[agent]
	if n >= maxOfAgent || n == 0 && len(g.heard) >= maxGrants || len(g.asked) >= maxGrants {
		return false
	}
	g.heard[agent] = n + 1
	return true
}

// rounded is what is written down of a length in milliseconds: the next power of two. An agent that
// asks for a little more each time would cost a write each time.
func rounded(ms int64) time.Duration {
	return min(MaxLength, time.Duration(1)<<bits.Len64(uint64(ms-1))*time.Millisecond)
}

// Hurry asks for a tick soon: it acknowledges what this issuer has applied.
func (g *Granter) Hurry() {
	select {
	case g.hurry <- struct{}{}:
	default:
	}
}

// ring asks for a tick soon.
func (g *Granter) ring() {
	select {
	case g.ringer <- struct{}{}:
	default:
	}
}

// prove checks that the agent itself asks.
func (g *Granter) prove(ctx context.Context, s bus.Spoken) (Request, error) {
	var req Request
	if err := json.Unmarshal(s.Body, &req); err != nil {
		return req, fmt.Errorf("the request is no JSON: %w", err)
	}
	if err := req.Check(); err != nil {
		return req, err
	}
	if req.Agent != s.Agent {
		return req, fmt.Errorf("it asks for %q", req.Agent)
	}
	// Whether it is enrolled is read anew, since a removed agent gets no lease; but only for whoever
	// had its key a moment ago.
	for _, find := range []func(context.Context, string) (ed25519.PublicKey, error){g.cfg.Known, g.cfg.Key} {
		key, err := find(ctx, req.Agent)
		if err != nil {
			return req, err
		}
		if !ed25519.Verify(key, signed(contextRequest, s.Body), s.Signature) {
			return req, errors.New("its signature is not the enrolled agent's")
		}
	}
	return req, nil
}

// Run ticks until ctx ends.
func (g *Granter) Run(ctx context.Context) {
	left, last := tickBurst, time.Now() // ticks that may come at tickApart, and when they were last counted
	for {
		g.cfg.Alive(tickOwn + tickWithin)
		err := g.tick(ctx)
		if err != nil && ctx.Err() == nil {
			g.cfg.Logger.Warn("could not append a tick, trying again", "error", err)
		}
		begun, due := time.Now(), time.NewTimer(tickEvery)
		if left = min(left+int(time.Since(last)/tickSteady), tickBurst); left > 0 {
			left, last = left-1, time.Now()
			g.wait(ctx, tickApart, nil)
		} else {
			g.wait(ctx, tickApart, nil)
			g.wait(ctx, tickSteady-tickApart, g.hurry)
			last = time.Now()
		}
		for waits := true; waits; {
			select {
			case <-g.ringer:
				waits = false
			case <-g.hurry:
				waits = false
			case <-due.C:
				// Asked again now and then, for the one that ticks for all may be gone.
				if waits = g.cfg.Idle != nil && !g.cfg.Idle() && time.Since(begun) < tickOwn; waits {
					due.Reset(tickEvery / 4)
				}
			case <-ctx.Done():
				waits = false
			}
		}
		due.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// wait waits for d, or for one who cannot wait so long, whom it leaves in the channel.
func (g *Granter) wait(ctx context.Context, d time.Duration, cut chan struct{}) {
	select {
	case <-time.After(d):
	case <-cut:
		g.Hurry()
	case <-ctx.Done():
	}
}

// tick writes down who is to be answered, appends the tick, and answers when both are certain. A
// tick whose fate is unknown answers nobody.
func (g *Granter) tick(ctx context.Context) error {
	if err := g.sound(); err != nil {
		g.refuseAll(err)
		return err
	}
	calls, list, err := g.take()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, tickWithin)
	defer cancel()
	t := bus.Tick{Run: g.cfg.Run, Applied: g.cfg.Applied()}
	if len(calls) > 0 {
		if t.ListSeq, t.Grants, err = g.cfg.Log.WriteGrants(ctx, list); err != nil {
			return err
		}
	}
	at, err := g.cfg.Log.AppendTick(ctx, t)
	if err != nil {
		return err
	}
	for _, c := range calls {
		g.answer(c, at)
	}
	g.granted.Add(uint64(len(calls)))
	return nil
}

// take takes the calls that one tick answers, and their list. The list has to fit into one message of
// the bus, however many agents ask at once and however long their names are.
func (g *Granter) take() (calls []call, list []byte, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	issuer, err := json.Marshal(g.cfg.Issuer)
	if err != nil {
		return nil, nil, fmt.Errorf("writing the grants of a tick: %w", err)
	}
	list = slices.Concat([]byte(`{"issuer":`), issuer, []byte(`,"grants":[`))
	n := 0
	for ; n < len(g.asked); n++ {
		one, err := json.Marshal(g.asked[n].Request)
		if err != nil {
			return nil, nil, fmt.Errorf("writing the grants of a tick: %w", err)
		}
		if n > 0 && len(list)+len(one) > maxList {
			g.ring()
			break
		}
		if n > 0 {
			list = append(list, ',')
		}
		list = append(list, one...)
	}
	calls, g.asked = g.asked[:n:n], slices.Clone(g.asked[n:])
	clear(g.heard)
	for i := range g.asked {
		g.heard[g.asked[i].Agent]++
	}
	return calls, append(list, "]}"...), nil
}

func (g *Granter) answer(c call, at bus.Cursor) {
	body, err := json.Marshal(Grant{Request: c.Request, Position: at.Position, Chain: at.Chain})
	if err == nil {
		err = c.answer(body, g.cfg.Authority.Sign(signed(contextGrant, body)))
	}
	if err != nil {
		g.cfg.Logger.Debug("could not answer a lease request", "agent", c.Agent, "error", err)
	}
}
