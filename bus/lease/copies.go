package lease

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// ListLog is where lists of grants are written and read: *bus.Log.
type ListLog interface {
	GrantLog
	// ReadGrants reads the list that a tick names, by its place and hash; with a nil error it is that list.
	ReadGrants(ctx context.Context, seq uint64, hash []byte) ([]byte, error)
}

// Copies stands before a log and keeps, on this issuer's own disk, the lists of grants that the issuer wrote or read. The bus may lose
// its record of them: one server's disk is enough. Nobody could tell then who may be vouching, and no receipt could be confirmed before
// the longest lease is over. A list is known by the hash in its signed tick, so a copy is as good as what it was copied from.
//
// It is a plain write, that outlives the process, not the power. Two files take turns, so that what is kept is between keepCopies and
// twice that; a checkpoint, with what still counts, is written more often. All methods may be called by any goroutine.
type Copies struct {
	ListLog
	path   string // of the file that is written; ".old" is the one before
	logger hclog.Logger

	mu     sync.Mutex
	file   *os.File // nil: it could not be opened
	closed bool
	opened time.Time // when it was last tried to open it
	size   int64
	begun  time.Time
	places map[[sha256.Size]byte]place // of what is in either file, as far as it is known
	read   bool                        // what an earlier process wrote is in places too
	failed bool                        // the last write failed
}

// place is where a list stands.
type place struct {
	old    bool
	offset int64
	size   int
}

// Bounds of a Copies' files.
const (
	keepCopies  = 20 * time.Minute
	maxCopies   = 64 << 20         // bytes of one file; a list that was copied longer ago is the bus's alone
	copiesAgain = 10 * time.Second // between two tries to open one
	copiesGrown = 1 << 20          // bytes of the longest line that is read: twice maxList
)

// OpenCopies opens, and makes where it is absent, the file at path; its folder is there.
func OpenCopies(path string, log ListLog, logger hclog.Logger) (*Copies, error) {
	c := &Copies{ListLog: log, path: path, logger: logger, places: make(map[[sha256.Size]byte]place), begun: time.Now()}
	if err := c.openLocked(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Copies) openLocked() (err error) {
	c.opened = time.Now()
	if c.file, err = os.OpenFile(c.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
		return fmt.Errorf("opening this issuer's copy of the grants: %w", err)
	}
	if c.size, err = c.file.Seek(0, io.SeekEnd); err != nil {
		return fmt.Errorf("opening this issuer's copy of the grants: %w", err)
	}
	if c.size > 0 { // a line that was cut short ends here
		if _, err = c.file.Write([]byte("\n")); err == nil {
			c.size++
		}
	}
	return err
}

// Close closes the file.
func (c *Copies) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.file == nil {
		return nil
	}
	err := c.file.Close()
	c.file = nil
	return err
}

// WriteGrants is GrantLog's. The copy is there before anybody is answered.
func (c *Copies) WriteGrants(ctx context.Context, list []byte) (seq uint64, hash []byte, err error) {
	if seq, hash, err = c.ListLog.WriteGrants(ctx, list); err == nil {
		c.keep(list)
	}
	return seq, hash, err
}

// ReadGrants is ListLog's. What the bus does not give is taken from the copy, if it is there; else the error is the bus's.
func (c *Copies) ReadGrants(ctx context.Context, seq uint64, hash []byte) ([]byte, error) {
	list, err := c.ListLog.ReadGrants(ctx, seq, hash)
	if err == nil {
		c.keep(list)
		return list, nil
	}
	if ctx.Err() != nil {
		return nil, err
	}
	list, cerr := c.find([sha256.Size]byte(hash))
	if cerr != nil {
		if !errors.Is(cerr, fs.ErrNotExist) {
			c.logger.Error("could not read this issuer's copy of the grants", "error", cerr)
		}
		return nil, err
	}
	c.logger.Warn("the bus has lost who was granted a lease; taken from this issuer's own copy", "list_seq", seq, "error", err)
	return list, nil
}

// keep writes a list down, once. Without it a lease is granted all the same: the bus has the list.
func (c *Copies) keep(list []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	hash := sha256.Sum256(list)
	if _, known := c.places[hash]; known || c.closed || c.file == nil && time.Since(c.opened) < copiesAgain {
		return
	}
	var err error
	if c.file == nil {
		err = c.openLocked()
	} else {
		err = c.turnLocked()
	}
	if err == nil && c.failed { // what the last write left ends here
		if _, err = c.file.Write([]byte("\n")); err == nil {
			c.size++
		}
	}
	if err == nil {
		_, err = c.file.Write(append(list[:len(list):len(list)], '\n'))
	}
	if err != nil {
		if !c.failed {
			c.logger.Error("could not write this issuer's copy of the grants: should the bus lose them, receipts wait for the longest lease", "error", err)
		}
		c.failed = true
		if info, serr := c.file.Stat(); serr == nil {
			c.size = info.Size()
		}
		return
	}
	c.failed = false
	c.places[hash] = place{offset: c.size, size: len(list)}
	c.size += int64(len(list)) + 1
}

// turnLocked begins another file when this one is old or large.
func (c *Copies) turnLocked() error {
	if c.size == 0 || c.size < maxCopies && time.Since(c.begun) < keepCopies {
		return nil
	}
	if err := os.Rename(c.path, c.path+".old"); err != nil {
		return err
	}
	c.file.Close() //nolint:errcheck // it was written without an error
	for hash, p := range c.places {
		if p.old {
			delete(c.places, hash)
			continue
		}
		p.old = true
		c.places[hash] = p
	}
	c.begun = time.Now()
	return c.openLocked()
}

// find gives the list with a hash, or fs.ErrNotExist.
func (c *Copies) find(hash [sha256.Size]byte) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.read {
		if err := errors.Join(c.scanLocked(c.path+".old", true), c.scanLocked(c.path, false)); err != nil {
			return nil, err
		}
		c.read = true
	}
	p, ok := c.places[hash]
	if !ok {
		return nil, fs.ErrNotExist
	}
	path := c.path
	if p.old {
		path += ".old"
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list := make([]byte, p.size)
	if _, err := f.ReadAt(list, p.offset); err != nil {
		return nil, err
	}
	if sha256.Sum256(list) != hash {
		delete(c.places, hash) // the disk has changed it since
		return nil, fs.ErrNotExist
	}
	return list, nil
}

// scanLocked notes what is in a file. A line that a disk has damaged has another hash, and is nobody's list.
func (c *Copies) scanLocked(path string, old bool) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lines, offset := bufio.NewReaderSize(f, copiesGrown), int64(0)
	for {
		line, err := lines.ReadSlice('\n')
		if err == nil && len(line) > 1 {
			c.places[sha256.Sum256(line[:len(line)-1])] = place{old: old, offset: offset, size: len(line) - 1}
		}
		offset += int64(len(line))
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && !errors.Is(err, bufio.ErrBufferFull): // what is longer than a list is none
			return err
		}
	}
}
