package issuer

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// Bounds of what is kept of the credentials' uses.
const (
	maxUses   = 1 << 17     // credentials whose last use waits to be written
	usesEvery = time.Minute // between two writes
	usesApart = 45          // seconds between two uses that are both worth a write of one record, whichever issuer heard of them
)

// credentialUse is when a credential was last used, as an agent says.
type credentialUse struct {
	at    int64 // NumericDate
	agent string
}

// uses are those that are not written yet, by id. The zero value is empty.
type uses struct {
	mu      sync.Mutex
	waiting map[string]credentialUse
	looked  time.Time // when the sweep last looked at every credential's user
}

// NoteUses takes in when an agent says that credentials were last used: bus.Fleet.OnUsed calls it. It never blocks on
// the bus. The records show it within about a minute; a time to come counts as now, and none goes back. What an agent
// says is not proven: it can tell of uses that were none.
func (i *Issuer) NoteUses(agent string, used map[string]int64) {
	now := i.now().Unix()
	i.uses.mu.Lock()
	defer i.uses.mu.Unlock()
	if i.uses.waiting == nil {
		i.uses.waiting = make(map[string]credentialUse)
	}
	for id, at := range used {
		at = min(at, now)
		was, known := i.uses.waiting[id]
		if known && was.at >= at || !known && len(i.uses.waiting) >= maxUses || i.Replica.CredentialByID(id) == nil {
			continue // older, or too many, or invented
		}
		i.uses.waiting[id] = credentialUse{at, agent}
	}
}

// keepUses writes the uses into the records until ctx ends.
func (i *Issuer) keepUses(ctx context.Context) {
	every := time.NewTicker(usesEvery)
	defer every.Stop()
	for {
		select {
		case <-every.C:
			i.writeUses(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// writeUses writes what has waited, within the time to the next. What is left over waits on.
func (i *Issuer) writeUses(ctx context.Context) {
	if i.Credentials == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, usesEvery)
	defer cancel()
	i.uses.mu.Lock()
	all := i.uses.waiting
	i.uses.waiting = nil
	i.uses.mu.Unlock()
	for id, u := range all {
		held := i.Replica.CredentialByID(id)
		if held == nil {
			continue
		}
		if err := i.writeUse(ctx, bus.Name(held.Subject, id), u); err != nil {
			i.log.Debug("could not write when a credential was used, trying again later", "id", id, "error", err)
			i.NoteUses(u.agent, map[string]int64{id: u.at})
		}
	}
}

func (i *Issuer) writeUse(ctx context.Context, name string, u credentialUse) error {
	c, revision, err := i.credentialAgain(ctx, name)
	if errors.Is(err, ErrNotFound) || err == nil && u.at < c.LastUsed+usesApart {
		return nil
	}
	if err != nil {
		return err
	}
	c.LastUsed, c.LastAgent = u.at, u.agent
	_, err = i.Credentials.Update(ctx, name, encode(c), revision)
	return err
}
