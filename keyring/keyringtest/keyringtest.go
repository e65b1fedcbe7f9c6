package keyringtest

import (
	"crypto/rand"
	"testing"
	"time"

	"github.com/sidekey/sidekey/keyring"
)

// The issuer and the audience of the tokens that Token makes.
const (
	Issuer   = "https://issuer.test"
	Audience = "https://api.test"
)

// RSA returns a fixed RS256 key of 2048 bits.
func RSA(t testing.TB) *keyring.Key { return parse(t, rsaPEM) }

// EC returns a fixed ES256 key.
func EC(t testing.TB) *keyring.Key { return parse(t, ecPEM) }

// Ed returns a fixed EdDSA key.
func Ed(t testing.TB) *keyring.Key { return parse(t, edPEM) }

// Secret returns a fixed HS256 key with the kid "secret-1".
func Secret(t testing.TB) *keyring.Key {
	t.Helper()
	k, err := keyring.NewSecret("secret-1", []byte("a secret for tests, of 36 bytes long"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// All returns one fixed key of each algorithm.
func All(t testing.TB) []*keyring.Key {
	return []*keyring.Key{RSA(t), Secret(t), EC(t), Ed(t)}
}

func parse(t testing.TB, text string) *keyring.Key {
	t.Helper()
	k, err := keyring.ParsePEM([]byte(text), "")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Record returns the record of a key in a state, made an hour ago, whose tokens live up to a day. A symmetric key's
// audience is audience; a retiring key is retired now.
func Record(key *keyring.Key, state keyring.State, audience string) keyring.KeyRecord {
	rec := keyring.KeyRecord{
		KeyID: key.ID(), Alg: key.Alg(), Bits: key.Bits(), State: state, Key: key,
		MaxLifetime: 24 * time.Hour, Created: time.Now().Add(-time.Hour),
	}
	if key.Alg().Symmetric() {
		rec.Audience = audience
	}
	if state == keyring.Retiring || state == keyring.Retired {
		rec.RetiredAt = time.Now()
	}
	return rec
}

// Ring returns a ring in which the first key is active and the others are announced.
func Ring(t testing.TB, issuer, audience string, keys ...*keyring.Key) *keyring.Ring {
	t.Helper()
	var records []keyring.KeyRecord
	for i, k := range keys {
		state := keyring.Announced
		if i == 0 {
			state = keyring.Active
		}
		rec := Record(k, state, audience)
		rec.Seq = uint64(i + 1)
		records = append(records, rec)
	}
	return keyring.NewRing(issuer, audience, records...)
}

// Token returns an access token of key, as [Claims] has it after edit, which may be nil.
func Token(t testing.TB, key *keyring.Key, edit func(*keyring.Claims)) string {
	t.Helper()
	return TokenOf(t, key, keyring.AccessToken, edit)
}

// TokenOf is Token for any kind of token.
func TokenOf(t testing.TB, key *keyring.Key, typ keyring.TokenType, edit func(*keyring.Claims)) string {
	t.Helper()
	c := Claims(time.Now())
	if typ == keyring.RefreshToken {
		c.TokenType, c.Roles = "refresh", nil
	}
	if edit != nil {
		edit(&c)
	}
	token, err := key.Sign(typ, c)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// Claims returns the claims of an access token of alice, issued at now for an hour, with ids of its own.
func Claims(now time.Time) keyring.Claims {
	return keyring.Claims{
		Issuer: Issuer, Subject: "alice", Audience: []string{Audience},
		ExpiresAt: keyring.At(now.Add(time.Hour)), NotBefore: keyring.At(now), IssuedAt: keyring.At(now), ID: rand.Text(),
		SessionID: rand.Text(), SessionSeq: 1, HasSessionSeq: true, ClientID: "sidekey", Scope: "read write",
		AuthTime: keyring.At(now), TokenType: "access", UserID: "alice", Roles: []string{"staff"},
	}
}

// Expect returns what a verifier of access tokens demands now, with a leeway of 5 seconds.
func Expect(audiences ...string) keyring.Expect {
	return keyring.Expect{Type: keyring.AccessToken, Audiences: audiences, Leeway: 5 * time.Second, Now: time.Now()}
}
