package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// registerWithin bounds how long an issuer works on one registration.
const registerWithin = 10 * time.Second

// Bounds of what an agent may say.
const (
	maxAgentName = 128
	maxStatus    = 64 << 10
)

// agentRecord is an agent in the bucket "agents", under Name(agent):
//
//	{"agent": "web-1", "run": "…", "version": "v1.0.0", "sealing_key": "base64", "registered": 1767225600}
type agentRecord struct {
	Registration
	Registered int64 `json:"registered"` // NumericDate of its first registration
}

// Fleet is the issuers' view of the agents: who is registered, what each has acknowledged, how it
// says it is. Registrations are in a bucket; the rest is heard on the bus and kept in memory, so an
// issuer that has just started hears it again within seconds.
type Fleet struct {
	conn       *Conn
	agents     *Bucket
	onRegister func(context.Context, Registration) error
	subs       []*nats.Subscription

	mu      sync.Mutex
	heard   map[string]*AgentInfo // by name; of registered ones only Run, Position, Seen and Status
	changed chan struct{}
}

// OpenFleet begins to listen. onRegister is called for each registration before it is answered,
// with the record already written; its error is the agent's answer, and the agent tries again.
func OpenFleet(c *Conn, agents *Bucket, onRegister func(context.Context, Registration) error) (*Fleet, error) {
	f := &Fleet{conn: c, agents: agents, onRegister: onRegister, heard: make(map[string]*AgentInfo), changed: make(chan struct{})}
	for _, s := range []struct {
		subject string
		handle  nats.MsgHandler
		queue   string
	}{
		{c.subjects.register(), f.register, "issuers"},
		{c.subjects.ack(Any), f.acknowledge, ""},
		{c.subjects.status(Any), f.status, ""},
	} {
		var sub *nats.Subscription
		var err error
		if s.queue != "" {
			sub, err = c.nc.QueueSubscribe(s.subject, s.queue, s.handle)
		} else {
			sub, err = c.nc.Subscribe(s.subject, s.handle)
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("listening to agents: %w", err)
		}
		f.subs = append(f.subs, sub)
	}
	return f, nil
}

// Close stops listening. It may be called twice.
func (f *Fleet) Close() {
	for _, sub := range f.subs {
		sub.Unsubscribe() //nolint:errcheck // the connection may be closed already
	}
	f.subs = nil
}

// Agents gives the registered agents, ordered by name.
func (f *Fleet) Agents(ctx context.Context) ([]AgentInfo, error) {
	recs, err := f.agents.List(ctx, "")
	if err != nil {
		return nil, err
	}
	all := make([]AgentInfo, 0, len(recs))
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, rec := range recs {
		var a agentRecord
		if err := json.Unmarshal(rec.Value, &a); err != nil {
			return nil, fmt.Errorf("reading the record of an agent: %w", err)
		}
		info := AgentInfo{Name: a.Agent, Run: a.Run, Version: a.Version, SealingKey: a.SealingKey, Registered: time.Unix(a.Registered, 0)}
		if h := f.heard[a.Agent]; h != nil {
			info.Seen, info.Status = h.Seen, h.Status
			if h.Run == a.Run {
				info.Position = h.Position
			}
		}
		all = append(all, info)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
	return all, nil
}

// Acknowledged parts the registered agents into those that have applied all up to pos, and the others.
func (f *Fleet) Acknowledged(ctx context.Context, pos Position) (applied, pending []string, err error) {
	agents, err := f.Agents(ctx)
	applied, pending = Split(agents, pos)
	return applied, pending, err
}

// Remove strikes an agent off, or gives ErrNotFound.
func (f *Fleet) Remove(ctx context.Context, name string) error {
	rec, err := f.agents.Get(ctx, Name(name))
	if err != nil {
		return err
	}
	if err := f.agents.Delete(ctx, rec.Name, rec.Revision); err != nil {
		return err
	}
	f.hear(name, func(a *AgentInfo) { *a = AgentInfo{} })
	return nil
}

// Changed is closed when an agent registers, acknowledges or is removed after the call.
func (f *Fleet) Changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

// hear changes what was heard of an agent, and wakes those who wait for it.
func (f *Fleet) hear(name string, change func(*AgentInfo)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.heard[name]
	if a == nil {
		a = new(AgentInfo)
		f.heard[name] = a
	}
	change(a)
	close(f.changed)
	f.changed = make(chan struct{})
}

// registered tells whether what an agent says may be kept: only a registered name costs memory.
func (f *Fleet) registered(name string) bool {
	f.mu.Lock()
	_, ok := f.heard[name]
	f.mu.Unlock()
	if ok {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), attempt)
	defer cancel()
	_, err := f.agents.Get(ctx, Name(name))
	return err == nil
}

