package bus

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
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
//	{"agent": "web-1", "run": "…", "version": "v1.0.0", "signing_key": "base64", "sealing_key": "base64", "registered": 1767225600}
type agentRecord struct {
	Registration
	Registered int64 `json:"registered"` // NumericDate of its first registration
}

// keyAge bounds how long an agent that was struck off may still be heard.
const keyAge = 5 * time.Second

type signingKey struct {
	key  ed25519.PublicKey
	read time.Time
}

// Fleet is the issuers' view of the agents: who is registered, and how each says it is. Registrations are in a bucket; the rest is heard on the bus and kept in memory, so an
// issuer that has just started hears it again within seconds.
type Fleet struct {
	conn       *Conn
	agents     *Bucket
	onRegister func(context.Context, Registration) error
	subs       []*nats.Subscription

	mu      sync.Mutex
	heard   map[string]*AgentInfo // by name; of registered ones only Run, Position, Seen and Status
	signing map[string]signingKey // by name
	changed chan struct{}
}

// OpenFleet begins to listen. onRegister is called for each registration before it is answered,
// with the record already written; its error is the agent's answer, and the agent tries again.
func OpenFleet(c *Conn, agents *Bucket, onRegister func(context.Context, Registration) error) (*Fleet, error) {
	f := &Fleet{conn: c, agents: agents, onRegister: onRegister, heard: make(map[string]*AgentInfo), signing: make(map[string]signingKey), changed: make(chan struct{})}
	for _, s := range []struct {
		subject string
		handle  nats.MsgHandler
		queue   string
	}{
		{c.subjects.register(), f.register, "issuers"},
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
		info := AgentInfo{Name: a.Agent, Run: a.Run, Version: a.Version, SigningKey: a.SigningKey, SealingKey: a.SealingKey, Registered: time.Unix(a.Registered, 0)}
		if h := f.heard[a.Agent]; h != nil {
			info.Seen, info.Status = h.Seen, h.Status
			info.Run, info.Version, info.Position = cmp.Or(h.Run, info.Run), cmp.Or(h.Version, info.Version), h.Position
		}
		all = append(all, info)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
	return all, nil
}

// SigningKey gives the key that an agent signs with, read from the bucket now. ErrNotFound: no such
// agent is registered.
func (f *Fleet) SigningKey(ctx context.Context, agent string) (ed25519.PublicKey, error) {
	rec, err := f.agents.Get(ctx, Name(agent))
	if err != nil {
		return nil, fmt.Errorf("looking for agent %q: %w", agent, err)
	}
	var a agentRecord
	if err := json.Unmarshal(rec.Value, &a); err != nil || len(a.SigningKey) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("reading the record of agent %q: it has no signing key", agent)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.signing[agent] = signingKey{key: a.SigningKey, read: time.Now()}
	return a.SigningKey, nil
}

// KnownSigningKey is SigningKey from memory, while that is at most keyAge old.
func (f *Fleet) KnownSigningKey(ctx context.Context, agent string) (ed25519.PublicKey, error) {
	f.mu.Lock()
	known, ok := f.signing[agent]
	f.mu.Unlock()
	if ok && time.Since(known.read) < keyAge {
		return known.key, nil
	}
	return f.SigningKey(ctx, agent)
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

// Changed is closed when an agent registers, is heard or is removed after the call.
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
	if len(reg.Run) == 0 || len(reg.Run) > 64 || len(reg.Version) > 128 || len(reg.SigningKey) != ed25519.PublicKeySize || len(reg.SealingKey) == 0 || len(reg.SealingKey) > 4096 {
		return errors.New("a registration needs a run, a signing key and a sealing key")
	}
	for {
		rec := agentRecord{Registration: reg, Registered: time.Now().Unix()}
		old, err := f.agents.Get(ctx, Name(reg.Agent))
		if err == nil {
			var was agentRecord
			if err := json.Unmarshal(old.Value, &was); err != nil {
				return fmt.Errorf("reading the record of agent %q: %w", reg.Agent, err)
			}
			if !bytes.Equal(was.SigningKey, reg.SigningKey) {
				return fmt.Errorf("an agent named %q is registered with another key; give this one another agent.name, or remove that one first (sidekey agents remove)", reg.Agent)
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

func (f *Fleet) status(m *nats.Msg) {
	var s struct {
		Agent   string `json:"agent"`
		Run     string `json:"run"`
		Version string `json:"version"`
		Epoch   uint64 `json:"epoch"`
		Applied uint64 `json:"applied_seq"`
	}
	if len(m.Data) > maxStatus || json.Unmarshal(m.Data, &s) != nil || m.Subject != f.conn.subjects.status(encodePart(s.Agent)) || !f.registered(s.Agent) {
		return
	}
	f.hear(s.Agent, func(a *AgentInfo) {
		a.Run, a.Version, a.Position = s.Run, s.Version, Position{Epoch: s.Epoch, Seq: s.Applied}
		a.Seen, a.Status = time.Now(), m.Data
	})
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
