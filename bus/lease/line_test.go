package lease_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
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

// line is an agent's line to an issuer that answers at once, in a synctest bubble, and the log that
// the agent has applied.
type line struct {
	t         testing.TB
	authority *keyring.Authority
	clock     *clock

	mu      sync.Mutex
	log     *tape
	applied uint64
	due     uint64
	changed chan struct{}
	away    bool
	slow    time.Duration        // every answer takes so long
	err     error                // of the next questions
	answer  func(g *lease.Grant) // changes what is granted
	sent    func(s *bus.Spoken)  // and how it is sent
	asked   []time.Time
	acks    []spokenAck
	onAck   func()
}

type spokenAck struct {
	at  time.Time
	run string
	seq uint64
}

func newLine(t testing.TB) *line {
	authority, err := keyring.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	l := &line{t: t, authority: authority, clock: newClock(), log: newTape(), changed: make(chan struct{})}
	l.log.next()
	l.applied = 1
	return l
}

func (l *line) Connected() bool { l.mu.Lock(); defer l.mu.Unlock(); return !l.away }

// now keeps the agent's clocks in step with the bubble's.
func (l *line) now() lease.Reading {
	d := time.Duration(time.Now().UnixNano())
	return lease.Reading{Mono: d, Boot: d, Wall: d}
}

func (l *line) AskLease(ctx context.Context, agent string, body, signature []byte) (bus.Spoken, error) {
	if l.slow > 0 {
		select {
		case <-time.After(l.slow):
		case <-ctx.Done():
			return bus.Spoken{}, ctx.Err()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, time.Now())
	if l.err != nil {
		return bus.Spoken{}, l.err
	}
	if !ed25519.Verify(agentKey(agent).Public().(ed25519.PublicKey), append([]byte("sidekey-lease-request-1\x00"), body...), signature) {
		l.t.Error("the request's signature is not the agent's")
	}
	var g lease.Grant
	if err := json.Unmarshal(body, &g.Request); err != nil {
		l.t.Error(err)
	}
	at := l.log.at(l.applied)
	g.Position, g.Chain = at.Position, at.Chain
	if l.answer != nil {
		l.answer(&g)
	}
	out, err := json.Marshal(g)
	if err != nil {
		l.t.Error(err)
	}
	s := bus.Spoken{Agent: agent, Body: out, Signature: l.authority.Sign(append([]byte("sidekey-lease-grant-1\x00"), out...))}
	if l.sent != nil {
		l.sent(&s)
	}
	return s, nil
}

func (l *line) Acknowledge(agent string, body, signature []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !ed25519.Verify(agentKey(agent).Public().(ed25519.PublicKey), append([]byte("sidekey-ack-1\x00"), body...), signature) {
		l.t.Error("the acknowledgement's signature is not the agent's")
	}
	var a struct {
		Run string
		Seq uint64
	}
	if err := json.Unmarshal(body, &a); err != nil {
		l.t.Error(err)
	}
	if l.onAck != nil {
		l.onAck()
	}
	l.acks = append(l.acks, spokenAck{time.Now(), a.Run, a.Seq})
	return nil
}

func (l *line) Cursor() bus.Cursor {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.at(l.applied)
}

func (l *line) ChainAt(seq uint64) (bus.Chain, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.chainAt(seq)
}

// Due is the newest entry that is no tick; here none is, but where a test says so.
func (l *line) Due() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.due != 0 {
		return l.due
	}
	return l.applied
}

func (l *line) Changed() <-chan struct{} { l.mu.Lock(); defer l.mu.Unlock(); return l.changed }

// apply lets the agent apply the next entry.
func (l *line) apply() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.log.next()
	l.applied++
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *line) set(change func()) { l.mu.Lock(); defer l.mu.Unlock(); change() }

// questions are the times at which leases were asked for.
func (l *line) questions() []time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.asked)
}

// said is what was acknowledged.
func (l *line) said() []spokenAck { l.mu.Lock(); defer l.mu.Unlock(); return slices.Clone(l.acks) }

// renew runs a renewer of a holder until the test ends.
func (l *line) renew(t *testing.T, h *lease.Holder) *lease.Renewer {
	r := lease.NewRenewer(lease.Renewer{
		Holder: h, Agent: "web-1", Key: agentKey("web-1"), Authority: l.authority.Public(), Line: l, Applied: l, Clock: l.now, Logger: hclog.NewNullLogger(),
	})
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { r.Renew(ctx) })
	running.Go(func() { r.Acknowledge(ctx) })
	t.Cleanup(func() { stop(); running.Wait() })
	synctest.Wait()
	return r
}

func (l *line) holder(length time.Duration) *lease.Holder {
	return lease.NewHolder(lease.HolderConfig{Agent: "web-1", Length: length, Mode: lease.Refuse, Clock: l.now})
}
