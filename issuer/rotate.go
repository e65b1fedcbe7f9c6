package issuer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// KeyStatus is a key as it stands, and how far the fleet is with it.
type KeyStatus struct {
	KeyID       string
	Alg         keyring.Alg
	Bits        int
	State       keyring.State // one that another has superseded counts as retiring
	Created     time.Time
	RetiredAt   time.Time // zero: not yet
	Seq         uint64
	Audience    string    // HS256: the one audience of its tokens
	ActivatesAt time.Time // announced: the earliest; zero: it only verifies
	Applied     []string  // agents that have acknowledged its newest entry
	Fenced      []string  // those that cannot be vouching without it: their leases have ended
	Pending     []string  // those that have not
	Done        bool      // what was asked for is so; else it waits for Pending or ActivatesAt
}

// Rotation is what Rotate may be asked for. The zero value is as configured.
type Rotation struct {
	Alg          keyring.Alg    // "": the active key's
	Bits         int            // RSA only; 0: as configured
	PublishAhead *time.Duration // nil: as configured
}

// Rotate announces a new key, or joins the announcement that waits already, and activates it once
// every agent has acknowledged it and it has been published long enough. It waits for that for
// Config.RotateWait. Not Done means that the key stays announced: Run activates it as soon as
// Pending is empty and ActivatesAt has come, and never before.
func (i *Issuer) Rotate(ctx context.Context, r Rotation) (*KeyStatus, error) {
	ahead := i.cfg.PublishAhead
	set(&ahead, r.PublishAhead)
	if ahead < 0 || ahead > 30*24*time.Hour {
		return nil, &InputError{"publish_ahead", "must be between 0 and 30 days"}
	}
	kid, err := i.startRotation(ctx, r, ahead)
	if err != nil {
		return nil, err
	}
	i.audit.Info("rotation asked for", "kid", kid, "publish_ahead", ahead)
	return i.awaitActive(ctx, kid)
}

// startRotation gives the kid of the key that is to follow the active one.
func (i *Issuer) startRotation(ctx context.Context, r Rotation, ahead time.Duration) (string, error) {
	for attempt := range maxAttempts {
		snap := i.Replica.Snapshot()
		if !snap.Ready {
			return "", fmt.Errorf("rotating: %w: the log has not been read yet", ErrUnavailable)
		}
		active, ok := i.activeKey(snap.Ring)
		alg, bits := i.cfg.Alg, i.cfg.Bits
		if ok {
			alg, bits = active.Alg, i.bitsOf(active)
		}
		if r.Alg != "" {
			alg, bits = r.Alg, 0
		}
		if r.Bits != 0 {
			bits = r.Bits
		}
		waiting, _, err := i.waitingKey(ctx, snap.Ring)
		if err != nil {
			return "", err
		}
		if waiting != nil {
			if (r.Alg != "" && waiting.Alg != r.Alg) || (r.Bits != 0 && waiting.Bits != r.Bits) {
				return "", fmt.Errorf("rotating to %s: key %q (%s, %d bits) is announced already: %w", alg, waiting.KeyID, waiting.Alg, waiting.Bits, ErrExists)
			}
			return waiting.KeyID, nil
		}
		key, err := i.announce(ctx, snap, alg, bits, i.now().Add(ahead))
		if err == nil {
			return key.ID(), nil
		}
		if !errors.Is(err, bus.ErrConflict) {
			return "", err
		}
		if !pause(ctx, attempt) {
			return "", ctx.Err()
		}
	}
	return "", unavailable("rotating", string(r.Alg), bus.ErrConflict)
}

// awaitActive waits until a key is active, or for Config.RotateWait, and not at all if it may not
// sign before that has passed anyway.
func (i *Issuer) awaitActive(ctx context.Context, kid string) (*KeyStatus, error) {
	deadline := time.NewTimer(i.cfg.RotateWait)
	defer deadline.Stop()
	for {
		replicaChanged, fleetChanged := i.Replica.Changed(), i.Fleet.Changed()
		if err := i.Step(ctx); err != nil {
			return nil, err
		}
		st, err := i.Key(ctx, kid)
		if err != nil {
			return nil, err
		}
		st.Done = st.State != keyring.Announced
		early := st.ActivatesAt.Sub(i.now())
		if st.Done || early > i.cfg.RotateWait {
			return st, nil
		}
		due := time.NewTimer(max(min(early, time.Second), 10*time.Millisecond))
		select {
		case <-replicaChanged:
		case <-fleetChanged:
		case <-due.C:
		case <-deadline.C:
			due.Stop()
			return st, nil
		case <-ctx.Done():
			due.Stop()
			return nil, ctx.Err()
		}
		due.Stop()
	}
}

