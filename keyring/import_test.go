package keyring_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"

	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// members returns a key's JWK, private or public, to be changed.
func members(t testing.TB, key *keyring.Key) map[string]any {
	t.Helper()
	text, err := key.PrivateJWK()
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(text, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestJWKRoundTrip has each key come back whole, with its id, and its public half without the private one.
func TestJWKRoundTrip(t *testing.T) {
	for _, key := range keyringtest.All(t) {
		key := key.WithID("a kid of its own")
		text, err := key.PrivateJWK()
		if err != nil {
			t.Fatal(err)
		}
		back, err := keyring.ParseJWK(text)
		if err != nil {
			t.Errorf("ParseJWK(PrivateJWK of %v): %v", key, err)
			continue
		}
		again, err := back.PrivateJWK()
		if err != nil || !bytes.Equal(again, text) || back.ID() != key.ID() || back.Alg() != key.Alg() || back.Bits() != key.Bits() || !back.CanSign() {
			t.Errorf("ParseJWK(PrivateJWK of %v): got %v, %v, want the same key", key, back, err)
		}
		public, err := key.PublicJWK()
		if key.Alg().Symmetric() {
			if err == nil || key.Public() != nil {
				t.Errorf("PublicJWK of a secret: got no error")
			}
			continue
		}
		if err != nil {
			t.Errorf("PublicJWK(%v): %v", key, err)
			continue
		}
		half, err := keyring.ParseJWK(public)
		if err != nil || half.CanSign() || half.ID() != key.ID() {
			t.Errorf("ParseJWK(PublicJWK of %v): got %v, %v, want its public half", key, half, err)
			continue
		}
		if _, err := half.PrivateJWK(); err == nil {
			t.Errorf("PrivateJWK of a public half: got no error")
		}
		if _, err := half.Sign(keyring.AccessToken, keyring.Claims{}); err == nil || !strings.Contains(err.Error(), "its private half is not here") {
			t.Errorf("Sign with a public half: got %v", err)
		}
		if strings.Contains(string(public), `"d"`) {
			t.Errorf("PublicJWK(%v) has a private member", key)
		}
	}
}

// TestParseJWKRefuses has keys that are weak, damaged or not for signing refused, with an error that says so.
func TestParseJWKRefuses(t *testing.T) {
	rsaKey, ecKey, edKey, secret := keyringtest.RSA(t), keyringtest.EC(t), keyringtest.Ed(t), keyringtest.Secret(t)
	otherRSA, err := keyring.Generate(keyring.RS256, 2048)
	if err != nil {
		t.Fatal(err)
	}
	b64 := func(b ...byte) string { return base64.RawURLEncoding.EncodeToString(b) }
	modulus := func(bits int) string {
		n := new(big.Int).SetBit(big.NewInt(1), bits-1, 1)
		return b64(n.Bytes()...)
	}
	zero := b64(make([]byte, 32)...)
	for _, c := range []struct {
		name string
		key  *keyring.Key
		set  map[string]any // nil: left out
		want string
	}{
		{"RSA of 2047 bits", rsaKey, map[string]any{"n": modulus(2047), "d": nil}, "of 2047 bits is too weak"},
		{"RSA of 1024 bits", rsaKey, map[string]any{"n": modulus(1024), "d": nil}, "of 1024 bits is too weak"},
		{"RSA of 8193 bits", rsaKey, map[string]any{"n": modulus(8193), "d": nil}, "larger than 8192 bits"},
		{"even modulus", rsaKey, map[string]any{"n": b64(append([]byte{0x80}, make([]byte, 255)...)...), "d": nil}, "modulus is even"},
		{"exponent 1", rsaKey, map[string]any{"e": "AQ", "d": nil}, "public exponent"},
		{"exponent 3", rsaKey, map[string]any{"e": "Aw", "d": nil}, "public exponent"},
		{"exponent 65536", rsaKey, map[string]any{"e": "AQAA", "d": nil}, "public exponent"},
		{"exponent beyond 2^31", rsaKey, map[string]any{"e": b64(1, 0, 0, 0, 1), "d": nil}, "public exponent"},
		{"exponent beyond 2^64", rsaKey, map[string]any{"e": b64(1, 0, 0, 0, 0, 0, 0, 0, 1), "d": nil}, "public exponent"},
		{"exponent with a leading zero", rsaKey, map[string]any{"e": b64(0, 1, 0, 1)}, "begins with a zero octet"},
		{"no exponent", rsaKey, map[string]any{"e": nil}, `"e" is missing`},
		{"no modulus", rsaKey, map[string]any{"n": nil}, `"n" is missing`},
		{"padded modulus", rsaKey, map[string]any{"n": modulus(2048) + "="}, "not base64url"},
		{"modulus with a line break", rsaKey, map[string]any{"n": modulus(2048)[:100] + "\n" + modulus(2048)[100:]}, "not base64url"},
		{"another key's d", rsaKey, map[string]any{"d": members(t, otherRSA)["d"]}, "does not belong"},
		{"another key's primes", rsaKey, map[string]any{"p": members(t, otherRSA)["p"], "q": members(t, otherRSA)["q"]}, "does not belong"},
		{"prime 1", rsaKey, map[string]any{"p": "AQ", "q": members(t, rsaKey)["n"]}, "does not belong"},
		{"no primes", rsaKey, map[string]any{"p": nil}, "without its primes"},
		{"three primes", rsaKey, map[string]any{"oth": []any{}}, "more than two primes"},
		{"RSA for ES256", rsaKey, map[string]any{"alg": "ES256"}, `alg is "ES256"`},
		{"RSA for PS256", rsaKey, map[string]any{"alg": "PS256"}, `alg is "PS256"`},
		{"RSA for HS256", rsaKey, map[string]any{"alg": "HS256"}, `alg is "HS256"`},
		{"for encryption", rsaKey, map[string]any{"use": "enc"}, `use is "enc"`},
		{"for wrapping", rsaKey, map[string]any{"key_ops": []string{"wrapKey"}}, "key_ops"},
		{"key_ops no array", rsaKey, map[string]any{"key_ops": "sign"}, "key_ops"},
		{"kid a number", rsaKey, map[string]any{"kid": 1}, `"kid"`},
		{"kid too long", rsaKey, map[string]any{"kid": strings.Repeat("k", 129)}, "kid"},
		{"kid with NUL", rsaKey, map[string]any{"kid": "a\x00"}, "kid"},
		{"kty missing", rsaKey, map[string]any{"kty": nil}, `"kty" is missing`},
		{"kty unknown", rsaKey, map[string]any{"kty": "AKP"}, "unknown kty"},
		{"kty in lower case", rsaKey, map[string]any{"kty": "rsa"}, "unknown kty"},
		{"RSA as EC", rsaKey, map[string]any{"kty": "EC", "alg": nil}, "curve"},
		{"P-384", ecKey, map[string]any{"crv": "P-384"}, `curve is "P-384"`},
		{"secp256k1", ecKey, map[string]any{"crv": "secp256k1"}, "secp256k1"},
		{"point off the curve", ecKey, map[string]any{"y": members(t, ecKey)["x"]}, "not on the curve"},
		{"point zero", ecKey, map[string]any{"x": zero, "y": zero, "d": nil}, "not on the curve"},
		{"x too short", ecKey, map[string]any{"x": b64(make([]byte, 31)...)}, "31 octets"},
		{"x too long", ecKey, map[string]any{"x": b64(make([]byte, 33)...)}, "33 octets"},
		{"no y", ecKey, map[string]any{"y": nil}, `"y" is missing`},
		{"d zero", ecKey, map[string]any{"d": zero}, "does not belong"},
		{"d another's", ecKey, map[string]any{"d": b64(append(make([]byte, 31), 1)...)}, "does not belong"},
		{"X25519", edKey, map[string]any{"crv": "X25519"}, "X25519"},
		{"Ed448", edKey, map[string]any{"crv": "Ed448"}, "Ed448"},
		{"Ed25519 x too short", edKey, map[string]any{"x": b64(make([]byte, 31)...)}, "31 octets"},
		{"Ed25519 small order 4", edKey, map[string]any{"x": zero, "d": nil}, "not a sound point"},
		{"Ed25519 identity", edKey, map[string]any{"x": b64(append([]byte{1}, make([]byte, 31)...)...), "d": nil}, "not a sound point"},
		{"Ed25519 small order 8", edKey, map[string]any{"x": b64(unhex(t, "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")...), "d": nil}, "not a sound point"},
		{"Ed25519 small order 8, negative", edKey, map[string]any{"x": b64(unhex(t, "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa")...), "d": nil}, "not a sound point"},
		{"Ed25519 y not reduced", edKey, map[string]any{"x": b64(bytes.Repeat([]byte{0xff}, 32)...), "d": nil}, "not a sound point"},
		{"Ed25519 no point", edKey, map[string]any{"x": b64(append([]byte{2}, make([]byte, 31)...)...), "d": nil}, "not a sound point"},
		{"Ed25519 d another's", edKey, map[string]any{"d": zero}, "does not belong"},
		{"secret of 31 bytes", secret, map[string]any{"k": b64(make([]byte, 31)...)}, "31 bytes are too short"},
		{"secret empty", secret, map[string]any{"k": ""}, "0 bytes are too short"},
		{"no secret", secret, map[string]any{"k": nil}, "0 bytes are too short"},
		{"secret padded", secret, map[string]any{"k": b64(make([]byte, 32)...) + "="}, "not base64url"},
		{"secret for HS512", secret, map[string]any{"alg": "HS512"}, `alg is "HS512"`},
		{"secret for AES", secret, map[string]any{"alg": "A256GCM"}, `alg is "A256GCM"`},
	} {
		m := members(t, c.key)
		for name, v := range c.set {
			if v == nil {
				delete(m, name)
				continue
			}
			m[name] = v
		}
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		k, err := keyring.ParseJWK(text)
		if err == nil || !strings.HasPrefix(err.Error(), "reading ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("ParseJWK(%s): got %v, %v, want an error with %q", c.name, k, err, c.want)
		}
	}
	for _, text := range []string{
		``, `null`, `[]`, `{}`, `{"kty":"oct","k":"AA","k":"AA"}`, `{"kty":"oct","K":"AA"}`, `{"kty":"oct","k":1}`,
		`{"kty":"oct","\u006b":"AA","k":"AA"}`, `{"kty":"oct","k":"AA"} x`, strings.Repeat(`{"a":`, 100),
	} {
		if k, err := keyring.ParseJWK([]byte(text)); err == nil {
			t.Errorf("ParseJWK(%s): got %v, want an error", text, k)
		}
	}
}

// TestParsePEM has every form that a key comes in, and each told by its own kind.
func TestParsePEM(t *testing.T) {
	rsaPriv, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecPriv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edPub, edPriv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(ecPriv)
	if err != nil {
		t.Fatal(err)
	}
	file := func(kind string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	pkcs8 := func(k any) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return file("PRIVATE KEY", der)
	}
	for _, c := range []struct {
		name string
		text []byte
		alg  keyring.Alg
		sign bool
	}{
		{"PKCS #1", file("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaPriv)), keyring.RS256, true},
		{"PKCS #8 RSA", pkcs8(rsaPriv), keyring.RS256, true},
		{"PKCS #8 P-256", pkcs8(ecPriv), keyring.ES256, true},
		{"PKCS #8 Ed25519", pkcs8(edPriv), keyring.EdDSA, true},
		{"SEC 1", file("EC PRIVATE KEY", sec1), keyring.ES256, true},
		{"SEC 1 behind its parameters", append(file("EC PARAMETERS", []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}), file("EC PRIVATE KEY", sec1)...), keyring.ES256, true},
		{"PKCS #1 public", file("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&rsaPriv.PublicKey)), keyring.RS256, false},
		{"PKIX RSA", pkixPEM(t, &rsaPriv.PublicKey), keyring.RS256, false},
		{"PKIX P-256", pkixPEM(t, &ecPriv.PublicKey), keyring.ES256, false},
		{"PKIX Ed25519", pkixPEM(t, edPub), keyring.EdDSA, false},
	} {
		for _, alg := range []keyring.Alg{"", c.alg} {
			k, err := keyring.ParsePEM(c.text, alg)
			if err != nil || k.Alg() != c.alg || k.CanSign() != c.sign || len(k.ID()) != 43 {
				t.Errorf("ParsePEM(%s, %q): got %v, %v, want a key for %s", c.name, alg, k, err, c.alg)
			}
		}
		for _, alg := range []keyring.Alg{"HS256", "RS512", "none"} {
			if _, err := keyring.ParsePEM(c.text, alg); err == nil {
				t.Errorf("ParsePEM(%s, %q): got no error", c.name, alg)
			}
		}
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := pkcs8(edPriv)
	weak := &rsa.PublicKey{N: rsaPriv.N, E: 3}
	short := &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 1023, 1), E: 65537}
	for name, c := range map[string]struct {
		text []byte
		want string
	}{
		"nothing":           {nil, "no PEM block"},
		"no PEM":            {[]byte("ssh-ed25519 AAAA"), "no PEM block"},
		"two keys":          {append(bytes.Clone(good), good...), "something follows"},
		"text behind":       {append(bytes.Clone(good), "x"...), "something follows"},
		"damaged":           {file("PRIVATE KEY", []byte{1, 2, 3}), "damaged"},
		"encrypted":         {file("ENCRYPTED PRIVATE KEY", []byte{1}), "decrypt it first"},
		"encrypted PKCS #1": {pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "x"}}), "decrypt it first"},
		"certificate":       {file("CERTIFICATE", []byte{1}), "certificate"},
		"another block":     {file("OPENSSH PRIVATE KEY", []byte{1}), "OPENSSH PRIVATE KEY"},
		"only parameters":   {file("EC PARAMETERS", []byte{1}), "no PEM block"},
		"P-384":             {pkcs8(p384), "not P-256"},
		"P-384 public":      {pkixPEM(t, &p384.PublicKey), "not P-256"},
		"exponent 3":        {pkixPEM(t, weak), "exponent"},
		"1024 bits":         {pkixPEM(t, short), "too weak"},
		"Ed25519 zero":      {pkixPEM(t, ed25519.PublicKey(make([]byte, 32))), "not a sound point"},
	} {
		if k, err := keyring.ParsePEM(c.text, ""); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("ParsePEM(%s): got %v, %v, want an error with %q", name, k, err, c.want)
		}
	}
}

