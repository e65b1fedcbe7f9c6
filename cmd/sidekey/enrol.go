package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// What joining leaves in an agent's or an issuer's data_dir, and what the issuer keeps there of those it has cut off.
const (
	identityDir = "identity"
	revokedFile = "bus.revoked"
	serversFile = "bus.servers" // where else the bus is

	joinCredential = "sidekey.join" // systemd's name for a join token
)

// revisionsFile is how far an issuer has seen the state buckets come.
const revisionsFile = "revisions"

// joinWithin bounds how long a start waits for an issuer to answer one that joins.
const joinWithin = 2 * time.Minute

// identify gives the identity in dataDir, and has it join first where a token is given: join names its file, "-" is
// standard input, "" none. os.ErrNotExist: it has not joined, and is given no token.
func (a *app) identify(ctx context.Context, role bus.Role, dataDir, join string, cfg Config, log hclog.Logger) (*bus.Identity, error) {
	dir := filepath.Join(dataDir, identityDir)
	id, err := bus.ReadIdentity(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err == nil && id.Role != role {
		return nil, fmt.Errorf("%s is the identity of an %s: give this %s a folder of its own", dir, id.Role, role)
	}
	if join == "" && err != nil {
		join = findJoinToken(a.environ)
	}
	if join == "" {
		return id, err
	}
	token, terr := a.readJoinToken(join)
	if err == nil { // it has joined, and needs no token: one that is not its own does not keep it from starting
		switch {
		case terr == nil && token.ID == id.Join:
			return id, a.dropJoinToken(join) // it died right after it had joined
		case errors.Is(terr, fs.ErrNotExist): // gone since
		case terr != nil:
			log.Warn("going on without the join token: this has joined already", "name", id.Name, "file", join, "error", terr)
		case token.Role != role || token.Name != id.Name || time.Now().After(time.Unix(token.Expires, 0)):
			log.Warn("going on without the join token: it is another's or has expired, and this has joined already", "name", id.Name, "file", join, "token_role", string(token.Role), "token_name", token.Name)
		default: // somebody has let it in anew, so what it has may be worth nothing
			return nil, fmt.Errorf("joining: this %s has joined already, as %q; start it without --join, or remove %s to join anew", role, id.Name, dir)
		}
		return id, nil
	}
	if errors.Is(terr, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the join token: there is no file %s, and this %s has not joined; ask for a token with `sidekey %ss add NAME`", join, role, role)
	}
	if terr != nil {
		return nil, terr
	}
	if token.Role != role {
		return nil, fmt.Errorf("joining: the token is for an %s, and this is an %s", token.Role, role)
	}
	if len(cfg.Bus.URLs) > 0 {
		token.URLs = cfg.Bus.URLs
	}
	ctx, cancel := context.WithTimeout(ctx, joinWithin)
	defer cancel()
	how := bus.JoinConfig{Token: token, Dir: dir, Insecure: cfg.Insecure, Logger: log.Named("bus")}
	if role == bus.RoleIssuer && cfg.clustered() {
		how.Route, how.URLs = cfg.route(), cfg.clusterURLs()
	}
	if id, err = bus.Join(ctx, how); err != nil {
		return nil, err
	}
	log.Info("joined", "role", string(role), "name", id.Name, "identity", dir)
	return id, a.dropJoinToken(join)
}

func (a *app) readJoinToken(join string) (*bus.Token, error) {
	var text string
	var err error
	if join == "-" {
		text, err = readSecret(a.stdin)
	} else {
		text, err = readSecretFile(join)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the join token: %w", err)
	}
	return bus.ParseToken([]byte(text))
}

// findJoinToken says where systemd has a join token for this service, "" where it has none.
func findJoinToken(environ []string) string {
	if dir := lookupEnv(environ, envCredentials); dir != "" {
		path := filepath.Join(dir, joinCredential)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}

// dropJoinToken removes the file of a token that is used up. What systemd hands over is its own.
func (a *app) dropJoinToken(join string) error {
	if join == "-" || join == findJoinToken(a.environ) {
		return nil
	}
	if err := os.Remove(join); err != nil && !errors.Is(err, fs.ErrNotExist) {
		// It is used up, and lets nobody in: no reason not to start, as from a mounted secret.
		fmt.Fprintf(a.stderr, "sidekey: removing the used join token: %v; remove it yourself\n", err)
	}
	return nil
}

// openTrust opens the master key and the keys that say who may use the bus. An issuer that joined has both from there.
func (p *issuerProcess) openTrust(context.Context) (err error) {
	if p.identity != nil {
		p.master, p.keys = p.identity.Master, p.identity.Keys
		return nil
	}
	if err = p.mayFound(); err != nil {
		return err
	}
	if p.master, err = openMasterKey(p.cfg); err != nil {
		return err
	}
	path := filepath.Join(p.cfg.DataDir, bus.KeysFile)
	if len(p.cfg.Bus.URLs) == 0 {
		if err := p.mayMakeKeys(path); err != nil {
			return err
		}
		p.keys, err = bus.OpenKeys(path, p.master)
		return err
	}
	if p.keys, err = bus.ReadKeys(path, p.master); errors.Is(err, fs.ErrNotExist) {
		return nil // a NATS that sidekey knows nothing of: it works with what credentials it has
	}
	return err
}

// mayMakeKeys refuses new keys for the bus beside a store: with them the state in it would look empty.
func (p *issuerProcess) mayMakeKeys(path string) error {
	if exists(path) {
		return nil
	}
	for _, name := range []string{aloneStore, clusterStore} {
		if store := filepath.Join(p.cfg.DataDir, name); exists(store) {
			return fmt.Errorf("opening the bus's keys: %s is gone, and %s is there; put it back from a backup: with new keys the state would look empty, and every agent would be refused", path, store)
		}
	}
	return nil
}

// startBus starts the embedded server.
func (p *issuerProcess) startBus() error {
	c := p.cfg.Bus
	revoked, err := bus.ReadRevoked(filepath.Join(p.cfg.DataDir, revokedFile))
	if err != nil {
		return err
	}
	store := aloneStore
	if p.peers != nil {
		store = clusterStore
	}
	cfg := bus.ServerConfig{
		Cluster: p.clusterConfig(),
		Listen:  c.Listen, Dir: filepath.Join(p.cfg.DataDir, store), Keys: p.keys, Revoked: revoked,
		Names: ownNames(c.Advertise), Insecure: p.cfg.Insecure, Logger: p.log.Named("bus"),
	}
	if c.TLSCert != "" {
		cert, err := openCertificate(c.TLSCert, c.TLSKey, p.log)
		if err != nil {
			return fmt.Errorf("bus.tls_cert: %w", err)
		}
		cfg.TLS = cert.config()
	}
	if p.server, err = bus.StartServer(cfg); err != nil {
		return err
	}
	p.onClose(func() { p.server.Close() })
	return nil
}

// ownNames are the names under which others reach this host's bus: those of the URLs, and the host's own.
func ownNames(urls []string) []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
	}
	for _, u := range urls {
		names = append(names, hostOf(u))
	}
	if addrs, err := net.InterfaceAddrs(); err == nil {
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
				names = append(names, n.IP.String())
			}
		}
	}
	return names
}

func hostOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// reachableURL names this host where the bus listens on every interface.
func reachableURL(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return address
	}
	if ip := net.ParseIP(u.Hostname()); ip != nil && ip.IsUnspecified() {
		if host, err := os.Hostname(); err == nil {
			u.Host = net.JoinHostPort(host, u.Port())
		}
	}
	return u.String()
}

// busConnection is how this issuer reaches the bus.
func (p *issuerProcess) busConnection() (bus.ConnectConfig, error) {
	c := bus.ConnectConfig{URLs: p.cfg.Bus.URLs, Server: p.server, Credentials: p.cfg.Bus.Credentials, Name: "issuer " + p.cfg.Agent.Name}
	var err error
	if p.identity != nil {
		c = p.identity.ConnectConfig()
		if len(p.cfg.Bus.URLs) > 0 {
			c.URLs = p.cfg.Bus.URLs
		}
		c.Server = p.server // in a cluster it has one of its own
	} else if p.self != nil {
		c.User = p.self.User
	} else if c.Credentials == "" && p.keys != nil {
		c.User, err = p.keys.IssuerUser(p.cfg.Agent.Name)
	}
	if p.cfg.Bus.CA != "" && err == nil {
		if c.CA, err = os.ReadFile(p.cfg.Bus.CA); err != nil {
			err = fmt.Errorf("reading bus.ca: %w", err)
		}
	}
	c.Replicated = p.cfg.replicated()
	c.Insecure, c.Logger = p.cfg.Insecure, p.log.Named("bus")
	return c, err
}

