package bus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
)

// ServerConfig configures the embedded nats-server. Listen, Dir and Keys are required.
type ServerConfig struct {
	Listen   string         // "host:port"; port 0: any free one
	Dir      string         // JetStream's file store; made 0700 where it is absent
	Keys     *Keys          // who may come in
	Revoked  []string       // nkeys that may not any more
	TLS      *tls.Config    // nil: beyond loopback a certificate from Keys, on loopback none
	Names    []string       // host names and IP addresses under which others know it, for that certificate
	Insecure bool           // listen beyond loopback in clear
	Cluster  *ClusterConfig // nil: it stands alone
	Logger   hclog.Logger
}

// Server is a nats-server in this process: JetStream on disk, every write synced before it is
// acknowledged, one port, and no way in without a key.
type Server struct {
	srv      *server.Server
	url      string
	keys     *Keys
	resolver *server.MemAccResolver
	logger   *serverLog

	cut     sync.Mutex // held while the accounts are changed
	revoked []string   // by the accounts, sorted
	half    bool       // they were changed in part: what they refuse is not known

	stop          sync.Once
	closing, kept chan struct{} // of keepOpen: it is to end; it has ended

	peers     *Peers // nil: it stands alone
	groupFile string // of a cluster

	routes sync.Mutex      // held while they are loaded anew
	opts   *server.Options // as they were last loaded
	cuts   int             // looks at who is in the cluster that are still to end routes
}

// aloneName is what an embedded server that stands alone calls itself; no exported one is called so.
const aloneName = "sidekey"

// readyWithin bounds a start, in which JetStream reads its store.
const readyWithin = 30 * time.Second

// StartServer starts the embedded server and returns when it answers. The error names the address
// or the folder that is in the way.
func StartServer(cfg ServerConfig) (*Server, error) {
	opts, resolver, err := serverOptions(cfg)
	if err != nil {
		return nil, err
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("starting the embedded bus: %w", err)
	}
	s := &Server{srv: srv, keys: cfg.Keys, resolver: resolver, revoked: sortedSet(cfg.Revoked), opts: opts, closing: make(chan struct{}), kept: make(chan struct{})}
	alone := false
	if cfg.Cluster != nil {
		s.peers, s.groupFile = cfg.Cluster.Peers, groupFile(opts)
		if alone, err = foundGroup(opts, cfg.Cluster); err != nil {
			return nil, err
		}
	}
	logger := &serverLog{log: cfg.Logger, failed: make(chan string, 1)}
	if logger.log == nil {
		logger.log = hclog.NewNullLogger()
	}
	s.logger = logger
	srv.SetLoggerV2(logger, false, false, false)
	go srv.Start()
	deadline := time.Now().Add(readyWithin)
	for !srv.ReadyForConnections(20 * time.Millisecond) {
		select {
		case why := <-logger.failed:
			srv.Shutdown()
			return nil, fmt.Errorf("starting the embedded bus on %s (bus.listen) with its store in %s: %s", cfg.Listen, cfg.Dir, why)
		default:
		}
		if time.Now().After(deadline) {
			srv.Shutdown()
			return nil, fmt.Errorf("starting the embedded bus on %s: not ready after %s; see its log lines above", cfg.Listen, readyWithin)
		}
	}
	scheme := "nats://"
	if opts.TLSConfig != nil {
		scheme = "tls://"
	}
	s.url = scheme + srv.Addr().String()
	if cfg.Cluster != nil {
		err = s.joinCluster(cfg.Cluster, opts, alone)
	}
	if err != nil {
		srv.Shutdown()
		srv.WaitForShutdown()
		return nil, err
	}
	go s.keepOpen()
	return s, nil
}

// joinCluster finishes the start of a server that is one of several.
func (s *Server) joinCluster(c *ClusterConfig, opts *server.Options, alone bool) error {
	if id := peerID(opts.ServerName); s.srv.Node() != id {
		return fmt.Errorf("starting the embedded bus: this nats-server calls itself %s in its cluster, where %s was expected; use the sidekey that made this cluster", s.srv.Node(), id)
	}
	if err := c.Peers.begin(); err != nil {
		return err
	}
	if !alone {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), readyWithin)
	defer cancel()
	return s.accompany(ctx, opts, s.resolver)
}

func serverOptions(cfg ServerConfig) (*server.Options, *server.MemAccResolver, error) {
	host, port, err := splitListen(cfg.Listen)
	if err != nil {
		return nil, nil, err
	}
	if cfg.Keys == nil {
		return nil, nil, errors.New("starting the embedded bus: it never listens without keys that say who may come in, and none are given")
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("starting the embedded bus: making its store: %w", err)
	}
	opts := &server.Options{
		ServerName:             aloneName,
		Host:                   host,
		Port:                   port,
		JetStream:              true,
		StoreDir:               cfg.Dir,
		SyncAlways:             true, // an acknowledgement means: on the disk
		NoSigs:                 true, // the process's signals are its own
		DisableJetStreamBanner: true,
		TLSConfig:              cfg.TLS,
	}
	if opts.TLSConfig == nil && !loopback(host) && !cfg.Insecure {
		if opts.TLSConfig, err = cfg.Keys.ServerTLS(append(cfg.Names, host)); err != nil {
			return nil, nil, fmt.Errorf("refusing to open the bus on %q in clear: %w; set bus.tls_cert and bus.tls_key, or insecure = true", cfg.Listen, err)
		}
	}
	resolver, err := operatorMode(opts, cfg.Keys, cfg.Revoked)
	if err != nil {
		return nil, nil, fmt.Errorf("configuring the embedded bus: %w", err)
	}
	if cfg.Cluster != nil {
		if err := clustered(opts, cfg); err != nil {
			return nil, nil, err
		}
	}
	return opts, resolver, nil
}

