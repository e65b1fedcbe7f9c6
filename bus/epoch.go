package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// errSeen ends a look at the log.
var errSeen = errors.New("seen")

// Known is what an issuer knows of the log by its own disk: a *replica.Replica.
type Known interface {
	Cursor() Cursor                   // how far
	ChainAt(seq uint64) (Chain, bool) // the chain at an entry of that epoch; false: it is not remembered
	Time() time.Time                  // of the newest tick
}

// Lacks tells whether the log has lost entries that this issuer knows: the stream ends before them, or was made anew without what
// it held. The log has to be begun anew then (BeginAnew). ErrRollback: the log has other entries there; somebody put an old
// copy back and went on from it, and which of the two is right is for a person to say. Ask before anything is appended.
func (l *Log) Lacks(ctx context.Context, known Known) (bool, error) {
	at := known.Cursor()
	switch {
	case at.Position == (Position{}):
		return false, nil
	case l.unfounded:
		return true, nil
	case l.head.Epoch > at.Epoch:
		// Whoever begins a log anew writes a checkpoint of what it knows before anybody can append.
		m, _, err := l.manifest(ctx)
		if errors.Is(err, ErrNotFound) {
			return true, nil
		}
		return err == nil && m.Epoch < l.head.Epoch, err
	case l.head.Position.Before(at.Position):
		err := l.begins(ctx, known)
		return err == nil, err
	}
	err := l.Follow(ctx, at, func([]Entry, uint64) error { return errSeen })
	if errors.Is(err, errSeen) || errors.Is(err, ErrBehind) {
		return false, nil
	}
	return false, fmt.Errorf("comparing the log with what this issuer knew of it at entry %d: %w", at.Seq, err)
}

// begins refuses a log that ends before what this issuer knows and is not the beginning of that: another issuer, which knew less, has
// gone on with it since the loss, and what it acknowledged would be lost by beginning anew from here. Where the end lies too far
// back for its chain to be remembered, the log's newest tick tells: it is later than all that is known.
func (l *Log) begins(ctx context.Context, known Known) error {
	at := known.Cursor()
	if l.head.Seq == 0 {
		return nil
	}
	why := ""
	if chain, ok := known.ChainAt(l.head.Seq); ok && l.head.Epoch == at.Epoch {
		if chain != l.head.Chain {
			why = "its last entry is another one than this issuer knows there"
		}
	} else if t, err := l.newestTick(ctx); err != nil {
		return fmt.Errorf("comparing the log with what this issuer knew of it at entry %d: %w", at.Seq, err)
	} else if t.After(known.Time()) {
		why = fmt.Sprintf("it was written to at %s, after the last that this issuer knows", t.UTC().Format(time.RFC3339))
	}
	if why == "" {
		return nil
	}
	return fmt.Errorf("%w: it ends at entry %d, this issuer knows it up to %d, and %s: another issuer has gone on with an old copy; stop every issuer, run `sidekey bus begin-anew --yes` at the one whose entries shall count, and revoke again what was revoked at the other since",
		ErrRollback, l.head.Seq, at.Seq, why)
}

// newestTick is the time of the log's newest tick; zero: it has none.
func (l *Log) newestTick(ctx context.Context) (t time.Time, err error) {
	err = retry(ctx, func(ctx context.Context) error {
		raw, err := l.Reader.last(ctx, l.conn.subjects.logStream(), l.conn.subjects.log(KindTick))
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		fact, err := Decode(KindTick, raw.Data) // proven as the log was read up to its head
		if err == nil {
			t = fact.(*Tick).At()
		}
		return err
	})
	return t, err
}

