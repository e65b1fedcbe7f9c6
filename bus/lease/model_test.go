package lease_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

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

// actions are what can happen next, each as often as it is named.
var actions = []func(w *world, choose pick) string{
	(*world).up, (*world).ask, (*world).ask, (*world).deliver, (*world).deliver, (*world).deliver, (*world).deliver,
	(*world).beginTick, (*world).beginTick, (*world).endTick, (*world).endTick, (*world).apply, (*world).apply, (*world).acknowledge,
	(*world).revoke, (*world).read, (*world).read, (*world).pass, (*world).pass, (*world).skew, (*world).down, (*world).restartIssuer, (*world).checkpoint,
	(*world).beginCheck, (*world).endCheck, (*world).round, (*world).restart,
}

func (w *world) up(choose pick) string {
	n := choose(processes)
	if w.procs[n].h != nil {
		return ""
	}
	w.start(n, uint64(choose(int(min(w.procs[n].applied, 1000))+1)))
	return fmt.Sprintf("process %d starts with %d entries, run %.4s", n, w.procs[n].applied, w.procs[n].h.Run())
}

func (w *world) down(choose pick) string {
	n := choose(processes)
	if w.procs[n].h == nil {
		return ""
	}
	w.stopProc(n)
	return fmt.Sprintf("process %d ends", n)
}

// restart is down and up at once, from an older state, with its lease file, without, or with an old one.
func (w *world) restart(choose pick) string {
	n := choose(processes)
	p := w.procs[n]
	if p.h == nil {
		return ""
	}
	was := p.applied
	w.stopProc(n)
	path := ""
	if p.dir != "" {
		path = filePath(p.dir, p.agent)
	}
	what := choose(6)
	switch {
	case path == "":
	case what == 0:
		os.Remove(path)
	case what == 1 && w.faults.fileOnDisk && p.oldFile != nil:
		os.WriteFile(path, p.oldFile, 0o600)
	}
	if path != "" && (p.oldFile == nil || what == 2) {
		p.oldFile, _ = os.ReadFile(path)
	}
	back := uint64(choose(4))
	w.start(n, was-min(was, back))
	if w.faults.floorForgotten && p.dir != "" {
		p.stop()
		dropFloor(filePath(p.dir, p.agent))
		w.start(n, was-min(was, back))
	}
	return fmt.Sprintf("process %d starts again, %d entries behind, run %.4s", n, back, p.h.Run())
}

func (w *world) ask(choose pick) string {
	n := choose(processes)
	p := w.procs[n]
	if p.h == nil {
		return ""
	}
	a := &asking{req: p.h.Ask(), from: n}
	a.req.Run = w.run(p)
	w.send(message{req: a})
	w.asked++
	return fmt.Sprintf("process %d asks", n)
}

func (w *world) send(m message) {
	if len(w.bag) == 64 {
		w.bag = w.bag[1:] // lost
	}
	w.bag = append(w.bag, m)
}

// deliver lets a message arrive, mostly a new one, and mostly once.
func (w *world) deliver(choose pick) string {
	if len(w.bag) == 0 {
		return ""
	}
	n := choose(len(w.bag))
	if choose(2) == 0 {
		n = len(w.bag) - 1
	}
	m := w.bag[n]
	if choose(4) > 0 {
		w.bag = slices.Delete(w.bag, n, n+1)
	}
	return w.arrive(m, choose(issuers))
}

func (w *world) arrive(m message, issuer int) string {
	c := w.issuers[issuer]
	switch {
	case m.req != nil:
		c.asked = append(c.asked, *m.req)
		return fmt.Sprintf("issuer %d hears process %d ask", issuer, m.req.from)
	case m.grant != nil:
		p := w.procs[m.to]
		if p.h == nil {
			return ""
		}
		g := *m.grant
		if w.faults.names {
			g.Run = p.h.Run()
		}
		if p.h.Take(g) != nil {
			return ""
		}
		w.granted++
		p.received[g.Seq] = w.reading(p.m)
		w.visible(m.to)
		return fmt.Sprintf("process %d takes the grant of tick %d", m.to, g.Seq)
	}
	a := *m.ack
	c.l.Acknowledge(a)
	if w.faults.settledByAnyAgent {
		for _, h := range c.l.Holdings() {
			c.l.Acknowledge(lease.Ack{Agent: h.Agent, Run: h.Run, At: a.At, Chain: a.Chain})
		}
	}
	return fmt.Sprintf("issuer %d hears run %.4s acknowledge %d", issuer, a.Run, a.At.Seq)
}

