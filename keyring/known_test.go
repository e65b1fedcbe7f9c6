package keyring_test

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sidekey/sidekey/keyring"
)

// TestKnownAnswers has the examples of RFC 7515 appendix A.1 to A.4 and RFC 8037 A.4, from testdata/known.json.
func TestKnownAnswers(t *testing.T) {
	text, err := os.ReadFile("testdata/known.json")
	if err != nil {
		t.Fatal(err)
	}
	var known map[string]struct {
		Alg string
		JWK json.RawMessage
		JWS string
	}
	if err := json.Unmarshal(text, &known); err != nil {
		t.Fatal(err)
	}
	if len(known) != 5 {
		t.Fatalf("there are %d examples, want 5", len(known))
	}
	for name, c := range known {
		key, err := keyring.ParseJWK(c.JWK)
		if name == "rfc7515_a4" { // ES512, which we do not have
			if err == nil || !strings.Contains(err.Error(), `its curve is "P-521"`) {
				t.Errorf("ParseJWK(%s): got %v, want its curve refused", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("ParseJWK(%s): %v", name, err)
			continue
		}
		if _, err := keyring.OpenJWS(key, c.JWS); err != nil || string(key.Alg()) != c.Alg {
			t.Errorf("OpenJWS(%s) with %v: got %v, want no error", name, key, err)
		}
		// One bit of the signature less, or more.
		i := strings.LastIndexByte(c.JWS, '.')
		sig, _ := base64.RawURLEncoding.DecodeString(c.JWS[i+1:])
		sig[len(sig)/2] ^= 1
		if _, err := keyring.OpenJWS(key, c.JWS[:i+1]+base64.RawURLEncoding.EncodeToString(sig)); keyring.ReasonOf(err) != keyring.BadSignature {
			t.Errorf("OpenJWS(%s, one bit changed): got %v, want %s", name, err, keyring.BadSignature)
		}
	}
}

// TestThumbprint has the examples of RFC 7638 §3.1 and RFC 8037 A.3.
func TestThumbprint(t *testing.T) {
	for want, jwk := range map[string]string{
		"NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs": `{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","alg":"RS256"}`,
		"kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k": `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`,
	} {
		key, err := keyring.ParseJWK([]byte(jwk))
		if err != nil {
			t.Errorf("ParseJWK: %v", err)
			continue
		}
		if key.ID() != want {
			t.Errorf("ID of the RFC's %s: got %s, want %s", key.Alg(), key.ID(), want)
		}
	}
}

// vectors reads a file of Wycheproof's, which lie beside the project and not in it.
func vectors[T any](t *testing.T, name string) (groups []T) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "shared", "vectors", name))
	if errors.Is(err, fs.ErrNotExist) {
		t.Skipf("skipping Wycheproof's %s: no folder shared/vectors beside the project", name)
	}
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		NumberOfTests int
		TestGroups    []T
	}
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.TestGroups) == 0 {
		t.Fatalf("%s has no tests", name)
	}
	return file.TestGroups
}

type jwsCase struct {
	ID              int `json:"tcId"`
	Comment, Result string
	JWS             string
	Flags           []string
}

type jwsGroup struct {
	Comment         string
	Private, Public json.RawMessage
	Tests           []jwsCase
}

// lacking reports whether a vector needs an algorithm that we do not have, and so must be refused whatever its result:
// RS384, RS512, the PSS family, ES512, HS384 and HS512.
func lacking(jws string) bool {
	head, _, _ := strings.Cut(jws, ".")
	text, _ := base64.RawURLEncoding.DecodeString(head)
	var h struct{ Alg string }
	if json.Unmarshal(text, &h) != nil {
		return false
	}
	_, err := keyring.ParseAlg(h.Alg)
	return err != nil
}

// contradicting are the vectors of json_web_signature that cannot be decided as their result says, and why.
var contradicting = map[int]string{
	367: "invalid, but byte for byte the same as case 357, which is valid: the padding it means to have is lost in the file",
	370: "invalid, but byte for byte the same as case 357, as 367",
	372: "valid, but has a '?' in its header, which is not base64url (RFC 7515 §2): refused",
	373: "valid, but has a '?' in its payload: refused",
}

// TestWycheproofJWS decides each case as its result says, at the layer below claims: no payload there is a claims set.
func TestWycheproofJWS(t *testing.T) {
	ran, texts := map[string]int{}, map[int]string{}
	for _, g := range vectors[jwsGroup](t, "json_web_signature_test.json") {
		text := g.Public
		if text == nil {
			text = g.Private
		}
		key, keyErr := keyring.ParseJWK(text)
		for _, c := range g.Tests {
			texts[c.ID] = c.JWS
			accept := c.Result == "valid"
			if c.Result != "valid" && c.Result != "invalid" {
				t.Errorf("case %d: result %q is not provided for", c.ID, c.Result)
			}
			if lacking(c.JWS) {
				accept = false
				ran["an algorithm we lack"]++
			}
			if contradicting[c.ID] != "" {
				accept = c.Result == "invalid" // the other way round, for the reason that stands there
				ran["contradicting"]++
			}
			err := keyErr
			if err == nil {
				_, err = keyring.OpenJWS(key, c.JWS)
			}
			if (err == nil) != accept {
				t.Errorf("case %d (%s, %s): got %v, want accepted %t", c.ID, g.Comment, c.Comment, err, accept)
			}
			ran["all"]++
		}
	}
	if ran["all"] != 401 || ran["contradicting"] != len(contradicting) {
		t.Errorf("%v cases ran, want 401 and %d contradicting ones", ran, len(contradicting))
	}
	if texts[367] != texts[357] || texts[370] != texts[357] {
		t.Errorf("cases 367 and 370 differ from 357: decide them as their result says")
	}
	t.Logf("cases: %v", ran)
}

