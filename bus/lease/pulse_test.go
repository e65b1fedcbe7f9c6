package lease_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/keyring"
)

// pulse is a granter at work, within a synctest bubble, and the log that it writes.
type pulse struct {
	*lease.Granter
	*lists
	authority *keyring.Authority

	mu        sync.Mutex
	log       *tape
	ticks     []bus.Tick
	at        []time.Time // when each tick was begun
	listErr   error
	tickErr   error
	slow      time.Duration // how long an append takes
	stored    bool          // an append that fails is stored all the same
	answers   []lease.Grant
	refusals  []string
	listSizes []int
}

func newPulse(t *testing.T, change ...func(*lease.GranterConfig)) *pulse {
	authority, err := keyring.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	p := &pulse{lists: new(lists), authority: authority, log: newTape()}
	cfg := lease.GranterConfig{
		Issuer: "issuer-1", Run: "own", Authority: authority, Log: p, Applied: func() uint64 { return 41 }, Logger: hclog.NewNullLogger(),
		Key: func(_ context.Context, agent string) (ed25519.PublicKey, error) {
			if agent == "removed" {
				return nil, bus.ErrNotFound
			}
			return agentKey(agent).Public().(ed25519.PublicKey), nil
		},
	}
	for _, f := range change {
		f(&cfg)
	}
	p.Granter = lease.NewGranter(cfg)
	return p
}

// run lets it tick until the test ends.
func (p *pulse) run(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { p.Run(ctx); close(done) }()
	t.Cleanup(func() { stop(); <-done })
	synctest.Wait()
}

func (p *pulse) WriteGrants(_ context.Context, list []byte) (uint64, []byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listErr != nil {
		return 0, nil, p.listErr
	}
	p.listSizes = append(p.listSizes, len(list))
	seq, hash := p.write(list)
	return seq, hash, nil
}

func (p *pulse) AppendTick(ctx context.Context, t bus.Tick) (bus.Cursor, error) {
	p.mu.Lock()
	p.at = append(p.at, time.Now())
	slow := p.slow
	p.mu.Unlock()
	select {
	case <-time.After(slow):
	case <-ctx.Done():
		return bus.Cursor{}, ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tickErr != nil && !p.stored {
		return bus.Cursor{}, p.tickErr
	}
	p.ticks = append(p.ticks, t)
	return p.log.next(), p.tickErr
}

func (p *pulse) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

// seen is what it has done so far.
func (p *pulse) seen() (s struct {
	ticks     []bus.Tick
	at        []time.Time
	answers   []lease.Grant
	refusals  []string
	listSizes []int
}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.ticks, s.at, s.answers = slices.Clone(p.ticks), slices.Clone(p.at), slices.Clone(p.answers)
	s.refusals, s.listSizes = slices.Clone(p.refusals), slices.Clone(p.listSizes)
	return s
}

// question is a request as an agent sends it.
func (p *pulse) question(t testing.TB, req lease.Request, change ...func(*bus.Spoken)) bus.Spoken {
	t.Helper()
	body, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	s := bus.Spoken{
		Agent: req.Agent, Body: body, Signature: ed25519.Sign(agentKey(req.Agent), append([]byte("sidekey-lease-request-1\x00"), body...)),
		Reply: func(body, signature []byte) error {
			p.mu.Lock()
			defer p.mu.Unlock()
			if signature == nil {
				p.refusals = append(p.refusals, string(body))
				return nil
			}
			if !p.authority.Public().Verify(append([]byte("sidekey-lease-grant-1\x00"), body...), signature) {
				return errors.New("the answer is not signed by the authority")
			}
			var g lease.Grant
			if err := json.Unmarshal(body, &g); err != nil {
				return err
			}
			p.answers = append(p.answers, g)
			return nil
		},
	}
	for _, f := range change {
		f(&s)
	}
	return s
}

// request is a good one.
func request(agent, run string) lease.Request {
	req := asks(agent, run, time.Minute)
	req.Nonce = []byte("0123456789abcdef")
	return req
}

// TestTicksPaced: whoever asks after a pause is answered within 50 ms; a fleet that goes on asking, within a
// quarter of a second, by four ticks a second, for every agent reads every tick. A hurry is answered at once.
func TestTicksPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPulse(t)
		p.run(t)
		count := func(d time.Duration) int {
			before := len(p.seen().at)
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				p.Hear(p.question(t, request("web-1", "run")))
			}
			return len(p.seen().at) - before
		}
		time.Sleep(time.Minute)
		if n := count(time.Second); n < 18 {
			t.Errorf("in the first second of asking: %d ticks, want some 20", n)
		}
		count(10 * time.Second)
		if n := count(time.Minute); n < 230 || n > 245 {
			t.Errorf("in a minute of asking: %d ticks, want 4 a second", n)
		}
		before := len(p.seen().at)
		p.Hurry()
		time.Sleep(101 * time.Millisecond)
		synctest.Wait()
		if n := len(p.seen().at) - before; n == 0 {
			t.Error("100 ms after a hurry there is no tick")
		}
	})
}
