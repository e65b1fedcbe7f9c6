package keyring

import (
	"errors"

	"github.com/sidekey/sidekey/keyring/strictjson"
)

// Assertion is what a client says of itself, signed with a key of its own (RFC 7523 §3). The signature is proven;
// what it says is for the caller to judge.
type Assertion struct {
	Issuer, Subject, ID string
	Audience            []string
	ExpiresAt           NumericDate
	NotBefore, IssuedAt NumericDate // 0: not said
}

// assertionTypes are the typ that an assertion may have: none, that of any JWT, or its own. A token of ours, which
// has another, never passes for one (RFC 8725 §3.11).
var assertionTypes = map[TokenType]bool{"": true, "jwt": true, "client-authentication+jwt": true}

var (
	errAssertionKeys = errors.New("no key of the client's made it")
	errAssertion     = errors.New("an assertion needs iss, sub, aud, exp and jti as RFC 7523 has them")
)

// ProveAssertion reads an assertion strictly and checks it with the client's public keys: by its kid, where it has one,
// else with each key whose algorithm it names. The algorithm is always the key's, and never a symmetric one, so that
// a public key is nowhere taken for a secret. It returns a *Denial.
func ProveAssertion(token string, keys []*Key) (*Assertion, error) {
	p, d := split(token)
	if d != nil {
		return nil, d
	}
	h, d := readHeader(p.header)
	if d != nil {
		return nil, d
	}
	if !assertionTypes[h.Type] {
		return nil, Deny(WrongType, "", nil)
	}
	payload, err := decode(p.payload)
	if err != nil {
		return nil, Deny(Malformed, "", err)
	}
	sig, err := decode(p.signature)
	if err != nil {
		return nil, Deny(Malformed, "", err)
	}
	if !signedByOne(keys, h, p.signed, sig) {
		return nil, Deny(BadSignature, "", errAssertionKeys)
	}
	return readAssertion(payload)
}

// signedByOne tells whether one of the keys, with its own algorithm, made the signature.
func signedByOne(keys []*Key, h Header, signed string, sig []byte) bool {
	for _, k := range keys {
		if k.alg.Symmetric() || string(k.alg) != h.Alg || h.KeyID != "" && h.KeyID != k.id {
			continue
		}
		if k.verify(signed, sig) == nil {
			return true
		}
	}
	return false
}

// readAssertion reads the payload with the reader of tokens' claims: members once, dates bounded.
func readAssertion(payload []byte) (*Assertion, error) {
	c := new(Claims)
	r := claimsReader{Claims: c, ring: new(Ring)}
	if err := strictjson.Object(payload, claimNames, r.claim); err != nil {
		return nil, Deny(Malformed, "", err)
	}
	if c.Issuer == "" || c.Subject == "" || c.ID == "" || len(c.Audience) == 0 || !r.hasExp {
		return nil, Deny(Malformed, "", errAssertion)
	}
	return &Assertion{
		Issuer: c.Issuer, Subject: c.Subject, ID: c.ID, Audience: c.Audience,
		ExpiresAt: c.ExpiresAt, NotBefore: c.NotBefore, IssuedAt: c.IssuedAt,
	}, nil
}

// PeekAssertion reads an assertion and proves nothing: for finding the client whose keys may prove it.
// It returns a *Denial.
func PeekAssertion(token string) (*Assertion, error) {
	p, d := split(token)
	if d != nil {
		return nil, d
	}
	payload, err := decode(p.payload)
	if err != nil {
		return nil, Deny(Malformed, "", err)
	}
	return readAssertion(payload)
}