func (w *world) beginTick(choose pick) string {
	n := choose(issuers)
	c := w.issuers[n]
	if c.ticks {
		return ""
	}
	c.ticks, c.ticked, c.asked = true, c.asked, nil
	return fmt.Sprintf("issuer %d begins a tick for %d requests", n, len(c.ticked))
}

// endTick appends the tick under way: it is stored and acknowledged, stored only, or neither.
func (w *world) endTick(choose pick) string {
	n, fate := choose(issuers), choose(8)
	c := w.issuers[n]
	if !c.ticks {
		return ""
	}
	c.ticks = false
	if fate == 0 {
		return fmt.Sprintf("issuer %d's tick is lost", n)
	}
	at := w.append(requests(c.ticked))
	if fate == 1 {
		return fmt.Sprintf("issuer %d's tick is stored at %d, and nobody knows", n, at.Seq)
	}
	answered := c.ticked
	if w.faults.tickUnderWay {
		answered, c.asked = append(answered, c.asked...), nil
	}
	for _, a := range answered {
		g := answers(a.req, at)
		w.send(message{grant: &g, to: a.from})
	}
	return fmt.Sprintf("issuer %d's tick %d answers %d requests", n, at.Seq, len(answered))
}

func requests(asked []asking) []lease.Request {
	var all []lease.Request
	for _, a := range asked {
		all = append(all, a.req)
	}
	return all
}

// apply lets a process apply what is next, or all there is, or an image.
func (w *world) apply(choose pick) string {
	n := choose(processes)
	p, head := w.procs[n], uint64(len(w.log.chains))
	if p.h == nil || p.applied == head {
		return ""
	}
	switch choose(4) {
	case 0:
		p.applied = head
	case 1:
		p.applied += 1 + uint64(choose(int(head-p.applied)))
		p.from = p.applied
	default:
		p.applied++
	}
	w.visible(n)
	return fmt.Sprintf("process %d has applied %d", n, p.applied)
}

func (w *world) acknowledge(choose pick) string { return w.acknowledges(choose(processes)) }

func (w *world) acknowledges(n int) string {
	p := w.procs[n]
	if p.h == nil || p.applied == 0 {
		return ""
	}
	seq := p.applied
	if w.faults.ackBeforeApplied {
		seq = min(seq+1, uint64(len(w.log.chains)))
	}
	at := w.log.at(seq)
	if !w.faults.ackBeforeFloor {
		if err := p.h.Floor(at); err != nil {
			panic(err)
		}
	}
	w.send(message{ack: &lease.Ack{Agent: p.agent, Run: w.run(p), At: at.Position, Chain: at.Chain}})
	return fmt.Sprintf("process %d acknowledges %d", n, seq)
}

func (w *world) revoke(pick) string {
	at := w.append(nil)
	w.revoked = append(w.revoked, at.Seq)
	return fmt.Sprintf("a revocation stands at %d", at.Seq)
}

func (w *world) read(choose pick) string {
	n, all := choose(issuers), choose(2) == 0
	return w.reads(n, all)
}

func (w *world) reads(n int, all bool) string {
	c := w.issuers[n]
	for c.read < uint64(len(w.log.chains)) {
		c.read++
		at := w.log.at(c.read)
		grants := w.lists[c.read-1]
		c.l.Read(bus.Entry{Position: at.Position, Chain: at.Chain, Fact: &bus.Tick{Issuer: "issuer"}}, grants, w.reading(c.m), 0)
		if !all {
			break
		}
	}
	return fmt.Sprintf("issuer %d has read %d", n, c.read)
}

func (w *world) pass(choose pick) string {
	d := time.Duration(1+choose(1500)) * time.Millisecond
	w.now += d
	return fmt.Sprintf("%s pass", d)
}

