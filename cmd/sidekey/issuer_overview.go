package main

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/issuer"
)

// appendTime measures how long the log takes to acknowledge.
func (p *issuerProcess) appendTime() func(time.Duration) {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "sidekey_append_seconds", Help: "Time from asking that an entry be appended to its durable acknowledgement, ticks included.",
		Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
	})
	p.registry.MustRegister(h)
	return func(took time.Duration) { h.Observe(took.Seconds()) }
}

// openOverview begins to look at the bus, and gives what the issuer tells of the fleet.
func (p *issuerProcess) openOverview() issuer.Overview {
	p.monitor = &bus.Monitor{Conn: p.conn, Reader: p.entries.Reader, Embedded: p.server}
	if url := p.cfg.Bus.MonitorURL; url != "" {
		p.monitor.Sync = func(ctx context.Context) (bus.Durability, error) { return bus.CheckDurability(ctx, url) }
	}
	p.registry.MustRegister(p.monitor,
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "sidekey_leases_granted_total", Help: "Leases that this issuer granted."},
			func() float64 { return float64(p.granter.Granted()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sidekey_state_rolled_back", Help: "1 once the bus was found to hold an older state than this issuer has seen, or than it has signed."},
			func() float64 {
				if p.guard.Err() != nil || p.behind.Err() != nil {
					return 1
				}
				return 0
			}))
	registerProcess(p.registry, "sidekey_", p.tls)
	return issuer.Overview{Bus: p.monitor.Health, Vouching: p.ledger.Vouching, Issuers: p.ledger.Issuers,
		Duties: func(context.Context) (map[string]string, error) {
			return map[string]string{"all": p.duty.Holder()}, nil
		},
	}
}

// registerProcess adds what every process of sidekey's tells of itself: the Go runtime, the process, and when its own
// certificate ends (nil: it has none).
func registerProcess(to *prometheus.Registry, prefix string, cert *certificate) {
	to.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if cert != nil {
		to.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: prefix + "certificate_expiry_timestamp_seconds", Help: "When the certificate that is served ends.",
		}, func() float64 { return float64(cert.ends().Unix()) }))
	}
}

// ends is when the certificate that is served ends.
func (c *certificate) ends() time.Time {
	cur, err := c.get(nil)
	if err != nil || cur.Leaf == nil {
		return time.Time{}
	}
	return cur.Leaf.NotAfter
}
