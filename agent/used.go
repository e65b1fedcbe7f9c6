package agent

import (
	"sync"
	"sync/atomic"
)

// maxUsed bounds the credentials whose last use is remembered until somebody takes it.
const maxUsed = 1 << 16

// used remembers when each API key and token was last used. Only good ones come here, so that nobody fills it who has
// not so many of them.
type used struct {
	mu   sync.RWMutex
	last map[string]*atomic.Int64 // NumericDate by id
}

// note notes a use. id is kept.
func (u *used) note(id string, now int64) {
	u.mu.RLock()
	at := u.last[id]
	if at != nil && at.Load() < now {
		at.Store(now)
	}
	u.mu.RUnlock()
	if at != nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.last[id] != nil || len(u.last) >= maxUsed {
		return
	}
	if u.last == nil {
		u.last = make(map[string]*atomic.Int64)
	}
	at = new(atomic.Int64)
	at.Store(now)
	u.last[id] = at
}

// Used gives the time (NumericDate) of the last use of each API key and token, by id, that was used since the last call.
func (a *Agent) Used() map[string]int64 {
	a.used.mu.Lock()
	last := a.used.last
	a.used.last = nil
	a.used.mu.Unlock()
	taken := make(map[string]int64, len(last))
	for id, at := range last {
		taken[id] = at.Load()
	}
	return taken
}
