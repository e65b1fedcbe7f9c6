package issuer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// Register is what the bus calls when an agent has joined: the agent gets a box of every HS256 secret
// that it needs. It may be called again; a box that this process has sealed to the same key is not
// sealed again.
func (i *Issuer) Register(ctx context.Context, reg bus.Member) error {
	for attempt := range maxAttempts {
		err := i.sealRing(ctx, reg)
		if !errors.Is(err, bus.ErrConflict) {
			return err
		}
		if !pause(ctx, attempt) {
			return ctx.Err()
		}
	}
	return unavailable("sealing the ring to agent", reg.Name, bus.ErrConflict)
}

func (i *Issuer) sealRing(ctx context.Context, reg bus.Member) error {
	snap := i.Replica.Snapshot()
	if !snap.Ready {
		return fmt.Errorf("sealing the ring to agent %q: %w: the log has not been read yet", reg.Name, ErrUnavailable)
	}
	for _, rec := range snap.Ring.Records() { // by sequence: the order of the keys stays
		if !rec.Alg.Symmetric() || rec.State == keyring.Retired || rec.State == keyring.Revoked {
			continue
		}
		f, err := i.fact(rec.KeyID)
		if err != nil {
			return bus.ErrConflict
		}
		if i.hasBox(rec.KeyID, reg) {
			continue
		}
		k, err := i.privateKey(ctx, rec.KeyID)
		if err != nil {
			return err
		}
		sealed, err := i.seal(k.key, reg.Name, reg.SealingKey)
		if err != nil {
			return err
		}
		if err := i.appendKey(ctx, snap, f, []bus.SealedSecret{sealed}); err != nil {
			i.forgetBox(rec.KeyID, reg.Name)
			return err
		}
		snap = i.Replica.Snapshot()
	}
	return nil
}

// hasBox tells whether the log holds the newest box for an agent, as far as this process knows.
func (i *Issuer) hasBox(kid string, reg bus.Member) bool {
	i.private.mu.Lock()
	last, ok := i.private.sealed[box{kid, reg.Name}]
	i.private.mu.Unlock()
	return ok && last == sha256.Sum256(reg.SealingKey)
}

func (i *Issuer) forgetBox(kid, agent string) {
	i.private.mu.Lock()
	defer i.private.mu.Unlock()
	delete(i.private.sealed, box{kid, agent})
}

// seal makes one box, and remembers to which of the agent's keys it was made.
func (i *Issuer) seal(key *keyring.Key, agent string, public []byte) (bus.SealedSecret, error) {
	if key == nil {
		return bus.SealedSecret{}, fmt.Errorf("sealing to agent %q: the secret is not held here", agent)
	}
	sealed, err := replica.Seal(key, agent, bytes.Clone(public))
	if err != nil {
		return sealed, err
	}
	i.private.mu.Lock()
	defer i.private.mu.Unlock()
	if i.private.sealed == nil {
		i.private.sealed = make(map[box][sha256.Size]byte)
	}
	i.private.sealed[box{key.ID(), agent}] = sha256.Sum256(public)
	return sealed, nil
}

// sealToAll seals an HS256 key to every registered agent. An agent whose sealing key is no key is
// left out, and named in the log: it must not keep the others from theirs.
func (i *Issuer) sealToAll(ctx context.Context, key *keyring.Key) ([]bus.SealedSecret, error) {
	agents, err := i.Fleet.Agents(ctx)
	if err != nil {
		return nil, unavailable("listing", "agents", err)
	}
	boxes := make([]bus.SealedSecret, 0, len(agents))
	for _, a := range agents {
		sealed, err := i.seal(key, a.Name, a.SealingKey)
		if err != nil {
			i.log.Error("an agent gets no HS256 secret: its sealing key is of no use", "agent", a.Name, "kid", key.ID(), "error", err)
			continue
		}
		boxes = append(boxes, sealed)
	}
	return boxes, nil
}

// RemoveAgent strikes an agent off: it gets no further lease and no further secret, and an HS256 ring
// is rotated, for the agent has its secret. Receipts name it until its last lease has ended.
func (i *Issuer) RemoveAgent(ctx context.Context, name string) error {
	switch err := i.Fleet.Remove(ctx, name); {
	case errors.Is(err, bus.ErrNotFound):
		return fmt.Errorf("removing agent %q: %w", name, ErrNotFound)
	case err != nil:
		return unavailable("removing agent", name, err)
	}
	i.audit.Info("agent removed", "agent", name)
	active, ok := i.activeKey(i.Replica.Snapshot().Ring)
	if !ok || !active.Alg.Symmetric() {
		return nil
	}
	if _, err := i.Rotate(ctx, Rotation{}); err != nil {
		return fmt.Errorf("agent %q is removed, but the secret that it holds is not replaced yet (run: sidekey keys rotate): %w", name, err)
	}
	return nil
}
