package main

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/sidekey/sidekey/bus/replica"
)

// The files of an issuer's data_dir beside the bus's own.
const (
	masterKeyFile  = "master.key"  // the issuers': seals all state
	adminTokenFile = "admin.token" // the cluster's, for its operator
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
