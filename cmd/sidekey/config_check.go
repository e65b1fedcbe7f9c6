package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/sidekey/sidekey/bus/backup"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

const (
	maxLifetime  = 10 * 365 * 24 * time.Hour // of a token or a key: far beyond use, and far from overflow
	maxAhead     = 30 * 24 * time.Hour
	maxLeeway    = 5 * time.Minute
	minStaleness = time.Second // where agents go on asking, the ticks that answer them are a quarter of one apart, and several are to fit in
	maxCacheSize = 10_000_000
	maxPerMinute = 1_000_000
	maxAuditMiB  = 1 << 20
)

// agentName is the shape of a name in the fleet. It is part of receipts and metrics, so it is plain.
var agentName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// ownClaims are the claims that sidekey or RFC 7519 gives a meaning, so that user_id_claim cannot be one of them.
var ownClaims = []string{
	"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "sid", "session_seq", "client_id", "scope", "auth_time",
	"token_type", "roles", "gen", "csrf", "client_seq", "subject_client_id",
}

// validate judges a resolved configuration. The first error names the key, and where its value came from.
func (c *Config) validate() error {
	for _, part := range []func() error{c.validateCommon, c.validateIssuer, c.validateUsers, c.validateKeys, c.validateBus, c.validateAgent, c.validateAuthenticators} {
		if err := part(); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) validateCommon() error {
	if c.DataDir == "" {
		return c.fault("data_dir", "set it to a folder for the state")
	}
	if !slices.Contains([]string{"trace", "debug", "info", "warn", "error"}, c.LogLevel) {
		return c.fault("log_level", "want trace, debug, info, warn or error, got %q", c.LogLevel)
	}
	if c.LogFormat != "text" && c.LogFormat != "json" {
		return c.fault("log_format", "want text or json, got %q", c.LogFormat)
	}
	return nil
}

func (c *Config) validateIssuer() error {
	is := &c.Issuer
	for _, a := range [][2]string{
		{"issuer.listen", is.Listen}, {"issuer.admin_listen", is.AdminListen}, {"issuer.ops_listen", is.OpsListen},
	} {
		if _, err := parseListen(a[1]); err != nil {
			return c.fault(a[0], "%v", err)
		}
	}
	if is.URL == "" {
		return c.fault("issuer.url", "set it: others cannot reach issuer.listen %q as it is written", is.Listen)
	}
	if err := checkURL(is.URL, "http", "https"); err != nil {
		return c.fault("issuer.url", "%v", err)
	}
	if strings.HasSuffix(is.URL, "/") {
		return c.fault("issuer.url", "want no slash at the end of %q", is.URL)
	}
	for _, t := range [][2]string{
		{"issuer.audience", is.Audience}, {"issuer.default_client", is.DefaultClient}, {"issuer.user_id_claim", is.UserIDClaim},
	} {
		if t[1] == "" || !printable(t[1]) {
			return c.fault(t[0], "want text without control characters, got %q", t[1])
		}
	}
	if slices.Contains(ownClaims, is.UserIDClaim) {
		return c.fault("issuer.user_id_claim", "%q has another meaning in a token; take another name", is.UserIDClaim)
	}
	if err := c.validateTLS("issuer", is.TLSCert, is.TLSKey); err != nil {
		return err
	}
	if is.TLSCert == "" {
		for _, a := range [][2]string{{"issuer.listen", is.Listen}, {"issuer.admin_listen", is.AdminListen}} {
			if err := c.validateClear(a[0], a[1], "set issuer.tls_cert and issuer.tls_key"); err != nil {
				return err
			}
		}
	}
	return c.validateLifetimes()
}

// validateTLS holds that a certificate comes with its key.
func (c *Config) validateTLS(table, cert, key string) error {
	if cert != "" && key == "" {
		return c.fault(table+".tls_key", "set it too: %s.tls_cert is of no use without its key", table)
	}
	if cert == "" && key != "" {
		return c.fault(table+".tls_cert", "set it too: %s.tls_key is of no use without its certificate", table)
	}
	return nil
}

// validateClear refuses to listen in clear where others on the network can listen in.
func (c *Config) validateClear(key, address, instead string) error {
	l, err := parseListen(address)
	if err != nil || l.loopback() || c.Insecure {
		return nil // a wrong address has been refused before
	}
	return c.fault(key, "refusing to listen on %q in clear: tokens could be read on the way; %s, listen on loopback behind a proxy with TLS, or set insecure = true", address, instead)
}

func (c *Config) validateLifetimes() error {
	is := &c.Issuer
	if is.AccessLifetime < time.Second || is.AccessLifetime > maxLifetime {
		return c.fault("issuer.access_lifetime", "want a duration of 1s to %s, got %s", maxLifetime, is.AccessLifetime)
	}
	if is.RefreshLifetime <= is.AccessLifetime || is.RefreshLifetime > maxLifetime {
		return c.fault("issuer.refresh_lifetime", "want a duration longer than issuer.access_lifetime (%s) and at most %s, got %s",
			is.AccessLifetime, maxLifetime, is.RefreshLifetime)
	}
	if is.RefreshGrace < 0 || is.RefreshGrace >= is.RefreshLifetime {
		return c.fault("issuer.refresh_grace", "want a duration from 0s to below issuer.refresh_lifetime (%s), got %s",
			is.RefreshLifetime, is.RefreshGrace)
	}
	if is.SessionIdle < time.Second || is.SessionIdle > maxLifetime {
		return c.fault("issuer.session_idle", "want a duration of 1s to %s, got %s", maxLifetime, is.SessionIdle)
	}
	if is.SessionLifetime != 0 && (is.SessionLifetime < time.Second || is.SessionLifetime > maxLifetime) {
		return c.fault("issuer.session_lifetime", "want 0s or a duration of 1s to %s, got %s", maxLifetime, is.SessionLifetime)
	}
	if err := c.validateProtection(); err != nil {
		return err
	}
	if is.AuditMaxAge < time.Minute || is.AuditMaxAge > maxLifetime {
		return c.fault("issuer.audit_max_age", "want a duration of 1m to %s, got %s", maxLifetime, is.AuditMaxAge)
	}
	if is.AuditMaxMiB < 1 || is.AuditMaxMiB > maxAuditMiB {
		return c.fault("issuer.audit_max_mib", "want 1 to %d, got %d", maxAuditMiB, is.AuditMaxMiB)
	}
	if is.AuditFile != "" && !filepath.IsAbs(is.AuditFile) {
		return c.fault("issuer.audit_file", "want an absolute path, got %q", is.AuditFile)
	}
	if is.SlidingLifetime < time.Second || is.SlidingLifetime > maxLifetime {
		return c.fault("issuer.sliding_lifetime", "want a duration of 1s to %s, got %s", maxLifetime, is.SlidingLifetime)
	}
	if is.SlidingRefresh < is.SlidingLifetime || is.SlidingRefresh > maxLifetime {
		return c.fault("issuer.sliding_refresh_lifetime", "want a duration of issuer.sliding_lifetime (%s) to %s, got %s",
			is.SlidingLifetime, maxLifetime, is.SlidingRefresh)
	}
	if is.APITokenLife != 0 && (is.APITokenLife < time.Second || is.APITokenLife > maxLifetime) {
		return c.fault("issuer.api_token_lifetime", "want 0s or a duration of 1s to %s, got %s", maxLifetime, is.APITokenLife)
	}
	if err := issuer.CheckClaims(is.Claims, is.UserIDClaim); err != nil {
		return c.fault("issuer.claims", "%v", err)
	}
	if is.MaxSessions < 1 {
		return c.fault("issuer.max_sessions", "want at least 1, got %d", is.MaxSessions)
	}
	if is.MaxCredentials < 1 {
		return c.fault("issuer.max_credentials", "want at least 1, got %d", is.MaxCredentials)
	}
	return nil
}

// validateProtection judges what protects logins and refreshes.
func (c *Config) validateProtection() error {
	is := &c.Issuer
	if _, err := parseNetworks(is.TrustedProxies); err != nil {
		return c.fault("issuer.trusted_proxies", "%v", err)
	}
	if len(is.BackupTo) > 0 {
		if _, err := backup.Recipients(is.BackupTo, ""); err != nil {
			return c.fault("issuer.backup_recipients", "%v", err)
		}
	}
	for _, n := range []struct {
		key   string
		value int
		least int
	}{
		{"issuer.login_per_minute", is.LoginPerMinute, 0}, {"issuer.refresh_per_minute", is.RefreshPerMinute, 0}, {"issuer.source_multiple", is.SourceMultiple, 1},
		{"issuer.password_min_length", is.PasswordMinLength, 1},
	} {
		if n.value < n.least || n.value > maxPerMinute {
			return c.fault(n.key, "want %d to %d, got %d", n.least, maxPerMinute, n.value)
		}
	}
	if is.PasswordCommon != "refuse" && is.PasswordCommon != "allow" {
		return c.fault("issuer.password_common", "want refuse or allow, got %q", is.PasswordCommon)
	}
	if is.PasswordMinLength > 64 {
		return c.fault("issuer.password_min_length", "want 1 to 64, got %d", is.PasswordMinLength)
	}
	for _, a := range [][2]string{{"issuer.on_new_network", is.OnNewNetwork}, {"issuer.on_new_user_agent", is.OnNewUserAgent}} {
		if !slices.Contains([]issuer.Anomaly{issuer.OnlyLog, issuer.RequireLogin, issuer.Revoke}, issuer.Anomaly(a[1])) {
			return c.fault(a[0], "want log, require_login or revoke, got %q", a[1])
		}
	}
	return nil
}

// parseNetworks reads networks in CIDR form; a bare address is itself alone.
func parseNetworks(texts []string) (all []netip.Prefix, err error) {
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if ip, aerr := netip.ParseAddr(text); aerr == nil && ip.Zone() == "" {
			p, err = netip.PrefixFrom(ip, ip.BitLen()), nil
		}
		if err != nil {
			return nil, fmt.Errorf("want networks such as 10.0.0.0/8 or 127.0.0.1, got %q", text)
		}
		if p.Bits() == 0 {
			return nil, fmt.Errorf("%q is everybody: any client could say where it comes from; name the proxies", text)
		}
		all = append(all, p.Masked())
	}
	return all, nil
}