// TestGenerate has each algorithm's new key, and sizes that are not made refused.
func TestGenerate(t *testing.T) {
	for _, c := range []struct {
		alg        keyring.Alg
		bits, want int
	}{{keyring.RS256, 0, 2048}, {keyring.RS256, 3072, 3072}, {keyring.HS256, 0, 256}, {keyring.ES256, 9, 256}, {keyring.EdDSA, 0, 256}} {
		k, err := keyring.Generate(c.alg, c.bits)
		if err != nil || k.Alg() != c.alg || k.Bits() != c.want || !k.CanSign() || !keyring.ValidKeyID(k.ID()) {
			t.Errorf("Generate(%s, %d): got %v of %d bits, %v", c.alg, c.bits, k, k.Bits(), err)
		}
	}
	for _, bits := range []int{-1, 1, 1024, 2047, 2049, 8192} {
		if _, err := keyring.Generate(keyring.RS256, bits); err == nil {
			t.Errorf("Generate(RS256, %d): got no error", bits)
		}
	}
	for _, alg := range []keyring.Alg{"", "none", "RS512", "rs256"} {
		if _, err := keyring.Generate(alg, 0); err == nil {
			t.Errorf("Generate(%q): got no error", alg)
		}
	}
	a, _ := keyring.Generate(keyring.HS256, 0)
	b, _ := keyring.Generate(keyring.HS256, 0)
	if a.ID() == b.ID() || bytes.Equal(a.Secret(), b.Secret()) {
		t.Errorf("Generate(HS256) twice: got the same id or secret")
	}
}

