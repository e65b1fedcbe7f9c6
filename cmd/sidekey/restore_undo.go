package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sidekey/sidekey/bus"
)

// restoringFile is in a data_dir into which a restore is under way, or was when it died: no issuer starts there. It is written
// before anything else, and removed behind everything else, on a bus elsewhere too.
const restoringFile = "restoring"

// unfinished is restoringFile: {"id":"mW3…","made":["master.key","jetstream"],"bus":true}.
type unfinished struct {
	ID   string   `json:"id"`            // of that restore; on a bus elsewhere its mark has it
	Made []string `json:"made"`          // what was not in the folder before: it is removed before a restore is tried again
	Bus  bool     `json:"bus,omitempty"` // it was onto a bus elsewhere
}

// readUnfinished gives what a restore that died has left; the zero value: there was none.
func readUnfinished(dir string) (u unfinished, err error) {
	text, err := os.ReadFile(filepath.Join(dir, restoringFile))
	if errors.Is(err, fs.ErrNotExist) {
		return u, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &u)
	}
	if err != nil {
		return u, fmt.Errorf("reading what an unfinished restore has left in %s: %w; move the folder away, and restore into an empty one", dir, err)
	}
	return u, nil
}

// write makes the file, in the place of one that died.
func (u *unfinished) write(dir string) error {
	text, err := json.Marshal(u)
	if err == nil {
		err = bus.WriteFile(filepath.Join(dir, restoringFile), append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("restoring into %s: %w", dir, err)
	}
	return nil
}

// removeFiles removes from the folder what that restore has made, by its own list, and leaves restoringFile.
func (u *unfinished) removeFiles(dir string) error {
	names := slices.DeleteFunc(slices.Clone(u.Made), func(name string) bool { return !slices.Contains(restoredFiles, name) }) // else it may be anywhere
	err := removeHalfWritten(dir, append(names, restoringFile))
	for _, name := range names {
		if err == nil {
			err = os.RemoveAll(filepath.Join(dir, name))
		}
	}
	if err != nil {
		return fmt.Errorf("removing what an unfinished restore has left in %s: %w; empty the folder yourself", dir, err)
	}
	return nil
}

// removeHalfWritten removes what bus.WriteFile leaves of files of these names when it is killed: it may hold a key.
func removeHalfWritten(dir string, names []string) error {
	there, err := os.ReadDir(dir)
	for _, entry := range there {
		name, random, ok := strings.Cut(entry.Name(), ".tmp")
		if err == nil && ok && slices.Contains(names, name) && strings.Trim(random, "0123456789") == "" {
			err = os.Remove(filepath.Join(dir, entry.Name()))
		}
	}
	return err
}

// removeRestoring removes restoringFile. What was done before is on the disk before it is gone, and that it is gone as well: an
// issuer that starts now acknowledges at once.
func removeRestoring(dir string) error {
	path := filepath.Join(dir, restoringFile)
	err := syncFolder(path)
	if err == nil {
		err = os.Remove(path)
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = syncFolder(path)
	}
	return err
}

// undo removes what this restore has made. While anything of it may be left on a bus elsewhere restoringFile stays: no issuer
// starts on it here, and the next restore knows it for its own.
func (r *restoring) undo(p *issuerProcess) error {
	if r.marked {
		ctx, cancel := context.WithTimeout(context.Background(), startWithin)
		defer cancel()
		if err := p.conn.RemoveState(ctx, r.own.ID); err != nil {
			return fmt.Errorf("what was restored so far is on the bus still (%w): no issuer starts in %s; run `sidekey restore` again with the same configuration, which removes it first", err, r.cfg.DataDir)
		}
	}
	p.close()
	if err := r.own.removeFiles(r.cfg.DataDir); err != nil {
		return err
	}
	return removeRestoring(r.cfg.DataDir)
}

// clearBus reaches a bus elsewhere and finds it empty. What a restore that died has left is removed, if its mark says that it is
// that one's: it may have been restored from another host since, and be in use.
func (r *restoring) clearBus(ctx context.Context, p *issuerProcess, died string) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	if err := p.openBus(ctx); err != nil {
		return err
	}
	at := "restoring onto the bus at " + strings.Join(r.cfg.Bus.URLs, ", ")
	if up, err := p.conn.Up(ctx); err != nil {
		return err
	} else if len(up) > 0 {
		return fmt.Errorf("%s: issuers are up there: %s; if that is the bus which is meant, stop every issuer first", at, strings.Join(up, ", "))
	}
	mark, err := p.conn.RestoreMark(ctx)
	if err == nil && mark != "" && mark == died {
		err = p.conn.RemoveState(ctx, died)
	}
	if err != nil {
		return err
	}
	found, err := p.conn.State(ctx)
	if err != nil || len(found) == 0 {
		return err
	}
	list := strings.Join(found, ", ")
	switch {
	case mark != "":
		return fmt.Errorf("%s: another restore onto it is under way, or has died; if it has died run it again, where it was begun; if that host is gone and nothing there is wanted, remove each (nats stream rm NAME): %s", at, list)
	case died != "":
		return fmt.Errorf("%s: what is there is not what the restore that died in %s has left: somebody has restored since, or that one was all but done; if issuers run on it leave it, and move that folder away; if nothing of it is wanted, remove each (nats stream rm NAME) and run this again: %s", at, r.cfg.DataDir, list)
	}
	return fmt.Errorf("%s: there is state of a sidekey already: %s; if nothing of it is wanted, remove each (nats stream rm NAME)", at, list)
}