// openEnrolment begins to let agents and issuers in.
func (p *issuerProcess) openEnrolment(ctx context.Context) error {
	cfg := bus.EnrolConfig{
		Conn: p.conn, Keys: p.keys, Server: p.server, Authority: p.authority, Master: p.master,
		Joins: p.buckets[bus.BucketJoins], Agents: p.buckets[bus.BucketAgents], Issuers: p.buckets[bus.BucketIssuers],
		URLs: p.joinURLs(), Revoked: filepath.Join(p.cfg.DataDir, revokedFile),
		Peers: p.peers, OnRemoved: p.end,
		OnJoin: p.register, OnChange: p.fleet.Touch, Logger: p.log,
	}
	var err error
	switch {
	case p.server != nil && !strings.HasPrefix(p.server.URL(), "tls://"):
		// In clear, on loopback or by insecure: with a CA, those who join would insist on TLS.
	case p.cfg.Bus.CA != "":
		if cfg.CA, err = os.ReadFile(p.cfg.Bus.CA); err != nil {
			return fmt.Errorf("reading bus.ca: %w", err)
		}
	case p.identity != nil:
		cfg.CA = p.identity.CA
	case p.server != nil && p.cfg.Bus.TLSCert == "":
		cfg.CA = p.keys.CAPEM()
	}
	if p.enrolment, err = bus.OpenEnrolment(ctx, cfg); err != nil {
		return err
	}
	p.onClose(p.enrolment.Close)
	if p.peers != nil {
		return p.enrolment.Register(ctx, p.self)
	}
	return nil
}

// joinURLs are the addresses of the bus that a join token tells.
func (p *issuerProcess) joinURLs() []string {
	switch {
	case p.peers != nil:
		return p.peers.Self().URLs
	case len(p.cfg.Bus.Advertise) > 0:
		return p.cfg.Bus.Advertise
	case len(p.cfg.Bus.URLs) > 0:
		return p.cfg.Bus.URLs
	case p.identity != nil:
		return p.identity.URLs
	}
	return []string{reachableURL(p.server.URL())}
}

// register takes an agent in as soon as this issuer can: one that comes while the issuer starts waits.
func (p *issuerProcess) register(ctx context.Context, m bus.Member) error {
	select {
	case <-p.opened:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := awaitReady(ctx, p.issuer.Ready); err != nil {
		return err
	}
	return p.issuer.Register(ctx, m)
}

// joinHere lets the one agent of `sidekey dev` join, without a token that anybody sees.
func (p *issuerProcess) joinHere(ctx context.Context, name, dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	text, err := p.enrolment.Invite(ctx, bus.RoleAgent, name, 0)
	if errors.Is(err, bus.ErrExists) { // its folder was lost
		if err = p.enrolment.Remove(ctx, bus.RoleAgent, name); err == nil {
			text, err = p.enrolment.Invite(ctx, bus.RoleAgent, name, 0)
		}
	}
	if err != nil {
		return err
	}
	token, err := bus.ParseToken([]byte(text))
	if err != nil {
		return err
	}
	_, err = bus.Join(ctx, bus.JoinConfig{Token: token, Dir: dir, Server: p.server, Logger: p.log.Named("bus")})
	return err
}

// openMasterKey reads the master key: from where SIDEKEY_MASTER_KEY_FILE or systemd's credentials have it, else from
// data_dir, where it is made at the first start.
func openMasterKey(cfg Config) (*keyring.MasterKey, error) {
	path := cfg.masterKeyFile
	var text []byte
	var err error
	if path != "" {
		text, err = os.ReadFile(path)
	} else {
		path = filepath.Join(cfg.DataDir, masterKeyFile)
		text, err = readOrMake(path, func() ([]byte, error) { return keyring.NewMasterKey().Text(), nil })
	}
	if err != nil {
		return nil, fmt.Errorf("opening the master key: %w", err)
	}
	return parseMasterKey(path, text)
}

// readMasterKey is openMasterKey where none is to be made.
func readMasterKey(cfg Config) (*keyring.MasterKey, error) {
	path := cfg.masterKeyFile
	if path == "" {
		path = filepath.Join(cfg.DataDir, masterKeyFile)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("opening the master key: %w", err)
	}
	return parseMasterKey(path, text)
}

func parseMasterKey(path string, text []byte) (*keyring.MasterKey, error) {
	key, err := keyring.ParseMasterKey(text)
	if err != nil {
		return nil, fmt.Errorf("reading the master key %s: %w; put the right file back: without it nothing of the state can be opened", path, err)
	}
	return key, nil
}
