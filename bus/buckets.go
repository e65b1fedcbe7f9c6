package bus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/sidekey/sidekey/keyring"
)

// The state buckets. Issuers alone can read them.
const (
	BucketUsers    = "users"
	BucketSubjects = "subjects"
	BucketSessions = "sessions"
	BucketClients  = "clients"
	// BucketCredentials has API keys and opaque tokens, without their texts.
	BucketCredentials = "credentials"
	BucketKeys        = "keys"   // private keys
	BucketAgents      = "agents" // agents that joined: Member
	BucketIssuers     = "issuers"
	BucketJoins       = "joins" // join tokens: who they are for, and whether they are used
	// BucketDuties says which issuer does what one is enough for (lease.Duty). Nothing is lost with it.
	BucketDuties = "duties"
)

// Record is one record of a state bucket, opened. Revision is what Update and Delete compare: it
// changes with each write, and is never used twice.
type Record struct {
	Name     string
	Value    []byte
	Revision uint64
}

// Bucket is a NATS KV bucket in which every record is sealed, bound to its bucket, its name and its
// version, so that the bus can neither read one, nor write one, nor put one in another's place. A
// value on the bus is
//
//	0x01 | version, 8 bytes | box
//
// where the version counts the record's writes and box is keyring.Sealer's, with bucket, name and
// version as associated data. Names are made with Name. All methods may be called at any time from
// any goroutine; each is tried again for some seconds while the bus does not answer.
type Bucket struct {
	name     string
	conn     *Conn
	kv       jetstream.KeyValue
	stream   jetstream.Stream
	sealer   *keyring.Sealer
	prefix   string // of the stream's subjects
	versions *versions
}

const recordFormat = 0x01

// MaxName is the greatest length of a record's name. A longer subject would have the server close
// the connection of the issuer that uses it.
const MaxName = 3072

// listPage is how many records List asks for at once; the server answers for at most 1024.
const listPage = 256

// markerTTL is how long the server keeps the marker that a deletion leaves.
const markerTTL = time.Minute

// OpenBucket opens a bucket, and makes it where it is absent.
func OpenBucket(ctx context.Context, c *Conn, name string, master *keyring.MasterKey, replicas int) (*Bucket, error) {
	full := c.subjects.bucket(name)
	b := &Bucket{name: name, conn: c, versions: newVersions(), sealer: master.Sealer("bucket " + name), prefix: "$KV." + full + "."}
	err := retry(ctx, func(ctx context.Context) (err error) {
		b.kv, err = c.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: full, Description: "sidekey: sealed " + name, History: 1, Storage: jetstream.FileStorage, Replicas: c.asMany(replicas),
			LimitMarkerTTL: markerTTL,
		})
		if errors.Is(err, jetstream.ErrBucketExists) {
			b.kv, err = c.js.KeyValue(ctx, full)
		}
		if err != nil {
			return err
		}
		if b.stream, err = c.js.Stream(ctx, "KV_"+full); err == nil {
			_, err = c.raise(ctx, b.stream.CachedInfo().Config, replicas)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("opening bucket %s: %w", full, err)
	}
	return b, nil
}

// Get reads a record, or gives ErrNotFound. In a cluster the stream's leader is asked: a client that was
// answered by one issuer goes on at another at once. One that has lost its place without knowing may be
// late all the same: decide by Create, Update or Delete, never by a Get alone.
func (b *Bucket) Get(ctx context.Context, name string) (Record, error) {
	if err := b.checkName(name); err != nil {
		return Record{}, err
	}
	for tries := 1; ; tries++ {
		rec, err := b.get(ctx, name)
		if !errors.Is(err, ErrRollback) {
			return rec, err
		}
		if tries == staleReads {
			return Record{}, b.rolledBack(err)
		}
		if !sleep(ctx, staleReadWait) {
			return Record{}, errors.Join(ctx.Err(), err)
		}
	}
}

