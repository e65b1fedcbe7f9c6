package issuer

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// maxStatusKeys bounds the keys of a status: an HS256 ring has two for each audience.
const maxStatusKeys = 50

// statusAnswer is GET /admin/v1/status: the fleet at a glance. Its size does not grow with the fleet.
type statusAnswer struct {
	Time    float64           `json:"time"` // this issuer's clock, NumericDate
	Issuer  issuerView        `json:"issuer"`
	Issuers []issuerView      `json:"issuers"` // the others that have joined, or tick
	Duties  map[string]string `json:"duties,omitempty"`
	Agents  *fleetView        `json:"agents"` // null: the bus does not answer

	Keys        []keyAnswer `json:"keys"` // 50 at most, the newest entries
	MoreKeys    int         `json:"more_keys,omitempty"`
	RotationDue int64       `json:"rotation_due,omitempty"` // NumericDate of the next scheduled rotation; 0: none is scheduled
	Revocations int         `json:"revocations"`            // that matter still
	Bus         *bus.Health `json:"bus"`                    // null: not looked at yet
	BusAgeMS    int64       `json:"bus_age_ms,omitempty"`   // how long ago it was looked at
	Problems    []string    `json:"problems"`               // what is not as it should be, in words
}

// issuerView is one issuer. Of others only what the log says of them is known.
type issuerView struct {
	Name     string `json:"name"`
	Version  string `json:"version,omitempty"`
	Ready    bool   `json:"ready"` // of others: it ticks
	Reason   string `json:"reason,omitempty"`
	Seq      uint64 `json:"seq"`
	Epoch    uint64 `json:"epoch,omitempty"`
	ClockOff int64  `json:"clock_off_ms,omitempty"`
	Joined   int64  `json:"joined,omitempty"`
}

// self tells of this issuer.
func (i *Issuer) self() issuerView {
	at := i.Replica.Snapshot().Position
	v := issuerView{Name: i.cfg.Name, Version: i.cfg.Version, Ready: true, Seq: at.Seq, Epoch: at.Epoch, ClockOff: i.ClockOff().Milliseconds()}
	if err := i.Ready(); err != nil {
		v.Ready, v.Reason = false, err.Error()
	}
	return v
}

// others tells of the issuers but this one.
func (i *Issuer) others(ctx context.Context) []issuerView {
	all := []issuerView{}
	if i.Overview.Issuers != nil {
		for _, r := range i.Overview.Issuers() {
			if at := slices.IndexFunc(all, func(v issuerView) bool { return v.Name == r.Agent }); at >= 0 {
				all[at].Seq = max(all[at].Seq, r.Acked.Seq) // its former run
			} else if r.Agent != i.cfg.Name {
				all = append(all, issuerView{Name: r.Agent, Ready: true, Seq: r.Acked.Seq})
			}
		}
	}
	members, err := i.members(ctx, bus.RoleIssuer)
	if err != nil {
		i.log.Debug("could not list the issuers for a status", "error", err)
	}
	for _, m := range members {
		at := slices.IndexFunc(all, func(v issuerView) bool { return v.Name == m.Name })
		switch {
		case at >= 0:
			all[at].Joined = m.Joined
		case m.Removed == 0 && m.Name != i.cfg.Name:
			all = append(all, issuerView{Name: m.Name, Reason: "it does not tick", Joined: m.Joined})
		}
	}
	return all[:min(len(all), maxStatusKeys)]
}

// rotationDue is when the key that signs is due to be replaced; zero: nothing is scheduled, or no key signs.
func (i *Issuer) rotationDue() (due, began time.Time) {
	active, ok := i.activeKey(i.Replica.Snapshot().Ring)
	if !ok {
		return due, began
	}
	for _, f := range i.Replica.Keys() {
		if f.KeyID == active.KeyID {
			began = time.Unix(max(f.Created, f.ActivatesAt), 0)
		}
	}
	if i.cfg.RotateEvery > 0 && !began.IsZero() {
		due = began.Add(i.cfg.RotateEvery)
	}
	return due, began
}

