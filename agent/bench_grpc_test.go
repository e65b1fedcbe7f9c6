package agent_test

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/sidekey/sidekey/bus"
)

// repeatCheck sends a check n times for each of several callers, all over one connection, as a worker of Envoy's does.
func repeatCheck(address string, request []byte, n int) error {
	req := new(authv3.CheckRequest)
	if err := proto.Unmarshal(request, req); err != nil {
		return err
	}
	conn, err := grpc.NewClient("unix:"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := authv3.NewAuthorizationClient(conn)
	failed := make(chan error, connections)
	for range connections {
		go func() {
			for range n {
				answer, err := client.Check(context.Background(), req)
				if err != nil || codes.Code(answer.GetStatus().GetCode()) != codes.OK {
					failed <- err
					return
				}
			}
			failed <- nil
		}()
	}
	for range connections {
		if err := <-failed; err != nil {
			return err
		}
	}
	return nil
}

// constant answers every check alike.
type constant struct {
	authv3.UnimplementedAuthorizationServer
	answer *authv3.CheckResponse
}

func (c constant) Check(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return c.answer, nil
}

// BenchmarkExtAuthz measures the server's CPU time for a check by gRPC over a unix socket, of a cached token and of an API key. The floor is
// grpc-go with a handler that does nothing: it is sent the same request, and answers as many bytes, encoded beforehand.
func BenchmarkExtAuthz(b *testing.B) {
	w := newWorld(b)
	w.rules("[[rules]]\nname='r'\npaths=['/api/v150/**']\nrequire={scopes=['read']}")
	w.credential(bus.APIKey, "key0-good-and-long-enough-to-be-one")
	common := []string{
		"accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "accept-encoding: gzip, deflate, br", "accept-language: en-US,en;q=0.5",
		"x-forwarded-for: 203.0.113.9", "x-forwarded-proto: https", "x-request-id: 5b6f2c1e-6a3c-4d5e-9f00-3d1c8f6b7a90", "cookie: theme=dark; _ga=GA1.1.1234567890.1700000000",
	}
	for name, credential := range map[string]string{"bearer": "authorization: Bearer " + w.token(), "api_key": "x-api-key: key0-good-and-long-enough-to-be-one"} {
		b.Run(name, func(b *testing.B) {
			req := envoyAsks("GET app.example/api/v150/7/items?page=2", append(common, credential)...)
			request, err := proto.Marshal(req)
			if err != nil {
				b.Fatal(err)
			}
			answer := w.envoy().check(req)
			wantTold(b, name, answer, 200, name)
			encoded, err := proto.Marshal(answer.CheckResponse)
			if err != nil {
				b.Fatal(err)
			}
			same := new(authv3.CheckResponse)
			same.ProtoReflect().SetUnknown(encoded)
			bare := grpc.NewServer()
			authv3.RegisterAuthorizationServer(bare, constant{answer: same})
			b.ReportMetric(float64(len(request)), "B-request")
			b.ReportMetric(float64(len(encoded)), "B-answer")
			load := func(serve func(net.Listener) error, stop func()) func(int) time.Duration {
				ln, err := net.Listen("unix", filepath.Join(b.TempDir(), "s"))
				if err != nil {
					b.Fatal(err)
				}
				done := make(chan error, 1)
				go func() { done <- serve(ln) }()
				b.Cleanup(func() { stop(); <-done })
				return func(n int) time.Duration { return served(b, "grpc", ln.Addr().String(), string(request), n) }
			}
			srv := w.agent.GRPCServer()
			compare(b, max(b.N, 20_000), load(bare.Serve, bare.Stop), load(srv.Serve, func() { srv.Shutdown(b.Context()) }))
		})
	}
}
