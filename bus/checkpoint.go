package bus

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
	"github.com/synadia-io/orbit.go/jetstreamext"
)

// A checkpoint is written in chunks of this size, and is refused beyond this many: 512 MiB, some
// thirty million revocations.
const (
	chunkSize = 512 << 10
	maxChunks = 1024
)

// manifest says what a checkpoint is. It is the last message of one to be written, signed by the
// authority (header Sidekey-Signature), and names the image by its hash:
//
//	{"epoch": 1767225600000, "seq": 412, "chain": […], "id": "…", "first": 17, "chunks": 3, "size": 1300000, "sha256": "base64",
//	 "time": 1767225600000, "grants": 9, "past": {"time": 1767225580000, "grants": 7}, "held": 200, "last": {"key": 17, "revoke": 411, "tick": 412}}
type manifest struct {
	Position
	Chain  Chain  `json:"chain"`
	ID     string `json:"id"`    // last part of its chunks' subject
	First  uint64 `json:"first"` // sequence of its first chunk in the checkpoint stream
	Chunks int    `json:"chunks"`
	Size   int    `json:"size"`
	Time   int64  `json:"time"`   // when it was written, milliseconds since 1970
	Grants uint64 `json:"grants"` // the last sequence of the grants stream then
	Past   mark   `json:"past"`   // the same of an earlier checkpoint, up to which the grants can go once that is old enough
	Held   int    `json:"held"`   // of Size, the last bytes: who may hold leases (lease.Holding), for issuers
	SHA256 []byte `json:"sha256"` // of the image
	// The newest sequence of each kind, which outlives the purge of that entry: AppendIf asks for it.
	Last map[Kind]uint64 `json:"last"`
}

// mark says how far the grants stream had come when a checkpoint was written; zero: not known.
type mark struct {
	Time   int64  `json:"time"`
	Grants uint64 `json:"grants"`
}

func (m *manifest) cursor() Cursor { return Cursor{Position: m.Position, Chain: m.Chain} }

func signedManifest(body []byte) []byte { return append([]byte("sidekey-checkpoint-1\x00"), body...) }

// Checkpoint gives the newest image, proven, or ErrNotFound.
func (r *Reader) Checkpoint(ctx context.Context) ([]byte, error) {
	m, content, err := r.content(ctx)
	if err != nil {
		return nil, err
	}
	return content[:len(content)-m.Held], nil
}

// Held gives what the newest checkpoint says of leases, and where it stands, or ErrNotFound.
func (r *Reader) Held(ctx context.Context) (Cursor, []byte, error) {
	m, content, err := r.content(ctx)
	if err != nil {
		return Cursor{}, nil, err
	}
	return m.cursor(), content[len(content)-m.Held:], nil
}

// content reads all of the newest checkpoint and checks it against the signed hash.
func (r *Reader) content(ctx context.Context) (*manifest, []byte, error) {
	m, _, err := r.manifest(ctx)
	if err != nil {
		return nil, nil, err
	}
	img := make([]byte, 0, m.Size)
	seq := m.First
	for n, vain := 0, 0; n < m.Chunks; {
		got, err := r.pieces(ctx, m, &img, &seq, min(m.Chunks-n, piecesAtOnce))
		n += got
		if vain++; got > 0 {
			vain = 0
		}
		switch {
		case err == nil && got > 0:
		case got == 0 && (vain == piecesTries || errors.Is(err, errGone)) || ctx.Err() != nil || len(img) > m.Size:
			return nil, nil, fmt.Errorf("reading the checkpoint of entry %d, piece %d of %d: %w", m.Seq, n+1, m.Chunks, errors.Join(err, errIncomplete))
		default:
			sleep(ctx, time.Duration(vain)*piecesPause/2+rand.N(time.Duration(vain+1)*piecesPause))
		}
	}
	if sum := sha256.Sum256(img); len(img) != m.Size || !bytes.Equal(sum[:], m.SHA256) {
		return nil, nil, fmt.Errorf("reading the checkpoint of entry %d: %w: its hash is not the signed one", m.Seq, ErrForged)
	}
	return m, img, nil
}

// How a checkpoint is read. Where a thousand agents start with nothing, each gets a thousandth of what the
// bus can send: what has come is kept, whoever gets nothing waits longer each time, and few pieces
// are under way to each at once.
const (
	piecesAtOnce = 2
	piecesWithin = 10 * time.Second
	piecesTries  = 6
	piecesPause  = 250 * time.Millisecond
)

