package bustest

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// Bus is the shipped embedded server in a test's folder, ready in milliseconds, with all that an
// issuer needs to use it. It ends with the test.
type Bus struct {
	Server    *bus.Server
	Keys      *bus.Keys
	Authority *keyring.Authority
	Master    *keyring.MasterKey
	dir       string
	listen    string
	revoked   string
	enrolment *bus.Enrolment
	via       *Proxy
	urls      []string // of servers in processes of their own: see StartApart
	replicas  int
}

// Via is the same bus, reached through a proxy by whatever is connected with it. Stop and Restart
// the original.
func (b *Bus) Via(p *Proxy) *Bus {
	through := *b
	through.via = p
	return &through
}

// Replicas is how many each stream and bucket has.
func (b *Bus) Replicas() int { return max(b.replicas, 1) }

// URL is where the bus listens; of a cluster, the first server's address.
func (b *Bus) URL() string {
	if b.via != nil {
		return b.via.URL()
	}
	if len(b.urls) > 0 {
		return b.urls[0]
	}
	return strings.NewReplacer("0.0.0.0", "127.0.0.1", "[::]", "127.0.0.1").Replace(b.Server.URL())
}

// Start starts it.
func Start(t testing.TB) *Bus { t.Helper(); return start(t, "127.0.0.1:0") }

// StartTLS starts it on every interface of the host, where it has TLS.
func StartTLS(t testing.TB) *Bus { t.Helper(); return start(t, "0.0.0.0:0") }

func start(t testing.TB, listen string) *Bus {
	t.Helper()
	keys, err := bus.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	authority, err := keyring.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	b := &Bus{
		Keys: keys, Authority: authority, Master: keyring.NewMasterKey(),
		dir: t.TempDir(), listen: listen, revoked: filepath.Join(t.TempDir(), "bus.revoked"),
	}
	b.start(t)
	t.Cleanup(func() { b.Server.Close() })
	return b
}

func (b *Bus) start(t testing.TB) {
	t.Helper()
	revoked, err := bus.ReadRevoked(b.revoked)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := bus.StartServer(bus.ServerConfig{
		Listen: b.listen, Dir: b.dir, Keys: b.Keys, Revoked: revoked, Names: []string{"127.0.0.1"}, Logger: logger(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	b.Server = srv
	_, b.listen, _ = strings.Cut(srv.URL(), "://")
}

// Stop stops the server, as a crash of the process does: connections are tried again for ever.
func (b *Bus) Stop() { b.Server.Close() }

// Restart starts the server again, at the same address and with the same store.
func (b *Bus) Restart(t testing.TB) {
	t.Helper()
	b.Server.Close()
	b.start(t)
}

// Forget loses the issuer's own list of those it has removed.
func (b *Bus) Forget(t testing.TB) {
	t.Helper()
	if err := os.Remove(b.revoked); err != nil {
		t.Fatal(err)
	}
}

// CA is that of the server's certificate; nil on loopback, where it has none.
func (b *Bus) CA() []byte {
	if strings.HasPrefix(b.URL(), "tls://") && b.via == nil || b.Server != nil && strings.HasPrefix(b.Server.URL(), "tls://") {
		return b.Keys.CAPEM()
	}
	return nil
}

// Dir is the server's store.
func (b *Bus) Dir() string { return b.dir }

// Issuer makes a user that may do what an issuer may.
func (b *Bus) Issuer(t testing.TB) *bus.User {
	t.Helper()
	u, err := b.Keys.IssuerUser("issuer-1")
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// Agent makes a user that may do what the agent of a name may, without its having joined.
func (b *Bus) Agent(t testing.TB, name string) *bus.User {
	t.Helper()
	u, err := b.Keys.AgentUser(name)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// Connect connects over TCP with an issuer's credential; it is closed with the test.
func (b *Bus) Connect(t testing.TB) *bus.Conn {
	t.Helper()
	return connect(t, bus.ConnectConfig{URLs: []string{b.URL()}, CA: b.CA(), User: b.Issuer(t), Name: "issuer", Logger: logger(t)})
}

// ConnectAgent connects over TCP with the credential of an agent, by default of the name "agent"; it
// is closed with the test.
func (b *Bus) ConnectAgent(t testing.TB, name ...string) *bus.Conn {
	t.Helper()
	name = append(name, "agent")
	return connect(t, bus.ConnectConfig{URLs: []string{b.URL()}, CA: b.CA(), User: b.Agent(t, name[0]), Name: name[0], Agent: name[0], Logger: logger(t)})
}

// Enrolment lets agents and issuers in, as an issuer does. There is one a Bus.
func (b *Bus) Enrolment(t testing.TB) *bus.Enrolment {
	t.Helper()
	if b.enrolment == nil {
		b.enrolment = b.OpenEnrolment(t, func(*bus.EnrolConfig) {})
	}
	return b.enrolment
}

// OpenEnrolment opens another, configured by change; it is closed with the test.
func (b *Bus) OpenEnrolment(t testing.TB, change func(*bus.EnrolConfig)) *bus.Enrolment {
	t.Helper()
	cfg := bus.EnrolConfig{
		Conn: b.Connect(t), Keys: b.Keys, Server: b.Server, Authority: b.Authority, Master: b.Master,
		Joins: b.Bucket(t, bus.BucketJoins), Agents: b.Bucket(t, bus.BucketAgents), Issuers: b.Bucket(t, bus.BucketIssuers),
		URLs: []string{b.URL()}, CA: b.CA(), Revoked: b.revoked, Logger: logger(t),
	}
	change(&cfg)
	e, err := bus.OpenEnrolment(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

// Invite makes a join token.
func (b *Bus) Invite(t testing.TB, role bus.Role, name string) *bus.Token {
	t.Helper()
	text, err := b.Enrolment(t).Invite(t.Context(), role, name, 0)
	if err != nil {
		t.Fatal(err)
	}
	token, err := bus.ParseToken([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// Join lets an agent join, by a token, and gives what it then has.
func (b *Bus) Join(t testing.TB, name string) *bus.Identity {
	t.Helper()
	id, err := bus.Join(t.Context(), bus.JoinConfig{Token: b.Invite(t, bus.RoleAgent, name), Dir: filepath.Join(t.TempDir(), "identity"), Logger: logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	return id
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
	l, err := bus.OpenLog(t.Context(), b.Connect(t), bus.LogConfig{Authority: b.Authority, Issuer: "issuer-1", Replicas: b.replicas})
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
	k, err := bus.OpenBucket(t.Context(), b.Connect(t), name, b.Master, b.Replicas())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// logger writes to the test's own log, so that lines show only where a test fails.
func logger(t testing.TB) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Name: "test", Level: hclog.Warn, Output: t.Output()})
}
