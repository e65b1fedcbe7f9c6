package keyring

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/sidekey/sidekey/keyring/strictjson"
)

// JWKS returns the JWK Set (RFC 7517 §5) of the public keys that verify: announced, active and retiring. A symmetric key
// is never in it. It is the same slice each time and not to be changed.
func (r *Ring) JWKS() []byte {
	if r.jwks == nil {
		return []byte(`{"keys":[]}`)
	}
	return r.jwks
}

// publicSet writes the set, in the order of the records.
func publicSet(records []*KeyRecord) []byte {
	var keys [][]byte
	for _, rec := range records {
		if rec.refuses() != "" || rec.Alg.Symmetric() || rec.Accept.Kind != "" { // who polls the set would believe it with our iss
			continue
		}
		if j, err := rec.Key.PublicJWK(); err == nil { // fails closed: a key that cannot be shown is not
			keys = append(keys, j)
		}
	}
	return slices.Concat([]byte(`{"keys":[`), bytes.Join(keys, []byte(",")), []byte(`]}`))
}

// ParseJWKS reads a JWK Set strictly and returns the keys that can be used here. Keys of an unknown kty, curve, alg or
// use are passed over (RFC 7517 §5); one that is weak, damaged, symmetric (a set is public, so its secret is out) or that has the kid of
// another is an error, and so is a set of more than 256 keys.
func ParseJWKS(data []byte) ([]*Key, error) {
	var keys []*Key
	found := false
	err := strictjson.Object(data, []string{"keys"}, func(name []byte, v strictjson.Value) error {
		if string(name) != "keys" {
			return nil
		}
		found = true
		return v.Each(func(v strictjson.Value) error {
			k, err := setMember(v)
			if err != nil {
				return fmt.Errorf("key %d: %w", len(keys)+1, err)
			}
			if k == nil {
				return nil
			}
			if slices.ContainsFunc(keys, func(other *Key) bool { return other.id == k.id }) {
				return fmt.Errorf("two keys have the kid %q; remove one", k.id)
			}
			if len(keys) == strictjson.MaxMembers {
				return errors.New("it has more than 256 keys")
			}
			keys = append(keys, k)
			return nil
		})
	})
	if err == nil && !found {
		err = errors.New(`"keys" is missing`)
	}
	if err != nil {
		return nil, fmt.Errorf("reading a JWK Set: %w", err)
	}
	return keys, nil
}

// setMember reads a key of a set; nil means to pass over it.
func setMember(v strictjson.Value) (*Key, error) {
	j, err := readJWK(v.Raw())
	if err != nil {
		return nil, err
	}
	if j.Kty == "oct" {
		return nil, errors.New("a symmetric key must never be in a JWK Set; replace the secret, it is public now")
	}
	if !j.known() {
		return nil, nil
	}
	k, err := j.key()
	if err != nil {
		return nil, err
	}
	return k.Public(), nil
}

// known reports whether the key is of a kind that is used here.
func (j *jwk) known() bool {
	if j.Use != "" && j.Use != "sig" || j.KeyOps != nil && !slices.Contains(j.KeyOps, "verify") && !slices.Contains(j.KeyOps, "sign") {
		return false
	}
	switch j.Kty {
	case "RSA":
		return j.Alg == "" || j.Alg == string(RS256)
	case "EC":
		return j.Crv == "P-256" && (j.Alg == "" || j.Alg == string(ES256))
	case "OKP":
		return j.Crv == "Ed25519" && (j.Alg == "" || j.Alg == string(EdDSA))
	}
	return false
}
