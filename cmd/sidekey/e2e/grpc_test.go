package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// grpcDoors are the addresses of one agent's agent.grpc_listen, and connections to each.
type grpcDoors struct {
	host                    *host
	agent                   *process
	socket, clear, tlsEvery string
	conns                   map[string]*grpc.ClientConn
	pool                    *x509.CertPool
}

// newGRPCDoors starts an agent with a certificate that listens for gRPC on a socket, on loopback, and on every interface.
func newGRPCDoors(t *testing.T) *grpcDoors {
	t.Helper()
	files := writeFiles(t, map[string]string{})
	d := &grpcDoors{
		host: newHost(t), socket: filepath.Join(t.TempDir(), "grpc.sock"), clear: "127.0.0.1:" + freePort(t), pool: x509.NewCertPool(),
		conns: map[string]*grpc.ClientConn{},
	}
	port := freePort(t)
	d.tlsEvery = "127.0.0.1:" + port
	cert, err := os.ReadFile(filepath.Join(files, "cert.pem"))
	if err != nil || !d.pool.AppendCertsFromPEM(cert) {
		t.Fatalf("reading the certificate: %v", err)
	}
	d.agent, _ = d.host.agent("door", "SIDEKEY_AGENT_TLS_CERT="+files+"/cert.pem", "SIDEKEY_AGENT_TLS_KEY="+files+"/key.pem",
		"SIDEKEY_AGENT_GRPC_LISTEN=unix:"+d.socket+","+d.clear+",0.0.0.0:"+port)
	overTLS := credentials.NewTLS(&tls.Config{RootCAs: d.pool, ServerName: "localhost"})
	for target, creds := range map[string]credentials.TransportCredentials{"unix:" + d.socket: insecure.NewCredentials(), d.clear: insecure.NewCredentials(), d.tlsEvery: overTLS} {
		d.conns[target] = dialGRPC(t, target, creds)
	}
	return d
}

func dialGRPC(t *testing.T, target string, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// envoyAsks is what Envoy asks with encode_raw_headers.
func envoyAsks(header ...string) *authv3.CheckRequest {
	list := new(corev3.HeaderMap)
	for _, line := range append([]string{":method: GET", ":authority: app.example", ":path: /orders", ":scheme: https"}, header...) {
		name, value, _ := strings.Cut(line, ": ")
		list.Headers = append(list.Headers, &corev3.HeaderValue{Key: name, RawValue: []byte(value)})
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{
		Http: &authv3.AttributeContext_HttpRequest{Method: "GET", Scheme: "https", Host: "app.example", Path: "/orders", HeaderMap: list},
	}}}
}

// envoyTold is the status of an answer, and the reason, or at 200 the subject.
func envoyTold(answer *authv3.CheckResponse) string {
	code, headers, want := 200, answer.GetOkResponse().GetHeaders(), "x-auth-subject"
	if denied := answer.GetDeniedResponse(); denied != nil {
		code, headers, want = int(denied.GetStatus().GetCode()), denied.GetHeaders(), "sidekey-reason"
	}
	if (answer.GetStatus().GetCode() == int32(codes.OK)) != (code == 200) {
		return "an answer that contradicts itself: " + answer.String()
	}
	for _, h := range headers {
		if h.GetHeader().GetKey() == want {
			return fmt.Sprint(code, " ", h.GetHeader().GetValue())
		}
	}
	return fmt.Sprint(code)
}

// TestGRPCProcess asks a real agent over gRPC as Envoy does, at each kind of address: what is served, what is not, and how it ends.
func TestGRPCProcess(t *testing.T) {
	need(t)
	d := newGRPCDoors(t)
	token := d.host.login("alice")
	t.Run("decisions", func(t *testing.T) { d.decisions(t, token) })
	t.Run("services", d.services)
	t.Run("TLS", d.overTLS)
	t.Run("in clear beyond loopback", d.refusesClear)
	t.Run("a named set", d.namedSet)
	t.Run("revoked", func(t *testing.T) {
		d.host.sidekey("revoke", "--token", token, "--wait")
		d.asks(t, "a revoked token", "401 revoked", "authorization: Bearer "+token)
	})
	t.Run("SIGTERM during calls", func(t *testing.T) { d.ends(t, d.host.login("bob")) })
}