// pieces reads up to so many pieces behind those in img, and tells how many have come.
func (r *Reader) pieces(ctx context.Context, m *manifest, img *[]byte, seq *uint64, most int) (got int, err error) {
	if !r.conn.Connected() {
		return 0, nats.ErrDisconnected
	}
	bctx, cancel := r.conn.while(ctx, piecesWithin)
	defer cancel()
	msgs, err := jetstreamext.GetBatch(bctx, r.conn.js, r.conn.subjects.checkpointStream(), most,
		jetstreamext.GetBatchSeq(*seq), jetstreamext.GetBatchSubject(r.conn.subjects.chunk(m.ID)))
	if err != nil {
		return 0, err
	}
	for msg, err := range msgs {
		if errors.Is(err, jetstreamext.ErrNoMessages) {
			return got, errGone
		}
		if err != nil {
			return got, err
		}
		*img, *seq = append(*img, msg.Data...), msg.Sequence+1
		if got++; len(*img) > m.Size {
			return got, errIncomplete
		}
	}
	return got, nil
}

// errGone is not ErrNotFound, which says that there is no checkpoint at all.
var errGone = errors.New("it is gone")

var errIncomplete = errors.New("a piece is missing; was a newer checkpoint written meanwhile?")

// manifest reads the newest manifest and checks its signature. place is where it stands in the checkpoint stream, 0: there
// is none.
func (r *Reader) manifest(ctx context.Context) (m *manifest, place uint64, err error) {
	var raw *jetstream.RawStreamMsg
	err = retry(ctx, func(ctx context.Context) (err error) {
		raw, err = r.last(ctx, r.conn.subjects.checkpointStream(), r.conn.subjects.manifest())
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	sig, err := base64.RawURLEncoding.DecodeString(raw.Header.Get(headerSignature))
	if err != nil || !r.authority.Verify(signedManifest(raw.Data), sig) {
		return nil, raw.Sequence, fmt.Errorf("reading the newest checkpoint: %w", ErrForged)
	}
	m = new(manifest)
	if err := json.Unmarshal(raw.Data, m); err != nil {
		return nil, raw.Sequence, fmt.Errorf("reading the newest checkpoint: %w: %w", ErrUnknown, err)
	}
	if m.Epoch < r.epoch.Load() {
		return nil, raw.Sequence, fmt.Errorf("%w: the newest checkpoint is of epoch %d, and the log of %d", ErrNotFound, m.Epoch, r.epoch.Load())
	}
	if m.Chunks < 0 || m.Chunks > maxChunks || m.Size < 0 || m.Size > maxChunks*chunkSize || m.Held < 0 || m.Held > m.Size {
		return nil, raw.Sequence, fmt.Errorf("reading the newest checkpoint: %w: %d pieces of %d bytes", ErrUnknown, m.Chunks, m.Size)
	}
	return m, raw.Sequence, nil
}

// last reads a subject's newest message by direct get, or gives ErrNotFound.
func (r *Reader) last(ctx context.Context, stream, subject string) (*jetstream.RawStreamMsg, error) {
	msgs, err := lastOf(ctx, r.conn, stream, []string{subject})
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", subject, err)
	}
	if len(msgs) == 0 {
		return nil, ErrNotFound
	}
	return msgs[0], nil
}

// lastOf reads the newest message of each subject, of those that have one, by direct get. A bus
// that does not answer, or not to the end, is nats.ErrTimeout: silence is not absence.
func lastOf(ctx context.Context, c *Conn, stream string, subjects []string) ([]*jetstream.RawStreamMsg, error) {
	if !c.Connected() { // a request that cannot be sent would leave its subscription behind
		return nil, nats.ErrDisconnected
	}
	msgs, err := jetstreamext.GetLastMsgsFor(ctx, c.js, stream, subjects)
	if err != nil {
		return nil, err
	}
	var all []*jetstream.RawStreamMsg
	complete := false
	for m, err := range msgs {
		if errors.Is(err, jetstreamext.ErrNoMessages) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		all = append(all, m)
		complete = m.Header.Get("Nats-Num-Pending") == "0"
	}
	if !complete {
		return nil, nats.ErrTimeout
	}
	return all, nil
}

// newest gives the newest sequence of each kind: what the log holds, and for what it holds no
// longer what the newest checkpoint (nil: none) says.
func (r *Reader) newest(ctx context.Context, m *manifest) (map[Kind]uint64, error) {
	last := make(map[Kind]uint64)
	if m != nil {
		maps.Copy(last, m.Last)
	}
	var msgs []*jetstream.RawStreamMsg
	err := retry(ctx, func(ctx context.Context) (err error) {
		msgs, err = lastOf(ctx, r.conn, r.conn.subjects.logStream(), []string{r.conn.subjects.log(Any)})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the newest entry of each kind: %w", err)
	}
	for _, m := range msgs {
		last[kindOf(m.Subject)] = max(last[kindOf(m.Subject)], m.Sequence)
	}
	return last, nil
}

// WriteCheckpoint writes the image of the state at a cursor, with what is held by then of leases, and then forgets what it makes
// needless: all checkpoints but the last two, and the log behind the older of them.
func (l *Log) WriteCheckpoint(ctx context.Context, at Cursor, image, held []byte) error {
	previous, place, err := l.manifest(ctx)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if previous != nil && !previous.Position.Before(at.Position) {
		return nil // another issuer was here
	}
	if len(image) == 0 {
		return errors.New("writing a checkpoint: the image is empty")
	}
	last, err := l.newest(ctx, previous)
	if err != nil {
		return err
	}
	grants, err := l.conn.lastSeq(ctx, l.conn.subjects.grantsStream())
	if err != nil {
		return err
	}
	content := slices.Concat(image, held)
	sum := sha256.Sum256(content)
	m := &manifest{Position: at.Position, Chain: at.Chain, ID: nuid.Next(), Size: len(content), Held: len(held), SHA256: sum[:], Last: last,
		Time: l.cfg.Now().UnixMilli(), Grants: grants}
	forget := uint64(0)
	if previous != nil {
		forget, m.Past = previous.grantsBefore(m.Time)
	}
	for rest := content; len(rest) > 0; m.Chunks++ {
		n := min(chunkSize, len(rest))
		seq, err := l.publishPiece(ctx, &nats.Msg{Subject: l.conn.subjects.chunk(m.ID), Data: rest[:n]})
		if err != nil {
			return fmt.Errorf("writing the checkpoint of entry %d: %w", at.Seq, err)
		}
		if m.Chunks == 0 {
			m.First = seq
		}
		rest = rest[n:]
	}
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("writing the checkpoint of entry %d: %w", at.Seq, err)
	}
	sig := base64.RawURLEncoding.EncodeToString(l.cfg.Authority.Sign(signedManifest(body)))
	// One that was paused meanwhile would put its old image, whose pieces may be gone by now, before a newer one.
	_, err = l.publishPiece(ctx, &nats.Msg{Subject: l.conn.subjects.manifest(), Data: body, Header: nats.Header{headerSignature: {sig}}},
		jetstream.WithExpectLastSequencePerSubject(place))
	if wrongRevision(err) {
		return nil // another issuer was here
	}
	if err != nil {
		return fmt.Errorf("writing the checkpoint of entry %d: %w", at.Seq, err)
	}
	if previous == nil {
		return nil
	}
	return l.purge(ctx, previous, forget)
}

// publishPiece writes one message of the checkpoint stream. A piece that is written twice, because
// its acknowledgement was lost, would spoil the image: the message id lets the server drop it.
func (l *Log) publishPiece(ctx context.Context, msg *nats.Msg, opts ...jetstream.PublishOpt) (seq uint64, err error) {
	id := nuid.Next()
	err = retry(ctx, func(ctx context.Context) error {
		ack, err := l.conn.js.PublishMsg(ctx, msg, append(opts, jetstream.WithMsgID(id), jetstream.WithRetryAttempts(0))...)
		if err == nil {
			seq = ack.Sequence
		}
		return err
	})
	return seq, err
}

// grantsSlack is far longer than it takes from writing a list of grants to appending its tick.
const grantsSlack = time.Minute

// grantsBefore gives the list of grants up to which all can go when the next checkpoint is written, 0: none, and what that one carries on.
// Where many are written within grantsSlack the one before is never old enough: a mark is carried from each to the next until it is.
func (m *manifest) grantsBefore(now int64) (seq uint64, carry mark) {
	own := mark{Time: m.Time, Grants: m.Grants}
	switch slack := grantsSlack.Milliseconds(); {
	case now-own.Time > slack:
		return own.Grants, own
	case m.Past.Time == 0:
		return 0, own
	case now-m.Past.Time > slack:
		return m.Past.Grants, own
	}
	return 0, m.Past
}

// purge forgets the log behind a checkpoint, the checkpoints before it, and the lists of grants up to one.
func (l *Log) purge(ctx context.Context, oldest *manifest, grants uint64) error {
	type piece struct {
		stream string
		before uint64
	}
	pieces := []piece{{l.conn.subjects.logStream(), oldest.Seq + 1}, {l.conn.subjects.checkpointStream(), oldest.First}}
	if grants > 0 {
		pieces = append(pieces, piece{l.conn.subjects.grantsStream(), grants + 1})
	}
	for _, p := range pieces {
		err := retry(ctx, func(ctx context.Context) error {
			s, err := l.conn.js.Stream(ctx, p.stream)
			if err != nil {
				return err
			}
			if s.CachedInfo().State.LastSeq+1 < p.before { // it was lost, and begun again: what is there is new
				return nil
			}
			return s.Purge(ctx, jetstream.WithPurgeSequence(p.before))
		})
		if err != nil {
			return fmt.Errorf("purging %s up to %d: %w", p.stream, p.before, err)
		}
	}
	return nil
}
