package lease

import (
	"cmp"
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
	// Grants reads a tick's list: Copies.ReadGrants, or bus.Log.ReadGrants.
	Grants func(ctx context.Context, seq uint64, hash []byte) ([]byte, error)
	// Held reads the holdings of the newest checkpoint, or gives bus.ErrNotFound.
	Held func(ctx context.Context) (bus.Cursor, []byte, error)
	// Key gives the key that an agent signs with; it may be a few seconds old.
	Key func(ctx context.Context, agent string) (ed25519.PublicKey, error)
	// MayHold gives the longest lease that anybody may hold, 0 where it is not known; serving is an agent that may go on
	// behind its lease's end, "" if none may. nil: nothing is known.
	MayHold     func(ctx context.Context) (longest time.Duration, serving string, err error)
	IssuerLease time.Duration // how long an issuer goes on after a tick of its own
	Clock       Clock         // nil: SystemClock
	Behind      *Behind       // what agents that see a rollback show; nil: nobody listens
	Logger      hclog.Logger

	mu     sync.Mutex
	queue  []noted
	taking *noted // of what was the queue, what Run takes into the ledger now; nil: nothing
	ringer chan struct{}

	looked time.Time // at the newest checkpoint for a list that is gone, the last time; Run's own
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

// Lag is for how long the oldest entry that was noted and is not in the ledger has waited; 0: there is none.
func (b *Bookkeeper) Lag() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.taking != nil:
		return shortest(b.taking.seen, b.clock())
	case len(b.queue) > 0:
		return shortest(b.queue[0].seen, b.clock())
	}
	return 0
}

// takes says what Run takes in now, nil: nothing.
func (b *Bookkeeper) takes(n *noted) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.taking = n
}

func (b *Bookkeeper) clock() Reading {
	if b.Clock != nil {
		return b.Clock()
	}
	return SystemClock()
}

// warnApart is the time between two words about the same trouble.
const warnApart = 10 * time.Second

// Run keeps the ledger until ctx ends. While a list cannot be had the ledger stands still, and no
// receipt of what comes behind is given: nothing is confirmed on a guess.
func (b *Bookkeeper) Run(ctx context.Context) {
	b.mu.Lock()
	ringer := b.ring()
	b.mu.Unlock()
	var warned time.Time
	for {
		select {
		case <-ringer:
		case <-ctx.Done():
			return
		}
		b.mu.Lock()
		queue := b.queue
		b.queue = nil
		if len(queue) > 0 {
			b.taking = &queue[0]
		}
		b.mu.Unlock()
		for _, n := range queue {
			b.takes(&n)
			for err := b.take(ctx, n); err != nil; err = b.take(ctx, n) {
				if ctx.Err() != nil {
					return
				}
				if time.Since(warned) > warnApart {
					b.Logger.Warn("could not read who was granted a lease, trying again: nothing is confirmed meanwhile", "seq", n.entry.Seq, "error", err)
					warned = time.Now()
				}
				select {
				case <-time.After(tickEvery / 2):
				case <-ctx.Done():
					return
				}
			}
		}
		b.takes(nil)
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
		if errors.Is(err, bus.ErrNotFound) || errors.Is(err, bus.ErrForged) {
			if b.covered(ctx, n.entry.Position) {
				return nil
			}
			err = b.outlived(ctx, n, err)
			body = []byte("{}")
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

// coveredApart is the time between two looks at a checkpoint for a list that is gone: it is read whole, and may be large.
const coveredApart = 10 * time.Second

// covered takes the newest checkpoint's holdings, and tells so, where it is of an entry whose list is gone, or of a later one: whoever wrote it
// had the list, and what of it counts is among them, as granted now (PROTOCOL 5).
func (b *Bookkeeper) covered(ctx context.Context, at bus.Position) bool {
	if !b.looked.IsZero() && time.Since(b.looked) < coveredApart {
		return false
	}
	b.looked = time.Now()
	if err := b.restore(ctx, bus.Position{Epoch: at.Epoch, Seq: at.Seq + 1}); err != nil {
		b.Logger.Debug("a list of grants is gone, and no checkpoint stands in for it", "seq", at.Seq, "error", err)
		return false
	}
	b.Logger.Warn("a list of grants is gone; who may hold a lease is taken from the newest checkpoint", "seq", at.Seq)
	return true
}

// lostAtLeast is how long a list that is gone is waited for at the least: by then what was noted of its leases is read for certain.
const lostAtLeast = 10 * time.Second

// outlived tells, with no error, that a list which is gone, or in whose place another stands, concerns nobody any more: this issuer has
// stood still for as long as a lease of it could last. Not by the tick's date: another machine's clock, and a step of our own, prove
// nothing.
func (b *Bookkeeper) outlived(ctx context.Context, n noted, gone error) error {
	stood := shortest(n.seen, b.clock())
	if stood < lostAtLeast {
		return gone
	}
	var longest time.Duration
	if b.MayHold != nil {
		held, serving, err := b.MayHold(ctx)
		if err != nil {
			return errors.Join(gone, err)
		}
		if serving != "" {
			return fmt.Errorf("%w; agent %q may go on without a lease (on_stale = \"serve\"), so no receipt can be given: run sidekey bus begin-anew --yes", gone, serving)
		}
		longest = held
	}
	longest = cmp.Or(longest, MaxLength)
	if longest += time.Duration(float64(longest) * Drift); stood <= longest {
		return fmt.Errorf("%w; no receipt is given until the longest lease is over, in %s", gone, (longest - stood).Round(time.Second))
	}
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
//
// With a grant it is none, and signed as such: an agent that sees a rollback shows the last grant that was in force there, as the
// authority signed it (base64 of the JSON, and of the signature). Position and chain are zero.
//
//	{"agent": "web-1", "run": "…", …, "grant": "…", "grant_signature": "…"}
type acked struct {
	Agent string `json:"agent"`
	Run   string `json:"run"`
	bus.Position
	Chain          bus.Chain `json:"chain"`
	Grant          []byte    `json:"grant,omitempty"`
	GrantSignature []byte    `json:"grant_signature,omitempty"`
}

// Hear takes an acknowledgement as it came from the bus; one that is not the agent's own is passed over.
func (b *Bookkeeper) Hear(s bus.Spoken) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var a acked
	if err := json.Unmarshal(s.Body, &a); err != nil || a.Agent != s.Agent {
		return
	}
	as := contextAck
	if a.Grant != nil {
		as = contextTestimony
	}
	key, err := b.Key(ctx, a.Agent)
	if err != nil || !ed25519.Verify(key, signed(as, s.Body), s.Signature) {
		b.Logger.Debug("ignoring an acknowledgement that is not the agent's own", "agent", s.Agent)
		return
	}
	if a.Grant != nil {
		if b.Behind != nil {
			b.Behind.Hear(a.Agent, a.Grant, a.GrantSignature)
		}
		return
	}
	b.Ledger.Acknowledge(Ack{Agent: a.Agent, Run: a.Run, At: a.Position, Chain: a.Chain})
}
