package lease

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/sidekey/sidekey/bus"
)

// Bookkeeper feeds a Ledger from the log: it fetches the lists that ticks name, and takes what the
// agents acknowledge.
type Bookkeeper struct {
	Ledger *Ledger
	// Grants reads a tick's list: bus.Log.ReadGrants.
	Grants func(ctx context.Context, seq uint64, hash []byte) ([]byte, error)
	// Held reads the holdings of the newest checkpoint, or gives bus.ErrNotFound.
	Held func(ctx context.Context) (bus.Cursor, []byte, error)
	// Key gives the key that an agent signs with; it may be a few seconds old.
	Key         func(ctx context.Context, agent string) (ed25519.PublicKey, error)
	IssuerLease time.Duration // how long an issuer goes on after a tick of its own
	Clock       Clock         // nil: SystemClock
	Logger      hclog.Logger

	mu     sync.Mutex
	queue  []noted
	ringer chan struct{}
}

// noted is an entry and when it was read.
type noted struct {
	entry bus.Entry
	seen  Reading
}

// Note takes entries that were read, in order. It does not wait; Run does the rest.
func (b *Bookkeeper) Note(entries []bus.Entry) {
	seen := b.clock()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, en := range entries {
		b.queue = append(b.queue, noted{en, seen})
	}
	select {
	case b.ring() <- struct{}{}:
	default:
	}
}

// ring is made at first use; b.mu is held.
func (b *Bookkeeper) ring() chan struct{} {
	if b.ringer == nil {
		b.ringer = make(chan struct{}, 1)
	}
	return b.ringer
}

func (b *Bookkeeper) clock() Reading {
	if b.Clock != nil {
		return b.Clock()
	}
	return SystemClock()
}

// Run keeps the ledger until ctx ends. While a list cannot be had the ledger stands still, and no
// receipt of what comes behind is given: nothing is confirmed on a guess.
func (b *Bookkeeper) Run(ctx context.Context) {
	b.mu.Lock()
	ringer := b.ring()
	b.mu.Unlock()
	for {
		select {
		case <-ringer:
		case <-ctx.Done():
			return
		}
		b.mu.Lock()
		queue := b.queue
		b.queue = nil
		b.mu.Unlock()
		for _, n := range queue {
			for err := b.take(ctx, n); err != nil; err = b.take(ctx, n) {
				if ctx.Err() != nil {
					return
				}
				b.Logger.Warn("could not read who was granted a lease, trying again", "seq", n.entry.Seq, "error", err)
				select {
				case <-time.After(tickEvery / 2):
				case <-ctx.Done():
					return
				}
			}
		}
	}
}

// take takes one entry into the ledger. One that does not follow on what is read means that the
// reader took a checkpoint: the ledger takes that one's holdings too.
func (b *Bookkeeper) take(ctx context.Context, n noted) error {
	read := b.Ledger.ReadUpTo()
	if !read.Before(n.entry.Position) {
		return nil
	}
	if n.entry.Seq != read.Seq+1 || read.Epoch != 0 && n.entry.Epoch != read.Epoch {
		if err := b.restore(ctx, n.entry.Position); err != nil {
			return err
		}
		if read = b.Ledger.ReadUpTo(); !read.Before(n.entry.Position) {
			return nil
		}
	}
	var list List
	if t, ok := n.entry.Fact.(*bus.Tick); ok && t.Grants != nil {
		body, err := b.Grants(ctx, t.ListSeq, t.Grants)
		if (errors.Is(err, bus.ErrNotFound) || errors.Is(err, bus.ErrForged)) && shortest(n.seen, b.clock()) > MaxLength {
			// Gone, or another stands in its place: this issuer has stood still for as long as a lease
			// lasts. Not by the tick's date: another machine's clock, and a step of our own, prove nothing.
			err, body = nil, []byte("{}")
		}
		if err != nil {
			return err
		}
		if err := json.Unmarshal(body, &list); err != nil {
			return fmt.Errorf("reading the grants of tick %d: %w", n.entry.Seq, err)
		}
	}
	b.Ledger.Read(n.entry, list.Grants, n.seen, b.IssuerLease)
	return nil
}

// restore takes the newest checkpoint's holdings, which must reach up to the entry before.
func (b *Bookkeeper) restore(ctx context.Context, next bus.Position) error {
	at, body, err := b.Held(ctx)
	if err != nil {
		return fmt.Errorf("reading the leases of the newest checkpoint: %w", err)
	}
	if at.Epoch != next.Epoch || at.Seq+1 < next.Seq {
		return fmt.Errorf("reading the leases of the newest checkpoint: it is of entry %d, and %d is read already", at.Seq, next.Seq)
	}
	var held []Holding
	if err := json.Unmarshal(body, &held); err != nil {
		return fmt.Errorf("reading the leases of the newest checkpoint: %w", err)
	}
	b.Ledger.Restore(at, held)
	return nil
}

// acked is an acknowledgement as it is sent, signed by the agent's key:
//
//	{"agent": "web-1", "run": "…", "epoch": …, "seq": 412, "chain": […]}
type acked struct {
	Agent string `json:"agent"`
	Run   string `json:"run"`
	bus.Position
	Chain bus.Chain `json:"chain"`
}

// Hear takes an acknowledgement as it came from the bus; one that is not the agent's own is passed over.
func (b *Bookkeeper) Hear(s bus.Spoken) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var a acked
	if err := json.Unmarshal(s.Body, &a); err != nil || a.Agent != s.Agent {
		return
	}
	key, err := b.Key(ctx, a.Agent)
	if err != nil || !ed25519.Verify(key, signed(contextAck, s.Body), s.Signature) {
		b.Logger.Debug("ignoring an acknowledgement that is not the agent's own", "agent", s.Agent)
		return
	}
	b.Ledger.Acknowledge(Ack{Agent: a.Agent, Run: a.Run, At: a.Position, Chain: a.Chain})
}
