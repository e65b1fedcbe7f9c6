package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/valyala/fasthttp"
	"golang.org/x/sync/errgroup"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/bus/replica"
)

func (a *app) agentCommand() *cobra.Command {
	var join string
	cmd := a.daemonCommand(daemonSpec{
		use:   "agent",
		short: "Run an agent beside the services of a host: tokens are checked here",
		long: "Run an agent. It joins once, with --join FILE, the token in it being what `sidekey agents add NAME` prints; after that it " +
			"needs no flag. While the bus is away it serves from its checkpoint.",
		base: defaultConfig,
		keys: []string{"agent", "bus.urls", "insecure"},
		run: func(ctx context.Context, cfg Config, log hclog.Logger) error {
			p, err := openAgent(cfg, log, func(p *agentProcess) (*bus.Identity, error) {
				return a.identify(ctx, bus.RoleAgent, cfg.Agent.DataDir, join, cfg, log)
			}, nil)
			if err != nil {
				return err
			}
			defer p.close()
			defer p.vitals.watch(ctx, log)()
			return p.run(ctx, func() { notifyReady(log) })
		},
	})
	cmd.Flags().StringVar(&join, "join", "", "file with a join token, removed once it is used; - is standard input")
	return cmd
}

// agentProcess is an agent with all that it stands on, opened in the order of the fields and closed in reverse.
type agentProcess struct {
	cfg     Config
	log     hclog.Logger
	closers []func()
	vitals  vitals

	listeners []net.Listener
	grpc      []net.Listener
	ops       net.Listener // nil where it shares a listener
	tls       *certificate // of tls_listen; nil: none
	identity  *bus.Identity
	conn      *bus.Conn
	reader    *bus.Reader
	store     *replica.Store
	replica   *replica.Replica
	clocks    *lease.Clocks
	holder    *lease.Holder
	renewer   *lease.Renewer
	agent     *agent.Agent
}

// openAgent opens everything. It does not wait for the bus: an agent that has joined starts while that is away. identify
// gives its identity; embedded is the bus of this process, nil in an agent on its own.
func openAgent(cfg Config, log hclog.Logger, identify func(*agentProcess) (*bus.Identity, error), embedded *bus.Server) (p *agentProcess, err error) {
	p = &agentProcess{cfg: cfg, log: log}
	opened := p // a return sets p to nil before it is closed
	defer func() {
		if err != nil {
			opened.close()
		}
	}()
	if err := p.openFiles(); err != nil {
		return nil, err
	}
	if err := p.listen(); err != nil {
		return nil, err
	}
	if err := p.identify(identify); err != nil {
		return nil, err
	}
	cfg = p.cfg
	if err := p.openBus(embedded); err != nil {
		return nil, err
	}
	if err := p.openLease(); err != nil {
		return nil, err
	}
	registry := prometheus.NewRegistry()
	registerProcess(registry, "sidekey_agent_", p.tls)
	p.agent, err = agent.New(agent.Config{
		Name: cfg.Agent.Name, Version: version(), Realm: cfg.Agent.Realm,
		Audiences: cfg.Agent.Audiences, Leeway: cfg.Agent.Leeway, CacheSize: cfg.Agent.CacheSize,
		Authenticators: cfg.Agent.Authenticators, Challenges: cfg.Agent.Challenges, Headers: cfg.Agent.Headers,
		Webhook: cfg.Agent.Webhook.agent(), Schemes: cfg.Agent.Schemes, StripCredentials: cfg.Agent.StripCredentials,
		LocalRules: cfg.Agent.Rules != "", RuleSets: cfg.Agent.RulesSets,
	}, agent.Parts{Replica: p.replica, Leases: p.holder, Hurry: p.renewer.Hurry, Logger: log.Named("agent"), Connected: p.conn.Connected, ClockOff: p.clocks.Off, Run: p.holder.Run(), Passwords: p.passwords(), Registry: registry})
	p.vitals.probe = func() { p.agent.Answer(bus.Question{Token: []byte("is anybody there?")}) } // whatever it says
	return p, err
}

