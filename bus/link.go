package bus

import (
	"context"
	"crypto/ed25519"
	"math/rand/v2"
	"time"
)

// statusEvery is how often an agent tells its status, more or less.
const statusEvery = 10 * time.Second

// Link tells an agent's status to the issuers, and which credentials were used.
type Link struct {
	Conn   *Conn
	Agent  string                 // its name
	Status func() ([]byte, error) // JSON with the members "agent", "run", "version", "epoch" and "applied_seq"
	// Used gives when credentials (by Credential.ID) were last used, as NumericDates, of those used since it
	// was last called, once a minute. nil: it is not told.
	Used func() map[string]int64
	Key  ed25519.PrivateKey // the agent's own, needed with Used: unsigned, nothing is told

	unsaid map[string]int64 // used, and confirmed by no issuer yet
}

// Run tells both, at once and then regularly, until ctx ends; what was used, once more then. An agent
// serves without being heard. The second time comes at any moment of a period, and no two periods are
// alike: a fleet that was restarted at once speaks evenly from then on.
func (l *Link) Run(ctx context.Context) {
	var told time.Time
	wait := rand.N(statusEvery)
	for ; ; wait = statusEvery - rand.N(statusEvery/5) {
		if !l.tell() {
			wait = time.Second + rand.N(time.Second)
		}
		if time.Since(told) >= usedEvery {
			told = time.Now()
			l.tellUsed(ctx)
		}
		if !sleep(ctx, wait) {
			l.tellUsed(context.WithoutCancel(ctx))
			return
		}
	}
}

func (l *Link) tell() bool {
	body, err := l.Status()
	if err == nil {
		err = l.Conn.nc.Publish(l.Conn.subjects.status(encodePart(l.Agent)), body)
	}
	if err != nil {
		l.Conn.log.Debug("could not tell the status", "error", err)
	}
	return err == nil
}
