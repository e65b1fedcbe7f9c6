package agent

import (
	"bytes"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/strictjson"
)

// cache remembers what was proven of a token: dear, and never different (the signature, the
// claims). It never remembers a refusal, so nobody can fill it without a key. It is one LRU:
// sharded, it was no faster on the two cores where that was measured.
type cache struct {
	proofs *lru.Cache[string, *proof]
	hits   atomic.Uint64
	misses atomic.Uint64
}

func newCache(size int) (*cache, error) {
	proofs, err := lru.New[string, *proof](size)
	if err != nil {
		return nil, fmt.Errorf("making a cache of %d tokens: %w", size, err)
	}
	return &cache{proofs: proofs}, nil
}

// get gives the proof of the whole token, or nil. The token may point into a request's buffer:
// the look-up keeps nothing of it. A token too long to be read is not even hashed.
func (c *cache) get(token string) *proof {
	if len(token) > keyring.MaxTokenLength {
		return nil
	}
	p, ok := c.proofs.Get(token)
	if !ok {
		c.misses.Add(1)
		return nil
	}
	c.hits.Add(1)
	return p
}

// add keeps token as the key, so its bytes must be its own: a key that lay in a request's buffer
// would become another token with the next request, and vouch for that.
func (c *cache) add(token string, p *proof) { c.proofs.Add(token, p) }

func (c *cache) purge() { c.proofs.Purge() }

// proof is what was proven of one token, and the parts of the answers that do not change. It is
// immutable, but for what is made of it later, once.
type proof struct {
	token *keyring.Token
	key   *keyring.Key // what proved it
	ids   replica.IDs
	end   int64 // NumericDate: refused for its age from then on, leeway included
	// head is the answer of a 200 as far as "seq":
	//
	//	{"active":true,"iss":…,…,"alg":"RS256","seq":
	head []byte
	// introspection is the answer of RFC 7662 where it is not just the claims behind
	// {"active":true, : nil unless a claim may be named active.
	introspection []byte

	shown atomic.Pointer[kept] // whom it speaks for, once a face has shown it
}

// newProof prepares the answers for a token that key has proven. The members of the answer are
// written from the claims as they were read; "claims" itself is what was signed, byte for byte.
func newProof(t *keyring.Token, key *keyring.Key, leeway time.Duration) (*proof, error) {
	c := &t.Claims
	p := &proof{token: t, key: key, ids: replica.Fingerprint(c), end: end(c.ExpiresAt.Time(), leeway)}
	var space [768]byte
	b := append(space[:0], `{"active":true`...)
	b = appendClaim(b, "iss", c.Issuer)
	b = appendClaim(b, "sub", c.Subject)
	b = appendAudience(b, c.Audience)
	b = strconv.AppendFloat(append(b, `,"exp":`...), float64(c.ExpiresAt), 'f', -1, 64)
	b = strconv.AppendFloat(append(b, `,"iat":`...), float64(c.IssuedAt), 'f', -1, 64)
	b = appendClaim(b, "jti", c.ID)
	b = appendClaim(b, "sid", c.SessionID)
	b = appendClaim(b, "client_id", c.ClientID)
	b = appendClaim(b, "scope", c.Scope)
	b = appendClaim(b, "token_type", c.TokenType)
	b = appendClaim(b, "kid", t.KeyID)
	b = appendClaim(b, "alg", string(t.Alg))
	p.head = bytes.Clone(append(b, `,"seq":`...))

	// A claim may be called "active", in that spelling or with escapes; hardly any is. Of a foreign token not all
	// is believed.
	if t.Accept != "" || bytes.Contains(c.Raw, []byte(`"active"`)) || bytes.IndexByte(c.Raw, '\\') >= 0 {
		var err error
		if p.introspection, err = introspection(t); err != nil {
			return nil, fmt.Errorf("reading proven claims: %w", err)
		}
	}
	return p, nil
}

// appendClaim appends ,"name":"value", or nothing for a claim that is absent.
func appendClaim(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	b = append(append(append(b, `,"`...), name...), `":`...)
	return appendText(b, value)
}

// appendAudience appends aud, a string when there is one (RFC 7519 §4.1.3).
func appendAudience(b []byte, aud []string) []byte {
	switch len(aud) {
	case 0:
		return b
	case 1:
		return appendClaim(b, "aud", aud[0])
	}
	b = append(b, `,"aud":[`...)
	for i, one := range aud {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendText(b, one)
	}
	return append(b, ']')
}

// introspection renders an introspection answer member by member: RFC 7662 §2.2 gives "active" to the answer. A foreign token's
// scope or client_id is not believed, so it is not told.
func introspection(t *keyring.Token) ([]byte, error) {
	b := []byte(`{"active":true`)
	err := strictjson.Object(t.Believed(), nil, func(name []byte, v strictjson.Value) error {
		if string(name) != "active" {
			b = appendMember(b, string(name), v)
		}
		return nil
	})
	return append(b, '}'), err
}

// appendAnswer appends the body of a 200.
func (p *proof) appendAnswer(b []byte, seq uint64) []byte {
	b = append(b, p.head...)
	b = strconv.AppendUint(b, seq, 10)
	b = append(b, `,"claims":`...)
	b = append(b, p.token.Claims.Raw...)
	return append(b, '}')
}

// appendIntrospection appends the body of an active introspection answer (RFC 7662 §2.2).
func (p *proof) appendIntrospection(b []byte) []byte {
	if p.introspection != nil {
		return append(b, p.introspection...)
	}
	b = append(b, `{"active":true,`...)
	return append(b, bytes.TrimLeft(p.token.Claims.Raw, " \t\r\n{")...) // a token has claims: iss, aud and exp are required
}

// appendMember appends ,"name":value to an object that has members already.
func appendMember(b []byte, name string, v strictjson.Value) []byte {
	b = append(appendText(append(b, ','), name), ':')
	if v.Kind() != strictjson.KindString {
		return append(b, v.Raw()...)
	}
	return append(append(append(b, '"'), v.Raw()...), '"')
}

// appendText appends s as a JSON string. It must be valid UTF-8, as all that was read strictly is.
func appendText(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ' || c == 0x7f:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}
