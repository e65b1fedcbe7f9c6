package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"github.com/sidekey/sidekey/keyring"
)

// Bounds of reading.
const (
	heldBack    = 10_000                 // entries that wait for a tick to prove them
	liveBuffer  = 8192                   // messages between NATS and the reader; past it they are dropped, and read back
	batchSize   = 2000                   // entries read back by one request
	batchBytes  = 4 << 20                // and their bytes
	batchWithin = 5 * time.Second        // and its time
	silence     = 3 * time.Second        // without progress: look whether something was missed
	lookEvery   = time.Second            // what proves nothing may make a reader look at the stream so often
	shorter     = 5                      // looks at a stream that ends before the cursor, before it is called a rollback:
	shorterWait = 200 * time.Millisecond // a replica that answers may be late
)

// Reader reads the log as an agent may: live from core NATS, and back by direct get, with no
// consumer and no other JetStream call. Any number of Follows may run at once.
type Reader struct {
	conn      *Conn
	authority keyring.AuthorityKey
	epoch     atomic.Uint64 // the latest proven: an earlier one is never believed again
	seen      history
}

// NewReader makes a Reader that believes what this authority signed.
func NewReader(c *Conn, authority keyring.AuthorityKey) *Reader {
	return &Reader{conn: c, authority: authority}
}

// reading is one Follow.
type reading struct {
	r      *Reader
	cursor Cursor
	fn     func([]Entry, uint64) error
	looked time.Time // when something unproven last made us look at the stream
}

// Follow calls fn with the entries behind after, in order and proven, and with the newest sequence
// known to exist, until ctx ends or fn fails, and returns that cause. fn is called once early even
// if there is nothing to read, and after each silence. Calls of fn do not overlap.
//
// It returns ErrBehind if the log was purged beyond after, ErrEpoch if the log was begun anew,
// ErrRollback if it shows less than or other than before, ErrForged or ErrUnknown at an entry that
// cannot be believed or understood, the entries before it having been handed to fn; and any error
// of the connection. Try again after a pause.
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
	quiet := time.NewTimer(silence + rand.N(silence/3))
	defer quiet.Stop()
	for {
		was := rd.cursor.Seq
		select {
		case m := <-live:
			if err := rd.live(ctx, m); err != nil {
				return err
			}
			if rd.cursor.Seq == was {
				continue // what brings nothing new does not end a silence
			}
		case <-quiet.C:
			if err := rd.readBack(ctx, true); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		quiet.Reset(silence + rand.N(silence/3)) // all readers have seen the last entry at the same moment
	}
}

// live takes one republished message: the next entry is taken as it is, a gap is read back. What
// core NATS carries without the authority's signature proves nothing: only the stream's word counts.
//
// Anybody who may read the log can have its answers sent here, over and over, by naming this subject
// for the reply. So what was read already is told by its hash, at a fiftieth of a signature's cost.
func (rd *reading) live(ctx context.Context, m *nats.Msg) error {
	msg, err := parseMessage(m.Header.Get(jetstream.SubjectHeader), m.Header.Get(jetstream.SequenceHeader), m.Header, m.Data)
	if err != nil {
		return rd.unproven(ctx, m)
	}
	if msg.at.Epoch < max(rd.cursor.Epoch, rd.r.epoch.Load()) {
		return nil // replayed from before the log was begun anew
	}
	var rollback error
	if msg.at.Epoch == rd.cursor.Epoch && msg.at.Seq <= rd.cursor.Seq {
		known, err := rd.r.seen.check(msg)
		if known {
			return nil
		}
		if err == nil {
			return rd.look(ctx) // from before this process, or of a log that was put back
		}
		rollback = err // if the authority has signed it
	}
	if !rd.r.proven(msg) {
		return rd.unproven(ctx, m)
	}
	switch {
	case rollback != nil:
		return rollback
	case msg.at.Epoch > rd.cursor.Epoch && rd.cursor.Epoch != 0:
		return rd.anew(msg)
	case msg.at.Seq <= rd.cursor.Seq:
		return rd.look(ctx)
	case msg.at.Seq > rd.cursor.Seq+1:
		return rd.readBack(ctx, false)
	}
	entry, err := rd.accept(msg)
	if err != nil {
		return err
	}
	return rd.deliver([]Entry{entry}, 0)
}

func (rd *reading) unproven(ctx context.Context, m *nats.Msg) error {
	rd.r.conn.log.Debug("ignoring an unsigned message on the live log", "subject", m.Subject)
	return rd.look(ctx)
}

