package agent_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/keyring"
)

// TestGRPCBounds: what is more than a proxy sends is refused, without harm to others, and nothing else is served.
func TestGRPCBounds(t *testing.T) {
	w := newWorld(t)
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	_, conn := w.serveGRPC(ln)
	e := &envoy{w, authv3.NewAuthorizationClient(conn)}
	good := "authorization: Bearer " + w.token()
	for _, c := range []struct {
		size   int
		status int // 0: an error
	}{{200 << 10, 200}, {300 << 10, 0}} {
		req := envoyAsks("POST h/", good)
		req.Attributes.Request.Http.RawBody = make([]byte, c.size)
		got, err := e.client.Check(t.Context(), req)
		if c.status == 0 {
			if status.Code(err) != codes.ResourceExhausted {
				t.Errorf("%d bytes: got %v, want ResourceExhausted", c.size, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%d bytes: %v", c.size, err)
			continue
		}
		wantTold(t, "a body", tell(t, got), c.status, "bearer")
	}
	long := envoyAsks("GET h/"+strings.Repeat("a", 100_000), good)
	w.rules("[[rules]]\nname='r'\npaths=['/**']")
	wantTold(t, "a long path", e.check(long), 403, "ambiguous_request")
	for _, method := range []string{"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/envoy.service.auth.v2.Authorization/Check"} {
		if err := conn.Invoke(t.Context(), method, new(healthv1.HealthCheckRequest), new(healthv1.HealthCheckResponse)); status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: got %v, want Unimplemented", method, err)
		}
	}
	if log := w.log.String(); strings.Contains(log, w.token()[:20]) {
		t.Errorf("log: %s, want no token", log)
	}
}

// TestGRPCPanic: a check that fails inside is a denial, whatever Envoy makes of errors.
func TestGRPCPanic(t *testing.T) {
	w := newWorld(t)
	w.build(broken{w.rep})
	e := w.envoy()
	for range 2 {
		got := e.check(envoyAsks("GET h/", "authorization: Bearer "+w.token()))
		if got.status != 500 || codes.Code(got.GetStatus().GetCode()) != codes.Internal || strings.Contains(got.String(), "secret-in-a-panic") {
			t.Errorf("got %d %v, want 500 and Internal", got.status, got)
		}
	}
	if got := w.listen("unix").do("GET", "/metrics", "").body; !strings.Contains(got, "sidekey_agent_panics_total 2") || !strings.Contains(got, `sidekey_agent_http_requests_total{class="5xx",route="grpc"} 2`) {
		t.Errorf("metrics: want two panics and two answers of 5xx in %s", got)
	}
}

// TestGRPCTLS: the face over TLS, as cmd/sidekey serves it beyond loopback.
func TestGRPCTLS(t *testing.T) {
	w := newWorld(t)
	fake := httptest.NewUnstartedServer(nil) // it has a certificate
	fake.StartTLS()
	defer fake.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(fake.Certificate())
	creds := credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: "example.com"})
	_, conn := w.serveGRPC(tls.NewListener(ln, &tls.Config{Certificates: fake.TLS.Certificates, NextProtos: []string{"h2"}}), grpc.WithTransportCredentials(creds))
	e := &envoy{w, authv3.NewAuthorizationClient(conn)}
	wantTold(t, "over TLS", e.check(envoyAsks("GET h/", "authorization: Bearer "+w.token())), 200, "bearer")
}

// TestGRPCConnections: one connection more than are allowed is closed at once; a place that is left is taken again.
func TestGRPCConnections(t *testing.T) {
	w := newWorld(t, func(c *agent.Config) { c.MaxConnections = 1 })
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	_, conn := w.serveGRPC(ln)
	e := &envoy{w, authv3.NewAuthorizationClient(conn)}
	e.check(envoyAsks("GET h/"))
	more, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer more.Close()
	if n, err := io.Copy(io.Discard, more); n != 0 || err != nil {
		t.Errorf("one connection more: read %d bytes (%v), want it closed", n, err)
	}
	e.check(envoyAsks("GET h/"))
	_ = conn.Close()
	again, err := grpc.NewClient("unix:"+ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := authv3.NewAuthorizationClient(again).Check(t.Context(), envoyAsks("GET h/"), grpc.WaitForReady(true)); err != nil {
		t.Errorf("after the first has gone: %v", err)
	}
}

// pipes is a listener in memory, for a bubble.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	close sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.close.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
func (p *pipes) dial(context.Context, string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.conns <- server:
		return client, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// TestGRPCHealth: health follows the agent, and a shutdown.
func TestGRPCHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newStartingWorld(t)
		p := newPipes()
		srv, conn := w.serveGRPC(p, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(p.dial))
		health := healthv1.NewHealthClient(conn)
		want := func(when string, want healthv1.HealthCheckResponse_ServingStatus) {
			t.Helper()
			for _, service := range []string{"", "envoy.service.auth.v3.Authorization"} {
				if got, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: service}); err != nil || got.GetStatus() != want {
					t.Errorf("%s, %q: got %v (%v), want %v", when, service, got, err, want)
				}
			}
		}
		want("starting", healthv1.HealthCheckResponse_NOT_SERVING)
		if _, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "other"}); status.Code(err) != codes.NotFound {
			t.Errorf("another service: got %v, want NotFound", err)
		}
		watch, err := health.Watch(t.Context(), &healthv1.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		next := func(want healthv1.HealthCheckResponse_ServingStatus) {
			t.Helper()
			if got, err := watch.Recv(); err != nil || got.GetStatus() != want {
				t.Errorf("watch: got %v (%v), want %v", got, err, want)
			}
		}
		next(healthv1.HealthCheckResponse_NOT_SERVING)
		ctx, done := context.WithCancel(t.Context())
		if err := w.rep.Follow(ctx, emptyLog{done}); err != nil {
			t.Fatal(err)
		}
		w.apply(w.fact(w.key, keyring.Active))
		want("ready", healthv1.HealthCheckResponse_SERVING)
		next(healthv1.HealthCheckResponse_SERVING)
		w.lease.Store(nil)
		next(healthv1.HealthCheckResponse_NOT_SERVING)
		w.lease.Store(&endless)
		next(healthv1.HealthCheckResponse_SERVING)
		srv.Shutdown(t.Context())
		next(healthv1.HealthCheckResponse_NOT_SERVING)
		if _, err := watch.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("watch after a shutdown: got %v, want Unavailable", err)
		}
	})
}

