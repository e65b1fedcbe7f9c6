package issuer

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

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
	return st, i.confirm(ctx, st, 0)
}

// ListKeys gives the ring, by the sequence that brought each key into its state. The receipts' lists
// are empty: ask Key.
func (i *Issuer) ListKeys(context.Context) ([]KeyStatus, error) {
	snap := i.Replica.Snapshot()
	facts := make(map[string]*bus.KeyFact)
	for _, f := range i.Replica.Keys() {
		facts[f.KeyID] = f
	}
	recs := snap.Ring.Records()
	all := make([]KeyStatus, 0, len(recs))
	for _, rec := range recs {
		st := KeyStatus{
			KeyID: rec.KeyID, Alg: rec.Alg, Bits: rec.Bits, State: rec.State, Created: rec.Created, RetiredAt: rec.RetiredAt, Audience: rec.Audience,
			Receipt: Receipt{Seq: rec.Seq, Position: bus.Position{Epoch: snap.Position.Epoch, Seq: rec.Seq}},
		}
		if f := facts[rec.KeyID]; f != nil {
			st.Shared, st.Agents, st.Accept = f.Shared, f.Agents, keyring.AcceptKind(f.Accept)
			if f.Accept != "" && f.ExpiresAt != 0 {
				st.Expires = time.Unix(f.ExpiresAt, 0)
			}
			if f.ActivatesAt != 0 && rec.State == keyring.Announced {
				st.ActivatesAt = time.Unix(f.ActivatesAt, 0)
			}
		}
		audience := rec.Audience
		if !rec.Alg.Symmetric() {
			audience = i.cfg.Audience
		}
		if active, ok := snap.Ring.ActiveFor(audience); ok && rec.State == keyring.Active && rec.KeyID != active.KeyID {
			st.State = keyring.Retiring
		}
		all = append(all, st)
	}
	return all, nil
}
