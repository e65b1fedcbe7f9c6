package agent

import (
	"fmt"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/valyala/fasthttp"
	"github.com/valyala/fasthttp/fasthttpadaptor"

	"github.com/sidekey/sidekey/keyring"
)

// accepted is the metric's reason of a token that was accepted.
const accepted keyring.Reason = "ok"

// metrics are the agent's counters, each resolved before the first request. No label's value
// comes from a client: reasons, routes and status classes are closed sets.
type metrics struct {
	registry   *prometheus.Registry
	collectors []prometheus.Collector

	verdicts map[keyring.Reason]prometheus.Counter
	vouched  prometheus.Counter // verdicts[accepted], which is the one on the hot path
	decided  *prometheus.CounterVec
	requests *prometheus.CounterVec
	panics   prometheus.Counter
	handler  fasthttp.RequestHandler
}

// newMetrics registers the agent's metrics. The error is the registry's: another agent's are
// there already.
func newMetrics(a *Agent, registry *prometheus.Registry) (*metrics, error) {
	m := &metrics{registry: registry, verdicts: make(map[keyring.Reason]prometheus.Counter)}
	verdicts := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sidekey_agent_verdicts_total",
		Help: `Tokens judged, by reason; "ok" were accepted.`,
	}, []string{"reason"})
	reasons := append([]keyring.Reason{accepted, InsufficientScope, Starting, Stale}, keyring.Reasons...)
	for _, r := range reasons {
		m.verdicts[r] = verdicts.WithLabelValues(string(r))
	}
	m.vouched = m.verdicts[accepted]
	m.decided = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sidekey_agent_authentications_total",
		Help: `Requests of the forward-auth faces, by the scheme that decided ("none": no scheme took it) and outcome.`,
	}, []string{"scheme", "outcome"})
	m.requests = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sidekey_agent_http_requests_total",
		Help: "Requests answered, by route and status class.",
	}, []string{"route", "class"})
	m.panics = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "sidekey_agent_panics_total",
		Help: "Requests that failed inside and were answered 500. Any at all is a bug.",
	})
	m.collectors = append(m.states(a), verdicts, m.decided, m.requests, m.panics)
	for i, c := range m.collectors {
		if err := registry.Register(c); err != nil {
			m.collectors = m.collectors[:i]
			m.unregister()
			return nil, fmt.Errorf("registering collector %d: %w", i, err)
		}
	}
	m.handler = fasthttpadaptor.NewFastHTTPHandler(promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		DisableCompression: true, MaxRequestsInFlight: 4,
	}))
	return m, nil
}

// states are the metrics that are read when they are asked for.
func (m *metrics) states(a *Agent) []prometheus.Collector {
	gauge := func(name, help string, read func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sidekey_agent_" + name, Help: help}, read)
	}
	counter := func(name, help string, read func() uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "sidekey_agent_" + name, Help: help},
			func() float64 { return float64(read()) })
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "sidekey_agent_info", Help: "1, with the binary's version.",
		ConstLabels: prometheus.Labels{"version": a.cfg.Version},
	})
	info.Set(1)
	return []prometheus.Collector{
		info,
		gauge("ready", "1 when the agent vouches for tokens.", func() float64 { return truth(a.Ready()) }),
		gauge("lease_seconds", "How long the lease in force lasts.", func() float64 { return float64(a.Status().Lease) / 1000 }),
		gauge("serving_stale", "1 while the agent goes on without a lease.", func() float64 { return truth(a.Status().Serving) }),
		gauge("log_fault", "1 while the agent does not believe the log, and so does not go on with it.", func() float64 { return truth(a.replica.Fault() != nil) }),
		gauge("keys", "Keys held.", func() float64 { return float64(len(a.replica.Snapshot().Ring.Records())) }),
		gauge("connected", "1 while the bus is connected.", func() float64 { return truth(a.connected()) }),
		gauge("clock_off_seconds", "How far the wall clock is ahead of the issuers' ticks; negative: behind.", func() float64 { return a.clockOff().Seconds() }),
		gauge("epoch", "The log's epoch.", func() float64 { return float64(a.replica.Snapshot().Position.Epoch) }),
		gauge("applied_seq", "The sequence applied.", func() float64 { return float64(a.replica.Snapshot().Position.Seq) }),
		gauge("head_seq", "The newest sequence known.", func() float64 { return float64(a.replica.Head()) }),
		gauge("revocations", "Revocations held.", func() float64 { return float64(a.replica.Revocations()) }),
		gauge("rules", "Rules in force by default.", func() float64 {
			if set := a.Rules(); set != nil {
				return float64(set.Len())
			}
			return 0
		}),
		gauge("rules_fault", "1 while the newest rules are not in force.", func() float64 {
			st := a.book.Load().status
			return truth(st != nil && st.Fault != "")
		}),
		gauge("cache_entries", "Proven tokens remembered.", func() float64 { return float64(a.cache.proofs.Len()) }),
		counter("cache_hits_total", "Tokens whose proof was remembered.", a.cache.hits.Load),
		counter("cache_misses_total", "Tokens that had to be proven.", a.cache.misses.Load),
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// verdict counts one; "" is an acceptance.
func (m *metrics) verdict(reason keyring.Reason) {
	if reason == "" {
		m.vouched.Inc()
		return
	}
	if c := m.verdicts[reason]; c != nil {
		c.Inc()
	}
}

func (m *metrics) unregister() {
	for _, c := range m.collectors {
		m.registry.Unregister(c)
	}
}

// noScheme is the label of a decision that no scheme has made.
const noScheme = "none"

// The outcomes of an authentication, in the order of their counters.
var outcomeNames = [...]string{"ok", "refused", "forbidden", "limited", "unavailable"}

// outcomes are one scheme's decisions by outcome.
type outcomes [len(outcomeNames)]prometheus.Counter

// schemes resolves the counters of the chain's schemes.
func (m *metrics) schemes(names []string) map[string]outcomes {
	all := make(map[string]outcomes)
	for _, name := range append([]string{noScheme}, names...) {
		var o outcomes
		for i, outcome := range outcomeNames {
			o[i] = m.decided.WithLabelValues(name, outcome)
		}
		all[name] = o
	}
	return all
}

// count counts a decision.
func (c *chain) count(d *Decision) {
	name, i := d.Scheme, 4
	if name == "" {
		name = noScheme
	}
	switch d.Status {
	case http.StatusOK:
		i = 0
	case http.StatusUnauthorized:
		i = 1
	case http.StatusForbidden:
		i = 2
	case http.StatusTooManyRequests:
		i = 3
	}
	o := c.meter[name]
	o[i].Inc()
}

// classes are the status classes that are counted apart.
var classes = [...]string{"1xx", "2xx", "3xx", "4xx", "5xx"}

// routeCounters are one route's requests by status class.
type routeCounters [len(classes)]prometheus.Counter

func (m *metrics) route(name string) routeCounters {
	var c routeCounters
	for i, class := range classes {
		c[i] = m.requests.WithLabelValues(name, class)
	}
	return c
}

// count counts a request by the status that was answered.
func (c *routeCounters) count(status int) {
	if i := status/100 - 1; i >= 0 && i < len(c) {
		c[i].Inc()
	}
}
