package replica

import (
	"fmt"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// OpenSealed is the Config.Open of an agent: it opens the box sealed to that name.
func OpenSealed(agent string, sealing *keyring.SealingKey) func(*bus.KeyFact) (*keyring.Key, error) {
	return func(f *bus.KeyFact) (*keyring.Key, error) {
		for _, b := range f.Sealed {
			if b.Agent != agent {
				continue
			}
			secret, err := sealing.Open(b.Box, SealInfo(f.KeyID, agent)...)
			if err != nil {
				// Sealed to an earlier key of this name: registering again mends it.
				return nil, ErrNotHeld
			}
			return keyring.NewSecret(f.KeyID, secret)
		}
		return nil, ErrNotHeld
	}
}

// Seal makes the box of an HS256 key for one agent, given its public sealing key.
func Seal(k *keyring.Key, agent string, public []byte) (bus.SealedSecret, error) {
	box, err := keyring.SealTo(public, k.Secret(), SealInfo(k.ID(), agent)...)
	if err != nil {
		return bus.SealedSecret{}, fmt.Errorf("sealing key %q to agent %q: %w", k.ID(), agent, err)
	}
	return bus.SealedSecret{Agent: agent, Box: box}, nil
}

// SealInfo binds a box to its key and its agent.
func SealInfo(kid, agent string) [][]byte {
	return [][]byte{[]byte("sidekey-hs256-1"), []byte(kid), []byte(agent)}
}
