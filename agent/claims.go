package agent

import (
	"encoding/base64"
	"encoding/json"
	"maps"
)

// allClaims is the name in agent.headers that stands for every claim at once: base64url (RFC 4648 §5, no padding) of one
// JSON object. A claim of that name cannot be shown by itself.
const allClaims = "*"

// maxClaimsHeader is how long that may be: proxies take little more in one field. Longer is refused as unsafe_claim.
const maxClaimsHeader = 8 << 10

// claimsHeader puts a JSON object into a header. One that is too long, or is none, makes a value that no header may hold.
func claimsHeader(object []byte) string {
	if len(object) == 0 || base64.RawURLEncoding.EncodedLen(len(object)) > maxClaimsHeader {
		return "\x00"
	}
	return base64.RawURLEncoding.EncodeToString(object)
}

// claimsJSON is all that is believed of a principal as one JSON object: the claims of a token as they were signed; for
// any other principal, and for a token that was made elsewhere, its members under the names that a token has them by.
// nil: a scheme gave claims that are no JSON. It must not be changed.
func (p *Principal) claimsJSON() []byte {
	if p.raw != nil {
		return p.raw
	}
	claims := make(map[string]any, len(p.Claims)+8)
	maps.Copy(claims, p.Claims)
	for name, value := range map[string]string{"sub": p.Subject, "scope": p.Scope, "client_id": p.Client, "sid": p.Session, "jti": p.ID} {
		delete(claims, name) // those of Claims are not the principal's
		if value != "" {
			claims[name] = value
		}
	}
	delete(claims, "roles")
	if len(p.Roles) > 0 {
		claims["roles"] = p.Roles
	}
	delete(claims, "aud")
	if len(p.Audience) > 0 {
		claims["aud"] = p.Audience
	}
	delete(claims, "exp")
	if !p.ExpiresAt.IsZero() {
		claims["exp"] = p.ExpiresAt.Unix()
	}
	delete(claims, "iat")
	if !p.IssuedAt.IsZero() {
		claims["iat"] = p.IssuedAt.Unix()
	}
	object, err := json.Marshal(claims)
	if err != nil {
		return nil
	}
	return object
}
