package issuer

import (
	"context"
	"errors"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// stepApart is the pause after a look at the ring: every acknowledgement of a large fleet is a change.
const stepApart = 20 * time.Millisecond

// keepRing looks at the ring whenever something has changed, and once a second, until ctx ends. Without the Duty it only
// watches, so that it knows how long a key has signed nothing when it takes over.
func (i *Issuer) keepRing(ctx context.Context) {
	for {
		replicaChanged, fleetChanged := i.Replica.Changed(), i.Fleet.Changed()
		dutyChanged, step := i.dutyChanged(), i.tryStep
		if !i.OnDuty() {
			step = i.watchRing
		}
		wrote, err := step(ctx)
		if err != nil && ctx.Err() == nil {
			i.log.Warn("could not bring the ring on, trying again", "error", err)
		}
		if wrote && err == nil {
			continue
		}
		if awaitAny(ctx, time.Second, replicaChanged, fleetChanged, dutyChanged) != nil || awaitAny(ctx, stepApart) != nil {
			return
		}
	}
}

// awaitAny waits for a change, or for d; its error is ctx's.
func awaitAny(ctx context.Context, d time.Duration, changes ...<-chan struct{}) error {
	var of [3]<-chan struct{} // nil: never
	copy(of[:], changes)
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-of[0]:
	case <-of[1]:
	case <-of[2]:
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// Step does what is due for the ring, as this issuer's replica shows it: the first key, a box for an
// agent that lacks one, an activation that was asked for or is scheduled, the next standby, a
// retirement. It writes one entry at most, and only if nobody has written one about a key
// meanwhile, so any number of issuers may call it at any time. Run calls it.
func (i *Issuer) Step(ctx context.Context) error {
	_, err := i.tryStep(ctx)
	return err
}

// watchRing notes which keys have signed nothing since when, and writes nothing.
func (i *Issuer) watchRing(ctx context.Context) (wrote bool, err error) {
	if !i.Replica.Snapshot().Ready {
		return false, nil
	}
	v, err := i.view(ctx, i.cfg.Alg)
	if err != nil {
		return false, err
	}
	used := inLines(v.lines(v.alg, i.bitsOf(v.alg)))
	for _, k := range v.keys {
		if k.state() == keyring.Active {
			i.superseded(k.KeyID, !used[k.KeyID], v.now)
		}
	}
	return false, nil
}

// tryStep is Step, and tells whether it has written something.
func (i *Issuer) tryStep(ctx context.Context) (wrote bool, err error) {
	if !i.Replica.Snapshot().Ready || !i.fresh() {
		return false, nil
	}
	wrote, err = i.step(ctx)
	if errors.Is(err, bus.ErrConflict) {
		return false, nil // another issuer was first; its entry wakes this one
	}
	return wrote, err
}

// step decides by one view of the ring. bus.ErrConflict: an entry came between.
func (i *Issuer) step(ctx context.Context) (bool, error) {
	v, err := i.view(ctx, i.cfg.Alg)
	if err != nil {
		return false, err
	}
	if done, err := i.sealMissing(ctx, v); done || err != nil {
		return done, err
	}
	lines := v.lines(v.alg, i.bitsOf(v.alg))
	for at := range lines {
		if done, err := i.advance(ctx, v, &lines[at]); done || err != nil {
			return done, err
		}
	}
	for at := range lines {
		if done, err := i.standBy(ctx, v, &lines[at]); done || err != nil {
			return done, err
		}
	}
	return i.retire(ctx, v, lines)
}

// advance activates a line's next key if that is due and allowed (PROTOCOL 16): somebody asked for
// it or the schedule does, it has been published long enough, and this issuer sees its announcement
// settled.
func (i *Issuer) advance(ctx context.Context, v *ringView, l *line) (bool, error) {
	k := l.waiting()
	switch {
	case k == nil:
		return false, nil
	case v.virgin() && k.ActivatesAt != 0:
		return true, i.activate(ctx, v, k)
	case l.next != nil:
		if v.now.Before(time.Unix(k.ActivatesAt, 0)) {
			return false, nil
		}
	case !i.due(v, l), v.now.Before(i.published(v, l, k)):
		return false, nil
	}
	if r, err := i.announced(ctx, v, k); err != nil || !r.Confirmed {
		return false, err
	}
	return true, i.activate(ctx, v, k)
}

// published is when a key has been announced for so long that it may sign by schedule. One that
// takes the place of a key that is known too widely waits for no poller.
func (i *Issuer) published(v *ringView, l *line, k *ringKey) time.Time {
	if l.active == nil || l.active.tainted {
		return time.Unix(k.Created, 0)
	}
	return time.Unix(k.Created, 0).Add(i.cfg.PublishAhead)
}

// standBy announces a line's next key ahead of time (PROTOCOL 18). Where nothing signs yet, it is
// to sign at once.
func (i *Issuer) standBy(ctx context.Context, v *ringView, l *line) (bool, error) {
	if l.waiting() != nil {
		return false, nil
	}
	var at time.Time
	if l.active == nil {
		at = v.now
	}
	_, err := i.announce(ctx, v, l.audience, v.alg, i.bitsOf(v.alg), at)
	return true, err
}

// announced is the receipt of a key's announcement, as it now stands.
func (i *Issuer) announced(ctx context.Context, v *ringView, k *ringKey) (*Receipt, error) {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	return i.receipt(ctx, bus.Position{Epoch: v.snap.Position.Epoch, Seq: k.seq})
}

// retire writes what is due for the keys that do not sign: superseded ones become retiring once
// every issuer has stopped signing with them (PROTOCOL 17), retiring ones retired once all that they
// signed has expired, and announced ones that will never sign retired at once.
func (i *Issuer) retire(ctx context.Context, v *ringView, lines []line) (bool, error) {
	used := inLines(lines)
	for _, k := range v.keys {
		if k.state() == keyring.Active {
			idle := i.superseded(k.KeyID, !used[k.KeyID], v.now)
			if used[k.KeyID] || v.now.Before(idle.Add(retireAfter)) || v.active(k.Audience) == nil {
				continue
			}
			return true, i.become(ctx, v, k, keyring.Retiring, func(f *bus.KeyFact) {
				f.RetiredAt = v.now.Add(clockSkew).Unix()
			})
		}
		spare := k.waits() && !used[k.KeyID] && (k.ActivatesAt == 0 || k.tainted)
		if spare || k.state() == keyring.Retiring && i.spent(k, v.now) {
			return true, i.become(ctx, v, k, keyring.Retired, func(f *bus.KeyFact) {
				f.ExpiresAt = v.now.Add(retiredSlack).Unix()
			})
		}
	}
	return false, nil
}

// inLines gives the keys that sign, or are to.
func inLines(lines []line) map[string]bool {
	used := make(map[string]bool)
	for _, l := range lines {
		for _, k := range []*ringKey{l.active, l.next, l.standby} {
			if k != nil {
				used[k.KeyID] = true
			}
		}
	}
	return used
}

// superseded is when this process first saw that an active key signs nothing any more.
func (i *Issuer) superseded(kid string, is bool, now time.Time) time.Time {
	i.private.mu.Lock()
	defer i.private.mu.Unlock()
	since, known := i.private.idle[kid]
	switch {
	case !is:
		delete(i.private.idle, kid)
		return now
	case known:
		return since
	case i.private.idle == nil:
		i.private.idle = make(map[string]time.Time)
	}
	i.private.idle[kid] = now
	return now
}

// spent tells whether nothing that a retiring key signed can be accepted any more, by any clock.
func (i *Issuer) spent(k *ringKey, now time.Time) bool {
	life := max(time.Duration(k.MaxLifetime)*time.Second, i.cfg.longestToken())
	return now.After(time.Unix(k.RetiredAt, 0).Add(life + time.Duration(i.tail())*time.Second))
}
