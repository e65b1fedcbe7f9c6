package replica

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// The files of a Store.
const (
	checkpointFile = "checkpoint"
	journalFile    = "journal"
)

// A Store is written anew when its journal has grown so long, or so old.
const (
	journalLimit = 4 << 20
	journalAge   = 10 * time.Minute
)

// storePreamble begins both files: a line that says whose log this is. What is in a file that
// begins otherwise is never believed.
func storePreamble(authority keyring.AuthorityKey) []byte {
	return []byte("sidekey-store-1 " + authority.Text() + "\n")
}

// Store is a reader's own copy of what it knows, on disk, so that it can start while the bus is
// away: a checkpoint (an image, replaced whole) and a journal of the entries since.
//
// The journal is a plain write before an entry counts as applied: it outlives the process, not
// the power. What was not synced is read from the log again.
type Store struct {
	dir      string
	preamble []byte

	mu      sync.Mutex
	journal *os.File
	size    int64
	begun   time.Time
}

// journaled is an entry in the journal, behind its length and CRC-32C (4 bytes each, big-endian):
//
//	{"epoch": 1767225600000, "seq": 412, "chain": […], "kind": "revoke", "body": {…}}
type journaled struct {
	Epoch uint64          `json:"epoch"`
	Seq   uint64          `json:"seq"`
	Chain bus.Chain       `json:"chain"`
	Kind  bus.Kind        `json:"kind"`
	Body  json.RawMessage `json:"body"`
}

// OpenStore opens the store in dir, which is made 0700 where it is absent. It believes only files
// that were written under this authority.
func OpenStore(dir string, authority keyring.AuthorityKey) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the store's folder: %w", err)
	}
	return &Store{dir: dir, preamble: storePreamble(authority)}, nil
}

// Restore loads what the store holds into r, and tells whether that was anything. An error says
// which file is of no use; r is then as it was, and has to read the log from its beginning.
// Call it once, before Follow. r must have been made with this store's Journal.
func (s *Store) Restore(r *Replica) (bool, error) {
	img, err := s.read(checkpointFile)
	if err != nil {
		return false, s.discard(err)
	}
	entries, err := s.readJournal()
	if err != nil {
		return false, s.discard(err)
	}
	if img == nil {
		return false, nil
	}
	if err := r.Load(img); err != nil {
		return false, s.discard(fmt.Errorf("%s: %w", filepath.Join(s.dir, checkpointFile), err))
	}
	for i := range entries {
		if entries[i].Seq > r.Snapshot().Position.Seq && entries[i].Epoch == r.Snapshot().Position.Epoch {
			if err := r.apply(entries[i:i+1], 0, false); err != nil {
				return true, fmt.Errorf("%s: %w", filepath.Join(s.dir, journalFile), err)
			}
		}
	}
	r.markReady()
	return true, nil
}

// markReady lets a Replica vouch by what it has restored.
func (r *Replica) markReady() {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := *r.cur.Load()
	next.Ready = true
	r.publish(&next)
}

// discard puts a damaged store out of the way, and keeps it for those who want to know why.
func (s *Store) discard(cause error) error {
	for _, name := range []string{checkpointFile, journalFile} {
		path := filepath.Join(s.dir, name)
		if err := os.Rename(path, path+".damaged"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w; and moving it away failed: %w", cause, err)
		}
	}
	return fmt.Errorf("%w; moved to *.damaged, reading the log anew", cause)
}

// read gives a file's content behind the preamble, nil where there is no file.
func (s *Store) read(name string) ([]byte, error) {
	path := filepath.Join(s.dir, name)
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	rest, ok := bytes.CutPrefix(data, s.preamble)
	if !ok {
		return nil, fmt.Errorf("%s: %w: it was not written under this authority's key", path, ErrDamaged)
	}
	return rest, nil
}

// readJournal gives the journal's entries. A last record that is cut short was never applied (it
// is written first) and is passed over; anything else that does not fit is damage.
func (s *Store) readJournal() ([]bus.Entry, error) {
	data, err := s.read(journalFile)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(s.dir, journalFile)
	var entries []bus.Entry
	for len(data) >= 8 {
		n := binary.BigEndian.Uint32(data)
		if uint64(n) > uint64(len(data)-8) {
			break
		}
		rec := data[8 : 8+n]
		if crc32.Checksum(rec, crc32.MakeTable(crc32.Castagnoli)) != binary.BigEndian.Uint32(data[4:]) {
			return nil, fmt.Errorf("%s: %w: the checksum of a record does not match", path, ErrDamaged)
		}
		var j journaled
		if err := json.Unmarshal(rec, &j); err != nil {
			return nil, fmt.Errorf("%s: %w: %w", path, ErrDamaged, err)
		}
		fact, err := bus.Decode(j.Kind, j.Body)
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %w", path, ErrDamaged, err)
		}
		entries = append(entries, bus.Entry{Position: bus.Position{Epoch: j.Epoch, Seq: j.Seq}, Chain: j.Chain, Fact: fact})
		data = data[8+n:]
	}
	return entries, nil
}

