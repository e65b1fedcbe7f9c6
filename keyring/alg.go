package keyring

import (
	"fmt"

	"github.com/golang-jwt/jwt/v5"
)

// Alg is a signature algorithm by its name in RFC 7518 §3.1 and RFC 8037 §3.1. The zero value is none and signs nothing.
type Alg string

// The algorithms of this package. There is no "none", and no other will be taken from a token or a JWK.
const (
	RS256 Alg = "RS256" // RSASSA-PKCS1-v1_5 with SHA-256, 2048, 3072 or 4096 bits
	HS256 Alg = "HS256" // HMAC with SHA-256, secrets of 32 bytes or more
	ES256 Alg = "ES256" // ECDSA on P-256 with SHA-256
	EdDSA Alg = "EdDSA" // Ed25519
)

// ParseAlg returns the algorithm named s, exactly as written above.
func ParseAlg(s string) (Alg, error) {
	switch a := Alg(s); a {
	case RS256, HS256, ES256, EdDSA:
		return a, nil
	}
	return "", fmt.Errorf("unknown algorithm %q; use RS256, HS256, ES256 or EdDSA", s)
}

// Symmetric reports whether who can verify can also sign.
func (a Alg) Symmetric() bool { return a == HS256 }

// method returns golang-jwt's implementation, nil for an unknown algorithm.
func (a Alg) method() jwt.SigningMethod {
	switch a {
	case RS256:
		return jwt.SigningMethodRS256
	case HS256:
		return jwt.SigningMethodHS256
	case ES256:
		return jwt.SigningMethodES256
	case EdDSA:
		return jwt.SigningMethodEdDSA
	}
	return nil
}
