package bus

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"github.com/sidekey/sidekey/keyring"
)

// The headers that an entry carries beside its body.
const (
	headerEpoch     = "Sidekey-Epoch"
	headerSignature = "Sidekey-Signature" // base64url of Ed25519 over signedBytes
)

// Bounds of reading.
const (
	liveBuffer  = 8192            // messages between NATS and the reader; past it they are dropped, and read back
	batchSize   = 2000            // entries read back by one request
	batchBytes  = 4 << 20         // and their bytes
	batchWithin = 5 * time.Second // and its time
	silence     = 3 * time.Second // without even a tick: look whether something was missed
	remembered  = 4096            // entries whose hash is kept, to tell a redelivery from a fork
)

// Reader reads the log as an agent may: live from core NATS, and back by direct get, with no
// consumer and no other JetStream call. Any number of Follows may run at once.
type Reader struct {
	conn      *Conn
	authority keyring.AuthorityKey
	epoch     atomic.Uint64 // the latest proven: an earlier one is never believed again
}

// NewReader makes a Reader that believes what this authority signed.
func NewReader(c *Conn, authority keyring.AuthorityKey) *Reader {
	return &Reader{conn: c, authority: authority}
}

// message is an entry as NATS delivers it, proven or not.
type message struct {
	subject   string
	at        Position
	signature []byte
	body      []byte
	signed    []byte // what the signature covers
}

// reading is one Follow.
type reading struct {
	r      *Reader
	cursor Cursor
	tick   int64 // the newest tick's time
	recent [remembered]Chain
	fn     func([]Entry, uint64) error
}

