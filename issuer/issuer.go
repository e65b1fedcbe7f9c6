package issuer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// Log is where the issuer writes what every agent has to know.
type Log interface {
	// Append writes the facts in order and returns the position of the last, once it is durable.
	// It retries inside and never writes one twice; after an error it may have been written.
	Append(ctx context.Context, facts ...bus.Fact) (bus.Position, error)
	// AppendIf writes the fact only if the newest entry of that kind is at sequence last (0: there
	// is none), else it returns bus.ErrConflict: somebody else decided first.
	AppendIf(ctx context.Context, kind bus.Kind, last uint64, fact bus.Fact) (bus.Position, error)
}

// Bucket holds state: one record a name, written by compare-and-set on its revision. A read may
// come from a follower and be old, so a read alone never decides anything.
type Bucket interface {
	Get(ctx context.Context, name string) (bus.Record, error)                               // bus.ErrNotFound
	Create(ctx context.Context, name string, value []byte) (uint64, error)                  // bus.ErrExists
	Update(ctx context.Context, name string, value []byte, revision uint64) (uint64, error) // bus.ErrConflict
	Delete(ctx context.Context, name string, revision uint64) error                         // bus.ErrConflict
	List(ctx context.Context, filter string) ([]bus.Record, error)                          // "": all
	Count(ctx context.Context, filter string) (int, error)
	AtMost(ctx context.Context, filter string) (int, error)
}

// Replica is what this issuer itself has read in the log. *replica.Replica is one.
type Replica interface {
	Snapshot() *replica.Snapshot
	Revoked(ids *replica.IDs) bool
	// Wait returns when everything up to seq is applied, or with ctx's error.
	Wait(ctx context.Context, seq uint64) error
	Changed() <-chan struct{}
	Keys() []*bus.KeyFact
	Revocations() int
	// CredentialByID gives an API key or opaque token as the log has it, nil: it has none.
	CredentialByID(id string) *replica.Credential
	CredentialRevoked(c *replica.Credential) bool
	CredentialCutAt(c *replica.Credential) int64
	// ListCredentials gives all of them.
	ListCredentials() []*replica.Credential
}

// Fleet tells of the agents. An issuer asks it before a key may sign.
type Fleet interface {
	Agents(ctx context.Context) ([]bus.AgentInfo, error)
	// Receipt tells who may still be vouching without knowing the entry at pos, as it stands now
	// (PROTOCOL 4). It waits until this issuer has read the log up to there.
	Receipt(ctx context.Context, pos bus.Position) (*lease.Receipt, error)
	Remove(ctx context.Context, name string) error // bus.ErrNotFound
	// Changed is closed when an agent has acknowledged, come or gone. That a lease has ended is no
	// change: look again by the clock.
	Changed() <-chan struct{}
}

