package issuer

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus"
)

// adminTokenName is the record of the admin token, in the bucket "keys".
var adminTokenName = bus.Name("shared", "admin-token")

// adminTokenEvery is how often an issuer looks whether another one has rotated the admin token.
const adminTokenEvery = time.Second

// AdminToken is what lets in to /admin/v1/ over TCP: 256 random bits in base64url, one for all issuers. It is never sent:
// each issuer writes it where its operator may read it. All methods may be called at any time from any goroutine.
type AdminToken struct {
	keys    Bucket
	publish func(token string) error
	log     hclog.Logger

	hash atomic.Pointer[[sha256.Size]byte]

	mu        sync.Mutex // of what follows
	revision  uint64     // of the record that was taken over last
	published bool       // its token is where the operator reads it
}

// OpenAdminToken takes over the issuers' token, and makes the first one. publish writes it to where this host's operator reads it.
func OpenAdminToken(ctx context.Context, keys Bucket, publish func(token string) error, log hclog.Logger) (*AdminToken, error) {
	t := &AdminToken{keys: keys, publish: publish, log: log}
	_, err := keys.Create(ctx, adminTokenName, newAdminToken())
	if err != nil && !errors.Is(err, bus.ErrExists) {
		return nil, fmt.Errorf("opening the admin token: %w", err)
	}
	if err := t.look(ctx); err != nil {
		return nil, fmt.Errorf("opening the admin token: %w", err)
	}
	return t, nil
}

func newAdminToken() []byte {
	b := make([]byte, 32)
	rand.Read(b) // never fails: crypto/rand ends the process instead
	return base64.RawURLEncoding.AppendEncode(nil, b)
}

// Is tells whether this is the token. Both sides are hashed: the comparison takes the same time for every length and prefix.
func (t *AdminToken) Is(presented string) bool {
	got := sha256.Sum256([]byte(presented))
	return subtle.ConstantTimeCompare(got[:], t.hash.Load()[:]) == 1
}

// Rotate makes another token. The one before is refused here when it returns, and by an issuer that reaches the bus within
// two seconds. With an error the one before may stand, or not: look at the file.
func (t *AdminToken) Rotate(ctx context.Context) error {
	for range maxAttempts {
		rec, err := t.keys.Get(ctx, adminTokenName)
		if err != nil {
			return unavailable("rotating", "the admin token", err)
		}
		_, err = t.keys.Update(ctx, adminTokenName, newAdminToken(), rec.Revision)
		if errors.Is(err, bus.ErrConflict) {
			continue
		}
		if err != nil {
			return unavailable("rotating", "the admin token", err)
		}
		return t.look(ctx)
	}
	return unavailable("rotating", "the admin token", bus.ErrConflict)
}

// Follow takes over what other issuers make, until ctx ends.
func (t *AdminToken) Follow(ctx context.Context) {
	tick := time.NewTicker(adminTokenEvery)
	defer tick.Stop()
	for failed := false; ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		err := t.look(ctx)
		if err != nil && !failed && ctx.Err() == nil {
			t.log.Warn("could not look whether the admin token was rotated, trying again", "error", err)
		}
		failed = err != nil
	}
}

// look takes over the token that stands.
func (t *AdminToken) look(ctx context.Context) error {
	rec, err := t.keys.Get(ctx, adminTokenName)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if rec.Revision < t.revision || rec.Revision == t.revision && t.published {
		return nil
	}
	hash := sha256.Sum256(rec.Value)
	t.hash.Store(&hash)
	t.revision, t.published = rec.Revision, false
	if err := t.publish(string(rec.Value)); err != nil {
		return fmt.Errorf("writing the admin token: %w", err)
	}
	t.published = true
	return nil
}

// adminRotateToken answers without the token: who stole the one before must not be handed the next.
func (i *Issuer) adminRotateToken(r *http.Request) (int, any, error) {
	if err := readJSON(r, &struct{}{}); err != nil {
		return 0, nil, err
	}
	if i.AdminToken == nil {
		return 0, nil, &ConflictError{"this issuer's admin token cannot be rotated"}
	}
	if err := i.AdminToken.Rotate(r.Context()); err != nil {
		return 0, nil, err
	}
	i.event(r.Context(), "admin token rotated")
	return http.StatusNoContent, nil, nil
}
