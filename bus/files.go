package bus

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// WriteFile replaces a file whole, readable by its owner alone: temporary file, sync, rename, and
// a sync of the folder.
func WriteFile(path string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(content); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes what was renamed in a folder outlive a loss of power.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// CheckPrivate refuses a folder that others may enter, or in which a file lies that others may read
// or write, and says what to do. Folders in it are not looked into: nobody else gets there. A folder
// or file that belongs to somebody else is refused too, but root's.
func CheckPrivate(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("opening %s: it is no folder", dir)
	}
	if err := private(dir, info, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // a temporary file of another's
		}
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			continue // a symbolic link's own mode says nothing; a socket's is set where it is opened
		}
		if err := private(filepath.Join(dir, e.Name()), info, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// CheckPrivateFile refuses a file of secrets that others may read or write, and says what to do.
func CheckPrivateFile(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return private(path, info, 0o600)
}

func private(path string, info fs.FileInfo, want fs.FileMode) error {
	if loose := info.Mode().Perm() &^ want; loose&0o077 != 0 {
		return fmt.Errorf("refusing %s: others may use it (mode %04o); run: chmod %o %s", path, info.Mode().Perm(), want, path)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() && os.Geteuid() != 0 {
		return fmt.Errorf("refusing %s: it belongs to another user; run: chown $(id -u) %s", path, path)
	}
	return nil
}