// Follow calls fn with the entries behind after, in order and proven, and with the newest sequence
// known to exist, until ctx ends or fn fails, and returns that cause. fn is called once early even
// if there is nothing to read. Calls of fn do not overlap.
//
// It returns ErrBehind if the log was purged beyond after, ErrEpoch if the log was begun anew,
// ErrRollback if it shows less than or other than before, ErrForged or ErrUnknown at an entry that
// cannot be believed or understood; and any error of the connection. Try again after a pause.
func (r *Reader) Follow(ctx context.Context, after Cursor, fn func([]Entry, uint64) error) error {
	live := make(chan *nats.Msg, liveBuffer)
	sub, err := r.conn.nc.ChanSubscribe(r.conn.subjects.live(">"), live)
	if err != nil {
		return fmt.Errorf("subscribing to the live log: %w", err)
	}
	defer sub.Unsubscribe() //nolint:errcheck // the connection may be closed already
	rd := &reading{r: r, cursor: after, fn: fn}
	if err := rd.readBack(ctx, true); err != nil {
		return err
	}
	quiet := time.NewTimer(silence)
	defer quiet.Stop()
	for {
		select {
		case m := <-live:
			if err := rd.live(ctx, m); err != nil {
				return err
			}
		case <-quiet.C:
			if err := rd.readBack(ctx, false); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		quiet.Reset(silence)
	}
}

// live takes one republished message: the next entry is taken as it is, a gap is read back, and so
// is whatever core NATS carries without the authority's signature: only the stream's word counts.
func (rd *reading) live(ctx context.Context, m *nats.Msg) error {
	msg, err := parseMessage(m.Header.Get(jetstream.SubjectHeader), m.Header.Get(jetstream.SequenceHeader), m.Header, m.Data)
	if err != nil || !rd.r.proven(msg) {
		rd.r.conn.log.Warn("ignoring an unsigned message on the live log, reading back", "subject", m.Subject)
		return rd.readBack(ctx, false)
	}
	switch {
	case msg.at.Epoch < rd.cursor.Epoch:
		return nil // replayed from before the log was begun anew
	case msg.at.Epoch > rd.cursor.Epoch && rd.cursor.Epoch != 0:
		return fmt.Errorf("%w: %d after %d", ErrEpoch, msg.at.Epoch, rd.cursor.Epoch)
	case msg.at.Seq <= rd.cursor.Seq:
		return rd.again(msg)
	case msg.at.Seq > rd.cursor.Seq+1:
		return rd.readBack(ctx, false)
	}
	entry, err := rd.accept(msg)
	if err != nil {
		return err
	}
	return rd.deliver([]Entry{entry})
}

// again judges an entry at a sequence that is applied already: the same one redelivered, or proof
// that the log was rolled back and written anew.
func (rd *reading) again(msg message) error {
	if rd.cursor.Seq-msg.at.Seq >= remembered {
		return nil
	}
	was := rd.recent[msg.at.Seq%remembered]
	if was == (Chain{}) || was == (Chain{}).next(msg.signed) {
		return nil
	}
	return fmt.Errorf("%w: entry %d is not what it was", ErrRollback, msg.at.Seq)
}

// readBack reads from the cursor to the stream's end. first: fn is called even if there is nothing.
func (rd *reading) readBack(ctx context.Context, first bool) error {
	for {
		batch, more, err := rd.r.batch(ctx, rd.cursor.Seq+1)
		if err != nil {
			return err
		}
		entries, err := rd.acceptBatch(batch)
		if err != nil {
			return err
		}
		if len(entries) > 0 || first {
			if err := rd.deliver(entries); err != nil {
				return err
			}
			first = false
		}
		if !more {
			return nil
		}
	}
}

// batch reads entries by direct get, from sequence seq on. more: there are others behind them.
func (r *Reader) batch(ctx context.Context, seq uint64) (batch []message, more bool, err error) {
	bctx, cancel := context.WithTimeout(ctx, batchWithin)
	defer cancel()
	stream := r.conn.subjects.logStream()
	msgs, err := jetstreamext.GetBatch(bctx, r.conn.js, stream, batchSize, jetstreamext.GetBatchSeq(seq), jetstreamext.GetBatchMaxBytes(batchBytes))
	if err != nil {
		return nil, false, fmt.Errorf("reading the log back from entry %d: %w", seq, err)
	}
	for m, err := range msgs {
		if errors.Is(err, jetstreamext.ErrNoMessages) {
			return batch, false, nil
		}
		if err != nil {
			return nil, false, fmt.Errorf("reading the log back from entry %d: %w", seq, err)
		}
		if m.Sequence != seq+uint64(len(batch)) {
			if len(batch) == 0 {
				return nil, false, fmt.Errorf("%w: entry %d is gone, the first held is %d", ErrBehind, seq, m.Sequence)
			}
			return batch, true, nil // a piece was lost on the way: ask again from there
		}
		msg, err := parseMessage(m.Subject, strconv.FormatUint(m.Sequence, 10), m.Header, m.Data)
		if err != nil {
			return nil, false, err
		}
		batch = append(batch, msg)
		more = m.Header.Get("Nats-Num-Pending") != "0"
	}
	return batch, more, nil
}

// acceptBatch proves a batch. A signature costs fifty times a hash, so entries that a proven tick
// is chained behind are proven by it, and only those behind the last tick by their own.
func (rd *reading) acceptBatch(batch []message) ([]Entry, error) {
	entries := make([]Entry, 0, len(batch))
	proven := rd.provenByTick(batch)
	for i, msg := range batch {
		if i >= proven && !rd.r.proven(msg) {
			return nil, fmt.Errorf("%w: entry %d (%s)", ErrForged, msg.at.Seq, msg.subject)
		}
		switch {
		case rd.cursor.Epoch == 0 && msg.at.Epoch >= rd.r.epoch.Load():
			rd.cursor.Epoch = msg.at.Epoch
		case msg.at.Epoch > rd.cursor.Epoch:
			return nil, fmt.Errorf("%w: %d after %d", ErrEpoch, msg.at.Epoch, rd.cursor.Epoch)
		case msg.at.Epoch < rd.cursor.Epoch:
			return nil, fmt.Errorf("%w: entry %d is of epoch %d, before %d", ErrRollback, msg.at.Seq, msg.at.Epoch, rd.cursor.Epoch)
		}
		entry, err := rd.accept(msg)
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry)
	}
	return entries, nil
}

