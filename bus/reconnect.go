package bus

import (
	"math/rand/v2"
	"time"
)

// Pauses between two rounds through all addresses of the bus: soon at first, since most outages are a
// restart, and then so far apart that a bus which comes back is not knocked over by those who waited
// for it. Issuers are few, and everybody waits for them.
const (
	reconnectFirst  = 100 * time.Millisecond
	reconnectAgent  = 4 * time.Second
	reconnectIssuer = time.Second
)

// reconnectPause is the pause after a round: half to one and a half of 100 ms, 200 ms, 400 ms up to
// last, so that those who lost the bus together do not come back together.
func reconnectPause(round int, last time.Duration) time.Duration {
	d := min(last, reconnectFirst<<min(max(round-1, 0), 10))
	return d/2 + rand.N(d)
}

// longestPause is where a connection's pauses end.
func (cfg *ConnectConfig) longestPause() time.Duration {
	if cfg.Agent != "" || cfg.inbox != "" {
		return reconnectAgent
	}
	return reconnectIssuer
}
