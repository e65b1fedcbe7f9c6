package issuer

import (
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"math/bits"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/crypto/scrypt"
)

// Bounds on Django's hashes, as those of argon2id are above: some seconds of a core at most, and 128 MiB.
const (
	maxStored           = 512 // bytes of a hash's text
	maxPBKDF2Iterations = 5_000_000
	minBcryptCost       = 4
	maxBcryptCost       = 14
	maxScryptMemory     = 128 << 20
	maxScryptWork       = 1 << 21 // n·r·p
)

var (
	// errNoHash means that there is no password: the record has none, or Django's "!" of an unusable one.
	errNoHash = errors.New("there is no password")
	// errHash means that a stored hash cannot be verified, ever.
	errHash = errors.New("the stored password hash cannot be verified")
)

var hashName = regexp.MustCompile(`^[a-z0-9_]{1,24}$`)

// stored is a password hash as a record has it, found to be within the bounds.
type stored struct {
	match func(password []byte) bool // in constant time
	class string                     // kind and cost
	own   Hash                       // of our own argon2id; zero: somebody else made it
}

// parseStored reads a password hash: our own PHC string, or one of Django's, "algorithm$…" (docs/users.md has the table). It
// refuses every cost and length out of bounds. Its errors are errNoHash and errHash, and never hold any of a hash.
func parseStored(text string) (*stored, error) {
	if text == "" || text[0] == '!' {
		return nil, errNoHash
	}
	if len(text) > maxStored {
		return nil, fmt.Errorf("%w: it is over %d bytes", errHash, maxStored)
	}
	name, rest, _ := strings.Cut(text, "$")
	read := map[string]func(string) (*stored, error){
		"":              readPHC,
		"argon2":        readDjangoArgon2,
		"pbkdf2_sha256": func(s string) (*stored, error) { return readPBKDF2(s, "pbkdf2_sha256", sha256.New) },
		"pbkdf2_sha1":   func(s string) (*stored, error) { return readPBKDF2(s, "pbkdf2_sha1", sha1.New) },
		"bcrypt_sha256": func(s string) (*stored, error) { return readBcrypt(s, "bcrypt_sha256") },
		"bcrypt":        func(s string) (*stored, error) { return readBcrypt(s, "bcrypt") },
		"scrypt":        readScrypt,
	}[name]
	if read == nil {
		if !hashName.MatchString(name) || !strings.Contains(text, "$") {
			return nil, fmt.Errorf("%w: it is of no known form", errHash) // it may be a password in clear
		}
		return nil, fmt.Errorf("%w: its algorithm %q is none that is", errHash, name)
	}
	s, err := read(rest)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errHash, err)
	}
	return s, nil
}

// equal compares in constant time what deriving gives.
func equal(want []byte, derive func(password []byte) ([]byte, error)) func([]byte) bool {
	return func(password []byte) bool {
		got, err := derive(password)
		return err == nil && subtle.ConstantTimeCompare(got, want) == 1
	}
}

// readPHC reads our own form, without its first "$": argon2id$v=19$m=65536,t=3,p=4$<salt>$<hash>.
func readPHC(s string) (*stored, error) {
	if !strings.HasPrefix(s, "argon2id$") {
		return nil, errors.New("it is no PHC string of argon2id version 19")
	}
	found, cost, err := readArgon2(s)
	if err != nil {
		return nil, err
	}
	found.own = cost
	return found, nil
}

// readDjangoArgon2 reads argon2$argon2id$v=19$…, and argon2i, which Django made before 3.2.
func readDjangoArgon2(s string) (*stored, error) {
	found, _, err := readArgon2(s)
	return found, err
}

func readArgon2(s string) (found *stored, cost Hash, err error) {
	parts := strings.Split(s, "$")
	if len(parts) != 5 || parts[0] != "argon2id" && parts[0] != "argon2i" || parts[1] != "v=19" {
		return nil, cost, errors.New("it is no argon2id or argon2i of version 19")
	}
	if cost, err = readArgon2Cost(parts[2]); err != nil {
		return nil, cost, err
	}
	salt, err := base64.RawStdEncoding.Strict().DecodeString(parts[3])
	if err != nil || len(salt) < 8 || len(salt) > 64 {
		return nil, cost, errors.New("its salt is not base64 of a sensible length")
	}
	want, err := base64.RawStdEncoding.Strict().DecodeString(parts[4])
	if err != nil || len(want) < 16 || len(want) > 64 {
		return nil, cost, errors.New("its hash is not base64 of a sensible length")
	}
	key := argon2.IDKey
	if parts[0] == "argon2i" {
		key = argon2.Key
	}
	return &stored{class: parts[0] + "$" + parts[2], match: equal(want, func(password []byte) ([]byte, error) {
		return key(password, salt, cost.Time, cost.Memory, cost.Threads, uint32(len(want))), nil
	})}, cost, nil
}