// provenByTick gives how many messages of the batch stand before a tick that is signed and has
// their chain, that tick included.
func (rd *reading) provenByTick(batch []message) int {
	last := -1
	for i, msg := range batch {
		if msg.subject == rd.r.conn.subjects.log(KindTick) {
			last = i
		}
	}
	if last < 0 || !rd.r.proven(batch[last]) {
		return 0
	}
	fact, err := Decode(KindTick, batch[last].body)
	if err != nil {
		return 0
	}
	chain := rd.cursor.Chain
	for _, msg := range batch[:last] {
		chain = chain.next(msg.signed)
	}
	if !equal(fact.(*Tick).Chain, chain) {
		return 0
	}
	return last + 1
}

// accept takes a proven message as the next entry, if a tick's chain agrees with ours.
func (rd *reading) accept(msg message) (Entry, error) {
	kind := kindOf(msg.subject)
	if msg.subject != rd.r.conn.subjects.log(kind) {
		return Entry{}, fmt.Errorf("%w: entry %d has the subject %q", ErrUnknown, msg.at.Seq, msg.subject)
	}
	fact, err := Decode(kind, msg.body)
	if err != nil {
		return Entry{}, fmt.Errorf("entry %d: %w", msg.at.Seq, err)
	}
	if t, ok := fact.(*Tick); ok {
		if t.Head != rd.cursor.Seq || !equal(t.Chain, rd.cursor.Chain) {
			return Entry{}, fmt.Errorf("%w: tick %d is chained to other entries than those read here up to %d", ErrRollback, msg.at.Seq, rd.cursor.Seq)
		}
		rd.tick = max(rd.tick, t.Time)
	}
	rd.cursor = Cursor{Position: msg.at, Chain: rd.cursor.Chain.next(msg.signed)}
	rd.recent[msg.at.Seq%remembered] = (Chain{}).next(msg.signed)
	return Entry{Position: msg.at, Chain: rd.cursor.Chain, Fact: fact}, nil
}

func (rd *reading) deliver(entries []Entry) error {
	if e := rd.cursor.Epoch; e > rd.r.epoch.Load() {
		rd.r.epoch.Store(e)
	}
	return rd.fn(entries, rd.cursor.Seq)
}

func (r *Reader) proven(m message) bool { return r.authority.Verify(m.signed, m.signature) }

// parseMessage reads an entry's headers. Nothing of it is believed yet.
func parseMessage(subject, seqText string, h nats.Header, body []byte) (message, error) {
	seq, err := strconv.ParseUint(seqText, 10, 64)
	if err != nil {
		return message{}, fmt.Errorf("%w: a message without a sequence on %q", ErrForged, subject)
	}
	epoch, err := strconv.ParseUint(h.Get(headerEpoch), 10, 64)
	if err != nil || epoch == 0 {
		return message{}, fmt.Errorf("%w: entry %d (%s) has no epoch", ErrForged, seq, subject)
	}
	sig, err := base64.RawURLEncoding.DecodeString(h.Get(headerSignature))
	if err != nil {
		return message{}, fmt.Errorf("%w: entry %d (%s) has an unreadable signature", ErrForged, seq, subject)
	}
	at := Position{Epoch: epoch, Seq: seq}
	return message{subject: subject, at: at, signature: sig, body: body, signed: signedBytes(subject, at, body)}, nil
}

func equal(b []byte, c Chain) bool { return string(b) == string(c[:]) }

// kindOf is the last part of an entry's subject.
func kindOf(subject string) Kind { return Kind(subject[strings.LastIndexByte(subject, '.')+1:]) }
