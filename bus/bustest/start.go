package bustest

import (
	"context"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// Bus is the shipped embedded server in a test's folder, ready in milliseconds, with all that an
// issuer needs to use it. It ends with the test.
type Bus struct {
	Server      *bus.Server
	Credentials *bus.Credentials
	Authority   *keyring.Authority
	Master      *keyring.MasterKey
	dir         string
	listen      string
	via         *Proxy
}

// Via is the same bus, reached through a proxy by whatever is connected with it. Stop and Restart
// the original.
func (b *Bus) Via(p *Proxy) *Bus {
	through := *b
	through.via = p
	return &through
}

func (b *Bus) url() string {
	if b.via != nil {
		return b.via.URL()
	}
	return b.Server.URL()
}

// Start starts it.
func Start(t testing.TB) *Bus {
	t.Helper()
	creds, err := bus.OpenCredentials(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	authority, err := keyring.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	b := &Bus{Credentials: creds, Authority: authority, Master: keyring.NewMasterKey(), dir: t.TempDir(), listen: "127.0.0.1:0"}
	b.start(t)
	t.Cleanup(func() { b.Server.Close() })
	return b
}

func (b *Bus) start(t testing.TB) {
	t.Helper()
	srv, err := bus.StartServer(bus.ServerConfig{
		Listen: b.listen, Dir: b.dir, Issuers: b.Credentials.IssuerPublic, Agents: b.Credentials.AgentPublic, Logger: logger(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	b.Server, b.listen = srv, srv.URL()[len("nats://"):]
}

// Stop stops the server, as a crash of the process does: connections are tried again for ever.
func (b *Bus) Stop() { b.Server.Close() }

// Restart starts the server again, at the same address and with the same store.
func (b *Bus) Restart(t testing.TB) {
	t.Helper()
	b.Server.Close()
	b.start(t)
}

// Dir is the server's store.
func (b *Bus) Dir() string { return b.dir }

// Connect connects over TCP with an issuer's credential; it is closed with the test.
func (b *Bus) Connect(t testing.TB) *bus.Conn {
	t.Helper()
	return connect(t, bus.ConnectConfig{URLs: []string{b.url()}, Seed: b.Credentials.Issuer, Name: "issuer", Logger: logger(t)})
}

// ConnectAgent connects over TCP with an agent's credential; it is closed with the test.
func (b *Bus) ConnectAgent(t testing.TB) *bus.Conn {
	t.Helper()
	return connect(t, bus.ConnectConfig{URLs: []string{b.url()}, Seed: b.Credentials.Agent, Name: "agent", Agent: true, Logger: logger(t)})
}

func connect(t testing.TB, cfg bus.ConnectConfig) *bus.Conn {
	t.Helper()
	c, err := bus.Connect(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := c.Await(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

// Log opens an issuer's side of the log on a connection of its own; it is closed with the test.
func (b *Bus) Log(t testing.TB) *bus.Log {
	t.Helper()
	l, err := bus.OpenLog(t.Context(), b.Connect(t), bus.LogConfig{Authority: b.Authority, Issuer: "issuer-1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// Reader opens an agent's side of the log on a connection of its own.
func (b *Bus) Reader(t testing.TB) *bus.Reader {
	t.Helper()
	return bus.NewReader(b.ConnectAgent(t), b.Authority.Public())
}

// Bucket opens a state bucket on a connection of its own.
func (b *Bus) Bucket(t testing.TB, name string) *bus.Bucket {
	t.Helper()
	k, err := bus.OpenBucket(t.Context(), b.Connect(t), name, b.Master, 1)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// logger writes to the test's own log, so that lines show only where a test fails.
func logger(t testing.TB) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Name: "test", Level: hclog.Warn, Output: t.Output()})
}
