package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// Import is a key made elsewhere: exactly one of PEM, JWK and Secret.
type Import struct {
	PEM      string
	JWK      json.RawMessage
	Secret   string // HS256, its bytes as they are
	Alg      keyring.Alg
	Activate bool // it signs from now on; else it only verifies
}

// ImportKey takes a key made elsewhere into the ring. Without Activate its private half, if it has
// one, is not even kept, but for HS256, whose agents need it.
func (i *Issuer) ImportKey(ctx context.Context, in Import) (*KeyStatus, error) {
	key, err := in.key()
	if err != nil {
		return nil, err
	}
	if in.Activate && !key.CanSign() {
		return nil, &InputError{"activate", "needs a private key, and this is a public one"}
	}
	for attempt := range maxAttempts {
		snap := i.Replica.Snapshot()
		if !snap.Ready {
			return nil, fmt.Errorf("importing a key: %w: the log has not been read yet", ErrUnavailable)
		}
		if _, known := snap.Ring.Record(key.ID()); known {
			return nil, fmt.Errorf("importing key %q: %w", key.ID(), ErrExists)
		}
		ahead := i.now()
		if in.Activate {
			ahead = ahead.Add(i.cfg.PublishAhead)
		}
		// What signed with it elsewhere may have made its tokens live as long as refresh tokens.
		err := i.introduce(ctx, snap, key, in.Activate, ahead, i.cfg.RefreshLifetime)
		if err == nil {
			i.audit.Info("key imported", "kid", key.ID(), "alg", string(key.Alg()), "activate", in.Activate)
			if in.Activate {
				return i.awaitActive(ctx, key.ID())
			}
			st, err := i.Key(ctx, key.ID())
			if err == nil {
				st.Done = true
			}
			return st, err
		}
		if !errors.Is(err, bus.ErrConflict) {
			return nil, err
		}
		if !pause(ctx, attempt) {
			return nil, ctx.Err()
		}
	}
	return nil, unavailable("importing key", key.ID(), bus.ErrConflict)
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