func (i *Issuer) adminStatus(r *http.Request) (int, any, error) {
	s := i.status(r.Context())
	return http.StatusOK, s, nil
}

// status gathers all. What does not answer is left out and said.
func (i *Issuer) status(ctx context.Context) *statusAnswer {
	ctx, cancel := context.WithTimeout(ctx, glanceWithin)
	defer cancel()
	due, _ := i.rotationDue()
	s := &statusAnswer{
		Time: float64(i.now().UnixMilli()) / 1000, Issuer: i.self(), Issuers: i.others(ctx), Keys: []keyAnswer{}, RotationDue: numericDate(due),
		Revocations: i.Replica.Revocations(), Problems: []string{},
	}
	var err error
	if s.Agents, err = i.fleetAt(ctx, glanceAge); err != nil {
		s.Problems = append(s.Problems, "the agents cannot be listed: the bus does not answer")
	}
	if i.Overview.Duties != nil {
		if s.Duties, err = i.Overview.Duties(ctx); err != nil {
			s.Problems = append(s.Problems, "who holds the duties is not known: the bus does not answer")
		}
	}
	if i.Overview.Bus != nil {
		if s.Bus = i.Overview.Bus(); s.Bus != nil {
			s.BusAgeMS = time.Since(s.Bus.At).Milliseconds()
		}
	}
	keys, _ := i.ListKeys(ctx) // it reads memory alone
	signs := slices.ContainsFunc(keys, func(k KeyStatus) bool { return k.State == keyring.Active })
	slices.SortStableFunc(keys, func(a, b KeyStatus) int { return int(b.Seq) - int(a.Seq) })
	s.MoreKeys = max(0, len(keys)-maxStatusKeys)
	for at := range keys[:min(len(keys), maxStatusKeys)] {
		s.Keys = append(s.Keys, newKeyAnswer(&keys[at]))
	}
	s.Problems = append(s.Problems, i.problems(s, due, signs)...)
	return s
}

// problems says in words what is not as it should be. Alerts say the same over time.
func (i *Issuer) problems(s *statusAnswer, due time.Time, signs bool) (all []string) {
	say := func(bad bool, what string) {
		if bad {
			all = append(all, what)
		}
	}
	say(!s.Issuer.Ready, "this issuer makes no tokens: "+s.Issuer.Reason)
	for _, o := range s.Issuers {
		say(!o.Ready, "issuer "+o.Name+" does not tick")
	}
	if a := s.Agents; a != nil {
		say(a.States[agentFault] > 0, "agents do not believe the log")
		say(a.States[agentServing] > 0, "agents accept tokens without a lease")
		say(a.States[agentStale] > 0, "agents have no lease and answer 503")
		say(a.States[agentSilent] > 0, "agents have not been heard")
		say(a.States[agentBehind] > 0, "agents are behind the log")
		say(a.States[agentClock] > 0, "agents' clocks are off")
	}
	say(!due.IsZero() && i.now().Sub(due) > 10*time.Minute, "the scheduled rotation is overdue; keys rotate says who is waited for")
	say(!signs, "no key signs")
	if b := s.Bus; b != nil {
		say(b.Error != "", "the bus does not answer all: "+shortened(b.Error, 256))
		say(b.Leaderless > 0, "streams have no leader")
		say(b.Lagging > 0, "copies of streams are behind or offline")
		say(b.Sync == bus.Delayed, "the bus does not sync before it acknowledges (sync_interval of nats-server)")
		say(b.Sync == bus.Unknown, "whether the bus syncs before it acknowledges is not known to this issuer; set bus.monitor_url, or where another has the bus inside, ask that one")
		say(b.Limit > 0 && b.Used > uint64(b.Limit)/10*8, "the bus's store is over 80% full")
	}
	return all
}
