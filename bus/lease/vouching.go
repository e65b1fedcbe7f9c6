package lease

import (
	"cmp"
	"slices"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// Vouching is a run that may be vouching now.
type Vouching struct {
	Agent, Run string
	Serving    bool          // it goes on without a lease, so nothing says whether it is still there
	Left       time.Duration // until its lease has certainly ended; 0 where Serving
	Acked      bus.Position  // the newest entry that it has acknowledged, as far as this issuer knows
	First      bus.Position  // of the tick of the oldest of its leases that count
}

// Vouching gives the agents' runs whose leases have not certainly ended, by the log as far as it is
// read here, ordered by agent and run.
func (l *Ledger) Vouching() []Vouching { return l.vouching(false) }

// Issuers gives the issuers' runs that may be signing and verifying now, in the same way.
func (l *Ledger) Issuers() []Vouching { return l.vouching(true) }

func (l *Ledger) vouching(issuers bool) []Vouching {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock()
	var all []Vouching
	for _, r := range l.runs {
		v := Vouching{Agent: r.agent, Run: r.id, Acked: r.acked}
		live := false
		for _, g := range r.grants {
			if g.over(now) {
				continue
			}
			if !live || g.Position.Before(v.First) {
				v.First = g.Position
			}
			live = true
			if v.Serving = v.Serving || g.Mode == Serve; g.Mode != Serve {
				v.Left = max(v.Left, g.Length+time.Duration(float64(g.Length)*Drift)-shortest(g.read, now))
			}
		}
		if v.Serving {
			v.Left = 0
		}
		if live && r.issuer == issuers {
			all = append(all, v)
		}
	}
	slices.SortFunc(all, func(a, b Vouching) int { return cmp.Or(cmp.Compare(a.Agent, b.Agent), cmp.Compare(a.Run, b.Run)) })
	return all
}

// Accompanied tells whether another issuer than the run self may be signing and verifying now.
func (l *Ledger) Accompanied(self string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock()
	for _, r := range l.runs {
		if r.issuer && r.id != self && slices.ContainsFunc(r.grants, func(g granted) bool { return !g.over(now) }) {
			return true
		}
	}
	return false
}
