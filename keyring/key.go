package keyring

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
)

// MaxKeyIDLength is the longest kid, in bytes, of a key or a token.
const MaxKeyIDLength = 128

// minSecret is the shortest HS256 secret, in bytes: the hash's own length (RFC 7518 §3.2).
const minSecret = 32

// b64 is the one encoding of tokens and keys: base64url without padding, trailing bits zero (RFC 7515 §2).
// The decoder skips line breaks all the same: use decode, which refuses them.
var b64 = base64.RawURLEncoding.Strict()

// Key is a key with its one algorithm and its id. It is immutable and safe for any number of goroutines. The zero
// value has no algorithm: it signs nothing and verifies nothing.
//
// However it is printed (fmt, JSON, slog), it shows algorithm and id and nothing else.
type Key struct {
	id      string
	alg     Alg
	bits    int
	public  any                  // *rsa.PublicKey, *ecdsa.PublicKey, ed25519.PublicKey, or the secret as []byte: what verifies
	private any                  // *rsa.PrivateKey, *ecdsa.PrivateKey, ed25519.PrivateKey, or the secret: what signs; nil without
	heads   map[TokenType]string // the encoded header of each kind of token that this key signs
}

// Generate makes a new key. bits is for RSA: 2048 (0 means that), 3072 or 4096; the others have one size. Its id is
// the RFC 7638 thumbprint, for HS256 (a secret of 256 bits) 128 random bits.
func Generate(alg Alg, bits int) (*Key, error) {
	switch alg {
	case RS256:
		if bits == 0 {
			bits = 2048
		}
		if bits != 2048 && bits != 3072 && bits != 4096 {
			return nil, fmt.Errorf("generating an RS256 key of %d bits: use 2048, 3072 or 4096", bits)
		}
		k, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			return nil, fmt.Errorf("generating an RS256 key: %w", err)
		}
		return newKey(alg, "", &k.PublicKey, k)
	case ES256:
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("generating an ES256 key: %w", err)
		}
		return newKey(alg, "", &k.PublicKey, k)
	case EdDSA:
		pub, k, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("generating an EdDSA key: %w", err)
		}
		return newKey(alg, "", pub, k)
	case HS256:
		return NewSecret("", randomBytes(minSecret))
	}
	_, err := ParseAlg(string(alg))
	return nil, fmt.Errorf("generating a key: %w", err)
}

// NewSecret returns the HS256 key of a shared secret, which it copies. kid may be empty: 128 random bits then.
// A secret shorter than 32 bytes is refused (RFC 7518 §3.2).
func NewSecret(kid string, secret []byte) (*Key, error) {
	if len(secret) < minSecret {
		return nil, fmt.Errorf("reading an HS256 secret: %d bytes are too short, at least %d are needed; make one with: openssl rand 32",
			len(secret), minSecret)
	}
	secret = bytes.Clone(secret)
	return newKey(HS256, kid, secret, secret)
}

// newKey builds a key from halves that have been found sound. kid may be empty.
func newKey(alg Alg, kid string, public, private any) (*Key, error) {
	k := &Key{id: kid, alg: alg, public: public, private: private}
	switch p := public.(type) {
	case *rsa.PublicKey:
		k.bits = p.N.BitLen()
	case *ecdsa.PublicKey, ed25519.PublicKey:
		k.bits = 256
	case []byte:
		k.bits = 8 * len(p)
	}
	if k.id == "" {
		k.id = k.defaultID()
	}
	if !ValidKeyID(k.id) {
		return nil, errors.New("reading a key: its kid is longer than 128 bytes or has control characters; give it another")
	}
	return k.withHeads(), nil
}

func (k *Key) defaultID() string {
	if k.alg.Symmetric() {
		return b64.EncodeToString(randomBytes(16))
	}
	return k.thumbprint()
}

// ValidKeyID reports whether kid can name a key: 1 to 128 bytes of valid UTF-8 without control characters.
func ValidKeyID(kid string) bool {
	if kid == "" || len(kid) > MaxKeyIDLength {
		return false
	}
	for _, r := range kid {
		if r < 0x20 || 0x7f <= r && r < 0xa0 || r == '\uFFFD' {
			return false
		}
	}
	return true
}

// ID returns the kid.
func (k *Key) ID() string { return k.id }

// Alg returns the one algorithm.
func (k *Key) Alg() Alg { return k.alg }

// Bits returns the size: an RSA key's modulus, a curve's order, a secret's length in bits.
func (k *Key) Bits() int { return k.bits }

// CanSign reports whether the private half is here.
func (k *Key) CanSign() bool { return k.private != nil }

// Public returns the key without its private half. An HS256 key has no public half: nil.
func (k *Key) Public() *Key {
	if k.alg.Symmetric() || k.public == nil {
		return nil
	}
	p := *k
	p.private = nil
	return &p
}

// WithID returns the key under another id. An id that is not [ValidKeyID] makes a key that cannot sign a token.
func (k *Key) WithID(kid string) *Key {
	p := *k
	p.id = kid
	return p.withHeads()
}

// Secret returns a copy of an HS256 key's secret, nil for the other algorithms. It is to be sealed, never logged.
func (k *Key) Secret() []byte {
	if s, ok := k.private.([]byte); ok {
		return bytes.Clone(s)
	}
	return nil
}

// withHeads fills in, before k is shared, the headers of the tokens that it signs.
func (k *Key) withHeads() *Key {
	k.heads = make(map[TokenType]string, len(tokenTypes))
	if !ValidKeyID(k.id) {
		return k
	}
	for _, typ := range tokenTypes {
		k.heads[typ] = b64.EncodeToString(k.header(typ))
	}
	return k
}

// String returns the algorithm and the id.
func (k Key) String() string { return fmt.Sprintf("%s key %q", k.alg, k.id) }

// GoString returns what String does.
func (k Key) GoString() string { return k.String() }

// Format writes what String returns, whatever the verb.
func (k Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.String()) }

// MarshalJSON writes the algorithm and the id. To store a key, use PublicJWK or PrivateJWK.
func (k Key) MarshalJSON() ([]byte, error) {
	return slices.Concat([]byte(`{"alg":`), quote(string(k.alg)), []byte(`,"kid":`), quote(k.id), []byte(`}`)), nil
}

// LogValue returns what String does.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// randomBytes returns n bytes from the system's generator, which does not fail (crypto/rand.Read).
func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}
