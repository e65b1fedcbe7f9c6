package bus

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sidekey/sidekey/keyring"
)

// TickEvery is the time between an issuer's ticks.
const TickEvery = time.Second

// writeBatch bounds how many facts are published before the first acknowledgement is awaited.
const writeBatch = 256

// LogConfig configures an issuer's side of the log.
type LogConfig struct {
	Authority *keyring.Authority // signs every entry
	Issuer    string             // this issuer's name, as its ticks give it
	Replicas  int                // of the streams; 0: 1
	Now       func() time.Time   // nil: time.Now
	// Took hears how long each append took until it was acknowledged, also a tick's. nil: nobody measures.
	Took func(time.Duration)
	// Anew hears that another issuer has begun the log anew, each time that this makes an append fail: this Log appends
	// nothing any more. Open another one, with what this issuer knows of the log compared first (Lacks). It may not wait. nil:
	// nobody needs to know.
	Anew func(error)
}

// Log is an issuer's side of the log: what a Reader does, and appending. Several issuers may write
// at once: each entry is signed for its sequence, and the server takes it at that sequence, behind
// the entry that it was chained to, or not at all.
type Log struct {
	*Reader
	cfg   LogConfig
	epoch uint64
	queue chan *request
	// unfounded: the log does not begin at its beginning, and there is no checkpoint to begin with.
	unfounded bool
	done      chan struct{} // closed when the writer has stopped
	stop      context.CancelFunc

	// Owned by the writer.
	head Cursor
	last map[Kind]uint64 // the newest sequence of each kind
}

// lateReplica is the pause before a replica that is a little behind is asked again.
const lateReplica = 5 * time.Millisecond

// request is one Append that waits for the writer.
type request struct {
	ctx    context.Context
	facts  []Fact
	only   bool   // AppendIf:
	kind   Kind   // the newest entry of this kind
	behind uint64 // may not lie behind this sequence
	at     Cursor
	err    error
	done   chan struct{}
}

// OpenLog makes the streams where they are absent, compares what the server made with what was
// asked, and reads up to the head. The error names the stream and the setting that differs.
func OpenLog(ctx context.Context, c *Conn, cfg LogConfig) (*Log, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	l := &Log{
		Reader: NewReader(c, cfg.Authority.Public()), cfg: cfg,
		queue: make(chan *request, writeBatch), done: make(chan struct{}),
	}
	if err := c.Await(ctx); err != nil {
		return nil, err
	}
	var err error
	if l.epoch, err = c.ensureStreams(ctx, max(cfg.Replicas, 1), cfg.Now()); err != nil {
		return nil, err
	}
	m, _, err := l.manifest(ctx)
	switch {
	case err == nil && m.Epoch >= l.epoch:
		l.head = m.cursor()
	case err == nil:
		m = nil // of a stream that is gone
	case !errors.Is(err, ErrNotFound):
		return nil, err
	}
	if l.last, err = l.newest(ctx, m); err != nil {
		return nil, err
	}
	if err := l.catchUpToLeader(ctx); err != nil {
		// Begun anew by somebody who did not get as far as its first checkpoint: see Lacks.
		if l.unfounded = m == nil && errors.Is(err, ErrBehind); !l.unfounded {
			return nil, fmt.Errorf("reading the log up to its head: %w", err)
		}
	}
	if l.head.Epoch == 0 {
		l.head.Epoch = l.epoch
	}
	l.epoch = l.head.Epoch
	wctx, stop := context.WithCancel(context.Background())
	l.stop = stop
	go l.write(wctx)
	return l, nil
}

// Epoch is the log's, as it was opened.
func (l *Log) Epoch() uint64 { return l.epoch }

// Close stops the writer and waits for it. Appends under way fail.
func (l *Log) Close() error {
	l.stop()
	<-l.done
	return nil
}

// Append writes facts, in order, and returns the position of the last when all are on the disks
// that have to acknowledge them. It tries again until ctx ends; an entry is never written twice.
// After an error the fate of the facts is unknown, unless it says otherwise. ErrRollback, ErrEpoch
// and ErrForged mean that the log is no longer the one that this process knows.
func (l *Log) Append(ctx context.Context, facts ...Fact) (Position, error) {
	at, err := l.submit(&request{ctx: ctx, facts: facts})
	return at.Position, err
}

// AppendIf writes one fact if no entry of that kind lies behind sequence last; else it writes
// nothing and returns ErrConflict. A decision taken from what the log said up to last stands.
func (l *Log) AppendIf(ctx context.Context, kind Kind, last uint64, fact Fact) (Position, error) {
	at, err := l.submit(&request{ctx: ctx, facts: []Fact{fact}, only: true, kind: kind, behind: last})
	return at.Position, err
}