// Config is what the operator chooses. Zero values take the defaults of API.md §1, but for
// MaxSessions, MaxCredentials, RotateEvery, PublishAhead, Leeway, RefreshGrace, LoginLimit and RefreshLimit, where zero means none.
type Config struct {
	URL           string // iss of every token
	Audience      string // aud of tokens that ask for none; "": URL
	DefaultClient string // client_id of username logins
	UserIDClaim   string // Simple JWT's claim; "": user_id
	Name          string // this issuer's, in its audit lines
	Version       string

	AccessLifetime  time.Duration
	RefreshLifetime time.Duration
	SessionIdle     time.Duration // how long a browser's session lives unless it is renewed
	SessionLifetime time.Duration // how long any session lives, however often it is renewed; 0: no end
	CookieRefresh   bool          // Simple JWT's endpoints keep the refresh token in a cookie
	RefreshGrace    time.Duration // how long the first use of a refresh token may be repeated
	MaxSessions     int           // per user; refuses a new one, never ends an old one
	RecheckEvery    time.Duration // how often the Directory is asked for the users with open sessions; 0: never
	MaxCredentials  int           // API keys and opaque tokens per user that can be used; refuses a new one. 0: any number

	Sliding                bool          // Simple JWT's sliding tokens: LoginSliding and RefreshSliding
	SlidingLifetime        time.Duration // of one such token; 0: 5 minutes
	SlidingRefreshLifetime time.Duration // of its session; 0: 24 hours

	APITokenAuth     bool          // POST /api-token-auth/, the REST framework's obtain_auth_token: ObtainToken
	APITokenLifetime time.Duration // of the tokens that it gives; 0: no end

	Claims          map[string]string // custom claims of access tokens: see CheckClaims
	UpdateLastLogin bool              // users' records say when they last logged in, to the hour

	AllowPasswordGrant bool // POST /oauth2/token takes grant_type=password (RFC 6749 §4.3)

	Alg          keyring.Alg
	Bits         int
	RotateEvery  time.Duration
	PublishAhead time.Duration // how long a new key is in the JWKS before it signs
	RotateWait   time.Duration // how long a rotation asked for waits for the agents; 0: 5 s
	Leeway       time.Duration

	OpsApart       bool           // health and metrics have a listener of their own: OpsHandler
	TrustedProxies []netip.Prefix // whose X-Forwarded-For, -Host and -Proto are believed; none: nobody's
	// BackupRecipients are the age recipients for whom alone a backup is taken over TCP, and for whom one is taken where the
	// request names nobody; none: over TCP there is none.
	BackupRecipients []string
	OnNewNetwork     Anomaly // a refresh from another /24 (IPv4) or /48 (IPv6) than the session's; "": log
	OnNewAgent       Anomaly // a refresh with another User-Agent than the session's; "": log

	MinPassword  int  // characters of a password that is set; 0: one
	RefuseCommon bool // passwords that everybody tries first, or that are the user name, are not taken

	RefreshLimit   int  // presentations a minute of one session's refresh tokens, and SourceMultiple times that for one address
	SourceMultiple int  // 0: 10
	LoginLimit     int  // attempts a minute for one user name, and ten times that for one address
	Hash           Hash // the cost of a password; zero: DefaultHash
}

// Parts are what an Issuer works on. All but AdminToken, Duty, Directory, Credentials, Overview, Enrolment, Feed, Trail, AuditFile, AuditKey, Logger, Registry, Fresh and Now are needed.
type Parts struct {
	Log     Log
	Replica Replica
	Fleet   Fleet

	// Directory is where users live that do not live in Users. nil: they do.
	Directory Directory

	Users    Bucket // by user name
	Subjects Bucket // by sub: whose it is
	Sessions Bucket // by sub and sid
	Clients  Bucket // OAuth clients, and the assertions that they have used
	Keys     Bucket // private keys, of the ring and of the refresh tokens
	// Credentials has API keys and opaque tokens, by sub and id. nil: this issuer keeps none.
	Credentials Bucket

	// AdminToken is what AdminHandler is asked with; nil: it cannot be rotated.
	AdminToken *AdminToken
	// Enrolment lets agents and issuers in. nil: nobody can be.
	Enrolment Enrolment
	// Asker puts questions to all agents; nil: nobody can be asked.
	Asker Asker
	// Feed is told by the replica of each entry (replica.Config.Journal). Without it, sessions
	// revoked by others are closed by the next sweep only.
	Feed *Feed
	// Lease gives this issuer's own lease (lease.Own.Current): without one it neither signs nor
	// verifies (PROTOCOL 12, 17). nil: it does both for ever, for tests that have no bus.
	Lease func() *lease.Lease
	// Duty tells whether this issuer does what one does for all: scheduled rotation, sweeps, rechecks. nil: it does.
	Duty Duty
	// Sound tells whether the buckets (bus.Guard.Err) and this machine's clock (lease.Clocks.CheckIssuer) may be
	// believed: with an error this issuer neither signs nor verifies. nil: they may.
	Sound func() error
	// ClockOff is how far this machine's clock is ahead of the other issuers' ticks, for the metrics; nil: 0.
	ClockOff func() time.Duration
	// CheckRules tells what is wrong with a set of rules, as an agent would. nil: this issuer hands none out.
	CheckRules func(name, text string) error
	// Clock says when that has ended; nil: lease.SystemClock.
	Clock lease.Clock
	// Overview tells how the rest of the fleet is, for the status and the metrics. The zero value: nobody knows.
	Overview Overview
	// Trail is where who did what is kept, and AuditFile a copy of it, an event a line. nil: the log alone has it.
	Trail     Trail
	AuditFile io.Writer
	// Backup takes backups; nil: there are none of this issuer.
	Backup Backup
	// AuditKey hides names in the audit that must not be read, the same way on every issuer. nil: one of this process.
	AuditKey []byte
	Logger   hclog.Logger
	Registry *prometheus.Registry
	Now      func() time.Time
}

