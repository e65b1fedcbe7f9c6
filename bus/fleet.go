package bus

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// Bounds of what an agent may say.
const (
	maxAgentName = 128
	maxStatus    = 64 << 10
)

// keyAge bounds how long an agent that was struck off may still be heard.
const keyAge = 5 * time.Second

type signingKey struct {
	key  ed25519.PublicKey
	read time.Time
}

// Fleet is the issuers' view of the agents: who has joined, which is in a bucket, and how each says
// it is, which is heard on the bus and kept in memory: an issuer that has just started hears it again
// within seconds.
type Fleet struct {
	conn   *Conn
	agents *Bucket
	sub    *nats.Subscription

	mu      sync.Mutex
	heard   map[string]*AgentInfo // by name; of members only Run, Version, Position, Seen and Status
	signing map[string]signingKey // by name
	longest map[string]noted      // by name: what is in the bucket, or less
	changed chan struct{}
}

// OpenFleet begins to listen.
func OpenFleet(c *Conn, agents *Bucket) (*Fleet, error) {
	f := &Fleet{conn: c, agents: agents, heard: make(map[string]*AgentInfo), signing: make(map[string]signingKey), longest: make(map[string]noted), changed: make(chan struct{})}
	var err error
	if f.sub, err = c.nc.Subscribe(c.subjects.status(Any), f.status); err != nil {
		return nil, fmt.Errorf("listening to agents: %w", err)
	}
	return f, nil
}

// Close stops listening. It may be called twice.
func (f *Fleet) Close() {
	f.sub.Unsubscribe() //nolint:errcheck // the connection, or the subscription, may be closed already
}

// Agents gives the agents that have joined and are not removed, ordered by name.
func (f *Fleet) Agents(ctx context.Context) ([]AgentInfo, error) {
	all, err := f.Everybody(ctx)
	return slices.DeleteFunc(all, func(a AgentInfo) bool { return !a.Removed.IsZero() }), err
}

// Everybody gives the agents that have joined, also the removed, ordered by name.
func (f *Fleet) Everybody(ctx context.Context) ([]AgentInfo, error) {
	members, err := listMembers(ctx, f.agents)
	if err != nil {
		return nil, err
	}
	all := make([]AgentInfo, 0, len(members))
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range members {
		info := AgentInfo{Name: m.Name, SigningKey: m.SigningKey, SealingKey: m.SealingKey, Audiences: m.Audiences, Joined: time.Unix(m.Joined, 0)}
		if m.Removed() {
			info.Removed = time.Unix(m.RemovedAt, 0)
		}
		if h := f.heard[m.Name]; h != nil {
			info.Run, info.Version, info.Position, info.Seen, info.Status = h.Run, h.Version, h.Position, h.Seen, h.Status
		}
		all = append(all, info)
	}
	return all, nil
}

// SigningKey gives the key that an agent signs with, read from the bucket now. ErrNotFound: no agent
// of that name has joined, or it was removed.
func (f *Fleet) SigningKey(ctx context.Context, agent string) (ed25519.PublicKey, error) {
	m, _, err := readMember(ctx, f.agents, agent)
	if err == nil && m.Removed() {
		err = fmt.Errorf("%w: it was removed at %s", ErrNotFound, time.Unix(m.RemovedAt, 0).UTC().Format(time.RFC3339))
	}
	if err == nil && len(m.SigningKey) != ed25519.PublicKeySize {
		err = errors.New("its record has no signing key")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		delete(f.signing, agent)
		return nil, fmt.Errorf("looking for agent %q: %w", agent, err)
	}
	f.signing[agent] = signingKey{key: m.SigningKey, read: time.Now()}
	return m.SigningKey, nil
}

// noted is what an agent is known to have asked for.
type noted struct {
	longest int64 // milliseconds
	serves  bool
}

func (n noted) covers(o noted) bool { return n.longest >= o.longest && (n.serves || !o.serves) }