func (b *Bucket) get(ctx context.Context, name string) (Record, error) {
	var m *jetstream.RawStreamMsg
	err := retry(ctx, func(ctx context.Context) (err error) {
		m, err = b.last(ctx, name)
		return err
	})
	if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && isMarker(m) {
		return Record{}, b.absent(ctx, name)
	}
	if err != nil {
		return Record{}, fmt.Errorf("reading a record of bucket %s: %w", b.name, err)
	}
	version, value, err := b.open(name, m.Data)
	if err != nil {
		return Record{}, err
	}
	if err := b.judge(name, version, m.Sequence); err != nil {
		return Record{}, err
	}
	return Record{Name: name, Value: value, Revision: m.Sequence}, nil
}

// last reads the newest message under a name, or gives jetstream.ErrMsgNotFound.
func (b *Bucket) last(ctx context.Context, name string) (*jetstream.RawStreamMsg, error) {
	if b.conn.replicated() {
		return b.conn.leaderGet(ctx, b.stream.CachedInfo().Config.Name, b.prefix+name)
	}
	return b.stream.GetLastMsgForSubject(ctx, b.prefix+name)
}

// absent is ErrNotFound. Where another issuer has deleted the record it remembers that, by the marker:
// a reply without one may come from a replica that is late.
func (b *Bucket) absent(ctx context.Context, name string) error {
	if b.newest(name) == 0 {
		return ErrNotFound
	}
	marker, err := b.marker(ctx, name)
	if err != nil {
		return err
	}
	b.noteGone(name, marker)
	return ErrNotFound
}

// rolledBack says that, and has the guard refuse from here on.
func (b *Bucket) rolledBack(err error) error {
	if g := b.versions.guard; g != nil {
		g.trip(err)
	}
	return err
}

// Create writes a record that is not there, or gives ErrExists.
func (b *Bucket) Create(ctx context.Context, name string, value []byte) (uint64, error) {
	if err := b.checkName(name); err != nil {
		return 0, err
	}
	version, err := b.freshVersion(ctx)
	if err != nil {
		return 0, err
	}
	// Where a marker stands, the version is taken from its place.
	for behind := uint64(0); ; {
		rev, err := b.write(ctx, name, value, version, behind)
		if !errors.Is(err, ErrConflict) {
			return rev, err
		}
		marker, err := b.marker(ctx, name)
		if err != nil {
			return 0, err
		}
		if marker == 0 || marker == behind {
			return 0, ErrExists
		}
		behind, version = marker, max(version, marker+1)
	}
}

// marker gives the sequence of the marker that a deleted record has left; 0: the record is there, or
// nothing is.
func (b *Bucket) marker(ctx context.Context, name string) (uint64, error) {
	var m *jetstream.RawStreamMsg
	err := retry(ctx, func(ctx context.Context) (err error) {
		m, err = b.last(ctx, name)
		return err
	})
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("reading a record of bucket %s: %w", b.name, err)
	case isMarker(m):
		return m.Sequence, nil
	}
	return 0, nil
}

// isMarker tells a deletion from a record.
func isMarker(m *jetstream.RawStreamMsg) bool {
	return m.Header.Get("KV-Operation") != "" || m.Header.Get("Nats-Marker-Reason") != ""
}

// Once gives a record's value, and makes the record with what fresh gives where it is absent. Of
// several issuers that call it at once, one makes it and all get the same.
func (b *Bucket) Once(ctx context.Context, name string, fresh func() ([]byte, error)) ([]byte, error) {
	for {
		rec, err := b.Get(ctx, name)
		if !errors.Is(err, ErrNotFound) {
			return rec.Value, err
		}
		value, err := fresh()
		if err != nil {
			return nil, err
		}
		if _, err = b.Create(ctx, name, value); !errors.Is(err, ErrExists) {
			return value, err
		}
	}
}

