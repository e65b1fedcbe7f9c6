package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/valyala/fasthttp"
	"github.com/valyala/fasthttp/fasthttputil"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// world is an agent and the log that feeds it, in memory.
type world struct {
	testing.TB
	rep     *replica.Replica
	agent   *agent.Agent
	log     *safeBuffer
	key     *keyring.Key // RS256, active
	secrets map[string]*keyring.Key
	skew    atomic.Int64 // nanoseconds that the agent's clock is ahead
	lease   atomic.Pointer[lease.Lease]
	clock   lease.Clock // by which leases end
	hurried atomic.Int64
	seq     uint64
	checks  *host // where a test asks POST /v1/check
}

// Current makes a world the agent's leases.
func (w *world) Current() *lease.Lease { return w.lease.Load() }

// always is a lease that does not end.
type always struct{}

func (always) Current() *lease.Lease { return &endless }

var endless = lease.Lease{Begin: lease.SystemClock(), Length: 24 * time.Hour, Mode: lease.Refuse}

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

// newWorld builds an agent that is ready, with one active RS256 key at sequence 1.
func newWorld(t testing.TB, change ...func(*agent.Config)) *world {
	return newWorldWith(t, func(*agent.Parts) {}, change...)
}

// newWorldWith is newWorld with other parts.
func newWorldWith(t testing.TB, parts func(*agent.Parts), change ...func(*agent.Config)) *world {
	w := newStartingWorldWith(t, parts, change...)
	ctx, done := context.WithCancel(t.Context())
	if err := w.rep.Follow(ctx, emptyLog{done}); err != nil {
		t.Fatalf("Follow: %v", err)
	}
	w.apply(w.fact(w.key, keyring.Active))
	return w
}

// newStartingWorld builds an agent that has had no full sync.
func newStartingWorld(t testing.TB, change ...func(*agent.Config)) *world {
	return newStartingWorldWith(t, func(*agent.Parts) {}, change...)
}

func newStartingWorldWith(t testing.TB, parts func(*agent.Parts), change ...func(*agent.Config)) *world {
	w := &world{TB: t, log: new(safeBuffer), key: keyringtest.RSA(t), secrets: make(map[string]*keyring.Key)}
	w.rep = replica.New(replica.Config{Open: func(f *bus.KeyFact) (*keyring.Key, error) {
		if k := w.secrets[f.KeyID]; k != nil {
			return k, nil
		}
		return nil, replica.ErrNotHeld
	}, Rules: func(next *replica.Snapshot) {
		if w.agent != nil {
			w.agent.TakeRules(next)
		}
	}})
	w.buildWith(w.rep, parts, change...)
	return w
}

func (w *world) build(rep agent.Replica, change ...func(*agent.Config)) {
	w.buildWith(rep, func(*agent.Parts) {}, change...)
}

func (w *world) buildWith(rep agent.Replica, also func(*agent.Parts), change ...func(*agent.Config)) {
	w.lease.Store(&endless)
	w.clock = lease.SystemClock
	cfg := agent.Config{Name: "web-1", Version: "v0.test", Leeway: 5 * time.Second}
	for _, c := range change {
		c(&cfg)
	}
	parts := agent.Parts{
		Replica:   rep,
		Leases:    w,
		Clock:     func() lease.Reading { return w.clock() },
		Hurry:     func() { w.hurried.Add(1) },
		Logger:    hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: w.log}),
		Now:       func() time.Time { return time.Now().Add(time.Duration(w.skew.Load())) },
		Connected: func() bool { return true },
		Run:       "run-1",
	}
	also(&parts)
	a, err := agent.New(cfg, parts)
	if err != nil {
		w.Fatalf("New: %v", err)
	}
	w.agent = a
	w.Cleanup(func() { _ = a.Close() })
}

// apply appends facts to the log and lets the agent have them.
func (w *world) apply(facts ...bus.Fact) {
	w.Helper()
	for _, f := range facts {
		w.seq++
		if err := w.rep.Apply(bus.Entry{Position: bus.Position{Epoch: 1, Seq: w.seq}, Fact: f}); err != nil {
			w.Fatalf("Apply(%d): %v", w.seq, err)
		}
	}
}