// Journal writes entries down before they count as applied; it is the Replica's Config.Journal.
// Before the first Save there is no journal to write to, and nothing to add it to.
func (s *Store) Journal(entries []bus.Entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.journal == nil {
		return nil
	}
	var buf []byte
	for i := range entries {
		body, err := bus.Encode(entries[i].Fact)
		if err != nil {
			return err
		}
		rec, err := json.Marshal(journaled{entries[i].Epoch, entries[i].Seq, entries[i].Chain, entries[i].Fact.Kind(), body})
		if err != nil {
			return fmt.Errorf("writing the journal: %w", err)
		}
		buf = binary.BigEndian.AppendUint32(buf, uint32(len(rec)))
		buf = binary.BigEndian.AppendUint32(buf, crc32.Checksum(rec, crc32.MakeTable(crc32.Castagnoli)))
		buf = append(buf, rec...)
	}
	n, err := s.journal.Write(buf)
	s.size += int64(n)
	if err != nil {
		return fmt.Errorf("writing %s: %w", s.journal.Name(), err)
	}
	return nil
}

// Save writes a new checkpoint of r and begins the journal anew. Either file is replaced whole
// (temporary file, sync, rename), the checkpoint first: a crash between leaves a journal whose
// older entries are passed over.
func (s *Store) Save(r *Replica) error {
	r.mu.Lock()
	empty := r.cur.Load().Position == (bus.Position{})
	r.mu.Unlock()
	if empty {
		return nil
	}
	img, at, err := r.Image()
	if err != nil {
		return err
	}
	if err := s.replace(checkpointFile, img); err != nil {
		return err
	}
	return s.restartJournal(r, at)
}

// restartJournal begins a journal that holds what was applied behind the image, which is what the
// old one has behind it.
func (s *Store) restartJournal(r *Replica, at bus.Cursor) error {
	r.mu.Lock() // nothing is applied meanwhile
	defer r.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	var since []byte
	if s.journal != nil {
		all, err := s.journalBehind(at.Position)
		if err != nil {
			return err
		}
		since = all
	} else if r.cur.Load().Position != at.Position {
		// The first journal of this process: what came since the image was written nowhere.
		return nil
	}
	if err := s.replace(journalFile, since); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(s.dir, journalFile), os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("beginning the journal: %w", err)
	}
	if s.journal != nil {
		s.journal.Close()
	}
	s.journal, s.size, s.begun = f, int64(len(since)), time.Now()
	return nil
}

// journalBehind gives the records of the journal behind a position, as they stand there.
func (s *Store) journalBehind(at bus.Position) ([]byte, error) {
	data, err := s.read(journalFile)
	if err != nil {
		return nil, err
	}
	for len(data) >= 8 {
		n := int(binary.BigEndian.Uint32(data))
		if n > len(data)-8 {
			return nil, io.ErrUnexpectedEOF
		}
		var j journaled
		if err := json.Unmarshal(data[8:8+n], &j); err != nil {
			return nil, err
		}
		if at.Before(bus.Position{Epoch: j.Epoch, Seq: j.Seq}) {
			return data, nil
		}
		data = data[8+n:]
	}
	return nil, nil
}

// replace writes a file so that a reader sees the old content or the new, whole.
func (s *Store) replace(name string, content []byte) error {
	path := filepath.Join(s.dir, name)
	if err := WriteFile(path, append(bytes.Clone(s.preamble), content...)); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

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
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// Keep saves r whenever it is worth it, until ctx ends, and once more then: as soon as r is first
// ready, and when the journal has become long or old. A failure is handed to failed, and tried again.
func (s *Store) Keep(ctx context.Context, r *Replica, failed func(error)) {
	for {
		changed := r.Changed()
		if s.due(r) {
			if err := s.Save(r); err != nil {
				failed(err)
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if err := s.Save(r); err != nil {
				failed(err)
			}
			return
		}
	}
}

func (s *Store) due(r *Replica) bool {
	if !r.Snapshot().Ready {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.journal == nil || s.size > journalLimit || time.Since(s.begun) > journalAge
}

// Close ends the journal.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.journal == nil {
		return nil
	}
	err := s.journal.Close()
	s.journal = nil
	return err
}