// asks asks at every address.
func (d *grpcDoors) asks(t *testing.T, what, want string, header ...string) {
	t.Helper()
	for at, conn := range d.conns {
		got, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), envoyAsks(header...))
		if err != nil || !strings.HasPrefix(envoyTold(got), want) {
			t.Errorf("%s, %s: got %q (%v), want %q", at, what, envoyTold(got), err, want)
		}
	}
}

func (d *grpcDoors) decisions(t *testing.T, token string) {
	good := "authorization: Bearer " + token
	d.asks(t, "a token", "200 ", good, "x-auth-subject: mallory")
	d.asks(t, "nobody", "401 missing")
	d.asks(t, "a token that is none", "401 malformed", "authorization: Bearer x")
	d.asks(t, "two tokens", "403 ambiguous_request", good, good)
	got, err := authv3.NewAuthorizationClient(d.conns[d.clear]).Check(t.Context(), envoyAsks(good, "x_auth_subject: mallory"))
	if err != nil {
		t.Fatal(err)
	}
	if told := envoyTold(got); strings.Contains(told, "mallory") || !slices.Contains(got.GetOkResponse().GetHeadersToRemove(), "x_auth_subject") {
		t.Errorf("the client's own identity: got %q, removed %q", told, got.GetOkResponse().GetHeadersToRemove())
	}
	if sub := got.GetDynamicMetadata().AsMap()["subject"]; sub == nil || "200 "+sub.(string) != envoyTold(got) {
		t.Errorf("metadata: subject %v, want that of %q", sub, envoyTold(got))
	}
}

// namedSet: a route's context_extensions name the set of the log that decides, and nothing that a client sends does.
func (d *grpcDoors) namedSet(t *testing.T) {
	dir := writeFiles(t, map[string]string{"open.toml": "[[rules]]\nname = \"open\"\npaths = [\"/orders\"]\nallow = \"anyone\"\n"})
	d.host.sidekey("rules", "push", "open", filepath.Join(dir, "open.toml"), "--wait")
	d.asks(t, "no name", "401 missing", "sidekey.rules: open", "x-sidekey-rules: open")
	for at, conn := range d.conns {
		for name, want := range map[string]string{"open": "200", "other": "403 no_rule"} {
			req := envoyAsks()
			req.Attributes.ContextExtensions = map[string]string{"sidekey.rules": name}
			got, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), req)
			if err != nil || !strings.HasPrefix(envoyTold(got), want) {
				t.Errorf("%s, the set %s: got %q (%v), want %q", at, name, envoyTold(got), err, want)
			}
		}
	}
}

// services: health by both its names, and nothing that tells what else is here.
func (d *grpcDoors) services(t *testing.T) {
	for at, conn := range d.conns {
		for _, service := range []string{"", "envoy.service.auth.v3.Authorization"} {
			got, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{Service: service})
			if err != nil || got.GetStatus() != healthv1.HealthCheckResponse_SERVING {
				t.Errorf("%s: health of %q: %v (%v)", at, service, got, err)
			}
		}
		for method, want := range map[string]codes.Code{
			"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      codes.Unimplemented,
			"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": codes.Unimplemented,
			"/grpc.channelz.v1.Channelz/GetServers":                          codes.Unimplemented,
			"/envoy.service.auth.v2.Authorization/Check":                     codes.Unimplemented,
		} {
			if err := conn.Invoke(t.Context(), method, new(healthv1.HealthCheckRequest), new(healthv1.HealthCheckResponse)); status.Code(err) != want {
				t.Errorf("%s: %s: got %v, want %s", at, method, err, want)
			}
		}
	}
}