// Update replaces the record that has this revision, or gives ErrConflict.
func (b *Bucket) Update(ctx context.Context, name string, value []byte, revision uint64) (uint64, error) {
	if err := b.checkName(name); err != nil {
		return 0, err
	}
	if revision == 0 { // which KV takes for "not there": no record has it
		return 0, ErrConflict
	}
	return b.write(ctx, name, value, revision+1, revision)
}

// Delete removes the record that has this revision, or gives ErrConflict.
func (b *Bucket) Delete(ctx context.Context, name string, revision uint64) error {
	if err := b.checkName(name); err != nil {
		return err
	}
	if revision == 0 { // which KV takes for "any": no record has it
		return ErrConflict
	}
	tried := 0
	err := retry(ctx, func(ctx context.Context) error {
		tried++
		return b.kv.Purge(ctx, name, jetstream.LastRevision(revision), jetstream.PurgeTTL(markerTTL))
	})
	switch {
	case wrongRevision(err):
		if tried > 1 {
			if m, gerr := b.last(ctx, name); errors.Is(gerr, jetstream.ErrMsgNotFound) || gerr == nil && isMarker(m) {
				b.note(name, revision+1, 0)
				return nil // our own first attempt, whose answer was lost
			}
		}
		return ErrConflict
	case err != nil:
		return fmt.Errorf("deleting a record of bucket %s: %w", b.name, err)
	}
	b.note(name, revision+1, 0) // the marker's place at least, and what comes next is above it
	return nil
}

func (b *Bucket) checkName(name string) error {
	if name == "" || len(name) > MaxName {
		return fmt.Errorf("using bucket %s: a name has 1 to %d bytes, not %d", b.name, MaxName, len(name))
	}
	return nil
}

// write is a compare-and-set whose answer may be lost: a conflict at the second attempt may be with
// our own first one, which then stands there byte for byte.
func (b *Bucket) write(ctx context.Context, name string, value []byte, version, revision uint64) (rev uint64, err error) {
	sealed := b.seal(name, version, value)
	tried := 0
	err = retry(ctx, func(ctx context.Context) (err error) {
		tried++
		rev, err = b.kv.Update(ctx, name, sealed, revision)
		return err
	})
	if !wrongRevision(err) {
		if err != nil {
			return 0, fmt.Errorf("writing a record of bucket %s: %w", b.name, err)
		}
		b.note(name, version, rev)
		return rev, nil
	}
	if tried > 1 {
		if now, err := b.last(ctx, name); err == nil && string(now.Data) == string(sealed) {
			b.note(name, version, now.Sequence)
			return now.Sequence, nil
		}
	}
	return 0, ErrConflict
}

func wrongRevision(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, jetstream.ErrKeyExists) || errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence
}

// List reads the records under a filter (see Matches), in no particular order. One that is written
// meanwhile is there or not, whole.
func (b *Bucket) List(ctx context.Context, filter string) ([]Record, error) {
	var recs []Record
	err := b.Each(ctx, filter, func(rec Record) error {
		recs = append(recs, rec)
		return nil
	})
	return recs, err
}

// Each is List for more than fits into memory: it calls fn with the records, and returns its error.
func (b *Bucket) Each(ctx context.Context, filter string, fn func(Record) error) error {
	return b.each(ctx, filter, func(m *jetstream.RawStreamMsg) error {
		name := strings.TrimPrefix(m.Subject, b.prefix)
		version, value, err := b.open(name, m.Data)
		if err != nil {
			return err
		}
		rec := Record{Name: name, Value: value, Revision: m.Sequence}
		if b.judge(name, version, m.Sequence) != nil {
			if rec, err = b.Get(ctx, name); errors.Is(err, ErrNotFound) { // it looks again, and says so
				return nil
			} else if err != nil {
				return err
			}
		}
		return fn(rec)
	})
}

// Count tells how many records stand under a filter.
func (b *Bucket) Count(ctx context.Context, filter string) (n int, err error) {
	err = b.each(ctx, filter, func(*jetstream.RawStreamMsg) error { n++; return nil })
	return n, err
}

