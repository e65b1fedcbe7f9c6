package bustest

import (
	"bytes"
	"context"
	"fmt"
	"sort"
	"sync"

	"github.com/sidekey/sidekey/bus"
)

// Bucket is a state bucket in memory, with *bus.Bucket's contract. The zero value is empty.
type Bucket struct {
	mu       sync.Mutex
	records  map[string]bus.Record
	revision uint64
	failures []Failure
}

// Fail plants failures into the next writes, one each.
func (b *Bucket) Fail(f ...Failure) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures = append(b.failures, f...)
}

// Get is *bus.Bucket's.
func (b *Bucket) Get(_ context.Context, name string) (bus.Record, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	rec, ok := b.records[name]
	if !ok {
		return bus.Record{}, bus.ErrNotFound
	}
	rec.Value = bytes.Clone(rec.Value)
	return rec, nil
}

// Create is *bus.Bucket's.
func (b *Bucket) Create(_ context.Context, name string, value []byte) (uint64, error) {
	if name == "" || len(name) > bus.MaxName {
		return 0, fmt.Errorf("using a bucket: a name has 1 to %d bytes, not %d", bus.MaxName, len(name))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.records[name]; ok {
		return 0, bus.ErrExists
	}
	return b.writeLocked(name, value)
}

// Update is *bus.Bucket's.
func (b *Bucket) Update(_ context.Context, name string, value []byte, revision uint64) (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if rec, ok := b.records[name]; !ok || rec.Revision != revision {
		return 0, bus.ErrConflict
	}
	return b.writeLocked(name, value)
}

// Delete is *bus.Bucket's.
func (b *Bucket) Delete(_ context.Context, name string, revision uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if rec, ok := b.records[name]; !ok || rec.Revision != revision {
		return bus.ErrConflict
	}
	b.revision++
	delete(b.records, name)
	return nil
}

func (b *Bucket) writeLocked(name string, value []byte) (uint64, error) {
	var fail Failure
	if len(b.failures) > 0 {
		fail, b.failures = b.failures[0], b.failures[1:]
	}
	if fail.Err != nil && !fail.Stored {
		return 0, fail.Err
	}
	if b.records == nil {
		b.records = make(map[string]bus.Record)
	}
	b.revision++
	b.records[name] = bus.Record{Name: name, Value: bytes.Clone(value), Revision: b.revision}
	return b.revision, fail.Err
}

// List is *bus.Bucket's, ordered by name.
func (b *Bucket) List(_ context.Context, filter string) ([]bus.Record, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var recs []bus.Record
	for name, rec := range b.records {
		if bus.Matches(filter, name) {
			rec.Value = bytes.Clone(rec.Value)
			recs = append(recs, rec)
		}
	}
	sort.Slice(recs, func(i, j int) bool { return recs[i].Name < recs[j].Name })
	return recs, nil
}

// Count is *bus.Bucket's.
func (b *Bucket) Count(ctx context.Context, filter string) (int, error) {
	recs, err := b.List(ctx, filter)
	return len(recs), err
}

// AtMost is *bus.Bucket's.
func (b *Bucket) AtMost(ctx context.Context, filter string) (int, error) { return b.Count(ctx, filter) }
