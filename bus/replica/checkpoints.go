package replica

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus"
)

// CheckpointWriter is where KeepCheckpoints writes. An image that is not ahead of the newest
// checkpoint is passed over, so that any number of issuers may write.
type CheckpointWriter interface {
	WriteCheckpoint(ctx context.Context, at bus.Cursor, image, held []byte) error
}

// KeepCheckpoints writes r's image whenever so many entries, or so much time, has passed since the
// last, until ctx ends, and while turn (nil: always) says that it is this issuer's to do. held gives who may hold leases, once that is known up to the image's
// position: it is taken after the image, so that no grant falls between the two. A failure is logged
// and tried again.
func KeepCheckpoints(ctx context.Context, r *Replica, to CheckpointWriter, held func(context.Context, bus.Position) ([]byte, error), turn func() bool, every time.Duration, entries uint64, log hclog.Logger) {
	look := time.NewTicker(min(every, 5*time.Second))
	defer look.Stop()
	last, when := r.Snapshot().Position.Seq, time.Now()
	for {
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
		at := r.Snapshot().Position.Seq
		if at == last || at < last+entries && time.Since(when) < every {
			continue
		}
		if turn != nil && !turn() {
			continue // it stays due: who takes over cannot know how far the other came, and what is not ahead is passed over
		}
		img, cursor, err := r.Image()
		var leases []byte
		if err == nil {
			leases, err = held(ctx, cursor.Position)
		}
		if err == nil {
			err = to.WriteCheckpoint(ctx, cursor, img, leases)
		}
		if err != nil {
			if ctx.Err() == nil {
				log.Warn("could not write a checkpoint, trying again", "seq", cursor.Seq, "error", err)
			}
			continue
		}
		last, when = cursor.Seq, time.Now()
		log.Info("wrote a checkpoint", "seq", cursor.Seq, "bytes", len(img))
	}
}