// AtMost tells how many records stand under a filter, or more where some were deleted within the last minute. It reads
// names and no records, in one request.
func (b *Bucket) AtMost(ctx context.Context, filter string) (int, error) {
	subjects, err := b.subjects(ctx, filter)
	return len(subjects), err
}

// each calls fn with every message under a filter that is a record, and not the marker that a
// deletion leaves.
func (b *Bucket) each(ctx context.Context, filter string, fn func(*jetstream.RawStreamMsg) error) error {
	subjects, err := b.subjects(ctx, filter)
	if err != nil {
		return err
	}
	for page := range slices.Chunk(subjects, listPage) {
		var msgs []*jetstream.RawStreamMsg
		err := retry(ctx, func(ctx context.Context) (err error) {
			msgs, err = lastOf(ctx, b.conn, b.stream.CachedInfo().Config.Name, page)
			return err
		})
		if err != nil {
			return fmt.Errorf("listing bucket %s: %w", b.name, err)
		}
		if msgs, err = b.complete(ctx, page, msgs); err != nil {
			return fmt.Errorf("listing bucket %s: %w", b.name, err)
		}
		for _, m := range msgs {
			if isMarker(m) {
				b.noteGone(strings.TrimPrefix(m.Subject, b.prefix), m.Sequence)
				continue
			}
			if err := fn(m); err != nil {
				return err
			}
		}
	}
	return nil
}

// complete asks the leader for what a replica that is late has not: the names are the leader's.
func (b *Bucket) complete(ctx context.Context, page []string, msgs []*jetstream.RawStreamMsg) ([]*jetstream.RawStreamMsg, error) {
	if !b.conn.replicated() || len(msgs) == len(page) {
		return msgs, nil
	}
	have := make(map[string]bool, len(msgs))
	for _, m := range msgs {
		have[m.Subject] = true
	}
	for _, subject := range page {
		if have[subject] {
			continue
		}
		var m *jetstream.RawStreamMsg
		err := retry(ctx, func(ctx context.Context) (err error) {
			m, err = b.last(ctx, strings.TrimPrefix(subject, b.prefix))
			return err
		})
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue // deleted since
		}
		if err != nil {
			return nil, err
		}
		msgs = append(msgs, m)
	}
	return msgs, nil
}

// subjects asks the server for the subjects under a filter, of records and of markers.
func (b *Bucket) subjects(ctx context.Context, filter string) ([]string, error) {
	if filter == "" {
		filter = ">"
	}
	var info *jetstream.StreamInfo
	err := retry(ctx, func(ctx context.Context) (err error) {
		info, err = b.stream.Info(ctx, jetstream.WithSubjectFilter(b.prefix+filter))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listing bucket %s: %w", b.name, err)
	}
	return slices.Collect(maps.Keys(info.State.Subjects)), nil
}

func (b *Bucket) seal(name string, version uint64, value []byte) []byte {
	out := append(make([]byte, 0, 9+64+len(value)), recordFormat)
	out = binary.BigEndian.AppendUint64(out, version)
	return append(out, b.sealer.Seal(value, []byte(b.name), []byte(name), out[1:9])...)
}

func (b *Bucket) open(name string, sealed []byte) (version uint64, value []byte, err error) {
	if len(sealed) < 9 || sealed[0] != recordFormat {
		return 0, nil, fmt.Errorf("reading record %s of bucket %s: %w: it was not written by an issuer", name, b.name, ErrForged)
	}
	value, err = b.sealer.Open(sealed[9:], []byte(b.name), []byte(name), sealed[1:9])
	if err != nil {
		return 0, nil, fmt.Errorf("reading record %s of bucket %s: %w: it was not sealed under this master key, or for another place", name, b.name, ErrForged)
	}
	return binary.BigEndian.Uint64(sealed[1:]), value, nil
}
