package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// Behind finds out that an issuer's whole disk was put back to an older state, which its disk cannot tell it: an agent can, by the
// last grant that came into force there. A grant is signed by the authority when its tick is durable, so a log that lacks that tick,
// or has other entries before it, is not the log that was. An agent alone cannot make that up; and a log that was begun anew since,
// by whoever may, is of a later epoch and is not judged by what was before.
type Behind struct {
	Authority keyring.AuthorityKey
	// Holds tells whether the log, as it stands now, holds an entry: bus.Reader.Holds.
	Holds func(ctx context.Context, at bus.Cursor) error
	// Found is called once, with what Err says from then on and the agent that knows. nil: nobody wants to know.
	Found  func(agent string, err error)
	Logger hclog.Logger

	err atomic.Pointer[error]

	mu    sync.Mutex
	heard map[string]time.Time // by agent, of those enrolled
	queue chan told
}

// told is what an agent shows: a grant, whose signature is proven.
type told struct {
	agent string
	at    bus.Cursor
}

// Bounds of what agents that are stuck may cost.
const (
	maxTold     = 64              // that wait to be looked into; they tell it again
	toldApart   = 3 * time.Second // of one agent
	toldWithin  = 10 * time.Second
	toldConfirm = time.Second // a second look is taken that much later, before an issuer stops for good
)

// Err says why this issuer may not go on, nil while it may. It is for good: an operator has to choose. A process that is started again
// knows it when an agent shows it again, testifySlowest later at most.
func (b *Behind) Err() error {
	if p := b.err.Load(); p != nil {
		return *p
	}
	return nil
}

// Hear takes what an enrolled agent shows. It does not wait; Run looks into it.
func (b *Behind) Hear(agent string, grant, signature []byte) {
	if b.Err() != nil || !b.admit(agent) {
		return
	}
	var g Grant
	if !b.Authority.Verify(signed(contextGrant, grant), signature) || json.Unmarshal(grant, &g) != nil || g.Agent != agent || g.Seq == 0 {
		b.Logger.Warn("an agent shows a lease that this authority did not grant it", "agent", agent)
		return
	}
	select {
	case b.line() <- told{agent, bus.Cursor{Position: g.Position, Chain: g.Chain}}:
	default:
	}
}

func (b *Behind) admit(agent string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.heard == nil {
		b.heard = make(map[string]time.Time)
	}
	if time.Since(b.heard[agent]) < toldApart {
		return false
	}
	b.heard[agent] = time.Now()
	return true
}

// line is made at first use.
func (b *Behind) line() chan told {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.queue == nil {
		b.queue = make(chan told, maxTold)
	}
	return b.queue
}

// Run looks into what agents show, until ctx ends.
func (b *Behind) Run(ctx context.Context) {
	for line := b.line(); ; {
		select {
		case t := <-line:
			b.judge(ctx, t)
		case <-ctx.Done():
			return
		}
	}
}

// judge compares the log itself with what an agent shows. What this issuer has read of it so far does not count: the tick of a grant
// is durable before the grant leaves, and may be read here later.
func (b *Behind) judge(ctx context.Context, t told) {
	if b.Err() != nil {
		return
	}
	err := b.look(ctx, t.at)
	if errors.Is(err, bus.ErrRollback) {
		select {
		case <-time.After(toldConfirm): // a server that has just been elected may be late
		case <-ctx.Done():
			return
		}
		err = b.look(ctx, t.at)
	}
	if !errors.Is(err, bus.ErrRollback) {
		b.Logger.Debug("an agent says that the log was rolled back, and it was not", "agent", t.agent, "epoch", t.at.Epoch, "seq", t.at.Seq, "found", err)
		return
	}
	err = fmt.Errorf("this issuer granted a lease at entry %d of epoch %d, and its log lacks that (%w): an old data_dir was put back. Stop every issuer and put the newer disk back; "+
		"if there is none, restore a backup (sidekey restore --revocations-from), or run sidekey bus begin-anew --yes and end the sessions", t.at.Seq, t.at.Epoch, err)
	if b.err.CompareAndSwap(nil, &err) && b.Found != nil {
		b.Found(t.agent, err)
	}
}

func (b *Behind) look(ctx context.Context, at bus.Cursor) error {
	ctx, cancel := context.WithTimeout(ctx, toldWithin)
	defer cancel()
	return b.Holds(ctx, at)
}