// Tick appends a tick that says nothing but the time, the head and the chain.
func (l *Log) Tick(ctx context.Context) (Position, error) {
	at, err := l.AppendTick(ctx, Tick{})
	return at.Position, err
}

// AppendTick appends a tick and returns where it stands. Issuer, time, head and chain are filled in
// here, when the head is known; the rest is sent as it is given, also where it has to be sent again.
// After an error the tick may stand in the log all the same: who waits for it must not be answered.
func (l *Log) AppendTick(ctx context.Context, t Tick) (Cursor, error) {
	t.Time, t.Chain = l.cfg.Now().UnixMilli(), make([]byte, len(Chain{}))
	return l.submit(&request{ctx: ctx, facts: []Fact{&t}})
}

func (l *Log) submit(req *request) (at Cursor, err error) {
	if len(req.facts) == 0 {
		return Cursor{}, errors.New("appending to the log: there is nothing to append")
	}
	for _, f := range req.facts {
		if _, err := Encode(f); err != nil {
			return Cursor{}, err
		}
	}
	if l.cfg.Took != nil {
		begun := time.Now()
		defer func() {
			if err == nil {
				l.cfg.Took(time.Since(begun))
			}
		}()
	}
	req.done = make(chan struct{})
	select {
	case l.queue <- req:
	case <-l.done:
		return Cursor{}, errors.New("appending to the log: it is closed")
	case <-req.ctx.Done():
		return Cursor{}, fmt.Errorf("appending to the log: %w", req.ctx.Err())
	}
	select {
	case <-req.done:
		return req.at, req.err
	case <-req.ctx.Done():
		return Cursor{}, fmt.Errorf("appending to the log: %w; whether the entry was stored is unknown", req.ctx.Err())
	case <-l.done:
		return Cursor{}, errors.New("appending to the log: it was closed meanwhile; whether the entry was stored is unknown")
	}
}

// write is the one goroutine that appends: what waits is published together, so that entries share
// the wait for the disk.
func (l *Log) write(ctx context.Context) {
	defer close(l.done)
	for {
		select {
		case first := <-l.queue:
			batch := []*request{first}
			for n := len(first.facts); n < writeBatch; {
				select {
				case req := <-l.queue:
					batch = append(batch, req)
					n += len(req.facts)
					continue
				default:
				}
				break
			}
			l.writeBatch(ctx, batch)
		case <-ctx.Done():
			return
		}
	}
}

// pending is one entry on its way to the server.
type pending struct {
	message
	req    *request
	msg    *nats.Msg
	ack    jetstream.PubAckFuture
	stored bool
}

// writeBatch publishes the requests' facts, and again those that were not stored, until every
// request is done.
func (l *Log) writeBatch(ctx context.Context, batch []*request) {
	for len(batch) > 0 && ctx.Err() == nil {
		if batch = l.dropDone(batch); len(batch) == 0 {
			return
		}
		before := l.head
		sent := l.publish(batch)
		why := l.await(ctx, sent)
		if unsettled(sent) {
			// Something stands where our entries were to stand, or nobody knows: read, and look.
			if err := l.catchUp(ctx, sent); err != nil {
				why = err
			}
		}
		if batch = settle(batch, sent); beyondRepair(why) {
			l.giveUp(batch, why)
			return
		}
		if l.head == before && len(batch) > 0 && ctx.Err() == nil {
			if wrongRevision(why) && l.conn.replicated() {
				sleep(ctx, lateReplica) // another issuer was first, and the replica that was asked has not its entry yet
				continue
			}
			l.conn.log.Warn("could not append to the log, trying again", "after_seq", l.head.Seq, "error", why)
			sleep(ctx, 250*time.Millisecond)
		}
	}
}

// beyondRepair tells whether an error says that the log is not the one that this process knows.
// Trying again mends nothing; whoever waits is told at once.
func beyondRepair(err error) bool {
	return errors.Is(err, ErrRollback) || errors.Is(err, ErrEpoch) || errors.Is(err, ErrForged) || errors.Is(err, ErrUnknown) || errors.Is(err, ErrBehind)
}

func (l *Log) giveUp(batch []*request, why error) {
	l.conn.log.Error("the log cannot be appended to", "after_seq", l.head.Seq, "error", why)
	if errors.Is(why, ErrEpoch) && l.cfg.Anew != nil {
		l.cfg.Anew(why)
	}
	for _, req := range batch {
		req.finish(fmt.Errorf("appending to the log: %w; whether the entry was stored is unknown", why))
	}
}

