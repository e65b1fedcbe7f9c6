package bus

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
)

// The oldest nats-server that keeps what the log needs: older ones lost acknowledged data, and
// silently ignored newer stream settings.
const oldestServer = "2.12.0"

// Attempts at a JetStream call: a call made while there is no leader is never answered, so each
// attempt is short, and there are several.
const (
	attempt  = time.Second
	patience = 5 * time.Second
)

// ConnectConfig says how to reach a NATS server. URLs or Server is required, and a credential.
type ConnectConfig struct {
	URLs        []string // of an existing server; tls:// in one: never in clear
	Server      *Server  // or the embedded one, reached within the process
	User        *User    // who connects
	Credentials string   // or a .creds file with the same
	CA          []byte   // PEM: never in clear, and servers' certificates must come from it; nil: from one that the system knows
	Name        string   // of this connection, as the server lists it
	Prefix      string   // "": DefaultPrefix
	Agent       string   // an agent's name: answers come to the inbox that it may listen on
	Insecure    bool     // URLs beyond loopback may be in clear where no CA is given
	Servers     string   // file that remembers where else the bus is, for a start while URLs are gone; "": none
	Logger      hclog.Logger
	// Replicated: the state has several replicas, or may come to have them. One that is late may answer a
	// direct get, so records are asked of the stream's leader. A server that says that it is one of several is
	// treated so in any case.
	Replicated bool

	pinned []byte // SHA-256 of the CA, where that is all that is known
	inbox  string
}

// Conn is a connection to NATS that is never given up: while it is down, calls fail at once and
// it is tried again, with jitter, for ever.
type Conn struct {
	nc       *nats.Conn
	js       jetstream.JetStream
	subjects subjects
	log      hclog.Logger
	cfg      ConnectConfig
	servers  *servers

	clustered atomic.Bool  // a server has said that it is one of several
	most      atomic.Int64 // replicas of any stream that was seen
}

// Connect begins to connect. Without Server it does not wait for the connection: an agent may
// start while the bus is away. An error means that the configuration cannot work.
func Connect(cfg ConnectConfig) (*Conn, error) {
	c := &Conn{subjects: subjects(prefixOr(cfg.Prefix)), log: cfg.Logger, cfg: cfg}
	if c.log == nil {
		c.log = hclog.NewNullLogger()
	}
	c.servers = openServers(cfg, c.log)
	opts, err := c.options(cfg)
	if err != nil {
		return nil, err
	}
	urls := cfg.URLs
	if cfg.Server != nil {
		urls = []string{strings.Replace(cfg.Server.URL(), "tls://", "nats://", 1)} // within the process there is no TLS
	}
	if c.nc, err = nats.Connect(strings.Join(urls, ","), opts...); err != nil {
		return nil, fmt.Errorf("connecting to bus %s: %w", redacted(urls), withoutURL(err))
	}
	c.servers.nc.Store(c.nc)
	if c.js, err = jetstream.New(c.nc, jetstream.WithPublishAsyncTimeout(5*time.Second)); err != nil {
		c.nc.Close()
		return nil, fmt.Errorf("connecting to bus %s: %w", redacted(urls), err)
	}
	return c, nil
}

// redacted lists addresses without what may stand in them before the host: a password or a token.
func redacted(urls []string) string {
	hosts := make([]string, len(urls))
	for i, u := range urls {
		scheme, rest, ok := strings.Cut(u, "://")
		if !ok {
			scheme, rest = "nats", u
		}
		hosts[i] = scheme + "://" + rest[strings.LastIndexByte(rest, '@')+1:]
	}
	return strings.Join(hosts, ", ")
}

// withoutURL takes out of an error the address that could not be read, with its password.
func withoutURL(err error) error {
	var bad *url.Error
	if errors.As(err, &bad) {
		return errors.New("an address is no URL; want nats://host:port")
	}
	return err
}

