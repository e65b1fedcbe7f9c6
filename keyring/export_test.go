package keyring

import "crypto/rsa"

// OpenJWS is the layer below claims: it proves any compact JWS with k, by the reader and the signature check that
// Prove uses, and returns the payload. Known answers of others are no tokens: no typ, often no kid, any payload.
func OpenJWS(k *Key, token string) ([]byte, error) {
	p, d := split(token)
	if d != nil {
		return nil, d
	}
	h, d := readHeader(p.header)
	if d != nil {
		return nil, d
	}
	if h.Alg != string(k.alg) {
		return nil, Deny(UnsupportedAlg, "", nil)
	}
	if h.KeyID != "" && h.KeyID != k.id {
		return nil, Deny(UnknownKey, "", nil)
	}
	payload, err := decode(p.payload)
	if err != nil {
		return nil, Deny(Malformed, "", err)
	}
	sig, err := decode(p.signature)
	if err != nil {
		return nil, Deny(Malformed, "", err)
	}
	if err := k.verify(p.signed, sig); err != nil {
		return nil, Deny(BadSignature, "", err)
	}
	return payload, nil
}

// VerifyBytes checks the signature of any message.
func VerifyBytes(k *Key, message string, sig []byte) error { return k.verify(message, sig) }

// UnsoundRSA makes a key that import refuses, for signatures that are right under a weak key.
func UnsoundRSA(pub *rsa.PublicKey) (*Key, error) { return newKey(RS256, "", pub, nil) }

// UnsoundSecret makes a key that import refuses.
func UnsoundSecret(secret []byte) (*Key, error) { return newKey(HS256, "", secret, secret) }

// KnownByHeart reports whether the token's header need not be read.
func KnownByHeart(r *Ring, token string) bool {
	p, d := split(token)
	return d == nil && r.heads[head{AccessToken, p.header}] != nil
}
