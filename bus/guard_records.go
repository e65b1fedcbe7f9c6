package bus

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
)

// keptBuckets are those of whose records the newest version outlives the process: the owner of the bus
// could otherwise publish a single old one again, an old password or a used join token, once an issuer
// has started anew. They grow with what operators do; sessions are too many.
var keptBuckets = map[string]bool{
	BucketUsers: true, BucketSubjects: true, BucketAgents: true, BucketIssuers: true, BucketJoins: true, BucketKeys: true,
}

// recordsSuffix is what the file's name has behind that of the revisions.
const recordsSuffix = ".records"

// recordsMagic begins the file, and tells its format.
const recordsMagic = "sidekey\x02"

// seenRecords is the newest version of every record of keptBuckets that this issuer has seen, also of
// those that were deleted: such a one has the lowest version that may come after it. The file is
//
//	recordsMagic | salt, 16 bytes | { hash of bucket and name, 8 bytes | version, 8 bytes } … | SHA-256 of all before, 32 bytes
//
// The salt keeps who chooses names from choosing two with one hash, which would look like a rollback;
// the sum at the end keeps a version that the disk has turned into a greater one from looking like it.
type seenRecords struct {
	path string

	mu      sync.Mutex
	salt    [16]byte
	version map[[8]byte]uint64
	dirty   bool
}

// openRecords reads the file; absent, nothing is known.
func openRecords(path string) (*seenRecords, error) {
	s := &seenRecords{path: path, version: make(map[[8]byte]uint64)}
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		rand.Read(s.salt[:]) // never fails: crypto/rand ends the process instead
		return s, nil
	}
	if err == nil {
		err = s.parse(text)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the versions of records that were seen, %s: %w; if you know that no old state was put back on the bus, remove the file", path, err)
	}
	return s, nil
}

func (s *seenRecords) parse(text []byte) error {
	text, sum := text[:max(0, len(text)-sha256.Size)], text[max(0, len(text)-sha256.Size):]
	want := sha256.Sum256(text)
	rest, ok := bytes.CutPrefix(text, []byte(recordsMagic))
	if !ok || !bytes.Equal(sum, want[:]) || len(rest) < len(s.salt) || (len(rest)-len(s.salt))%16 != 0 {
		return errors.New("it is damaged")
	}
	for rest = rest[copy(s.salt[:], rest):]; len(rest) > 0; rest = rest[16:] {
		s.version[[8]byte(rest)] = binary.BigEndian.Uint64(rest[8:])
	}
	return nil
}

// write replaces the file where something has changed.
func (s *seenRecords) write() error {
	text := s.changes()
	if text == nil {
		return nil
	}
	if err := WriteFile(s.path, text); err != nil {
		s.mu.Lock()
		s.dirty = true
		s.mu.Unlock()
		return fmt.Errorf("writing the versions of records that were seen: %w", err)
	}
	return nil
}

// changes is the file's new content, and nil where it is as it was.
func (s *seenRecords) changes() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.dirty {
		return nil
	}
	s.dirty = false
	text := append(make([]byte, 0, len(recordsMagic)+len(s.salt)+16*len(s.version)+sha256.Size), recordsMagic...)
	text = append(text, s.salt[:]...)
	for hash, version := range s.version {
		text = binary.BigEndian.AppendUint64(append(text, hash[:]...), version)
	}
	sum := sha256.Sum256(text)
	return append(text, sum[:]...)
}

func (s *seenRecords) hash(bucket, name string) [8]byte {
	text := append(s.salt[:len(s.salt):len(s.salt)], bucket...)
	sum := sha256.Sum256(append(append(text, 0), name...))
	return [8]byte(sum[:])
}

// get gives the newest version seen of a record; 0: none.
func (s *seenRecords) get(bucket, name string) uint64 {
	if !keptBuckets[bucket] {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.version[s.hash(bucket, name)]
}

// note remembers a version, and tells whether it is news.
func (s *seenRecords) note(bucket, name string, version uint64) bool {
	if !keptBuckets[bucket] {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	hash := s.hash(bucket, name)
	if version <= s.version[hash] {
		return false
	}
	s.version[hash], s.dirty = version, true
	return true
}
