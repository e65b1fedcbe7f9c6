package replica

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
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

// keepAgain is the pause after a Save that failed.
const keepAgain = 5 * time.Second

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
	last    bus.Position // where checkpoint and journal end
	gap     bool         // the journal lacks something: a new checkpoint is due
	saving  bool         // a Save is under way:
	since   []record     // what was journaled since it began
}

// record is an entry's record in the journal, as it stands there.
type record struct {
	at    bus.Position
	bytes []byte
}

// recordHeader is the length of what stands before each record: its length, the CRC-32C of those
// four bytes, and the CRC-32C of the record, all big-endian. A length has a sum of its own so that
// an altered one is not taken for a record that was cut short.
const recordHeader = 12

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// journaled is an entry in the journal, behind its header:
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

// ReadStore loads into r what a store of this authority holds, and tells whether that was anything. It changes no file, and what
// is damaged is an error.
func ReadStore(dir string, authority keyring.AuthorityKey, r *Replica) (bool, error) {
	s := &Store{dir: dir, preamble: storePreamble(authority)}
	img, err := s.read(checkpointFile)
	if img == nil || err != nil {
		return false, err
	}
	entries, err := s.readJournal()
	if err != nil {
		return false, err
	}
	if err := r.Load(img); err != nil {
		return false, err
	}
	for i := range entries {
		if err := r.Apply(entries[i]); err != nil {
			return false, err
		}
	}
	return true, nil
}

// Restore loads what the store holds into r, and tells whether that was anything. An error says
// which file is of no use and was put aside; r is then not Ready, and goes on with the log from
// what it has taken, which is all true, though it may be old.
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
		// The journal may begin before its checkpoint: a crash came between the two.
		err := r.Apply(entries[i])
		if errors.Is(err, errHole) { // what the reader knew at its end is not all here
			return true, s.discard(fmt.Errorf("%s: %w: %w", filepath.Join(s.dir, journalFile), ErrDamaged, err))
		}
		if err != nil {
			return true, fmt.Errorf("%s: %w", filepath.Join(s.dir, journalFile), err)
		}
	}
	r.markReady()
	return true, nil
}

