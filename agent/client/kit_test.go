package client_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/agent/client"
	"github.com/sidekey/sidekey/agent/rules"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// world is a real agent, fed by hand, and where it listens.
type world struct {
	testing.TB
	rep     *replica.Replica
	agent   *agent.Agent
	address string // as Config.Address has it
	lease   atomic.Pointer[lease.Lease]
	conns   atomic.Int64 // connections that the agent accepted
	seq     uint64
}

// Current makes a world the agent's leases.
func (w *world) Current() *lease.Lease { return w.lease.Load() }

// emptyLog has nothing to read: following it is a first full sync.
type emptyLog struct{ done context.CancelFunc }

func (l emptyLog) Checkpoint(context.Context) ([]byte, error) { return nil, bus.ErrNotFound }

func (l emptyLog) Follow(ctx context.Context, _ bus.Cursor, fn func([]bus.Entry, uint64) error) error {
	if err := fn(nil, 0); err != nil {
		return err
	}
	l.done()
	return ctx.Err()
}

// newWorld starts an agent on "tcp" or "unix" until the test ends, with one key.
func newWorld(t testing.TB, network string, change ...func(*agent.Config)) *world {
	t.Helper()
	w := &world{TB: t, rep: replica.New(replica.Config{})}
	w.lease.Store(&lease.Lease{Begin: lease.SystemClock(), Length: 24 * time.Hour, Mode: lease.Refuse})
	ctx, done := context.WithCancel(t.Context())
	if err := w.rep.Follow(ctx, emptyLog{done}); err != nil {
		t.Fatal(err)
	}
	cfg := agent.Config{Name: "web-1", Leeway: 5 * time.Second}
	for _, c := range change {
		c(&cfg)
	}
	var err error
	if w.agent, err = agent.New(cfg, agent.Parts{Replica: w.rep, Leases: w}); err != nil {
		t.Fatal(err)
	}
	key := keyringtest.RSA(t)
	jwk, err := key.PublicJWK()
	if err != nil {
		t.Fatal(err)
	}
	w.apply(&bus.KeyFact{
		KeyID: key.ID(), Alg: string(key.Alg()), Bits: key.Bits(), State: string(keyring.Active), Issuer: keyringtest.Issuer, Audience: keyringtest.Audience,
		MaxLifetime: int64((24 * time.Hour).Seconds()), Created: time.Now().Unix(), JWK: jwk,
	})
	w.serve(network)
	return w
}

func (w *world) serve(network string) {
	w.Helper()
	at := "127.0.0.1:0"
	if network == "unix" {
		at = filepath.Join(w.TempDir(), "agent.sock")
	}
	ln, err := net.Listen(network, at)
	if err != nil {
		w.Fatal(err)
	}
	if w.address = "http://" + ln.Addr().String(); network == "unix" {
		w.address = "unix:" + at
	}
	srv := w.agent.Server()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(counted{ln, &w.conns}) }()
	w.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := srv.ShutdownWithContext(ctx); err != nil {
			w.Errorf("Shutdown: %v", err)
		}
		if err := <-served; err != nil {
			w.Errorf("Serve: %v", err)
		}
		_ = w.agent.Close()
	})
}

// counted counts what it accepts.
type counted struct {
	net.Listener
	n *atomic.Int64
}

func (c counted) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.n.Add(1)
	}
	return conn, err
}

func (w *world) apply(facts ...bus.Fact) {
	w.Helper()
	for _, f := range facts {
		w.seq++
		if err := w.rep.Apply(bus.Entry{Position: bus.Position{Epoch: 1, Seq: w.seq}, Fact: f}); err != nil {
			w.Fatal(err)
		}
	}
}

func (w *world) rules(text string) {
	w.Helper()
	set, err := rules.Parse("rules.toml", []byte(text), rules.Options{})
	if err != nil {
		w.Fatal(err)
	}
	w.agent.SetRules(set)
}

func (w *world) token(change ...func(*keyring.Claims)) string {
	w.Helper()
	return keyringtest.Token(w, keyringtest.RSA(w), func(c *keyring.Claims) {
		for _, f := range change {
			f(c)
		}
	})
}

func newClient(t testing.TB, cfg client.Config) *client.Client {
	t.Helper()
	c, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// get asks a handler; header has names and values by turns, a name twice gives two fields.
func get(h http.Handler, method, target string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header[http.CanonicalHeaderKey(header[i])] = append(r.Header[http.CanonicalHeaderKey(header[i])], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// fake answers as no agent would, and counts how often it was asked.
func fake(t testing.TB, answer http.HandlerFunc) (address string, asked *atomic.Int64) {
	t.Helper()
	asked = new(atomic.Int64)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		_, _ = io.Copy(io.Discard, r.Body)
		answer(w, r)
	}))
	t.Cleanup(srv.Close)
	return srv.URL, asked
}