// skew suspends a machine, or sets its wall clock.
func (w *world) skew(choose pick) string {
	n, how := choose(len(w.machines)), choose(4)
	m := w.machines[n]
	if how == 0 {
		d := time.Duration(choose(4000)) * time.Millisecond
		w.now += d
		m.suspended += time.Duration(float64(d) * m.rate)
		return fmt.Sprintf("machine %d is suspended for %s", n, d)
	}
	m.wall += []time.Duration{-time.Hour, time.Hour, time.Second}[how-1]
	return fmt.Sprintf("machine %d's wall clock is %s off", n, m.wall)
}

// checkpoint writes down what an issuer knows of leases.
func (w *world) checkpoint(choose pick) string {
	n := choose(issuers)
	c := w.issuers[n]
	if c.read <= w.heldAt.Seq {
		return ""
	}
	body, err := json.Marshal(c.l.Holdings())
	if err != nil {
		panic(err)
	}
	w.held, w.heldAt = body, w.log.at(c.read)
	return fmt.Sprintf("issuer %d writes a checkpoint of %d", n, c.read)
}

// restartIssuer begins an issuer that knows nothing but the log, or a checkpoint and the log behind it.
func (w *world) restartIssuer(choose pick) string {
	n := choose(issuers)
	m := w.issuers[n].m
	c := &counter{m: m}
	c.l = lease.NewLedger(func() lease.Reading { return w.reading(m) })
	if w.heldAt.Seq > 0 && choose(2) == 0 {
		var held []lease.Holding
		if err := json.Unmarshal(w.held, &held); err != nil {
			panic(err)
		}
		if w.faults.restoredLong {
			held = nil
		}
		c.l.Restore(w.heldAt, held)
		c.read = w.heldAt.Seq
	}
	w.issuers[n] = c
	return fmt.Sprintf("issuer %d starts again, from %d", n, c.read)
}

func (w *world) beginCheck(choose pick) string {
	n := choose(processes)
	p := w.procs[n]
	if p.h == nil || len(p.checks) > 3 {
		return ""
	}
	if l := w.lease(p); l != nil {
		p.checks = append(p.checks, check{l, p.applied})
		return fmt.Sprintf("a check at process %d has looked at %d", n, p.applied)
	}
	return ""
}

// endCheck answers a check that was begun, if its lease still lives. It has vouched without a confirmed
// entry only if its process does not have that now either: else the two overlapped.
func (w *world) endCheck(choose pick) string {
	n := choose(processes)
	p := w.procs[n]
	if len(p.checks) == 0 {
		return ""
	}
	c := p.checks[0]
	p.checks = p.checks[1:]
	w.checked++
	l := c.l
	if w.faults.otherLease {
		l = w.lease(p)
	}
	if (w.faults.noRecheck || l.Vouches(w.reading(p.m))) && (p.applied == c.view || w.faults.otherLease) {
		for _, r := range w.confirmed {
			if c.view < r {
				return fmt.Sprintf("VIOLATION: a check at process %d vouches by %d entries after entry %d was confirmed", n, c.view, r)
			}
		}
	}
	return fmt.Sprintf("a check at process %d ends", n)
}

