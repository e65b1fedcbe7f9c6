package lease_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
)

// TestClocks holds a wall clock against ticks that are right, late, and of a clock that is wrong.
func TestClocks(t *testing.T) {
	for name, c := range map[string]struct {
		late   []time.Duration // of each tick heard
		set    time.Duration   // by which the wall clock is set after them
		off    time.Duration
		refuse bool // an issuer may not tick
	}{
		"nothing heard":              {off: 0},
		"in time":                    {late: []time.Duration{0, 0, 0}},
		"a second late":              {late: []time.Duration{time.Second, time.Second, time.Second}, off: time.Second},
		"too few to tell":            {late: []time.Duration{time.Minute, time.Minute}, refuse: true},
		"ahead":                      {late: []time.Duration{time.Minute, time.Minute, time.Minute}, off: time.Minute, refuse: true},
		"behind":                     {late: []time.Duration{-time.Minute, -time.Minute, -time.Minute}, off: -time.Minute, refuse: true},
		"one was late":               {late: []time.Duration{0, time.Minute, 0}},
		"the newest is late":         {late: []time.Duration{0, 0, time.Minute}, refuse: true},
		"as far as is allowed":       {late: []time.Duration{30 * time.Second, 30 * time.Second, 30 * time.Second}, off: 30 * time.Second},
		"set wrong after the ticks":  {late: []time.Duration{0, 0, 0}, set: time.Hour, off: time.Hour, refuse: true},
		"set right after the ticks":  {late: []time.Duration{time.Hour, time.Hour, time.Hour}, set: -time.Hour},
		"wrong once, right for long": {late: []time.Duration{time.Hour, 0, 0, 0}},
	} {
		clock := newClock()
		clocks := lease.NewClocks("own", clock.read)
		hear := func(run string, late time.Duration) {
			clock.pass(time.Second)
			clocks.Hear(&bus.Tick{Time: (clock.read().Wall - late).Milliseconds(), Issuer: "issuer-2", Run: run})
		}
		for _, late := range c.late {
			hear("other", late)
			hear("own", 24*time.Hour) // its own ticks say nothing
		}
		clock.turn(0, 0, c.set)
		clock.pass(time.Hour) // in which nothing is heard
		if got := clocks.Off(); got != c.off {
			t.Errorf("%s: Off: got %s, want %s", name, got, c.off)
		}
		var wrong *lease.ClockError
		if err := clocks.CheckIssuer(); errors.As(err, &wrong) != c.refuse {
			t.Errorf("%s: CheckIssuer: got %v, want an error: %v", name, err, c.refuse)
		}
	}
	err := &lease.ClockError{Off: -90 * time.Second, Issuer: "issuer-2"}
	if want := `the wall clock of this machine is 1m30s behind the tick of issuer "issuer-2"; set it right, or issuer "issuer-2"'s (timedatectl, chronyc tracking)`; err.Error() != want {
		t.Errorf("ClockError: got %q, want %q", err.Error(), want)
	}
}

// TestNoTickOfAWrongClock: an issuer whose clock is off does not tick, answers no lease request, and goes on once it is set right.
func TestNoTickOfAWrongClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clock := newClock()
		clocks := lease.NewClocks("own", clock.read)
		p := newPulse(t, func(cfg *lease.GranterConfig) { cfg.Sound = clocks.CheckIssuer })
		for range 2 {
			clocks.Hear(&bus.Tick{Time: (clock.read().Wall + time.Hour).Milliseconds(), Issuer: "issuer-2", Run: "other"})
			clock.pass(time.Second)
		}
		p.run(t)
		p.Hear(p.question(t, request("web-1", "a")))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := len(p.seen().ticks); n != 0 {
			t.Errorf("it ticked %d times with a wrong clock", n)
		}
		clock.turn(0, 0, time.Hour)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := len(p.seen().ticks); n == 0 {
			t.Error("it does not tick though its clock is right")
		}
	})
}

// TestOldTick: who finds a tick of an hour ago in the log, at its start or after an outage of the bus, waits for another only for as long as
// one that ticks would need. A tick of an hour ahead is not of the past: the clock is wrong, here or there, and waiting proves nothing.
func TestOldTick(t *testing.T) {
	clock := newClock()
	clocks := lease.NewClocks("own", clock.read)
	for _, when := range []string{"at the start", "after an outage"} {
		old := &bus.Tick{Time: (clock.read().Wall - time.Hour).Milliseconds(), Issuer: "issuer-2", Run: "other"}
		clocks.Hear(old)
		if clocks.CheckIssuer() == nil {
			t.Errorf("%s: it may tick before it can know that nobody does", when)
		}
		clock.pass(6 * time.Second)
		if err := clocks.CheckIssuer(); err != nil {
			t.Errorf("%s: nobody ticks, and it may not: %v", when, err)
		}
		for range 2 {
			clocks.Hear(old)
			clock.pass(time.Second)
		}
		clock.pass(time.Hour)
		if clocks.CheckIssuer() == nil {
			t.Errorf("%s: somebody ticked on, and it may tick with another clock", when)
		}
	}
	clocks = lease.NewClocks("own", clock.read)
	for _, when := range []string{"at the start", "after an outage"} {
		clocks.Hear(&bus.Tick{Time: (clock.read().Wall + time.Hour).Milliseconds(), Issuer: "issuer-2", Run: "other"})
		clock.pass(6 * time.Second)
		var wrong *lease.ClockError
		if err := clocks.CheckIssuer(); !errors.As(err, &wrong) || wrong.Off != -time.Hour {
			t.Errorf("a tick of an hour ahead, %s: got %v, want that this clock is an hour behind", when, err)
		}
		clock.turn(0, 0, time.Hour)
		if err := clocks.CheckIssuer(); err != nil {
			t.Errorf("a tick of an hour ahead, %s, and the clock set right: got %v", when, err)
		}
		clock.pass(time.Hour)
	}
}
