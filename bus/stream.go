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

// metaEpoch is the member of the log stream's metadata that names its epoch. It is a hint for the
// issuer that finds an empty log; readers believe signatures.
const metaEpoch = "sidekey_epoch"

// ensureStreams makes the log and the checkpoint stream where they are absent, checks that they are
// as they must be, and gives the log's epoch. An epoch is the time at which its stream was made, in
// milliseconds, so that a later one is greater without anybody remembering the earlier.
func (c *Conn) ensureStreams(ctx context.Context, replicas int, now time.Time) (uint64, error) {
	cfg := c.logStream(replicas)
	cfg.Metadata = map[string]string{metaEpoch: strconv.FormatInt(now.UnixMilli(), 10)}
	made, err := c.ensureStream(ctx, cfg)
	if err != nil {
		return 0, err
	}
	for _, other := range []jetstream.StreamConfig{c.checkpointStream(replicas), c.grantsStream(replicas)} {
		if _, err := c.ensureStream(ctx, other); err != nil {
			return 0, err
		}
	}
	epoch, err := strconv.ParseUint(made.Metadata[metaEpoch], 10, 64)
	if err != nil || epoch == 0 {
		return 0, fmt.Errorf("stream %s has no epoch in its metadata (%s): it was not made by sidekey", cfg.Name, metaEpoch)
	}
	return epoch, nil
}

func (c *Conn) logStream(replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        c.subjects.logStream(),
		Description: "sidekey: the signed log of keys and revocations",
		Subjects:    []string{c.subjects.log(Any)},
		Storage:     jetstream.FileStorage,
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardNew, // a full log refuses; it never drops what it acknowledged
		MaxAge:      0,
		Replicas:    replicas,
		AllowDirect: true,
		DenyDelete:  true,
		Duplicates:  time.Second, // the ids are there to chain entries (see onlyBehind), not to find doubles
		RePublish:   &jetstream.RePublish{Source: c.subjects.log(">"), Destination: c.subjects.live(">")},
	}
}

func (c *Conn) checkpointStream(replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        c.subjects.checkpointStream(),
		Description: "sidekey: images of the log's state",
		Subjects:    []string{c.subjects.manifest(), c.subjects.chunk(Any)},
		Storage:     jetstream.FileStorage,
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardNew,
		Replicas:    replicas,
		AllowDirect: true,
	}
}

// ensureStream creates a stream, or takes the one that is there, and compares its configuration
// with what was asked: an old server ignores settings that it does not know.
func (c *Conn) ensureStream(ctx context.Context, want jetstream.StreamConfig) (jetstream.StreamConfig, error) {
	var got jetstream.StreamConfig
	want.Replicas = c.asMany(want.Replicas)
	err := retry(ctx, func(ctx context.Context) error {
		s, err := c.js.CreateStream(ctx, want)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			s, err = c.js.Stream(ctx, want.Name)
		}
		if err == nil {
			got, err = c.raise(ctx, s.CachedInfo().Config, want.Replicas)
		}
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("%w: another issuer is making it anew: %v", nats.ErrTimeout, err)
		}
		return err
	})
	if err != nil {
		return got, fmt.Errorf("making stream %s: %w", want.Name, err)
	}
	for _, d := range []struct {
		setting   string
		got, want any
	}{
		{"storage", got.Storage, want.Storage},
		{"retention", got.Retention, want.Retention},
		{"discard", got.Discard, want.Discard},
		{"max_age", got.MaxAge, want.MaxAge},
		{"allow_direct", got.AllowDirect, want.AllowDirect},
		{"deny_delete", got.DenyDelete, want.DenyDelete},
		{"subjects", fmt.Sprint(got.Subjects), fmt.Sprint(want.Subjects)},
		{"republish", republish(got), republish(want)},
	} {
		if d.got != d.want {
			return got, fmt.Errorf("stream %s has %s = %v where %v was asked for; change it with the nats command, or use a server that knows the setting", want.Name, d.setting, d.got, d.want)
		}
	}
	return got, nil
}

// raise gives a stream as many replicas as are asked for. It never takes one away: another issuer may be told of more.
func (c *Conn) raise(ctx context.Context, cfg jetstream.StreamConfig, replicas int) (jetstream.StreamConfig, error) {
	if cfg.Replicas < replicas {
		cfg.Replicas = replicas
		if _, err := c.js.UpdateStream(ctx, cfg); err != nil {
			return cfg, fmt.Errorf("giving it %d replicas: %w", replicas, err)
		}
	}
	for most := c.most.Load(); int64(cfg.Replicas) > most && !c.most.CompareAndSwap(most, int64(cfg.Replicas)); most = c.most.Load() {
	}
	return cfg, nil
}

// asMany is how many replicas a stream is made with where so many are asked for: as many as those have that were seen, since
// an issuer that joined by a token was told of none. In a cluster of issuers streams grow by themselves (KeepReplicas).
func (c *Conn) asMany(replicas int) int {
	if c.cfg.Server != nil {
		return max(replicas, 1)
	}
	return max(replicas, int(c.most.Load()), 1)
}

func republish(cfg jetstream.StreamConfig) string {
	if cfg.RePublish == nil {
		return "none"
	}
	return cfg.RePublish.Source + " to " + cfg.RePublish.Destination
}
