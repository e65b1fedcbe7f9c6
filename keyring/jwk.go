package keyring

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/sidekey/sidekey/keyring/strictjson"
)

// jwk is a JSON Web Key (RFC 7517 §4; RFC 7518 §6; RFC 8037 §2) as it stands in JSON, numbers in base64url:
//
//	{"kty":"RSA","kid":"…","alg":"RS256","use":"sig","n":"…","e":"AQAB"}
//	{"kty":"EC","kid":"…","alg":"ES256","use":"sig","crv":"P-256","x":"…","y":"…"}
//	{"kty":"OKP","kid":"…","alg":"EdDSA","use":"sig","crv":"Ed25519","x":"…"}
//	{"kty":"oct","kid":"…","alg":"HS256","use":"sig","k":"…"}
type jwk struct {
	Kty    string   `json:"kty"`
	Kid    string   `json:"kid,omitempty"`
	Alg    string   `json:"alg,omitempty"`
	Use    string   `json:"use,omitempty"`
	KeyOps []string `json:"key_ops,omitempty"`
	Crv    string   `json:"crv,omitempty"`
	N      string   `json:"n,omitempty"`
	E      string   `json:"e,omitempty"`
	X      string   `json:"x,omitempty"`
	Y      string   `json:"y,omitempty"`
	D      string   `json:"d,omitempty"`
	P      string   `json:"p,omitempty"`
	Q      string   `json:"q,omitempty"`
	DP     string   `json:"dp,omitempty"`
	DQ     string   `json:"dq,omitempty"`
	QI     string   `json:"qi,omitempty"`
	K      string   `json:"k,omitempty"`
}

var jwkNames = []string{"kty", "kid", "alg", "use", "key_ops", "crv", "n", "e", "x", "y", "d", "p", "q", "dp", "dq", "qi", "k", "oth"}

// field returns where the string member named name goes, nil for a name that means nothing here.
func (j *jwk) field(name string) *string {
	switch name {
	case "kty":
		return &j.Kty
	case "kid":
		return &j.Kid
	case "alg":
		return &j.Alg
	case "use":
		return &j.Use
	case "crv":
		return &j.Crv
	case "n":
		return &j.N
	case "e":
		return &j.E
	case "x":
		return &j.X
	case "y":
		return &j.Y
	case "d":
		return &j.D
	case "p":
		return &j.P
	case "q":
		return &j.Q
	case "dp":
		return &j.DP
	case "dq":
		return &j.DQ
	case "qi":
		return &j.QI
	case "k":
		return &j.K
	}
	return nil
}

