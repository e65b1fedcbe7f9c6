package issuer

import (
	"crypto/rand"
	"encoding/hex"
	"hash/crc32"
	"math/big"
	"strings"

	"github.com/sidekey/sidekey/bus"
)

// The text of a credential that is made here:
//
//	"sidekey_" | 32 random bytes in base62, 43 characters | CRC-32 (IEEE) of those characters in base62, 6 characters
//
// A scanner finds it by sidekey_[0-9A-Za-z]{49}, and drops by the checksum, without asking anybody, what only looks
// like one. base62 has the digits, then A to Z, then a to z; numbers are padded with zeroes at the left.
const (
	credentialPrefix = "sidekey_"
	base62Digits     = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	credentialBody   = 43
	credentialSum    = 6
)

// Bounds of an opaque token that was made elsewhere. What is shorter could be guessed: its hash is a fast one.
const (
	minForeignText = 20
	maxForeignText = 512
)

func newCredentialText() string {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // it never fails
	body := base62(new(big.Int).SetBytes(raw), credentialBody)
	return credentialPrefix + body + credentialChecksum(body)
}

func credentialChecksum(body string) string {
	return base62(big.NewInt(int64(crc32.ChecksumIEEE([]byte(body)))), credentialSum)
}

// base62 writes n in width characters, which are enough.
func base62(n *big.Int, width int) string {
	digits, base, mod := make([]byte, width), big.NewInt(62), new(big.Int)
	n = new(big.Int).Set(n)
	for at := width - 1; at >= 0; at-- {
		n.DivMod(n, base, mod)
		digits[at] = base62Digits[mod.Int64()]
	}
	return string(digits)
}

// CheckCredentialText tells whether a text has the form, and the checksum, of a credential that sidekey made. It
// asks nobody whether there is such a one.
func CheckCredentialText(text string) bool {
	body, ok := strings.CutPrefix(text, credentialPrefix)
	if !ok || len(body) != credentialBody+credentialSum || strings.Trim(body, base62Digits) != "" {
		return false
	}
	return credentialChecksum(body[:credentialBody]) == body[credentialBody:]
}

// checkForeignText refuses what is no opaque token, or one that could be guessed.
func checkForeignText(text string) error {
	switch {
	case len(text) < minForeignText || len(text) > maxForeignText:
		return &InputError{"key", "must be 20 to 512 characters: a shorter one could be guessed"}
	case strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }):
		return &InputError{"key", "must be printable ASCII without blanks"}
	case strings.HasPrefix(text, credentialPrefix) && !CheckCredentialText(text):
		return &InputError{"key", "begins as one of sidekey's own, and its checksum is wrong"}
	}
	return nil
}

// credentialText tells whether a text is no JWS, but can be a credential's.
func credentialText(text string) bool {
	return strings.Count(text, ".") != 2 && checkForeignText(text) == nil
}

// credentialID is the name of the credential with this hash: made from it, so that one text is one credential
// however often it is imported, and one who has the text can revoke it. It says no more than the hash does.
func credentialID(hash [32]byte) string {
	sum := bus.HashCredential(append([]byte("sidekey credential id\x00"), hash[:]...))
	return "cred_" + hex.EncodeToString(sum[:16])
}

// isCredentialID tells whether an id is of the form that credentialID gives.
func isCredentialID(id string) bool {
	digits, ok := strings.CutPrefix(id, "cred_")
	return ok && len(digits) == 32 && strings.Trim(digits, "0123456789abcdef") == ""
}
