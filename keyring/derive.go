package keyring

import (
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
)

// Derive returns the HS256 key that an HS256 secret, the master, has for one audience under one kid: HKDF-SHA256
// (RFC 5869) over the master, with audience and kid in its info. Who has it learns nothing of the master, nor of the key
// for another audience or kid. An empty kid makes a random one.
func (k *Key) Derive(kid, audience string) (*Key, error) {
	master, ok := k.private.([]byte)
	switch {
	case !ok || k.alg != HS256:
		return nil, fmt.Errorf("deriving from %v: it is no HS256 secret", k)
	case audience == "":
		return nil, errors.New("deriving an HS256 key: it needs an audience")
	}
	if kid == "" {
		kid = k.defaultID()
	}
	info := joined([]byte("sidekey-hs256-derive-1"), []byte(audience), []byte(kid))
	secret, err := hkdf.Key(sha256.New, master, nil, string(info), minSecret)
	if err != nil {
		return nil, fmt.Errorf("deriving an HS256 key: %w", err)
	}
	return NewSecret(kid, secret)
}