func (c *Conn) options(cfg ConnectConfig) ([]nats.Option, error) {
	auth, err := credential(cfg)
	if err != nil {
		return nil, err
	}
	opts := []nats.Option{
		auth,
		nats.Name(cfg.Name),
		nats.MaxReconnects(-1),
		nats.RetryOnFailedConnect(true),
		nats.CustomReconnectDelay(func(round int) time.Duration {
			c.servers.offer(round)
			return reconnectPause(round, cfg.longestPause())
		}),
		nats.ReconnectBufSize(-1),   // fail at once: what was sent while the bus was away would arrive late
		nats.IgnoreAuthErrorAbort(), // a server that restarts may refuse for a moment
		nats.ConnectHandler(func(nc *nats.Conn) {
			c.log.Info("connected to the bus", "url", nc.ConnectedUrlRedacted())
			c.servers.learn(nc)
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			c.log.Info("connected to the bus again", "url", nc.ConnectedUrlRedacted())
			c.servers.learn(nc)
		}),
		nats.DiscoveredServersHandler(c.servers.learn),
		nats.DisconnectErrHandler(func(nc *nats.Conn, err error) {
			if err != nil {
				c.log.Warn("lost the bus, trying again", "error", err)
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			// A slow consumer has lost messages; the next sequence shows the gap and it is read back.
			c.log.Warn("bus error", "error", err)
		}),
	}
	if cfg.Server != nil {
		opts = append(opts, nats.InProcessServer(cfg.Server.srv))
	}
	if cfg.Agent != "" {
		cfg.inbox = agentInbox + "." + encodePart(cfg.Agent)
	}
	if cfg.inbox != "" {
		opts = append(opts, nats.CustomInboxPrefix(cfg.inbox))
	}
	secure, err := c.secureOptions(cfg)
	return append(opts, secure...), err
}

// secureOptions are those of TLS. Whether there is any must not be for the server's INFO to say, which
// comes in clear: one in the middle would leave it out.
func (c *Conn) secureOptions(cfg ConnectConfig) ([]nats.Option, error) {
	if cfg.Server != nil {
		return nil, nil // within the process there is no TLS
	}
	known := len(cfg.CA) > 0 || len(cfg.pinned) > 0
	if !known && !cfg.Insecure {
		if err := refuseClear(cfg.URLs); err != nil {
			return nil, err
		}
	}
	tlsConfig, err := clientTLS(cfg.CA)
	if err != nil {
		return nil, err
	}
	var opts []nats.Option
	to := new(dialled)
	switch {
	case len(cfg.pinned) > 0:
		tlsConfig, opts = pinnedTLS(cfg.pinned, to), append(opts, nats.Dialer(to.dialer()))
	case len(cfg.CA) > 0:
		toldTLS(tlsConfig, to, c.servers.told)
		opts = append(opts, nats.Dialer(to.dialer()))
	}
	return append(opts, func(o *nats.Options) error {
		o.TLSConfig, o.Secure = tlsConfig, o.Secure || known
		return nil
	}), nil
}

// refuseClear refuses addresses beyond this host that do not say tls://.
func refuseClear(urls []string) error {
	for _, address := range urls {
		if !strings.Contains(address, "://") {
			address = "nats://" + address
		}
		u, err := url.Parse(address)
		if err != nil || u.Scheme == "tls" || u.Scheme == "wss" || loopback(u.Hostname()) {
			continue // what is no URL is refused when it is dialled
		}
		return fmt.Errorf("refusing to reach the bus at %s in clear: others on the network could read and change what is sent; use tls://%s, give its CA (bus.ca, or a join token that has it), or set insecure = true", redacted([]string{address}), u.Host)
	}
	return nil
}

// credential is what proves us to the server: a user's JWT, and its seed's signature of a nonce.
func credential(cfg ConnectConfig) (nats.Option, error) {
	user := cfg.User
	if user == nil {
		if cfg.Credentials == "" {
			return nil, errors.New("connecting to the bus: no credentials are given; set bus.credentials to a .creds file, or join")
		}
		text, err := os.ReadFile(cfg.Credentials)
		if err != nil {
			return nil, fmt.Errorf("reading bus.credentials: %w", err)
		}
		if err := CheckPrivateFile(cfg.Credentials); err != nil {
			return nil, err
		}
		if user, err = ParseUser(text); err != nil {
			return nil, fmt.Errorf("reading bus.credentials %s: %w; want a .creds file, as `nsc generate creds` and `sidekey bus export` write it", cfg.Credentials, err)
		}
	}
	kp, err := nkeys.FromSeed(user.Seed)
	if err != nil {
		return nil, errors.New("connecting to the bus: the credential's seed is damaged")
	}
	return nats.UserJWT(func() (string, error) { return user.JWT, nil }, kp.Sign), nil
}

// replicated tells whether another replica than a stream's leader may answer: by the configuration, or because the
// server is one of several, which may hold what they do in several replicas whatever the configuration says. An agent
// may not ask leaders.
func (c *Conn) replicated() bool {
	if c.cfg.Replicated || c.clustered.Load() {
		return true
	}
	if c.cfg.Agent == "" && c.cfg.inbox == "" && c.nc.ConnectedClusterName() != "" {
		c.clustered.Store(true)
		return true
	}
	return false
}

// AtIssuer tells whether the server is one inside an issuer that stands alone, by its name, and not an existing NATS.
func (c *Conn) AtIssuer() bool { return c.nc.ConnectedServerName() == aloneName }

// Connected tells whether the server can be reached now.
func (c *Conn) Connected() bool { return c.nc.IsConnected() }

// Close ends the connection. It may be called twice.
func (c *Conn) Close() { c.nc.Close() }

// Await returns when the server is reached and is new enough, or with ctx's error.
func (c *Conn) Await(ctx context.Context) error {
	have := c.nc.ConnectedServerVersion()
	for ; have == ""; have = c.nc.ConnectedServerVersion() { // there is none while it is not connected
		if !sleep(ctx, 10*time.Millisecond) {
			return fmt.Errorf("connecting to bus %s: %w; is it up, and reachable from here? last error: %v", redacted(c.nc.Servers()), ctx.Err(), c.nc.LastError())
		}
	}
	return c.checkVersion(have)
}

// checkVersion refuses servers that would lose data.
func (c *Conn) checkVersion(have string) error {
	if older(have, oldestServer) {
		return fmt.Errorf("refusing the nats-server at %s: it is version %s, and %s is the oldest that keeps what it acknowledges; upgrade it", c.nc.ConnectedUrlRedacted(), have, oldestServer)
	}
	return nil
}

// older compares versions of the form major.minor.patch; what is behind a dash is passed over. What
// cannot be read is older than anything.
func older(have, want string) bool {
	var h, w [3]int
	if n, _ := fmt.Sscanf(strings.TrimPrefix(have, "v"), "%d.%d.%d", &h[0], &h[1], &h[2]); n != 3 {
		return true
	}
	fmt.Sscanf(want, "%d.%d.%d", &w[0], &w[1], &w[2])
	for i := range h {
		if h[i] != w[i] {
			return h[i] < w[i]
		}
	}
	return false
}

// retry calls fn with a context of a second, until it succeeds, fails in a way that trying again
// does not mend, or patience or ctx is at its end. While there is no connection calls fail at once,
// so it is time that counts, not attempts.
func retry(ctx context.Context, fn func(context.Context) error) error {
	for begun, n := time.Now(), 1; ; n++ {
		actx, cancel := context.WithTimeout(ctx, attempt)
		err := fn(actx)
		cancel()
		if err == nil || !passing(err) || time.Since(begun) > howLong(ctx, err) {
			return err
		}
		if !sleep(ctx, min(time.Duration(n)*50*time.Millisecond, 250*time.Millisecond)) {
			return errors.Join(ctx.Err(), err)
		}
	}
}

// howLong says for how long a call that failed is tried again. That a cluster has too few servers may be its configuration.
func howLong(ctx context.Context, err error) time.Duration {
	var api *jetstream.APIError
	switch {
	case ctx.Value(patientKey{}) == nil:
		return patience
	case errors.As(err, &api) && api.ErrorCode == noPeers:
		return peersWithin
	}
	return math.MaxInt64 // until ctx ends
}

// peersWithin is how long a cluster that starts may take to know its servers.
const peersWithin = 30 * time.Second

type patientKey struct{}

// Patiently gives a context whose calls are tried again until it ends, not for some seconds: a cluster that starts
// has no leaders for a while.
func Patiently(ctx context.Context) context.Context {
	return context.WithValue(ctx, patientKey{}, true)
}

// while bounds a request in time, and ends it when the connection is lost: its answer is lost then.
func (c *Conn) while(ctx context.Context, within time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, within)
	lost := c.nc.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	go func() {
		defer c.nc.RemoveStatusListener(lost)
		select {
		case <-lost:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// sleep waits for d, and tells whether ctx goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// noPeers is JetStream's code where a stream finds no servers that would hold it (JSClusterNoPeersErr).
const noPeers = 10005

// passing tells whether an error of a JetStream call may be gone at the next attempt.
func passing(err error) bool {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		// A cluster that has just started does not know yet that all its servers are up.
		return api.Code == 503 || api.Code == 500 || api.ErrorCode == noPeers
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) ||
		errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrNoStreamResponse) ||
		errors.Is(err, nats.ErrDisconnected) || errors.Is(err, nats.ErrConnectionReconnecting) || errors.Is(err, nats.ErrReconnectBufExceeded)
}
