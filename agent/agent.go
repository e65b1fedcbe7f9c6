package agent

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidekey/sidekey/agent/rules"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/bus/replica"
)

// The bounds that hold where a Config says nothing.
const (
	defaultRealm          = "sidekey"
	defaultCacheSize      = 10_000
	defaultMaxConnections = 1024
)

// Config says who the agent is and what it demands of a token. The zero value is usable: it
// demands the ring's issuer and default audience, without tolerance for clocks.
type Config struct {
	Name    string // the agent's name in the fleet, shown in the status
	Version string // of this binary, shown in status and metrics

	// Realm is the realm of the Bearer challenge (RFC 6750 §3); "" means "sidekey".
	Realm string
	// Audiences are the audiences that are accepted where a request names none: a token must
	// have one of them. None: the ring's default audience (RFC 8725 §3.9).
	Audiences []string
	// Leeway is the tolerance for exp, nbf and iat (RFC 7519 §4.1.4).
	Leeway time.Duration
	// CacheSize is the greatest number of proven tokens that are remembered; 0 means 10,000,
	// about 3 KiB each.
	CacheSize int
	// Authenticators are the schemes of the forward-auth faces, in their order; none: bearer, session, token and api_key.
	Authenticators []string
	// Challenges is ChallengeAll or ChallengeFirst; "" means ChallengeAll.
	Challenges string
	// Headers are more claims that the forward-auth faces show, each in the header of that name.
	Headers map[string]string
	// StripCredentials has ext_authz take the credentials off a request that is from somebody, before the service gets it.
	StripCredentials bool
	// LocalRules says that this host has a file of rules of its own: nobody may pass until SetRules has given them. A restored
	// agent knows the log's sets before its file is read, and those alone may allow what the file denies.
	LocalRules bool
	// RuleSets names the sets of rules of the log that are in force together, after those of SetRules. While one is lacking,
	// nobody may pass. See TakeRules.
	RuleSets []string
	// Webhook is asked by the scheme of that name.
	Webhook WebhookConfig
	// Schemes are the tables of registered schemes, by name; see RegisterScheme.
	Schemes map[string]map[string]any
	// MaxConnections bounds the connections of each Server; one more gets 503 at once. 0: 1024.
	MaxConnections int
}

// check refuses a Config that cannot be meant, and fills in the defaults.
func (c *Config) check() error {
	if c.Realm == "" {
		c.Realm = defaultRealm
	}
	if c.CacheSize == 0 {
		c.CacheSize = defaultCacheSize
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = defaultMaxConnections
	}
	for _, r := range c.Realm {
		if r < ' ' || r > '~' || r == '"' || r == '\\' {
			return fmt.Errorf("checking the agent's config: realm %q may not hold quotes, backslashes or controls (RFC 9110 §5.6.4)", c.Realm)
		}
	}
	for _, aud := range c.Audiences {
		if strings.TrimSpace(aud) == "" {
			return errors.New("checking the agent's config: an audience is empty; leave audiences out to accept the ring's own")
		}
	}
	switch {
	case c.Leeway < 0:
		return fmt.Errorf("checking the agent's config: leeway %s is negative", c.Leeway)
	case c.CacheSize < 0:
		return fmt.Errorf("checking the agent's config: cache size %d is negative", c.CacheSize)
	case c.MaxConnections < 0:
		return fmt.Errorf("checking the agent's config: connection limit %d is negative", c.MaxConnections)
	}
	for n, name := range c.RuleSets {
		if err := bus.CheckRulesName(name); err != nil {
			return fmt.Errorf("checking the agent's config: rule set %q: %w", name, err)
		}
		if slices.Contains(c.RuleSets[:n], name) {
			return fmt.Errorf("checking the agent's config: rule set %q is named twice", name)
		}
	}
	return c.checkChain()
}

// Replica is what the agent knows of the log: *replica.Replica, which somebody else keeps
// following. All methods may be called at any time by any goroutine, and none waits.
type Replica interface {
	// Snapshot is the newest state, immutable.
	Snapshot() *replica.Snapshot
	// Revoked tells whether a revocation that covers the ids has been applied. An entry is
	// visible here before a Snapshot says that its sequence is applied.
	Revoked(ids *replica.IDs) bool
	// Forgotten tells whether the revocation of a token that ends at exp (NumericDate, leeway
	// included) may have been dropped: such a token has expired. It is asked after Revoked.
	Forgotten(exp int64) bool
	// Credential gives the API key or opaque token of that hash, nil: there is none. It is visible, and
	// withdrawn, before a Snapshot says that its entry's sequence is applied.
	Credential(hash *[sha256.Size]byte) *replica.Credential
	// CredentialRevoked tells whether a revocation covers it.
	CredentialRevoked(c *replica.Credential) bool
	// Revocations counts the revocations held.
	Revocations() int
	// Head is the newest sequence that the log is known to have.
	Head() uint64
	// Fault is why the log is not read on, nil while it is.
	Fault() error
}

