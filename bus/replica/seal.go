package replica

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// OpenSealed is the Config.Open of an agent: it opens the box sealed to that name and key.
func OpenSealed(agent string, sealing *keyring.SealingKey) func(*bus.KeyFact) (*keyring.Key, error) {
	to := Recipient(sealing.Public())
	return func(f *bus.KeyFact) (*keyring.Key, error) {
		for _, b := range f.Sealed {
			if b.Agent != agent || !bytes.Equal(b.To, to) {
				continue
			}
			if secret, err := sealing.Open(b.Box, SealInfo(f.KeyID, agent)...); err == nil {
				return keyring.NewSecret(f.KeyID, secret)
			}
		}
		return nil, ErrNotHeld // a later entry may have the box
	}
}

// Serving is the Config.Needs of an agent that serves these audiences, none meaning the ring's
// default: it needs the key of each, and of the imported secrets those that name it.
func Serving(agent string, audiences []string) func(*bus.KeyFact) bool {
	return func(f *bus.KeyFact) bool {
		switch {
		case f.Shared:
			return slices.Contains(f.Agents, agent)
		case len(audiences) == 0:
			return f.Audience == f.DefaultAudience()
		}
		return slices.Contains(audiences, f.Audience)
	}
}

// lacking tells whether the ring has a key without its secret that this process needs, and keeps why
// for Fault. r.mu is held.
func (r *Replica) lacking(ring *keyring.Ring) bool {
	if r.cfg.Needs == nil {
		return false
	}
	for _, rec := range ring.Records() { // by sequence: the oldest is named
		f := r.keys[rec.KeyID]
		if f == nil || !rec.Alg.Symmetric() || rec.Key != nil || rec.State == keyring.Retired || rec.State == keyring.Revoked || !r.cfg.Needs(f) {
			continue
		}
		err := fmt.Errorf("key %q of audience %q is not sealed to this agent yet, so it neither acknowledges nor renews its lease (PROTOCOL 19)", f.KeyID, f.Audience)
		if was := r.lack.Swap(&err); was == nil || (*was).Error() != err.Error() {
			r.cfg.Logger.Warn("waiting for an HS256 key", "kid", f.KeyID, "aud", f.Audience, "seq", rec.Seq)
		}
		return true
	}
	if r.lack.Swap(nil) != nil {
		r.cfg.Logger.Info("every HS256 key that was waited for is here")
	}
	return false
}

// Recipient is SealedSecret.To of a public sealing key.
func Recipient(public []byte) []byte {
	sum := sha256.Sum256(public)
	return sum[:16]
}

// unite adds the boxes of more to those of old; a later box takes the place of an earlier one to the same key.
func unite(old, more []bus.SealedSecret) []bus.SealedSecret {
	all := make([]bus.SealedSecret, 0, len(old)+len(more))
	for _, b := range old {
		if !slices.ContainsFunc(more, func(m bus.SealedSecret) bool { return m.Agent == b.Agent && bytes.Equal(m.To, b.To) }) {
			all = append(all, b)
		}
	}
	return append(all, more...)
}

// Seal makes the box of an HS256 key for one agent, given its public sealing key.
func Seal(k *keyring.Key, agent string, public []byte) (bus.SealedSecret, error) {
	box, err := keyring.SealTo(public, k.Secret(), SealInfo(k.ID(), agent)...)
	if err != nil {
		return bus.SealedSecret{}, fmt.Errorf("sealing key %q to agent %q: %w", k.ID(), agent, err)
	}
	return bus.SealedSecret{Agent: agent, To: Recipient(public), Box: box}, nil
}

// SealInfo binds a box to its key and its agent.
func SealInfo(kid, agent string) [][]byte {
	return [][]byte{[]byte("sidekey-hs256-1"), []byte(kid), []byte(agent)}
}
