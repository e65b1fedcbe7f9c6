package bus

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sidekey/sidekey/keyring"
)

// AuditTrail is the stream in which issuers write who did what, for issuers alone. A record is
//
//	0x01 | number, 8 bytes | hash of the record before, 32 bytes | box
//
// sealed under a key from the master key, with issuer, number and hash as associated data: the bus can neither read
// one, nor write one, nor move one. Every issuer has a chain of its own, whose numbers go up by one and whose hashes
// (SHA-256 over the whole record) tie each record to the one before; so one that is taken out, or put elsewhere, is
// noticed by whoever reads on. What the bus may do by its retention is drop the oldest. That it took the newest away
// is noticed by the issuer that wrote them, at its next record. All methods may be called from any goroutine.
type AuditTrail struct {
	conn   *Conn
	cfg    AuditConfig
	sealer *keyring.Sealer
	guard  *Guard // nil: the end is not compared over a restart

	mu   sync.Mutex // one record at a time: each names the one before
	head auditHead  // of this issuer's chain
	torn string     // what is wrong with the end, until a Write has said so
}

// auditHead is the newest record of a chain. The zero value is a chain that begins.
type auditHead struct {
	seq    uint64 // its place in the stream; 0: none is known
	number uint64
	hash   [sha256.Size]byte
	at     time.Time // when it was written or read
}

// AuditConfig says whose trail it is and how long it is kept.
type AuditConfig struct {
	Issuer   string // this issuer's name: the chain that Write continues
	Master   *keyring.MasterKey
	MaxAge   time.Duration // older records are dropped; 0: none for its age
	MaxBytes int64         // the oldest are dropped beyond it; 0: none for the size
	Replicas int           // 0: 1
}

// AuditRecord is a record as it was read.
type AuditRecord struct {
	Seq     uint64 // its place in the stream
	Issuer  string // who wrote it
	Content []byte // what was written; nil if Broken
	// Broken says what is wrong here: records of this issuer are missing, or were not written by it. "": nothing.
	Broken string
}

const auditFormat = 0x01

// auditHeader is format, number and hash.
const auditHeader = 1 + 8 + sha256.Size

// MaxAuditRecord is how much one Write takes.
const MaxAuditRecord = 256 << 10

func (c *Conn) auditStream(cfg AuditConfig) jetstream.StreamConfig {
	sc := jetstream.StreamConfig{
		Name:        c.subjects.auditStream(),
		Description: "sidekey: who did what, sealed; for issuers",
		Subjects:    []string{c.subjects.audit(Any)},
		Storage:     jetstream.FileStorage,
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardOld,
		MaxAge:      cfg.MaxAge,
		MaxBytes:    cfg.MaxBytes,
		Replicas:    max(cfg.Replicas, 1),
		AllowDirect: true,
		DenyDelete:  true,
		Duplicates:  time.Second, // a write is told by its place, not by an id
	}
	if cfg.MaxBytes == 0 {
		sc.MaxBytes = -1
	}
	if cfg.MaxAge > 0 && cfg.MaxAge < sc.Duplicates {
		sc.Duplicates = cfg.MaxAge
	}
	return sc
}

