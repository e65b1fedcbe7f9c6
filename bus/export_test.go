package bus

import (
	"context"
	"crypto/tls"
	"time"
)

// What tests outside the package look at from inside.
var (
	Older       = older
	SignedBytes = signedBytes
)

// LiveBuffer and Remembered are bounds that tests go beyond.
const (
	LiveBuffer = liveBuffer
	Remembered = remembered
	WriteBatch = writeBatch
)

// Subscriptions is how many a connection holds.
func (c *Conn) Subscriptions() int { return c.nc.NumSubscriptions() }

// JoinStep has a function called between the steps of joining, until the test ends.
func JoinStep(cleanup func(func()), step func(string) error) {
	was := joinStep
	joinStep = step
	cleanup(func() { joinStep = was })
}

// HeardNames is how many names a fleet remembers what it heard of.
func (f *Fleet) HeardNames() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.heard)
}

// ReconnectPause is that of an agent.
func ReconnectPause(round int) time.Duration { return reconnectPause(round, reconnectAgent) }

// RouteTLS is routeTLS.
func RouteTLS(keys *Keys, c *ClusterConfig) (*tls.Config, error) { return routeTLS(keys, c) }

// Set replaces the others, as an issuer does that has looked who is there.
func (p *Peers) Set(all []Peer) error { _, err := p.set(all); return err }

// Flush returns when the server has heard all that the connection said, subscriptions too.
func (c *Conn) Flush() error { return c.nc.FlushTimeout(attempt) }

// LookOften has every Enrolment that is opened look who was removed often, until the test ends.
func LookOften(cleanup func(func())) {
	was := lookForPeers
	lookForPeers = 10 * time.Millisecond
	cleanup(func() { lookForPeers = was })
}

// Look looks who was removed, as an issuer does every few seconds.
func (e *Enrolment) Look(ctx context.Context) error { return e.lookWhoIsIn(ctx) }
