package lease

import (
	"context"
	"sync"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// Own is an issuer's lease of its own: while it lasts, the issuer may verify (PROTOCOL 12) and sign
// (PROTOCOL 17). A tick of its own is the grant: who has read it back knows all that was in the log
// before it was sent. The other issuers count it like an agent's lease, by the same tick, and what
// the tick says its issuer had applied is the acknowledgement.
//
// It stands between a Granter and the log. All methods may be called by any goroutine.
type Own struct {
	GrantLog
	applied func() bus.Position
	length  time.Duration
	clock   Clock

	mu    sync.Mutex
	ticks []*Lease // not read back yet, oldest first, behind the newest that was
}

// maxOwn bounds the ticks that wait to be read back.
const maxOwn = 16

// NewOwn makes one without a lease. applied is what the issuer's verify path has applied; length
// is what the ledgers of all issuers count for a tick (Bookkeeper.IssuerLease); nil clock: SystemClock.
func NewOwn(log GrantLog, applied func() bus.Position, length time.Duration, clock Clock) *Own {
	if clock == nil {
		clock = SystemClock
	}
	return &Own{GrantLog: log, applied: applied, length: length, clock: clock}
}

// AppendTick is GrantLog's. The lease counts from before the tick is sent, and a tick whose fate is
// unknown is none.
func (o *Own) AppendTick(ctx context.Context, t bus.Tick) (bus.Cursor, error) {
	begin := o.clock()
	at, err := o.GrantLog.AppendTick(ctx, t)
	if err != nil {
		return at, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.ticks) == maxOwn {
		o.ticks = o.ticks[:maxOwn-1] // a reader that lags comes to the older ones first
	}
	o.ticks = append(o.ticks, &Lease{Begin: begin, Length: o.length, Mode: Refuse, Position: at.Position})
	return at, nil
}

// Current is the lease in force, nil without one. Whether it still counts, ask Lease.Live: take it
// first, look at ring and revocations, and ask that same lease last (PROTOCOL 2).
func (o *Own) Current() *Lease {
	applied := o.applied()
	o.mu.Lock()
	defer o.mu.Unlock()
	for n := len(o.ticks) - 1; n >= 0; n-- {
		if l := o.ticks[n]; !applied.Before(l.Position) {
			o.ticks = o.ticks[n:]
			if l.Position.Epoch != applied.Epoch {
				return nil // the log was begun anew, and nothing of ours stands in it yet
			}
			return l
		}
	}
	return nil
}
