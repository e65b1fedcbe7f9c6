package issuer

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
)

// Overview is what others tell of the fleet. Each may be nil.
type Overview struct {
	Bus      func() *bus.Health      // as it was seen last; nil: not yet
	Vouching func() []lease.Vouching // the agents' runs that may vouch (lease.Ledger.Vouching)
	Issuers  func() []lease.Vouching // the issuers' runs that may sign (lease.Ledger.Issuers)
	// Duties tells which issuer holds each duty that one does at a time.
	Duties func(context.Context) (map[string]string, error)
}

// agentState is what is the matter with an agent, in one word. Worse ones come first.
type agentState string

// The states of an agent, the worst first; docs/operations.md says what each asks for.
const (
	agentFault   agentState = "fault"   // it does not believe the log
	agentServing agentState = "serving" // it goes on without a lease
	agentStale   agentState = "stale"   // it has no lease, and answers 503
	agentSilent  agentState = "silent"  // it has not been heard for silentAfter
	agentBehind  agentState = "behind"  // it lacks an entry that has been there for behindAfter
	agentClock   agentState = "clock"   // its clock is off
	agentOK      agentState = "ok"
)

var agentStates = []agentState{agentFault, agentServing, agentStale, agentSilent, agentBehind, agentClock, agentOK}

// Bounds of looking at the fleet.
const (
	silentAfter  = 45 * time.Second // an agent tells its status every 10 s
	behindAfter  = 15 * time.Second // what it tells is up to 10 s old
	glanceAge    = 2 * time.Second  // of the answer to an administrator
	scrapeAge    = 10 * time.Second // of what metrics say
	glanceWithin = 5 * time.Second
	maxWorst     = 20
	maxVersions  = 16
)

// agentView is one agent that is not ok: {"name":"web-1","state":"behind","lag_ms":31000,…}.
type agentView struct {
	Name     string     `json:"name"`
	State    agentState `json:"state"`
	Version  string     `json:"version,omitempty"`
	Seq      uint64     `json:"seq"`             // that it has applied; 0: not heard
	Lag      int64      `json:"lag_ms"`          // how long it has lacked an entry, at the least
	MayVouch int64      `json:"may_vouch_ms"`    // until its lease has certainly ended; -1: it has no end
	Seen     int64      `json:"seen,omitempty"`  // NumericDate; 0: not since this issuer listens
	ClockOff int64      `json:"clock_off_ms"`    //
	Fault    string     `json:"fault,omitempty"` // why it does not go on with the log, in its own words
}

// fleetView is all agents at a glance. It never changes.
type fleetView struct {
	at       time.Time
	Total    int                `json:"total"`
	States   map[agentState]int `json:"states"`   // every state
	Vouching int                `json:"vouching"` // runs whose lease has not certainly ended
	Lag      int64              `json:"lag_ms"`   // of the run farthest behind of those that may vouch, by its acknowledgements; ticks are none that it lacks
	Versions map[string]int     `json:"versions"` // 16 at most, the rest under "other"
	Worst    []agentView        `json:"worst"`    // 20 at most, those that are not ok
	More     int                `json:"more"`     // not ok, and not in Worst
}

// glances keeps the newest look at the fleet: one at a time is under way, however many ask.
type glances struct {
	mu     sync.Mutex
	last   *fleetView
	failed time.Time // of the last look that had no answer; zero: none, or not since one had
	err    error     // why
}

// fleetAt gives the fleet as it was at most so long ago. Those who wait for a look that fails have its error: metrics are asked for by
// anybody who reaches them, and while the bus is away one such after another would keep an administrator waiting.
func (i *Issuer) fleetAt(ctx context.Context, age time.Duration) (*fleetView, error) {
	i.glance.mu.Lock()
	defer i.glance.mu.Unlock()
	if v := i.glance.last; v != nil && time.Since(v.at) < age {
		return v, nil
	}
	if i.glance.err != nil && time.Since(i.glance.failed) < glanceAge {
		return nil, i.glance.err
	}
	if err := ctx.Err(); err != nil { // who asked has waited too long for another's look, or has gone
		return nil, err
	}
	lctx, cancel := context.WithTimeout(ctx, glanceWithin)
	defer cancel()
	agents, err := i.Fleet.Agents(lctx)
	if err != nil {
		err = unavailable("listing", "agents", err)
		if !errors.Is(ctx.Err(), context.Canceled) { // who asked has not gone
			i.glance.failed, i.glance.err = time.Now(), err
		}
		return nil, err
	}
	i.glance.last, i.glance.err = i.lookAt(agents, time.Now()), nil
	return i.glance.last, nil
}

