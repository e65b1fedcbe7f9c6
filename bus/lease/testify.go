package lease

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// How often an agent that sees a rollback shows its last grant: soon, and then less often. An issuer that is started again has forgotten what
// it was shown (Behind), and ticks and signs until it is shown it again.
const (
	testifyFirst   = time.Second
	testifySlowest = 5 * time.Second
)

// signedGrant is a grant as the authority signed it.
type signedGrant struct {
	Grant
	body, signature []byte
}

// ownGrants are those that this process was given. They end with it: who starts again with a kept lease has none to show until its next.
type ownGrants struct {
	mu     sync.Mutex
	offers []signedGrant // taken, and not in force yet, oldest first
	kept   *signedGrant  // the newest that was in force; nil: none
}

// offer remembers a grant until it is known whether it comes into force.
func (o *ownGrants) offer(g signedGrant) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.offers = append(o.offers, g); len(o.offers) > maxWaiting {
		o.offers = o.offers[1:]
	}
}

// keep keeps the grant of the lease in force: its chain is that of the log as this agent has applied it, so what contradicts it is
// another log. One that was taken, and not applied, may be the other log's.
func (o *ownGrants) keep(l *Lease) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for n, g := range o.offers {
		if l != nil && g.Position == l.Position && g.Chain == l.Chain {
			o.kept, o.offers = &g, o.offers[n+1:]
			return
		}
	}
}

func (o *ownGrants) newest() *signedGrant {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.kept
}

// Testify shows the issuers the newest grant that was in force here, while the log that they serve is not the one that was applied
// (bus.ErrRollback), until ctx ends: an issuer whose whole disk was put back has no other way to know (Behind).
func (r *Renewer) Testify(ctx context.Context) {
	wait, next := testifyFirst, testifyFirst
	for {
		select {
		case <-time.After(wait - rand.N(wait/4)):
		case <-ctx.Done():
			return
		}
		if r.Stuck == nil || !errors.Is(r.Stuck(), bus.ErrRollback) {
			wait, next = testifyFirst, testifyFirst
			continue
		}
		sent, err := r.testify()
		if err != nil {
			r.Logger.Warn("could not tell the issuers that the log was rolled back", "error", err)
		}
		if wait = testifyFirst; sent {
			next = min(2*next, testifySlowest)
			wait = next
		}
	}
}

// testify tells whether it was sent.
func (r *Renewer) testify() (bool, error) {
	g := r.grants.newest()
	if g == nil || !r.Line.Connected() {
		return false, nil
	}
	body, err := json.Marshal(acked{Agent: r.Agent, Run: r.Holder.Run(), Grant: g.body, GrantSignature: g.signature})
	if err != nil {
		return false, fmt.Errorf("showing a grant: %w", err)
	}
	err = r.Line.Acknowledge(r.Agent, body, ed25519.Sign(r.Key, signed(contextTestimony, body)))
	return err == nil, err
}