// Bounds on clocks and waiting, from DESIGN §3 and PROTOCOL 17.
const (
	clockSkew    = 30 * time.Second // the most that two issuers' clocks may differ
	retireAfter  = 5 * time.Second  // an issuer that has not read a tick of its own for so long has stopped signing
	maxAttempts  = 16               // compare-and-sets lost in a row before an operation gives up
	applyTimeout = 5 * time.Second  // for this process to read back what it wrote
)

// The answers that a caller may have to tell apart. A token refused is a *keyring.Denial instead.
var (
	// ErrCredentials means that no active user has this name and password. It never tells which.
	ErrCredentials = errors.New("no active account found with the given credentials")
	// ErrNoAccount means that the token's user is gone or disabled.
	ErrNoAccount = errors.New("no active account found for the given token")
	// ErrTooManySessions means that the user has issuer.max_sessions live ones.
	ErrTooManySessions = errors.New("too many sessions; end one of them first")
	// ErrNotFound means that there is no such user, session, key or agent.
	ErrNotFound = errors.New("not found")
	// ErrExists means that the name or id is taken.
	ErrExists = errors.New("it exists already")
	// ErrElsewhere means that users live in a Directory, which is not written here.
	ErrElsewhere = errors.New("users live elsewhere (issuer.users): add, change, list and delete them there; sidekey revoke --sub ID ends what one has")
	// ErrUnavailable means that the issuer cannot decide now: it is starting, the bus is away, or
	// others kept writing first. Trying again is harmless.
	ErrUnavailable = errors.New("the issuer cannot answer now; try again")
)

// ConflictError means that something cannot be done as things stand. Problem is safe to show.
type ConflictError struct{ Problem string }

func (e *ConflictError) Error() string { return e.Problem }

// BusyError means that too much was asked at once. The zero RetryAfter never occurs.
type BusyError struct {
	Limited    bool // the caller's own limit (429), not the whole issuer's (503)
	RetryAfter time.Duration
}

func (e *BusyError) Error() string {
	if e.Limited {
		return fmt.Sprintf("too many attempts; try again in %s", e.RetryAfter)
	}
	return fmt.Sprintf("too many logins at once; try again in %s", e.RetryAfter)
}

// InputError means that a request's member cannot be as it is. Problem is safe to show.
type InputError struct{ Field, Problem string }

func (e *InputError) Error() string { return fmt.Sprintf("%q %s", e.Field, e.Problem) }

// Issuer makes tokens and writes what is to be known of them into the log. All its methods may
// be called by many goroutines, and many Issuers may share one bus.
type Issuer struct {
	cfg Config
	Parts
	log       hclog.Logger // what happens
	audit     hclog.Logger // who did what
	audits    *auditor     // the same, for good
	now       func() time.Time
	hash      *hasher
	limits    *limits // of logins
	refreshes *limits
	clients   *clientLimits
	metrics   *metrics
	refresh   refreshKeys
	private   privateKeys
	custom    claimTemplates
	sealing   sealingKeys
	amends    chan struct{} // holds one token while nobody changes a credential
	uses      uses          // of credentials, not written yet
	followers atomic.Int32  // of the audit
	backingUp atomic.Bool
	glance    glances         // at the fleet
	turns     [256]sync.Mutex // by session: one refresh at a time in this process, so that only issuers compete
}