func (c *Config) validateKeys() error {
	if _, err := keyring.ParseAlg(c.Keys.Alg); err != nil {
		return c.fault("keys.alg", "want RS256, HS256, ES256 or EdDSA, got %q", c.Keys.Alg)
	}
	if !slices.Contains([]int{2048, 3072, 4096}, c.Keys.Bits) {
		return c.fault("keys.bits", "want 2048, 3072 or 4096, got %d", c.Keys.Bits)
	}
	if c.Keys.PublishAhead < 0 || c.Keys.PublishAhead > maxAhead {
		return c.fault("keys.publish_ahead", "want a duration from 0s to %s, got %s", maxAhead, c.Keys.PublishAhead)
	}
	every := c.Keys.RotateEvery
	if every != 0 && (every <= c.Keys.PublishAhead || every > maxLifetime) {
		return c.fault("keys.rotate_every", "want 0s or a duration longer than keys.publish_ahead (%s) and at most %s, got %s",
			c.Keys.PublishAhead, maxLifetime, every)
	}
	return nil
}

func (c *Config) validateBus() error {
	listen, err := parseListen(c.Bus.Listen)
	if err != nil {
		return c.fault("bus.listen", "%v", err)
	}
	if listen.network != "tcp" {
		return c.fault("bus.listen", "want host:port, got %q", c.Bus.Listen)
	}
	if err := c.validateTLS("bus", c.Bus.TLSCert, c.Bus.TLSKey); err != nil {
		return err
	}
	for _, u := range c.Bus.Advertise {
		if err := checkURL(u, "nats", "tls"); err != nil {
			return c.fault("bus.advertise", "%v", err)
		}
	}
	for _, u := range c.Bus.URLs {
		if err := checkURL(u, "nats", "tls"); err != nil {
			return c.fault("bus.urls", "%v", err)
		}
	}
	if err := c.validateCluster(); err != nil {
		return err
	}
	if c.Bus.MonitorURL != "" {
		if err := checkURL(c.Bus.MonitorURL, "http", "https"); err != nil {
			return c.fault("bus.monitor_url", "%v", err)
		}
		if len(c.Bus.URLs) == 0 {
			return c.fault("bus.monitor_url", "is for an existing NATS: set bus.urls too, or leave it out")
		}
	}
	return nil
}