// look reads back because of a message that proves nothing, but not at the pace at which anybody
// can send such messages.
func (rd *reading) look(ctx context.Context) error {
	if time.Since(rd.looked) < lookEvery {
		return nil
	}
	rd.looked = time.Now()
	return rd.readBack(ctx, false)
}

// anew notes a later epoch that is proven: from here on no earlier one is believed.
func (rd *reading) anew(msg message) error {
	rd.r.raise(msg.at.Epoch)
	return fmt.Errorf("%w: %d after %d", ErrEpoch, msg.at.Epoch, rd.cursor.Epoch)
}

func (r *Reader) raise(epoch uint64) {
	for was := r.epoch.Load(); epoch > was; was = r.epoch.Load() {
		if r.epoch.CompareAndSwap(was, epoch) {
			return
		}
	}
}

// readBack reads from the cursor to the stream's end. first: fn is called even if there is nothing.
// Entries behind a batch's last tick are held until the next tick proves them all at once, as long as
// there are more to come and not too many are held.
func (rd *reading) readBack(ctx context.Context, first bool) error {
	var held []message
	for {
		batch, pending, err := rd.next(ctx, held)
		if err != nil && !errors.Is(err, ErrForged) {
			return err
		}
		batch = append(held, batch...)
		proven := rd.provenByTick(batch)
		held = nil
		if err == nil && pending > 0 && len(batch)-proven <= heldBack {
			batch, held = batch[:proven], batch[proven:]
		}
		entries, aerr := rd.acceptBatch(batch, proven)
		if errors.Is(aerr, ErrRollback) {
			return aerr // those before are the fork's, as far as anybody knows
		}
		err = cmp.Or(aerr, err)
		if len(entries) > 0 || first && err == nil && pending == 0 {
			if ferr := rd.deliver(entries, pending+uint64(len(held))); ferr != nil {
				return ferr
			}
			first = false
		}
		if err != nil || pending == 0 {
			return err
		}
	}
}

// next reads the entries behind the cursor and those held, and tells how many are behind. It asks for the
// entry at the cursor as well: the log always holds its last entry, so a stream that has nothing
// from the cursor on was rolled back or begun anew.
func (rd *reading) next(ctx context.Context, held []message) ([]message, uint64, error) {
	last := rd.cursor.Seq
	from := max(last, 1)
	if n := len(held); n > 0 {
		last = held[n-1].at.Seq
		from = last + 1
	}
	for tries := 1; ; tries++ {
		batch, pending, err := rd.r.batch(ctx, from)
		if err != nil {
			return nil, 0, err
		}
		switch {
		case len(batch) > 0 && batch[0].at.Seq == rd.cursor.Seq:
			if err := rd.same(batch[0]); err != nil {
				return nil, 0, err
			}
			if batch = batch[1:]; len(batch) == 0 && pending > 0 {
				from = rd.cursor.Seq + 1 // whatever is there is the first now, and judged as such
				continue
			}
			return batch, pending, nil
		case len(batch) > 0 && batch[0].at.Seq > last+1:
			if msg := batch[0]; rd.cursor.Epoch != 0 && msg.at.Epoch > rd.cursor.Epoch && rd.r.proven(msg) {
				return nil, 0, rd.anew(msg)
			}
			return nil, 0, fmt.Errorf("%w: entry %d is gone, the first held is %d", ErrBehind, last+1, batch[0].at.Seq)
		case len(batch) > 0 || from > last:
			return batch, pending, nil
		case tries == shorter:
			return nil, 0, rd.shorter(ctx)
		case !sleep(ctx, shorterWait):
			return nil, 0, context.Cause(ctx)
		}
	}
}

// same checks the stream's entry at the cursor against the one that was applied.
func (rd *reading) same(msg message) error {
	switch {
	case msg.at.Epoch == rd.cursor.Epoch:
		_, err := rd.r.seen.check(msg)
		return err
	case !rd.r.proven(msg):
		return fmt.Errorf("%w: entry %d (%s)", ErrForged, msg.at.Seq, msg.subject)
	case msg.at.Epoch > rd.cursor.Epoch:
		return rd.anew(msg)
	}
	return fmt.Errorf("%w: entry %d is of epoch %d, before %d", ErrRollback, msg.at.Seq, msg.at.Epoch, rd.cursor.Epoch)
}