func (p *agentProcess) close() {
	for n := len(p.closers) - 1; n >= 0; n-- {
		p.closers[n]()
	}
	p.closers = nil
}

// openFiles opens the agent's own folder.
func (p *agentProcess) openFiles() error {
	dir := p.cfg.Agent.DataDir
	if err := makeDataDir("agent.data_dir", dir); err != nil {
		return err
	}
	lock, err := lockDir("agent.data_dir", dir)
	if err != nil {
		return err
	}
	p.closers = append(p.closers, func() { lock.Close() })
	return nil
}

// identify finds out who this agent is: it has joined, or joins now.
func (p *agentProcess) identify(identify func(*agentProcess) (*bus.Identity, error)) (err error) {
	p.identity, err = identify(p)
	if errors.Is(err, fs.ErrNotExist) && p.identity == nil {
		return fmt.Errorf("this agent has not joined: run `sidekey agents add %s` where the issuer is, and start it once with --join and the file that it prints the token to", p.cfg.Agent.Name)
	}
	if err != nil {
		return err
	}
	if p.cfg.isSet("agent.name") && p.cfg.Agent.Name != p.identity.Name {
		return fmt.Errorf("agent.name is %q, but this agent has joined as %q (%s); leave agent.name out, or let it join anew", p.cfg.Agent.Name, p.identity.Name, p.cfg.Agent.DataDir)
	}
	p.cfg.Agent.Name = p.identity.Name
	return nil
}

func (p *agentProcess) listen() error {
	for _, address := range p.cfg.Agent.Listen {
		// A socket is for the services of the host, which run as others: who may use it, its folder says.
		ln, err := listen("agent.listen", address, 0o666)
		if err != nil {
			return err
		}
		p.closers = append(p.closers, func() { ln.Close() })
		p.listeners = append(p.listeners, ln)
	}
	var err error
	if p.cfg.Agent.TLSCert != "" {
		if p.tls, err = openCertificate(p.cfg.Agent.TLSCert, p.cfg.Agent.TLSKey, p.log); err != nil {
			return fmt.Errorf("agent.tls_cert: %w", err)
		}
	}
	for _, address := range p.cfg.Agent.TLSListen {
		ln, err := listen("agent.tls_listen", address, 0o666)
		if err != nil {
			return err
		}
		p.closers = append(p.closers, func() { ln.Close() })
		p.listeners = append(p.listeners, p.tls.listener(ln))
	}
	if err := p.listenGRPC(); err != nil {
		return err
	}
	if slices.Contains(p.cfg.Agent.Listen, p.cfg.Agent.OpsListen) {
		return handedOver().rest()
	}
	if p.ops, err = listen("agent.ops_listen", p.cfg.Agent.OpsListen, 0o660); err != nil {
		return err
	}
	p.closers = append(p.closers, func() { p.ops.Close() })
	return handedOver().rest()
}

// listenGRPC opens the listeners of ext_authz: in clear on this host, else over TLS where there is a certificate.
func (p *agentProcess) listenGRPC() error {
	for _, address := range p.cfg.Agent.GRPCListen {
		ln, err := listen("agent.grpc_listen", address, 0o666)
		if err != nil {
			return err
		}
		p.closers = append(p.closers, func() { ln.Close() })
		if l, err := parseListen(address); p.tls != nil && (err != nil || !l.loopback()) {
			ln = p.tls.grpcListener(ln)
		}
		p.grpc = append(p.grpc, ln)
	}
	return nil
}

