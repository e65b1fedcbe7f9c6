package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
)

// Bounds of asking how the bus is.
const (
	healthWithin = 3 * time.Second
	maxStreams   = 64 // sidekey has about a dozen
)

// Health is how the bus is, as one issuer sees it. Streams are there with any NATS, Server only where it is in this process.
type Health struct {
	At         time.Time  `json:"-"`                // when it was looked at
	Connected  bool       `json:"connected"`        // of this issuer, then
	ServerName string     `json:"server,omitempty"` // that it is connected to
	Version    string     `json:"version,omitempty"`
	Sync       Durability `json:"sync"`              // whether it syncs before it acknowledges
	Used       uint64     `json:"store_bytes"`       // that JetStream has on disk for this account
	Limit      int64      `json:"store_limit_bytes"` // that it may have; 0: not known, or none
	Error      string     `json:"error,omitempty"`   // why something is missing

	First    uint64       `json:"log_first_seq"`
	Last     uint64       `json:"log_last_seq"`
	LogBytes uint64       `json:"log_bytes"`
	Leader   string       `json:"log_leader,omitempty"` // the server that leads the log; "": a single server
	Peers    []PeerHealth `json:"log_peers,omitempty"`  // those that follow it

	Checkpoint *CheckpointInfo `json:"checkpoint"`         // nil: there is none yet
	Leaderless int             `json:"leaderless"`         // streams without a leader
	Lagging    int             `json:"replicas_behind"`    // copies of streams that are not current, or offline
	Embedded   *ServerHealth   `json:"embedded,omitempty"` // nil: an existing NATS
	Streams    []StreamHealth  `json:"streams"`            // ordered by name
}

// StreamHealth is one stream of sidekey's.
type StreamHealth struct {
	Name     string `json:"name"` // without prefix: log, checkpoint, grants, audit, or a bucket's
	Messages uint64 `json:"messages"`
	Bytes    uint64 `json:"bytes"`
	Replicas int    `json:"replicas"` // that it is configured with
	Leader   bool   `json:"leader"`   // it has one; always, with a single server
	Behind   int    `json:"behind"`   // copies that are not current, or offline
	Lag      uint64 `json:"lag"`      // entries that the copy farthest behind lacks
}

// PeerHealth is a server that follows the leader of the log.
type PeerHealth struct {
	Name    string `json:"name"`
	Current bool   `json:"current"`
	Offline bool   `json:"offline"`
	Lag     uint64 `json:"lag"`
}

// ServerHealth is how the server in this process is.
type ServerHealth struct {
	Name          string `json:"name"`
	Connections   int    `json:"connections"`
	Leafs         int    `json:"leafs"`
	Routes        int    `json:"routes"`
	SlowConsumers int64  `json:"slow_consumers"` // since its start
	Subscriptions uint32 `json:"subscriptions"`
	StoreBytes    uint64 `json:"store_bytes"`       // JetStream's on this server's disk
	StoreLimit    int64  `json:"store_limit_bytes"` // what it lets itself have
	APIErrors     uint64 `json:"api_errors"`
	MetaLeader    string `json:"meta_leader,omitempty"` // of the cluster; "": none, or no cluster
	ClusterSize   int    `json:"cluster_size"`          // 0: no cluster
}

// CheckpointInfo is what is known of the newest checkpoint without reading it.
type CheckpointInfo struct {
	Seq   uint64    `json:"seq"`
	Bytes int       `json:"bytes"`
	Time  time.Time `json:"time"` // when it was written, by its writer's clock
}

// NewestCheckpoint tells of the newest checkpoint; ErrNotFound: there is none.
func (r *Reader) NewestCheckpoint(ctx context.Context) (*CheckpointInfo, error) {
	m, _, err := r.manifest(ctx)
	if err != nil {
		return nil, err
	}
	return &CheckpointInfo{Seq: m.Seq, Bytes: m.Size, Time: time.UnixMilli(m.Time)}, nil
}

// Health tells how the embedded server is. It asks nobody else.
func (s *Server) Health() ServerHealth {
	h := ServerHealth{
		Name: s.srv.Name(), Connections: s.srv.NumClients(), Leafs: s.srv.NumLeafNodes(), Routes: s.srv.NumRoutes(),
		SlowConsumers: s.srv.NumSlowConsumers(), Subscriptions: s.srv.NumSubscriptions(),
	}
	if js, err := s.srv.Jsz(&server.JSzOptions{}); err == nil { // off, or stopped
		h.StoreBytes, h.StoreLimit, h.APIErrors = js.Store, js.Config.MaxStore, js.API.Errors
		if js.Meta != nil {
			h.MetaLeader, h.ClusterSize = js.Meta.Leader, js.Meta.Size
		}
	}
	return h
}

