package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/nats-io/nats.go/jetstream"
)

// Guard keeps, on an issuer's own disk, how far every state bucket had come when this issuer last saw
// it (DESIGN §4.6): the bus cannot read or write a record, but its owner can put an old disk back. The
// file is a JSON object of bucket names and revisions:
//
//	{"sessions": 412, "users": 17}
//
// Beside it, seenRecords keeps the newest version of single records. Both are written at most once a
// second and at the end, so they may be a second behind, never ahead.
type Guard struct {
	path    string
	log     func(error) // called once, at the first rollback
	records *seenRecords

	disk    sync.Mutex // one write of the files at a time, or an older one could come last
	mu      sync.Mutex
	high    map[string]uint64
	err     error
	changed chan struct{} // holds one while there is something to write
}

// OpenGuard reads the file; absent, nothing is known. rolledBack is called once, if a bucket is found
// to be behind while this process uses it.
func OpenGuard(path string, rolledBack func(error)) (*Guard, error) {
	g := &Guard{path: path, log: rolledBack, high: make(map[string]uint64), changed: make(chan struct{}, 1)}
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		// It was removed as the refusal of a rollback says: what is known of single records goes with it.
		if err = os.Remove(path + recordsSuffix); errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	} else if err == nil {
		err = json.Unmarshal(text, &g.high)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the revisions that were seen, %s: %w; if you know that no old state was put back on the bus, remove the file", path, err)
	}
	if err := g.errDamaged(); err != nil {
		return nil, err
	}
	g.records, err = openRecords(path + recordsSuffix)
	return g, err
}

// Err tells whether a bucket was rolled back: then nothing that it holds may be believed.
func (g *Guard) Err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// guardWarn is the time between two words about a file that cannot be written.
const guardWarn = time.Minute

// Run writes the file as buckets move, until ctx ends. What cannot be written now (the disk is full) is tried again and again, and failed is
// told: the file may be behind, and what this process has seen itself it goes by all the same.
func (g *Guard) Run(ctx context.Context, failed func(error)) error {
	var told time.Time
	for {
		select {
		case <-g.changed:
		case <-ctx.Done():
			return g.Close()
		}
		if err := g.write(); err != nil {
			if g.wake(); time.Since(told) > guardWarn {
				told = time.Now()
				failed(err)
			}
		}
		if !sleep(ctx, time.Second) {
			return g.Close()
		}
	}
}

// Close writes what is known now. It may be called twice.
func (g *Guard) Close() error { return g.write() }

// write replaces the files. The revisions go first: records without them are forgotten at the next start.
func (g *Guard) write() error {
	g.disk.Lock()
	defer g.disk.Unlock()
	g.mu.Lock()
	text, err := json.Marshal(g.high)
	g.mu.Unlock()
	if err == nil {
		err = WriteFile(g.path, append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("writing the revisions that were seen: %w", err)
	}
	return g.records.write()
}

func (g *Guard) note(bucket string, revision uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if revision <= g.high[bucket] {
		return
	}
	g.high[bucket] = revision
	g.wake()
}

// seen gives how far a bucket had come; 0: nothing is known of it.
func (g *Guard) seen(bucket string) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.high[bucket]
}

// noteRecord remembers a record's version, where its bucket is kept.
func (g *Guard) noteRecord(bucket, name string, version uint64) {
	if g.records.note(bucket, name, version) {
		g.wake()
	}
}

// wake has the files written soon.
func (g *Guard) wake() {
	select {
	case g.changed <- struct{}{}:
	default:
	}
}

// trip refuses from here on.
func (g *Guard) trip(err error) {
	g.mu.Lock()
	first := g.err == nil
	if first {
		g.err = err
	}
	g.mu.Unlock()
	if first && g.log != nil {
		g.log(err)
	}
}

// putBack is an ErrRollback of a bucket, in its own words.
type putBack string

func (e putBack) Error() string        { return string(e) }
func (e putBack) Is(target error) bool { return target == ErrRollback }

// check compares a bucket with what was seen of it before.
func (g *Guard) check(bucket string, last uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if seen := g.high[bucket]; last < seen {
		return putBack(fmt.Sprintf("bucket %s stands at revision %d, and this issuer has seen %d: an old state was put back on the bus; put the newer one back, or, if you restored a backup on purpose, remove %s", bucket, last, seen, g.path))
	}
	return nil
}