// shorter says why the stream ends before the cursor: its newest tick is of a later epoch, or it
// was rolled back.
func (rd *reading) shorter(ctx context.Context) error {
	subject := rd.r.conn.subjects.log(KindTick)
	raw, err := rd.r.last(ctx, rd.r.conn.subjects.logStream(), subject)
	if err == nil {
		msg, perr := parseMessage(raw.Subject, strconv.FormatUint(raw.Sequence, 10), raw.Header, raw.Data)
		if perr == nil && msg.at.Epoch > rd.cursor.Epoch && rd.r.proven(msg) {
			return rd.anew(msg)
		}
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	if rd.r.conn.replicated() { // an issuer: it may ask the leader
		last, err := rd.r.conn.lastSeq(ctx, rd.r.conn.subjects.logStream())
		if err != nil || last >= rd.cursor.Seq {
			return errors.Join(fmt.Errorf("reading the log from entry %d: the replica that answers is late: %w", rd.cursor.Seq, nats.ErrTimeout), err)
		}
	}
	return fmt.Errorf("%w: it ends before entry %d, which was read already", ErrRollback, rd.cursor.Seq)
}

// batch reads the entries from sequence seq on, by direct get, and tells how many are behind them.
// What it gives is contiguous; its first sequence may be later than seq. A bus that does not answer
// is an error: silence is not the log's end.
func (r *Reader) batch(ctx context.Context, seq uint64) (batch []message, pending uint64, err error) {
	if !r.conn.Connected() { // a request that cannot be sent would leave its subscription behind
		return nil, 0, fmt.Errorf("reading the log back from entry %d: %w", seq, nats.ErrDisconnected)
	}
	bctx, cancel := r.conn.while(ctx, batchWithin)
	defer cancel()
	stream := r.conn.subjects.logStream()
	msgs, err := jetstreamext.GetBatch(bctx, r.conn.js, stream, batchSize, jetstreamext.GetBatchSeq(seq), jetstreamext.GetBatchMaxBytes(batchBytes))
	if err != nil {
		return nil, 0, fmt.Errorf("reading the log back from entry %d: %w", seq, err)
	}
	for m, err := range msgs {
		if errors.Is(err, jetstreamext.ErrNoMessages) {
			return nil, 0, nil
		}
		if err != nil {
			return nil, 0, fmt.Errorf("reading the log back from entry %d: %w", seq, err)
		}
		if len(batch) > 0 && m.Sequence != batch[len(batch)-1].at.Seq+1 {
			return batch, pending, nil // a piece was lost on the way: ask again from there
		}
		msg, err := parseMessage(m.Subject, strconv.FormatUint(m.Sequence, 10), m.Header, m.Data)
		if err != nil {
			if len(batch) > 0 {
				return batch, pending, nil // what is before it is good; asked again, it is the first
			}
			return nil, 0, err
		}
		if pending, err = strconv.ParseUint(m.Header.Get("Nats-Num-Pending"), 10, 64); err != nil {
			return nil, 0, fmt.Errorf("reading the log back from entry %d: the server does not say what is behind it: %w", seq, err)
		}
		batch = append(batch, msg)
	}
	if len(batch) == 0 {
		return nil, 0, fmt.Errorf("reading the log back from entry %d: %w", seq, errors.Join(nats.ErrTimeout, ctx.Err()))
	}
	return batch, pending, nil
}

// acceptBatch proves a batch, and gives the entries before the first that cannot be taken, with why.
// A signature costs fifty times a hash, so entries that a proven tick is chained behind are proven
// by it (so many as proven, see provenByTick), and only those behind the last tick by their own.
func (rd *reading) acceptBatch(batch []message, proven int) ([]Entry, error) {
	entries := make([]Entry, 0, len(batch))
	for i, msg := range batch {
		if i >= proven && !rd.r.proven(msg) {
			return entries, fmt.Errorf("%w: entry %d (%s)", ErrForged, msg.at.Seq, msg.subject)
		}
		switch {
		case rd.cursor.Epoch == 0 && msg.at.Epoch >= rd.r.epoch.Load():
			rd.cursor.Epoch = msg.at.Epoch
		case msg.at.Epoch > rd.cursor.Epoch:
			return entries, rd.anew(msg)
		case msg.at.Epoch < rd.cursor.Epoch:
			return entries, fmt.Errorf("%w: entry %d is of epoch %d, before %d", ErrRollback, msg.at.Seq, msg.at.Epoch, rd.cursor.Epoch)
		}
		entry, err := rd.accept(msg)
		if err != nil {
			return entries, err
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
	}
	if err := rd.r.seen.note(msg); err != nil {
		return Entry{}, err
	}
	rd.cursor = Cursor{Position: msg.at, Chain: rd.cursor.Chain.next(msg.signed)}
	return Entry{Position: msg.at, Chain: rd.cursor.Chain, Fact: fact}, nil
}

// deliver hands entries over; pending more are known to be behind them.
func (rd *reading) deliver(entries []Entry, pending uint64) error {
	rd.r.raise(rd.cursor.Epoch)
	return rd.fn(entries, rd.cursor.Seq+pending)
}