// lookAt judges all agents.
func (i *Issuer) lookAt(agents []bus.AgentInfo, now time.Time) *fleetView {
	v := &fleetView{at: now, Total: len(agents), States: make(map[agentState]int), Versions: make(map[string]int), Worst: []agentView{}}
	for _, s := range agentStates {
		v.States[s] = 0
	}
	left := make(map[string]time.Duration)
	if i.Overview.Vouching != nil {
		for _, r := range i.Overview.Vouching() {
			v.Vouching++
			// What stands before every lease by which it may vouch it has read, acknowledged here or not (lease.Ledger.Receipt).
			v.Lag = max(v.Lag, i.Feed.owed(max(r.Acked.Seq, r.First.Seq), now).Milliseconds())
			if left[r.Agent] = max(left[r.Agent], r.Left); r.Serving {
				left[r.Agent] = time.Duration(1<<63 - 1)
			}
		}
	}
	for at := range agents {
		a := i.judgeAgent(&agents[at], now)
		if a.MayVouch = left[a.Name].Milliseconds(); left[a.Name] == time.Duration(1<<63-1) {
			a.MayVouch = -1
		}
		v.States[a.State]++
		if a.Version != "" {
			version := a.Version
			if _, known := v.Versions[version]; !known && len(v.Versions) >= maxVersions {
				version = "other"
			}
			v.Versions[version]++
		}
		if a.State != agentOK {
			v.Worst = append(v.Worst, a)
		}
	}
	slices.SortFunc(v.Worst, func(a, b agentView) int {
		return cmp.Or(cmp.Compare(slices.Index(agentStates, a.State), slices.Index(agentStates, b.State)), cmp.Compare(b.Lag, a.Lag), cmp.Compare(a.Name, b.Name))
	})
	v.More = max(0, len(v.Worst)-maxWorst)
	v.Worst = slices.Clip(v.Worst[:min(len(v.Worst), maxWorst)])
	return v
}

// judgeAgent says what is the matter with one agent, by what it told last. It tells that of itself: nothing is decided by it.
func (i *Issuer) judgeAgent(a *bus.AgentInfo, now time.Time) agentView {
	var told struct {
		Stale    bool   `json:"stale"`
		Serving  bool   `json:"serving"`
		ClockOff int64  `json:"clock_off_ms"`
		Fault    string `json:"fault"`
	}
	if json.Unmarshal(a.Status, &told) != nil {
		told.Fault = ""
	}
	v := agentView{Name: a.Name, State: agentOK, Version: shortened(a.Version, 64), Seq: a.Seq, Seen: numericDate(a.Seen), ClockOff: told.ClockOff, Fault: shortened(told.Fault, 256)}
	if !a.Seen.IsZero() {
		v.Lag = i.Feed.lag(a.Seq, now).Milliseconds()
	}
	switch {
	case a.Seen.IsZero() || now.Sub(a.Seen) > silentAfter:
		v.State = agentSilent
	case told.Fault != "":
		v.State = agentFault
	case told.Serving:
		v.State = agentServing
	case told.Stale:
		v.State = agentStale
	case v.Lag > behindAfter.Milliseconds():
		v.State = agentBehind
	case time.Duration(told.ClockOff)*time.Millisecond > lease.MaxClockOff || time.Duration(told.ClockOff)*time.Millisecond < -lease.MaxClockOff:
		v.State = agentClock
	}
	return v
}

// shortened bounds what an agent says of itself, and takes out what is not printable.
func shortened(s string, most int) string {
	s = printableOnly(s)
	return s[:min(len(s), most)]
}
