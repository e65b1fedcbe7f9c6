package issuer

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidekey/sidekey/keyring"
)

// waited notes the end of a wait for the fleet; of who did not wait nothing is known.
func (m *metrics) waited(r *Receipt, timeout time.Duration) {
	switch {
	case r.Confirmed && timeout > 0:
		m.confirmed.Observe(r.Elapsed.Seconds())
	case timeout > 0:
		m.unconfirmed.Inc()
	}
}

// fleetMetrics is the fleet and the ring as metrics. Agents are counted by state, none is named.
type fleetMetrics struct{ i *Issuer }

func fleetDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("sidekey_"+name, help, labels, nil)
}

var (
	descInfo        = fleetDesc("info", "1, with the binary's version.", "version")
	descReady       = fleetDesc("ready", "1 while this issuer makes tokens and answers agents, as /readyz says.")
	descAgents      = fleetDesc("agents", "Agents that have joined, by state.", "state")
	descVouching    = fleetDesc("agents_vouching", "Agents' processes whose lease has not certainly ended.")
	descLag         = fleetDesc("agents_lag_seconds", "How long the agent farthest behind, of those that may vouch, has lacked an entry.")
	descKeys        = fleetDesc("keys", "Keys of the ring, by state.", "state")
	descKeyAge      = fleetDesc("key_age_seconds", "How long the key that signs has signed.")
	descRotationDue = fleetDesc("rotation_due_seconds", "Until the next scheduled rotation; negative: overdue. Absent where none is scheduled.")
)

var keyStates = []keyring.State{keyring.Announced, keyring.Active, keyring.Retiring, keyring.Retired, keyring.Revoked}

// Describe is prometheus.Collector's.
func (f *fleetMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descInfo, descReady, descAgents, descVouching, descLag, descKeys, descKeyAge, descRotationDue} {
		ch <- d
	}
}

// Collect is prometheus.Collector's. While the bus is away the agents are left out, not told as they were.
func (f *fleetMetrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(descInfo, 1, f.i.cfg.Version)
	ready := 0.0
	if f.i.Ready() == nil {
		ready = 1
	}
	gauge(descReady, ready)
	ctx, cancel := context.WithTimeout(context.Background(), glanceWithin)
	defer cancel()
	if v, err := f.i.fleetAt(ctx, scrapeAge); err == nil {
		for _, s := range agentStates {
			gauge(descAgents, float64(v.States[s]), string(s))
		}
		gauge(descVouching, float64(v.Vouching))
		gauge(descLag, float64(v.Lag)/1000)
	}
	states := make(map[keyring.State]int)
	keys, _ := f.i.ListKeys(ctx) // it reads memory alone
	for n := range keys {
		states[keys[n].State]++
	}
	for _, s := range keyStates {
		gauge(descKeys, float64(states[s]), string(s))
	}
	due, began := f.i.rotationDue()
	if !began.IsZero() {
		gauge(descKeyAge, f.i.now().Sub(began).Seconds())
	}
	if !due.IsZero() {
		gauge(descRotationDue, due.Sub(f.i.now()).Seconds())
	}
}
