package replica

import (
	"maps"
	"math"
	"sync"
	"sync/atomic"

	"github.com/sidekey/sidekey/bus"
)

// cutoff refuses what began before it: a place in the log, not a time (DESIGN §7).
type cutoff struct {
	Seq  uint64 // tokens with a smaller session_seq are refused
	Time int64  // NumericDate; of tokens without session_seq, those with iat not after it
	Exp  int64  // NumericDate; it matters until then
	// Credentials is Seq of the newest cutoff that is not for sessions only: API keys and opaque tokens
	// whose entry stands before it are refused.
	Credentials uint64
}

func cutoffAt(f *bus.Revocation, seq uint64) cutoff {
	cut := cutoff{Seq: seq, Time: f.Time, Exp: f.ExpiresAt}
	if !f.Sessions {
		cut.Credentials = seq
		// All credentials are looked through when it ends, so few times are there for that.
		if rest := cut.Exp % cutoffEnds; rest != 0 && cut.Exp < math.MaxInt64-cutoffEnds {
			cut.Exp += cutoffEnds - rest
		}
	}
	return cut
}

// cutoffEnds is how far apart cutoffs that concern credentials end, in seconds.
const cutoffEnds = 600

// cutoffs are the live cutoffs by the fingerprint of their subject or client. One writer, many
// readers. The zero value is empty.
type cutoffs struct {
	count atomic.Int64 // so that readers need no lock while there is none
	mu    sync.RWMutex
	byID  map[id]cutoff
}

// refuses tells whether something that began at sequence seq (or, without one, was issued at iat)
// is cut off.
func (c *cutoffs) refuses(k id, seq uint64, hasSeq bool, iat int64) bool {
	cut, ok := c.get(k)
	switch {
	case !ok:
		return false
	case hasSeq:
		return seq < cut.Seq
	}
	return iat <= cut.Time
}

// refusesCredential tells whether a credential whose entry stands at seq is cut off.
func (c *cutoffs) refusesCredential(k id, seq uint64) bool {
	cut, ok := c.get(k)
	return ok && seq < cut.Credentials
}

func (c *cutoffs) get(k id) (cut cutoff, ok bool) {
	if c.count.Load() == 0 {
		return cut, false
	}
	c.mu.RLock()
	cut, ok = c.byID[k]
	c.mu.RUnlock()
	return cut, ok
}

// add combines a cutoff with the one that is there: each member by its maximum.
func (c *cutoffs) add(k id, cut cutoff) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byID == nil {
		c.byID = make(map[id]cutoff)
	}
	old := c.byID[k]
	c.byID[k] = cutoff{max(old.Seq, cut.Seq), max(old.Time, cut.Time), max(old.Exp, cut.Exp), max(old.Credentials, cut.Credentials)}
	c.count.Store(int64(len(c.byID)))
}

// endsForCredentials tells whether drop is about to forget a cutoff that concerns credentials.
func (c *cutoffs) endsForCredentials(now int64) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, cut := range c.byID {
		if cut.Exp <= now && cut.Credentials > 0 {
			return true
		}
	}
	return false
}

// drop forgets the cutoffs that expired at or before now. It calls announce with the latest of
// their ends before it does: a reader that no longer finds a cutoff sees that it was dropped.
func (c *cutoffs) drop(now int64, announce func(int64)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var newest int64
	for _, cut := range c.byID {
		if cut.Exp <= now {
			newest = max(newest, cut.Exp)
		}
	}
	if newest == 0 {
		return
	}
	announce(newest)
	maps.DeleteFunc(c.byID, func(_ id, cut cutoff) bool { return cut.Exp <= now })
	c.count.Store(int64(len(c.byID)))
}

// all gives a copy, for an image.
func (c *cutoffs) all() map[id]cutoff {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return maps.Clone(c.byID)
}
