package keyring_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// TestSecretsNeverPrint prints everything that holds a secret in every way that a program may print by mistake.
func TestSecretsNeverPrint(t *testing.T) {
	master := keyring.NewMasterKey()
	sealing, err := keyring.GenerateSealingKey()
	if err != nil {
		t.Fatal(err)
	}
	authority, err := keyring.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	secrets := [][]byte{
		bytes.TrimSpace(bytes.TrimPrefix(master.Text(), []byte("sidekey-master-1:"))), sealing.Private(), authority.Private(),
	}
	raw, err := base64.RawURLEncoding.DecodeString(string(secrets[0]))
	if err != nil {
		t.Fatal(err)
	}
	secrets = append(secrets, raw)
	holders := []any{master, *master, master.Sealer("x"), *master.Sealer("x"), sealing, *sealing, authority, *authority}
	for _, k := range keyringtest.All(t) {
		jwk, err := k.PrivateJWK()
		if err != nil {
			t.Fatal(err)
		}
		var members map[string]string
		if err := json.Unmarshal(jwk, &members); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"d", "p", "q", "dp", "dq", "qi", "k"} {
			if members[name] == "" {
				continue
			}
			b, err := base64.RawURLEncoding.DecodeString(members[name])
			if err != nil {
				t.Fatal(err)
			}
			secrets = append(secrets, []byte(members[name]), b)
		}
		rec := keyringtest.Record(k, keyring.Active, "a")
		holders = append(holders, k, *k, rec, &rec, []*keyring.Key{k}, map[string]any{"key": k}, struct{ K *keyring.Key }{k})
	}
	for _, h := range holders {
		for _, out := range printings(t, h) {
			for _, s := range secrets {
				for _, form := range []string{string(s), hex.EncodeToString(s), strings.ToUpper(hex.EncodeToString(s)),
					base64.StdEncoding.EncodeToString(s), strings.Trim(fmt.Sprint(s), "[]"), strings.Trim(fmt.Sprintf("%#v", s), "[]byte{}")} {
					if strings.Contains(out, form) {
						t.Errorf("%T prints its secret: %.200s", h, out)
					}
				}
			}
		}
	}
}

func printings(t *testing.T, v any) (all []string) {
	t.Helper()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T"} {
		all = append(all, fmt.Sprintf(verb, v))
	}
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatalf("json.Marshal(%T): %v", v, err)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("m", "v", v)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "v", v)
	return append(all, string(text), log.String(), fmt.Sprint(fmt.Errorf("with %v", v)))
}

// TestKeyPrints has a key say which it is.
func TestKeyPrints(t *testing.T) {
	k := keyringtest.Secret(t)
	if got := fmt.Sprintf("%v %s %#v", k, k, *k); got != `HS256 key "secret-1" HS256 key "secret-1" HS256 key "secret-1"` {
		t.Errorf("printing a key: got %s", got)
	}
	text, err := json.Marshal(k)
	if err != nil || string(text) != `{"alg":"HS256","kid":"secret-1"}` {
		t.Errorf("MarshalJSON: got %s, %v", text, err)
	}
}
