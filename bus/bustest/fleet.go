package bustest

import (
	"context"
	"encoding/json"
	"sort"
	"sync"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
)

// Fleet is a fleet in memory, with *bus.Fleet's contract. The zero value has no agents.
type Fleet struct {
	mu      sync.Mutex
	agents  map[string]bus.AgentInfo
	changed chan struct{}
}

// Join puts an agent into the fleet, as joining does.
func (f *Fleet) Join(name string, sealingKey []byte) {
	f.change(func() {
		if f.agents == nil {
			f.agents = make(map[string]bus.AgentInfo)
		}
		f.agents[name] = bus.AgentInfo{Name: name, SealingKey: sealingKey, Joined: time.Now()}
	})
}

// Tell lets an agent that may serve these audiences, by its join token, tell that it does, as its
// status does; none: the ring's default.
func (f *Fleet) Tell(name string, audiences ...string) {
	f.change(func() {
		a := f.agents[name]
		a.Audiences = audiences
		f.agents[name] = a
	})
	f.Claim(name, audiences...)
}

// Claim lets an agent tell that it serves audiences, whether it may or not.
func (f *Fleet) Claim(name string, audiences ...string) {
	f.Says(name, map[string]any{"agent": name, "audiences": append([]string{}, audiences...)})
}

// Says gives an agent a status of these members.
func (f *Fleet) Says(name string, members map[string]any) {
	status, err := json.Marshal(members)
	if err != nil {
		panic(err) // what tests put there marshals
	}
	f.change(func() {
		a := f.agents[name]
		a.Status = status
		f.agents[name] = a
	})
}

// Acknowledge lets an agent acknowledge all up to pos.
func (f *Fleet) Acknowledge(name string, pos bus.Position) {
	f.change(func() {
		a := f.agents[name]
		a.Position, a.Seen = pos, time.Now()
		f.agents[name] = a
	})
}

func (f *Fleet) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	if f.changed != nil {
		close(f.changed)
	}
	f.changed = make(chan struct{})
}

// Agents is *bus.Fleet's.
func (f *Fleet) Agents(context.Context) ([]bus.AgentInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make([]bus.AgentInfo, 0, len(f.agents))
	for _, a := range f.agents {
		all = append(all, a)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
	return all, nil
}

// Remove is *bus.Fleet's.
func (f *Fleet) Remove(_ context.Context, name string) error {
	f.mu.Lock()
	_, ok := f.agents[name]
	f.mu.Unlock()
	if !ok {
		return bus.ErrNotFound
	}
	f.change(func() { delete(f.agents, name) })
	return nil
}

// Receipt is a ledger's, for agents of one run each that all hold leases which never end.
func (f *Fleet) Receipt(ctx context.Context, pos bus.Position) (*lease.Receipt, error) {
	agents, err := f.Agents(ctx)
	if err != nil {
		return nil, err
	}
	rec := new(lease.Receipt)
	for _, a := range agents {
		if a.Position.Before(pos) {
			rec.Pending = append(rec.Pending, a.Name)
		} else {
			rec.Applied = append(rec.Applied, a.Name)
		}
	}
	return rec, nil
}

// Changed is *bus.Fleet's.
func (f *Fleet) Changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.changed == nil {
		f.changed = make(chan struct{})
	}
	return f.changed
}
