package agent

import (
	"context"
	"net"
	"sync"
	"syscall"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// What a client may take of the gRPC face.
const (
	// maxCheckMessage is twice what Envoy takes of a client's fields (60 KiB, unless it is told otherwise), with room.
	maxCheckMessage = 256 << 10
	maxStreams      = 128 // of one connection, at once
	streamWindow    = 64 << 10
	connWindow      = 256 << 10
	maxCallHeader   = 16 << 10 // bytes of a call's own metadata

	grpcIdle = 5 * time.Minute
	// grpcAge ends a connection, after the calls on it: also the one whose call never comes to its end.
	grpcAge      = 10 * time.Minute
	grpcAgeGrace = 10 * time.Second

	healthPoll = time.Second
)

// GRPCServer serves Envoy's ext_authz and grpc.health.v1, and nothing else: there is no reflection. It serves one listener.
type GRPCServer struct {
	agent    *Agent
	server   *grpc.Server
	stopping chan struct{}
	once     sync.Once
}

// GRPCServer gives a new server with every bound set. TLS is the listener's matter; it must offer "h2" (ALPN).
func (a *Agent) GRPCServer() *GRPCServer {
	s := &GRPCServer{agent: a, stopping: make(chan struct{})}
	s.server = grpc.NewServer(
		grpc.MaxRecvMsgSize(maxCheckMessage),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxCallHeader),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connWindow),
		grpc.ConnectionTimeout(readTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: grpcIdle, MaxConnectionAge: grpcAge, MaxConnectionAgeGrace: grpcAgeGrace,
			Time: 30 * time.Second, Timeout: writeTimeout, // a client that is gone without a word
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	)
	authv3.RegisterAuthorizationServer(s.server, &envoyServer{agent: a})
	healthv1.RegisterHealthServer(s.server, &healthServer{s: s})
	return s
}

// Serve answers on ln until Shutdown, and closes it. One connection more than Config.MaxConnections is closed at once.
func (s *GRPCServer) Serve(ln net.Listener) error {
	return s.server.Serve(&boundedListener{Listener: ln, open: make(chan struct{}, s.agent.cfg.MaxConnections)})
}

// Shutdown takes no more calls, waits for those under way, and ends them when ctx does. It may be called twice.
func (s *GRPCServer) Shutdown(ctx context.Context) {
	s.once.Do(func() { close(s.stopping) })
	defer context.AfterFunc(ctx, s.server.Stop)()
	s.server.GracefulStop()
}

// boundedListener bounds the connections that are open at once.
type boundedListener struct {
	net.Listener
	open chan struct{}
}

func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.open <- struct{}{}:
		default:
			_ = c.Close()
			continue
		}
		bounded := &boundedConn{Conn: c, gone: sync.OnceFunc(func() { <-l.open })}
		if raw, ok := c.(syscall.Conn); ok { // grpc reads such a one without a buffer while it is idle
			return &struct {
				*boundedConn
				syscall.Conn
			}{bounded, raw}, nil
		}
		return bounded, nil
	}
}

type boundedConn struct {
	net.Conn
	gone func()
}

func (c *boundedConn) Close() error {
	err := c.Conn.Close()
	c.gone()
	return err
}

// healthServer is grpc.health.v1: SERVING while the agent vouches, as /readyz. "" and the name of ext_authz are one.
type healthServer struct {
	healthv1.UnimplementedHealthServer
	s *GRPCServer
}

func (h *healthServer) status() healthv1.HealthCheckResponse_ServingStatus {
	select {
	case <-h.s.stopping:
		return healthv1.HealthCheckResponse_NOT_SERVING
	default:
	}
	if h.s.agent.Ready() {
		return healthv1.HealthCheckResponse_SERVING
	}
	return healthv1.HealthCheckResponse_NOT_SERVING
}

func knownService(name string) bool {
	return name == "" || name == authv3.Authorization_ServiceDesc.ServiceName
}

// Check implements healthv1.HealthServer.
func (h *healthServer) Check(_ context.Context, req *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	if !knownService(req.GetService()) {
		return nil, status.Error(codes.NotFound, "there is no such service here")
	}
	return &healthv1.HealthCheckResponse{Status: h.status()}, nil
}

// Watch implements healthv1.HealthServer: it tells the state, and every change of it within a second.
func (h *healthServer) Watch(req *healthv1.HealthCheckRequest, to grpc.ServerStreamingServer[healthv1.HealthCheckResponse]) error {
	tick := time.NewTicker(healthPoll)
	defer tick.Stop()
	told := healthv1.HealthCheckResponse_UNKNOWN
	for {
		now := healthv1.HealthCheckResponse_SERVICE_UNKNOWN
		if knownService(req.GetService()) {
			now = h.status()
		}
		if now != told {
			if err := to.Send(&healthv1.HealthCheckResponse{Status: now}); err != nil {
				return err
			}
			told = now
		}
		select {
		case <-tick.C:
		case <-to.Context().Done():
			return to.Context().Err()
		case <-h.s.stopping:
			if told != healthv1.HealthCheckResponse_NOT_SERVING {
				_ = to.Send(&healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_NOT_SERVING}) // it may be gone
			}
			return status.Error(codes.Unavailable, "the agent stops")
		}
	}
}
