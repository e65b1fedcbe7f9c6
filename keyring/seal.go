package keyring

import (
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"golang.org/x/crypto/chacha20poly1305"
)

// masterPrefix begins a master key's text.
const masterPrefix = "sidekey-master-1:"

// boxVersion is the first byte of every sealed box, so that a later form can be told from this one.
const boxVersion = 1

// ErrSealed says that a box does not open: another key, other associated data, or it was changed.
var ErrSealed = errors.New("the sealed data does not open: it was sealed under another key or for another place, or was changed")

// hidden is what every secret of this package prints as.
const hidden = "(secret)"

// secret keeps a secret from being printed: embedded by value, it answers for fmt, JSON and slog.
type secret struct{}

func (secret) String() string               { return hidden }
func (secret) GoString() string             { return hidden }
func (secret) Format(f fmt.State, _ rune)   { _, _ = io.WriteString(f, hidden) }
func (secret) MarshalJSON() ([]byte, error) { return []byte(`"` + hidden + `"`), nil }
func (secret) LogValue() slog.Value         { return slog.StringValue(hidden) }

// MasterKey is 32 bytes from which every sealing key and every derived secret of an installation comes. It is a file on
// the issuers, never in the log. Make one with [NewMasterKey] or [ParseMasterKey]; it prints as nothing.
//
// As text, one line: "sidekey-master-1:" and the bytes in base64url.
type MasterKey struct {
	secret
	key []byte
}

// NewMasterKey returns a new random master key.
func NewMasterKey() *MasterKey { return &MasterKey{key: randomBytes(32)} }

// ParseMasterKey reads what Text wrote; white space around it is allowed.
func ParseMasterKey(text []byte) (*MasterKey, error) {
	rest, ok := bytes.CutPrefix(bytes.TrimSpace(text), []byte(masterPrefix))
	key, err := decode(string(rest))
	if !ok || err != nil || len(key) != 32 {
		return nil, fmt.Errorf("reading the master key: it is not one line of %q and 32 bytes in base64url; restore the file from its backup", masterPrefix)
	}
	return &MasterKey{key: key}, nil
}

// Text returns the key as it stands in its file, with a line break at the end. It is never to be logged.
func (m *MasterKey) Text() []byte { return []byte(masterPrefix + b64.EncodeToString(m.key) + "\n") }

// Derive returns n bytes, at most 8160, that only who has the master key can compute, others for each purpose
// (HKDF-SHA256, RFC 5869). It panics if n is out of bounds.
func (m *MasterKey) Derive(purpose string, n int) []byte { return m.expand("derive", purpose, n) }

// Sealer returns the sealer for one purpose. What one sealed, a sealer for another purpose does not open.
func (m *MasterKey) Sealer(purpose string) *Sealer {
	aead, err := chacha20poly1305.NewX(m.expand("seal", purpose, chacha20poly1305.KeySize))
	if err != nil {
		panic("keyring: a 32 byte key was refused: " + err.Error()) // cannot be
	}
	return &Sealer{aead: aead}
}

func (m *MasterKey) expand(use, purpose string, n int) []byte {
	b, err := hkdf.Key(sha256.New, m.key, nil, string(joined([]byte("sidekey-master-1"), []byte(use), []byte(purpose))), n)
	if err != nil {
		panic("keyring: deriving from the master key: " + err.Error())
	}
	return b
}

// Sealer seals data under a key derived from the master key. It is safe for any number of goroutines.
//
// A box is a version byte (1), a random nonce of 24 bytes, and the XChaCha20-Poly1305 ciphertext with its tag of 16.
type Sealer struct {
	secret
	aead cipher.AEAD
}

// Seal encrypts plaintext and binds it to ad, the place that it stands in: only with the same parts does it open.
func (s *Sealer) Seal(plaintext []byte, ad ...[]byte) []byte {
	box := make([]byte, 0, 1+s.aead.NonceSize()+len(plaintext)+s.aead.Overhead())
	box = append(box, boxVersion)
	box = append(box, randomBytes(s.aead.NonceSize())...)
	return s.aead.Seal(box, box[1:], plaintext, joined([]byte{boxVersion}, ad...))
}

// Open returns what was sealed. It fails with ErrSealed.
func (s *Sealer) Open(box []byte, ad ...[]byte) ([]byte, error) {
	n := 1 + s.aead.NonceSize()
	if len(box) < n || box[0] != boxVersion {
		return nil, ErrSealed
	}
	plaintext, err := s.aead.Open(nil, box[1:n], box[n:], joined([]byte{boxVersion}, ad...))
	if err != nil {
		return nil, ErrSealed
	}
	return plaintext, nil
}

// joined writes the parts one after the other, each behind its length, so that they cannot run together.
func joined(first []byte, rest ...[]byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(len(first)))
	b = append(b, first...)
	for _, part := range rest {
		b = binary.BigEndian.AppendUint64(b, uint64(len(part)))
		b = append(b, part...)
	}
	return b
}

// SealingKey is one agent's key, to which HS256 secrets are sealed: HPKE (RFC 9180) with MLKEM768X25519, HKDF-SHA256 and
// ChaCha20-Poly1305, so that a log recorded today stays closed to a quantum computer. It prints as nothing.
type SealingKey struct {
	secret
	key hpke.PrivateKey
}

// GenerateSealingKey makes a new key.
func GenerateSealingKey() (*SealingKey, error) {
	k, err := hpke.MLKEM768X25519().GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("generating a sealing key: %w", err)
	}
	return &SealingKey{key: k}, nil
}

// ParseSealingKey reads what Private returned.
func ParseSealingKey(private []byte) (*SealingKey, error) {
	k, err := hpke.MLKEM768X25519().NewPrivateKey(private)
	if err != nil {
		return nil, errors.New("reading a sealing key: it is damaged")
	}
	return &SealingKey{key: k}, nil
}

// Private returns the private key. It is for the agent's own disk, never to be logged.
func (k *SealingKey) Private() []byte {
	b, err := k.key.Bytes()
	if err != nil {
		panic("keyring: writing a sealing key: " + err.Error()) // cannot be: it was made or read here
	}
	return b
}

// Public returns the key to register.
func (k *SealingKey) Public() []byte { return k.key.PublicKey().Bytes() }

// Open returns what SealTo sealed to this key with the same info. It fails with ErrSealed.
func (k *SealingKey) Open(box []byte, info ...[]byte) ([]byte, error) {
	if len(box) == 0 || box[0] != boxVersion {
		return nil, ErrSealed
	}
	plaintext, err := hpke.Open(k.key, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), hpkeInfo(info), box[1:])
	if err != nil {
		return nil, ErrSealed
	}
	return plaintext, nil
}

// SealTo seals plaintext to the holder of a sealing key and binds it to info, the place that it stands in. It proves no
// sender: what the box stands in must be signed. A box is a version byte (1), the encapsulated key and the ciphertext.
func SealTo(public []byte, plaintext []byte, info ...[]byte) ([]byte, error) {
	k, err := hpke.MLKEM768X25519().NewPublicKey(public)
	if err != nil {
		return nil, errors.New("sealing to an agent: its public key is damaged; register the agent again")
	}
	box, err := hpke.Seal(k, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), hpkeInfo(info), plaintext)
	if err != nil {
		return nil, fmt.Errorf("sealing to an agent: %w", err)
	}
	return append([]byte{boxVersion}, box...), nil
}

func hpkeInfo(info [][]byte) []byte { return joined([]byte("sidekey-hpke-1"), info...) }
