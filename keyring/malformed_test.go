package keyring_test

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// goodHead is the header of an access token of keyringtest.Secret.
const goodHead = `{"alg":"HS256","kid":"secret-1","typ":"at+jwt"}`

// claimsWith returns sound claims in which the members of text replace or join the usual ones; "name=" leaves one out.
func claimsWith(without, more string) string {
	all := []struct{ name, text string }{
		{"iss", `"https://issuer.test"`}, {"sub", `"alice"`}, {"aud", `"https://api.test"`},
		{"exp", `4102444800`}, {"iat", `1767225600`}, {"jti", `"9f2c"`},
	}
	var members []string
	for _, m := range all {
		if m.name != without {
			members = append(members, fmt.Sprintf("%q:%s", m.name, m.text))
		}
	}
	if more != "" {
		members = append(members, more)
	}
	return "{" + strings.Join(members, ",") + "}"
}

// badTokens are tokens signed rightly by a key of the ring, or not signed at all, each with its refusal.
func badTokens(t testing.TB, key *keyring.Key) []struct {
	name, token string
	want        keyring.Reason
} {
	good := claimsWith("", "")
	sign := func(header, payload string) string { return forge(t, key, header, payload) }
	swap := func(without, more string) string { return sign(goodHead, claimsWith(without, more)) }
	valid := sign(goodHead, good)
	parts := strings.Split(valid, ".")
	lastBits := parts[0] + "." + parts[1] + "." + parts[2][:len(parts[2])-1]
	return []struct {
		name, token string
		want        keyring.Reason
	}{
		// The compact form.
		{"empty", "", keyring.Missing},
		{"a space", " ", keyring.Malformed},
		{"one part", parts[0], keyring.Malformed},
		{"two parts", parts[0] + "." + parts[1], keyring.Malformed},
		{"four parts", valid + ".", keyring.Malformed},
		{"five parts", valid + ".a.b", keyring.Malformed},
		{"only dots", "..", keyring.Malformed},
		{"no header", "." + parts[1] + "." + parts[2], keyring.Malformed},
		{"no payload", parts[0] + ".." + parts[2], keyring.Malformed},
		{"no signature", parts[0] + "." + parts[1] + ".", keyring.BadSignature},
		{"too long", valid + strings.Repeat("A", keyring.MaxTokenLength), keyring.Malformed},
		{"Bearer in front", "Bearer " + valid, keyring.Malformed},
		{"space behind", valid + " ", keyring.Malformed},
		{"line break behind", valid + "\n", keyring.Malformed},
		{"line break in the header", parts[0][:4] + "\n" + parts[0][4:] + "." + parts[1] + "." + parts[2], keyring.Malformed},
		{"carriage return in the payload", parts[0] + "." + parts[1][:4] + "\r" + parts[1][4:] + "." + parts[2], keyring.Malformed},
		{"line break in the signature", parts[0] + "." + parts[1] + "." + parts[2][:4] + "\r\n" + parts[2][4:], keyring.Malformed},
		{"padding", valid + "=", keyring.Malformed},
		{"plain base64", parts[0] + "." + parts[1] + "." + strings.Repeat("+/", 21) + "A", keyring.Malformed},
		{"trailing bits of the signature", lastBits + next(valid[len(valid)-1]), keyring.Malformed},
		{"signature cut", parts[0] + "." + parts[1] + "." + parts[2][:40], keyring.BadSignature},
		{"signature changed", parts[0] + "." + parts[1] + "." + strings.Repeat("A", 43), keyring.BadSignature},
		{"payload changed", parts[0] + "." + enc(claimsWith("sub", `"sub":"root"`)) + "." + parts[2], keyring.BadSignature},
		{"JSON serialization", `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`, keyring.Malformed},
		{"five parts as JWE", parts[0] + ".." + parts[1] + "." + parts[2] + "." + parts[2], keyring.Malformed},

		// The header.
		{"header no JSON", sign(`alg`, good), keyring.Malformed},
		{"header an array", sign(`["HS256"]`, good), keyring.Malformed},
		{"header a string", sign(`"HS256"`, good), keyring.Malformed},
		{"header two objects", sign(goodHead+goodHead, good), keyring.Malformed},
		{"header cut", sign(goodHead[:len(goodHead)-1], good), keyring.Malformed},
		{"header with a byte order mark", sign("\uFEFF"+goodHead, good), keyring.Malformed},
		{"header not UTF-8", sign(`{"alg":"HS256","kid":"secret-1","typ":"at+jwt","x":"`+"\xff"+`"}`, good), keyring.Malformed},
		{"header empty object", sign(`{}`, good), keyring.UnsupportedAlg},
		{"none", enc(`{"alg":"none","kid":"secret-1","typ":"at+jwt"}`) + "." + enc(good) + ".", keyring.UnsupportedAlg},
		{"None", sign(`{"alg":"None","kid":"secret-1","typ":"at+jwt"}`, good), keyring.UnsupportedAlg},
		{"alg in lower case", sign(`{"alg":"hs256","kid":"secret-1","typ":"at+jwt"}`, good), keyring.UnsupportedAlg},
		{"alg empty", sign(`{"alg":"","kid":"secret-1","typ":"at+jwt"}`, good), keyring.UnsupportedAlg},
		{"alg a number", sign(`{"alg":256,"kid":"secret-1","typ":"at+jwt"}`, good), keyring.Malformed},
		{"alg null", sign(`{"alg":null,"kid":"secret-1","typ":"at+jwt"}`, good), keyring.Malformed},
		{"alg another that we have", sign(`{"alg":"RS256","kid":"secret-1","typ":"at+jwt"}`, good), keyring.UnsupportedAlg},
		{"alg of the same family", sign(`{"alg":"HS512","kid":"secret-1","typ":"at+jwt"}`, good), keyring.UnsupportedAlg},
		{"alg twice", sign(`{"alg":"HS256","alg":"HS256","kid":"secret-1","typ":"at+jwt"}`, good), keyring.Malformed},
		{"alg twice, once escaped", sign(`{"alg":"HS256","\u0061lg":"none","kid":"secret-1","typ":"at+jwt"}`, good), keyring.Malformed},
		{"ALG", sign(`{"ALG":"HS256","kid":"secret-1","typ":"at+jwt"}`, good), keyring.Malformed},
		{"ALG beside alg", sign(`{"alg":"HS256","ALG":"none","kid":"secret-1","typ":"at+jwt"}`, good), keyring.Malformed},
		{"ALG escaped", sign(`{"alg":"HS256","\u0041LG":"none","kid":"secret-1","typ":"at+jwt"}`, good), keyring.Malformed},
		{"kid with the Kelvin sign", sign(`{"alg":"HS256","kid":"secret-1","\u212aid":"other","typ":"at+jwt"}`, good), keyring.Malformed},
		{"crit", sign(`{"alg":"HS256","crit":["exp"],"exp":1,"kid":"secret-1","typ":"at+jwt"}`, good), keyring.Malformed},
		{"crit empty", sign(`{"alg":"HS256","crit":[],"kid":"secret-1","typ":"at+jwt"}`, good), keyring.Malformed},
		{"crit escaped", sign(`{"alg":"HS256","cr\u0069t":["b64"],"kid":"secret-1","typ":"at+jwt"}`, good), keyring.Malformed},
		{"b64", sign(`{"alg":"HS256","b64":false,"kid":"secret-1","typ":"at+jwt"}`, good), keyring.Malformed},
		{"b64 true", sign(`{"alg":"HS256","b64":true,"kid":"secret-1","typ":"at+jwt"}`, good), keyring.Malformed},
		{"jwk", sign(`{"alg":"HS256","jwk":{"kty":"oct","k":"AA"},"kid":"secret-1","typ":"at+jwt"}`, good), keyring.Malformed},
		{"jku", sign(`{"alg":"HS256","jku":"https://evil.test/","kid":"secret-1","typ":"at+jwt"}`, good), keyring.Malformed},
		{"x5u", sign(`{"alg":"HS256","x5u":"https://evil.test/","kid":"secret-1","typ":"at+jwt"}`, good), keyring.Malformed},
		{"x5c", sign(`{"alg":"HS256","x5c":["AA"],"kid":"secret-1","typ":"at+jwt"}`, good), keyring.Malformed},
		{"no kid", sign(`{"alg":"HS256","typ":"at+jwt"}`, good), keyring.Malformed},
		{"kid empty", sign(`{"alg":"HS256","kid":"","typ":"at+jwt"}`, good), keyring.Malformed},
		{"kid a number", sign(`{"alg":"HS256","kid":1,"typ":"at+jwt"}`, good), keyring.Malformed},
		{"kid an array", sign(`{"alg":"HS256","kid":["secret-1"],"typ":"at+jwt"}`, good), keyring.Malformed},
		{"kid too long", sign(`{"alg":"HS256","kid":"`+strings.Repeat("k", 129)+`","typ":"at+jwt"}`, good), keyring.Malformed},
		{"kid with NUL", sign(`{"alg":"HS256","kid":"secret-1\u0000","typ":"at+jwt"}`, good), keyring.Malformed},
		{"kid with a line break", sign(`{"alg":"HS256","kid":"secret-1\n","typ":"at+jwt"}`, good), keyring.Malformed},
		{"kid half a surrogate pair", sign(`{"alg":"HS256","kid":"\ud800","typ":"at+jwt"}`, good), keyring.Malformed},
		{"kid unknown", sign(`{"alg":"HS256","kid":"secret-2","typ":"at+jwt"}`, good), keyring.UnknownKey},
		{"kid a path", sign(`{"alg":"HS256","kid":"../../dev/null","typ":"at+jwt"}`, good), keyring.UnknownKey},
		{"kid twice", sign(`{"alg":"HS256","kid":"secret-2","kid":"secret-1","typ":"at+jwt"}`, good), keyring.Malformed},
		{"no typ", sign(`{"alg":"HS256","kid":"secret-1"}`, good), keyring.WrongType},
		{"typ JWT", sign(`{"alg":"HS256","kid":"secret-1","typ":"JWT"}`, good), keyring.WrongType},
		{"typ of a refresh token", sign(`{"alg":"HS256","kid":"secret-1","typ":"rt+jwt"}`, good), keyring.WrongType},
		{"typ with another prefix", sign(`{"alg":"HS256","kid":"secret-1","typ":"text/at+jwt"}`, good), keyring.WrongType},
		{"typ with the prefix twice", sign(`{"alg":"HS256","kid":"secret-1","typ":"application/application/at+jwt"}`, good), keyring.WrongType},
		{"typ a number", sign(`{"alg":"HS256","kid":"secret-1","typ":1}`, good), keyring.Malformed},
		{"header deep", sign(`{"alg":"HS256","kid":"secret-1","typ":"at+jwt","x":`+strings.Repeat("[", 40)+strings.Repeat("]", 40)+`}`, good), keyring.Malformed},

		// The claims.
		{"payload no JSON", sign(goodHead, "hello"), keyring.Malformed},
		{"payload an array", sign(goodHead, "["+good+"]"), keyring.Malformed},
		{"payload null", sign(goodHead, "null"), keyring.Malformed},
		{"payload followed by more", sign(goodHead, good+"{}"), keyring.Malformed},
		{"payload followed by NUL", sign(goodHead, good+"\x00"), keyring.Malformed},
		{"payload with a trailing comma", sign(goodHead, good[:len(good)-1]+",}"), keyring.Malformed},
		{"payload with a comment", sign(goodHead, "/**/"+good), keyring.Malformed},
		{"payload with a control character", swap("", "\"x\":\"\x01\""), keyring.Malformed},
		{"payload not UTF-8", swap("", "\"x\":\"\xc3\x28\""), keyring.Malformed},
		{"payload an overlong encoding", swap("", "\"x\":\"\xc0\x80\""), keyring.Malformed},
		{"payload in UTF-16", sign(goodHead, "{\x00\"\x00"), keyring.Malformed},
		{"half a surrogate pair", swap("", `"x":"\ud83d"`), keyring.Malformed},
		{"surrogates the wrong way round", swap("", `"x":"\ude00\ud83d"`), keyring.Malformed},
		{"unknown escape", swap("", `"x":"\x41"`), keyring.Malformed},
		{"deep arrays", swap("", `"x":`+strings.Repeat("[", 1000)+strings.Repeat("]", 1000)), keyring.Malformed},
		{"deep objects", swap("", `"x":`+strings.Repeat(`{"a":`, 100)+"1"+strings.Repeat("}", 100)), keyring.Malformed},
		{"too many members", swap("", manyMembers(300)), keyring.Malformed},
		{"no iss", swap("iss", ""), keyring.Malformed},
		{"iss a number", swap("iss", `"iss":1`), keyring.Malformed},
		{"iss an array", swap("iss", `"iss":["https://issuer.test"]`), keyring.Malformed},
		{"no sub", swap("sub", ""), keyring.Malformed},
		{"sub empty", swap("sub", `"sub":""`), keyring.Malformed},
		{"sub null", swap("sub", `"sub":null`), keyring.Malformed},
		{"sub a number", swap("sub", `"sub":1`), keyring.Malformed},
		{"sub twice", swap("", `"sub":"root"`), keyring.Malformed},
		{"sub twice, once escaped", swap("", `"\u0073ub":"root"`), keyring.Malformed},
		{"Sub", swap("", `"Sub":"root"`), keyring.Malformed},
		{"sub with the long s", swap("", `"ſub":"root"`), keyring.Malformed},
		{"aud twice", swap("", `"aud":"https://api.test"`), keyring.Malformed},
		{"aud a number", swap("aud", `"aud":1`), keyring.Malformed},
		{"aud null", swap("aud", `"aud":null`), keyring.Malformed},
		{"aud with a number in it", swap("aud", `"aud":["https://api.test",1]`), keyring.Malformed},
		{"aud nested", swap("aud", `"aud":[["https://api.test"]]`), keyring.Malformed},
		{"no exp", swap("exp", ""), keyring.Malformed},
		{"exp a string", swap("exp", `"exp":"4102444800"`), keyring.Malformed},
		{"exp null", swap("exp", `"exp":null`), keyring.Malformed},
		{"exp negative", swap("exp", `"exp":-1`), keyring.Malformed},
		{"exp 1e400", swap("exp", `"exp":1e400`), keyring.Malformed},
		{"exp 1e300", swap("exp", `"exp":1e300`), keyring.Malformed},
		{"exp beyond the year 9999", swap("exp", `"exp":253402300800`), keyring.Malformed},
		{"exp beyond int64", swap("exp", `"exp":9223372036854775808`), keyring.Malformed},
		{"exp beyond uint64", swap("exp", `"exp":18446744073709551617`), keyring.Malformed},
		{"exp of many digits", swap("exp", `"exp":4102444800.`+strings.Repeat("0", 100)), keyring.Malformed},
		{"exp NaN", swap("exp", `"exp":NaN`), keyring.Malformed},
		{"exp Infinity", swap("exp", `"exp":Infinity`), keyring.Malformed},
		{"exp hexadecimal", swap("exp", `"exp":0xF4865700`), keyring.Malformed},
		{"exp with a leading zero", swap("exp", `"exp":04102444800`), keyring.Malformed},
		{"exp with a plus", swap("exp", `"exp":+4102444800`), keyring.Malformed},
		{"exp without digits behind the point", swap("exp", `"exp":4102444800.`), keyring.Malformed},
		{"Exp beside exp", swap("", `"Exp":9999999999`), keyring.Malformed},
		{"EXP escaped", swap("", `"\u0045XP":9999999999`), keyring.Malformed},
		{"no iat", swap("iat", ""), keyring.Malformed},
		{"iat a string", swap("iat", `"iat":"now"`), keyring.Malformed},
		{"iat true", swap("iat", `"iat":true`), keyring.Malformed},
		{"nbf a string", swap("", `"nbf":"0"`), keyring.Malformed},
		{"nbf an object", swap("", `"nbf":{}`), keyring.Malformed},
		{"no jti", swap("jti", ""), keyring.Malformed},
		{"jti a number", swap("jti", `"jti":7`), keyring.Malformed},
		{"jti empty", swap("jti", `"jti":""`), keyring.Malformed},
		{"sid a number", swap("", `"sid":7`), keyring.Malformed},
		{"session_seq negative", swap("", `"session_seq":-1`), keyring.Malformed},
		{"session_seq a fraction", swap("", `"session_seq":1.5`), keyring.Malformed},
		{"session_seq with an exponent", swap("", `"session_seq":1e3`), keyring.Malformed},
		{"session_seq a string", swap("", `"session_seq":"1"`), keyring.Malformed},
		{"session_seq beyond uint64", swap("", `"session_seq":18446744073709551616`), keyring.Malformed},
		{"Session_Seq", swap("", `"Session_Seq":99`), keyring.Malformed},
		{"client_id a number", swap("", `"client_id":7`), keyring.Malformed},
		{"scope an array", swap("", `"scope":["read"]`), keyring.Malformed},
		{"auth_time a string", swap("", `"auth_time":"1"`), keyring.Malformed},
		{"token_type a number", swap("", `"token_type":1`), keyring.Malformed},
		{"gen negative", swap("", `"gen":-1`), keyring.Malformed},
		{"unknown claim twice", swap("", `"x":1,"x":2`), keyring.Malformed},
		{"member twice in an object within", swap("", `"x":{"a":1,"a":2}`), keyring.Malformed},
		{"token_type of a refresh token", swap("", `"token_type":"refresh"`), keyring.WrongType},
	}
}

