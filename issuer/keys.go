package issuer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// boxesPerEntry bounds the sealed secrets in one entry, 1.6 kB each in base64, far below bus.MaxBody.
const boxesPerEntry = 256

// newKey is a key that is about to come into the log.
type newKey struct {
	key        *keyring.Key
	master     *keyring.Key // HS256 of our own: what key is derived from
	audience   string       // HS256
	activateAt time.Time    // zero: a standby
	life       time.Duration
	verifyOnly bool
	shared     bool
	agents     []string // shared: whom it is sealed to
	accept     keyring.Accept
}

// announce makes a key for an audience, keeps its private half in the bucket, and then tells
// everybody of it. It signs nothing yet. activateAt zero: it stands by. bus.ErrConflict: another
// issuer wrote about a key first.
func (i *Issuer) announce(ctx context.Context, v *ringView, audience string, alg keyring.Alg, bits int, activateAt time.Time) (*keyring.Key, error) {
	n := &newKey{audience: audience, activateAt: activateAt, life: i.cfg.longestToken()}
	var err error
	if alg.Symmetric() {
		if n.master, err = i.master(ctx, v, audience); err != nil {
			return nil, err
		}
		n.key, err = n.master.Derive("", audience)
	} else {
		n.key, err = keyring.Generate(alg, bits)
	}
	if err != nil {
		return nil, &InputError{"alg, bits", err.Error()}
	}
	return n.key, i.introduce(ctx, v, n)
}

// master gives the secret that an audience's next HS256 key is derived from: the one of the other
// audiences' keys that wait, or, where the audience has no key yet, that sign. Else a new one.
func (i *Issuer) master(ctx context.Context, v *ringView, audience string) (*keyring.Key, error) {
	state := keyring.Announced
	if v.active(audience) == nil {
		state = keyring.Active
	}
	for _, k := range v.keys {
		if !k.derived() || k.state() != state || k.Audience == audience || k.tainted {
			continue
		}
		p, err := i.privateKey(ctx, k.KeyID)
		if err == nil && p.master != nil {
			return p.master, nil
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
	}
	return keyring.Generate(keyring.HS256, 0)
}

// introduce brings a key into the log as announced.
func (i *Issuer) introduce(ctx context.Context, v *ringView, n *newKey) error {
	key := n.key
	fact := &bus.KeyFact{
		KeyID: key.ID(), Alg: string(key.Alg()), Bits: key.Bits(), State: string(keyring.Announced),
		Issuer: i.cfg.URL, Audience: i.cfg.Audience, MaxLifetime: int64(n.life / time.Second), Created: i.now().Unix(),
		VerifyOnly: n.verifyOnly, Shared: n.shared, Agents: n.agents,
		Accept: string(n.accept.Kind), AcceptUser: n.accept.UserIDClaim, AcceptIss: n.accept.Issuer, AcceptAud: n.accept.Audience,
	}
	if n.accept.Kind != "" {
		fact.ExpiresAt = i.now().Add(n.life).Unix() + i.tail() // all that it had signed before has ended by then
	}
	if !n.activateAt.IsZero() {
		fact.ActivatesAt = n.activateAt.Unix()
	}
	var boxes []bus.SealedSecret
	if key.Alg().Symmetric() {
		if n.audience != i.cfg.Audience {
			fact.Audience, fact.Default = n.audience, i.cfg.Audience
		}
		boxes = i.sealTo(key, v.missing(&ringKey{KeyFact: fact}))
	} else {
		var err error
		if fact.JWK, err = key.PublicJWK(); err != nil {
			return fmt.Errorf("announcing key %q: %w", key.ID(), err)
		}
	}
	if err := i.storePrivate(ctx, n); err != nil {
		return err
	}
	err := i.appendKey(ctx, v, fact, boxes)
	if errors.Is(err, bus.ErrConflict) {
		i.private.drop(key.ID())
		if r, gerr := i.Keys.Get(ctx, privateName(key.ID())); gerr == nil && len(boxes) <= boxesPerEntry {
			_ = i.Keys.Delete(ctx, r.Name, r.Revision) // it was told to nobody
		}
	}
	return err
}

// appendKey writes a key's entry if nobody has written about any key since the view, and further
// entries where the boxes are too many for one. It returns once this issuer itself has read them.
func (i *Issuer) appendKey(ctx context.Context, v *ringView, fact *bus.KeyFact, boxes []bus.SealedSecret) error {
	last := v.snap.Position.Seq
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
		i.event(ctx, "key entry written", "kid", fact.KeyID, "alg", fact.Alg, "state", fact.State, "aud", fact.Audience, "seq", pos.Seq, "sealed_to", n)
		if len(boxes) == 0 {
			return i.settle(ctx, pos)
		}
	}
}

// activate lets an announced key sign (PROTOCOL 16). Its predecessor signs nothing from the moment
// that an issuer reads this; its retirement is an entry of its own, later.
func (i *Issuer) activate(ctx context.Context, v *ringView, k *ringKey) error {
	if _, err := i.privateKey(ctx, k.KeyID); err != nil {
		return err
	}
	return i.become(ctx, v, k, keyring.Active, func(f *bus.KeyFact) { f.ActivatesAt = v.now.Unix() })
}

// become writes a key's next state, or, with its present one, a change of it.
func (i *Issuer) become(ctx context.Context, v *ringView, k *ringKey, to keyring.State, change func(*bus.KeyFact)) error {
	f := *k.KeyFact
	f.Sealed = nil // boxes need not be repeated
	if to != k.state() && !k.state().Next(to) {
		return bus.ErrConflict
	}
	f.State = string(to)
	// A lifetime that was configured longer since then counts for what the key has signed since then.
	f.MaxLifetime = max(f.MaxLifetime, int64(i.cfg.longestToken()/time.Second))
	change(&f)
	return i.appendKey(ctx, v, &f, nil)
}
