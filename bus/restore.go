package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sidekey/sidekey/keyring"
)

// What a backup reads of the bus, and what a restore makes there (package bus/backup).

// Name is the bucket's name, as BucketUsers.
func (b *Bucket) Name() string { return b.name }

// LastSeq gives the bucket's newest revision, of records and of deletions.
func (b *Bucket) LastSeq(ctx context.Context) (uint64, error) { return b.lastSeq(ctx) }

// RestoreBucket makes a bucket whose revisions begin behind after. The bucket must not be there. A record that was
// written before, and that somebody kept, has an earlier version than any that is written from here on, so it is told
// from them as an old one is.
func RestoreBucket(ctx context.Context, c *Conn, name string, master *keyring.MasterKey, replicas int, after uint64) (*Bucket, error) {
	b, err := OpenBucket(ctx, c, name, master, replicas)
	if err != nil {
		return nil, err
	}
	cfg := b.stream.CachedInfo().Config
	if info := b.stream.CachedInfo(); info.State.LastSeq > 0 {
		return nil, fmt.Errorf("restoring bucket %s: it is there already", name)
	}
	cfg.FirstSeq = after + 1
	err = retry(ctx, func(ctx context.Context) error {
		if err := c.js.DeleteStream(ctx, cfg.Name); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			return err
		}
		_, err := c.js.CreateStream(ctx, cfg)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("restoring bucket %s: %w", name, err)
	}
	return OpenBucket(ctx, c, name, master, replicas)
}

// State lists the streams of sidekey's that are on the bus.
func (c *Conn) State(ctx context.Context) ([]string, error) {
	var found []string
	err := retry(ctx, func(ctx context.Context) error {
		found = nil
		names := c.js.StreamNames(ctx)
		for name := range names.Name() {
			if c.ours(name) {
				found = append(found, name)
			}
		}
		return names.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("looking what is on the bus: %w", err)
	}
	slices.Sort(found)
	return found, nil
}

func (c *Conn) ours(stream string) bool {
	s := c.subjects
	return slices.Contains([]string{s.logStream(), s.checkpointStream(), s.grantsStream(), s.auditStream(), s.restoringStream()}, stream) ||
		strings.HasPrefix(stream, "KV_"+s.bucket(""))
}

// metaRestore is the member of the mark's metadata that names the restore.
const metaRestore = "sidekey_restore"

// ErrOtherState means that what is on the bus was not made by the restore that asks.
var ErrOtherState = errors.New("what is on the bus is not of this restore")

// The mark of a restore is a stream of no messages, <prefix>_restoring, whose metadata has the restore's id. It is made before
// all else and removed behind all else, so what stands beside it is half of a state, and that restore's; what stands there
// without it is whole, or somebody else's.
func (s subjects) restoringStream() string { return string(s) + "_restoring" }

// MarkRestore makes the mark. ErrOtherState: another restore's is there.
func (c *Conn) MarkRestore(ctx context.Context, id string, replicas int) error {
	name := c.subjects.restoringStream()
	err := retry(ctx, func(ctx context.Context) error {
		_, err := c.js.CreateStream(ctx, jetstream.StreamConfig{
			Name: name, Description: "sidekey: a restore is under way, or died", Subjects: []string{string(c.subjects) + ".restoring"},
			Storage: jetstream.FileStorage, MaxMsgs: 1, Replicas: c.asMany(replicas), Metadata: map[string]string{metaRestore: id},
		})
		return err
	})
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		err = ErrOtherState
	}
	if err != nil {
		return fmt.Errorf("making stream %s, which marks a restore: %w", name, err)
	}
	return nil
}

// RestoreMark gives the id of the restore that has marked the bus, "" where none has.
func (c *Conn) RestoreMark(ctx context.Context) (id string, err error) {
	name := c.subjects.restoringStream()
	err = retry(ctx, func(ctx context.Context) error {
		s, err := c.js.Stream(ctx, name)
		if err == nil {
			id = s.CachedInfo().Config.Metadata[metaRestore]
		}
		return err
	})
	if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return "", fmt.Errorf("looking for stream %s, which marks a restore: %w", name, err)
	}
	return id, nil
}