// readArgon2Cost reads m=65536,t=3,p=4.
func readArgon2Cost(s string) (cost Hash, err error) {
	params := strings.Split(s, ",")
	if len(params) != 3 {
		return cost, errors.New("its parameters are not m, t and p")
	}
	var n [3]int
	for at, name := range []string{"m=", "t=", "p="} {
		text, found := strings.CutPrefix(params[at], name)
		if n[at], err = bounded(text, 1, 1<<30); !found || err != nil {
			return cost, errors.New("its parameters are not m, t and p")
		}
	}
	if n[2] > maxHashThreads {
		return cost, fmt.Errorf("its p is greater than %d", maxHashThreads)
	}
	cost = Hash{Memory: uint32(n[0]), Time: uint32(n[1]), Threads: uint8(n[2])}
	return cost, cost.check()
}

// readPBKDF2 reads 260000$<salt, as it is>$<hash, base64>.
func readPBKDF2(s, name string, sum func() hash.Hash) (*stored, error) {
	parts := strings.Split(s, "$")
	if len(parts) != 3 || len(parts[1]) < 1 || len(parts[1]) > 128 {
		return nil, errors.New("it is not iterations, salt and hash")
	}
	iterations, err := bounded(parts[0], 1, maxPBKDF2Iterations)
	if err != nil {
		return nil, fmt.Errorf("its iterations: %w", err)
	}
	want, err := base64.StdEncoding.Strict().DecodeString(parts[2])
	if err != nil || len(want) != sum().Size() {
		return nil, errors.New("its hash is not base64 of its length")
	}
	return &stored{class: name + "$" + parts[0], match: equal(want, func(password []byte) ([]byte, error) {
		return pbkdf2.Key(sum, string(password), []byte(parts[1]), iterations, len(want))
	})}, nil
}

var bcryptText = regexp.MustCompile(`^\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}$`)

// readBcrypt reads $2b$12$…; bcrypt_sha256 is of the password's SHA-256 in hexadecimal, so that none is too long.
func readBcrypt(s, name string) (*stored, error) {
	m := bcryptText.FindStringSubmatch(s)
	if m == nil {
		return nil, errors.New("it is no bcrypt hash")
	}
	cost, err := bounded(strings.TrimPrefix(m[1], "0"), minBcryptCost, maxBcryptCost)
	if err != nil {
		return nil, fmt.Errorf("its cost: %w", err)
	}
	return &stored{class: fmt.Sprintf("%s$%d", name, cost), match: func(password []byte) bool {
		if name == "bcrypt_sha256" {
			sum := sha256.Sum256(password)
			password = []byte(hex.EncodeToString(sum[:]))
		}
		// bcrypt knows 72 bytes of a password. Django and its library made the hash of those.
		return bcrypt.CompareHashAndPassword([]byte(s), password[:min(len(password), 72)]) == nil
	}}, nil
}

// readScrypt reads 16384$<salt, as it is>$8$1$<hash, base64>: n, r and p.
func readScrypt(s string) (*stored, error) {
	parts := strings.Split(s, "$")
	if len(parts) != 5 || len(parts[1]) < 1 || len(parts[1]) > 128 {
		return nil, errors.New("it is not n, salt, r, p and hash")
	}
	n, nerr := bounded(parts[0], 2, 1<<20)
	r, rerr := bounded(parts[2], 1, 64)
	p, perr := bounded(parts[3], 1, 16)
	if err := errors.Join(nerr, rerr, perr); err != nil || bits.OnesCount(uint(n)) != 1 || 128*n*r > maxScryptMemory || n*r*p > maxScryptWork {
		return nil, errors.New("its n, r and p are out of bounds")
	}
	want, err := base64.StdEncoding.Strict().DecodeString(parts[4])
	if err != nil || len(want) < 16 || len(want) > 64 {
		return nil, errors.New("its hash is not base64 of a sensible length")
	}
	return &stored{class: fmt.Sprintf("scrypt$%d$%d$%d", n, r, p), match: equal(want, func(password []byte) ([]byte, error) {
		return scrypt.Key(password, []byte(parts[1]), n, r, p, len(want))
	})}, nil
}

// bounded reads a number, written in the one way, from least to most.
func bounded(text string, least, most int) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || strconv.Itoa(n) != text || n < least || n > most {
		return 0, fmt.Errorf("want a number from %d to %d", least, most)
	}
	return n, nil
}
