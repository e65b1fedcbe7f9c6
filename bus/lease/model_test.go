package lease_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
)

// The protocol as a whole, without network, disks and goroutines: real Holders with real lease files,
// real Ledgers, and between them a log and a bag of messages from which any may be delivered at any
// time, again, or never. Every history that a driver chooses has to keep promise 1; and each planted
// fault has to break it in some history, which shows that the promise is looked at.

// faults are what a world may do wrong.
type faults struct {
	ackBeforeFloor    bool // the acknowledgement leaves before its floor is written
	ackBeforeApplied  bool // and before the verify path sees the entry
	datedAtReceipt    bool // a lease counts from its answer
	noRecheck         bool // a check does not look at its lease again before it answers
	otherLease        bool // it looks at the lease that is in force then, not at the one that it took first
	names             bool // processes under one name are one run
	tickUnderWay      bool // a tick answers whoever has asked until it is acknowledged
	unread            bool // a receipt is given by an issuer that has not read up to the entry
	fastClocks        bool // clocks run at rates that differ by more than the drift
	floorForgotten    bool // a restart takes the lease up and not the floor
	fileOnDisk        bool // an old lease file comes back with a disk image
	leaseWithoutTick  bool // a lease counts before its tick is applied
	restoredLong      bool // an issuer that starts from a checkpoint knows none of its leases
	onlyNewest        bool // of a run's leases only the newest counts
	settledByAnyAgent bool // an acknowledgement of one agent counts for another
}

const (
	machines  = 3
	agents    = 2
	processes = 3 // web-1, web-2, and another web-1 on a machine of its own
	issuers   = 2
)

// machine is a host and its clocks.
type machine struct {
	rate       float64
	boot, wall time.Duration // beside the true time
	suspended  time.Duration
	setBack    bool // its wall clock was
}

func (w *world) reading(m *machine) lease.Reading {
	d := time.Duration(float64(w.now) * m.rate)
	return lease.Reading{Mono: d - m.suspended, Boot: d + m.boot, Wall: d + m.wall}
}

// process is one place where an agent runs, and what runs there now.
type process struct {
	agent    string
	dir      string
	length   time.Duration
	mode     lease.Mode
	m        *machine
	h        *lease.Holder // nil while it is down
	f        *lease.File
	from     uint64 // it began with an image of so many entries: chains before are unknown
	applied  uint64 // what a check sees
	floor    uint64
	received map[uint64]lease.Reading // when the grant of a tick was received
	checks   []check
	oldFile  []byte
}

// check is a request under way: it has taken its lease, and looked.
type check struct {
	l    *lease.Lease
	view uint64
}

// office of an issuer: its account, its tick under way and the requests that have reached it.
type counter struct {
	m      *machine
	l      *lease.Ledger
	read   uint64
	asked  []asking
	ticked []asking // of the tick under way
	ticks  bool
}

type asking struct {
	req  lease.Request
	from int // process
}

// message is what was sent once, and may arrive at any time, also again.
type message struct {
	req   *asking
	grant *lease.Grant
	to    int // process that a grant is for
	ack   *lease.Ack
}

type world struct {
	faults faults
	now    time.Duration
	log    *tape
	lists  [][]lease.Request // by entry: who is answered by it
	revoked,
	confirmed []uint64 // entries
	procs    []*process
	issuers  []*counter
	machines []*machine
	bag      []message
	held     []byte // the newest checkpoint's, at
	heldAt   bus.Cursor
	dead     map[string]bool // agents of which a serving process ended for good

	asked, granted, checked int // figures
}

// pick chooses one of n.
type pick func(n int) int

func newModel(dir string, f faults, choose pick) *world {
	w := &world{faults: f, log: newTape(), dead: make(map[string]bool), now: time.Hour}
	for n := range machines + issuers {
		m := &machine{rate: []float64{1, 0.996, 1.004}[choose(3)], boot: time.Duration(n) * time.Hour, wall: time.Duration(1000*n) * time.Hour}
		if f.fastClocks {
			m.rate = []float64{0.9, 1.1}[min(n/machines, 1)]
		}
		w.machines = append(w.machines, m)
	}
	for n := range processes {
		p := &process{agent: fmt.Sprint("web-", n%agents+1), dir: filepath.Join(dir, fmt.Sprint(n)), m: w.machines[n], length: []time.Duration{time.Second, 3 * time.Second}[choose(2)], mode: lease.Refuse}
		if choose(6) == 0 {
			p.mode = lease.Serve
		}
		if choose(4) == 0 {
			p.dir = ""
		}
		w.procs = append(w.procs, p)
	}
	for n := range issuers {
		c := &counter{m: w.machines[machines+n]}
		c.l = lease.NewLedger(func() lease.Reading { return w.reading(c.m) })
		w.issuers = append(w.issuers, c)
	}
	return w
}

func (w *world) close() {
	for _, p := range w.procs {
		p.stop()
	}
}

func (p *process) stop() {
	if p.f != nil {
		p.f.Close()
		p.f = nil
	}
	p.h, p.checks = nil, nil
}

