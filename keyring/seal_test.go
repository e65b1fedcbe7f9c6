package keyring_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/sidekey/sidekey/keyring"
)

// TestSealer has a box open in its own place, whole, and nowhere else.
func TestSealer(t *testing.T) {
	master, err := keyring.ParseMasterKey(keyring.NewMasterKey().Text())
	if err != nil {
		t.Fatal(err)
	}
	s := master.Sealer("users")
	box := s.Seal([]byte("secret"), []byte("ab"), []byte("c"))
	if got, err := s.Open(box, []byte("ab"), []byte("c")); err != nil || string(got) != "secret" {
		t.Fatalf("Open: got %q, %v", got, err)
	}
	if bytes.Equal(box, s.Seal([]byte("secret"), []byte("ab"), []byte("c"))) {
		t.Errorf("Seal twice: got the same box, want another nonce")
	}
	for name, open := range map[string]func() ([]byte, error){
		"parts cut otherwise": func() ([]byte, error) { return s.Open(box, []byte("a"), []byte("bc")) },
		"parts run together":  func() ([]byte, error) { return s.Open(box, []byte("abc")) },
		"a part more":         func() ([]byte, error) { return s.Open(box, []byte("ab"), []byte("c"), nil) },
		"no parts":            func() ([]byte, error) { return s.Open(box) },
		"another purpose":     func() ([]byte, error) { return master.Sealer("keys").Open(box, []byte("ab"), []byte("c")) },
		"another master": func() ([]byte, error) {
			return keyring.NewMasterKey().Sealer("users").Open(box, []byte("ab"), []byte("c"))
		},
	} {
		if got, err := open(); !errors.Is(err, keyring.ErrSealed) {
			t.Errorf("Open with %s: got %q, %v, want ErrSealed", name, got, err)
		}
	}
	eachDamage(box, func(what string, bad []byte) {
		if _, err := s.Open(bad, []byte("ab"), []byte("c")); !errors.Is(err, keyring.ErrSealed) {
			t.Errorf("Open of a box %s: got %v, want ErrSealed", what, err)
		}
	})
}

// eachDamage calls fn with box cut at each length and with one bit of each byte changed.
func eachDamage(box []byte, fn func(what string, bad []byte)) {
	for i := range box {
		fn("cut", box[:i])
		bad := bytes.Clone(box)
		bad[i] ^= 1
		fn("changed", bad)
	}
	fn("with more behind", append(bytes.Clone(box), 0))
}

// TestMasterKey has the text read back, and nothing else taken for it.
func TestMasterKey(t *testing.T) {
	m := keyring.NewMasterKey()
	again, err := keyring.ParseMasterKey(append([]byte(" \n"), m.Text()...))
	if err != nil || !bytes.Equal(again.Text(), m.Text()) || !bytes.Equal(again.Derive("p", 48), m.Derive("p", 48)) {
		t.Errorf("ParseMasterKey(Text): got %v, want the same key", err)
	}
	if bytes.Equal(m.Derive("p", 32), m.Derive("q", 32)) || bytes.Equal(m.Derive("p", 32), keyring.NewMasterKey().Derive("p", 32)) {
		t.Errorf("Derive: two purposes or two keys have one secret")
	}
	text := m.Text()
	for _, bad := range [][]byte{nil, []byte("sidekey-master-1:"), text[1:], text[:len(text)-2], append([]byte("x"), text...), append(bytes.TrimSpace(text), 'A')} {
		if _, err := keyring.ParseMasterKey(bad); err == nil || bytes.Contains([]byte(err.Error()), text[20:40]) {
			t.Errorf("ParseMasterKey(damaged): got %v, want an error that does not quote the key", err)
		}
	}
}

// TestSealTo has a box for one agent open for it only, in its place only, and never when changed.
func TestSealTo(t *testing.T) {
	made, err := keyring.GenerateSealingKey()
	if err != nil {
		t.Fatal(err)
	}
	k, err := keyring.ParseSealingKey(made.Private())
	if err != nil || !bytes.Equal(k.Public(), made.Public()) {
		t.Fatalf("ParseSealingKey(Private): got %v, want the same key", err)
	}
	other, err := keyring.GenerateSealingKey()
	if err != nil {
		t.Fatal(err)
	}
	box, err := keyring.SealTo(made.Public(), []byte("secret"), []byte("kid"), []byte("agent"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.Open(box, []byte("kid"), []byte("agent")); err != nil || string(got) != "secret" {
		t.Errorf("Open: got %q, %v", got, err)
	}
	if _, err := other.Open(box, []byte("kid"), []byte("agent")); !errors.Is(err, keyring.ErrSealed) {
		t.Errorf("Open with another key: got %v, want ErrSealed", err)
	}
	if _, err := k.Open(box, []byte("kida"), []byte("gent")); !errors.Is(err, keyring.ErrSealed) {
		t.Errorf("Open with parts cut otherwise: got %v, want ErrSealed", err)
	}
	for _, i := range []int{0, 1, 40, len(box) - 17, len(box) - 1} {
		bad := bytes.Clone(box)
		bad[i] ^= 1
		if _, err := k.Open(bad, []byte("kid"), []byte("agent")); !errors.Is(err, keyring.ErrSealed) {
			t.Errorf("Open with byte %d changed: got %v, want ErrSealed", i, err)
		}
	}
	for _, n := range []int{0, 1, 100, len(box) - 1} {
		if _, err := k.Open(box[:n], []byte("kid"), []byte("agent")); !errors.Is(err, keyring.ErrSealed) {
			t.Errorf("Open of %d bytes: got %v, want ErrSealed", n, err)
		}
	}
	for _, bad := range [][]byte{nil, {1}, made.Public()[1:]} {
		if _, err := keyring.SealTo(bad, []byte("secret")); err == nil {
			t.Errorf("SealTo(public key of %d bytes): got no error", len(bad))
		}
		if _, err := keyring.ParseSealingKey(bad); err == nil {
			t.Errorf("ParseSealingKey(%d bytes): got no error", len(bad))
		}
	}
}

// TestAuthority has the log's signature hold for its message and key only.
func TestAuthority(t *testing.T) {
	made, err := keyring.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	a, err := keyring.ParseAuthority(made.Private())
	if err != nil {
		t.Fatal(err)
	}
	pin, err := keyring.ParseAuthorityKey(" " + made.Public().Text() + "\n")
	if err != nil {
		t.Fatal(err)
	}
	sig := a.Sign([]byte("entry"))
	other, err := keyring.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	if !pin.Verify([]byte("entry"), sig) {
		t.Errorf("Verify: got false for the authority's signature")
	}
	for name, ok := range map[string]bool{
		"another message": pin.Verify([]byte("entrz"), sig), "another key": other.Public().Verify([]byte("entry"), sig),
		"no signature": pin.Verify([]byte("entry"), nil), "a cut one": pin.Verify([]byte("entry"), sig[:63]),
		"no key": keyring.AuthorityKey(nil).Verify([]byte("entry"), sig), "a cut key": pin[:31].Verify([]byte("entry"), sig),
	} {
		if ok {
			t.Errorf("Verify with %s: got true", name)
		}
	}
	for _, bad := range []string{"", pin.Text()[1:], pin.Text() + "A", "sidekey-authority-1:AA",
		"sidekey-authority-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"} {
		if _, err := keyring.ParseAuthorityKey(bad); err == nil {
			t.Errorf("ParseAuthorityKey(%q): got no error", bad)
		}
	}
	if _, err := keyring.ParseAuthority(made.Private()[1:]); err == nil {
		t.Errorf("ParseAuthority(31 bytes): got no error")
	}
}
