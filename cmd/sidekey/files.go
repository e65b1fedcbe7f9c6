package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// The files of an issuer's data_dir beside the bus's own, and of an agent's.
const (
	masterKeyFile  = "master.key"  // the issuers': seals all state
	adminTokenFile = "admin.token" // the cluster's, for its operator
	sealingKeyFile = "sealing.key" // one agent's: HS256 secrets are sealed to it
	signingKeyFile = "signing.key" // one agent's: signs its lease requests and acknowledgements
	lockFile       = "lock"        // held by the one process that uses the folder
)

// readOrMake gives the content of a file of 0600, and makes it, whole or not at all, where it is absent.
func readOrMake(path string, fresh func() ([]byte, error)) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return text, err
	}
	if text, err = fresh(); err != nil {
		return nil, err
	}
	return text, replica.WriteFile(path, text)
}

// openMasterKey reads the master key, and makes it at the first start.
func openMasterKey(dir string) (*keyring.MasterKey, error) {
	path := filepath.Join(dir, masterKeyFile)
	text, err := readOrMake(path, func() ([]byte, error) { return append(keyring.NewMasterKey().Text(), '\n'), nil })
	if err != nil {
		return nil, fmt.Errorf("opening the master key: %w", err)
	}
	key, err := keyring.ParseMasterKey(text)
	if err != nil {
		return nil, fmt.Errorf("reading the master key %s: %w; put the right file back: without it nothing of the state can be opened", path, err)
	}
	return key, nil
}

// openSealingKey reads an agent's sealing key, and makes it at its first start.
func openSealingKey(dir string) (*keyring.SealingKey, error) {
	path := filepath.Join(dir, sealingKeyFile)
	text, err := readOrMake(path, func() ([]byte, error) {
		key, err := keyring.GenerateSealingKey()
		if err != nil {
			return nil, err
		}
		return []byte(base64.RawStdEncoding.EncodeToString(key.Private()) + "\n"), nil
	})
	if err != nil {
		return nil, fmt.Errorf("opening the sealing key: %w", err)
	}
	private, err := base64.RawStdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err == nil {
		var key *keyring.SealingKey
		if key, err = keyring.ParseSealingKey(private); err == nil {
			return key, nil
		}
	}
	return nil, fmt.Errorf("reading the sealing key %s: %w; remove it, and the agent registers with a new one", path, err)
}

// openSigningKey reads an agent's signing key, and makes it at its first start.
func openSigningKey(dir string) (ed25519.PrivateKey, error) {
	path := filepath.Join(dir, signingKeyFile)
	text, err := readOrMake(path, func() ([]byte, error) {
		_, key, err := ed25519.GenerateKey(nil)
		return []byte(base64.RawStdEncoding.EncodeToString(key.Seed()) + "\n"), err
	})
	if err != nil {
		return nil, fmt.Errorf("opening the signing key: %w", err)
	}
	seed, err := base64.RawStdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("reading the signing key %s: it is damaged; remove it, and the agent of that name (sidekey agents remove), and start again", path)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// readAuthority reads the key that signs the log, which lies beside the bus credentials.
func readAuthority(credentials string) (keyring.AuthorityKey, error) {
	path := filepath.Join(filepath.Dir(credentials), bus.AuthorityFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the authority's key: %w; copy %s from the issuer's data_dir, together with %s", err, bus.AuthorityFile, bus.AgentSeedFile)
	}
	key, err := keyring.ParseAuthorityKey(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, fmt.Errorf("reading the authority's key %s: %w; copy it from the issuer's data_dir again", path, err)
	}
	return key, nil
}

// writePublished writes a file that others copy from the data_dir, if its content is not there already.
func writePublished(path string, text []byte) error {
	if old, err := os.ReadFile(path); err == nil && string(old) == string(text) {
		return nil
	}
	return replica.WriteFile(path, text)
}

// randomToken is 256 random bits in base64url.
func randomToken() string {
	b := make([]byte, 32)
	rand.Read(b) // never fails: crypto/rand ends the process instead
	return base64.RawURLEncoding.EncodeToString(b)
}

// lockDir keeps a second process off a folder until the returned file is closed. key names the folder in errors.
func lockDir(key, dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, dataDirError(key, dir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("opening %s %s: another process is using it; stop that one, or give this one a folder of its own", key, dir)
	}
	return f, nil
}
