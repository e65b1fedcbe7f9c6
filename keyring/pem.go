package keyring

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// ParsePEM reads the one key of a PEM file: PKCS #1, PKCS #8, SEC 1, or a public key as PKCS #1 or PKIX. alg may be empty:
// the type of the key decides (RSA: RS256, P-256: ES256, Ed25519: EdDSA). Weak keys are refused as by [ParseJWK].
// The kid is the RFC 7638 thumbprint. An error never quotes the key.
func ParsePEM(data []byte, alg Alg) (*Key, error) {
	k, err := parsePEM(data)
	if err != nil {
		return nil, fmt.Errorf("reading a PEM key: %w", err)
	}
	switch {
	case alg == "" || alg == k.alg:
		return k, nil
	case alg.Symmetric():
		return nil, errors.New("reading a PEM key: PEM holds no HS256 secret; give the secret itself")
	}
	return nil, fmt.Errorf("reading a PEM key: it is for %s, not %q", k.alg, string(alg))
}

func parsePEM(data []byte) (*Key, error) {
	block, rest := pem.Decode(data)
	if block != nil && block.Type == "EC PARAMETERS" { // as openssl ecparam -genkey writes in front
		block, rest = pem.Decode(rest)
	}
	if block == nil {
		return nil, errors.New("no PEM block found; give the file that begins with -----BEGIN")
	}
	if len(bytes.TrimSpace(rest)) != 0 {
		return nil, errors.New("something follows the key; give a file with that one key only")
	}
	if block.Headers["DEK-Info"] != "" || block.Type == "ENCRYPTED PRIVATE KEY" {
		return nil, errors.New("it is encrypted; decrypt it first: openssl pkey -in FILE")
	}
	var k any
	var err error
	switch block.Type {
	case "RSA PRIVATE KEY":
		k, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "PRIVATE KEY":
		k, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		k, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PUBLIC KEY":
		k, err = x509.ParsePKCS1PublicKey(block.Bytes)
	case "PUBLIC KEY":
		k, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "CERTIFICATE":
		return nil, errors.New("it is a certificate; take its key out: openssl x509 -pubkey -noout -in FILE")
	default:
		return nil, fmt.Errorf("a PEM block %q holds no key that is known here", block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("%q is damaged or of a kind that is not supported; write it anew with: openssl pkey -in FILE", block.Type)
	}
	return fromCrypto(k)
}

// fromCrypto takes a key of the standard library, after checking that it is sound.
func fromCrypto(k any) (*Key, error) {
	switch k := k.(type) {
	case *rsa.PrivateKey:
		return rsaPrivate("", k)
	case *rsa.PublicKey:
		if err := soundRSA(k); err != nil {
			return nil, err
		}
		return newKey(RS256, "", k, nil)
	case *ecdsa.PrivateKey:
		if k.Curve != elliptic.P256() {
			return nil, errCurve
		}
		return newKey(ES256, "", &k.PublicKey, k)
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return nil, errCurve
		}
		return newKey(ES256, "", k, nil)
	case ed25519.PrivateKey:
		return newKey(EdDSA, "", k.Public().(ed25519.PublicKey), k)
	case ed25519.PublicKey:
		if err := soundEd25519(k); err != nil {
			return nil, err
		}
		return newKey(EdDSA, "", k, nil)
	}
	return nil, errors.New("a key of this kind cannot sign tokens here; use RSA, P-256 or Ed25519")
}

var errCurve = errors.New("its curve is not P-256, the one of ES256; make a new key: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256")