func (c *Config) validateAgent() error {
	ag := &c.Agent
	if !agentName.MatchString(ag.Name) {
		return c.fault("agent.name", "want up to 63 letters, digits, dots, dashes and underscores, got %q", ag.Name)
	}
	if err := c.validateAgentListeners(); err != nil {
		return err
	}
	if _, err := parseListen(ag.OpsListen); err != nil {
		return c.fault("agent.ops_listen", "%v", err)
	}
	if slices.ContainsFunc(ag.Audiences, func(s string) bool { return s == "" || !printable(s) }) {
		return c.fault("agent.audiences", "want texts without control characters, got %q", ag.Audiences)
	}
	if ag.Leeway < 0 || ag.Leeway > maxLeeway {
		return c.fault("agent.leeway", "want a duration from 0s to %s, got %s", maxLeeway, ag.Leeway)
	}
	if ag.MaxStaleness < minStaleness || ag.MaxStaleness > lease.MaxLength {
		return c.fault("agent.max_staleness", "want a duration from %s to %s, got %s", minStaleness, lease.MaxLength, ag.MaxStaleness)
	}
	if ag.OnStale != string(lease.Refuse) && ag.OnStale != string(lease.Serve) {
		return c.fault("agent.on_stale", "want refuse or serve, got %q", ag.OnStale)
	}
	if ag.RuntimeDir != "" && !filepath.IsAbs(ag.RuntimeDir) {
		return c.fault("agent.runtime_dir", "want an absolute path, got %q", ag.RuntimeDir)
	}
	if ag.CacheSize < 1 || ag.CacheSize > maxCacheSize {
		return c.fault("agent.cache_size", "want 1 to %d, got %d", maxCacheSize, ag.CacheSize)
	}
	if strings.ContainsFunc(ag.Realm, func(r rune) bool { return r < ' ' || r > '~' || r == '"' || r == '\\' }) { // RFC 9110 §5.6.4
		return c.fault("agent.realm", "want ASCII text without quotes, backslashes and control characters, got %q", ag.Realm)
	}
	return nil
}

