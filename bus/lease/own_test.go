package lease_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
)

// tickLog is a log that takes a time for each tick.
type tickLog struct {
	epoch, seq uint64
	during     func()
	err        error
}

func (l *tickLog) WriteGrants(context.Context, []byte) (uint64, []byte, error) { return 1, nil, nil }

func (l *tickLog) AppendTick(context.Context, bus.Tick) (bus.Cursor, error) {
	l.during()
	l.seq++
	return bus.Cursor{Position: bus.Position{Epoch: l.epoch, Seq: l.seq}}, l.err
}

// TestOwn: an issuer's lease begins before its tick is sent, counts once that is read back, and not at
// all if nobody knows whether the tick stands in the log.
func TestOwn(t *testing.T) {
	var now lease.Reading
	pass := func(d time.Duration) { now.Mono += d; now.Boot += d; now.Wall += d }
	var applied bus.Position
	log := &tickLog{epoch: 1, during: func() { pass(2 * time.Second) }}
	own := lease.NewOwn(log, func() bus.Position { return applied }, 5*time.Second, func() lease.Reading { return now })
	live := func() bool { l := own.Current(); return l != nil && l.Live(now) }
	tick := func() bus.Position {
		t.Helper()
		at, err := own.AppendTick(t.Context(), bus.Tick{})
		if !errors.Is(err, log.err) {
			t.Fatal(err)
		}
		return at.Position
	}
	if live() {
		t.Error("without a tick: it is live")
	}
	first := tick()
	if live() {
		t.Error("a tick that is not read back: it is live")
	}
	applied = first
	if pass(3*time.Second - 1); !live() {
		t.Error("5 s less a nanosecond after the tick was begun: it has ended")
	}
	if pass(1); live() {
		t.Error("5 s after the tick was begun, 3 after its answer: it is live")
	}
	second := tick()
	if live() {
		t.Error("a second tick that is not read back: it is live")
	}
	if applied = second; !live() {
		t.Error("a second tick read back: it is not live")
	}
	now.Boot += time.Minute
	if live() {
		t.Error("after a minute of suspension: it is live")
	}
	log.err = errors.New("no answer")
	lost := tick()
	if applied = lost; live() {
		t.Error("a tick of unknown fate: it is live")
	}
	log.err = nil
	third := tick()
	applied = bus.Position{Epoch: 2, Seq: third.Seq + 10}
	if live() {
		t.Error("a tick of the epoch before: it is live")
	}
	for range 100 { // none of them read back
		tick()
	}
	log.epoch = 2
	fourth := tick()
	if applied = fourth; !live() {
		t.Error("a tick after many that were never read back: it is not live")
	}
}
