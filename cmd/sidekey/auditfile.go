package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
)

// appendFile is issuer.audit_file: text is put at its end, and nothing that is there is ever written over. Where it was
// renamed or removed (logrotate does that) the next Write makes it anew, so no signal is needed. It is 0600; one that
// others may read is refused. A write is whole lines, in one call.
type appendFile struct {
	path string

	mu   sync.Mutex
	file *os.File
}

// openAppend opens the file, so that a wrong path is told at the start.
func openAppend(path string) (*appendFile, error) {
	a := &appendFile{path: path}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a, a.reopenLocked()
}

func (a *appendFile) reopenLocked() error {
	// O_NOFOLLOW is not asked for: a link in the operator's own folder is the operator's wish.
	f, err := os.OpenFile(a.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("%s is no regular file", a.path)
	case info.Mode().Perm()&0o077 != 0:
		err = fmt.Errorf("refusing %s: others may use it (mode %04o); run: chmod 600 %s", a.path, info.Mode().Perm(), a.path)
	}
	if err != nil {
		f.Close()
		return err
	}
	a.file = f
	return nil
}

// moved tells whether the path now names another file than the open one.
func (a *appendFile) movedLocked() bool {
	there, err := os.Stat(a.path)
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	open, oerr := a.file.Stat()
	return err == nil && oerr == nil && !os.SameFile(there, open)
}

func (a *appendFile) Write(text []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file != nil && a.movedLocked() {
		a.file.Close() //nolint:errcheck // everything was written
		a.file = nil
	}
	if a.file == nil {
		if err := a.reopenLocked(); err != nil {
			return 0, err
		}
	}
	return a.file.Write(text)
}

func (a *appendFile) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file == nil {
		return nil
	}
	err := a.file.Close()
	a.file = nil
	return err
}
