package replica

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// Log is where a Replica reads.
type Log interface {
	// Follow calls fn with the entries behind after, in order, and with the newest sequence known
	// to exist, until ctx ends or fn fails, and returns that cause. fn is called once early even
	// if there is nothing to read, with no entries and the head; it may be so again at any time. Every entry is proven before fn
	// sees it. bus.ErrBehind and bus.ErrEpoch mean: take the newest checkpoint first.
	Follow(ctx context.Context, after bus.Cursor, fn func(entries []bus.Entry, head uint64) error) error
	// Checkpoint gives the newest image, proven, or bus.ErrNotFound.
	Checkpoint(ctx context.Context) ([]byte, error)
}

// Pauses between attempts to follow: from the first, doubling up to the last, each with jitter.
const (
	firstPause = 50 * time.Millisecond
	lastPause  = 2 * time.Second
)

// How long a turn of Follow may take: reading and applying some entries, or waiting for the next; and reading a whole
// checkpoint, over whatever line.
const (
	turnWithin       = time.Minute
	checkpointWithin = 30 * time.Minute
)

// Follow keeps the Replica at the log's head until ctx ends, whatever happens to the log: an
// interruption is retried, a reader left behind takes the newest checkpoint, a log begun anew is
// read from its checkpoint. What cannot be mended by trying again (a forged entry, a rollback) is
// tried again too, and shows in Fault.
func (r *Replica) Follow(ctx context.Context, log Log) error {
	pause := firstPause
	for {
		r.alive(turnWithin)
		before := r.read().Position
		err := r.followOnce(ctx, log)
		if ctx.Err() != nil {
			return nil
		}
		r.note(err)
		if before.Before(r.read().Position) {
			pause = firstPause
		}
		select {
		case <-time.After(pause/2 + rand.N(pause/2)):
		case <-ctx.Done():
			return nil
		}
		pause = min(2*pause, lastPause)
	}
}

// followOnce reads until something ends it, beginning with the checkpoint where that is the way on.
func (r *Replica) followOnce(ctx context.Context, log Log) error {
	if r.read().Position == (bus.Position{}) {
		if err := r.takeCheckpoint(ctx, log); err != nil && !errors.Is(err, bus.ErrNotFound) {
			return err
		}
	}
	err := log.Follow(ctx, r.read(), r.take)
	switch {
	case errors.Is(err, bus.ErrBehind):
		before := r.read().Position
		if cerr := r.takeCheckpoint(ctx, log); cerr != nil {
			return errors.Join(err, cerr)
		}
		if !before.Before(r.read().Position) {
			return fmt.Errorf("%w, and the newest checkpoint is not ahead of it", err)
		}
		return nil
	case errors.Is(err, bus.ErrEpoch):
		r.cfg.Logger.Warn("the log was begun anew, reading it whole", "after_seq", r.Snapshot().Position.Seq)
		r.restart()
		return nil // and begin with its checkpoint
	}
	return err
}

func (r *Replica) alive(within time.Duration) {
	if r.cfg.Alive != nil {
		r.cfg.Alive(within)
	}
}

// take is what the log calls with entries.
func (r *Replica) take(entries []bus.Entry, head uint64) error {
	r.alive(turnWithin)
	at := r.read().Seq
	if len(entries) > 0 {
		at = entries[len(entries)-1].Seq
	}
	err := r.apply(entries, head, at >= head)
	if err == nil && r.fault.Load() != nil {
		r.fault.Store(nil)
	}
	return err
}

func (r *Replica) takeCheckpoint(ctx context.Context, log Log) error {
	r.alive(checkpointWithin)
	defer r.alive(turnWithin)
	img, err := log.Checkpoint(ctx)
	if err != nil {
		return fmt.Errorf("reading the newest checkpoint: %w", err)
	}
	return r.Load(img)
}

// restart gives up the position, so that the log can be read from its beginning. Keys and credentials go,
// since the new log names them all; revocations stay until they expire, since it may lack some. The
// Replica is not Ready again until it has read up to the new head.
func (r *Replica) restart() {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.tip
	clear(r.keys)
	r.head.Store(0)
	r.publish(&Snapshot{Ring: keyring.NewRing(old.Ring.Issuer(), old.Ring.Audience()), TickTime: old.TickTime})
	r.credentials.clear() // behind it: who still goes by what was Ready finds them
}

// note logs why following ended, and keeps what an operator must see as the Fault.
func (r *Replica) note(err error) {
	switch {
	case err == nil:
		return
	case errors.Is(err, bus.ErrForged), errors.Is(err, bus.ErrUnknown), errors.Is(err, bus.ErrRollback), errors.Is(err, bus.ErrBehind), errors.Is(err, ErrDamaged):
		r.fault.Store(&err)
		r.cfg.Logger.Error("not applying the log", "after_seq", r.Snapshot().Position.Seq, "error", err)
	default:
		r.cfg.Logger.Warn("log interrupted, retrying", "after_seq", r.Snapshot().Position.Seq, "error", err)
	}
}
