package issuer_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/issuer"
)

// djangoPassword is the password of djangoHashes. Those were made by Django 3.2's own hashers, scrypt's by Python's
// hashlib.scrypt in the form of Django 4's, and the test of the end-to-end suites makes more.
const djangoPassword = "pässwörd wonderland"

var djangoHashes = map[string]string{
	"pbkdf2_sha256": "pbkdf2_sha256$260000$MV3b6huojlciOjDaCi5x43$cPJPh+GCy6AXXPCrrpngDrKXcjSbUIEhlyAld/uShx4=",
	"pbkdf2_sha1":   "pbkdf2_sha1$260000$P71Sx083cn3HRnDK9ShkWp$obkaLkM3cTdBeXsdrobVQl/ybTA=",
	"argon2id":      "argon2$argon2id$v=19$m=102400,t=2,p=8$anlIbGJuSW11ekgzWU9Cd2tmN3EyTQ$psR6KZIVogKI59VA8HXL2A",
	"argon2i":       "argon2$argon2i$v=19$m=512,t=2,p=2$btj6UbxSGkMzivqH$I6Gu8Cqj1yga2NjoxgLmFA",
	"bcrypt_sha256": "bcrypt_sha256$$2b$12$cK7ySVcVcft2b/6iLwMt7.gC6UJOliXU1mtzJfxilQmNKlYLy3Qie",
	"bcrypt":        "bcrypt$$2b$12$ms3/tDoiundIpVpnR.gE2uzx3P1gNFZmBpZEkTch3sH2rdnh9C1QC",
	"scrypt":        "scrypt$16384$saltysaltysalt$8$1$yUJoahdR25IqhA8ofQPOe3a3/k7zdTBJPDdXLMeZWmOdQsxCC/fIddLlB8KX0Z19TWydtbAHZycRAvoZlkWEgg==",
	"scrypt, p=5":   "scrypt$16384$saltysaltysalt$8$5$IPv/gjpvSI861BSdgWHWbydlpi8oWui05dEaPaoVDZ8KR0WyG94ZyNEgEuCgOqsj6t22mD07KukS2jTupI5dcQ==",
}

// TestImportedHashes holds that a user moved here with Django's hash logs in with the old password, and then has a hash of ours.
func TestImportedHashes(t *testing.T) {
	b := newBus()
	ti := start(t, b)
	for kind, hash := range djangoHashes {
		if _, err := ti.AddUser(t.Context(), issuer.NewUser{Username: kind, PasswordHash: hash}); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		for _, wrong := range []string{djangoPassword + "x", hash} {
			if _, err := ti.Login(t.Context(), issuer.Credentials{Username: kind, Password: wrong}); !errors.Is(err, issuer.ErrCredentials) {
				t.Errorf("%s with the password %q: got %v, want %v", kind, wrong, err, issuer.ErrCredentials)
			}
		}
		for range 2 {
			if _, err := ti.Login(t.Context(), issuer.Credentials{Username: kind, Password: djangoPassword}); err != nil {
				t.Errorf("%s: %v", kind, err)
			}
			r, err := b.users.Get(t.Context(), bus.Name(kind))
			if err != nil || !strings.Contains(string(r.Value), `"password":"$argon2id$v=19$m=8,t=1,p=1$`) {
				t.Errorf("%s: after the login the record is %s (%v), want a hash of our own", kind, r.Value, err)
			}
		}
	}
}

