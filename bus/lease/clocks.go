package lease

import (
	"fmt"
	"sync"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// MaxClockOff is how far a wall clock may be off the ticks of others (DESIGN §3). An agent whose clock is further off says so; an
// issuer whose clock is does not tick.
const MaxClockOff = 30 * time.Second

// tickQuiet is how long nobody else ticks before it is known that nobody does: every issuer that may ticks every two seconds at most.
const tickQuiet = 5 * time.Second

// clockTicks is how many ticks must say the same before it is believed of an agent's clock: one may have been late.
const clockTicks = 3

// ClockError says that this machine's wall clock disagrees with the issuers' ticks.
type ClockError struct {
	Off    time.Duration // how far this clock is ahead of the tick; negative: behind
	Issuer string        // whose tick it was
}

func (e *ClockError) Error() string {
	way := "ahead of"
	if e.Off < 0 {
		way = "behind"
	}
	return fmt.Sprintf("the wall clock of this machine is %s %s the tick of issuer %q; set it right, or issuer %q's (timedatectl, chronyc tracking)",
		e.Off.Abs().Round(time.Second), way, e.Issuer, e.Issuer)
}

// Clocks holds this process's wall clock against the ticks of other processes. Between two ticks it goes on by
// CLOCK_BOOTTIME, so that a wall clock that is set is noticed at once, and one that is set right too. Its methods may be called
// by any goroutine.
type Clocks struct {
	run   string
	clock Clock

	mu    sync.Mutex
	bases [clockTicks]time.Duration // of the newest ticks: their time less CLOCK_BOOTTIME when they were heard
	heard int
	from  string        // whose the newest was
	at    time.Duration // CLOCK_BOOTTIME when it was heard
	alone bool          // it came after a silence: it may be old, of a time when this process or the bus was away
}

// NewClocks makes one for the process of a run, whose own ticks say nothing; "": it makes none. nil clock: SystemClock.
func NewClocks(run string, clock Clock) *Clocks {
	if clock == nil {
		clock = SystemClock
	}
	return &Clocks{run: run, clock: clock}
}

// Hear takes a tick that has just arrived, and was the newest entry of the log then.
func (c *Clocks) Hear(t *bus.Tick) {
	if c.run != "" && t.Run == c.run {
		return
	}
	now := c.clock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bases[c.heard%clockTicks] = time.Duration(t.Time)*time.Millisecond - now.Boot
	c.alone = c.heard == 0 || now.Boot-c.at > tickQuiet
	c.heard++
	c.from, c.at = t.Issuer, now.Boot
}

// Off is how far this clock is ahead of the ticks of others, negative: behind; 0 until enough of them were heard. Of the
// newest ones it is the least: a tick may arrive late, never early.
func (c *Clocks) Off() time.Duration {
	now := c.clock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.heard < clockTicks {
		return 0
	}
	least := off(now, c.bases[0])
	for _, base := range c.bases[1:] {
		if o := off(now, base); o.Abs() < least.Abs() {
			least = o
		}
	}
	return least
}

// CheckIssuer gives a *ClockError where an issuer may not tick, since its clock is off the newest tick of another by more
// than MaxClockOff. Fails closed: that the other has gone since makes this clock no better; that it is set right does. But a tick
// of this clock's past that came after a silence, and behind which nobody ticks for tickQuiet, was an old one, found in the log by who comes back: it
// says nothing, or issuers that had all been away would wait for each other for ever. One ahead of this clock is not old, whenever it was made.
func (c *Clocks) CheckIssuer() error {
	now := c.clock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.heard == 0 {
		return nil
	}
	o := off(now, c.bases[(c.heard-1)%clockTicks])
	old := c.alone && o > 0 && now.Boot-c.at > tickQuiet
	if old || o.Abs() <= MaxClockOff {
		return nil
	}
	return &ClockError{Off: o, Issuer: c.from}
}

func off(now Reading, base time.Duration) time.Duration { return now.Wall - (base + now.Boot) }