// round lets everybody do what is next, as they do when all is well.
func (w *world) round(pick) string {
	for n, p := range w.procs {
		if p.h != nil {
			a := &asking{req: p.h.Ask(), from: n}
			a.req.Run = w.run(p)
			w.arrive(message{req: a}, n%issuers)
		}
	}
	for n, c := range w.issuers {
		at := w.append(requests(c.asked))
		for _, a := range c.asked {
			g := answers(a.req, at)
			w.arrive(message{grant: &g, to: a.from}, n)
		}
		c.asked = nil
	}
	for n, p := range w.procs {
		if p.h != nil {
			p.applied = uint64(len(w.log.chains))
			w.visible(n)
		}
	}
	for n := range w.issuers {
		w.reads(n, true)
	}
	return "a round"
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

// history lets a driver choose what happens, step by step, and gives what it broke.
func history(w *world, steps int, choose pick) (did []string, broke string) {
	for range steps {
		if what := actions[choose(len(actions))](w, choose); what != "" {
			did = append(did, what)
			if strings.HasPrefix(what, "VIOLATION") {
				return did, what
			}
		}
		if v := w.promise(); v != "" {
			return append(did, v), v
		}
	}
	return did, ""
}

// TestProtocol: no history breaks promise 1, and after each, once all is well, everybody has a lease and
// every entry is confirmed.
func TestProtocol(t *testing.T) {
	dir := runtimeDir(t)
	if f := flag.Lookup("rapid.checks"); !long && f.Value.String() == f.DefValue {
		f.Value.Set("400")
		defer f.Value.Set(f.DefValue)
	}
	var histories, steps, asked, granted, confirmed, checked int
	rapid.Check(t, func(rt *rapid.T) {
		choose := func(n int) int { return rapid.IntRange(0, n-1).Draw(rt, "choice") }
		home, err := os.MkdirTemp(dir, "h")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(home)
		w := newModel(home, faults{}, choose)
		defer w.close()
		did, broke := history(w, rapid.IntRange(20, 150).Draw(rt, "steps"), choose)
		if broke == "" {
			broke = w.heal()
		}
		if broke != "" {
			rt.Fatalf("%s\n%s", strings.Join(did, "\n"), broke)
		}
		histories, steps = histories+1, steps+len(did)
		asked, granted, confirmed, checked = asked+w.asked, granted+w.granted, confirmed+len(w.confirmed), checked+w.checked
	})
	t.Logf("%d histories of %d steps, with %d requests, %d grants taken, %d checks and %d entries confirmed: promise 1 broken 0 times",
		histories, steps, asked, granted, checked, confirmed)
}

// randomly drives histories by chance until one breaks.
func randomly(t *testing.T, f faults, histories, steps int) (tried int, broke string) {
	dir := runtimeDir(t)
	for seed := range uint64(histories) {
		rng := rand.New(rand.NewPCG(seed, 1))
		home := filepath.Join(dir, fmt.Sprint(seed))
		w := newModel(home, f, rng.IntN)
		did, broke := history(w, steps, rng.IntN)
		w.close()
		os.RemoveAll(home)
		if broke != "" {
			if testing.Verbose() && len(did) > 12 {
				did = did[len(did)-12:]
			}
			return int(seed) + 1, strings.Join(did, "; ")
		}
	}
	return histories, ""
}

// TestProtocolByChance drives the model harder than rapid does, without shrinking.
func TestProtocolByChance(t *testing.T) {
	n := 1500
	if long {
		n = 100_000
	}
	if tried, broke := randomly(t, faults{}, n, 300); broke != "" {
		t.Errorf("history %d: %s", tried, broke)
	}
	t.Logf("%d histories of 300 steps: promise 1 broken 0 times", n)
}

// TestPlantedFaults: each rule that is taken away breaks promise 1 in some history.
func TestPlantedFaults(t *testing.T) {
	for _, c := range []struct {
		rule string
		f    faults
	}{
		{"1: an acknowledgement leaves before its floor is written", faults{ackBeforeFloor: true}},
		{"1: a restart forgets the floor", faults{floorForgotten: true}},
		{"1: an acknowledgement leaves before the verify path sees the entry", faults{ackBeforeApplied: true}},
		{"2: a check does not look at its lease again", faults{noRecheck: true}},
		{"2: a check looks at a lease renewed meanwhile", faults{otherLease: true}},
		{"3: processes under one name are one run", faults{names: true}},
		{"3: an old lease file comes back with a disk image", faults{fileOnDisk: true}},
		{"4: a receipt is given before the issuer has read up to the entry", faults{unread: true}},
		{"4: only the newest lease of a run counts", faults{onlyNewest: true}},
		{"5: an issuer that starts from a checkpoint knows no leases", faults{restoredLong: true}},
		{"6: a tick answers who asked when it was under way", faults{tickUnderWay: true}},
		{"8: clocks run at rates that differ by more than the drift", faults{fastClocks: true}},
		{"a lease counts from when it was received", faults{datedAtReceipt: true}},
		{"a lease counts before its tick is applied", faults{leaseWithoutTick: true}},
		{"another agent's acknowledgement counts", faults{settledByAnyAgent: true}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			tried, broke := randomly(t, c.f, 20_000, 300)
			if broke == "" {
				t.Errorf("taken away, no history of %d breaks promise 1: the test does not look", tried)
			}
			t.Logf("caught in history %d: …; %s", tried, broke)
		})
	}
}