// Leases tells by which lease the agent may vouch: *lease.Holder. Current may be called at any time.
type Leases interface {
	// Current is the lease in force, nil without one.
	Current() *lease.Lease
}

// Parts are what an Agent is built from. Replica and Leases are required.
type Parts struct {
	Replica   Replica
	Leases    Leases
	Clock     lease.Clock          // by which leases end; nil: lease.SystemClock
	Hurry     func()               // called when a caller wants a fresher lease than the one in force; nil: nobody hears
	Logger    hclog.Logger         // named by the caller; nil: nothing is logged
	Now       func() time.Time     // the wall clock; nil: time.Now
	Connected func() bool          // whether the bus is connected now, for the status; nil: false
	ClockOff  func() time.Duration // how far the wall clock is ahead of the issuers' ticks, for status and metrics; nil: 0
	Run       string               // this process's random id, for the status
	Passwords Passwords            // who is asked about passwords, for the scheme basic; nil: nobody
	Registry  *prometheus.Registry // where the metrics go; nil: one of its own
}

// Agent checks tokens against what it knows of the log, from memory alone. Its methods may be
// called by any goroutine. It has no goroutine of its own: whoever follows the log feeds it.
type Agent struct {
	cfg       Config
	replica   Replica
	leases    Leases
	clock     lease.Clock
	hurry     func()
	log       hclog.Logger
	now       func() time.Time
	connected func() bool
	clockOff  func() time.Duration
	run       string

	chain    *chain
	claims   []string // of agent.headers
	unmapped []string // the values of agent.headers for nobody
	fields   [][]byte // and where they go
	used     used

	cache   *cache
	metrics *metrics
	faces   faces
	envoy   envoyFace
	book    atomic.Pointer[book] // the rules in force; never nil
	shelf   shelf
	jwks    atomic.Pointer[keySet] // the newest ring's public keys, with their ETag
	closing sync.Once
}

// New builds an Agent. It touches neither disk nor network. The error says which part of cfg
// cannot be meant, or that the registry holds the metrics of another agent already.
func New(cfg Config, parts Parts) (*Agent, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if parts.Replica == nil {
		return nil, errors.New("building the agent: it needs a replica of the log")
	}
	if parts.Leases == nil {
		return nil, errors.New("building the agent: it needs leases, without which it vouches for nobody")
	}
	cfg.Audiences = append([]string(nil), cfg.Audiences...) // the caller's slice stays the caller's
	a := &Agent{
		cfg:       cfg,
		replica:   parts.Replica,
		leases:    parts.Leases,
		clock:     parts.Clock,
		hurry:     parts.Hurry,
		log:       parts.Logger,
		now:       parts.Now,
		connected: parts.Connected,
		clockOff:  parts.ClockOff,
		run:       parts.Run,
	}
	if a.log == nil {
		a.log = hclog.NewNullLogger()
	}
	if a.clock == nil {
		a.clock = lease.SystemClock
	}
	if a.hurry == nil {
		a.hurry = func() {}
	}
	if a.now == nil {
		a.now = time.Now
	}
	if a.clockOff == nil {
		a.clockOff = func() time.Duration { return 0 }
	}
	if a.connected == nil {
		a.connected = func() bool { return false }
	}
	registry := parts.Registry
	if registry == nil {
		registry = prometheus.NewRegistry()
	}
	var err error
	if a.cache, err = newCache(cfg.CacheSize); err != nil {
		return nil, fmt.Errorf("building the agent: %w", err)
	}
	if a.metrics, err = newMetrics(a, registry); err != nil {
		return nil, fmt.Errorf("building the agent: registering metrics: %w", err)
	}
	if a.claims, a.fields, err = newHeaders(cfg.Headers); err != nil {
		return nil, fmt.Errorf("building the agent: %w", err)
	}
	a.unmapped = make([]string, len(a.claims))
	if a.chain, err = newChain(a, &parts); err != nil {
		return nil, fmt.Errorf("building the agent: %w", err)
	}
	a.book.Store(&book{})
	a.shelf = shelf{names: slices.Clone(cfg.RuleSets), awaits: cfg.LocalRules, opt: rules.Options{Authenticators: cfg.Authenticators}, handed: make(map[string]*handedSet)}
	a.TakeRules(a.replica.Snapshot())
	a.faces = newFaces(a)
	if a.envoy, err = newEnvoyFace(a); err != nil {
		return nil, fmt.Errorf("building the agent: %w", err)
	}
	return a, nil
}

// Close forgets every proven token and takes the metrics off the registry, so that another agent
// may use it. Close the listeners first. It may be called twice.
func (a *Agent) Close() error {
	a.closing.Do(func() {
		a.cache.purge()
		a.envoy.answers.Purge()
		a.metrics.unregister()
	})
	return nil
}
