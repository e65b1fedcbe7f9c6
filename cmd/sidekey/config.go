package main

import (
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

// Config is what every command of sidekey reads: config.toml, the environment and the flags put together. Each leaf
// has a key such as issuer.listen, made of the toml tags; the help tag is its line in --help. config.toml.example
// has the same keys with their meaning, and a test holds the two together. Make one with loadConfig.
type Config struct {
	DataDir   string `toml:"data_dir" help:"folder of all state, 0700"`
	LogLevel  string `toml:"log_level" help:"trace, debug, info, warn or error"`
	LogFormat string `toml:"log_format" help:"text or json"`
	Insecure  bool   `toml:"insecure" help:"listen, and reach the bus, in clear beyond loopback where no TLS is configured"`

	Issuer IssuerConfig `toml:"issuer"`
	Keys   KeysConfig   `toml:"keys"`
	Bus    BusConfig    `toml:"bus"`
	Agent  AgentConfig  `toml:"agent"`

	// masterKeyFile is where the master key lies, "": in data_dir. It is no key, so that no file of the configuration
	// says it: a variable does, or systemd.
	masterKeyFile string

	// origin says where a key was set: "config.toml:14", "SIDEKEY_AGENT_LISTEN" or "--agent-listen". A key that is
	// not in it has its default.
	origin map[string]string
}

// IssuerConfig is the [issuer] table: where tokens are made, and for how long.
type IssuerConfig struct {
	Listen          string        `toml:"listen" help:"address of the issuer's HTTP API"`
	AdminListen     string        `toml:"admin_listen" help:"address of the admin API (default issuer.listen while that is loopback, else a unix socket)"`
	URL             string        `toml:"url" help:"iss of every token, and the base of the issuer's URLs (default http:// and issuer.listen)"`
	Audience        string        `toml:"audience" help:"aud of tokens that ask for none (default issuer.url)"`
	DefaultClient   string        `toml:"default_client" help:"client_id of user name logins"`
	UserIDClaim     string        `toml:"user_id_claim" help:"name of the claim that repeats sub for Simple JWT's readers"`
	AccessLifetime  time.Duration `toml:"access_lifetime" help:"how long an access token lives"`
	RefreshLifetime time.Duration `toml:"refresh_lifetime" help:"how long a refresh token lives, and so an unused session"`
	RefreshGrace    time.Duration `toml:"refresh_grace" help:"how long the retry of a refresh gets the same answer"`
	SessionIdle     time.Duration `toml:"session_idle" help:"how long a browser's session lives unless it is renewed"`
	SessionLifetime time.Duration `toml:"session_lifetime" help:"how long a session lives, however often it is renewed (0: no end)"`
	CookieRefresh   bool          `toml:"cookie_refresh" help:"keep Simple JWT's refresh token in a cookie, never in a body"`
	MaxSessions     int           `toml:"max_sessions" help:"open sessions of one user"`
	Sliding         bool          `toml:"sliding" help:"serve Simple JWT's sliding tokens, /api/token/sliding/ and /api/token/sliding/refresh/"`
	SlidingLifetime time.Duration `toml:"sliding_lifetime" help:"how long a sliding token lives"`
	SlidingRefresh  time.Duration `toml:"sliding_refresh_lifetime" help:"how long a sliding token can be exchanged for a later one"`
	APITokenAuth    bool          `toml:"api_token_auth" help:"serve Django REST Framework's /api-token-auth/"`
	APITokenLife    time.Duration `toml:"api_token_lifetime" help:"how long a token of /api-token-auth/ lives (0: no end)"`
	UpdateLastLogin bool          `toml:"update_last_login" help:"users' records say when they last logged in, to the hour"`
	Claims          claimsTable   `toml:"claims" help:"custom claims of access tokens, by name; in the file only"`
	AllowPassword   bool          `toml:"allow_password_grant" help:"POST /oauth2/token takes grant_type=password"`
	MaxCredentials  int           `toml:"max_credentials" help:"usable API keys and opaque tokens of one user"`
	AuditFile       string        `toml:"audit_file" help:"file that gets every event of the audit too, one JSON object a line"`
	AuditMaxAge     time.Duration `toml:"audit_max_age" help:"how long the audit is kept on the bus"`
	AuditMaxMiB     int           `toml:"audit_max_mib" help:"size of the audit on the bus, in MiB, beyond which the oldest goes"`
	Drain           time.Duration `toml:"drain" help:"how long /readyz says 503 before an issuer that is stopped ends (0s: 5s in a cluster, else none)"`
	BackupTo        []string      `toml:"backup_recipients" help:"age recipients for whom a backup is taken; over TCP for nobody else"`
	OpsListen       string        `toml:"ops_listen" help:"address of the issuer's health and metrics (default issuer.listen)"`
	TLSCert         string        `toml:"tls_cert" help:"certificate chain (PEM) of listen and admin_listen; a changed file is read again"`
	TLSKey          string        `toml:"tls_key" help:"its private key (PEM)"`
	Users           string        `toml:"users" help:"where users live: kv (here), sql or webhook"`
	UsersRecheck    time.Duration `toml:"users_recheck" help:"how often sql or webhook is asked for the users with open sessions (0: only as they refresh)"`

	PasswordMinLength int      `toml:"password_min_length" help:"characters that a new password has at least"`
	PasswordCommon    string   `toml:"password_common" help:"a new password that everybody tries first, or that is the user name: refuse or allow"`
	TrustedProxies    []string `toml:"trusted_proxies" help:"networks whose X-Forwarded-For, -Host and -Proto are believed"`
	LoginPerMinute    int      `toml:"login_per_minute" help:"logins a minute for one user name (0: any number)"`
	RefreshPerMinute  int      `toml:"refresh_per_minute" help:"refreshes a minute of one session (0: any number)"`
	SourceMultiple    int      `toml:"source_multiple" help:"how many times the limits of one name and session one address has"`
	OnNewNetwork      string   `toml:"on_new_network" help:"a refresh from another network: log, require_login or revoke"`
	OnNewUserAgent    string   `toml:"on_new_user_agent" help:"a refresh with another user agent: log, require_login or revoke"`

	SQL     UsersSQLConfig     `toml:"sql"`
	Webhook UsersWebhookConfig `toml:"webhook"`
}

// UsersSQLConfig is the [issuer.sql] table: the users of a database of somebody else, docs/users.md.
type UsersSQLConfig struct {
	Driver         string        `toml:"driver" help:"postgres, mysql or sqlite"`
	DSNFile        string        `toml:"dsn_file" help:"file with the data source name, which is a secret (default systemd's credential issuer-sql-dsn)"`
	Query          string        `toml:"query" help:"finds one user by the name typed, its one parameter"`
	QueryByID      string        `toml:"query_by_id" help:"finds one user by the column id, its one parameter"`
	MaxConnections int           `toml:"max_connections" help:"connections to the users' database open at once"`
	Timeout        time.Duration `toml:"timeout" help:"how long one query may take"`
	Scope          string        `toml:"scope" help:"scope of users, where the queries have no column of that name"`
	Roles          []string      `toml:"roles" help:"roles of users, where the queries have no column of that name"`
}

// UsersWebhookConfig is the [issuer.webhook] table: a service that proves passwords itself, docs/users.md.
type UsersWebhookConfig struct {
	URL         string        `toml:"url" help:"https, http on this host, or unix: and the path of a socket"`
	SecretFile  string        `toml:"secret_file" help:"file with the secret that is sent as a bearer token (default systemd's credential issuer-webhook-secret)"`
	Timeout     time.Duration `toml:"timeout" help:"how long the users' webhook may take to answer"`
	MaxRequests int           `toml:"max_requests" help:"questions to the users' webhook under way at once"`
}

// claimsTable is [issuer.claims]: templates by the claim's name.
type claimsTable map[string]string

// KeysConfig is the [keys] table: the ring of signing keys.
type KeysConfig struct {
	Alg          string        `toml:"alg" help:"RS256, HS256, ES256 or EdDSA"`
	Bits         int           `toml:"bits" help:"size of RSA keys: 2048, 3072 or 4096"`
	RotateEvery  time.Duration `toml:"rotate_every" help:"age at which the signing key is replaced (0: only on demand)"`
	PublishAhead time.Duration `toml:"publish_ahead" help:"how long a new key is announced before it signs"`
}

// BusConfig is the [bus] table: the NATS server that carries the log.
type BusConfig struct {
	Listen      string   `toml:"listen" help:"address of the embedded NATS server"`
	Advertise   []string `toml:"advertise" help:"URLs under which agents reach the embedded server (default bus.listen, or bus.urls)"`
	TLSCert     string   `toml:"tls_cert" help:"certificate chain (PEM) of the embedded server (default from a CA of its own, beyond loopback)"`
	TLSKey      string   `toml:"tls_key" help:"its private key (PEM)"`
	CA          string   `toml:"ca" help:"CA (PEM) that the bus's certificates come from, where the system does not know it"`
	URLs        []string `toml:"urls" help:"servers of an existing NATS, instead of the embedded one"`
	Credentials string   `toml:"credentials" help:"file (.creds) with an issuer's credentials for an existing NATS"`
	MonitorURL  string   `toml:"monitor_url" help:"monitoring URL of an existing NATS, to check that it syncs"`
	Replicas    int      `toml:"replicas" help:"how many servers hold each entry (0: 3 in a cluster of issuers, else 1)"`

	Cluster ClusterConfig `toml:"cluster"`
}

// ClusterConfig is [bus.cluster]: the servers inside several issuers, joined.
type ClusterConfig struct {
	Listen    string `toml:"listen" help:"address at which the other issuers' servers reach this one's (default none: no cluster)"`
	Advertise string `toml:"advertise" help:"host:port under which they do (default bus.cluster.listen)"`
	Founder   string `toml:"founder" help:"agent.name of the one issuer that may start without having joined (default any)"`
}

// AgentConfig is the [agent] table: where tokens are checked.
type AgentConfig struct {
	Name         string        `toml:"name" help:"name of this agent in the fleet (default the host name)"`
	DataDir      string        `toml:"data_dir" help:"folder of the agent's state (default <data_dir>/agent)"`
	RuntimeDir   string        `toml:"runtime_dir" help:"folder in memory for the lease and its floor (default /run/sidekey, else $XDG_RUNTIME_DIR/sidekey)"`
	MaxStaleness time.Duration `toml:"max_staleness" help:"how old the agent's knowledge may become: the length of its lease"`
	OnStale      string        `toml:"on_stale" help:"what the agent does without a lease: refuse or serve"`
	Listen       []string      `toml:"listen" help:"addresses of the agent's HTTP API"`
	TLSListen    []string      `toml:"tls_listen" help:"addresses of the agent's HTTP API over TLS"`
	TLSCert      string        `toml:"tls_cert" help:"certificate chain (PEM) of tls_listen, and of grpc_listen beyond loopback; a changed file is read again"`
	TLSKey       string        `toml:"tls_key" help:"its private key (PEM)"`
	GRPCListen   []string      `toml:"grpc_listen" help:"addresses of Envoy's ext_authz over gRPC (default none); beyond loopback over TLS, with tls_cert"`
	OpsListen    string        `toml:"ops_listen" help:"address of the agent's health, metrics and status (default agent.listen)"`
	Audiences    []string      `toml:"audiences" help:"aud that this agent accepts (default the issuer's own)"`
	Leeway       time.Duration `toml:"leeway" help:"clock difference that is forgiven"`
	CacheSize    int           `toml:"cache_size" help:"proven tokens kept in memory"`
	Realm        string        `toml:"realm" help:"realm of WWW-Authenticate"`

	Authenticators []string          `toml:"authenticators" help:"schemes that say who a request is from, in their order"`
	Challenges     string            `toml:"challenges" help:"WWW-Authenticate of a 401: all, or first as Django REST Framework"`
	Rules          string            `toml:"rules" help:"file of [[rules]]: who may do what at the forward-auth paths; a changed file is read again"`
	RulesSets      []string          `toml:"rules_sets" help:"sets of rules that issuers hand out, in force behind agent.rules in this order"`
	Headers        map[string]string `toml:"headers" help:"more claims that forward-auth shows, each in the header of that name"`

	StripCredentials bool `toml:"strip_credentials" help:"ext_authz takes the credentials off a request before the service gets it"`

	Webhook WebhookConfig             `toml:"webhook"`
	Schemes map[string]map[string]any `toml:"schemes" help:"tables of the schemes that are built into this binary"`
}

// WebhookConfig is the [agent.webhook] table: a service of one's own that is asked who a request is from.
type WebhookConfig struct {
	URL         string        `toml:"url" help:"what is asked: http on loopback, https, or unix:/path"`
	Headers     []string      `toml:"headers" help:"header fields that are sent to the webhook, and by which it knows its requests"`
	SendRequest bool          `toml:"send_request" help:"send method, scheme, host, target and client to the webhook too"`
	Timeout     time.Duration `toml:"timeout" help:"how long a call of the webhook may take"`
	MaxCalls    int           `toml:"max_calls" help:"calls of the webhook under way at once"`
	CacheFor    time.Duration `toml:"cache_for" help:"how long a yes of the webhook is remembered"`
	Challenge   string        `toml:"challenge" help:"WWW-Authenticate of the webhook"`
}

// defaultConfig is every default that is a constant. The zero string, where another key gives the default, is
// filled by resolve.
func defaultConfig() Config {
	return Config{
		DataDir:   "/var/lib/sidekey",
		LogLevel:  "info",
		LogFormat: "text",

		Issuer: IssuerConfig{
			Listen:          "127.0.0.1:7460",
			DefaultClient:   "sidekey",
			UserIDClaim:     "user_id",
			AccessLifetime:  15 * time.Minute,
			RefreshLifetime: 168 * time.Hour,
			RefreshGrace:    30 * time.Second,
			SessionIdle:     30 * time.Minute,
			MaxSessions:     1000,
			SlidingLifetime: 5 * time.Minute,
			SlidingRefresh:  24 * time.Hour,
			MaxCredentials:  1000,
			AuditMaxAge:     90 * 24 * time.Hour,
			AuditMaxMiB:     1024,
			Users:           usersHere,
			UsersRecheck:    time.Minute,
			SQL:             UsersSQLConfig{MaxConnections: 4, Timeout: 2 * time.Second},
			Webhook:         UsersWebhookConfig{Timeout: 2 * time.Second, MaxRequests: 16},

			PasswordMinLength: 8,
			PasswordCommon:    "refuse",
			LoginPerMinute:    30,
			RefreshPerMinute:  120,
			SourceMultiple:    10,
			OnNewNetwork:      string(issuer.OnlyLog),
			OnNewUserAgent:    string(issuer.OnlyLog),
		},
		Keys: KeysConfig{
			Alg:          string(keyring.RS256),
			Bits:         2048,
			RotateEvery:  720 * time.Hour,
			PublishAhead: 10 * time.Minute,
		},
		Bus: BusConfig{Listen: "127.0.0.1:7463"},
		Agent: AgentConfig{
			Listen:       []string{"127.0.0.1:7461"},
			Leeway:       5 * time.Second,
			MaxStaleness: 15 * time.Minute,
			OnStale:      string(lease.Refuse),
			CacheSize:    10_000,
			Realm:        "sidekey",

			Authenticators: []string{agent.MethodBearer, agent.MethodSession, agent.MethodToken, agent.MethodAPIKey},
			Challenges:     agent.ChallengeAll,
			Webhook:        WebhookConfig{Timeout: time.Second, MaxCalls: 32, CacheFor: 10 * time.Second},
		},
	}
}

// devConfig is defaultConfig with what `sidekey dev` changes: a new key signs at once, since nobody polls a JWKS yet,
// logins have no limit, and the audit takes little of a disk.
func devConfig() Config {
	c := defaultConfig()
	c.Keys.PublishAhead = 0
	c.Issuer.LoginPerMinute, c.Issuer.RefreshPerMinute = 0, 0
	c.Issuer.PasswordMinLength, c.Issuer.PasswordCommon = 1, "allow" // wonderland is a common one
	c.Issuer.AuditMaxMiB = 64
	return c
}

// resolve fills the defaults that follow from other keys. It is the only place that does. What cannot be derived
// stays empty, and validate names it.
func (c *Config) resolve() {
	listen, err := parseListen(c.Issuer.Listen)
	known := err == nil
	if c.Issuer.URL == "" && known && listen.reachable() {
		c.Issuer.URL = "http://" + c.Issuer.Listen
		if c.Issuer.TLSCert != "" {
			c.Issuer.URL = "https://" + c.Issuer.Listen
		}
	}
	if c.Issuer.Audience == "" {
		c.Issuer.Audience = c.Issuer.URL
	}
	if c.Issuer.AdminListen == "" {
		c.Issuer.AdminListen = "unix:" + filepath.Join(c.DataDir, "admin.sock")
		if known && listen.loopback() && c.Issuer.TLSCert == "" {
			c.Issuer.AdminListen = c.Issuer.Listen
		}
	}
	if c.Issuer.OpsListen == "" {
		c.Issuer.OpsListen = c.Issuer.Listen
	}
	if c.Agent.Name == "" {
		if host, err := os.Hostname(); err == nil {
			c.Agent.Name = host
		}
	}
	if c.Agent.DataDir == "" {
		c.Agent.DataDir = filepath.Join(c.DataDir, "agent")
	}
	if c.Agent.RuntimeDir == "" {
		c.Agent.RuntimeDir = defaultRuntimeDir()
	}
	if c.Agent.OpsListen == "" && len(c.Agent.Listen) > 0 {
		c.Agent.OpsListen = c.Agent.Listen[0]
	}
}

// defaultRuntimeDir is the first folder in memory that this user may have, "" if there is none.
func defaultRuntimeDir() string {
	if os.Geteuid() == 0 {
		return "/run/sidekey"
	}
	if info, err := os.Stat("/run/sidekey"); err == nil && info.IsDir() && unix.Access("/run/sidekey", unix.W_OK) == nil {
		return "/run/sidekey"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "sidekey")
	}
	return ""
}

