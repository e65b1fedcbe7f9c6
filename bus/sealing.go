package bus

import (
	"errors"
	"fmt"
)

// SealingFact is a public HPKE key of the issuers (MLKEM768X25519, keyring.SealTo): agents seal to the
// newest in the log what issuers alone may read. All issuers hold its private half, in their sealed
// buckets, before the entry is written, and for some time after a newer one took its place.
//
//	{"id": "0b6f…", "public_key": "base64 of 1216 bytes", "created": 1767225600, "exp": 0}
type SealingFact struct {
	ID        string `json:"id"`
	Public    []byte `json:"public_key"`
	Created   int64  `json:"created"`       // NumericDate
	ExpiresAt int64  `json:"exp,omitempty"` // NumericDate; nothing is sealed to it from then on, 0: it does not expire
}

// sealingKeyLength is that of an MLKEM768X25519 public key.
const sealingKeyLength = 1184 + 32

// Kind is KindSealing.
func (*SealingFact) Kind() Kind { return KindSealing }

func (s *SealingFact) check() error {
	switch {
	case !plainID(s.ID):
		return errors.New(`a sealing key needs an "id" of 1 to 128 letters, digits, "-" and "_"`)
	case len(s.Public) != sealingKeyLength:
		return fmt.Errorf("sealing key %q has a public half of %d bytes, not %d", s.ID, len(s.Public), sealingKeyLength)
	case s.Created <= 0 || s.ExpiresAt < 0:
		return fmt.Errorf("sealing key %q has a time before 1970", s.ID)
	}
	return nil
}

// plainID tells whether an id of ours is short, and of characters that mean nothing anywhere.
func plainID(id string) bool {
	if id == "" || len(id) > 128 {
		return false
	}
	for n := range len(id) {
		c := id[n]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}