// splitListen reads an address to listen on.
func splitListen(listen string) (host string, port int, err error) {
	host, portText, err := net.SplitHostPort(listen)
	if err != nil {
		return "", 0, fmt.Errorf("reading bus.listen %q: %w; want host:port", listen, err)
	}
	port, err = strconv.Atoi(portText)
	if err != nil || port > 65535 {
		return "", 0, fmt.Errorf("reading bus.listen %q: the port is not a number up to 65535", listen)
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	return host, port, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// operatorMode lets in nobody but users whose JWT the keys have signed.
func operatorMode(opts *server.Options, keys *Keys, revoked []string) (*server.MemAccResolver, error) {
	operator, _, err := keys.operatorClaims()
	if err != nil {
		return nil, err
	}
	system, err := keys.systemAccount()
	if err != nil {
		return nil, err
	}
	accounts, err := keys.accounts(revoked)
	if err != nil {
		return nil, err
	}
	resolver := new(server.MemAccResolver)
	for _, a := range append(accounts, system) {
		if err := resolver.Store(a.key, a.token); err != nil {
			return nil, err
		}
	}
	opts.TrustedOperators = []*jwt.OperatorClaims{operator}
	opts.SystemAccount = system.key
	opts.AccountResolver = resolver
	return resolver, nil
}

// Revoke closes the connections of these users, by nkey, at once, and lets none of them in again. A list that is in
// force already changes nothing: nats-server drops, with an account's old exports, the requests across accounts that wait for
// their answers.
func (s *Server) Revoke(nkeys []string) error {
	nkeys = sortedSet(nkeys)
	s.cut.Lock()
	defer s.cut.Unlock()
	if !s.half && slices.Equal(s.revoked, nkeys) {
		return nil
	}
	accounts, err := s.keys.accounts(nkeys)
	if err != nil {
		return err
	}
	s.half = true
	for _, a := range accounts {
		if err := s.resolver.Store(a.key, a.token); err != nil {
			return fmt.Errorf("changing account %s: %w", a.name, err)
		}
		acc, err := s.srv.LookupAccount(a.key)
		if err != nil {
			return fmt.Errorf("changing account %s: %w", a.name, err)
		}
		claims, err := jwt.DecodeAccountClaims(a.token)
		if err != nil {
			return fmt.Errorf("changing account %s: %w", a.name, err)
		}
		s.srv.UpdateAccountClaims(acc, claims)
	}
	s.revoked, s.half = nkeys, false
	return nil
}

// URL is where the server listens, as "nats://127.0.0.1:7463", or tls://.
func (s *Server) URL() string { return s.url }

// Close stops the server and waits until its store is closed. It may be called twice.
//
// A server of a cluster hands over what it leads first, and its clients go to the others.
func (s *Server) Close() error {
	s.stop.Do(func() { close(s.closing) })
	<-s.kept
	if s.peers != nil && len(s.peers.Others()) > 0 {
		s.srv.LameDuckShutdown()
	}
	s.srv.Shutdown()
	s.srv.WaitForShutdown()
	return nil
}

// unverified is what nats-server says of routes whose certificates it does not verify by itself: routeTLS does.
const unverified = "hostname of solicited routes will not be verified"

// serverLog hands the server's log lines to hclog, and keeps the first fatal one: an embedded
// server must not end the process.
type serverLog struct {
	log    hclog.Logger
	failed chan string
	once   sync.Once
	broken atomic.Bool // a stream takes no more writes
}

func (l *serverLog) Noticef(format string, v ...any) { l.log.Debug(line(format, v)) }
func (l *serverLog) Warnf(format string, v ...any) {
	if strings.Contains(format, unverified) {
		return
	}
	l.log.Warn(line(format, v))
}
func (l *serverLog) Errorf(format string, v ...any) {
	if tellsOfWrites(format) {
		l.broken.Store(true)
	}
	l.log.Error(line(format, v))
}
func (l *serverLog) Debugf(format string, v ...any) { l.log.Trace(line(format, v)) }
func (l *serverLog) Tracef(format string, v ...any) { l.log.Trace(line(format, v)) }
func (l *serverLog) Fatalf(format string, v ...any) {
	l.log.Error(line(format, v))
	l.once.Do(func() { l.failed <- line(format, v) })
}

func line(format string, v []any) string {
	return "nats-server: " + strings.TrimSpace(fmt.Sprintf(format, v...))
}
