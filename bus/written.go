package bus

import (
	"fmt"

	"github.com/nats-io/nats.go"
)

// Written gives a channel that receives, at most once until it is read, when a record is being written or deleted, by
// whomever; stop ends that. It is a hint to look soon: the write may not be readable yet, may fail, and may go unheard.
func (b *Bucket) Written(name string) (written <-chan struct{}, stop func(), err error) {
	if err := b.checkName(name); err != nil {
		return nil, nil, err
	}
	heard := make(chan struct{}, 1)
	sub, err := b.conn.nc.Subscribe(b.prefix+name, func(*nats.Msg) {
		select {
		case heard <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return nil, nil, fmt.Errorf("listening for writes to bucket %s: %w", b.name, err)
	}
	return heard, func() { sub.Unsubscribe() }, nil //nolint:errcheck // the connection is closed next
}