// New checks cfg and parts. It reads and writes nothing: Run does.
func New(cfg Config, parts Parts) (*Issuer, error) {
	cfg.setDefaults()
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("building the issuer: %w", err)
	}
	for name, missing := range map[string]bool{
		"log": parts.Log == nil, "replica": parts.Replica == nil, "fleet": parts.Fleet == nil,
		"users": parts.Users == nil, "subjects": parts.Subjects == nil, "sessions": parts.Sessions == nil,
		"clients": parts.Clients == nil, "keys": parts.Keys == nil,
	} {
		if missing {
			return nil, fmt.Errorf("building the issuer: part %q is missing", name)
		}
	}
	if parts.Logger == nil {
		parts.Logger = hclog.NewNullLogger()
	}
	if parts.Now == nil {
		parts.Now = time.Now
	}
	if parts.Clock == nil {
		parts.Clock = lease.SystemClock
	}
	if parts.Feed == nil {
		parts.Feed = NewFeed()
	}
	if parts.ClockOff == nil {
		parts.ClockOff = func() time.Duration { return 0 }
	}
	if parts.Registry == nil {
		parts.Registry = prometheus.NewRegistry()
	}
	i := &Issuer{cfg: cfg, Parts: parts, now: parts.Now, log: parts.Logger.Named("issuer"), audit: parts.Logger.Named("audit")}
	if cfg.Name != "" {
		i.audit = i.audit.With("issuer", cfg.Name)
	}
	i.metrics = newMetrics(parts.Registry, parts.Replica, parts.ClockOff)
	i.registerDuty()
	i.audits = newAuditor(&cfg, &parts, i.now, i.metrics)
	i.hash = newHasher(cfg.Hash, parts.Directory != nil, i.metrics.hashing)
	i.limits = newLimits(cfg.LoginLimit, cfg.SourceMultiple)
	i.refreshes = newLimits(cfg.RefreshLimit, cfg.SourceMultiple)
	var err error
	if i.custom, err = parseClaims(cfg.Claims, cfg.UserIDClaim); err != nil {
		return nil, fmt.Errorf("building the issuer: issuer.claims: %w", err)
	}
	parts.Registry.MustRegister(&fleetMetrics{i})
	i.clients = newClientLimits(cfg.LoginLimit)
	i.amends = make(chan struct{}, 1)
	i.amends <- struct{}{}
	return i, nil
}

func (c *Config) setDefaults() {
	if c.Audience == "" {
		c.Audience = c.URL
	}
	if c.DefaultClient == "" {
		c.DefaultClient = "sidekey"
	}
	if c.UserIDClaim == "" {
		c.UserIDClaim = "user_id"
	}
	if c.AccessLifetime == 0 {
		c.AccessLifetime = 15 * time.Minute
	}
	if c.RefreshLifetime == 0 {
		c.RefreshLifetime = 168 * time.Hour
	}
	if c.SessionIdle == 0 {
		c.SessionIdle = 30 * time.Minute
	}
	if c.SlidingLifetime == 0 {
		c.SlidingLifetime = 5 * time.Minute
	}
	if c.SlidingRefreshLifetime == 0 {
		c.SlidingRefreshLifetime = 24 * time.Hour
	}
	if c.Alg == "" {
		c.Alg = keyring.RS256
	}
	if c.SourceMultiple == 0 {
		c.SourceMultiple = 10
	}
	if c.RotateWait == 0 {
		c.RotateWait = 5 * time.Second
	}
	if c.Hash == (Hash{}) {
		c.Hash = DefaultHash
	}
}

// longestToken is how long a token that agents accept may live.
func (c *Config) longestToken() time.Duration {
	life := max(c.AccessLifetime, c.SessionIdle)
	if c.Sliding {
		life = max(life, c.SlidingLifetime)
	}
	return life
}