// BeginAnew makes the log anew, under a later epoch, from the state that an issuer holds: the stream
// begins above every sequence ever seen, so that a receipt's sequence keeps its meaning, and behind a
// checkpoint of that state, so that nothing known is lost. image gives the state as of the cursor that
// it is told, held who may hold leases. No Log may be open on the connection's streams meanwhile, and
// OpenLog opens the new one.
func BeginAnew(ctx context.Context, c *Conn, cfg LogConfig, known Cursor, image func(Cursor) ([]byte, error), held []byte) (Position, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	stream := c.logStream(c.asMany(cfg.Replicas))
	last, err := c.lastSeq(ctx, stream.Name)
	if err != nil {
		return Position{}, err
	}
	// Not the very next sequence: an entry that this issuer has not seen may have been acknowledged.
	const gap = 1 << 20
	l := &Log{Reader: NewReader(c, cfg.Authority.Public()), cfg: cfg, head: Cursor{Chain: known.Chain, Position: Position{
		Epoch: max(uint64(cfg.Now().UnixMilli()), known.Epoch+1), Seq: max(known.Seq, last) + gap,
	}}}
	stream.FirstSeq = l.head.Seq + 1
	stream.Metadata = map[string]string{metaEpoch: strconv.FormatUint(l.head.Epoch, 10)}
	for _, other := range []jetstream.StreamConfig{c.checkpointStream(stream.Replicas), c.grantsStream(stream.Replicas)} {
		if _, err := c.ensureStream(ctx, other); err != nil { // they may be lost too, or not there yet
			return Position{}, fmt.Errorf("beginning the log anew: %w", err)
		}
	}
	err = retry(ctx, func(ctx context.Context) error {
		if err := c.js.DeleteStream(ctx, stream.Name); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			return err
		}
		_, err := c.js.CreateStream(ctx, stream)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			return fmt.Errorf("%w: an issuer that starts has made it, empty: %v", nats.ErrTimeout, err)
		}
		return err
	})
	if err == nil {
		err = l.found(ctx, image, held)
	}
	if err != nil {
		return Position{}, fmt.Errorf("beginning the log anew: %w", err)
	}
	return l.head.Position, nil
}

// found writes a new log's first entry, a tick, and the checkpoint that stands there. Until the latter
// is written the log is not founded: who finds it so begins it anew again.
func (l *Log) found(ctx context.Context, image func(Cursor) ([]byte, error), held []byte) error {
	p, err := l.prepare(&request{}, &Tick{Time: l.cfg.Now().UnixMilli(), Chain: l.head.Chain[:]}, l.head)
	if err != nil {
		return err
	}
	if _, err := l.conn.js.PublishMsg(ctx, p.msg, jetstream.WithExpectLastSequence(l.head.Seq)); err != nil {
		return err
	}
	l.head = Cursor{Position: p.at, Chain: l.head.Chain.next(p.signed)}
	img, err := image(l.head)
	if err != nil {
		return err
	}
	for range foundTries {
		if err := l.WriteCheckpoint(ctx, l.head, img, held); err != nil {
			return err
		}
		// An issuer that runs, and has not heard of this, may have written one of the old epoch at the same moment.
		m, _, err := l.manifest(ctx)
		if err != nil && !errors.Is(err, ErrNotFound) || err == nil && !m.Position.Before(l.head.Position) {
			return err
		}
	}
	return errors.New("another issuer writes checkpoints of the log that was lost; stop it")
}

// foundTries is how often a new log's checkpoint is written where another one comes in between.
const foundTries = 3

// HasLog tells whether there is a log, be it empty; opening one would make it.
func (c *Conn) HasLog(ctx context.Context) (there bool, err error) {
	err = retry(ctx, func(ctx context.Context) error {
		_, err := c.js.Stream(ctx, c.subjects.logStream())
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return nil
		}
		there = err == nil
		return err
	})
	if err != nil {
		return false, fmt.Errorf("looking at stream %s: %w", c.subjects.logStream(), err)
	}
	return there, nil
}

// lastSeq is a stream's last sequence, 0 where there is no such stream.
func (c *Conn) lastSeq(ctx context.Context, name string) (last uint64, err error) {
	err = retry(ctx, func(ctx context.Context) error {
		s, err := c.js.Stream(ctx, name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return nil
		}
		if err == nil {
			last = s.CachedInfo().State.LastSeq
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("looking at stream %s: %w", name, err)
	}
	return last, nil
}
