package keyring_test

import (
	"crypto"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// BenchmarkVerifyRS256 measures the first sight of a token (Prove and Check), in five rounds that take turns with the
// floor, crypto/rsa on the same key and the digest of the same message. x-floor is the median of the rounds' ratios.
func BenchmarkVerifyRS256(b *testing.B) {
	key := keyringtest.RSA(b)
	public := rsaPublic(b, key)
	token := keyringtest.Token(b, key, nil)
	signed, sig := cut(b, token)
	digest := sha256.Sum256([]byte(signed))
	ring := keyringtest.Ring(b, keyringtest.Issuer, keyringtest.Audience, key.Public())
	benchVerify(b, ring, token, func() error { return rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], sig) })
}

// BenchmarkVerifyHS256 is the same with HMAC; its floor computes the MAC of the same message.
func BenchmarkVerifyHS256(b *testing.B) {
	key := keyringtest.Secret(b)
	token := keyringtest.Token(b, key, nil)
	signed, sig := cut(b, token)
	message, secret := []byte(signed), key.Secret()
	ring := keyringtest.Ring(b, keyringtest.Issuer, keyringtest.Audience, key)
	benchVerify(b, ring, token, func() error {
		m := hmac.New(sha256.New, secret)
		m.Write(message)
		if !hmac.Equal(m.Sum(nil), sig) {
			return keyring.Deny(keyring.BadSignature, "", nil)
		}
		return nil
	})
}

// benchVerify runs both in five rounds. Within a round they take turns every few tokens, so that what else
// the machine does falls on both.
func benchVerify(b *testing.B, ring *keyring.Ring, token string, floor func() error) {
	want := keyringtest.Expect(keyringtest.Audience)
	const rounds, turn = 5, 16
	turns := b.N/(rounds*turn) + 1
	var ratios []float64
	var all time.Duration
	for range rounds {
		var bare, ours time.Duration
		for range turns {
			bare += timed(b, turn, floor)
			ours += timed(b, turn, func() error {
				_, err := ring.Verify(token, want)
				return err
			})
		}
		all += ours
		ratios = append(ratios, float64(ours)/float64(bare))
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[rounds/2], "x-floor")
	b.ReportMetric(float64(all)/float64(rounds*turns*turn), "ns/op") // without the floor's time
}

func timed(b *testing.B, n int, fn func() error) time.Duration {
	start := time.Now()
	for range n {
		if err := fn(); err != nil {
			b.Fatal(err)
		}
	}
	return time.Since(start)
}

// BenchmarkRecheck measures what every cache hit costs beyond the cache.
func BenchmarkRecheck(b *testing.B) {
	key := keyringtest.RSA(b)
	ring := keyringtest.Ring(b, keyringtest.Issuer, keyringtest.Audience, key.Public())
	want := keyringtest.Expect(keyringtest.Audience)
	tok, err := ring.Verify(keyringtest.Token(b, key, nil), want)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := ring.Recheck(tok, want); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkProveUnknownHeader measures a token whose header is written otherwise than ours, and so is read.
func BenchmarkProveUnknownHeader(b *testing.B) {
	key := keyringtest.Secret(b)
	ring := keyringtest.Ring(b, keyringtest.Issuer, keyringtest.Audience, key)
	token := forge(b, key, `{"typ":"at+jwt","kid":"secret-1","alg":"HS256"}`, payload(b, nil))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ring.Prove(token, keyring.AccessToken); err != nil {
			b.Fatal(err)
		}
	}
}

// cut splits a token into what is signed and the signature.
func cut(t testing.TB, token string) (string, []byte) {
	t.Helper()
	i := strings.LastIndexByte(token, '.')
	sig, err := base64.RawURLEncoding.DecodeString(token[i+1:])
	if err != nil {
		t.Fatal(err)
	}
	return token[:i], sig
}

// rsaPublic returns the key as crypto/rsa has it.
func rsaPublic(t testing.TB, key *keyring.Key) *rsa.PublicKey {
	t.Helper()
	text, err := key.PublicJWK()
	if err != nil {
		t.Fatal(err)
	}
	var j struct{ N, E string }
	if err := json.Unmarshal(text, &j); err != nil {
		t.Fatal(err)
	}
	n, _ := base64.RawURLEncoding.DecodeString(j.N)
	e, _ := base64.RawURLEncoding.DecodeString(j.E)
	return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}
}

// pkixPEM writes a public key as openssl does.
func pkixPEM(t testing.TB, public any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// pemPublic reads an RSA public key without judging it.
func pemPublic(t testing.TB, text string) *rsa.PublicKey {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatal("no PEM block")
	}
	k, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	pub, ok := k.(*rsa.PublicKey)
	if !ok {
		t.Fatalf("got %T, want an RSA key", k)
	}
	return pub
}
