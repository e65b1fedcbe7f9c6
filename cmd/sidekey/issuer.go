package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

// How an issuer runs.
const (
	startWithin       = 30 * time.Second // for the bus to answer at the start
	drainWithin       = 5 * time.Second  // for requests in flight at the end
	freshFor          = 5 * time.Second  // PROTOCOL 17
	checkpointEvery   = 10 * time.Minute
	checkpointEntries = 20_000
)

func (a *app) issuerCommand() *cobra.Command {
	var join string
	cmd := a.daemonCommand(daemonSpec{
		use:   "issuer",
		short: "Run an issuer: tokens are made here, keys rotated, revocations written into the log",
		long: "Run an issuer, with the embedded bus unless bus.urls names an existing NATS. At its first start it makes, in " +
			"data_dir, the master key, the bus's keys and the admin token (admin.token). A further issuer joins it: --join FILE, once.",
		base: defaultConfig,
		keys: []string{"issuer", "keys", "bus", "insecure"},
		run: func(ctx context.Context, cfg Config, log hclog.Logger) error {
			if err := makeDataDir("data_dir", cfg.DataDir); err != nil {
				return err
			}
			id, err := a.identify(ctx, bus.RoleIssuer, cfg.DataDir, join, cfg, log)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			p, err := openIssuer(ctx, cfg, id, log)
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

// issuerProcess is an issuer with all that it stands on, opened in the order of the fields and closed in reverse.
type issuerProcess struct {
	cfg     Config
	log     hclog.Logger
	runID   string // this process, as its ticks name it
	closers []func()
	vitals  vitals

	identity   *bus.Identity // nil: it joined no other issuer
	master     *keyring.MasterKey
	keys       *bus.Keys   // nil with a NATS that sidekey did not configure
	server     *bus.Server // nil with an existing NATS
	conn       *bus.Conn
	authority  *keyring.Authority
	buckets    map[string]*bus.Bucket
	trail      *bus.AuditTrail
	auditFile  *appendFile // nil: none
	guard      *bus.Guard
	store      *replica.Store // this issuer's own copy of the log
	entries    *bus.Log
	lists      *lease.Copies // the same, of who was granted a lease
	replica    *replica.Replica
	fleet      *bus.Fleet
	enrolment  *bus.Enrolment
	ledger     *lease.Ledger
	books      *lease.Bookkeeper
	behind     *lease.Behind
	clocks     *lease.Clocks
	due        atomic.Uint64 // the newest entry that others may want acknowledged
	granter    *lease.Granter
	own        *lease.Own
	duties     *bus.Bucket // not one of buckets: a backup has nothing of it
	duty       *lease.Duty
	registry   *prometheus.Registry
	monitor    *bus.Monitor
	issuer     *issuer.Issuer
	opened     chan struct{} // closed once issuer is there
	self       *bus.Identity // nil: in no cluster
	peers      *bus.Peers    // likewise
	over       chan error    // holds one when this process has to end: see end
	draining   atomic.Bool   // it is about to stop
	adminToken *issuer.AdminToken

	tls                *certificate // of public and admin; nil: none
	public, admin, ops net.Listener // admin, ops: nil where they share the public one
}

// openIssuer opens everything, and fails before anything runs where one part cannot be had.
func openIssuer(ctx context.Context, cfg Config, id *bus.Identity, log hclog.Logger) (p *issuerProcess, err error) {
	if id != nil {
		cfg.Agent.Name = id.Name
	}
	p = &issuerProcess{
		cfg: cfg, log: log, runID: randomToken()[:22], identity: id, buckets: map[string]*bus.Bucket{}, opened: make(chan struct{}),
		over: make(chan error, 1), registry: prometheus.NewRegistry(),
	}
	opened := p // a return sets p to nil before it is closed
	defer func() {
		if err != nil {
			opened.close()
		}
	}()
	sctx, cancel := context.WithTimeout(ctx, startWithin)
	if cfg.replicated() {
		cancel()
		sctx, cancel = context.WithTimeout(bus.Patiently(ctx), clusterStartWithin)
	}
	defer cancel()
	for _, open := range []func(context.Context) error{p.lock, p.unfinished, p.listen, p.openTrust, p.openBus, p.halfRestored, p.openState, p.openAudit, p.openFleet, p.openDuty, p.openLog, p.openEnrolment, p.openParts} {
		if err := open(sctx); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *issuerProcess) close() {
	for n := len(p.closers) - 1; n >= 0; n-- {
		p.closers[n]()
	}
	p.closers = nil
}

func (p *issuerProcess) onClose(f func()) { p.closers = append(p.closers, f) }

func (p *issuerProcess) lock(context.Context) error {
	f, err := lockDir("data_dir", p.cfg.DataDir)
	if err != nil {
		return err
	}
	p.onClose(func() { f.Close() })
	return nil
}

// unfinished refuses a state that is half restored.
func (p *issuerProcess) unfinished(context.Context) error { return checkRestored(p.cfg.DataDir) }

// listen takes the addresses first: a port in use is said at once, and nothing has been touched.
func (p *issuerProcess) listen(context.Context) (err error) {
	c := p.cfg.Issuer
	if c.TLSCert != "" {
		if p.tls, err = openCertificate(c.TLSCert, c.TLSKey, p.log); err != nil {
			return fmt.Errorf("issuer.tls_cert: %w", err)
		}
	}
	if p.public, err = listen("issuer.listen", c.Listen, 0o600); err != nil {
		return err
	}
	p.onClose(func() { p.public.Close() })
	if c.AdminListen != c.Listen {
		if p.admin, err = listen("issuer.admin_listen", c.AdminListen, 0o600); err != nil {
			return err
		}
		p.onClose(func() { p.admin.Close() })
	}
	if c.OpsListen != c.Listen {
		if p.ops, err = listen("issuer.ops_listen", c.OpsListen, 0o660); err != nil {
			return err
		}
		p.onClose(func() { p.ops.Close() })
	}
	return handedOver().rest()
}

// openBus starts the embedded server, or connects to the existing one.
func (p *issuerProcess) openBus(ctx context.Context) error {
	if err := p.openCluster(); err != nil {
		return err
	}
	if len(p.cfg.Bus.URLs) == 0 && p.identity == nil || p.peers != nil {
		if err := p.startBus(); err != nil {
			return err
		}
	}
	connect, err := p.busConnection()
	if err != nil {
		return err
	}
	if p.conn, err = bus.Connect(connect); err != nil {
		return err
	}
	p.onClose(p.conn.Close)
	if err := p.awaitBus(ctx); err != nil {
		return err
	}
	if p.server == nil && !p.conn.AtIssuer() {
		return warnDurability(ctx, p.cfg.Bus.MonitorURL, p.log)
	}
	return nil
}

// halfRestored refuses a bus of others that is half restored, from whatever host: unfinished sees only what was begun on this one.
func (p *issuerProcess) halfRestored(ctx context.Context) error {
	if p.server != nil {
		return nil
	}
	id, err := p.conn.RestoreMark(ctx)
	if err == nil && id != "" {
		err = errors.New("refusing to start: the state on the bus is half restored; wait until that restore is done, or, if it died, run sidekey restore again where it was begun")
	}
	return err
}

// authorityName is the record of the key that signs the log.
var authorityName = bus.Name("shared", "authority")

// openState opens the sealed buckets, and what the issuers share in them: the authority's key and the admin token.
func (p *issuerProcess) openState(ctx context.Context) (err error) {
	p.guard, err = bus.OpenGuard(filepath.Join(p.cfg.DataDir, revisionsFile), func(err error) {
		p.log.Error("THE STATE ON THE BUS WAS ROLLED BACK; this issuer makes and checks no token any more", "error", err)
	})
	if err != nil {
		return err
	}
	p.onClose(func() {
		if err := p.guard.Close(); err != nil {
			p.log.Error("could not write the revisions that were seen", "error", err)
		}
	})
	for _, name := range []string{
		bus.BucketUsers, bus.BucketSubjects, bus.BucketSessions, bus.BucketClients, bus.BucketKeys,
		bus.BucketCredentials, bus.BucketAgents, bus.BucketIssuers, bus.BucketJoins,
	} {
		if p.buckets[name], err = bus.OpenBucket(ctx, p.conn, name, p.master, p.cfg.replicas()); err != nil {
			return err
		}
		if err := p.buckets[name].Watch(ctx, p.guard); err != nil {
			return fmt.Errorf("refusing to start: %w", err)
		}
	}
	keys := p.buckets[bus.BucketKeys]
	private, err := keys.Once(ctx, authorityName, func() ([]byte, error) {
		a, err := keyring.NewAuthority()
		if err != nil {
			return nil, err
		}
		return a.Private(), nil
	})
	if err != nil {
		return fmt.Errorf("opening the authority's key: %w", err)
	}
	if p.authority, err = keyring.ParseAuthority(private); err != nil {
		return fmt.Errorf("opening the authority's key: %w", err)
	}
	path := filepath.Join(p.cfg.DataDir, adminTokenFile)
	p.adminToken, err = issuer.OpenAdminToken(ctx, keys, func(token string) error {
		return writePublished(path, []byte(token+"\n"))
	}, p.log)
	return err
}

// openFleet begins to hear the agents.
func (p *issuerProcess) openFleet(context.Context) (err error) {
	if p.fleet, err = bus.OpenFleet(p.conn, p.buckets[bus.BucketAgents]); err == nil {
		p.onClose(p.fleet.Close)
	}
	return err
}

// openParts builds the replica and the issuer on it.
func (p *issuerProcess) openParts(ctx context.Context) (err error) {
	feed := issuer.NewFeed()
	p.openLeases()
	p.replica = replica.New(replica.Config{
		Open: issuer.OpenSecret(p.buckets[bus.BucketKeys]), Journal: func(entries []bus.Entry) error {
			p.books.Note(entries)
			p.noteDue(entries)
			return errors.Join(feed.Note(entries), p.store.Journal(entries))
		},
		Pulse: p.clocks.Hear, Alive: p.vitals.loop("log"), Logger: p.log.Named("replica"),
	})
	users, closeUsers, err := openDirectory(ctx, &p.cfg, p.log)
	if err != nil {
		return err
	}
	p.onClose(func() { _ = closeUsers() }) // connections for reading
	p.issuer, err = issuer.New(p.issuerConfig(), issuer.Parts{
		Directory: users,
		Log:       p.entries, Replica: p.replica, Fleet: issuerFleet{p.fleet, p.ledger, p.enrolment, p.runID}, Enrolment: p.enrolment, Feed: feed,
		Users: p.buckets[bus.BucketUsers], Subjects: p.buckets[bus.BucketSubjects], Sessions: p.buckets[bus.BucketSessions],
		Clients: p.buckets[bus.BucketClients], Keys: p.buckets[bus.BucketKeys], Credentials: p.buckets[bus.BucketCredentials],
		Duty: p.duty, Sound: p.sound, ClockOff: p.clocks.Off, Lease: p.own.Current, Asker: p.asker(),
		Backup: p.takeBackup, AdminToken: p.adminToken,
		Trail: p.trail, AuditFile: p.auditWriter(), AuditKey: p.master.Derive("audit names", 32),
		CheckRules: checkHandedOut,
		Logger:     p.log, Registry: p.registry, Overview: p.openOverview(),
	})
	if err != nil {
		return err
	}
	p.onClose(func() {
		if err := p.issuer.Close(); err != nil {
			p.log.Error("could not finish the audit", "error", err)
		}
	})
	p.vitals.probe = func() { _ = p.issuer.Ready() } // whatever it says
	close(p.opened)
	return nil
}

// sound tells whether what this issuer reads may be believed: the buckets, the log, and its own clock.
func (p *issuerProcess) sound() error { return errors.Join(p.guard.Err(), p.maySpeak()) }

func (p *issuerProcess) issuerConfig() issuer.Config {
	c, k := p.cfg.Issuer, p.cfg.Keys
	proxies, _ := parseNetworks(c.TrustedProxies) // validate has judged them
	return issuer.Config{
		URL: c.URL, Audience: c.Audience, DefaultClient: c.DefaultClient, UserIDClaim: c.UserIDClaim,
		Name: p.cfg.Agent.Name, Version: version(),
		AccessLifetime: c.AccessLifetime, RefreshLifetime: c.RefreshLifetime, RefreshGrace: c.RefreshGrace, MaxSessions: c.MaxSessions, MaxCredentials: c.MaxCredentials, RecheckEvery: c.UsersRecheck,
		SessionIdle: c.SessionIdle, SessionLifetime: c.SessionLifetime, CookieRefresh: c.CookieRefresh,
		AllowPasswordGrant: c.AllowPassword, UpdateLastLogin: c.UpdateLastLogin, Claims: c.Claims,
		Sliding: c.Sliding, SlidingLifetime: c.SlidingLifetime, SlidingRefreshLifetime: c.SlidingRefresh,
		APITokenAuth: c.APITokenAuth, APITokenLifetime: c.APITokenLife,
		Alg: keyring.Alg(k.Alg), Bits: k.Bits, RotateEvery: k.RotateEvery, PublishAhead: k.PublishAhead,
		Leeway: p.cfg.Agent.Leeway, MinPassword: c.PasswordMinLength, RefuseCommon: c.PasswordCommon == "refuse",
		LoginLimit: c.LoginPerMinute, RefreshLimit: c.RefreshPerMinute, SourceMultiple: c.SourceMultiple,
		TrustedProxies: proxies, BackupRecipients: c.BackupTo, OnNewNetwork: issuer.Anomaly(c.OnNewNetwork), OnNewAgent: issuer.Anomaly(c.OnNewUserAgent), OpsApart: c.OpsListen != c.Listen,
	}
}

// run serves until ctx ends or a part fails, and returns when all has stopped. ready is called once the issuer can
// make tokens.
func (p *issuerProcess) run(ctx context.Context, ready func()) error {
	asked := ctx
	// What serves ends first, and what it stands on goes on until then.
	base, stopAll := context.WithCancel(context.WithoutCancel(ctx))
	defer stopAll()
	stop, err := p.conn.Listen(p.granter.Hear, p.books.Hear)
	if err != nil {
		return err
	}
	defer stop()
	unheard, err := p.fleet.OnUsed(p.issuer.NoteUses)
	if err != nil {
		return err
	}
	defer unheard()
	g, ctx := errgroup.WithContext(base) // behind what may fail: whoever has begun one waits for it
	g.Go(func() error { return p.replica.Follow(ctx, oneEpoch{p.entries, p.begunAnew}) })
	g.Go(func() error {
		p.store.Keep(ctx, p.replica, func(err error) {
			p.log.Error("could not write this issuer's copy of the log, trying again", "error", err)
		})
		return nil
	})
	g.Go(func() error {
		return p.guard.Run(ctx, func(err error) {
			p.log.Error("could not write the revisions that were seen, trying again", "error", err)
		})
	})
	g.Go(func() error { p.duty.Run(ctx); return nil })
	g.Go(func() error { p.monitor.Run(ctx); return nil })
	g.Go(func() error { p.granter.Run(ctx); return nil })
	g.Go(func() error { p.books.Run(ctx); return nil })
	g.Go(func() error { p.behind.Run(ctx); return nil })
	g.Go(func() error { p.acknowledge(ctx); return nil })
	g.Go(func() error { return p.issuer.Run(ctx) })
	g.Go(func() error { return p.answerPasswords(ctx) })
	g.Go(func() error {
		replica.KeepCheckpoints(ctx, p.replica, p.entries, p.ledger.Image, p.duty.Held, checkpointEvery, checkpointEntries, p.log.Named("checkpoint"))
		return nil
	})
	g.Go(func() error { return whenReady(ctx, p.issuer.Ready, ready) })
	if p.peers != nil {
		g.Go(func() error { p.askIfRemoved(ctx, p.busLost, p.end); return nil })
	}
	g.Go(func() error { p.keepReplicas(ctx); return nil })
	serving, endServing := context.WithCancel(ctx)
	defer endServing()
	var served sync.WaitGroup
	for _, l := range p.listeners() {
		served.Add(1)
		g.Go(func() error {
			defer served.Done()
			return serve(serving, newHTTPServer(p.vitals.health(p.drained(l.handler))), p.guarded(l.Listener), drainWithin)
		})
	}
	g.Go(func() error {
		select {
		case <-asked.Done():
		case err := <-p.over:
			return err
		case <-ctx.Done():
			return nil
		}
		p.drain(ctx)
		endServing()
		served.Wait()
		stopAll()
		return nil
	})
	p.log.Info("serving", "issuer", p.public.Addr().String(), "url", p.cfg.Issuer.URL, "admin", p.cfg.Issuer.AdminListen)
	return g.Wait()
}

// end ends this process: it was removed from its cluster, or its log was begun anew by another issuer.
func (p *issuerProcess) end(err error) {
	select {
	case p.over <- err:
	default: // it ends already
	}
}

// guarded is ln with a limit of connections, and with TLS where it has that.
func (p *issuerProcess) guarded(ln net.Listener) net.Listener {
	most := maxAdminConns
	if ln == p.public {
		most = maxPublicConns
	}
	limited := limitConns(ln, most)
	if ln == p.public {
		proxies, _ := parseNetworks(p.cfg.Issuer.TrustedProxies) // validate has judged them
		limited = limitSources(limited, maxSourceConns, proxies)
	}
	if p.tls != nil && ln != p.ops && ln.Addr().Network() == "tcp" {
		return p.tls.listener(limited)
	}
	return limited
}

// handled is a listener and what it serves.
type handled struct {
	net.Listener
	handler http.Handler
}

func (p *issuerProcess) listeners() []handled {
	admin := p.issuer.AdminHandler(p.adminToken.Is)
	public := http.NewServeMux()
	public.Handle("/", p.issuer.PublicHandler())
	all := []handled{{p.public, public}}
	if p.admin != nil {
		// The socket lets in only those whom the file system lets in: this user, and root.
		if _, unix := p.admin.(*net.UnixListener); unix {
			admin = p.issuer.LocalAdminHandler()
		}
		all = append(all, handled{p.admin, admin})
	} else {
		public.Handle("/admin/", admin)
	}
	if p.ops != nil {
		all = append(all, handled{p.ops, p.issuer.OpsHandler()})
	}
	return all
}

// whenReady calls ready once check no longer fails. That ctx ends before is no error of a daemon.
func whenReady(ctx context.Context, check func() error, ready func()) error {
	if awaitReady(ctx, check) == nil {
		ready()
	}
	return nil
}

// awaitReady returns when check no longer fails, or with ctx's error.
func awaitReady(ctx context.Context, check func() error) error {
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for check() != nil {
		select {
		case <-look.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// warnDurability says loudly what an existing NATS does not promise. The embedded server always syncs.
func warnDurability(ctx context.Context, monitorURL string, log hclog.Logger) error {
	d, err := bus.CheckDurability(ctx, monitorURL)
	if err != nil {
		return err
	}
	switch d {
	case bus.Delayed:
		log.Error("the bus acknowledges writes before they are on its disk: a power failure can lose acknowledged revocations; set jetstream { sync_interval: always } in nats-server.conf")
	case bus.Unknown:
		log.Warn("whether the bus syncs what it acknowledges is unknown; set bus.monitor_url so that it can be checked")
	}
	return nil
}
