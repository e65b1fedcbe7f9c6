package bustest

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// Log is the log in memory: the same contract as *bus.Log, without NATS, signatures and disks.
// Make it with NewLog.
type Log struct {
	mu         sync.Mutex
	epoch      uint64
	entries    []bus.Entry // entries[i] has sequence first+i
	first      uint64
	grown      chan struct{}
	checkpoint []byte
	failures   []Failure
	now        func() time.Time
}

// Failure is a fault planted into the next Append: the two forms that a publish can fail in.
type Failure struct {
	Err    error
	Stored bool // the entry is stored all the same: only the acknowledgement was lost
}

// NewLog makes an empty log.
func NewLog() *Log {
	return &Log{epoch: 1, first: 1, grown: make(chan struct{}), now: time.Now}
}

// Fail plants failures into the next appends, one each.
func (l *Log) Fail(f ...Failure) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, f...)
}

// Append is *bus.Log's.
func (l *Log) Append(ctx context.Context, facts ...bus.Fact) (bus.Position, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.appendLocked(ctx, facts)
}

// AppendIf is *bus.Log's.
func (l *Log) AppendIf(ctx context.Context, kind bus.Kind, last uint64, fact bus.Fact) (bus.Position, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var newest uint64
	for _, en := range l.entries {
		if en.Fact.Kind() == kind {
			newest = en.Seq
		}
	}
	if newest > last {
		return bus.Position{}, bus.ErrConflict
	}
	return l.appendLocked(ctx, []bus.Fact{fact})
}

func (l *Log) appendLocked(ctx context.Context, facts []bus.Fact) (bus.Position, error) {
	if err := ctx.Err(); err != nil {
		return bus.Position{}, err
	}
	if len(facts) == 0 {
		return bus.Position{}, errors.New("appending to the log: there is nothing to append")
	}
	var fail Failure
	if len(l.failures) > 0 {
		fail, l.failures = l.failures[0], l.failures[1:]
	}
	if fail.Err != nil && !fail.Stored {
		return bus.Position{}, fail.Err
	}
	at := l.headLocked()
	for _, f := range facts {
		body, err := bus.Encode(f)
		if err != nil {
			return bus.Position{}, err
		}
		fact, err := bus.Decode(f.Kind(), body) // readers share nothing with the writer
		if err != nil {
			return bus.Position{}, err
		}
		at.Seq++
		at.Chain = nextChain(at.Chain, at.Seq, body)
		l.entries = append(l.entries, bus.Entry{Position: at.Position, Chain: at.Chain, Fact: fact})
	}
	close(l.grown)
	l.grown = make(chan struct{})
	return at.Position, fail.Err
}

// Tick appends a tick, as an issuer's *bus.Log does each second.
func (l *Log) Tick(ctx context.Context) (bus.Position, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	head := l.headLocked()
	return l.appendLocked(ctx, []bus.Fact{&bus.Tick{
		Time: l.now().UnixMilli(), Issuer: "memory", Head: head.Seq, Chain: head.Chain[:],
	}})
}

func (l *Log) headLocked() bus.Cursor {
	if n := len(l.entries); n > 0 {
		return l.entries[n-1].Cursor()
	}
	return bus.Cursor{Position: bus.Position{Epoch: l.epoch, Seq: l.first - 1}}
}

// Follow is *bus.Log's.
func (l *Log) Follow(ctx context.Context, after bus.Cursor, fn func([]bus.Entry, uint64) error) error {
	for first := true; ; first = false {
		entries, head, grown, err := l.read(after.Position)
		if err != nil {
			return err
		}
		if len(entries) > 0 || first {
			if err := fn(entries, head); err != nil {
				return err
			}
		}
		if len(entries) > 0 {
			after = entries[len(entries)-1].Cursor()
			continue
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (l *Log) read(after bus.Position) ([]bus.Entry, uint64, <-chan struct{}, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	head := l.headLocked()
	switch {
	case after.Epoch != 0 && after.Epoch < l.epoch:
		return nil, 0, nil, bus.ErrEpoch
	case after.Epoch > l.epoch, after.Epoch != 0 && after.Seq > head.Seq:
		return nil, 0, nil, bus.ErrRollback
	case after.Seq+1 < l.first:
		return nil, 0, nil, bus.ErrBehind
	}
	from := min(after.Seq+1-l.first, uint64(len(l.entries)))
	return l.entries[from:len(l.entries):len(l.entries)], head.Seq, l.grown, nil
}

// Checkpoint is *bus.Log's.
func (l *Log) Checkpoint(context.Context) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.checkpoint == nil {
		return nil, bus.ErrNotFound
	}
	return l.checkpoint, nil
}

// WriteCheckpoint is *bus.Log's, but for purging: see Purge.
func (l *Log) WriteCheckpoint(_ context.Context, _ bus.Cursor, image, _ []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.checkpoint = image
	return nil
}

// Purge forgets the entries up to seq.
func (l *Log) Purge(seq uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.entries) > 1 && l.first <= seq {
		l.entries = l.entries[1:]
		l.first++
	}
}

func nextChain(c bus.Chain, seq uint64, body []byte) bus.Chain {
	b := binary.BigEndian.AppendUint64(c[:], seq)
	return sha256.Sum256(append(b, body...))
}