// TestJWKS has the set hold the public halves of the keys that verify, and never a symmetric key.
func TestJWKS(t *testing.T) {
	rsaKey, ecKey, edKey, secret := keyringtest.RSA(t), keyringtest.EC(t), keyringtest.Ed(t), keyringtest.Secret(t)
	for _, state := range []keyring.State{keyring.Announced, keyring.Active, keyring.Retiring, keyring.Retired, keyring.Revoked} {
		ring := keyring.NewRing("i", "a", keyringtest.Record(rsaKey, state, ""), keyringtest.Record(ecKey, state, ""),
			keyringtest.Record(edKey, state, ""), keyringtest.Record(secret, state, "a"))
		keys, err := keyring.ParseJWKS(ring.JWKS())
		if err != nil {
			t.Errorf("ParseJWKS(JWKS of %s keys): %v", state, err)
			continue
		}
		want := 3
		if state == keyring.Retired || state == keyring.Revoked {
			want = 0
		}
		if len(keys) != want {
			t.Errorf("JWKS of %s keys: got %d keys, want %d", state, len(keys), want)
		}
		for _, private := range []string{`"d"`, `"p"`, `"k"`, "oct", "secret-1"} {
			if strings.Contains(string(ring.JWKS()), private) {
				t.Errorf("JWKS of %s keys has %s: %s", state, private, ring.JWKS())
			}
		}
	}
	if got := string(new(keyring.Ring).JWKS()); got != `{"keys":[]}` {
		t.Errorf("JWKS of the empty ring: got %s", got)
	}
}