// openBus connects, and restores what the agent knew.
func (p *agentProcess) openBus(embedded *bus.Server) error {
	connect := p.identity.ConnectConfig()
	connect.Server, connect.Insecure, connect.Logger = embedded, p.cfg.Insecure, p.log.Named("bus")
	if len(p.cfg.Bus.URLs) > 0 {
		connect.URLs = p.cfg.Bus.URLs
	}
	connect.Servers = filepath.Join(p.cfg.Agent.DataDir, serversFile)
	var err error
	if p.conn, err = bus.Connect(connect); err != nil {
		return err
	}
	p.closers = append(p.closers, p.conn.Close)
	p.reader = bus.NewReader(p.conn, p.identity.Authority)
	if p.store, err = replica.OpenStore(p.cfg.Agent.DataDir, p.identity.Authority); err != nil {
		return err
	}
	p.closers = append(p.closers, func() { p.store.Close() })
	p.clocks = lease.NewClocks("", nil)
	p.replica = replica.New(replica.Config{
		Open: replica.OpenSealed(p.cfg.Agent.Name, p.identity.Sealing), Needs: replica.Serving(p.cfg.Agent.Name, p.cfg.Agent.Audiences),
		Journal: p.store.Journal, Pulse: p.clocks.Hear, Alive: p.vitals.loop("log"), Logger: p.log.Named("replica"), Rules: p.takeRules,
	})
	restored, err := p.store.Restore(p.replica)
	switch {
	case err != nil:
		p.log.Error("not using the checkpoint on disk, reading the log anew", "error", err)
	case restored:
		p.log.Info("restored from the checkpoint on disk", "seq", p.replica.Snapshot().Position.Seq, "revocations", p.replica.Revocations())
	}
	return nil
}

// takeRules hands the agent what the log hands out; what is restored before there is one, it takes when it is made.
func (p *agentProcess) takeRules(next *replica.Snapshot) {
	if p.agent != nil {
		p.agent.TakeRules(next)
	}
}

// openLease takes the lease up that an earlier process of this boot may have left.
func (p *agentProcess) openLease() error {
	c := p.cfg.Agent
	cfg := lease.HolderConfig{Agent: c.Name, Length: c.MaxStaleness, Mode: lease.Mode(c.OnStale)}
	if c.RuntimeDir != "" {
		f, err := lease.OpenFile(c.RuntimeDir, c.Name)
		switch {
		case err == nil:
			p.closers = append(p.closers, func() { f.Close() })
			cfg.File = f
		case p.cfg.isSet("agent.runtime_dir"):
			return fmt.Errorf("agent.runtime_dir: %w", err)
		default:
			p.log.Warn("keeping no lease over a restart", "error", err)
		}
	}
	p.holder = lease.NewHolder(cfg)
	p.renewer = lease.NewRenewer(lease.Renewer{
		Holder: p.holder, Agent: c.Name, Key: p.identity.Signing, Authority: p.identity.Authority, Line: p.conn, Applied: p.replica, Stuck: p.replica.Fault, Alive: p.vitals.loop("lease"), Logger: p.log.Named("lease"),
	})
	return nil
}

// run serves until ctx ends or a part fails, and returns when all has stopped. ready is called once the agent vouches.
func (p *agentProcess) run(ctx context.Context, ready func()) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.replica.Follow(ctx, p.reader) })
	g.Go(func() error {
		p.store.Keep(ctx, p.replica, func(err error) { p.log.Error("could not write the checkpoint, trying again", "error", err) })
		return nil
	})
	g.Go(func() error { p.link().Run(ctx); return nil })
	g.Go(func() error { p.renewer.Renew(ctx); return nil })
	g.Go(func() error { p.renewer.Acknowledge(ctx); return nil })
	g.Go(func() error { p.renewer.Testify(ctx); return nil })
	stop, err := p.answerer().Listen()
	if err != nil {
		return err
	}
	defer stop()
	g.Go(func() error {
		return whenReady(ctx, func() error {
			if !p.agent.Ready() {
				return errStarting
			}
			return nil
		}, ready)
	})
	if keeper := p.rules(); keeper != nil {
		if err := keeper.load(); err != nil && !errors.As(err, new(*mergeError)) {
			return err
		}
		g.Go(func() error { return keeper.run(ctx) })
	}
	for _, ln := range p.listeners {
		g.Go(func() error {
			if p.settle(ctx); ctx.Err() != nil {
				return nil
			}
			return serveFast(ctx, p.agent.Server(), ln)
		})
	}
	for _, ln := range p.grpc {
		g.Go(func() error { return serveGRPC(ctx, p.agent.GRPCServer(), ln) })
	}
	if p.ops != nil {
		g.Go(func() error {
			return serve(ctx, newHTTPServer(p.vitals.health(p.agent.OpsHandler())), p.ops, drainWithin)
		})
	}
	p.log.Info("serving", "agent", p.cfg.Agent.Listen, "name", p.cfg.Agent.Name, "run", p.holder.Run())
	return g.Wait()
}

