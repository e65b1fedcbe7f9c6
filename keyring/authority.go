package keyring

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
)

const authorityPrefix = "sidekey-authority-1:"

// Authority signs the log with Ed25519. Issuers share it; its public half is what every agent pins. It prints as nothing.
type Authority struct {
	secret
	key ed25519.PrivateKey
}

// NewAuthority makes a new one.
func NewAuthority() (*Authority, error) {
	_, k, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, fmt.Errorf("generating the authority's key: %w", err)
	}
	return &Authority{key: k}, nil
}

// ParseAuthority reads what Private returned.
func ParseAuthority(private []byte) (*Authority, error) {
	if len(private) != ed25519.SeedSize {
		return nil, fmt.Errorf("reading the authority's key: it has %d bytes, not %d", len(private), ed25519.SeedSize)
	}
	return &Authority{key: ed25519.NewKeyFromSeed(private)}, nil
}

// Private returns the private key, 32 bytes. It is to be sealed, never logged.
func (a *Authority) Private() []byte { return a.key.Seed() }

// Public returns the key to pin.
func (a *Authority) Public() AuthorityKey { return AuthorityKey(a.key.Public().(ed25519.PublicKey)) }

// Sign signs msg (RFC 8032, pure Ed25519), 64 bytes. What is signed must begin with its own context, so that a
// signature of one thing is none of another: that is the caller's to see to.
func (a *Authority) Sign(msg []byte) []byte { return ed25519.Sign(a.key, msg) }

// AuthorityKey is the authority's public key, 32 bytes. Any other length, so also nil, verifies nothing.
type AuthorityKey []byte

// Verify reports whether sig is the authority's signature of msg.
func (k AuthorityKey) Verify(msg, sig []byte) bool {
	return len(k) == ed25519.PublicKeySize && ed25519.Verify(ed25519.PublicKey(k), msg, sig)
}

// Text returns the key as one word: "sidekey-authority-1:" and the bytes in base64url.
func (k AuthorityKey) Text() string { return authorityPrefix + b64.EncodeToString(k) }

// ParseAuthorityKey reads what Text returned; white space around it is allowed.
func ParseAuthorityKey(text string) (AuthorityKey, error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), authorityPrefix)
	k, err := decode(rest)
	if !ok || err != nil || len(k) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("reading the authority's public key: it is not %q and 32 bytes in base64url; copy it from the issuer again", authorityPrefix)
	}
	if soundEd25519(ed25519.PublicKey(k)) != nil {
		return nil, errors.New("reading the authority's public key: it is not a sound Ed25519 key; copy it from the issuer again")
	}
	return AuthorityKey(k), nil
}
