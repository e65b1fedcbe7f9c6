package keyring

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"github.com/sidekey/sidekey/keyring/strictjson"
)

// MaxTokenLength is the longest token, in bytes, that is read or made.
const MaxTokenLength = 8192

// TokenType is a kind of token: the typ of its header (RFC 7515 §4.1.9), so that no kind passes for another (RFC 8725 §3.11).
type TokenType string

// The kinds of tokens.
const (
	AccessToken  TokenType = "at+jwt"      // RFC 9068 §2.1
	RefreshToken TokenType = "rt+jwt"      // read by issuers only
	SessionToken TokenType = "session+jwt" // the browser's cookie
)

var tokenTypes = []TokenType{AccessToken, RefreshToken, SessionToken}

// Header is what a token says about itself. Until its signature is proven it is a claim and no more.
type Header struct {
	KeyID string
	Alg   string
	Type  TokenType // in lower case, without "application/"
}

// Peek reads a token's header strictly and proves nothing: for choosing a key ring, for showing, for logs.
// It returns a *Denial, Missing or Malformed.
func Peek(token string) (Header, error) {
	p, d := split(token)
	if d != nil {
		return Header{}, d
	}
	h, d := readHeader(p.header)
	if d != nil {
		return Header{}, d
	}
	return h, nil
}

// parts are the parts of a compact JWS, still encoded; signed is what the signature covers.
type parts struct{ signed, header, payload, signature string }

// split finds the three parts (RFC 7515 §7.1).
func split(token string) (parts, *Denial) {
	if token == "" {
		return parts{}, Deny(Missing, "", nil)
	}
	if len(token) > MaxTokenLength {
		return parts{}, Deny(Malformed, "", errLength)
	}
	first := strings.IndexByte(token, '.')
	last := strings.LastIndexByte(token, '.')
	if first == last || strings.IndexByte(token[first+1:last], '.') >= 0 {
		return parts{}, Deny(Malformed, "", errParts)
	}
	return parts{signed: token[:last], header: token[:first], payload: token[first+1 : last], signature: token[last+1:]}, nil
}

var (
	errLength   = errors.New("it is longer than 8192 bytes")
	errParts    = errors.New("it does not have three parts")
	errEncoding = errors.New("a part is not canonical base64url")
	errKeyID    = errors.New("kid is missing, empty, longer than 128 bytes or has control characters")
)

// decode reads canonical base64url without padding: one text for each value (RFC 7515 §2). The decoder itself skips
// line breaks, which would let many texts stand for one token.
func decode(text string) ([]byte, error) {
	if strings.IndexByte(text, '\n') >= 0 || strings.IndexByte(text, '\r') >= 0 {
		return nil, errEncoding
	}
	b, err := b64.DecodeString(text)
	if err != nil {
		return nil, errEncoding
	}
	return b, nil
}

// headerNames are the members of a header that mean something (RFC 7515 §4.1, RFC 7797 §3).
var headerNames = []string{"alg", "kid", "typ", "crit", "b64", "jku", "jwk", "x5u", "x5c", "x5t", "cty", "enc", "zip"}

var errMember = errors.New("alg, kid or typ is not a string")

// readHeader reads an encoded header. It refuses extensions (crit, b64): none is known here, and RFC 7515 §4.1.11 wants that.
// It refuses keys brought along (jku, jwk, x5u, x5c): we never make them, and believing one is an attack as old as JWS.
func readHeader(encoded string) (Header, *Denial) {
	raw, err := decode(encoded)
	if err != nil {
		return Header{}, Deny(Malformed, "", err)
	}
	var h Header
	err = strictjson.Object(raw, headerNames, func(name []byte, v strictjson.Value) error {
		ok := true
		switch string(name) {
		case "alg":
			h.Alg, ok = v.Text()
		case "kid":
			if h.KeyID, ok = v.Text(); ok && h.KeyID == "" {
				return errKeyID // no kid at all may mean something, an empty one does not
			}
		case "typ":
			var typ string
			typ, ok = v.Text()
			h.Type = mediaType(typ)
		case "crit", "b64":
			return errors.New("its header asks for an extension (crit, b64)")
		case "jku", "jwk", "x5u", "x5c":
			return errors.New("its header brings its own key (jku, jwk, x5u, x5c)")
		}
		if !ok {
			return errMember
		}
		return nil
	})
	if err != nil {
		return Header{}, Deny(Malformed, "", err)
	}
	return h, nil
}

// mediaType returns typ as compared: media types ignore case, and "application/" may be left out (RFC 7515 §4.1.9).
func mediaType(typ string) TokenType {
	typ = strings.ToLower(typ)
	if rest, ok := strings.CutPrefix(typ, "application/"); ok && !strings.Contains(rest, "/") {
		typ = rest
	}
	return TokenType(typ)
}

// header returns the header of the tokens that k signs: what golang-jwt makes of the map in Sign, byte for byte.
func (k *Key) header(typ TokenType) []byte {
	return slices.Concat([]byte(`{"alg":`), quote(string(k.alg)), []byte(`,"kid":`), quote(k.id), []byte(`,"typ":`), quote(string(typ)), []byte(`}`))
}

// quote writes s as a JSON string.
func quote(s string) []byte {
	b, err := json.Marshal(s)
	if err != nil { // no string fails
		return []byte(`""`)
	}
	return b
}