// readJWK reads the members strictly and understands nothing yet.
func readJWK(data []byte) (*jwk, error) {
	var j jwk
	err := strictjson.Object(data, jwkNames, func(name []byte, v strictjson.Value) error {
		var ok bool
		switch n := string(name); n {
		case "key_ops":
			if j.KeyOps, ok = v.Texts(); !ok {
				return errors.New(`"key_ops" is not an array of strings`)
			}
		case "oth":
			return errors.New(`RSA keys of more than two primes ("oth") are not supported; make a new key`)
		default:
			f := j.field(n)
			if f == nil {
				return nil
			}
			if *f, ok = v.Text(); !ok || *f == "" && n != "k" {
				return fmt.Errorf("%q is not a string with something in it", n)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &j, nil
}

// ParseJWK reads a JSON Web Key, public, private or symmetric, strictly: no member twice, canonical base64url, no leading
// zeros, alg, use and key_ops (where present) those of a signing key, both halves belonging together. It keeps the JWK's
// kid, else gives the thumbprint or 128 random bits. Weak keys are refused: RSA under 2048 or over 8192 bits, with an
// exponent that is even or under 65537, or from the generator of CVE-2017-15361; points off their curve; secrets under
// 32 bytes. An error never quotes the key.
func ParseJWK(data []byte) (*Key, error) {
	j, err := readJWK(data)
	if err != nil {
		return nil, fmt.Errorf("reading a JWK: %w", err)
	}
	k, err := j.key()
	if err != nil {
		return nil, fmt.Errorf("reading a JWK: %w", err)
	}
	return k, nil
}

// key understands the members.
func (j *jwk) key() (*Key, error) {
	if j.Use != "" && j.Use != "sig" {
		return nil, fmt.Errorf("its use is %q, not \"sig\"; give a key made for signatures", j.Use)
	}
	if j.KeyOps != nil && !slices.Contains(j.KeyOps, "sign") && !slices.Contains(j.KeyOps, "verify") {
		return nil, errors.New(`its key_ops name neither "sign" nor "verify"; give a key made for signatures`)
	}
	alg, make := RS256, j.rsaKey
	switch j.Kty {
	case "RSA":
	case "EC":
		alg, make = ES256, j.ecKey
	case "OKP":
		alg, make = EdDSA, j.edKey
	case "oct":
		alg, make = HS256, j.octKey
	case "":
		return nil, errors.New(`"kty" is missing`)
	default:
		return nil, fmt.Errorf("unknown kty %q; use RSA, EC, OKP or oct", j.Kty)
	}
	if j.Alg != "" && j.Alg != string(alg) {
		return nil, fmt.Errorf("its alg is %q, but keys of kty %q are for %s here", j.Alg, j.Kty, alg)
	}
	return make()
}

func (j *jwk) rsaKey() (*Key, error) {
	n, err := number("n", j.N)
	if err != nil {
		return nil, err
	}
	e, err := number("e", j.E)
	if err != nil {
		return nil, err
	}
	if !e.IsInt64() || e.Int64() > maxExponent {
		return nil, errExponent
	}
	pub := &rsa.PublicKey{N: n, E: int(e.Int64())}
	if err := soundRSA(pub); err != nil {
		return nil, err
	}
	if j.D == "" {
		return newKey(RS256, j.Kid, pub, nil)
	}
	if j.P == "" || j.Q == "" {
		return nil, errors.New(`an RSA private key without its primes "p" and "q" is not supported; export it with them`)
	}
	var parts [3]*big.Int
	for i, m := range []struct{ name, text string }{{"d", j.D}, {"p", j.P}, {"q", j.Q}} {
		if parts[i], err = number(m.name, m.text); err != nil {
			return nil, err
		}
	}
	return rsaPrivate(j.Kid, &rsa.PrivateKey{PublicKey: *pub, D: parts[0], Primes: parts[1:]})
}

func (j *jwk) ecKey() (*Key, error) {
	if j.Crv != "P-256" {
		return nil, fmt.Errorf("its curve is %q; of kty EC only P-256 (ES256) is supported", j.Crv)
	}
	x, err := octets("x", j.X, 32)
	if err != nil {
		return nil, err
	}
	y, err := octets("y", j.Y, 32)
	if err != nil {
		return nil, err
	}
	pub, err := p256Public(slices.Concat([]byte{4}, x, y))
	if err != nil {
		return nil, err
	}
	if j.D == "" {
		return newKey(ES256, j.Kid, pub, nil)
	}
	d, err := octets("d", j.D, 32)
	if err != nil {
		return nil, err
	}
	k, err := ecdsa.ParseRawPrivateKey(pub.Curve, d)
	if err != nil || !k.PublicKey.Equal(pub) {
		return nil, errHalves
	}
	return newKey(ES256, j.Kid, pub, k)
}

func (j *jwk) edKey() (*Key, error) {
	if j.Crv != "Ed25519" {
		return nil, fmt.Errorf("its curve is %q; of kty OKP only Ed25519 (EdDSA) is supported", j.Crv)
	}
	x, err := octets("x", j.X, ed25519.PublicKeySize)
	if err != nil {
		return nil, err
	}
	pub := ed25519.PublicKey(x)
	if err := soundEd25519(pub); err != nil {
		return nil, err
	}
	if j.D == "" {
		return newKey(EdDSA, j.Kid, pub, nil)
	}
	d, err := octets("d", j.D, ed25519.SeedSize)
	if err != nil {
		return nil, err
	}
	k := ed25519.NewKeyFromSeed(d)
	if !pub.Equal(k.Public()) {
		return nil, errHalves
	}
	return newKey(EdDSA, j.Kid, pub, k)
}

func (j *jwk) octKey() (*Key, error) {
	secret, err := decode(j.K)
	if err != nil {
		return nil, fmt.Errorf(`"k" is not base64url: %w`, err)
	}
	return NewSecret(j.Kid, secret)
}

// number reads a Base64urlUInt: at least one octet, the first not zero (RFC 7518 §2).
func number(name, text string) (*big.Int, error) {
	b, err := decode(text)
	switch {
	case text == "":
		return nil, fmt.Errorf("%q is missing", name)
	case err != nil:
		return nil, fmt.Errorf("%q is not base64url: %w", name, err)
	case len(b) > maxRSABits/8:
		return nil, fmt.Errorf("%q is larger than %d bits", name, maxRSABits)
	case b[0] == 0:
		return nil, fmt.Errorf("%q begins with a zero octet (RFC 7518 section 2); export the key again", name)
	}
	return new(big.Int).SetBytes(b), nil
}

// octets reads a fixed length of octets (RFC 7518 §6.2.1.2, RFC 8037 §2).
func octets(name, text string, size int) ([]byte, error) {
	b, err := decode(text)
	switch {
	case text == "":
		return nil, fmt.Errorf("%q is missing", name)
	case err != nil:
		return nil, fmt.Errorf("%q is not base64url: %w", name, err)
	case len(b) != size:
		return nil, fmt.Errorf("%q has %d octets, not %d", name, len(b), size)
	}
	return b, nil
}

// PublicJWK returns the public half as a JWK with kid, alg and use. A symmetric key has none: an error.
func (k *Key) PublicJWK() ([]byte, error) {
	if k.alg.Symmetric() || k.public == nil {
		return nil, fmt.Errorf("writing a public JWK of %v: it has no public half", k)
	}
	j := k.publicMembers()
	j.Kid, j.Alg, j.Use = k.id, string(k.alg), "sig"
	return json.Marshal(j)
}

// PrivateJWK returns the whole key as a JWK, which ParseJWK reads back. It is to be sealed, never logged.
// Without a private half it is an error.
func (k *Key) PrivateJWK() ([]byte, error) {
	if !k.CanSign() {
		return nil, fmt.Errorf("writing a private JWK of %v: its private half is not here", k)
	}
	j := k.publicMembers()
	j.Kid, j.Alg, j.Use = k.id, string(k.alg), "sig"
	switch p := k.private.(type) {
	case *rsa.PrivateKey:
		p.Precompute()
		for _, m := range []struct {
			to *string
			n  *big.Int
		}{{&j.D, p.D}, {&j.P, p.Primes[0]}, {&j.Q, p.Primes[1]}, {&j.DP, p.Precomputed.Dp}, {&j.DQ, p.Precomputed.Dq}, {&j.QI, p.Precomputed.Qinv}} {
			*m.to = b64.EncodeToString(m.n.Bytes())
		}
	case *ecdsa.PrivateKey:
		d, err := p.Bytes()
		if err != nil {
			return nil, fmt.Errorf("writing a private JWK of %v: %w", k, err)
		}
		j.D = b64.EncodeToString(d)
	case ed25519.PrivateKey:
		j.D = b64.EncodeToString(p.Seed())
	case []byte:
		j.Kty, j.K = "oct", b64.EncodeToString(p)
	}
	return json.Marshal(j)
}

// publicMembers returns the members that make the public half what it is.
func (k *Key) publicMembers() jwk {
	switch p := k.public.(type) {
	case *rsa.PublicKey:
		return jwk{Kty: "RSA", N: b64.EncodeToString(p.N.Bytes()), E: b64.EncodeToString(big.NewInt(int64(p.E)).Bytes())}
	case *ecdsa.PublicKey:
		point := p256Bytes(p)
		return jwk{Kty: "EC", Crv: "P-256", X: b64.EncodeToString(point[1:33]), Y: b64.EncodeToString(point[33:])}
	case ed25519.PublicKey:
		return jwk{Kty: "OKP", Crv: "Ed25519", X: b64.EncodeToString(p)}
	}
	return jwk{}
}

// thumbprint returns the RFC 7638 §3 thumbprint with SHA-256: of the required members, in the order of their names.
func (k *Key) thumbprint() string {
	j := k.publicMembers()
	var text string
	switch j.Kty {
	case "RSA":
		text = `{"e":"` + j.E + `","kty":"RSA","n":"` + j.N + `"}`
	case "EC":
		text = `{"crv":"P-256","kty":"EC","x":"` + j.X + `","y":"` + j.Y + `"}`
	default:
		text = `{"crv":"Ed25519","kty":"OKP","x":"` + j.X + `"}`
	}
	sum := sha256.Sum256([]byte(text))
	return b64.EncodeToString(sum[:])
}