// Bounds of what a Bucket remembers.
const (
	rememberedRecords = 16384         // newest versions seen, by name
	lastSeqAge        = markerTTL / 2 // of what is known of the stream's end
	staleReads        = 5             // reads of an older version, before it is called a rollback:
	staleReadWait     = shorterWait   // a replica that answers may be late
)

// versions is what a process knows of a bucket's records: a record may come with a later version
// than that, never with an earlier one.
type versions struct {
	guard *Guard // nil: no bucket is compared over a restart
	seen  *lru.Cache[string, uint64]

	mu   sync.Mutex
	last uint64 // sequence of the stream, as of
	at   time.Time
}

func newVersions() *versions {
	seen, err := lru.New[string, uint64](rememberedRecords)
	if err != nil {
		panic("bus: " + err.Error()) // the size is a constant above 0
	}
	return &versions{seen: seen}
}

// Watch compares the bucket with what this issuer has seen before, and keeps what it sees from here
// on. ErrRollback: it is behind. Another error may be that the bus has lost records to its disk: from then on nothing is opened until an
// operator has decided what is to become of that.
func (b *Bucket) Watch(ctx context.Context, g *Guard) error {
	last, err := b.lastSeq(ctx)
	if err != nil {
		return err
	}
	if err := g.check(b.name, last); err != nil {
		return err
	}
	lost, err := b.lost(ctx)
	if err != nil {
		return err
	}
	if lost != nil {
		return g.noteDamaged(b.name, lost)
	}
	b.versions.guard = g
	g.note(b.name, last)
	return nil
}

// lastSeq asks for the stream's last sequence.
func (b *Bucket) lastSeq(ctx context.Context) (uint64, error) {
	var info *jetstream.StreamInfo
	err := retry(ctx, func(ctx context.Context) (err error) {
		info, err = b.stream.Info(ctx)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("reading the state of bucket %s: %w", b.name, err)
	}
	v := b.versions
	v.mu.Lock()
	defer v.mu.Unlock()
	v.last, v.at = max(v.last, info.State.LastSeq), time.Now()
	return info.State.LastSeq, nil
}

// freshVersion is above every version that a record which is now gone can have had. Versions are
// below their revisions; what is gone left a marker for longer than lastSeqAge, so a sequence that
// old, where there is no marker, is behind all of them.
func (b *Bucket) freshVersion(ctx context.Context) (uint64, error) {
	v := b.versions
	v.mu.Lock()
	last, fresh := v.last, time.Since(v.at) < lastSeqAge
	v.mu.Unlock()
	if fresh {
		return last + 1, nil
	}
	last, err := b.lastSeq(ctx)
	return last + 1, err
}

// note remembers a version that was written or read at a revision.
func (b *Bucket) note(name string, version, revision uint64) {
	v := b.versions
	if was, ok := v.seen.Peek(name); !ok || was < version {
		v.seen.Add(name, version)
	}
	if v.guard != nil {
		v.guard.noteRecord(b.name, name, version)
		v.guard.note(b.name, revision)
	}
}

// newest gives the lowest version that a record of this name may have now; 0: nothing is known of it.
func (b *Bucket) newest(name string) uint64 {
	was, _ := b.versions.seen.Get(name)
	if g := b.versions.guard; g != nil {
		was = max(was, g.records.get(b.name, name))
	}
	return was
}

// noteGone remembers that nothing below a version may come back under a name that was seen. Of other
// names nothing is kept: the bus could make up any number of them.
func (b *Bucket) noteGone(name string, version uint64) {
	if b.newest(name) > 0 {
		b.note(name, version, 0)
	}
}

// judge refuses a record that is older than one that this issuer has seen under its name, or than
// its own place: somebody put it there again.
func (b *Bucket) judge(name string, version, revision uint64) error {
	was := b.newest(name)
	if version <= revision && was <= version {
		b.note(name, version, revision)
		return nil
	}
	why := fmt.Sprintf("record %s of bucket %s has version %d at revision %d, and version %d was there before: an old record was put back on the bus", name, b.name, version, revision, was)
	if g := b.versions.guard; g != nil {
		why += "; put the newer one back, or, if you put the old one there on purpose, stop this issuer and remove " + g.path
	}
	return putBack(why)
}
