package fleettest

import (
	"context"
	"time"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/bus/replica"
)

// AgentConfig says what an agent is to be. The zero value of each member is what a test mostly wants.
type AgentConfig struct {
	Length  time.Duration // of its leases; 0: a second
	Mode    lease.Mode    // "": refuse
	Dir     string        // of its checkpoint; "": one of its own
	Runtime string        // of its lease file; "": none is kept
	Clock   lease.Clock   // nil: the machine's
	Now     func() time.Time
	Proxy   *bustest.Proxy // nil: one of its own
	Direct  bool           // no proxy at all
	Bare    bool           // nothing on the disk
	Shared  *bus.Conn      // nil: a connection of its own; that of an issuer serves many
}

// Agent is an agent's process, whole but for HTTP.
type Agent struct {
	*Fleet
	AgentConfig
	AgentName string
	Agent     *agent.Agent
	Holder    *lease.Holder
	Replica   *replica.Replica
	Conn      *bus.Conn

	stop []func()
}

// Agent starts a process of an agent. It does not wait until it vouches.
func (f *Fleet) Agent(name string, cfg AgentConfig) *Agent {
	f.Helper()
	cfg.fill(f)
	a := &Agent{Fleet: f, AgentConfig: cfg, AgentName: name}
	key := f.member(name)
	if a.Conn = cfg.Shared; a.Conn == nil {
		a.Conn = a.connect()
		a.stop = append(a.stop, a.Conn.Close)
	}
	reader := bus.NewReader(a.Conn, f.Bus.Authority.Public())
	keep := a.restore()
	hc := lease.HolderConfig{Agent: name, Length: cfg.Length, Mode: cfg.Mode, Clock: cfg.Clock}
	if cfg.Runtime != "" {
		file, err := lease.OpenFile(cfg.Runtime, name)
		if err != nil {
			f.Fatal(err)
		}
		hc.File = file
		a.stop = append(a.stop, func() { file.Close() })
	}
	a.Holder = lease.NewHolder(hc)
	renewer := lease.NewRenewer(lease.Renewer{
		Holder: a.Holder, Agent: name, Key: key, Authority: f.Bus.Authority.Public(), Line: a.Conn, Applied: a.Replica, Clock: cfg.Clock, Logger: Logger(f),
	})
	var err error
	a.Agent, err = agent.New(agent.Config{Name: name, Leeway: 5 * time.Second}, agent.Parts{
		Replica: a.Replica, Leases: a.Holder, Clock: cfg.Clock, Now: cfg.Now, Hurry: renewer.Hurry, Run: a.Holder.Run(),
	})
	if err != nil {
		f.Fatal(err)
	}
	run := running(f,
		func(ctx context.Context) { a.Replica.Follow(ctx, reader) },
		keep, renewer.Renew, renewer.Acknowledge)
	a.stop = append([]func(){run, func() { a.Agent.Close() }}, a.stop...)
	f.Cleanup(a.Stop)
	return a
}

// restore makes the replica, of what is on the disk, and gives what keeps that.
func (a *Agent) restore() (keep func(context.Context)) {
	a.Helper()
	if a.Bare {
		a.Replica = replica.New(replica.Config{Logger: Logger(a)})
		return func(context.Context) {}
	}
	store, err := replica.OpenStore(a.Dir, a.Bus.Authority.Public())
	if err != nil {
		a.Fatal(err)
	}
	a.Replica = replica.New(replica.Config{Journal: store.Journal, Logger: Logger(a)})
	failed := func(err error) { a.Logf("agent %s: %v", a.AgentName, err) }
	if _, err := store.Restore(a.Replica); err != nil {
		failed(err)
	}
	a.stop = append(a.stop, func() { store.Close() })
	return func(ctx context.Context) { store.Keep(ctx, a.Replica, failed) }
}

func (c *AgentConfig) fill(f *Fleet) {
	if c.Length == 0 {
		c.Length = time.Second
	}
	if c.Mode == "" {
		c.Mode = lease.Refuse
	}
	if c.Dir == "" && !c.Bare {
		c.Dir = f.TempDir()
	}
	if c.Clock == nil {
		c.Clock = lease.SystemClock
	}
	if c.Proxy == nil && !c.Direct && c.Shared == nil {
		c.Proxy = f.proxy()
	}
}

// connect does not wait: an agent starts while the bus is away.
func (a *Agent) connect() *bus.Conn {
	a.Helper()
	url := a.Bus.URL()
	if !a.Direct {
		url = a.Proxy.URL()
	}
	conn, err := bus.Connect(bus.ConnectConfig{
		URLs: []string{url}, User: a.Bus.Agent(a, a.AgentName), Name: a.AgentName, Agent: a.AgentName, Logger: Logger(a),
	})
	if err != nil {
		a.Fatal(err)
	}
	return conn
}

// Stop ends the process. Its checkpoint is that of its last moment.
func (a *Agent) Stop() {
	for _, stop := range a.stop {
		stop()
	}
	a.stop = nil
}

// Verify gives the status that the agent answers a token with: 200, 401, 503.
func (a *Agent) Verify(token string) int { return a.Agent.Verify(token, agent.Query{}).Status }

// Ready waits until the agent vouches for a token.
func (a *Agent) Ready(token string) *Agent {
	a.Helper()
	a.Eventually("agent "+a.AgentName+" vouches", func() bool { return a.Verify(token) == 200 })
	return a
}

// Seq is what the agent has applied.
func (a *Agent) Seq() uint64 { return a.Replica.Snapshot().Position.Seq }
