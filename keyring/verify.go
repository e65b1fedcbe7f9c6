package keyring

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Token is a token whose signature is proven. That stays true for ever, so it may be cached; all the rest (time, issuer,
// audience, the state of its key) is Check's and Recheck's to judge. It holds nothing of the text that it was read from.
// It is not to be changed.
type Token struct {
	KeyID  string
	Alg    Alg
	Type   TokenType
	Accept AcceptKind // by whose rules it was read; "": ours
	Claims Claims
}

// Expect is what a verifier demands of a proven token.
type Expect struct {
	Type      TokenType
	Audiences []string      // one must be in aud; none given: the ring's default audience. "" matches nothing
	Leeway    time.Duration // tolerance for exp, nbf, iat and a key's retirement; not negative
	Now       time.Time     // the zero value is long ago: nothing is valid yet
}

// Prove reads a token strictly, finds its key by kid, and checks alg, typ and signature. It says nothing about time, issuer
// and audience. It returns a *Denial: Missing, Malformed, UnsupportedAlg, WrongType, UnknownKey, KeyRevoked or BadSignature.
func (r *Ring) Prove(token string, typ TokenType) (*Token, error) {
	p, d := split(token)
	if d != nil {
		return nil, d
	}
	rec, alg, d := r.keyOf(p.header, typ)
	if d != nil {
		return nil, d
	}
	if rec == nil {
		return r.proveForeign(p, alg, typ)
	}
	payload, err := decode(p.payload)
	if err != nil {
		return nil, Deny(Malformed, rec.KeyID, err)
	}
	sig, err := decode(p.signature)
	if err != nil {
		return nil, Deny(Malformed, rec.KeyID, err)
	}
	t := &Token{KeyID: rec.KeyID, Alg: rec.Alg, Type: typ}
	if err := readClaims(&t.Claims, payload, r); err != nil {
		return nil, Deny(Malformed, rec.KeyID, fmt.Errorf("reading its claims: %w", err))
	}
	if err := rec.Key.verify(p.signed, sig); err != nil {
		return nil, Deny(BadSignature, rec.KeyID, err)
	}
	if !typ.fits(t.Claims.TokenType) {
		return nil, Deny(WrongType, rec.KeyID, errors.New("its token_type contradicts its typ"))
	}
	return t, nil
}

// keyOf returns the record of the key that may have signed a token of kind typ with this header, with its Key. No record and
// no denial: the token names no key, as Simple JWT's do not, and there are keys that accept such tokens of this alg.
func (r *Ring) keyOf(header string, typ TokenType) (*KeyRecord, Alg, *Denial) {
	// A header that equals, byte for byte, the one that this key's tokens of this kind carry needs no reading.
	rec, ok := r.heads[head{typ, header}]
	if !ok {
		h, d := readHeader(header)
		if d != nil {
			return nil, "", d
		}
		if h.foreign() && len(r.foreign[Alg(h.Alg)]) > 0 {
			return nil, Alg(h.Alg), nil
		}
		if rec, d = r.keyFor(h, typ); d != nil {
			return nil, "", d
		}
	}
	if reason := rec.refuses(); reason != "" {
		return nil, "", Deny(reason, rec.KeyID, nil)
	}
	return rec, rec.Alg, nil
}

// keyFor finds the key of a header that has been read. typ is judged before the key is looked for: a refresh
// token is of the wrong type also where its key is not held.
func (r *Ring) keyFor(h Header, typ TokenType) (*KeyRecord, *Denial) {
	if _, err := ParseAlg(h.Alg); err != nil {
		return nil, Deny(UnsupportedAlg, "", errors.New("its alg is none that is supported"))
	}
	if !ValidKeyID(h.KeyID) {
		return nil, Deny(Malformed, "", errKeyID)
	}
	if h.Type != typ {
		return nil, Deny(WrongType, h.KeyID, nil)
	}
	rec, ok := r.byID[h.KeyID]
	if !ok || rec.Accept.Kind != "" { // a key of somebody else's proves nothing that is shaped like ours
		return nil, Deny(UnknownKey, h.KeyID, nil)
	}
	if string(rec.Alg) != h.Alg {
		return nil, Deny(UnsupportedAlg, h.KeyID, fmt.Errorf("its alg is %s, its key's is %s", h.Alg, rec.Alg))
	}
	return rec, nil
}

// fits reports whether a claim token_type, if there, agrees with the kind.
func (t TokenType) fits(tokenType string) bool {
	switch tokenType {
	case "access":
		return t != RefreshToken
	case "refresh":
		return t == RefreshToken
	}
	return true
}

// verify checks a signature with the key's own algorithm, through golang-jwt.
func (k *Key) verify(signed string, sig []byte) error {
	m := k.alg.method()
	if m == nil {
		return errors.New("the key has no algorithm")
	}
	return m.Verify(signed, sig, k.public)
}

// Verify is Prove, then Check.
func (r *Ring) Verify(token string, want Expect) (*Token, error) {
	t, err := r.Prove(token, want.Type)
	if err != nil {
		return nil, err
	}
	if err := r.Check(t, want); err != nil {
		return nil, err
	}
	return t, nil
}

// Check judges a proven token: the state of its key now, the kind, issuer, audience, and time. It is for the first
// sight of a token: golang-jwt's validator, with every option on, has its say. It returns a *Denial or nil.
func (r *Ring) Check(t *Token, want Expect) error {
	if reason := r.admits(t, want); reason != "" {
		return Deny(reason, t.KeyID, nil)
	}
	if !r.audienceOf(t, want) { // also where the validator would look at no audience
		return Deny(WrongAudience, t.KeyID, nil)
	}
	if err := r.validate(t, want); err != nil {
		return Deny(reasonFor(err), t.KeyID, err)
	}
	return nil
}

// Recheck judges a token that was checked before as Check does, with the same verdicts, and allocates nothing when it
// passes. It is hand-made: golang-jwt's validator allocates.
func (r *Ring) Recheck(t *Token, want Expect) error {
	reason := r.admits(t, want)
	switch c := &t.Claims; {
	case reason != "":
	case !r.audienceOf(t, want):
		reason = WrongAudience
	case !want.Now.Before(c.ExpiresAt.local().Add(want.Leeway)):
		reason = Expired
	case want.Now.Before(c.NotBefore.local().Add(-want.Leeway)), want.Now.Before(c.IssuedAt.local().Add(-want.Leeway)):
		reason = NotYetValid
	default:
		return nil
	}
	return Deny(reason, t.KeyID, nil)
}

// admits judges what golang-jwt knows nothing of: the key's state, what a key may sign, the kind; and the issuer, which
// its validator would not look at if ours were empty. It returns "" or the reason against the token.
func (r *Ring) admits(t *Token, want Expect) Reason {
	rec, ok := r.byID[t.KeyID]
	if !ok {
		return UnknownKey
	}
	if reason := rec.refuses(); reason != "" {
		return reason
	}
	if rec.Alg != t.Alg {
		return UnknownKey // another key under the same id
	}
	c := &t.Claims
	if rec.State == Retiring && !rec.signed(c, want.Leeway) {
		return UnknownKey
	}
	switch {
	case t.Type != want.Type:
		return WrongType
	case rec.Accept.Kind != t.Accept:
		return UnknownKey // another key under the same id
	case t.Accept != "":
		return rec.admitsForeign(c)
	case c.Issuer != r.issuer || r.issuer == "":
		return WrongIssuer
	case rec.Alg.Symmetric() && (len(c.Audience) != 1 || c.Audience[0] != rec.Audience):
		return WrongAudience
	}
	return ""
}

// audienceOf reports whether the token is for one of the audiences expected.
func (r *Ring) audienceOf(t *Token, want Expect) bool {
	if t.Accept != "" {
		rec, ok := r.byID[t.KeyID]
		return ok && r.expects(rec.Audience, want)
	}
	for _, aud := range t.Claims.Audience {
		if r.expects(aud, want) {
			return true
		}
	}
	return false
}

func (r *Ring) expects(aud string, want Expect) bool {
	return aud != "" && (len(want.Audiences) == 0 && aud == r.audience || slices.Contains(want.Audiences, aud))
}
