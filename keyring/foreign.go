package keyring

import (
	"encoding/json"
	"errors"
	"slices"

	"github.com/sidekey/sidekey/keyring/strictjson"
)

// AcceptKind names whose tokens, made elsewhere, a key verifies. The zero value: nobody's, the key's tokens are ours.
type AcceptKind string

// SimpleJWT are the tokens of djangorestframework-simplejwt: typ is JWT, there is no kid, and the claims are token_type, exp,
// iat, jti and the user's id.
const SimpleJWT AcceptKind = "simplejwt"

// Accept says which foreign tokens a key verifies, and by what rules. A key that has one verifies nothing else: a token of
// ours is never proven by it, nor a foreign token by another key. The zero value is that of a key of ours.
type Accept struct {
	Kind        AcceptKind
	UserIDClaim string // the claim with the user's id, text or a whole number; "": user_id
	Issuer      string // what iss must be; "": there may be none
	Audience    string // what aud must have; "": there may be none
}

func (a Accept) known() bool { return a.Kind == "" && a == (Accept{}) || a.Kind == SimpleJWT }

func (a Accept) userIDClaim() string {
	if a.UserIDClaim == "" {
		return "user_id"
	}
	return a.UserIDClaim
}

// MaxAccepting bounds how many keys of one algorithm a token without kid is tried against: the newest.
const MaxAccepting = 4

// foreignKeys finds the keys that accept foreign tokens, by algorithm, the newest first. Revoked ones are among them: they
// are what a token is refused by.
func foreignKeys(records []*KeyRecord) map[Alg][]*KeyRecord {
	var found map[Alg][]*KeyRecord
	for _, rec := range slices.Backward(records) {
		if rec.Accept.Kind == "" {
			continue
		}
		if found == nil {
			found = make(map[Alg][]*KeyRecord)
		}
		found[rec.Alg] = append(found[rec.Alg], rec)
	}
	return found
}

// foreign reports whether a header is that of a token that names no key and no kind of ours.
func (h *Header) foreign() bool { return h.KeyID == "" && h.Type == "jwt" }

// Foreign reports whether a token claims to be one that was made elsewhere: it names no key and its typ is JWT. It proves
// nothing.
func Foreign(token string) bool {
	h, err := Peek(token)
	return err == nil && h.foreign()
}

// proveForeign tries the keys that accept foreign tokens of this alg, a bounded number. What kind the token is, its claims
// tell: typ is JWT for all.
func (r *Ring) proveForeign(p parts, alg Alg, typ TokenType) (*Token, error) {
	payload, err := decode(p.payload)
	if err != nil {
		return nil, Deny(Malformed, "", err)
	}
	sig, err := decode(p.signature)
	if err != nil {
		return nil, Deny(Malformed, "", err)
	}
	rec, d := r.foreignKey(p.signed, sig, alg)
	if d != nil {
		return nil, d
	}
	t := &Token{KeyID: rec.KeyID, Alg: rec.Alg, Accept: rec.Accept.Kind}
	if err := readForeign(&t.Claims, payload, rec.Accept.userIDClaim()); err != nil {
		return nil, Deny(Malformed, rec.KeyID, err)
	}
	switch t.Claims.TokenType {
	case "access", "sliding":
		t.Type = AccessToken
	case "refresh":
		t.Type = RefreshToken
	}
	if t.Type != typ {
		return nil, Deny(WrongType, rec.KeyID, errors.New("its token_type is that of another kind"))
	}
	return t, nil
}

// foreignKey finds the key that has signed.
func (r *Ring) foreignKey(signed string, sig []byte, alg Alg) (*KeyRecord, *Denial) {
	tried := 0
	denial := Deny(UnknownKey, "", nil)
	for _, rec := range r.foreign[alg] {
		if reason := rec.refuses(); reason != "" {
			if tried == 0 {
				denial = Deny(reason, rec.KeyID, nil)
			}
			continue
		}
		if tried++; tried > MaxAccepting {
			break
		}
		err := rec.Key.verify(signed, sig)
		if err == nil {
			return rec, nil
		}
		denial = Deny(BadSignature, rec.KeyID, err)
	}
	return nil, denial
}

// admitsForeign judges what a key's rules demand of a foreign token. It returns "" or the reason against it.
func (rec *KeyRecord) admitsForeign(c *Claims) Reason {
	switch {
	case c.Issuer != rec.Accept.Issuer:
		return WrongIssuer
	case rec.Accept.Audience == "" && len(c.Audience) > 0, rec.Accept.Audience != "" && !slices.Contains(c.Audience, rec.Accept.Audience):
		return WrongAudience
	case float64(c.ExpiresAt)-float64(c.IssuedAt) > rec.MaxLifetime.Seconds() && rec.MaxLifetime > 0:
		return UnknownKey // no such token was promised at the import: its revocation might be forgotten before it ends
	}
	return ""
}

// foreignNames are the claims of a foreign token that mean something here, beside that of the user's id.
var foreignNames = []string{"iss", "aud", "exp", "nbf", "iat", "jti", "token_type"}

// readForeign reads a payload of Simple JWT's into c, which is empty. The subject is the text of the user's id. All else (a
// scope, roles, a session) is not believed: whoever made the token never meant ours. It stays in Raw.
func readForeign(c *Claims, raw []byte, userID string) error {
	r := claimsReader{Claims: c, ring: &Ring{}}
	names := foreignNames
	if !slices.Contains(names, userID) {
		names = append(slices.Clone(names), userID)
	}
	err := strictjson.Object(raw, names, func(name []byte, v strictjson.Value) error {
		if string(name) == userID {
			id, ok := foreignID(v)
			if !ok {
				return claimError(name)
			}
			c.Subject = id
		}
		if !slices.Contains(foreignNames, string(name)) {
			return nil
		}
		return r.claim(name, v)
	})
	switch {
	case err != nil:
		return err
	case c.Subject == "":
		return claimError(userID)
	case !r.hasExp:
		return claimError("exp")
	case !r.hasIat:
		return claimError("iat")
	case c.ID == "":
		return claimError("jti")
	}
	c.UserID, c.Raw = c.Subject, raw
	return nil
}

// Believed gives the claims that are believed, as a JSON object: all of a token of ours; of one that was made elsewhere those that
// its rules read. What else its maker put there may have the name of a claim of ours, and never meant it.
func (t *Token) Believed() []byte {
	if t.Accept == "" {
		return t.Claims.Raw
	}
	c := &t.Claims
	believed := map[string]any{"exp": c.ExpiresAt, "iat": c.IssuedAt, "jti": c.ID, "token_type": c.TokenType, "sub": c.Subject, "user_id": c.UserID}
	if c.NotBefore != 0 {
		believed["nbf"] = c.NotBefore
	}
	if c.Issuer != "" {
		believed["iss"] = c.Issuer
	}
	if len(c.Audience) > 0 {
		believed["aud"] = c.Audience
	}
	text, err := json.Marshal(believed)
	if err != nil {
		return []byte("{}") // not reached: texts and numbers
	}
	return text
}

// foreignID reads a user's id: text, or a whole number, taken as its digits.
func foreignID(v strictjson.Value) (string, bool) {
	if v.Kind() != strictjson.KindNumber {
		return v.Text()
	}
	digits := string(v.Raw())
	for at, c := range digits {
		if (c < '0' || c > '9') && (at > 0 || c != '-') {
			return "", false
		}
	}
	return digits, len(digits) <= maxForeignID
}

const maxForeignID = 64
