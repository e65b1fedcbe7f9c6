package lease_test

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
)

// action is something that can happen, "" if it cannot now.
type action func(w *world, choose pick) string

// actions are what can happen next, each as often as it is named.
var actions = []action{
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
	m.setBack = m.setBack || how == 1
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

// Menus for what is rare when everything can happen: restarts from an older state, and late messages.
var restarts = []action{
	(*world).up, (*world).round, (*world).revoke, (*world).apply, (*world).apply, (*world).acknowledge, (*world).acknowledge,
	(*world).deliver, (*world).deliver, (*world).deliver, (*world).read, (*world).read, (*world).restart,
}
var delays = []action{
	(*world).up, (*world).ask, (*world).deliver, (*world).deliver, (*world).beginTick, (*world).endTick, (*world).apply, (*world).revoke, (*world).read, (*world).pass,
}
