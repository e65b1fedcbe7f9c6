package lease

import (
	"slices"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// Receipt says who is done with an entry. Names are agents', ordered; one with several runs is where
// its slowest run is. The zero value settles nothing.
type Receipt struct {
	Applied []string // every run that may vouch has acknowledged it
	Fenced  []string // the leases that could miss it have certainly ended
	Pending []string // neither: it may still vouch without knowing it
	Serving []string // of Pending, those that go on without a lease: only their acknowledgement settles them
	// Next is the longest until the last of Pending is fenced, 0 if some never is by itself.
	Next time.Duration
}

// Settled tells whether nobody who lacks the entry can be vouching.
func (r *Receipt) Settled() bool { return r != nil && len(r.Pending) == 0 }

// Receipt gives the receipt of the entry at a position, as it stands now; nil until log and grants
// are read up to it. self is the run of this issuer, which has read the entry itself; another process
// under its name has not.
func (l *Ledger) Receipt(at bus.Position, self string) *Receipt {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.read.Before(at) {
		return nil
	}
	now := l.clock()
	places := make(map[string]int, len(l.runs)) // by agent: the worst of its runs
	rec := new(Receipt)
	var longestLeft time.Duration
	never := false
	for _, r := range l.runs {
		if r.issuer && r.id == self {
			continue
		}
		place, left := r.place(at, now)
		if place == placePending {
			longestLeft = max(longestLeft, left)
			never = never || left == 0
			if left == 0 && !slices.Contains(rec.Serving, r.agent) {
				rec.Serving = append(rec.Serving, r.agent)
			}
		}
		places[r.agent] = max(places[r.agent], place)
	}
	for agent, place := range places {
		switch place {
		case placeApplied:
			rec.Applied = append(rec.Applied, agent)
		case placeFenced:
			rec.Fenced = append(rec.Fenced, agent)
		case placePending:
			rec.Pending = append(rec.Pending, agent)
		}
	}
	slices.Sort(rec.Applied)
	slices.Sort(rec.Fenced)
	slices.Sort(rec.Pending)
	slices.Sort(rec.Serving)
	if !never {
		rec.Next = longestLeft
	}
	return rec
}

// The places of a run in a receipt, better ones first.
const (
	placeNone = iota // it holds no lease older than the entry
	placeApplied
	placeFenced
	placePending
)

// place says where a run stands with the entry at a position, and, pending, how long until its
// fence (0: it has none). Only leases granted before the entry matter: a later one implies it.
func (r *run) place(at bus.Position, now Reading) (place int, left time.Duration) {
	if r.acked.Epoch == at.Epoch && r.acked.Seq >= at.Seq { // what a later log holds of an earlier one is not known here
		return placeApplied, 0
	}
	for _, g := range r.grants {
		if !g.Position.Before(at) {
			continue
		}
		if g.Mode == Serve {
			return placePending, 0
		}
		if g.over(now) {
			place = max(place, placeFenced)
			continue
		}
		place = placePending
		left = max(left, g.Length+time.Duration(float64(g.Length)*Drift)-shortest(g.read, now))
	}
	return place, left
}