// RemoveState deletes what State lists, the mark last, if the restore of that id has marked it; else it touches nothing, and
// gives ErrOtherState unless nothing is there. There is no way back.
func (c *Conn) RemoveState(ctx context.Context, id string) error {
	found, err := c.State(ctx)
	if err != nil || len(found) == 0 {
		return err
	}
	mark, err := c.RestoreMark(ctx)
	if err != nil {
		return err
	}
	if id == "" || mark != id {
		return ErrOtherState
	}
	own := c.subjects.restoringStream()
	for _, name := range append(slices.DeleteFunc(found, func(name string) bool { return name == own }), own) {
		if err := c.removeStream(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// RemoveMark says that what was restored is whole. ErrOtherState: the mark is another restore's.
func (c *Conn) RemoveMark(ctx context.Context, id string) error {
	mark, err := c.RestoreMark(ctx)
	if err == nil && mark != id {
		err = ErrOtherState
	}
	if err != nil {
		return err
	}
	return c.removeStream(ctx, c.subjects.restoringStream())
}

func (c *Conn) removeStream(ctx context.Context, name string) error {
	err := retry(ctx, func(ctx context.Context) error { return c.js.DeleteStream(ctx, name) })
	if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("removing stream %s: %w", name, err)
	}
	return nil
}

// Plain is the keys as they are, with every secret: for a backup, which is encrypted.
func (k *Keys) Plain() (json.RawMessage, error) { return k.marshal() }

// ParseKeys is Plain's reverse.
func ParseKeys(plain []byte) (*Keys, error) { return parseKeys(plain) }

// WriteKeys writes the keys to their file, which must not be there.
func WriteKeys(path string, k *Keys, master *keyring.MasterKey) error {
	plain, err := k.marshal()
	if err != nil {
		return err
	}
	if err := WriteFile(path, sealKeys(master, plain)); err != nil {
		return fmt.Errorf("writing the bus's keys: %w", err)
	}
	return nil
}

// Each calls fn with every record as it stands on the bus, sealed and chained, oldest first, up to the end as it is now.
func (a *AuditTrail) Each(ctx context.Context, fn func(issuer string, record []byte) error) error {
	stream, err := a.conn.js.Stream(ctx, a.conn.subjects.auditStream())
	if err != nil {
		return fmt.Errorf("reading the audit: %w", err)
	}
	state := stream.CachedInfo().State
	if state.Msgs == 0 {
		return nil
	}
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy})
	if err != nil {
		return fmt.Errorf("reading the audit: %w", err)
	}
	msgs, err := consumer.Messages()
	if err != nil {
		return fmt.Errorf("reading the audit: %w", err)
	}
	defer msgs.Stop()
	for {
		m, err := msgs.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fmt.Errorf("reading the audit: %w", errors.Join(context.Cause(ctx), err))
		}
		meta, err := m.Metadata()
		if err != nil {
			return fmt.Errorf("reading the audit: %w", err)
		}
		// A name that nobody could have given is the bus's own work: it stays out, and the chain shows what is missing.
		if issuer, err := decodePart(m.Subject()[len(a.conn.subjects.audit("")):]); err == nil {
			if err := fn(issuer, m.Data()); err != nil {
				return err
			}
		}
		if meta.Sequence.Stream >= state.LastSeq {
			return nil
		}
	}
}

// Restore appends a record of Each's as it is. Records are restored in their order, before anything is written.
func (a *AuditTrail) Restore(ctx context.Context, issuer string, record []byte) error {
	err := retry(ctx, func(ctx context.Context) error {
		_, err := a.conn.js.PublishMsg(ctx, &nats.Msg{Subject: a.conn.subjects.audit(encodePart(issuer)), Data: record}, jetstream.WithRetryAttempts(0))
		return err
	})
	if err != nil {
		return fmt.Errorf("restoring the audit: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if issuer == a.cfg.Issuer {
		return a.resumeLocked(ctx)
	}
	return nil
}

// JoinUsed tells of a record of the bucket "joins" whether its token has let somebody in.
func JoinUsed(value []byte) (bool, error) {
	var inv invitation
	if err := json.Unmarshal(value, &inv); err != nil {
		return false, errors.New("reading the record of a join token: it is damaged")
	}
	return inv.Used != 0, nil
}

// StrikeOff gives the record of a member of the bucket "agents" as one that was removed at that time (NumericDate), and the
// nkeys that are to be refused; of one that was removed already it gives the record as it is.
func StrikeOff(value []byte, at int64) ([]byte, []string, error) {
	var m Member
	if err := json.Unmarshal(value, &m); err != nil {
		return nil, nil, errors.New("reading the record of a member: it is damaged")
	}
	if !m.Removed() {
		m.RemovedAt = at
	}
	text, err := json.Marshal(m)
	return text, append(slices.Clone(m.Former), m.Nkey), err
}
