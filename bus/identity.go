package bus

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sidekey/sidekey/keyring"
)

// Identity is what a member has from joining, in a folder of its own (0700, files 0600):
//
//	bus.json       {"role": "agent", "name": "web-1", "join": "…", "urls": ["tls://10.0.0.5:7463"],
//	                "signing_key": "…", "sealing_key": "…", "authority_key": "…"}: the keys' public halves, base64
//	agent.creds    its bus credential, as the nats command reads it; issuer.creds of an issuer
//	signing.key    its Ed25519 key: base64 of the seed
//	sealing.key    its HPKE key, base64
//	authority.pub  the key that signs the log
//	ca.pem         the CA of the bus; absent: the system's, or no TLS
//	master.key     an issuer's alone, as bus.keys: the secrets of the issuers
type Identity struct {
	Role      Role
	Name      string
	Join      string // id of the token that it joined with
	URLs      []string
	User      *User
	Signing   ed25519.PrivateKey
	Sealing   *keyring.SealingKey
	Authority keyring.AuthorityKey
	CA        []byte // PEM; nil: none
	Master    *keyring.MasterKey
	Keys      *Keys
	// Of an issuer that joined a cluster: its issuers as of then, and the ids of the servers that held its state.
	Peers []Peer
	Group []string
}

// The files of an Identity beside the credential's.
const (
	identityFile  = "bus.json"
	signingFile   = "signing.key"
	sealingFile   = "sealing.key"
	AuthorityFile = "authority.pub"
	caFile        = "ca.pem"
	masterFile    = "master.key"
)

// identityHead is bus.json.
type identityHead struct {
	Role Role     `json:"role"`
	Name string   `json:"name"`
	Join string   `json:"join"`
	URLs []string `json:"urls"`
	// The public halves: a key with one bit changed is another key, sound in itself. Absent in an identity of before.
	Signing   []byte `json:"signing_key,omitempty"`
	Sealing   []byte `json:"sealing_key,omitempty"`
	Authority []byte `json:"authority_key,omitempty"`

	Peers []Peer   `json:"peers,omitempty"`
	Group []string `json:"group,omitempty"`
}

func (r Role) credsFile() string { return string(r) + ".creds" }

// ConnectConfig is how the member reaches the bus.
func (id *Identity) ConnectConfig() ConnectConfig {
	cfg := ConnectConfig{URLs: id.URLs, User: id.User, CA: id.CA, Name: string(id.Role) + " " + id.Name}
	if id.Role == RoleAgent {
		cfg.Agent = id.Name
	}
	return cfg
}

// files are the identity's files and their content, bus.json first.
func (id *Identity) files() (map[string][]byte, error) {
	head, err := json.Marshal(identityHead{
		Role: id.Role, Name: id.Name, Join: id.Join, URLs: id.URLs,
		Signing: id.Signing.Public().(ed25519.PublicKey), Sealing: id.Sealing.Public(), Authority: id.Authority,
		Peers: id.Peers, Group: id.Group,
	})
	if err != nil {
		return nil, err
	}
	creds, err := id.User.Creds()
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{
		identityFile:        append(head, '\n'),
		id.Role.credsFile(): creds,
		signingFile:         base64Line(id.Signing.Seed()),
		sealingFile:         base64Line(id.Sealing.Private()),
		AuthorityFile:       []byte(id.Authority.Text() + "\n"),
	}
	if id.CA != nil {
		files[caFile] = id.CA
	}
	if id.Role == RoleIssuer {
		plain, err := id.Keys.marshal()
		if err != nil {
			return nil, err
		}
		files[masterFile], files[KeysFile] = id.Master.Text(), sealKeys(id.Master, plain)
	}
	return files, nil
}

func base64Line(b []byte) []byte {
	return append([]byte(base64.RawStdEncoding.EncodeToString(b)), '\n')
}

// ReadIdentity reads an identity. os.ErrNotExist: there is none. Files that others may read are refused.
func ReadIdentity(dir string) (*Identity, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, err
	}
	if err := CheckPrivate(dir); err != nil {
		return nil, err
	}
	id, err := readIdentity(dir)
	if err != nil {
		return nil, fmt.Errorf("reading the identity in %s: %w; restore the folder, or remove it and join anew", dir, withoutNotExist(err))
	}
	os.Remove(filepath.Join(dir, joiningFile)) //nolint:errcheck // left by a process that died right then
	return id, nil
}

// withoutNotExist keeps a lost file of an identity from being taken for no identity.
func withoutNotExist(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return errors.New(err.Error())
	}
	return err
}

func readIdentity(dir string) (*Identity, error) {
	read := func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(dir, name)) }
	text, err := read(identityFile)
	if err != nil {
		return nil, err
	}
	var head identityHead
	if err := json.Unmarshal(text, &head); err != nil || head.Role != RoleAgent && head.Role != RoleIssuer || CheckName(head.Name) != nil {
		return nil, fmt.Errorf("%s is damaged", identityFile)
	}
	id := &Identity{Role: head.Role, Name: head.Name, Join: head.Join, URLs: head.URLs, Peers: head.Peers, Group: head.Group}
	if text, err = read(id.Role.credsFile()); err != nil {
		return nil, err
	}
	if id.User, err = ParseUser(text); err != nil {
		return nil, fmt.Errorf("%s: %w", id.Role.credsFile(), err)
	}
	if text, err = read(AuthorityFile); err != nil {
		return nil, err
	}
	if id.Authority, err = keyring.ParseAuthorityKey(string(text)); err != nil {
		return nil, fmt.Errorf("%s: %w", AuthorityFile, err)
	}
	if id.CA, err = read(caFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err := id.readKeys(read, head); err != nil {
		return nil, err
	}
	if id.Role == RoleIssuer {
		return id, id.readSecrets(dir, read)
	}
	return id, nil
}

// readKeys reads the private keys. Every key has to be the one that head names.
func (id *Identity) readKeys(read func(string) ([]byte, error), head identityHead) error {
	seed, err := readBase64(read, signingFile)
	if err != nil || len(seed) != ed25519.SeedSize {
		return fmt.Errorf("%s is damaged", signingFile)
	}
	id.Signing = ed25519.NewKeyFromSeed(seed)
	private, err := readBase64(read, sealingFile)
	if err == nil {
		id.Sealing, err = keyring.ParseSealingKey(private)
	}
	if err != nil {
		return fmt.Errorf("%s is damaged", sealingFile)
	}
	for _, k := range []struct {
		file      string
		noted, is []byte
	}{
		{signingFile, head.Signing, id.Signing.Public().(ed25519.PublicKey)},
		{sealingFile, head.Sealing, id.Sealing.Public()},
		{AuthorityFile, head.Authority, id.Authority},
	} {
		if k.noted != nil && !bytes.Equal(k.noted, k.is) {
			return fmt.Errorf("%s is not the key that %s names: one of the two is damaged", k.file, identityFile)
		}
	}
	return nil
}

func (id *Identity) readSecrets(dir string, read func(string) ([]byte, error)) error {
	text, err := read(masterFile)
	if err != nil {
		return err
	}
	if id.Master, err = keyring.ParseMasterKey(text); err != nil {
		return err
	}
	id.Keys, err = ReadKeys(filepath.Join(dir, KeysFile), id.Master)
	return err
}

func readBase64(read func(string) ([]byte, error), name string) ([]byte, error) {
	text, err := read(name)
	if err != nil {
		return nil, err
	}
	b, err := base64.RawStdEncoding.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil {
		return nil, fmt.Errorf("%s is damaged", name)
	}
	return b, nil
}
