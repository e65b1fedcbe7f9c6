package bus

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"unicode/utf8"
)

// CredentialType is how a credential is presented, and X-Auth-Method's word for it.
type CredentialType string

// The types of credentials.
const (
	APIKey CredentialType = "api_key" // X-API-Key: …
	Opaque CredentialType = "token"   // Authorization: Token …, as Django REST Framework's
)

// Credential is an API key or an opaque token. The log has its hash: neither who reads the log nor who
// owns an agent can present it. Every change is an entry that repeats the whole record; one with
// Gone set withdraws it.
//
//	{"id": "k_2f9c…", "type": "api_key", "hash": "base64 of 32 bytes", "sub": "0197…", "client_id": "", "scope": "read",
//	 "roles": ["staff"], "networks": ["10.0.0.0/8"], "iat": 1767225600, "exp": 0,
//	 "known_seq": 411, "gone": false}
//
// A cutoff of the subject or client behind the entry refuses it, unless that is for sessions only; so does a
// revocation of its id as a jti.
type Credential struct {
	ID       string         `json:"id"` // its name in lists, logs and revocations (jti); no secret
	Type     CredentialType `json:"type"`
	Hash     []byte         `json:"hash"` // HashCredential of the whole text
	Subject  string         `json:"sub"`
	ClientID string         `json:"client_id,omitempty"`
	Scope    string         `json:"scope,omitempty"` // RFC 6749 §3.3
	Roles    []string       `json:"roles,omitempty"`
	Networks []netip.Prefix `json:"networks,omitempty"` // from which it may be used; none: from everywhere
	IssuedAt int64          `json:"iat"`                // NumericDate
	// ExpiresAt is a NumericDate, 0: it does not expire.
	ExpiresAt int64 `json:"exp,omitempty"`
	// KnownSeq is the sequence that the issuer had applied when the credential was made, as a token's
	// session_seq: a cutoff at a greater one refuses it, wherever the entry stands. An entry that changes
	// something else keeps it, so that no change brings back what was cut off (an issuer changes nothing
	// that its own replica does not hold: a cutoff expires, what it withdrew stays withdrawn); one that is to
	// stand again has a new one. 0: the entry's own sequence.
	KnownSeq uint64 `json:"known_seq,omitempty"`
	// Gone: there is no such credential from here on.
	Gone bool `json:"gone,omitempty"`
}

// Bounds in bytes, wider than an issuer's own.
const (
	maxScope = 4096
	maxRole  = 256
)

// HashCredential is how a credential stands in the log. A credential is long and random, so that a
// fast hash is enough: nothing can be guessed that would fit.
func HashCredential(text []byte) [sha256.Size]byte { return sha256.Sum256(text) }

// Kind is KindCredential.
func (*Credential) Kind() Kind { return KindCredential }

func (c *Credential) check() error {
	valid := utf8.ValidString(c.ID) && utf8.ValidString(c.Subject) && utf8.ValidString(c.ClientID) && utf8.ValidString(c.Scope)
	switch {
	case c.ID == "" || max(len(c.ID), len(c.Subject), len(c.ClientID)) > MaxID:
		return fmt.Errorf(`a credential needs an "id" of 1 to %d bytes, and no longer "sub" and "client_id"`, MaxID)
	case !valid:
		return errors.New("a credential has text that is not UTF-8")
	case len(c.Hash) != sha256.Size:
		return fmt.Errorf("credential %q needs a hash of 32 bytes", c.ID)
	case c.Type != APIKey && c.Type != Opaque:
		return fmt.Errorf("credential %q is of type %q, not %q or %q", c.ID, c.Type, APIKey, Opaque)
	case c.Subject == "":
		return fmt.Errorf("credential %q needs a %q", c.ID, "sub")
	case len(c.Scope) > maxScope:
		return fmt.Errorf("credential %q has a scope of more than %d bytes", c.ID, maxScope)
	case len(c.Roles) > 64 || len(c.Networks) > 64:
		return fmt.Errorf("credential %q has more than 64 roles or networks", c.ID)
	case slices.ContainsFunc(c.Roles, func(r string) bool { return r == "" || len(r) > maxRole || !utf8.ValidString(r) }):
		return fmt.Errorf("credential %q has a role that is not 1 to %d bytes of UTF-8", c.ID, maxRole)
	case slices.ContainsFunc(c.Networks, func(p netip.Prefix) bool { return !p.IsValid() || p != p.Masked() }):
		return fmt.Errorf("credential %q has a network with an address of a host in it", c.ID)
	case c.IssuedAt < 0 || c.ExpiresAt < 0:
		return fmt.Errorf("credential %q has a time before 1970", c.ID)
	}
	return nil
}