// fact is the log's entry of a key in a state.
func (w *world) fact(k *keyring.Key, state keyring.State) *bus.KeyFact {
	w.Helper()
	f := &bus.KeyFact{
		KeyID: k.ID(), Alg: string(k.Alg()), Bits: k.Bits(), State: string(state), Issuer: keyringtest.Issuer, Audience: keyringtest.Audience,
		MaxLifetime: int64((24 * time.Hour).Seconds()), Created: time.Now().Unix(),
	}
	if k.Alg().Symmetric() {
		w.secrets[k.ID()] = k
		return f
	}
	jwk, err := k.PublicJWK()
	if err != nil {
		w.Fatalf("PublicJWK: %v", err)
	}
	f.JWK = jwk
	if state == keyring.Retiring {
		f.RetiredAt = time.Now().Unix()
	}
	return f
}

// token makes an access token of the world's key.
func (w *world) token(change ...func(*keyring.Claims)) string {
	w.Helper()
	return w.tokenOf(w.key, keyring.AccessToken, change...)
}

func (w *world) tokenOf(k *keyring.Key, typ keyring.TokenType, change ...func(*keyring.Claims)) string {
	w.Helper()
	return keyringtest.TokenOf(w, k, typ, func(c *keyring.Claims) {
		for _, f := range change {
			f(c)
		}
	})
}

// reply is an HTTP answer, read whole.
type reply struct {
	*http.Response
	body string
}

func (r reply) json(t testing.TB) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(r.body), &m); err != nil {
		t.Fatalf("body %q is no JSON object: %v", r.body, err)
	}
	return m
}

// host is a server of the agent, and a client that reaches it.
type host struct {
	t    testing.TB
	dial func() (net.Conn, error)
	http *http.Client
}

// listen serves the agent on "mem", "tcp" or "unix" until the test ends.
func (w *world) listen(network string) *host {
	w.Helper()
	return serveOn(w, w.agent.Server(), network)
}

func serveOn(t testing.TB, srv *fasthttp.Server, network string) *host {
	t.Helper()
	h := &host{t: t}
	var ln net.Listener
	switch network {
	case "mem":
		mem := fasthttputil.NewInmemoryListener()
		ln, h.dial = mem, mem.Dial
	case "tcp", "unix":
		addr := "127.0.0.1:0"
		if network == "unix" {
			addr = filepath.Join(t.TempDir(), "agent.sock")
		}
		var err error
		if ln, err = net.Listen(network, addr); err != nil {
			t.Fatalf("Listen(%s): %v", network, err)
		}
		h.dial = func() (net.Conn, error) { return net.Dial(network, ln.Addr().String()) }
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return h.dial() }}
	h.http = &http.Client{Transport: transport}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := srv.ShutdownWithContext(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return h
}

// do sends a request; header has "Name: value" lines.
func (h *host) do(method, path, body string, header ...string) reply {
	h.t.Helper()
	req, err := http.NewRequest(method, "http://agent"+path, strings.NewReader(body))
	if err != nil {
		h.t.Fatalf("NewRequest: %v", err)
	}
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		req.Header.Add(name, value)
	}
	resp, err := h.http.Do(req)
	if err != nil {
		h.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatalf("%s %s: reading the body: %v", method, path, err)
	}
	return reply{resp, string(b)}
}

// verify sends a token to /v1/verify, in a JSON body.
func (h *host) verify(token string) reply {
	h.t.Helper()
	body, err := json.Marshal(map[string]string{"token": token})
	if err != nil {
		h.t.Fatal(err)
	}
	return h.do("POST", "/v1/verify", string(body), "Content-Type: application/json")
}

// raw sends bytes as they are and gives all that comes back until the server closes.
func (h *host) raw(request string) string {
	h.t.Helper()
	c, err := h.dial()
	if err != nil {
		h.t.Fatalf("dialling: %v", err)
	}
	sent := make(chan struct{})
	go func() { // the server may answer and close before it has read everything
		defer close(sent)
		_, _ = c.Write([]byte(request))
	}()
	defer func() { _ = c.Close(); <-sent }()
	b, err := io.ReadAll(c)
	if err != nil && !strings.Contains(err.Error(), "reset") {
		h.t.Fatalf("reading: %v", err)
	}
	return string(b)
}

// safeBuffer is a log's output, readable while it is written.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
