package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

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
	err := retry(ctx, func(ctx context.Context) error {
		s, err := c.js.CreateStream(ctx, want)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			s, err = c.js.Stream(ctx, want.Name)
		}
		if err == nil {
			got = s.CachedInfo().Config
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
		{"replicas", got.Replicas, want.Replicas},
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

func republish(cfg jetstream.StreamConfig) string {
	if cfg.RePublish == nil {
		return "none"
	}
	return cfg.RePublish.Source + " to " + cfg.RePublish.Destination
}
