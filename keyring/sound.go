package keyring

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync"
)

// The bounds of an RSA key. Above 8192 bits a verification costs so much that one token is an attack; an exponent above
// 2^31-1 is not portable (crypto/rsa refuses it).
const (
	minRSABits  = 2048
	maxRSABits  = 8192
	minExponent = 65537
	maxExponent = 1<<31 - 1
)

var (
	errExponent = errors.New("its public exponent is even, under 65537 or over 2^31-1; make a new key: openssl genrsa 2048")
	errHalves   = errors.New("its private half does not belong to its public half, or is damaged; export the key again")
)

// soundRSA refuses public keys that are weak.
func soundRSA(k *rsa.PublicKey) error {
	switch bits := k.N.BitLen(); {
	case bits < minRSABits:
		return fmt.Errorf("an RSA key of %d bits is too weak, at least %d are needed (RFC 7518 section 3.3); make a new key: openssl genrsa 2048", bits, minRSABits)
	case bits > maxRSABits:
		return fmt.Errorf("an RSA key of %d bits is too slow to verify with, at most %d are taken; make a new key: openssl genrsa 4096", bits, maxRSABits)
	case k.N.Bit(0) == 0:
		return errors.New("its RSA modulus is even: the key is damaged; export it again")
	case k.E < minExponent || k.E > maxExponent || k.E%2 == 0:
		return errExponent
	case infineon(k.N):
		return errors.New("the RSA key comes from a generator whose keys can be factored (CVE-2017-15361, ROCA); make a new key: openssl genrsa 2048")
	}
	return nil
}

// rsaPrivate returns the key of a private half that has been read, after checking that it is whole.
func rsaPrivate(kid string, k *rsa.PrivateKey) (*Key, error) {
	if err := soundRSA(&k.PublicKey); err != nil {
		return nil, err
	}
	if len(k.Primes) != 2 {
		return nil, fmt.Errorf("an RSA key of %d primes is not supported; make a new key: openssl genrsa 2048", len(k.Primes))
	}
	k.Precompute()
	if err := k.Validate(); err != nil {
		return nil, errHalves
	}
	return newKey(RS256, kid, &k.PublicKey, k)
}

// p256Public reads an uncompressed point, which must lie on the curve and not be its zero.
func p256Public(point []byte) (*ecdsa.PublicKey, error) {
	k, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		return nil, errors.New("its public point is not on the curve P-256; export the key again")
	}
	return k, nil
}

// p256Bytes returns the uncompressed point, 65 octets, of a key on P-256 that p256Public or crypto/ecdsa has made.
func p256Bytes(k *ecdsa.PublicKey) []byte {
	b, err := k.Bytes()
	if err != nil {
		return make([]byte, 65)
	}
	return b
}

// infineon reports whether n has the fingerprint of the keys of CVE-2017-15361: their primes, and so n, are powers of
// 65537 modulo every small prime. A sound modulus has it by chance once in 2^27.
func infineon(n *big.Int) bool {
	for p, powers := range fingerprints() {
		r := new(big.Int).Mod(n, big.NewInt(int64(p))).Int64()
		if !powers[r] {
			return false
		}
	}
	return true
}

// fingerprints returns, for each prime from 3 to 167, the powers of 65537 modulo it.
var fingerprints = sync.OnceValue(func() map[int]map[int64]bool {
	all := map[int]map[int64]bool{}
	for p := 3; p <= 167; p += 2 {
		if !big.NewInt(int64(p)).ProbablyPrime(0) {
			continue
		}
		powers := map[int64]bool{}
		for x := int64(1); !powers[x]; x = x * 65537 % int64(p) {
			powers[x] = true
		}
		all[p] = powers
	}
	return all
})

// The field of Ed25519 and its curve's constant d (RFC 8032 §5.1), and the y of its points of order 8.
var (
	fieldPrime = new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	curveD     = fieldElement("52036cee2b6ffe738cc740797779e89800700a4d4141d8ab75eb4dca135978a3")
	orderEight = fieldElement("05fc536d880238b13933c6d305acdfd5f098eff289f4c345b027b2c28f95e826")
)

func fieldElement(hex string) *big.Int {
	n, _ := new(big.Int).SetString(hex, 16)
	return n
}

// soundEd25519 refuses public keys that are no point of the curve, and the few of small order, under which one
// signature fits many messages.
func soundEd25519(k ed25519.PublicKey) error {
	bad := errors.New("its public key is not a sound point of Ed25519; make a new key: openssl genpkey -algorithm ed25519")
	if len(k) != ed25519.PublicKeySize {
		return bad
	}
	le := slices.Clone(k)
	le[31] &= 0x7f // the sign of x
	slices.Reverse(le)
	y := new(big.Int).SetBytes(le)
	if y.Cmp(fieldPrime) >= 0 {
		return bad
	}
	one := big.NewInt(1)
	for _, small := range []*big.Int{new(big.Int), one, orderEight} { // and their negatives
		if y.Cmp(small) == 0 || new(big.Int).Sub(fieldPrime, y).Cmp(small) == 0 {
			return bad
		}
	}
	// x² = (y²-1) / (dy²+1) must have a root.
	yy := new(big.Int).Exp(y, big.NewInt(2), fieldPrime)
	num := new(big.Int).Sub(yy, one)
	den := new(big.Int).Add(new(big.Int).Mul(curveD, yy), one)
	num.Mul(num, den.ModInverse(den.Mod(den, fieldPrime), fieldPrime))
	if big.Jacobi(num.Mod(num, fieldPrime), fieldPrime) != 1 {
		return bad
	}
	return nil
}
