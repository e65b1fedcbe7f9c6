package bus

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// healthEvery is the time between two looks at the bus. Each is three small requests, whatever the size of the fleet.
const healthEvery = 10 * time.Second

// Monitor looks at the bus now and then, and tells what it saw last: to metrics (it is a prometheus.Collector) and to a
// status. Neither makes the bus work, however often it is asked.
type Monitor struct {
	Conn     *Conn
	Reader   *Reader
	Embedded *Server                                   // nil: an existing NATS
	Sync     func(context.Context) (Durability, error) // asks an existing NATS; nil: it cannot be known here

	seen atomic.Pointer[Health]
}

// Run looks until ctx ends.
func (m *Monitor) Run(ctx context.Context) {
	for {
		m.look(ctx)
		if !sleep(ctx, healthEvery) {
			return
		}
	}
}

func (m *Monitor) look(ctx context.Context) {
	sync := Unknown
	if m.Sync != nil && m.Embedded == nil {
		if d, err := m.Sync(ctx); err == nil {
			sync = d
		}
	}
	m.seen.Store(LookAtHealth(ctx, m.Conn, m.Reader, m.Embedded, sync))
}

// Health gives what was seen last, nil before the first look. Nobody may change it.
func (m *Monitor) Health() *Health { return m.seen.Load() }

func busDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("sidekey_bus_"+name, help, labels, nil)
}

// What a Monitor tells as metrics.
var (
	busConnected   = busDesc("connected", "1 while this issuer is connected to the bus.")
	busReconnects  = busDesc("reconnects_total", "Times that this issuer found the bus again.")
	busSynced      = busDesc("synced", "1 where the bus syncs a write before it acknowledges it; 0: it does not. Absent where this issuer cannot know.")
	busStore       = busDesc("store_bytes", "JetStream's bytes on disk, of the issuers' account.")
	busStoreLimit  = busDesc("store_limit_bytes", "The bytes that it may have; absent where there is no limit.")
	busStreamBytes = busDesc("stream_bytes", "Bytes of a stream.", "stream")
	busStreamMsgs  = busDesc("stream_messages", "Messages of a stream.", "stream")
	busLeader      = busDesc("stream_has_leader", "1 while a stream has a leader.", "stream")
	busBehind      = busDesc("stream_replicas_behind", "Copies of a stream that are not current, or offline.", "stream")
	busLag         = busDesc("stream_lag", "Entries that the copy of a stream lacks which is farthest behind.", "stream")
	busFirst       = busDesc("log_first_seq", "The oldest entry of the log that the bus holds.")
	busLast        = busDesc("log_last_seq", "The newest entry of the log that the bus holds.")
	busCheckTime   = busDesc("checkpoint_timestamp_seconds", "When the newest checkpoint was written.")
	busCheckBytes  = busDesc("checkpoint_bytes", "Size of the newest checkpoint.")
	busCheckSeq    = busDesc("checkpoint_seq", "The entry that the newest checkpoint covers.")
	busLooked      = busDesc("looked_timestamp_seconds", "When this issuer last looked at the bus.")
	busFailed      = busDesc("look_failed", "1 where the last look did not get all answers.")
	busConns       = busDesc("server_connections", "Connections of the embedded server.")
	busLeafs       = busDesc("server_leafs", "Leaf nodes of the embedded server.")
	busRoutes      = busDesc("server_routes", "Routes of the embedded server to the others of its cluster.")
	busCluster     = busDesc("server_cluster_size", "Servers of the embedded server's cluster; 0: no cluster.")
	busMeta        = busDesc("server_has_meta_leader", "1 while the embedded server's cluster has a leader, or there is no cluster.")
	busSlow        = busDesc("server_slow_consumers_total", "Connections that the embedded server cut since they did not keep up.")
	busAPIErrors   = busDesc("server_api_errors_total", "Requests to JetStream of the embedded server that failed.")
)

// Describe is prometheus.Collector's.
func (m *Monitor) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		busConnected, busReconnects, busSynced, busStore, busStoreLimit, busStreamBytes, busStreamMsgs, busLeader, busBehind, busLag, busFirst, busLast,
		busCheckTime, busCheckBytes, busCheckSeq, busLooked, busFailed, busConns, busLeafs, busRoutes, busCluster, busMeta, busSlow, busAPIErrors,
	} {
		ch <- d
	}
}

// Collect is prometheus.Collector's. What was not seen is left out, so that an alert on absence finds it.
func (m *Monitor) Collect(ch chan<- prometheus.Metric) {
	h := m.Health()
	if h == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v)
	}
	gauge(busConnected, yes(m.Conn.Connected()))
	count(busReconnects, float64(m.Conn.nc.Stats().Reconnects))
	if h.Sync != Unknown { // as on an issuer that joined another's embedded server: that one knows
		gauge(busSynced, yes(h.Sync == Synced))
	}
	gauge(busLooked, float64(h.At.UnixMilli())/1000)
	gauge(busFailed, yes(h.Error != ""))
	if s := h.Embedded; s != nil {
		srv := m.Embedded.srv // what it counts by itself is of now
		gauge(busConns, float64(srv.NumClients()))
		gauge(busLeafs, float64(srv.NumLeafNodes()))
		gauge(busRoutes, float64(srv.NumRoutes()))
		gauge(busCluster, float64(s.ClusterSize))
		gauge(busMeta, yes(s.ClusterSize <= 1 || s.MetaLeader != ""))
		count(busSlow, float64(s.SlowConsumers))
		count(busAPIErrors, float64(s.APIErrors))
	}
	if c := h.Checkpoint; c != nil {
		gauge(busCheckTime, float64(c.Time.UnixMilli())/1000)
		gauge(busCheckBytes, float64(c.Bytes))
		gauge(busCheckSeq, float64(c.Seq))
	}
	if len(h.Streams) == 0 {
		return
	}
	gauge(busStore, float64(h.Used))
	if h.Limit > 0 {
		gauge(busStoreLimit, float64(h.Limit))
	}
	gauge(busFirst, float64(h.First))
	gauge(busLast, float64(h.Last))
	for _, s := range h.Streams {
		gauge(busStreamBytes, float64(s.Bytes), s.Name)
		gauge(busStreamMsgs, float64(s.Messages), s.Name)
		gauge(busLeader, yes(s.Leader), s.Name)
		gauge(busBehind, float64(s.Behind), s.Name)
		gauge(busLag, float64(s.Lag), s.Name)
	}
}

func yes(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
