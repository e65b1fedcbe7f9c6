package issuer

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// secretPrefix makes a client's secret recognisable to scanners of source code and logs.
const secretPrefix = "skcs_"

// maxSecrets is how many secrets of one client are good at once.
const maxSecrets = 2

// maxOverlap bounds how long a rotated secret stays good beside the new one.
const maxOverlap = 90 * 24 * time.Hour

// newClientSecret makes a secret of 256 random bits, and what is stored of it.
func newClientSecret(now int64) (string, storedSecret) {
	b := make([]byte, 32)
	rand.Read(b) // never fails (crypto/rand, Go 1.24)
	secret := secretPrefix + base64.RawURLEncoding.EncodeToString(b)
	hash := sha256.Sum256([]byte(secret))
	return secret, storedSecret{Hash: hash[:], ClientSecret: ClientSecret{Created: now}}
}

// hasSecret tells whether secret is one of the client's, in a time that does not depend on which, or on how much of it
// is right. rec may be nil, for a client that does not exist.
func (rec *clientRecord) hasSecret(secret string, now int64) bool {
	var stored [maxSecrets]storedSecret
	if rec != nil {
		copy(stored[:], rec.Secrets)
	}
	got := sha256.Sum256([]byte(secret))
	found := 0
	for _, s := range stored {
		var want [sha256.Size]byte
		copy(want[:], s.Hash)
		good := 0
		if len(s.Hash) == sha256.Size && (s.Expires == 0 || now < s.Expires) {
			good = 1
		}
		found |= subtle.ConstantTimeCompare(got[:], want[:]) & good
	}
	return found == 1
}

// RotateSecret gives a client a new secret. The one before stays good for overlap; with none it ends at once, and so do
// all tokens of the client, since whoever had it may have got some. The errors are *InputError, ErrNotFound, ErrUnavailable.
func (i *Issuer) RotateSecret(ctx context.Context, id string, overlap time.Duration) (*Client, string, error) {
	c, secret, _, err := i.rotateSecret(ctx, id, overlap)
	return c, secret, err
}

func (i *Issuer) rotateSecret(ctx context.Context, id string, overlap time.Duration) (*Client, string, bus.Position, error) {
	if overlap < 0 || overlap > maxOverlap {
		return nil, "", bus.Position{}, &InputError{"overlap", fmt.Sprintf("must be a duration from 0s to %s", maxOverlap)}
	}
	now := i.now()
	secret, stored := newClientSecret(now.Unix())
	rec, cut, err := i.updateClient(ctx, id, func(rec *clientRecord) (string, error) {
		if !rec.hasSecrets() {
			return "", &InputError{"client_id", fmt.Sprintf("is of a client that authenticates with %s: it has no secret", rec.AuthMethods[0])}
		}
		secrets := []storedSecret{stored}
		reason := "client secret replaced"
		if overlap > 0 {
			reason = ""
			if len(rec.Secrets) > 0 {
				old := rec.Secrets[0] // an older one than this ends now: two at most
				if until := now.Add(overlap).Unix(); old.Expires == 0 || until < old.Expires {
					old.Expires = until
				}
				secrets = append(secrets, old)
			}
		}
		rec.Secrets = secrets
		return reason, nil
	})
	if err != nil {
		return nil, "", cut, err
	}
	i.event(ctx, "client secret rotated", "client_id", id, "overlap", overlap.String())
	return rec.public(), secret, cut, nil
}