// TestWycheproofJWK decides each case as its result says. Its keys come in sets; ParseJWKS takes no symmetric key, so
// those of a set that has nothing else are imported one by one, as an operator would. A set that mixes both, or
// names two keys alike, is refused whole.
func TestWycheproofJWK(t *testing.T) {
	ran := 0
	for _, g := range vectors[jwsGroup](t, "json_web_key_test.json") {
		keys, setErr := importSet(t, g)
		for _, c := range g.Tests {
			ran++
			accept := c.Result == "valid" && !lacking(c.JWS)
			err := setErr
			if err == nil {
				err = keyring.Deny(keyring.UnknownKey, "", nil)
			}
			for _, k := range keys {
				if _, e := keyring.OpenJWS(k, c.JWS); e == nil {
					err = nil
				}
			}
			if (err == nil) != accept {
				t.Errorf("case %d (%s, %s): got %v, want accepted %t", c.ID, g.Comment, c.Comment, err, accept)
			}
		}
	}
	if ran != 26 {
		t.Errorf("%d cases ran, want 26", ran)
	}
}

func importSet(t *testing.T, g jwsGroup) ([]*keyring.Key, error) {
	t.Helper()
	text := g.Public
	if text == nil {
		text = g.Private
	}
	keys, err := keyring.ParseJWKS(text)
	if err == nil {
		return keys, nil
	}
	var set struct{ Keys []json.RawMessage }
	if json.Unmarshal(text, &set) != nil {
		return nil, err
	}
	ids := map[string]bool{}
	for _, text := range set.Keys {
		k, keyErr := keyring.ParseJWK(text)
		if keyErr != nil {
			return nil, keyErr
		}
		if !k.Alg().Symmetric() || ids[k.ID()] {
			return nil, err
		}
		ids[k.ID()] = true
		keys = append(keys, k)
	}
	return keys, nil
}

type rsaGroup struct {
	PublicKeyPEM string `json:"publicKeyPem"`
	KeyJWK       json.RawMessage
	Tests        []struct {
		ID                            int `json:"tcId"`
		Comment, Message, Sig, Result string
		Msg                           string
		Flags                         []string
	}
}

// TestWycheproofRSA decides each signature as its result says. "acceptable" is the DigestInfo without its NULL
// (MissingNull), which RFC 8017 §9.2 lets a verifier take or leave: crypto/rsa compares the whole encoding, so it is refused.
// Keys with the exponent 3 are refused at import; their signatures are decided under a key made past it.
func TestWycheproofRSA(t *testing.T) {
	for name, want := range map[string]int{"2048": 259, "3072": 259, "4096": 258} {
		ran, refused := 0, 0
		for _, g := range vectors[rsaGroup](t, "rsa_signature_"+name+"_sha256_test.json") {
			key, err := keyring.ParsePEM([]byte(g.PublicKeyPEM), keyring.RS256)
			if err != nil {
				refused++
				pub := pemPublic(t, g.PublicKeyPEM)
				if pub.E >= 65537 {
					t.Errorf("ParsePEM of a key with e=%d: %v", pub.E, err)
				}
				if key, err = keyring.UnsoundRSA(pub); err != nil {
					t.Fatal(err)
				}
			}
			for _, c := range g.Tests {
				ran++
				msg, sig := unhex(t, c.Msg), unhex(t, c.Sig)
				err := keyring.VerifyBytes(key, string(msg), sig)
				if (err == nil) != (c.Result == "valid") {
					t.Errorf("%s bits, case %d (%s %v): got %v, want %s", name, c.ID, c.Comment, c.Flags, err, c.Result)
				}
			}
		}
		if ran != want {
			t.Errorf("%s bits: %d cases ran, want %d", name, ran, want)
		}
		t.Logf("%s bits: %d cases, %d keys refused at import", name, ran, refused)
	}
}

// TestWycheproofHMAC decides each MAC as its result says, but for the groups with tags of 128 bits: HS256 has
// the whole hash (RFC 7518 §3.2), so a truncated tag is refused though it is a valid one of HMAC-SHA256-128. Keys under
// 32 bytes are refused at import; their MACs are decided under a key made past it.
func TestWycheproofHMAC(t *testing.T) {
	type group struct {
		KeySize, TagSize int
		Tests            []struct {
			ID                             int `json:"tcId"`
			Comment, Key, Msg, Tag, Result string
		}
	}
	ran, short := 0, 0
	for _, g := range vectors[group](t, "hmac_sha256_test.json") {
		for _, c := range g.Tests {
			ran++
			secret := unhex(t, c.Key)
			key, err := keyring.NewSecret("k", secret)
			if (err != nil) != (g.KeySize < 256) {
				t.Errorf("NewSecret(%d bits): got %v", g.KeySize, err)
			}
			if err != nil {
				short++
				if key, err = keyring.UnsoundSecret(secret); err != nil {
					t.Fatal(err)
				}
			}
			accept := c.Result == "valid" && g.TagSize == 256
			if err := keyring.VerifyBytes(key, string(unhex(t, c.Msg)), unhex(t, c.Tag)); (err == nil) != accept {
				t.Errorf("case %d (%s): got %v, want accepted %t", c.ID, c.Comment, err, accept)
			}
		}
	}
	if ran != 174 {
		t.Errorf("%d cases ran, want 174", ran)
	}
	t.Logf("%d cases, %d with a secret too short", ran, short)
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