// markReady lets a Replica vouch by what it has restored.
func (r *Replica) markReady() {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := *r.tip
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
	for len(data) >= recordHeader {
		if crc32.Checksum(data[:4], castagnoli) != binary.BigEndian.Uint32(data[4:]) {
			return nil, fmt.Errorf("%s: %w: the checksum of a record's length does not match", path, ErrDamaged)
		}
		n := binary.BigEndian.Uint32(data)
		if uint64(n) > uint64(len(data)-recordHeader) {
			break
		}
		rec := data[recordHeader : recordHeader+n]
		if crc32.Checksum(rec, castagnoli) != binary.BigEndian.Uint32(data[8:]) {
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
		data = data[recordHeader+n:]
	}
	return entries, nil
}

// Journal writes entries down before they count as applied; it is the Replica's Config.Journal.
// Before the first Save there is no journal to write to, and nothing to add it to. Where it cannot
// be written (a full disk), the store is given up until a Save succeeds: to apply a revocation is
// worth more than to be able to start without the bus, and an old store must not be started from.
func (s *Store) Journal(entries []bus.Entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.journal == nil && !s.saving {
		return nil
	}
	var buf []byte
	for i := range entries {
		rec, err := encodeRecord(&entries[i])
		if err != nil {
			return err
		}
		if s.saving {
			s.since = append(s.since, record{entries[i].Position, rec})
		}
		buf = append(buf, rec...)
	}
	if s.journal == nil {
		return nil
	}
	// What does not follow (the replica took a checkpoint, or the log was begun anew) is written
	// all the same: read back, it says that something is missing.
	first := entries[0].Position
	s.gap = s.gap || first.Epoch != s.last.Epoch || first.Seq != s.last.Seq+1
	s.last = entries[len(entries)-1].Position
	n, err := s.journal.Write(buf)
	s.size += int64(n)
	if err != nil {
		return s.abandonLocked(fmt.Errorf("writing %s: %w", s.journal.Name(), err))
	}
	return nil
}

// abandonLocked removes what is on disk, which is about to be behind what is applied. Only if that
// fails is it an error.
func (s *Store) abandonLocked(cause error) error {
	s.journal.Close()
	s.journal, s.saving = nil, false
	for _, name := range []string{checkpointFile, journalFile} {
		if err := os.Remove(filepath.Join(s.dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w; and removing the store failed: %w", cause, err)
		}
	}
	return nil
}

func encodeRecord(en *bus.Entry) ([]byte, error) {
	body, err := bus.Encode(en.Fact)
	if err != nil {
		return nil, err
	}
	rec, err := json.Marshal(journaled{en.Epoch, en.Seq, en.Chain, en.Fact.Kind(), body})
	if err != nil {
		return nil, fmt.Errorf("writing the journal: %w", err)
	}
	buf := binary.BigEndian.AppendUint32(make([]byte, 0, recordHeader+len(rec)), uint32(len(rec)))
	buf = binary.BigEndian.AppendUint32(buf, crc32.Checksum(buf[:4], castagnoli))
	buf = binary.BigEndian.AppendUint32(buf, crc32.Checksum(rec, castagnoli))
	return append(buf, rec...), nil
}

// Save writes a new checkpoint of r and begins the journal anew. Either file is replaced whole
// (temporary file, sync, rename), the checkpoint first: a crash between leaves a journal whose
// older entries are passed over. One Save at a time. A Replica that is not Ready is not saved.
func (s *Store) Save(r *Replica) error {
	if snap := r.Snapshot(); !snap.Ready || snap.Position == (bus.Position{}) {
		return nil // who starts from half of the log would vouch by half of it
	}
	s.mu.Lock()
	s.saving, s.since = true, nil
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.saving, s.since = false, nil
		s.mu.Unlock()
	}()
	img, at, err := r.Image()
	if err != nil {
		return err
	}
	if err := s.replace(checkpointFile, img); err != nil {
		return err
	}
	return s.restartJournal(r, at)
}

// restartJournal begins a journal that holds what was applied behind the image.
func (s *Store) restartJournal(r *Replica, at bus.Cursor) error {
	r.mu.Lock() // nothing is applied meanwhile
	defer r.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.saving {
		return errors.New("writing the store: the journal failed meanwhile, and took the checkpoint with it")
	}
	var content []byte
	last, gap := at.Position, false
	for _, rec := range s.since {
		if last.Before(rec.at) {
			gap = gap || rec.at.Epoch != last.Epoch || rec.at.Seq != last.Seq+1
			content, last = append(content, rec.bytes...), rec.at
		}
	}
	if err := s.replace(journalFile, content); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(s.dir, journalFile), os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("beginning the journal: %w", err)
	}
	if s.journal != nil {
		s.journal.Close()
	}
	s.journal, s.size, s.begun, s.last, s.gap = f, int64(len(content)), time.Now(), last, gap
	return nil
}

// replace writes a file so that a reader sees the old content or the new, whole.
func (s *Store) replace(name string, content []byte) error {
	path := filepath.Join(s.dir, name)
	if err := WriteFile(path, append(bytes.Clone(s.preamble), content...)); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// Keep saves r whenever it is worth it, until ctx ends, and once more then: as soon as r is first
// ready, when the journal has become long or old, and when it no longer leads to what is applied.
// A failure is handed to failed, and tried again after a pause.
func (s *Store) Keep(ctx context.Context, r *Replica, failed func(error)) {
	var again time.Time
	for {
		changed := r.Changed()
		if s.due(r) && time.Now().After(again) {
			if err := s.Save(r); err != nil {
				failed(err)
				again = time.Now().Add(keepAgain)
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
	snap := r.Snapshot()
	if !snap.Ready {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.journal == nil || s.gap || s.last.Before(snap.Position) || s.size > journalLimit || time.Since(s.begun) > journalAge
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