// start begins a process that has so many entries from an image.
func (w *world) start(n int, applied uint64) {
	p := w.procs[n]
	p.received = make(map[uint64]lease.Reading)
	p.from, p.applied, p.floor = applied, applied, 0
	cfg := lease.HolderConfig{Agent: p.agent, Length: p.length, Mode: p.mode, Clock: func() lease.Reading { return w.reading(p.m) }}
	if p.dir != "" {
		f, err := lease.OpenFile(p.dir, p.agent)
		if err != nil {
			panic(err)
		}
		p.f, cfg.File = f, f
	}
	p.h = lease.NewHolder(cfg)
	w.visible(n)
}

func (w *world) stopProc(n int) {
	p := w.procs[n]
	if p.mode == lease.Serve {
		w.dead[p.agent] = true // whether its run goes on is known when it starts
	}
	p.stop()
}

// visible tells the holder what a check sees.
func (w *world) visible(n int) {
	p := w.procs[n]
	if p.applied == 0 {
		return
	}
	at := w.log.at(p.applied).Position
	if w.faults.leaseWithoutTick {
		at.Seq += 1000
	}
	err := p.h.Applied(at, func(seq uint64) (bus.Chain, bool) {
		if seq < p.from && !w.faults.leaseWithoutTick {
			return bus.Chain{}, false
		}
		return w.log.chainAt(seq)
	})
	if err != nil {
		panic(err) // there is one log only
	}
}

// lease is what a process believes to hold.
func (w *world) lease(p *process) *lease.Lease {
	l := p.h.Current()
	if l != nil && w.faults.datedAtReceipt {
		if at, ok := p.received[l.Position.Seq]; ok {
			later := *l
			later.Begin = at
			return &later
		}
	}
	return l
}

// run is the name under which a process speaks.
func (w *world) run(p *process) string {
	if w.faults.names {
		return "run"
	}
	return p.h.Run()
}

func (w *world) append(grants []lease.Request) bus.Cursor {
	w.lists = append(w.lists, grants)
	return w.log.next()
}

// promise looks at promise 1: nobody vouches without an entry that some issuer has confirmed.
func (w *world) promise() string {
	for _, r := range w.revoked {
		if slices.Contains(w.confirmed, r) {
			continue
		}
		at := w.log.at(r).Position
		for _, c := range w.issuers {
			if w.faults.unread && c.read < r && c.read > 0 {
				at = w.log.at(c.read).Position
			}
			if w.settled(c.l, at) {
				w.confirmed = append(w.confirmed, r)
				break
			}
		}
	}
	for n, p := range w.procs {
		if p.h == nil {
			continue
		}
		l := w.lease(p)
		if l == nil || !l.Vouches(w.reading(p.m)) {
			continue
		}
		for _, r := range w.confirmed {
			if p.applied < r {
				return fmt.Sprintf("VIOLATION: process %d vouches by %d entries though entry %d is confirmed", n, p.applied, r)
			}
		}
	}
	return ""
}

func (w *world) settled(l *lease.Ledger, at bus.Position) bool {
	rec := l.Receipt(at, "")
	if !w.faults.onlyNewest || rec == nil {
		return rec.Settled()
	}
	for _, h := range l.Holdings() { // as if the newest lease were the only one
		if g := h.Grants[len(h.Grants)-1]; g.Position.Before(at) && slices.Contains(rec.Pending, h.Agent) {
			return false
		}
	}
	return true
}

// heal lets all be well for long enough, and tells what is not as it should be then.
func (w *world) heal() string {
	for _, m := range w.machines {
		m.rate = max(0.996, min(m.rate, 1.004)) // a jump of the clocks, which the lease must bear
	}
	for n, p := range w.procs {
		if p.h == nil {
			w.start(n, 0)
		}
		p.checks = nil
	}
	for range 40 {
		w.round(nil)
		for n := range w.procs {
			w.acknowledges(n)
			last := w.bag[len(w.bag)-1]
			for i := range w.issuers {
				w.arrive(last, i)
			}
		}
		w.now += 100 * time.Millisecond
		if v := w.promise(); v != "" {
			return v
		}
	}
	for n, p := range w.procs {
		if l := p.h.Current(); l == nil || !l.Live(w.reading(p.m)) {
			return fmt.Sprintf("STUCK: process %d has no lease 4 s after all is well", n)
		}
	}
	for n, c := range w.issuers {
		for _, r := range w.revoked {
			rec := c.l.Receipt(w.log.at(r).Position, "")
			for _, agent := range rec.Pending {
				if c.m.setBack {
					continue // its fences wait until its wall clock says so too
				}
				if !slices.Contains(rec.Serving, agent) || !w.dead[agent] {
					return fmt.Sprintf("STUCK: 4 s after all is well issuer %d waits for %s with entry %d", n, agent, r)
				}
			}
		}
		if held := c.l.Holdings(); len(held) > 400 {
			return fmt.Sprintf("GROWS: issuer %d remembers %d runs", n, len(held))
		}
	}
	return ""
}