// OpenAudit opens the trail, makes it where it is absent, and sets how long it is kept, as this issuer has it.
func OpenAudit(ctx context.Context, c *Conn, cfg AuditConfig) (*AuditTrail, error) {
	a := &AuditTrail{conn: c, cfg: cfg, sealer: cfg.Master.Sealer("audit")}
	err := retry(ctx, func(ctx context.Context) error {
		sc := c.auditStream(cfg)
		_, err := c.js.CreateStream(ctx, sc)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			var s jetstream.Stream
			if s, err = c.js.Stream(ctx, sc.Name); err == nil {
				sc.Replicas = max(sc.Replicas, s.CachedInfo().Config.Replicas) // a cluster has grown
				_, err = c.js.UpdateStream(ctx, sc)
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("making stream %s: %w", c.subjects.auditStream(), err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a, a.resumeLocked(ctx)
}

// resumeLocked finds the end of this issuer's chain. Where the newest record under its name is not its own work, a new
// chain begins, and its first record says so.
func (a *AuditTrail) resumeLocked(ctx context.Context) error {
	m, err := a.newest(ctx)
	switch {
	case err != nil:
		return err
	case m == nil:
		a.head = auditHead{}
		return nil
	}
	number, _, err := a.open(a.cfg.Issuer, m.Data)
	if err != nil {
		a.torn = fmt.Sprintf("record %d under this issuer's name was not written by it", m.Sequence)
		a.head = auditHead{seq: m.Sequence}
		return nil
	}
	a.head = auditHead{m.Sequence, number, sha256.Sum256(m.Data), m.Time}
	return nil
}

// newest gives the newest record under this issuer's name, nil where there is none.
func (a *AuditTrail) newest(ctx context.Context) (m *jetstream.RawStreamMsg, err error) {
	err = retry(ctx, func(ctx context.Context) error {
		s, err := a.conn.js.Stream(ctx, a.conn.subjects.auditStream())
		if err == nil {
			m, err = s.GetLastMsgForSubject(ctx, a.conn.subjects.audit(encodePart(a.cfg.Issuer)))
		}
		return err
	})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the end of the audit: %w", err)
	}
	return m, nil
}

// Write appends a record and returns when it is durable. After an error it may have been written, once. A non-empty
// broken tells that records which this issuer had written are gone from the end, or that others stand there: the chain
// goes on all the same, and the caller is to say it loudly.
func (a *AuditTrail) Write(ctx context.Context, content []byte) (broken string, err error) {
	if len(content) > MaxAuditRecord {
		return "", fmt.Errorf("writing an audit record: it has %d bytes, and %d is the most", len(content), MaxAuditRecord)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	broken, a.torn = a.torn, ""
	for range auditTries {
		record := a.seal(content)
		sum := sha256.Sum256(record)
		seq, err := a.publish(ctx, record)
		if err == nil {
			a.head = auditHead{seq, a.head.number + 1, sum, time.Now()}
			if a.guard != nil {
				a.guard.note(auditGuarded, seq)
			}
			return broken, nil
		}
		if !wrongRevision(err) {
			a.torn = broken
			return "", fmt.Errorf("writing an audit record: %w", err)
		}
		// Ours whose answer was lost, another process under our name, or an end that was taken away.
		was := a.head
		if err := a.resumeLocked(ctx); err != nil {
			return "", err
		}
		if a.head.hash == sum {
			return broken, nil
		}
		if a.head.seq >= was.seq {
			continue
		}
		if !a.expired(ctx, was) {
			broken = fmt.Sprintf("records of this issuer up to %d were there, and the bus now ends at %d", was.number, a.head.number)
		}
		a.head.number, a.head.hash = was.number, was.hash // the chain goes on, and a hole shows
	}
	return broken, errors.New("writing an audit record: others write under this issuer's name; give each issuer an agent.name of its own")
}

// expired tells whether a record may be gone by the retention that was asked for.
func (a *AuditTrail) expired(ctx context.Context, was auditHead) bool {
	var info *jetstream.StreamInfo
	err := retry(ctx, func(ctx context.Context) error {
		s, err := a.conn.js.Stream(ctx, a.conn.subjects.auditStream())
		if err == nil {
			info = s.CachedInfo()
		}
		return err
	})
	if err != nil || info.State.FirstSeq <= was.seq {
		return false
	}
	aged := a.cfg.MaxAge > 0 && time.Since(was.at) >= a.cfg.MaxAge-time.Second
	full := a.cfg.MaxBytes > 0 && int64(info.State.Bytes) > a.cfg.MaxBytes/2
	return aged || full
}

// auditGuarded is the trail's name in a Guard's file.
const auditGuarded = "audit"

// Watch compares the trail's end with what this issuer has seen of it before, and keeps what it writes from here on.
// An end that was taken away meanwhile is told by the next Write.
func (a *AuditTrail) Watch(ctx context.Context, g *Guard) error {
	var last uint64
	err := retry(ctx, func(ctx context.Context) error {
		s, err := a.conn.js.Stream(ctx, a.conn.subjects.auditStream())
		if err == nil {
			last = s.CachedInfo().State.LastSeq
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("reading the end of the audit: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if seen := g.seen(auditGuarded); last < seen {
		a.torn = fmt.Sprintf("the bus now ends at %d, and this issuer has seen %d: its newest records are gone", last, seen)
	}
	a.guard = g
	return nil
}

// auditTries bounds the compare-and-sets of one record.
const auditTries = 8

// publish writes a record right behind the head.
func (a *AuditTrail) publish(ctx context.Context, record []byte) (seq uint64, err error) {
	subject := a.conn.subjects.audit(encodePart(a.cfg.Issuer))
	err = retry(ctx, func(ctx context.Context) error {
		ack, err := a.conn.js.PublishMsg(ctx, &nats.Msg{Subject: subject, Data: record},
			jetstream.WithRetryAttempts(0), jetstream.WithExpectLastSequencePerSubject(a.head.seq))
		if err == nil {
			seq = ack.Sequence
		}
		return err
	})
	return seq, err
}

// seal makes the record behind the head.
func (a *AuditTrail) seal(content []byte) []byte {
	record := append(make([]byte, 0, auditHeader+64+len(content)), auditFormat)
	record = binary.BigEndian.AppendUint64(record, a.head.number+1)
	record = append(record, a.head.hash[:]...)
	return append(record, a.sealer.Seal(content, []byte(a.cfg.Issuer), record[1:auditHeader])...)
}

func (a *AuditTrail) open(issuer string, record []byte) (number uint64, content []byte, err error) {
	if len(record) < auditHeader || record[0] != auditFormat {
		return 0, nil, ErrForged
	}
	content, err = a.sealer.Open(record[auditHeader:], []byte(issuer), record[1:auditHeader])
	if err != nil {
		return 0, nil, ErrForged
	}
	return binary.BigEndian.Uint64(record[1:]), content, nil
}

// Read calls fn with the records since a time, oldest first and each chain checked, up to the end as it stands at the
// call; with follow, further ones as they are written, until ctx ends. It returns fn's error, ctx's, or the bus's.
func (a *AuditTrail) Read(ctx context.Context, since time.Time, follow bool, fn func(AuditRecord) error) error {
	stream, err := a.conn.js.Stream(ctx, a.conn.subjects.auditStream())
	if err != nil {
		return fmt.Errorf("reading the audit: %w", err)
	}
	end := stream.CachedInfo().State.LastSeq
	if !follow && (stream.CachedInfo().State.Msgs == 0 || stream.CachedInfo().State.LastTime.Before(since)) {
		return nil
	}
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &since, InactiveThreshold: time.Minute,
	})
	if err != nil {
		return fmt.Errorf("reading the audit: %w", err)
	}
	msgs, err := consumer.Messages()
	if err != nil {
		return fmt.Errorf("reading the audit: %w", err)
	}
	defer msgs.Stop()
	chains := make(auditChains)
	for {
		m, err := msgs.Next(jetstream.NextContext(ctx))
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return fmt.Errorf("reading the audit: %w", err)
		}
		rec, err := a.read(chains, m)
		if err == nil {
			err = fn(rec)
		}
		if err != nil || !follow && rec.Seq >= end {
			return err
		}
	}
}

// auditChains is the newest record read of every issuer's chain.
type auditChains map[string]auditHead

// read opens one message, and holds it against the record before it.
func (a *AuditTrail) read(chains auditChains, m jetstream.Msg) (AuditRecord, error) {
	meta, err := m.Metadata()
	if err != nil {
		return AuditRecord{}, fmt.Errorf("reading the audit: %w", err)
	}
	rec := AuditRecord{Seq: meta.Sequence.Stream}
	if rec.Issuer, err = decodePart(m.Subject()[len(a.conn.subjects.audit("")):]); err != nil {
		rec.Broken = fmt.Sprintf("record %d was not written by an issuer", rec.Seq)
		return rec, nil
	}
	number, content, err := a.open(rec.Issuer, m.Data())
	if err != nil {
		rec.Broken = fmt.Sprintf("record %d was not written by issuer %q", rec.Seq, rec.Issuer)
		return rec, nil
	}
	rec.Content = content
	before, read := chains[rec.Issuer]
	chains[rec.Issuer] = auditHead{seq: rec.Seq, number: number, hash: sha256.Sum256(m.Data())}
	if read && (number != before.number+1 || !bytes.Equal(m.Data()[9:auditHeader], before.hash[:])) {
		rec.Broken = fmt.Sprintf("records of issuer %q are missing, or not in their places: %d comes behind %d", rec.Issuer, number, before.number)
	}
	return rec, nil
}