// validateAgentListeners judges where the agent listens, and that no token crosses a network in clear.
func (c *Config) validateAgentListeners() error {
	ag := &c.Agent
	if len(ag.Listen) == 0 {
		return c.fault("agent.listen", "want at least one address")
	}
	for _, address := range ag.Listen {
		if _, err := parseListen(address); err != nil {
			return c.fault("agent.listen", "%v", err)
		}
	}
	for _, address := range ag.Listen {
		if err := c.validateClear("agent.listen", address, "use agent.tls_listen"); err != nil {
			return err
		}
	}
	for _, address := range ag.TLSListen {
		if _, err := parseListen(address); err != nil {
			return c.fault("agent.tls_listen", "%v", err)
		}
	}
	if err := c.validateTLS("agent", ag.TLSCert, ag.TLSKey); err != nil {
		return err
	}
	if len(ag.TLSListen) > 0 && ag.TLSCert == "" {
		return c.fault("agent.tls_listen", "set agent.tls_cert and agent.tls_key too")
	}
	for _, address := range ag.GRPCListen {
		if _, err := parseListen(address); err != nil {
			return c.fault("agent.grpc_listen", "%v", err)
		}
		if ag.TLSCert != "" {
			continue // beyond loopback it is TLS
		}
		if err := c.validateClear("agent.grpc_listen", address, "set agent.tls_cert and agent.tls_key"); err != nil {
			return err
		}
	}
	return nil
}

// fault is an error about one key, after the place where its value was set.
func (c *Config) fault(key, format string, args ...any) error {
	text := key + ": " + fmt.Sprintf(format, args...)
	if from := c.origin[key]; from != "" {
		text = from + ": " + text
	}
	return errors.New(text)
}

// parseListen reads "host:port" or "unix:/path". The host may be empty (every interface) and the port 0 (any free
// one).
func parseListen(s string) (listenAddr, error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if !filepath.IsAbs(path) || !printable(path) {
			return listenAddr{}, fmt.Errorf("want unix: and an absolute path, got %q", s)
		}
		return listenAddr{network: "unix", address: path}, nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil || !printable(host) || strings.ContainsAny(host, " /@") {
		return listenAddr{}, fmt.Errorf("want host:port or unix:/path, got %q", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(n, 10) != port {
		return listenAddr{}, fmt.Errorf("want a port number from 0 to 65535, got %q", s)
	}
	return listenAddr{network: "tcp", address: s, host: host, port: port}, nil
}

// checkURL accepts an absolute URL of one of the schemes that carries no secret, query or fragment. It does not
// repeat the URL where that may hold a password.
func checkURL(s string, schemes ...string) error {
	u, err := url.Parse(s)
	if err != nil {
		return fmt.Errorf("want a URL that begins with %s://", strings.Join(schemes, ":// or "))
	}
	switch {
	case u.User != nil:
		return errors.New("want no user or password in the URL; they belong in a credentials file")
	case !slices.Contains(schemes, u.Scheme) || u.Host == "":
		return fmt.Errorf("want a URL that begins with %s://, got %q", strings.Join(schemes, ":// or "), s)
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(s, "#"):
		return fmt.Errorf("want a URL without query and fragment, got %q", s)
	}
	return nil
}

// printable says that s has no control or other unprintable character.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}
