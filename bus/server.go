package bus

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats-server/v2/server"
)

// ServerConfig configures the embedded nats-server. Every member but Logger is required.
type ServerConfig struct {
	Listen  string // "host:port", loopback only; port 0 or -1: any free one
	Dir     string // JetStream's file store; made 0700 where it is absent
	Issuers string // public user nkey of the issuers, who may do everything
	Agents  string // public user nkey of the agents, who may do what AgentPermissions lists
	Prefix  string // "": DefaultPrefix
	Logger  hclog.Logger
}

// Server is a nats-server in this process: JetStream on disk, every write synced before it is
// acknowledged, one port, and no way in without a key.
type Server struct {
	srv *server.Server
	url string
}

// readyWithin bounds a start, in which JetStream reads its store.
const readyWithin = 30 * time.Second

// StartServer starts the embedded server and returns when it answers. The error names the address
// or the folder that is in the way.
func StartServer(cfg ServerConfig) (*Server, error) {
	opts, err := serverOptions(cfg)
	if err != nil {
		return nil, err
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("starting the embedded bus: %w", err)
	}
	logger := &serverLog{log: cfg.Logger, failed: make(chan string, 1)}
	if logger.log == nil {
		logger.log = hclog.NewNullLogger()
	}
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
	return &Server{srv: srv, url: "nats://" + srv.Addr().String()}, nil
}

func serverOptions(cfg ServerConfig) (*server.Options, error) {
	host, portText, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("reading bus.listen %q: %w; want host:port", cfg.Listen, err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("refusing to open the bus on %q: it speaks in clear, so bus.listen must be a loopback address such as 127.0.0.1:7463", cfg.Listen)
	}
	port, err := strconv.Atoi(portText)
	if err != nil || port > 65535 {
		return nil, fmt.Errorf("reading bus.listen %q: the port is not a number up to 65535", cfg.Listen)
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	if cfg.Issuers == "" || cfg.Agents == "" {
		return nil, errors.New("starting the embedded bus: it never listens without credentials, and none are given")
	}
	opts := &server.Options{
		ServerName:             "sidekey",
		Host:                   host,
		Port:                   port,
		JetStream:              true,
		StoreDir:               cfg.Dir,
		SyncAlways:             true, // an acknowledgement means: on the disk
		NoSigs:                 true, // the process's signals are its own
		DisableJetStreamBanner: true,
	}
	var conf strings.Builder // JSON is nats-server's configuration language too, but for \u escapes
	enc := json.NewEncoder(&conf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(map[string]any{"accounts": accounts(cfg)}); err != nil {
		return nil, fmt.Errorf("configuring the embedded bus: %w", err)
	}
	if err := opts.ProcessConfigString(conf.String()); err != nil {
		return nil, fmt.Errorf("configuring the embedded bus: %w", err)
	}
	return opts, nil
}

// The accounts of the embedded server.
const (
	issuersAccount = "SIDEKEY"
	agentsAccount  = "SIDEKEY_AGENTS"
)

// accounts is the server's configuration of who may see what. Agents stand in an account of their
// own, and reach into the issuers' only through what it exports. Permissions alone would not hold
// them: nats-server does not check the reply subject of a request, so a direct get whose answer is
// addressed to <prefix>.log.revoke would be written into the log, and stop every reader. The answer
// to a request across accounts goes back to the asking account, and nowhere else.
func accounts(cfg ServerConfig) map[string]any {
	type m = map[string]any
	s := subjects(prefixOr(cfg.Prefix))
	perms := AgentPermissions(cfg.Prefix)
	only := []string{agentsAccount}
	exports := []m{{"stream": s.live(">"), "accounts": only}}
	imports := []m{{"stream": m{"account": issuersAccount, "subject": s.live(">")}}}
	for _, subject := range perms.Publish.Allow {
		exports = append(exports, m{"service": subject, "accounts": only, "response_type": "stream"}) // a direct get has many answers
		imports = append(imports, m{"service": m{"account": issuersAccount, "subject": subject}})
	}
	return m{
		issuersAccount: m{"jetstream": "enabled", "users": []m{{"nkey": cfg.Issuers}}, "exports": exports},
		agentsAccount: m{"imports": imports, "users": []m{{"nkey": cfg.Agents, "permissions": m{
			"publish":   m{"allow": perms.Publish.Allow},
			"subscribe": m{"allow": perms.Subscribe.Allow},
		}}}},
	}
}

// AgentPermissions is the allow-list of an agent's bus user (DESIGN §9): read the log live and
// back, read checkpoints, hear answers, register, ask for a lease, acknowledge, tell its status;
// nothing else.
func AgentPermissions(prefix string) *server.Permissions {
	s := subjects(prefixOr(prefix))
	var direct []string
	for _, stream := range []string{s.logStream(), s.checkpointStream()} {
		direct = append(direct, "$JS.API.DIRECT.GET."+stream, "$JS.API.DIRECT.GET."+stream+".>")
	}
	return &server.Permissions{
		Publish:   &server.SubjectPermission{Allow: append(direct, s.register(), s.lease(Any), s.ack(Any), s.status(Any))},
		Subscribe: &server.SubjectPermission{Allow: []string{s.live(">"), agentInbox + ".>"}},
	}
}

// URL is where the server listens, as "nats://127.0.0.1:7463".
func (s *Server) URL() string { return s.url }

// Close stops the server and waits until its store is closed. It may be called twice.
func (s *Server) Close() error {
	s.srv.Shutdown()
	s.srv.WaitForShutdown()
	return nil
}

// serverLog hands the server's log lines to hclog, and keeps the first fatal one: an embedded
// server must not end the process.
type serverLog struct {
	log    hclog.Logger
	failed chan string
	once   sync.Once
}

func (l *serverLog) Noticef(format string, v ...any) { l.log.Debug(line(format, v)) }
func (l *serverLog) Warnf(format string, v ...any)   { l.log.Warn(line(format, v)) }
func (l *serverLog) Errorf(format string, v ...any)  { l.log.Error(line(format, v)) }
func (l *serverLog) Debugf(format string, v ...any)  { l.log.Trace(line(format, v)) }
func (l *serverLog) Tracef(format string, v ...any)  { l.log.Trace(line(format, v)) }
func (l *serverLog) Fatalf(format string, v ...any) {
	l.log.Error(line(format, v))
	l.once.Do(func() { l.failed <- line(format, v) })
}

func line(format string, v []any) string {
	return "nats-server: " + strings.TrimSpace(fmt.Sprintf(format, v...))
}