// rules keeps the agent's rules, nil: it has none.
func (p *agentProcess) rules() *rulesKeeper {
	if p.cfg.Agent.Rules == "" {
		return nil
	}
	return &rulesKeeper{path: p.cfg.Agent.Rules, authenticators: p.cfg.Agent.Authenticators, agent: p.agent, log: p.log.Named("rules")}
}

// answerer says what the agent would say of a token, where an issuer asks.
func (p *agentProcess) answerer() *bus.Answerer {
	return &bus.Answerer{
		Conn: p.conn, Authority: p.identity.Authority, Agent: p.cfg.Agent.Name, Run: p.holder.Run(), Key: p.identity.Signing,
		Judge: p.agent.Answer, Logger: p.log.Named("ask"),
	}
}

// agent is the webhook as the agent knows it.
func (w WebhookConfig) agent() agent.WebhookConfig {
	return agent.WebhookConfig{
		URL: w.URL, Headers: w.Headers, SendRequest: w.SendRequest, Timeout: w.Timeout, MaxCalls: w.MaxCalls, CacheFor: w.CacheFor, Challenge: w.Challenge,
	}
}

// passwords asks the issuers whether a password is right.
func (p *agentProcess) passwords() *bus.BasicChecker {
	return &bus.BasicChecker{
		Conn: p.conn, Authority: p.identity.Authority, Agent: p.cfg.Agent.Name, Run: p.holder.Run(), Key: p.identity.Signing,
		Sealing: func() (*bus.SealingFact, time.Time) {
			snap := p.replica.Snapshot()
			return snap.Sealing, snap.TickTime
		},
	}
}

// link is the agent's voice on the bus.
func (p *agentProcess) link() *bus.Link {
	return &bus.Link{
		Conn:   p.conn,
		Agent:  p.cfg.Agent.Name,
		Status: func() ([]byte, error) { return json.Marshal(p.agent.Status()) },
		Used:   p.agent.Used,
		Key:    p.identity.Signing,
	}
}

// serveFast answers on ln until ctx ends, then waits for the requests in flight.
func serveFast(ctx context.Context, srv *fasthttp.Server, ln net.Listener) error {
	drained := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainWithin)
		defer cancel()
		drained <- srv.ShutdownWithContext(dctx)
	})
	defer stop()
	if err := srv.Serve(ln); err != nil {
		return fmt.Errorf("serving on %s: %w", ln.Addr(), err)
	}
	return <-drained
}

// serveGRPC answers on ln until ctx ends, then waits for the calls in flight.
func serveGRPC(ctx context.Context, srv *agent.GRPCServer, ln net.Listener) error {
	drained := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(drained)
		dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainWithin)
		defer cancel()
		srv.Shutdown(dctx)
	})
	defer stop()
	if err := srv.Serve(ln); err != nil {
		return fmt.Errorf("serving gRPC on %s: %w", ln.Addr(), err)
	}
	<-drained
	return nil
}