func (n noted) and(o noted) noted { return noted{max(n.longest, o.longest), n.serves || o.serves} }

// NoteLease writes down, before it is granted, that an agent asks for a longer lease than ever before, or for the first time for one
// behind which it goes on: should the record of the grants be lost, this is what it may hold. It costs a write for each longer one,
// else nothing.
func (f *Fleet) NoteLease(ctx context.Context, agent string, length time.Duration, serves bool) error {
	asks := noted{length.Milliseconds(), serves}
	f.mu.Lock()
	known := f.longest[agent]
	f.mu.Unlock()
	for !known.covers(asks) {
		m, revision, err := readMember(ctx, f.agents, agent)
		if err != nil {
			return fmt.Errorf("noting the lease of agent %q: %w", agent, err)
		}
		if known = (noted{m.Longest, m.Serves}); !known.covers(asks) {
			known = known.and(asks)
			m.Longest, m.Serves = known.longest, known.serves
			err = writeMember(ctx, f.agents, m, revision)
			if errors.Is(err, ErrConflict) {
				known = noted{}
				continue
			}
			if err != nil {
				return fmt.Errorf("noting the lease of agent %q: %w", agent, err)
			}
		}
		f.mu.Lock()
		f.longest[agent] = f.longest[agent].and(known)
		f.mu.Unlock()
	}
	return nil
}

// MayHold gives the longest lease that any agent which ever joined may hold, removed ones included; 0: it is not known of one of them,
// or one may go on without end, and serving is its name.
func (f *Fleet) MayHold(ctx context.Context) (longest time.Duration, serving string, err error) {
	members, err := listMembers(ctx, f.agents)
	if err != nil {
		return 0, "", err
	}
	unknown := len(members) == 0
	for _, m := range members {
		if m.Serves {
			serving = m.Name
		}
		unknown = unknown || m.Longest == 0
		longest = max(longest, time.Duration(m.Longest)*time.Millisecond)
	}
	if unknown || serving != "" {
		longest = 0
	}
	return longest, serving, nil
}

// Longest gives the longest lease that each agent that ever joined has asked for, removed ones included.
func (f *Fleet) Longest(ctx context.Context) (map[string]time.Duration, error) {
	members, err := listMembers(ctx, f.agents)
	if err != nil {
		return nil, err
	}
	longest := make(map[string]time.Duration, len(members))
	for _, m := range members {
		longest[m.Name] = time.Duration(m.Longest) * time.Millisecond
	}
	return longest, nil
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

// Changed is closed when an agent is heard, or Touch is called, after the call.
func (f *Fleet) Changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

// Touch says that an agent has joined or was removed. What was heard of a removed one is not forgotten.
func (f *Fleet) Touch() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.signing)
	close(f.changed)
	f.changed = make(chan struct{})
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

// joined tells whether what an agent says may be kept: only a name that has joined costs memory.
func (f *Fleet) joined(name string) bool {
	f.mu.Lock()
	_, ok := f.heard[name]
	f.mu.Unlock()
	if ok {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), attempt)
	defer cancel()
	m, _, err := readMember(ctx, f.agents, name)
	return err == nil && !m.Removed()
}

func (f *Fleet) status(m *nats.Msg) {
	var s struct {
		Agent   string `json:"agent"`
		Run     string `json:"run"`
		Version string `json:"version"`
		Epoch   uint64 `json:"epoch"`
		Applied uint64 `json:"applied_seq"`
	}
	if len(m.Data) > maxStatus || json.Unmarshal(m.Data, &s) != nil || m.Subject != f.conn.subjects.status(encodePart(s.Agent)) || !f.joined(s.Agent) {
		return
	}
	f.hear(s.Agent, func(a *AgentInfo) {
		a.Run, a.Version, a.Position = s.Run, s.Version, Position{Epoch: s.Epoch, Seq: s.Applied}
		a.Seen, a.Status = time.Now(), m.Data
	})
}

// CheckName refuses what is no name for an agent or an issuer.
func CheckName(name string) error {
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