// next returns the character that stands for one more, so that bits behind the value's end are set.
func next(c byte) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	i := strings.IndexByte(alphabet, c)
	return alphabet[i+1 : i+2] // the last character of 32 bytes has two bits to spare, so i is never the last
}

func manyMembers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"x%d":0,`, i)
	}
	return strings.TrimSuffix(b.String(), ",")
}

// TestProveRefuses has every token that is malformed, or not what it says, refused for the right reason.
func TestProveRefuses(t *testing.T) {
	key := keyringtest.Secret(t)
	ring := keyringtest.Ring(t, keyringtest.Issuer, keyringtest.Audience, key)
	cases := badTokens(t, key)
	if len(cases) < 60 {
		t.Fatalf("there are %d cases, want at least 60", len(cases))
	}
	for _, c := range cases {
		tok, err := ring.Prove(c.token, keyring.AccessToken)
		if tok != nil || keyring.ReasonOf(err) != c.want {
			t.Errorf("Prove(%s): got %v, want %s", c.name, err, c.want)
			continue
		}
		if len(c.token) > 40 && strings.Contains(err.Error(), c.token[len(c.token)-20:]) {
			t.Errorf("Prove(%s): the error holds a part of the token: %v", c.name, err)
		}
	}
	t.Logf("%d tokens refused", len(cases))
}

// TestProveAccepts has what the RFCs allow and few senders use.
func TestProveAccepts(t *testing.T) {
	key := keyringtest.Secret(t)
	ring := keyringtest.Ring(t, keyringtest.Issuer, keyringtest.Audience, key)
	good := claimsWith("", "")
	for _, c := range []struct{ name, header, payload string }{
		{"as we write it", goodHead, good},
		{"members in another order", `{"typ":"at+jwt","kid":"secret-1","alg":"HS256"}`, good},
		{"white space", " {\t\"alg\" : \"HS256\" ,\r\n\"kid\":\"secret-1\",\"typ\":\"at+jwt\"} \n", " " + good + "\n"},
		{"escapes in names and values", `{"\u0061lg":"HS\u003256","kid":"secret\u002d1","typ":"at\u002bjwt"}`, claimsWith("sub", `"s\u0075b":"al\u0069ce"`)},
		{"typ in capitals", `{"alg":"HS256","kid":"secret-1","typ":"AT+JWT"}`, good},
		{"typ with application/", `{"alg":"HS256","kid":"secret-1","typ":"Application/at+jwt"}`, good},
		{"unknown header member", `{"alg":"HS256","kid":"secret-1","typ":"at+jwt","x5t":"AA","foo":{"bar":[1]}}`, good},
		{"fractional dates", goodHead, claimsWith("exp", `"exp":4102444800.25,"nbf":1767225600.5`)},
		{"dates with an exponent", goodHead, claimsWith("exp", `"exp":4.1024448e9`)},
		{"exp the last of all", goodHead, claimsWith("exp", `"exp":253402300799`)},
		{"aud an array", goodHead, claimsWith("aud", `"aud":["https://api.test"]`)},
		{"unknown claims", goodHead, claimsWith("", `"x":null,"y":{"a":[true,1.5e-3,"\ud83d\ude00"]},"":0,"X":1`)},
		{"a claim within named like ours", goodHead, claimsWith("", `"act":{"SUB":"x","Exp":1}`)},
		{"roles that are objects", goodHead, claimsWith("", `"roles":[{"value":"staff"}]`)},
		{"user_id a number", goodHead, claimsWith("", `"user_id":7`)},
		{"text beyond ASCII", goodHead, claimsWith("", `"name":"Zoë 😀"`)},
	} {
		tok, err := ring.Verify(forge(t, key, c.header, c.payload), keyringtest.Expect())
		if err != nil {
			t.Errorf("Verify(%s): got %v, want no error", c.name, err)
			continue
		}
		if tok.Claims.Subject != "alice" || len(tok.Claims.Audience) != 1 || string(tok.Claims.Raw) != c.payload {
			t.Errorf("Verify(%s): got %+v, want alice's claims as signed", c.name, tok.Claims)
		}
	}
}

// TestAlgorithmConfusion signs with what an attacker has: public keys, as secrets.
func TestAlgorithmConfusion(t *testing.T) {
	rsaKey, ecKey := keyringtest.RSA(t), keyringtest.EC(t)
	ring := keyringtest.Ring(t, keyringtest.Issuer, keyringtest.Audience, rsaKey.Public(), ecKey.Public())
	jwk, err := rsaKey.PublicJWK()
	if err != nil {
		t.Fatal(err)
	}
	for name, secret := range map[string][]byte{
		"PEM": pkixPEM(t, rsaPublic(t, rsaKey)), "JWK": jwk, "modulus": rsaPublic(t, rsaKey).N.Bytes(),
	} {
		evil, err := keyring.NewSecret(rsaKey.ID(), secret)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ring.Prove(keyringtest.Token(t, evil, nil), keyring.AccessToken); keyring.ReasonOf(err) != keyring.UnsupportedAlg {
			t.Errorf("Prove(HS256 with the RSA %s as secret): got %v, want %s", name, err, keyring.UnsupportedAlg)
		}
		head := fmt.Sprintf(`{"alg":"RS256","kid":%q,"typ":"at+jwt"}`, rsaKey.ID())
		if _, err := ring.Prove(forge(t, evil, head, claimsWith("", "")), keyring.AccessToken); keyring.ReasonOf(err) != keyring.BadSignature {
			t.Errorf("Prove(HMAC called RS256, secret %s): got %v, want %s", name, err, keyring.BadSignature)
		}
	}
	// The kid of one key, the signature of another.
	other := keyringtest.Token(t, ecKey.WithID(rsaKey.ID()), nil)
	if _, err := ring.Prove(other, keyring.AccessToken); keyring.ReasonOf(err) != keyring.UnsupportedAlg {
		t.Errorf("Prove(ES256 under the RSA key's kid): got %v, want %s", err, keyring.UnsupportedAlg)
	}
	another, err := keyring.Generate(keyring.ES256, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ring.Prove(keyringtest.Token(t, another.WithID(ecKey.ID()), nil), keyring.AccessToken); keyring.ReasonOf(err) != keyring.BadSignature {
		t.Errorf("Prove(another P-256 key under the kid): got %v, want %s", err, keyring.BadSignature)
	}
}

// TestES256Signatures has the degenerate signatures of ECDSA refused.
func TestES256Signatures(t *testing.T) {
	key := keyringtest.EC(t)
	ring := keyringtest.Ring(t, keyringtest.Issuer, keyringtest.Audience, key.Public())
	signed, sig := cut(t, keyringtest.Token(t, key, nil))
	one := make([]byte, 64)
	one[31], one[63] = 1, 1
	for name, bad := range map[string][]byte{
		"zeros": make([]byte, 64), "ones": one, "nothing": {}, "half": sig[:32], "one byte short": sig[:63],
		"one byte more": append(sig[:64:64], 0), "swapped": append(append([]byte{}, sig[32:]...), sig[:32]...),
	} {
		token := signed + "." + base64.RawURLEncoding.EncodeToString(bad)
		if _, err := ring.Prove(token, keyring.AccessToken); keyring.ReasonOf(err) != keyring.BadSignature {
			t.Errorf("Prove(ES256 signature of %s): got %v, want %s", name, err, keyring.BadSignature)
		}
	}
}