// overTLS: beyond loopback nothing but TLS 1.2 and newer with HTTP/2; on this host nothing but clear.
func (d *grpcDoors) overTLS(t *testing.T) {
	trusting := credentials.NewTLS(&tls.Config{RootCAs: d.pool, ServerName: "localhost"})
	for what, conn := range map[string]*grpc.ClientConn{
		"in clear where TLS is": dialGRPC(t, d.tlsEvery, insecure.NewCredentials()),
		"TLS where clear is":    dialGRPC(t, d.clear, trusting),
		"another's certificate": dialGRPC(t, d.tlsEvery, credentials.NewTLS(&tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost"})),
		"TLS by another's name": dialGRPC(t, d.tlsEvery, credentials.NewTLS(&tls.Config{RootCAs: d.pool, ServerName: "other.test"})),
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		_, err := authv3.NewAuthorizationClient(conn).Check(ctx, envoyAsks())
		cancel()
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%s: got %v, want Unavailable", what, err)
		}
	}
	for what, cfg := range map[string]*tls.Config{
		"SMTP":    {RootCAs: d.pool, ServerName: "localhost", NextProtos: []string{"smtp"}},
		"TLS 1.1": {RootCAs: d.pool, ServerName: "localhost", NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
	} {
		if c, err := tls.Dial("tcp", d.tlsEvery, cfg); err == nil {
			c.Close()
			t.Errorf("%s was taken", what)
		}
	}
}

// refusesClear: without a certificate no agent begins to listen beyond loopback.
func (d *grpcDoors) refusesClear(t *testing.T) {
	for _, address := range []string{"0.0.0.0:" + freePort(t), ":" + freePort(t), "[::]:" + freePort(t), "app.example:7462"} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		cmd := exec.CommandContext(ctx, binary, "agent", "--agent-data-dir", t.TempDir(), "--agent-grpc-listen", address)
		out, err := cmd.CombinedOutput()
		cancel()
		if err == nil || !strings.Contains(string(out), fmt.Sprintf("agent.grpc_listen: refusing to listen on %q in clear", address)) {
			t.Errorf("%s: got %v and %s", address, err, out)
		}
	}
}

// ends: told to stop, the agent takes no more calls, answers those under way, waits for others no longer than it says, and ends well.
// Callers are answered rightly or told that it is away, nothing else.
func (d *grpcDoors) ends(t *testing.T, token string) {
	good := envoyAsks("authorization: Bearer " + token)
	var asked, right atomic.Int64
	var enough atomic.Bool
	var callers sync.WaitGroup
	for at, conn := range d.conns {
		for range 4 {
			callers.Go(func() {
				for !enough.Load() {
					got, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), good)
					asked.Add(1)
					switch {
					case status.Code(err) == codes.Unavailable:
						return
					case err != nil || !strings.HasPrefix(envoyTold(got), "200 "):
						t.Errorf("%s: got %q (%v)", at, envoyTold(got), err)
						return
					}
					right.Add(1)
				}
			})
		}
	}
	watch, err := healthv1.NewHealthClient(d.conns[d.clear]).Watch(t.Context(), new(healthv1.HealthCheckRequest))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := watch.Recv(); err != nil || got.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Fatalf("watching: %v (%v)", got, err)
	}
	ours, endless := holdCall(t, d.socket, good), holdCall(t, d.socket, good)
	await(t, "callers that are answered", func() error {
		if right.Load() < 100 {
			return fmt.Errorf("%d were", right.Load())
		}
		return nil
	})
	began := time.Now()
	if err := d.agent.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ours.await(t, "to be told that the connection ends", ours.goneAway)
	enough.Store(true) // what is left of the agent's 5s is for the call that is held, also on a busy machine
	callers.Wait()
	if _, err := net.Dial("tcp", d.clear); err == nil {
		await(t, "the door to close", func() error {
			c, err := net.Dial("tcp", d.clear)
			if err == nil {
				c.Close()
				return fmt.Errorf("it is open")
			}
			return nil
		})
	}
	if got := ours.finish(t); !strings.HasPrefix(got, "200 ") {
		t.Errorf("the call that was under way: got %q", got)
	}
	if got, err := watch.Recv(); err != nil || got.GetStatus() != healthv1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("watching: got %v (%v), want NOT_SERVING", got, err)
	}
	endless.await(t, "to be cut off", endless.closed)
	select {
	case <-d.agent.ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the agent does not end")
	}
	took := time.Since(began)
	t.Logf("%d calls, %d of them answered before the end; it ended %s after SIGTERM, with a call that never does", asked.Load(), right.Load(), took.Round(time.Millisecond))
	if took < 4*time.Second || took > 15*time.Second {
		t.Errorf("it ended after %s, want the 5s that it waits", took)
	}
	if code := d.agent.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit status: got %d, want 0", code)
	}
	if _, err := os.Stat(d.socket); err == nil {
		t.Errorf("the socket is left behind")
	}
}
