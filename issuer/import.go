package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// Import is a key made elsewhere: exactly one of PEM, JWK and Secret.
type Import struct {
	PEM      string
	JWK      json.RawMessage
	Secret   string // HS256, its bytes as they are
	Alg      keyring.Alg
	Activate bool     // it signs from now on; else it only verifies
	Shared   bool     // HS256: needed to sign with it, since everybody who holds it can mint
	Agents   []string // HS256: the agents that it is sealed to; nobody else on the fleet verifies with it
}

// ImportKey takes a key made elsewhere into the ring. Without Activate its private half, if it has
// one, is not even kept, but for HS256, whose agents need it.
func (i *Issuer) ImportKey(ctx context.Context, in Import) (*KeyStatus, error) {
	key, err := in.key()
	if err == nil {
		err = in.check(key)
	}
	if err != nil {
		return nil, err
	}
	// What signed with it elsewhere may have made its tokens live as long as refresh tokens.
	n := &newKey{
		key: key, audience: i.cfg.Audience, life: i.cfg.RefreshLifetime,
		verifyOnly: !in.Activate, shared: key.Alg().Symmetric(), agents: in.Agents,
	}
	for attempt := range maxAttempts {
		v, err := i.view(ctx, key.Alg())
		if err == nil {
			err = i.importInto(ctx, v, n)
		}
		switch {
		case err == nil:
			i.audit.Info("key imported", "kid", key.ID(), "alg", string(key.Alg()), "activate", in.Activate, "agents", in.Agents)
			if in.Activate {
				return i.awaitActive(ctx, []string{key.ID()}, Waiting{})
			}
			st, err := i.Key(ctx, key.ID())
			if err == nil {
				st.Done = true
			}
			return st, err
		case !errors.Is(err, bus.ErrConflict):
			return nil, err
		case !pause(ctx, attempt):
			return nil, ctx.Err()
		}
	}
	return nil, unavailable("importing key", key.ID(), bus.ErrConflict)
}

// importInto announces an imported key. A shared secret that is to sign must be sealed to every agent
// that is asked about its tokens, else those refuse them.
func (i *Issuer) importInto(ctx context.Context, v *ringView, n *newKey) error {
	if v.key(n.key.ID()) != nil {
		return fmt.Errorf("importing key %q: %w", n.key.ID(), ErrExists)
	}
	if !n.verifyOnly {
		n.activateAt = v.now.Add(i.cfg.PublishAhead)
	}
	if n.shared && !n.verifyOnly && v.holders != nil {
		for _, h := range v.holders.all {
			if v.serves(&h, n.audience) && !slices.Contains(n.agents, h.agent) {
				return &InputError{"agents", fmt.Sprintf("must name %q too: it serves audience %q, and without the secret it would refuse every new token", h.agent, n.audience)}
			}
		}
	}
	return i.introduce(ctx, v, n)
}

// check refuses what a key cannot be imported for.
func (in *Import) check(key *keyring.Key) error {
	switch symmetric := key.Alg().Symmetric(); {
	case in.Activate && !key.CanSign():
		return &InputError{"activate", "needs a private key, and this is a public one"}
	case !symmetric && (in.Shared || len(in.Agents) > 0):
		return &InputError{"shared, agents", "are for HS256 secrets: a public key is no secret"}
	case symmetric && in.Activate && !in.Shared:
		return &InputError{"activate", `needs "shared" for a secret: everybody who holds it can mint tokens with it; rotate to HS256 instead, and each audience has a secret of its own`}
	}
	for _, name := range in.Agents {
		if err := bus.CheckName(name); err != nil {
			return &InputError{"agents", "must be names of agents"}
		}
	}
	return nil
}

func (in *Import) key() (*keyring.Key, error) {
	n := 0
	for _, given := range []bool{in.PEM != "", len(in.JWK) > 0, in.Secret != ""} {
		if given {
			n++
		}
	}
	if n != 1 {
		return nil, &InputError{"pem, jwk, secret", "must be exactly one of them"}
	}
	if in.Alg != "" {
		if _, err := keyring.ParseAlg(string(in.Alg)); err != nil {
			return nil, &InputError{"alg", err.Error()}
		}
	}
	var key *keyring.Key
	var err error
	field := "pem"
	switch {
	case in.PEM != "":
		key, err = keyring.ParsePEM([]byte(in.PEM), in.Alg)
	case in.Secret != "":
		field = "secret"
		key, err = keyring.NewSecret("", []byte(in.Secret))
	default:
		field = "jwk"
		key, err = keyring.ParseJWK(in.JWK)
	}
	if err != nil {
		return nil, &InputError{field, "is refused: " + err.Error()}
	}
	if in.Alg != "" && key.Alg() != in.Alg {
		return nil, &InputError{"alg", fmt.Sprintf("is %s, but the key is for %s", in.Alg, key.Alg())}
	}
	return key, nil
}