// dropDone answers the requests that cannot go on: whose ctx has ended, or whose condition no
// longer holds.
func (l *Log) dropDone(batch []*request) []*request {
	var open []*request
	for _, req := range batch {
		switch {
		case req.ctx.Err() != nil:
			req.finish(fmt.Errorf("appending to the log: %w; whether the entry was stored is unknown", req.ctx.Err()))
		case req.only && l.last[req.kind] > req.behind:
			req.finish(fmt.Errorf("%w: %s entry %d lies behind %d", ErrConflict, req.kind, l.last[req.kind], req.behind))
		default:
			open = append(open, req)
		}
	}
	return open
}

func (req *request) finish(err error) {
	req.err = err
	close(req.done)
}

// publish signs every fact for the sequence that it will have and sends it. Of the conditional
// requests it sends only the first of a kind: the next must see what that one did.
func (l *Log) publish(batch []*request) []*pending {
	var sent []*pending
	at := l.head
	kinds := make(map[Kind]bool)
	for _, req := range batch {
		if req.only && kinds[req.kind] {
			continue
		}
		for _, f := range req.facts {
			if len(sent) == l.atOnce() {
				return sent
			}
			kinds[f.Kind()] = true
			p, err := l.prepare(req, f, at)
			if err == nil {
				p.ack, err = l.conn.js.PublishMsgAsync(p.msg, l.onlyBehind(at)...)
			}
			if err != nil {
				l.conn.log.Debug("could not publish an entry", "error", err)
				return sent
			}
			sent = append(sent, p)
			at = Cursor{Position: p.at, Chain: at.Chain.next(p.signed)}
		}
	}
	return sent
}

// onlyBehind lets the server take an entry only behind the very entries that its writer knows. The
// sequence alone would not do where several are under way: if another issuer's entry stands where
// the first of ours was to stand, the second would find its sequence right, and would be stored
// behind an entry that it was not decided, nor chained, after.
//
// Replicas do not all know the id of their last message: one that has caught up from another does not, and
// nats-server 2.15 ends its copy at such a condition. So there the sequence alone has to do, and one entry is under
// way at a time (atOnce).
func (l *Log) onlyBehind(at Cursor) []jetstream.PublishOpt {
	opts := []jetstream.PublishOpt{jetstream.WithExpectLastSequence(at.Seq), jetstream.WithRetryAttempts(0)}
	if at.Seq > 0 && !l.conn.replicated() {
		opts = append(opts, jetstream.WithExpectLastMsgID(at.Chain.id()))
	}
	return opts
}

// atOnce is how many entries may be under way.
func (l *Log) atOnce() int {
	if l.conn.replicated() {
		return 1
	}
	return writeBatch
}

// id is the message id of the entry with this chain up to and with it.
func (c Chain) id() string { return base64.RawURLEncoding.EncodeToString(c[:]) }

// prepare makes the message of a fact behind a cursor. A tick takes its head and chain from there.
func (l *Log) prepare(req *request, f Fact, behind Cursor) (*pending, error) {
	if t, ok := f.(*Tick); ok {
		filled := *t
		filled.Issuer, filled.Head, filled.Chain = l.cfg.Issuer, behind.Seq, behind.Chain[:]
		f = &filled
	}
	body, err := Encode(f)
	if err != nil {
		return nil, err
	}
	at := Position{Epoch: behind.Epoch, Seq: behind.Seq + 1}
	subject := l.conn.subjects.log(f.Kind())
	p := &pending{req: req, message: message{subject: subject, at: at, body: body, signed: signedBytes(subject, at, body)}}
	p.signature = l.cfg.Authority.Sign(p.signed)
	p.msg = &nats.Msg{Subject: subject, Data: body, Header: nats.Header{
		headerEpoch:     {strconv.FormatUint(at.Epoch, 10)},
		headerSignature: {base64.RawURLEncoding.EncodeToString(p.signature)},
		nats.MsgIdHdr:   {behind.Chain.next(p.signed).id()},
	}}
	return p, nil
}

