package issuer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// boxesPerEntry bounds the sealed secrets in one entry, 1.2 kB each, far below bus.MaxBody.
const boxesPerEntry = 256

// keepRing looks at the ring whenever something has changed, and once a second, until ctx ends.
func (i *Issuer) keepRing(ctx context.Context) {
	for {
		replicaChanged, fleetChanged := i.Replica.Changed(), i.Fleet.Changed()
		if err := i.Step(ctx); err != nil && ctx.Err() == nil {
			i.log.Warn("could not bring the ring on, trying again", "error", err)
		}
		t := time.NewTimer(time.Second)
		select {
		case <-replicaChanged:
		case <-fleetChanged:
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
		t.Stop()
	}
}

// Step does what is due for the ring, as this issuer's replica shows it: the first key, a
// scheduled announcement, the activation of a key that all agents have acknowledged, a retirement.
// It writes one entry at most, and only if nobody has written one about a key meanwhile, so any
// number of issuers may call it at any time. Run calls it.
func (i *Issuer) Step(ctx context.Context) error {
	snap := i.Replica.Snapshot()
	if !snap.Ready || !i.fresh() {
		return nil
	}
	err := i.step(ctx, snap)
	if errors.Is(err, bus.ErrConflict) {
		return nil // another issuer was first; its entry wakes this one
	}
	return err
}

func (i *Issuer) step(ctx context.Context, snap *replica.Snapshot) error {
	active, ok := i.activeKey(snap.Ring)
	waiting, private, err := i.waitingKey(ctx, snap.Ring)
	if err != nil {
		return err
	}
	now := i.now()
	switch {
	case !ok && waiting == nil:
		_, err := i.announce(ctx, snap, i.cfg.Alg, i.cfg.Bits, now)
		return err
	case !ok:
		return i.activate(ctx, snap, waiting) // nothing signs: there is nobody to wait for
	case waiting != nil && !now.Before(private.activateAt):
		pending, err := i.pending(ctx, snap, waiting)
		if err != nil {
			return err
		}
		if len(pending) == 0 {
			return i.activate(ctx, snap, waiting)
		}
	case waiting == nil && i.cfg.RotateEvery > 0 && !now.Before(active.Created.Add(max(i.cfg.RotateEvery-i.cfg.PublishAhead, i.cfg.RotateEvery/2))):
		_, err := i.announce(ctx, snap, active.Alg, i.bitsOf(active), now.Add(i.cfg.PublishAhead))
		return err
	}
	return i.retire(ctx, snap, active)
}

// bitsOf is the size for a key that follows rec: the configured one, unless the ring's algorithm
// was changed by a rotation asked for.
func (i *Issuer) bitsOf(rec *keyring.KeyRecord) int {
	if rec.Alg == i.cfg.Alg {
		return i.cfg.Bits
	}
	return 0
}

// waitingKey gives the oldest announced key that is meant to sign, nil if there is none.
func (i *Issuer) waitingKey(ctx context.Context, ring *keyring.Ring) (*keyring.KeyRecord, *privateKey, error) {
	for _, rec := range ring.Records() {
		if rec.State != keyring.Announced {
			continue
		}
		k, err := i.privateKey(ctx, rec.KeyID)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if k.sign {
			return &rec, k, nil
		}
	}
	return nil, nil, nil
}

// pending names the agents that have not acknowledged a key's newest entry.
func (i *Issuer) pending(ctx context.Context, snap *replica.Snapshot, rec *keyring.KeyRecord) ([]string, error) {
	receipt, err := i.Fleet.Receipt(ctx, bus.Position{Epoch: snap.Position.Epoch, Seq: rec.Seq})
	if err != nil {
		return nil, unavailable("asking who has acknowledged key", rec.KeyID, err)
	}
	return receipt.Pending, nil
}

// announce makes a key, keeps its private half in the bucket, and then tells everybody of it. It
// signs nothing yet. bus.ErrConflict: another issuer wrote about a key first.
func (i *Issuer) announce(ctx context.Context, snap *replica.Snapshot, alg keyring.Alg, bits int, activateAt time.Time) (*keyring.Key, error) {
	key, err := keyring.Generate(alg, bits)
	if err != nil {
		return nil, &InputError{"alg, bits", err.Error()}
	}
	return key, i.introduce(ctx, snap, key, true, activateAt, i.cfg.AccessLifetime)
}

// introduce brings a key into the log as announced.
func (i *Issuer) introduce(ctx context.Context, snap *replica.Snapshot, key *keyring.Key, sign bool, activateAt time.Time, life time.Duration) error {
	if err := i.storePrivate(ctx, key, sign, activateAt); err != nil {
		return err
	}
	fact := &bus.KeyFact{
		KeyID: key.ID(), Alg: string(key.Alg()), Bits: key.Bits(), State: string(keyring.Announced),
		Issuer: i.cfg.URL, Audience: i.cfg.Audience, MaxLifetime: int64(life / time.Second), Created: i.now().Unix(),
	}
	var boxes []bus.SealedSecret
	var err error
	if key.Alg().Symmetric() {
		boxes, err = i.sealToAll(ctx, key)
	} else {
		fact.JWK, err = key.PublicJWK()
	}
	if err != nil {
		return fmt.Errorf("announcing key %q: %w", key.ID(), err)
	}
	err = i.appendKey(ctx, snap, fact, boxes)
	if errors.Is(err, bus.ErrConflict) {
		i.private.drop(key.ID())
		if r, gerr := i.Keys.Get(ctx, privateName(key.ID())); gerr == nil && len(boxes) <= boxesPerEntry {
			_ = i.Keys.Delete(ctx, r.Name, r.Revision) // it was told to nobody
		}
	}
	return err
}

// appendKey writes a key's entry if nobody has written about any key since snap, and further
// entries where the boxes are too many for one. It returns once this issuer itself has read them.
func (i *Issuer) appendKey(ctx context.Context, snap *replica.Snapshot, fact *bus.KeyFact, boxes []bus.SealedSecret) error {
	last := snap.Position.Seq
	for {
		n := min(len(boxes), boxesPerEntry)
		fact.Sealed, boxes = boxes[:n:n], boxes[n:]
		pos, err := i.Log.AppendIf(ctx, bus.KindKey, last, fact)
		if errors.Is(err, bus.ErrConflict) {
			return err
		}
		if err != nil {
			return unavailable("writing the new state of key", fact.KeyID, err)
		}
		last = pos.Seq
		i.audit.Info("key entry written", "kid", fact.KeyID, "alg", fact.Alg, "state", fact.State, "seq", pos.Seq, "sealed_to", n)
		if len(boxes) == 0 {
			return i.settle(ctx, pos)
		}
	}
}

// fact gives a key's record in the log, to be changed and written again. Its boxes need not be repeated.
func (i *Issuer) fact(kid string) (*bus.KeyFact, error) {
	for _, f := range i.Replica.Keys() {
		if f.KeyID == kid {
			c := *f
			c.Sealed = nil
			return &c, nil
		}
	}
	return nil, fmt.Errorf("reading key %q: %w", kid, ErrNotFound)
}

// activate lets an announced key sign (PROTOCOL 16). Its predecessor signs nothing from the moment
// that an issuer reads this; its retirement is an entry of its own, later.
func (i *Issuer) activate(ctx context.Context, snap *replica.Snapshot, rec *keyring.KeyRecord) error {
	if _, err := i.privateKey(ctx, rec.KeyID); err != nil {
		return err
	}
	return i.become(ctx, snap, rec.KeyID, keyring.Active, func(*bus.KeyFact) {})
}

// become writes a key's next state.
func (i *Issuer) become(ctx context.Context, snap *replica.Snapshot, kid string, to keyring.State, change func(*bus.KeyFact)) error {
	f, err := i.fact(kid)
	if err != nil {
		return err
	}
	if !keyring.State(f.State).Next(to) {
		return bus.ErrConflict // the snapshot is older than what Keys told
	}
	f.State = string(to)
	// A lifetime that was configured longer since then counts for what the key has signed since then.
	f.MaxLifetime = max(f.MaxLifetime, int64(i.cfg.AccessLifetime/time.Second))
	change(f)
	return i.appendKey(ctx, snap, f, nil)
}

// retire writes what is due for the keys that do not sign any more: superseded ones become
// retiring once every issuer has stopped signing with them (PROTOCOL 17), retiring ones retired
// once all that they signed has expired.
func (i *Issuer) retire(ctx context.Context, snap *replica.Snapshot, active *keyring.KeyRecord) error {
	now := i.now()
	for _, rec := range snap.Ring.Records() {
		switch {
		case rec.State == keyring.Active && rec.KeyID != active.KeyID && rec.Seq < active.Seq:
			if now.Before(i.superseded(active.KeyID, now).Add(retireAfter)) {
				continue
			}
			return i.become(ctx, snap, rec.KeyID, keyring.Retiring, func(f *bus.KeyFact) {
				f.RetiredAt = now.Add(clockSkew).Unix()
			})
		case rec.State == keyring.Retiring && i.spent(&rec, now):
			return i.become(ctx, snap, rec.KeyID, keyring.Retired, func(f *bus.KeyFact) {
				f.ExpiresAt = now.Add(retiredSlack).Unix()
			})
		}
	}
	return nil
}

// superseded is when this process first saw that the active key was active.
func (i *Issuer) superseded(active string, now time.Time) time.Time {
	i.private.mu.Lock()
	defer i.private.mu.Unlock()
	if i.private.active != active {
		i.private.active, i.private.since = active, now
	}
	return i.private.since
}

// spent tells whether nothing that a retiring key signed can be accepted any more, by any clock.
func (i *Issuer) spent(rec *keyring.KeyRecord, now time.Time) bool {
	life := max(rec.MaxLifetime, i.cfg.AccessLifetime)
	return now.After(rec.RetiredAt.Add(life + time.Duration(i.tail())*time.Second))
}
