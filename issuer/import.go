package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

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

	// Accept says that it verifies the tokens that others made with it, and never ours. Its UserIDClaim "" is the issuer's own.
	Accept keyring.Accept
	// AcceptFor is how long it does, and the longest that such a token lives; 0: Config.RefreshLifetime.
	AcceptFor time.Duration
}

// maxAcceptFor bounds Import.AcceptFor: revocations of a foreign token are kept as long.
const maxAcceptFor = 366 * 24 * time.Hour

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
		verifyOnly: !in.Activate, shared: key.Alg().Symmetric(), agents: in.Agents, accept: in.Accept,
	}
	if in.Accept.Kind != "" {
		if n.accept.UserIDClaim == "" {
			n.accept.UserIDClaim = i.cfg.UserIDClaim
		}
		if in.AcceptFor > 0 {
			n.life = in.AcceptFor
		}
	}
	for attempt := range maxAttempts {
		v, err := i.view(ctx, key.Alg())
		if err == nil {
			err = i.importInto(ctx, v, n)
		}
		switch {
		case err == nil:
			i.event(ctx, "key imported", "kid", key.ID(), "alg", string(key.Alg()), "activate", in.Activate, "agents", in.Agents, "accept", string(in.Accept.Kind))
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
	if n.accept.Kind != "" && v.accepting(n.key.Alg()) >= keyring.MaxAccepting {
		return &InputError{"accept", fmt.Sprintf("is said of %d %s keys already, and no token is tried against more; revoke one of them first", keyring.MaxAccepting, n.key.Alg())}
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

// accepting counts the keys of an algorithm that verify foreign tokens.
func (v *ringView) accepting(alg keyring.Alg) int {
	n := 0
	for _, k := range v.keys {
		if k.Accept != "" && k.Alg == string(alg) && k.holds() {
			n++
		}
	}
	return n
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
	if err := in.checkAccept(); err != nil {
		return err
	}
	for _, name := range in.Agents {
		if err := bus.CheckName(name); err != nil {
			return &InputError{"agents", "must be names of agents"}
		}
	}
	return nil
}

func (in *Import) checkAccept() error {
	a := in.Accept
	switch {
	case a.Kind == "" && (a != keyring.Accept{} || in.AcceptFor != 0):
		return &InputError{"accept_for, user_id_claim, iss, aud", `are for "accept" only`}
	case a.Kind == "":
		return nil
	case a.Kind != keyring.SimpleJWT:
		return &InputError{"accept", `can be "simplejwt" only`}
	case in.Activate:
		return &InputError{"activate", `cannot be with "accept": such a key verifies the tokens that were made elsewhere, and signs none`}
	case in.AcceptFor < 0 || in.AcceptFor > maxAcceptFor:
		return &InputError{"accept_for", fmt.Sprintf("must be a duration up to %s", maxAcceptFor)}
	case slices.Contains([]string{"iss", "aud", "exp", "nbf", "iat", "jti", "token_type"}, a.UserIDClaim):
		return &InputError{"user_id_claim", "has another meaning in a token"}
	}
	for _, text := range []string{a.UserIDClaim, a.Issuer, a.Audience} {
		if len(text) > 1024 || !printable(text) {
			return &InputError{"user_id_claim, iss, aud", "must be 1024 bytes at most, without control characters"}
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