// TestGRPCSlowClients: a client that does not send what it began is cut off, by a clock that runs as fast as it can.
func TestGRPCSlowClients(t *testing.T) {
	call := halfCall(t)
	for _, c := range []struct {
		name     string
		sends    []byte
		pongs    bool
		from, to time.Duration
	}{
		{"nothing", nil, false, 10 * time.Second, 10 * time.Second},
		{"half a preface", []byte(http2.ClientPreface[:10]), false, 10 * time.Second, 10 * time.Second},
		{"half a call, and it is gone", call, false, 30 * time.Second, 50 * time.Second},
		{"half a call, and it is there", call, true, 9 * time.Minute, 11*time.Minute + 15*time.Second}, // grpc-go's age is a tenth more or less; its grace begins with the answer to a ping
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				p := newPipes()
				_, conn := w.serveGRPC(p, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(p.dial))
				start := time.Now()
				client, err := p.dial(t.Context(), "")
				if err != nil {
					t.Fatal(err)
				}
				defer client.Close()
				go func() { _, _ = client.Write(c.sends) }()
				closed := make(chan time.Duration, 1)
				go func() { closed <- drain(client, c.pongs, start) }()
				time.Sleep(5 * time.Second)
				e := &envoy{w, authv3.NewAuthorizationClient(conn)}
				wantTold(t, "another client meanwhile", e.check(envoyAsks("GET h/")), 401, "missing")
				_ = conn.Close()
				if took := <-closed; took < c.from || took > c.to {
					t.Errorf("closed after %s, want %s to %s", took, c.from, c.to)
				}
			})
		})
	}
}

// halfCall is a connection's beginning and a check whose message never ends.
func halfCall(t *testing.T) []byte {
	t.Helper()
	var b, block bytes.Buffer
	b.WriteString(http2.ClientPreface)
	fr := http2.NewFramer(&b, nil)
	enc := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", authv3.Authorization_Check_FullMethodName}, {":authority", "a"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		if err := enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(
		fr.WriteSettings(),
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true}),
		fr.WriteData(1, false, []byte{0, 0, 0, 100, 0, 1, 2, 3}),
	); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// drain reads a connection to its end, and tells when that was. With pongs it answers pings.
func drain(c net.Conn, pongs bool, start time.Time) time.Duration {
	fr := http2.NewFramer(nil, c)
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return time.Since(start)
		}
		if ping, ok := f.(*http2.PingFrame); ok && pongs && !ping.IsAck() {
			data := ping.Data // the frame is the framer's until the next
			go func() { _ = http2.NewFramer(c, nil).WritePing(true, data) }()
		}
	}
}

// TestGRPCClientsGone: clients that go in the middle of a check leave nothing behind.
func TestGRPCClientsGone(t *testing.T) {
	w := newWorld(t)
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	_, conn := w.serveGRPC(ln)
	e := &envoy{w, authv3.NewAuthorizationClient(conn)}
	e.check(envoyAsks("GET h/"))
	before := runtime.NumGoroutine()
	call := halfCall(t)
	for range 200 {
		c, err := net.Dial("unix", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(call); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	e.check(envoyAsks("GET h/"))
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before+5; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines are left, before it were %d", runtime.NumGoroutine(), before)
		}
	}
}

// TestGRPCParallel asks at once by many callers: each gets its own answer.
func TestGRPCParallel(t *testing.T) {
	w := newWorld(t)
	e := w.envoy()
	var wg sync.WaitGroup
	for n := range 16 {
		name := fmt.Sprint("user", n)
		req := envoyAsks("GET h/", "authorization: Bearer "+w.token(func(c *keyring.Claims) { c.Subject = name }), fmt.Sprintf("x_auth_subject: %d", n))
		if n%2 == 0 {
			req = envoyAsks("GET h/", "authorization: Bearer "+w.token(func(c *keyring.Claims) { c.Subject = name }))
		}
		wg.Go(func() {
			for range 100 {
				got, err := e.client.Check(t.Context(), req)
				if err != nil {
					t.Errorf("Check: %v", err)
					return
				}
				if subject := tell(t, got).fields["x-auth-subject"]; len(subject) != 1 || subject[0] != name {
					t.Errorf("got %q, want %q", subject, name)
					return
				}
			}
		})
	}
	wg.Wait()
}