// RevokeKey withdraws a key, and with it every token that it signed. Before the active key goes,
// another is made and activated, as Rotate does but with nothing published ahead; while an agent
// has not acknowledged that one, nothing is revoked, and Pending names who is waited for.
func (i *Issuer) RevokeKey(ctx context.Context, kid string) (*KeyStatus, error) {
	for attempt := range maxAttempts {
		snap := i.Replica.Snapshot()
		rec, ok := snap.Ring.Record(kid)
		if !ok {
			return nil, fmt.Errorf("revoking key %q: %w", kid, ErrNotFound)
		}
		if rec.State == keyring.Revoked {
			break
		}
		if active, ok := i.activeKey(snap.Ring); ok && active.KeyID == kid {
			if st, err := i.replace(ctx, kid); st != nil || err != nil {
				return st, err
			}
			continue
		}
		life := max(rec.MaxLifetime, i.cfg.AccessLifetime)
		err := i.become(ctx, snap, kid, keyring.Revoked, func(f *bus.KeyFact) {
			f.ExpiresAt = i.now().Add(life).Unix() + i.tail()
		})
		if err == nil {
			i.private.drop(kid)
			i.audit.Warn("key revoked", "kid", kid)
			break
		}
		if !errors.Is(err, bus.ErrConflict) {
			return nil, err
		}
		if !pause(ctx, attempt) {
			return nil, ctx.Err()
		}
	}
	st, err := i.Key(ctx, kid)
	if err == nil && st.State != keyring.Revoked {
		return nil, unavailable("revoking key", kid, bus.ErrConflict)
	}
	if err == nil {
		st.Done = true
		err = i.dropPrivate(ctx)
	}
	return st, err
}

// replace activates another key than kid. Its status is not nil if that has to wait: then it is
// kid's, with those who are waited for.
func (i *Issuer) replace(ctx context.Context, kid string) (*KeyStatus, error) {
	next, err := i.startRotation(ctx, Rotation{}, 0)
	if err != nil {
		return nil, err
	}
	if err := i.hasten(ctx, next); err != nil {
		return nil, err
	}
	st, err := i.awaitActive(ctx, next)
	if err != nil || st.Done {
		return nil, err
	}
	old, err := i.Key(ctx, kid)
	if err != nil {
		return nil, err
	}
	old.Applied, old.Pending = st.Applied, st.Pending
	return old, nil
}

// hasten lets an announced key sign as soon as all agents have acknowledged it.
func (i *Issuer) hasten(ctx context.Context, kid string) error {
	k, err := i.privateKey(ctx, kid)
	if err != nil || k.key == nil || !k.activateAt.After(i.now()) {
		return err
	}
	return i.storePrivate(ctx, k.key, true, i.now())
}

// Key gives one key as it stands.
func (i *Issuer) Key(ctx context.Context, kid string) (*KeyStatus, error) {
	all, err := i.ListKeys(ctx)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(all, func(k KeyStatus) bool { return k.KeyID == kid })
	if at < 0 {
		return nil, fmt.Errorf("reading key %q: %w", kid, ErrNotFound)
	}
	st := &all[at]
	pos := bus.Position{Epoch: i.Replica.Snapshot().Position.Epoch, Seq: st.Seq}
	receipt, err := i.Fleet.Receipt(ctx, pos)
	if err != nil {
		return nil, unavailable("asking who has acknowledged key", kid, err)
	}
	st.Applied, st.Fenced, st.Pending = receipt.Applied, receipt.Fenced, receipt.Pending
	if k, err := i.privateKey(ctx, kid); err == nil && k.sign && st.State == keyring.Announced {
		st.ActivatesAt = k.activateAt
	}
	return st, nil
}

// ListKeys gives the ring, by the sequence of each key's newest entry.
func (i *Issuer) ListKeys(context.Context) ([]KeyStatus, error) {
	ring := i.Replica.Snapshot().Ring
	active, _ := i.activeKey(ring)
	recs := ring.Records()
	all := make([]KeyStatus, 0, len(recs))
	for _, rec := range recs {
		st := KeyStatus{
			KeyID: rec.KeyID, Alg: rec.Alg, Bits: rec.Bits, State: rec.State, Created: rec.Created,
			RetiredAt: rec.RetiredAt, Seq: rec.Seq, Audience: rec.Audience,
		}
		if active != nil && rec.State == keyring.Active && rec.KeyID != active.KeyID {
			st.State = keyring.Retiring
		}
		all = append(all, st)
	}
	return all, nil
}
