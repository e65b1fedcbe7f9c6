package main

import (
	"fmt"
	"net/http"
	"time"

	"github.com/sidekey/sidekey/bus/lease"
)

// setRight is what to do about a clock.
const setRight = "set the clock right, and keep it so: chrony or systemd-timesyncd"

// hostClock says whether anything keeps this host's clock right, as the kernel has it.
func (d *doctor) hostClock(synced, known bool) {
	switch {
	case !known:
	case synced:
		d.ok("clocks", "this host's clock is kept right, says its kernel")
	default:
		d.warn("clocks", "run systemd-timesyncd, or chrony with rtcsync; of a container, on its host", "nothing keeps this host's clock right, says its kernel")
	}
}

// httpClock compares this host's clock with an answer's Date, which has whole seconds. That they agree says nothing: who answers may be
// this host.
func (d *doctor) httpClock(who string, header http.Header, began time.Time, took time.Duration) {
	there, err := http.ParseTime(header.Get("Date"))
	if err != nil {
		return
	}
	d.differs("this host's clock against "+who, began.Add(took/2).Sub(there.Add(time.Second/2)))
}

// clocks judges what the issuer knows: its own clock against the other issuers' ticks, the agents' against all issuers'. One that
// stands alone has nothing to hold its own against but its agents'.
func (d *doctor) clocks(s *fleetStatus) {
	alone := true
	for _, other := range s.Issuers {
		alone = alone && !other.Ready // it does not tick
	}
	if !alone {
		d.judgeClock(fmt.Sprintf("the clock of issuer %s against the other issuers' ticks", clean(s.Issuer.Name)), time.Duration(s.Issuer.ClockOff)*time.Millisecond)
	}
	if s.Agents == nil {
		return
	}
	var off []string
	for _, a := range s.Agents.Worst {
		if o := time.Duration(a.ClockOff) * time.Millisecond; a.State != "silent" && o.Abs() > lease.MaxClockOff {
			off = append(off, fmt.Sprintf("%s (%s)", clean(a.Name), o.Round(time.Second)))
		}
	}
	heard := s.Agents.Total - s.Agents.States["silent"]
	n := max(len(off), s.Agents.States["clock"]) // of many the worst are named
	switch {
	case heard <= 0:
	case n == 0:
		d.ok("clocks", "no agent's clock is off by over %s, of %d", lease.MaxClockOff, heard)
	case n == heard && alone:
		d.fail("clocks", setRight, "every agent that is heard is off the clock of issuer %s, the only one that ticks, so look at that one first: %s", clean(s.Issuer.Name), few(off))
	default:
		d.warn("clocks", setRight+", on those hosts", "%d agents' clocks are off the issuers': %s", n, few(off))
	}
}

// differs is judgeClock where only a difference says something.
func (d *doctor) differs(what string, off time.Duration) {
	if off.Abs() > clockWarn {
		d.judgeClock(what, off)
	}
}

// clockWarn is what is said of a clock that is off by more.
const clockWarn = 5 * time.Second

// judgeClock says what a difference of clocks means.
func (d *doctor) judgeClock(what string, off time.Duration) {
	switch abs := off.Abs(); {
	case abs > lease.MaxClockOff:
		d.fail("clocks", setRight, "%s is off by %s: tokens are refused as expired or not yet valid", what, off.Round(time.Second))
	case abs > clockWarn:
		d.warn("clocks", setRight, "%s is off by %s; agent.leeway forgives %s", what, off.Round(time.Second), d.cfg.Agent.Leeway)
	default:
		d.ok("clocks", "%s: within %s", what, max(abs, time.Second).Round(time.Second))
	}
}
