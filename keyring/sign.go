package keyring

import (
	"encoding/json"
	"fmt"

	"github.com/golang-jwt/jwt/v5"
)

// Sign makes a token: a compact JWS whose header has alg, kid and typ, and whose payload is claims as encoding/json writes
// them (usually a [Claims]). With RS256, HS256 and EdDSA the same claims make the same token, byte for byte; ES256 is
// randomized. It fails if the private half is not here, the claims cannot be written, or the token is longer than
// [MaxTokenLength], which every verifier would refuse. It does not judge the claims.
func (k *Key) Sign(typ TokenType, claims any) (string, error) {
	if !k.CanSign() {
		return "", fmt.Errorf("signing with %v: its private half is not here", k)
	}
	if !ValidKeyID(k.id) {
		return "", fmt.Errorf("signing with %v: its kid is not valid", k)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("signing with %v: writing the claims: %w", k, err)
	}
	t := jwt.NewWithClaims(k.alg.method(), payloadClaims(payload))
	t.Header = map[string]any{"alg": string(k.alg), "kid": k.id, "typ": string(typ)}
	token, err := t.SignedString(k.private)
	if err != nil {
		return "", fmt.Errorf("signing with %v: %w", k, err)
	}
	if len(token) > MaxTokenLength {
		return "", fmt.Errorf("signing with %v: the token would have %d bytes, more than the %d that are read; shorten the claims",
			k, len(token), MaxTokenLength)
	}
	return token, nil
}

// payloadClaims hands a finished payload to golang-jwt, which writes it as it is and asks it nothing.
type payloadClaims json.RawMessage

func (p payloadClaims) MarshalJSON() ([]byte, error)               { return p, nil }
func (payloadClaims) GetExpirationTime() (*jwt.NumericDate, error) { return nil, nil }
func (payloadClaims) GetIssuedAt() (*jwt.NumericDate, error)       { return nil, nil }
func (payloadClaims) GetNotBefore() (*jwt.NumericDate, error)      { return nil, nil }
func (payloadClaims) GetIssuer() (string, error)                   { return "", nil }
func (payloadClaims) GetSubject() (string, error)                  { return "", nil }
func (payloadClaims) GetAudience() (jwt.ClaimStrings, error)       { return nil, nil }
