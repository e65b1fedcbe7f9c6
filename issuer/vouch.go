package issuer

import (
	"fmt"

	"github.com/sidekey/sidekey/bus/lease"
)

// vouch takes the lease under which this issuer is about to say something of a token, and gives
// what to ask last: its error replaces whatever was found. A lease renewed meanwhile does not count,
// for it may cover an entry that was not looked at (PROTOCOL 2, 12). Without one even a refusal
// says too much: a key that is unknown here may be known to everybody else.
func (i *Issuer) vouch() (settle func() error) {
	if i.Lease == nil {
		return func() error { return nil }
	}
	held := i.Lease()
	return func() error {
		if !i.live(held) {
			return fmt.Errorf("%w: no tick of this issuer's own was read back in time", ErrUnavailable)
		}
		return nil
	}
}

// vouchFor says of a token what look finds, under one lease, and by the newest snapshot there is when
// it is said: an entry may be applied here, and confirmed, while look is under way and has not seen
// it. So a good finding over whose course the log moved is made again.
func (i *Issuer) vouchFor(look func() error) error {
	for range maxLooks {
		settle, snap := i.vouch(), i.Replica.Snapshot()
		err := look()
		if stale := settle(); stale != nil {
			return stale
		}
		if err != nil || i.Replica.Snapshot() == snap {
			return err
		}
	}
	return fmt.Errorf("%w: the log runs faster than a token is checked", ErrUnavailable)
}

// maxLooks bounds how often one finding is made again.
const maxLooks = 8

// fresh tells whether this issuer has a lease now: without one it signs nothing (PROTOCOL 17).
func (i *Issuer) fresh() bool { return i.sound() == nil && (i.Lease == nil || i.live(i.Lease())) }

// sound tells whether the state that this issuer reads may be believed.
func (i *Issuer) sound() error {
	if i.Sound == nil {
		return nil
	}
	return i.Sound()
}

func (i *Issuer) live(held *lease.Lease) bool { return held != nil && held.Live(i.Clock()) }