// moveDataDir puts the state elsewhere, and with it what follows from data_dir by default.
func (c *Config) moveDataDir(dir string) {
	if !c.isSet("agent.data_dir") {
		c.Agent.DataDir = ""
	}
	if !c.isSet("issuer.admin_listen") {
		c.Issuer.AdminListen = ""
	}
	c.DataDir = dir
	c.resolve()
}

// isSet says whether a key was given by file, variable or flag, and so is no default.
func (c *Config) isSet(key string) bool {
	_, ok := c.origin[key]
	return ok
}

// listenAddr is an address to listen on or to dial: "host:port", or "unix:" and an absolute path.
type listenAddr struct {
	network string // "tcp" or "unix", as package net has it
	address string // host:port, or the path
	host    string // of a TCP address; empty means every interface
	port    string
}

// loopback says that only processes of this host can reach the address.
func (a listenAddr) loopback() bool {
	if a.network == "unix" || a.host == "localhost" {
		return true
	}
	ip := net.ParseIP(a.host)
	return ip != nil && ip.IsLoopback()
}

// reachable says that the address can be dialled as it is written: it names one host and one port.
func (a listenAddr) reachable() bool {
	if a.network == "unix" || a.host == "" || a.port == "0" {
		return false
	}
	ip := net.ParseIP(a.host)
	return ip == nil || !ip.IsUnspecified()
}