// LookAtHealth asks the bus how it is. It always gives what is known; Error says what is not. embedded is the server of
// this process, nil: there is none; sync what is known of the durability.
func LookAtHealth(ctx context.Context, c *Conn, r *Reader, embedded *Server, sync Durability) *Health {
	ctx, cancel := context.WithTimeout(ctx, healthWithin)
	defer cancel()
	h := &Health{At: time.Now(), Sync: sync, Connected: c.Connected(), Streams: []StreamHealth{}}
	if embedded != nil {
		s := embedded.Health()
		h.Embedded, h.Sync = &s, Synced
	}
	if !h.Connected {
		h.Error = "this issuer is not connected to the bus"
		return h
	}
	h.ServerName, h.Version = c.nc.ConnectedServerName(), c.nc.ConnectedServerVersion()
	var err error
	if err = h.readStreams(ctx, c); err == nil {
		h.Checkpoint, err = r.NewestCheckpoint(ctx)
	}
	if errors.Is(err, ErrNotFound) {
		err = nil
	}
	if err == nil {
		err = h.readAccount(ctx, c)
	}
	if err != nil {
		h.Error = err.Error()
	}
	return h
}

// readAccount reads what JetStream holds for the issuers' account.
func (h *Health) readAccount(ctx context.Context, c *Conn) error {
	info, err := c.js.AccountInfo(ctx)
	if err != nil {
		return fmt.Errorf("asking for the account's storage: %w", err)
	}
	h.Used, h.Limit = info.Store, max(info.Limits.MaxStore, 0)
	for _, tier := range info.Tiers { // an account with tiers has its figures there
		h.Used, h.Limit = h.Used+tier.Store, h.Limit+max(tier.Limits.MaxStore, 0)
	}
	if h.Limit == 0 && h.Embedded != nil {
		h.Limit = h.Embedded.StoreLimit
	}
	return nil
}

// readStreams reads the streams of sidekey's, and passes over others that an existing NATS may have.
func (h *Health) readStreams(ctx context.Context, c *Conn) error {
	lister := c.js.ListStreams(ctx)
	for info := range lister.Info() {
		name, ours := c.subjects.streamLabel(info.Config.Name)
		if !ours || len(h.Streams) == maxStreams {
			continue
		}
		s := StreamHealth{Name: name, Messages: info.State.Msgs, Bytes: info.State.Bytes, Replicas: info.Config.Replicas, Leader: true}
		var peers []PeerHealth
		if info.Cluster != nil {
			s.Leader = info.Cluster.Leader != "" || info.Config.Replicas <= 1 && info.Cluster.Name == ""
			for _, p := range info.Cluster.Replicas {
				peers = append(peers, PeerHealth{p.Name, p.Current && !p.Offline, p.Offline, p.Lag})
				if !p.Current || p.Offline {
					s.Behind++
				}
				s.Lag = max(s.Lag, p.Lag)
			}
		}
		h.take(s, info, peers)
	}
	slices.SortFunc(h.Streams, func(a, b StreamHealth) int { return strings.Compare(a.Name, b.Name) })
	if err := lister.Err(); err != nil {
		return fmt.Errorf("listing the bus's streams: %w", err)
	}
	return nil
}

// take adds a stream, and what is told of the log alone.
func (h *Health) take(s StreamHealth, info *jetstream.StreamInfo, peers []PeerHealth) {
	h.Streams = append(h.Streams, s)
	h.Lagging += s.Behind
	if !s.Leader {
		h.Leaderless++
	}
	if s.Name == streamLog {
		h.First, h.Last, h.LogBytes, h.Peers = info.State.FirstSeq, info.State.LastSeq, info.State.Bytes, peers
		if info.Cluster != nil {
			h.Leader = info.Cluster.Leader
		}
	}
}

// streamLog is the log's name among the streams.
const streamLog = "log"

// streamLabel is a stream's name without prefix; false: it is none of sidekey's. Only issuers make streams, so the
// names are a closed set.
func (s subjects) streamLabel(stream string) (string, bool) {
	name, ours := strings.CutPrefix(strings.TrimPrefix(stream, "KV_"), string(s)+"_")
	return name, ours && name != "" && len(name) <= 32
}