// TestImportedHashRefused holds that no hash is taken which could not be verified, or only at a cost beyond the bounds, and that no
// error shows it.
func TestImportedHashRefused(t *testing.T) {
	ti := start(t, newBus())
	b64 := "cPJPh+GCy6AXXPCrrpngDrKXcjSbUIEhlyAld/uShx4="
	for hash, want := range map[string]string{
		"hunter2":                                        "it is of no known form",
		"my$ecret":                                       `its algorithm "my" is none that is`,
		"md5$salt$20eb409d9339ab5206d8ed8d0":             `its algorithm "md5" is none that is`,
		"Hunter2$":                                       "it is of no known form",
		"pbkdf2_sha256$5000001$salt$" + b64:              "its iterations: want a number from 1 to 5000000",
		"pbkdf2_sha256$0$salt$" + b64:                    "its iterations: want a number from 1 to 5000000",
		"pbkdf2_sha256$+1$salt$" + b64:                   "its iterations: want a number from 1 to 5000000",
		"pbkdf2_sha256$99999999999999999999$salt$" + b64: "its iterations: want a number from 1 to 5000000",
		"pbkdf2_sha256$1$$" + b64:                        "it is not iterations, salt and hash",
		"pbkdf2_sha256$1$salt$":                          "its hash is not base64 of its length",
		"pbkdf2_sha256$1$salt$aGFzaA==":                  "its hash is not base64 of its length",
		"pbkdf2_sha256$1$salt$" + b64 + "$":              "it is not iterations, salt and hash",
		"pbkdf2_sha1$1$salt$" + b64:                      "its hash is not base64 of its length",
		"argon2$argon2d$v=19$m=512,t=2,p=2$btj6UbxSGkMzivqH$I6Gu8Cqj1yga2NjoxgLmFA":      "it is no argon2id or argon2i of version 19",
		"argon2$argon2id$v=19$m=1000000,t=2,p=2$btj6UbxSGkMzivqH$I6Gu8Cqj1yga2NjoxgLmFA": "argon2id with m=1000000, t=2, p=2 is outside",
		"argon2$argon2id$v=19$m=512,t=2,p=2$btj6UbxSGkMzivqH$":                           "its hash is not base64 of a sensible length",
		"bcrypt$$2b$31$ms3/tDoiundIpVpnR.gE2uzx3P1gNFZmBpZEkTch3sH2rdnh9C1QC":            "its cost: want a number from 4 to 14",
		"bcrypt$$2b$12$short":                               "it is no bcrypt hash",
		"scrypt$1048576$salt$8$1$" + b64:                    "its n, r and p are out of bounds",
		"scrypt$16383$salt$8$1$" + b64:                      "its n, r and p are out of bounds",
		"scrypt$16384$salt$64$16$" + b64:                    "its n, r and p are out of bounds",
		"scrypt$16384$salt$8$0$" + b64:                      "its n, r and p are out of bounds",
		"pbkdf2_sha256$1$" + strings.Repeat("s", 600) + "$": "it is over 512 bytes",
	} {
		_, err := ti.AddUser(t.Context(), issuer.NewUser{Username: "bob", PasswordHash: hash})
		var input *issuer.InputError
		if !errors.As(err, &input) || !strings.HasPrefix(err.Error(), `"password_hash" cannot be used: the stored password hash cannot be verified: `+want) || strings.Contains(err.Error(), hash) {
			t.Errorf("AddUser with the hash %q: got %v, want: %s", hash, err, want)
		}
	}
	if _, err := ti.AddUser(t.Context(), issuer.NewUser{Username: "bob", Password: "a password", PasswordHash: djangoHashes["bcrypt"]}); err == nil {
		t.Error("AddUser with a password and a hash: no error")
	}
	// Django's unusable password is one that nobody has.
	if _, err := ti.AddUser(t.Context(), issuer.NewUser{Username: "bob", PasswordHash: "!vW8kXoN0"}); err != nil {
		t.Fatal(err)
	}
	for _, password := range []string{"!", "!vW8kXoN0", "vW8kXoN0", ""} {
		if _, err := ti.Login(t.Context(), issuer.Credentials{Username: "bob", Password: password}); !errors.Is(err, issuer.ErrCredentials) {
			t.Errorf("an unusable password, with %q: got %v", password, err)
		}
	}
}

func FuzzStoredHash(f *testing.F) {
	for _, hash := range djangoHashes {
		f.Add(hash)
	}
	ti := start(f, newBus())
	f.Fuzz(func(t *testing.T, hash string) {
		_, err := ti.AddUser(t.Context(), issuer.NewUser{Username: "u", PasswordHash: hash})
		if hash != "" && err == nil {
			err = ti.DeleteUser(t.Context(), "u")
		}
		var input *issuer.InputError
		if err != nil && (!errors.As(err, &input) || len(hash) > 30 && strings.Contains(err.Error(), hash)) {
			t.Fatalf("%q: %v", hash, err)
		}
	})
}