// answer is what a registration is answered with: {} or {"error": "…"}.
type answer struct {
	Error string `json:"error,omitempty"`
}

func (f *Fleet) register(m *nats.Msg) {
	ctx, cancel := context.WithTimeout(context.Background(), registerWithin)
	defer cancel()
	var reg Registration
	err := json.Unmarshal(m.Data, &reg)
	if err == nil {
		err = f.enter(ctx, reg)
	}
	var ans answer
	if err != nil {
		f.conn.log.Warn("could not register an agent", "agent", reg.Agent, "error", err)
		ans.Error = err.Error()
	}
	body, err := json.Marshal(ans)
	if err == nil {
		err = m.Respond(body)
	}
	if err != nil {
		f.conn.log.Warn("could not answer an agent", "agent", reg.Agent, "error", err)
	}
}

// enter writes a registration down. A name keeps its first registration's date.
func (f *Fleet) enter(ctx context.Context, reg Registration) error {
	if err := checkAgentName(reg.Agent); err != nil {
		return err
	}
	if len(reg.Run) == 0 || len(reg.Run) > 64 || len(reg.Version) > 128 || len(reg.SealingKey) == 0 || len(reg.SealingKey) > 4096 {
		return errors.New("a registration needs a run and a sealing key")
	}
	for {
		rec := agentRecord{Registration: reg, Registered: time.Now().Unix()}
		old, err := f.agents.Get(ctx, Name(reg.Agent))
		if err == nil {
			var was agentRecord
			if err := json.Unmarshal(old.Value, &was); err != nil {
				return fmt.Errorf("reading the record of agent %q: %w", reg.Agent, err)
			}
			rec.Registered = was.Registered
		} else if !errors.Is(err, ErrNotFound) {
			return err
		}
		value, err := json.Marshal(rec)
		if err != nil {
			return err
		}
		if old.Revision == 0 {
			_, err = f.agents.Create(ctx, Name(reg.Agent), value)
		} else {
			_, err = f.agents.Update(ctx, Name(reg.Agent), value, old.Revision)
		}
		if errors.Is(err, ErrExists) || errors.Is(err, ErrConflict) {
			continue // another issuer took the same agent's other attempt
		}
		if err != nil {
			return err
		}
		f.hear(reg.Agent, func(a *AgentInfo) { a.Run, a.Seen = reg.Run, time.Now() })
		return f.onRegister(ctx, reg)
	}
}

func (f *Fleet) acknowledge(m *nats.Msg) {
	var ack Acknowledgement
	if err := json.Unmarshal(m.Data, &ack); err != nil || m.Subject != f.conn.subjects.ack(encodePart(ack.Agent)) || !f.registered(ack.Agent) {
		return
	}
	f.hear(ack.Agent, func(a *AgentInfo) {
		a.Seen = time.Now()
		if a.Run != ack.Run {
			a.Run, a.Position = ack.Run, Position{}
		}
		if a.Position.Before(ack.Position) { // cumulative; core NATS may deliver an older one late
			a.Position = ack.Position
		}
	})
}

func (f *Fleet) status(m *nats.Msg) {
	var s struct {
		Agent string `json:"agent"`
	}
	if len(m.Data) > maxStatus || json.Unmarshal(m.Data, &s) != nil || m.Subject != f.conn.subjects.status(encodePart(s.Agent)) || !f.registered(s.Agent) {
		return
	}
	f.hear(s.Agent, func(a *AgentInfo) { a.Seen, a.Status = time.Now(), m.Data })
}

func checkAgentName(name string) error {
	if name == "" || len(name) > maxAgentName {
		return fmt.Errorf("an agent needs a name of 1 to %d bytes (agent.name)", maxAgentName)
	}
	for _, r := range name {
		if r <= ' ' || r == 0x7f {
			return fmt.Errorf("the agent name %q holds a blank or a control character", name)
		}
	}
	return nil
}