func (c *Config) check() error {
	switch {
	case c.URL == "":
		return errors.New(`"issuer.url" is empty: it is the "iss" of every token`)
	case c.AccessLifetime < time.Second || c.RefreshLifetime < c.AccessLifetime:
		return fmt.Errorf(`"issuer.access_lifetime" (%s) must be at least 1s and no longer than "issuer.refresh_lifetime" (%s)`, c.AccessLifetime, c.RefreshLifetime)
	case c.SlidingLifetime < time.Second || c.SlidingRefreshLifetime < c.SlidingLifetime:
		return fmt.Errorf(`"issuer.sliding_lifetime" (%s) must be at least 1s and no longer than "issuer.sliding_refresh_lifetime" (%s)`, c.SlidingLifetime, c.SlidingRefreshLifetime)
	case c.SessionIdle < time.Second:
		return fmt.Errorf(`"issuer.session_idle" (%s) must be at least 1s`, c.SessionIdle)
	case c.RefreshGrace < 0, c.SessionLifetime < 0, c.PublishAhead < 0, c.RotateEvery < 0, c.Leeway < 0, c.RotateWait < 0, c.RecheckEvery < 0, c.APITokenLifetime < 0, c.MaxSessions < 0, c.MaxCredentials < 0, c.LoginLimit < 0, c.RefreshLimit < 0, c.SourceMultiple < 0:
		return errors.New("a duration or a count is negative")
	}
	if _, err := keyring.ParseAlg(string(c.Alg)); err != nil {
		return fmt.Errorf(`"keys.alg": %w`, err)
	}
	return c.Hash.check()
}

// Run keeps the ring and the sessions in order until ctx ends: it makes the first keys, rotates on
// schedule, activates what the agents have acknowledged and drops expired sessions, all that while it has
// the Duty; and always closes the sessions that it reads are revoked, holds the private keys that agents
// seal to, and writes the uses that it is told. It returns nil when all that has stopped. Call it once.
func (i *Issuer) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { i.keepRing(ctx) })
	wg.Go(func() { i.keepSealing(ctx) })
	wg.Go(func() { i.closeRevoked(ctx) })
	wg.Go(func() { i.whileOnDuty(ctx, i.keepSwept) })
	wg.Go(func() { i.keepRechecked(ctx) })
	wg.Go(func() { i.keepUses(ctx) })
	if i.AdminToken != nil {
		wg.Go(func() { i.AdminToken.Follow(ctx) })
	}
	wg.Wait()
	return nil
}

// Ready tells whether this issuer can make tokens now, and agents can have it check passwords and sessions: the log names
// a key that they seal to. The error, an ErrUnavailable, says what is missing. It reads memory alone, and may be called at any time.
func (i *Issuer) Ready() error {
	if err := i.maySign(); err != nil {
		return err
	}
	if i.Replica.Snapshot().Sealing == nil {
		return fmt.Errorf("%w: the log names no key yet that agents seal to", ErrUnavailable)
	}
	return nil
}

// maySign tells whether this issuer can make tokens now; the error says what is missing.
func (i *Issuer) maySign() error {
	snap := i.Replica.Snapshot()
	if !snap.Ready {
		return fmt.Errorf("%w: the log has not been read yet", ErrUnavailable)
	}
	if _, ok := i.activeKey(snap.Ring); !ok {
		return fmt.Errorf("%w: no key is active yet", ErrUnavailable)
	}
	if err := i.sound(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if !i.fresh() {
		return fmt.Errorf("%w: no tick of this issuer's own was read back within %s", ErrUnavailable, retireAfter)
	}
	return nil
}

// settle waits until this issuer's own replica has applied pos, so that what it answers next
// takes it into account. The entry is durable by then, whatever settle returns.
func (i *Issuer) settle(ctx context.Context, pos bus.Position) error {
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	if err := i.Replica.Wait(ctx, pos.Seq); err != nil {
		return fmt.Errorf("%w: entry %d is in the log, but not read back yet: %w", ErrUnavailable, pos.Seq, err)
	}
	return nil
}

// pause waits a little between two attempts, longer each time; false: ctx has ended.
func pause(ctx context.Context, attempt int) bool {
	t := time.NewTimer(jitter(time.Duration(min(attempt+1, 10)) * 5 * time.Millisecond))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
