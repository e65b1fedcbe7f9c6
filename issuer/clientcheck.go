package issuer

import (
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/sidekey/sidekey/keyring"
)

// clientIDs are plain, so that no encoding (of Basic, of forms) makes two of one; and begin with a letter, so that none is
// taken for the number of a user of an existing database.
var clientIDs = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._~-]{0,127}$`)

func validClientID(id string) bool { return clientIDs.MatchString(id) }

// Bounds on what one client's record holds.
const (
	maxClientKeys      = 8
	maxClientAudiences = 64
	maxClientJWKS      = 32 << 10
)

func (rec *clientRecord) setDefaults(audience string) {
	if len(rec.AuthMethods) == 0 {
		rec.AuthMethods = []string{authBasic, authPost}
		if len(rec.JWKS) > 0 {
			rec.AuthMethods = []string{authJWT}
		}
	}
	if len(rec.Grants) == 0 {
		rec.Grants = []string{grantClient}
		if !rec.confidential() {
			rec.Grants = []string{grantRefresh}
		}
	}
	if len(rec.Audiences) == 0 {
		rec.Audiences = []string{audience}
	}
	if rec.Roles == nil {
		rec.Roles = []string{}
	}
}

// checkClient holds a record against what can be meant. The error is an *InputError.
func (i *Issuer) checkClient(rec *clientRecord) error {
	switch {
	case !validClientID(rec.ID):
		return &InputError{"client_id", "must be 1 to 128 letters, digits and . _ ~ -, the first a letter"}
	case rec.ID == i.cfg.DefaultClient:
		return &InputError{"client_id", "is issuer.default_client, the public client of user name logins; take another"}
	case len(rec.Name) > 255 || !printable(rec.Name):
		return &InputError{"client_name", "must be 255 bytes at most, without control characters"}
	case !validScope(rec.Scope):
		return &InputError{"scope", "must be words of printable ASCII without quote and backslash, one blank between them, 1024 bytes at most (RFC 6749 §3.3)"}
	}
	for _, check := range []func(*clientRecord) error{checkAuthMethods, checkGrants, checkAudiences, i.checkClientLifetime} {
		if err := check(rec); err != nil {
			return err
		}
	}
	return checkRoles(rec.Roles)
}

func checkAuthMethods(rec *clientRecord) error {
	for at, m := range rec.AuthMethods {
		if !slices.Contains([]string{authBasic, authPost, authJWT, authNone}, m) || slices.Contains(rec.AuthMethods[:at], m) {
			return &InputError{"auth_methods", fmt.Sprintf("must be of %s, %s, %s and %s, each once", authBasic, authPost, authJWT, authNone)}
		}
	}
	if !rec.confidential() && len(rec.AuthMethods) > 1 {
		return &InputError{"auth_methods", `must be "none" alone, or without it: a client is public or it is not`}
	}
	if slices.Contains(rec.AuthMethods, authJWT) != (len(rec.JWKS) > 0) {
		return &InputError{"jwks", "must be there with private_key_jwt, and only then"}
	}
	if len(rec.JWKS) == 0 {
		return nil
	}
	if len(rec.JWKS) > maxClientJWKS {
		return &InputError{"jwks", fmt.Sprintf("must be %d bytes at most", maxClientJWKS)}
	}
	keys, err := keyring.ParseJWKS(rec.JWKS)
	switch {
	case err != nil:
		return &InputError{"jwks", "cannot be used: " + err.Error()}
	case len(keys) == 0 || len(keys) > maxClientKeys:
		return &InputError{"jwks", fmt.Sprintf("must hold 1 to %d public keys of RS256, ES256 or EdDSA", maxClientKeys)}
	}
	public, err := publicJWKS(keys)
	if err != nil {
		return &InputError{"jwks", "cannot be used: " + err.Error()}
	}
	rec.JWKS = public // without what is not understood, and without a private half that came along
	return nil
}

// publicJWKS writes the keys' public halves.
func publicJWKS(keys []*keyring.Key) ([]byte, error) {
	set := []byte(`{"keys":[`)
	for at, k := range keys {
		j, err := k.PublicJWK()
		if err != nil {
			return nil, err
		}
		if at > 0 {
			set = append(set, ',')
		}
		set = append(set, j...)
	}
	return append(set, "]}"...), nil
}

// checkGrants: a public client proves nothing, so it gets nothing in its own name and nothing exchanged.
func checkGrants(rec *clientRecord) error {
	for at, g := range rec.Grants {
		if !slices.Contains(oauthGrants, g) || slices.Contains(rec.Grants[:at], g) {
			return &InputError{"grant_types", fmt.Sprintf("must be of %s, %s, %s and %s, each once", grantClient, grantRefresh, grantPassword, grantExchange)}
		}
		if !rec.confidential() && (g == grantClient || g == grantExchange) {
			return &InputError{"grant_types", fmt.Sprintf("cannot hold %s: a public client has nothing to prove itself with", g)}
		}
	}
	return nil
}

func checkAudiences(rec *clientRecord) error {
	if n := len(rec.Audiences); n == 0 || n > maxClientAudiences {
		return &InputError{"audiences", fmt.Sprintf("must be 1 to %d", maxClientAudiences)}
	}
	for at, aud := range rec.Audiences {
		if aud == "" || len(aud) > 1024 || !printable(aud) || slices.Contains(rec.Audiences[:at], aud) {
			return &InputError{"audiences", "must each be 1 to 1024 bytes without control characters, and none twice"}
		}
	}
	return nil
}

func (i *Issuer) checkClientLifetime(rec *clientRecord) error {
	if rec.AccessLifetime == "" {
		return nil
	}
	if d, err := time.ParseDuration(rec.AccessLifetime); err != nil || d < time.Second || d > i.cfg.AccessLifetime {
		return &InputError{"access_lifetime", fmt.Sprintf(`must be a duration such as "5m", from 1s to issuer.access_lifetime (%s)`, i.cfg.AccessLifetime)}
	}
	return nil
}