// TestParseJWKS passes over what is not for us and refuses what is unsound.
func TestParseJWKS(t *testing.T) {
	ed, err := keyringtest.Ed(t).PublicJWK()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		text string
		want int // keys; -1: an error
	}{
		"empty":             {`{"keys":[]}`, 0},
		"one":               {`{"keys":[` + string(ed) + `],"x":1}`, 1},
		"unknown kinds":     {`{"keys":[{"kty":"AKP"},{"kty":"EC","crv":"P-384"},{"kty":"OKP","crv":"X25519"},{"kty":"RSA","use":"enc"},{"kty":"RSA","alg":"PS256"},` + string(ed) + `]}`, 1},
		"twice":             {`{"keys":[` + string(ed) + `,` + string(ed) + `]}`, -1},
		"symmetric":         {`{"keys":[{"kty":"oct","k":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}]}`, -1},
		"weak":              {`{"keys":[{"kty":"RSA","n":"AQ","e":"AQAB"}]}`, -1},
		"no keys":           {`{}`, -1},
		"keys an object":    {`{"keys":{}}`, -1},
		"a key no object":   {`{"keys":[1]}`, -1},
		"keys twice":        {`{"keys":[],"keys":[]}`, -1},
		"Keys":              {`{"Keys":[]}`, -1},
		"no JSON":           {`keys`, -1},
		"a key with no kty": {`{"keys":[{}]}`, 0},
	} {
		keys, err := keyring.ParseJWKS([]byte(c.text))
		if (err != nil) != (c.want < 0) || err == nil && len(keys) != c.want {
			t.Errorf("ParseJWKS(%s): got %v, %v, want %d keys", name, keys, err, c.want)
		}
	}
	private, err := keyringtest.Ed(t).PrivateJWK()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := keyring.ParseJWKS([]byte(`{"keys":[` + string(private) + `]}`))
	if err != nil || len(keys) != 1 || keys[0].CanSign() {
		t.Errorf("ParseJWKS(a private key): got %v, %v, want its public half only", keys, err)
	}
}
