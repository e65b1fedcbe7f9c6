package keyring

import "errors"

// Reason is why a credential was refused. The same word stands in the answer, the log and the metric label. The set is closed:
// [Reasons] has them all. The zero value is no reason, and is nowhere used for a refusal.
type Reason string

// The reasons. Revoked, below, completes them.
const (
	Missing        Reason = "missing"         // there is no token
	Malformed      Reason = "malformed"       // no compact JWS, header or claims as RFC 7515 and RFC 7519 want them, or too long
	UnsupportedAlg Reason = "unsupported_alg" // alg is none that we have, or not the key's own
	WrongType      Reason = "wrong_type"      // typ is that of another kind of token
	UnknownKey     Reason = "unknown_key"     // no key held under that kid, or one retired, or retiring and not the signer of such a token
	KeyRevoked     Reason = "key_revoked"     // the key was withdrawn
	BadSignature   Reason = "bad_signature"   // the key did not sign this
	WrongIssuer    Reason = "wrong_issuer"    // iss is not the ring's
	WrongAudience  Reason = "wrong_audience"  // aud names none of the audiences expected
	Expired        Reason = "expired"         // exp has passed
	NotYetValid    Reason = "not_yet_valid"   // nbf or iat lies ahead
)

// Revoked is a Reason, the token or its session was withdrawn, and a State, the key was. It is an untyped constant
// so that the one word serves both.
const Revoked = "revoked"

// Reasons is the closed set, in the order of API.md §3. It is not to be changed.
var Reasons = []Reason{
	Missing, Malformed, UnsupportedAlg, UnknownKey, BadSignature, Expired, NotYetValid,
	WrongIssuer, WrongAudience, WrongType, Revoked, KeyRevoked,
}

// Denial is the one refusal of a credential. Reason and Description may be told to the client; KeyID (from outside, at most
// 128 bytes) and Err are for the log. Neither ever holds a token, a secret or a key.
type Denial struct {
	Reason Reason
	KeyID  string // the kid that the token names, if it could be read
	Err    error  // the cause, may be nil
}

// Deny returns the refusal for reason. kid and cause may be empty.
func Deny(reason Reason, kid string, cause error) *Denial {
	return &Denial{Reason: reason, KeyID: kid, Err: cause}
}

func (d *Denial) Error() string {
	text := "token denied: " + string(d.Reason)
	if d.KeyID != "" {
		text += ": kid " + string(quote(d.KeyID))
	}
	if d.Err != nil {
		text += ": " + d.Err.Error()
	}
	return text
}

// Unwrap returns the cause.
func (d *Denial) Unwrap() error { return d.Err }

// Description returns one fixed sentence for the client (error_description, RFC 6750 §3): printable ASCII without quotes.
func (d *Denial) Description() string {
	switch d.Reason {
	case Missing:
		return "No token was given."
	case Malformed:
		return "The token is malformed."
	case UnsupportedAlg:
		return "The token's algorithm is not that of its key."
	case UnknownKey:
		return "The token's key is not known."
	case BadSignature:
		return "The token's signature is not valid."
	case Expired:
		return "The token has expired."
	case NotYetValid:
		return "The token is not valid yet."
	case WrongIssuer:
		return "The token is from another issuer."
	case WrongAudience:
		return "The token is for another audience."
	case WrongType:
		return "The token is of another kind."
	case Revoked:
		return "The token was revoked."
	case KeyRevoked:
		return "The token's key was revoked."
	}
	return "The token was refused."
}

// ReasonOf returns the reason of a refusal, "" if err is none.
func ReasonOf(err error) Reason {
	var d *Denial
	if errors.As(err, &d) && d != nil {
		return d.Reason
	}
	return ""
}
