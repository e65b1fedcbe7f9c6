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
// immutable.
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
	// {"active":true, : nil but for a token with a claim named active.
	introspection []byte
}

// shown are the claims that an answer has as members of its own, in this order.
var shown = [...]string{"iss", "sub", "aud", "exp", "iat", "jti", "sid", "client_id", "scope", "token_type"}

// newProof prepares the answers for a proven token. A claim goes into them as it was signed, in
// the token's own spelling of its number, string or array.
func newProof(t *keyring.Token, key *keyring.Key, leeway time.Duration) (*proof, error) {
	p := &proof{
		token: t,
		key:   key,
		ids:   replica.Fingerprint(&t.Claims),
		end:   end(t.Claims.ExpiresAt.Time(), leeway),
	}
	var values [len(shown)]strictjson.Value
	named := false // a claim is called "active"
	err := strictjson.Object(t.Claims.Raw, nil, func(name []byte, v strictjson.Value) error {
		named = named || string(name) == "active"
		for i := range shown {
			if string(name) == shown[i] {
				values[i] = v
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading proven claims: %w", err)
	}
	head := append(make([]byte, 0, 512), `{"active":true`...)
	for i, v := range values {
		if v.Kind() != 0 {
			head = appendMember(head, shown[i], v)
		}
	}
	head = appendText(append(head, `,"kid":`...), t.KeyID)
	head = appendText(append(head, `,"alg":`...), string(t.Alg))
	p.head = bytes.Clone(append(head, `,"seq":`...))
	if named {
		p.introspection, err = withoutActive(t.Claims.Raw)
	}
	return p, err
}

// withoutActive renders an introspection answer for claims that have one named "active": RFC 7662
// §2.2 gives that member to the answer.
func withoutActive(claims []byte) ([]byte, error) {
	b := []byte(`{"active":true`)
	err := strictjson.Object(claims, nil, func(name []byte, v strictjson.Value) error {
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