// await waits for the acknowledgements, in order, and moves the head over what was stored. Behind
// the first that is not, nothing can have been stored by us; the error says why it was not.
func (l *Log) await(ctx context.Context, sent []*pending) error {
	const within = 2 * time.Second // of one another
	timeout := time.NewTimer(within)
	defer timeout.Stop()
	lost := l.conn.nc.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	defer l.conn.nc.RemoveStatusListener(lost)
	for _, p := range sent {
		select {
		case <-p.ack.Ok():
			l.stored(p)
			timeout.Reset(within)
		case err := <-p.ack.Err():
			return err
		case <-lost:
			return nats.ErrDisconnected // and with the connection, what the server had to say
		case <-timeout.C:
			return nats.ErrTimeout
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (l *Log) stored(p *pending) {
	p.stored = true
	l.head = Cursor{Position: p.at, Chain: l.head.Chain.next(p.signed)}
	p.req.at = l.head
	l.last[kindOf(p.subject)] = p.at.Seq
}

func unsettled(sent []*pending) bool { return len(sent) == 0 || !sent[len(sent)-1].stored }

// settle answers the requests whose facts are all stored, and gives the others back. Those that are
// stored in part go on with the rest.
func settle(batch []*request, sent []*pending) []*request {
	for _, p := range sent {
		if p.stored {
			p.req.facts = p.req.facts[1:]
		}
	}
	var open []*request
	for _, req := range batch {
		if req.err == nil && len(req.facts) == 0 {
			req.finish(nil)
		} else if req.err == nil {
			open = append(open, req)
		}
	}
	return open
}

// catchUp reads from the writer's head to the stream's. An entry of ours that is found there was
// stored though its acknowledgement was lost.
func (l *Log) catchUp(ctx context.Context, sent []*pending) error {
	ours := make(map[Chain]*pending, len(sent))
	for _, p := range sent {
		if !p.stored {
			ours[(Chain{}).next(p.signed)] = p
		}
	}
	rd := &reading{r: l.Reader, cursor: l.head, fn: func([]Entry, uint64) error { return nil }}
	for {
		batch, pending, err := rd.next(ctx, nil)
		if errors.Is(err, ErrBehind) {
			if jerr := l.jump(ctx); jerr != nil || len(sent) > 0 {
				return errors.Join(err, jerr) // ours may be among what was purged: their fate is unknown
			}
			rd.cursor = l.head
			continue
		}
		if err != nil {
			return err
		}
		entries, err := rd.acceptBatch(batch, rd.provenByTick(batch))
		for i := range entries {
			l.last[entries[i].Fact.Kind()] = entries[i].Seq
			if p := ours[(Chain{}).next(batch[i].signed)]; p != nil {
				p.stored, p.req.at = true, entries[i].Cursor()
			}
		}
		l.head = rd.cursor
		if err != nil || pending == 0 {
			return err
		}
	}
}

// catchUpToLeader is catchUp to where the stream's leader stands. A replica that is late may answer what catchUp
// asks, and what it has not yet must not look lost.
func (l *Log) catchUpToLeader(ctx context.Context) error {
	if !l.conn.replicated() {
		return l.catchUp(ctx, nil)
	}
	last, err := l.conn.lastSeq(ctx, l.conn.subjects.logStream())
	if err != nil {
		return err
	}
	for {
		err := l.catchUp(ctx, nil)
		// A late replica seems to end early, or to hold other checkpoints than those that are behind.
		if err != nil && !passing(err) && !errors.Is(err, ErrBehind) && !errors.Is(err, ErrRollback) || l.head.Seq >= last && (err == nil || errors.Is(err, ErrRollback)) {
			return err
		}
		if l.unfounded, _ = l.unfoundedAt(ctx, err); l.unfounded {
			return err
		}
		if !sleep(ctx, shorterWait) {
			return errors.Join(ctx.Err(), err)
		}
	}
}

// unfoundedAt tells whether there is no checkpoint by the leader's own word, where the log does not begin at its
// beginning.
func (l *Log) unfoundedAt(ctx context.Context, why error) (bool, error) {
	if !errors.Is(why, ErrBehind) {
		return false, nil
	}
	_, err := l.conn.leaderGet(ctx, l.conn.subjects.checkpointStream(), l.conn.subjects.manifest())
	return errors.Is(err, jetstream.ErrMsgNotFound), nil
}

// jump moves the head to the newest checkpoint: the log was purged beyond it while nothing was written here.
func (l *Log) jump(ctx context.Context) error {
	m, _, err := l.manifest(ctx)
	if err != nil {
		return err
	}
	if !l.head.Position.Before(m.Position) {
		return errors.New("and the newest checkpoint is not ahead of it")
	}
	if l.last, err = l.newest(ctx, m); err != nil {
		return err
	}
	l.head = m.cursor()
	return nil
}
