package schema

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/promslog"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
)

// world is a Prometheus with the rules, whose series are known beforehand.
type world struct {
	*promqltest.LazyLoader
	step    time.Duration
	query   rules.QueryFunc
	records *rules.Group
	alerts  []*rules.AlertingRule
}

// newWorld has these series, a line each, in the notation of Prometheus' own unit tests, a sample a step.
func newWorld(t *testing.T, step time.Duration, series string) *world {
	t.Helper()
	loader, err := promqltest.NewLazyLoader(fmt.Sprintf("load %s\n  %s\n", step, strings.ReplaceAll(strings.TrimSpace(series), "\n", "\n  ")),
		promqltest.LazyLoaderOpts{EnableAtModifier: true, EnableNegativeOffset: true, Parser: promQL})
	if err != nil {
		t.Fatalf("%v in\n%s", err, series)
	}
	t.Cleanup(func() {
		if err := loader.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &world{LazyLoader: loader, step: step, query: rules.EngineQueryFunc(loader.QueryEngine(), loader.Storage())}
	manager := rules.NewManager(&rules.ManagerOptions{
		QueryFunc: w.query, AppendableV2: loader.Storage(), Context: t.Context(), Logger: promslog.NewNopLogger(), Parser: promQL,
		NotifyFunc: func(context.Context, string, ...*rules.Alert) {},
	})
	groups, errs := manager.LoadGroups(step, labels.EmptyLabels(), "", nil, false, rulesFile)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	for _, g := range groups {
		if g.Name() == "sidekey-records" {
			w.records = g
		}
		for _, r := range g.Rules() {
			if a, ok := r.(*rules.AlertingRule); ok {
				a.SetRestored(true)
				w.alerts = append(w.alerts, a)
			}
		}
	}
	return w
}

// run evaluates the alert of that name ("": every one) step by step, and gives what fired, each once, as its name and words.
func (w *world) run(t *testing.T, name string, steps int) map[string]string {
	t.Helper()
	fired := make(map[string]string)
	for n := range steps {
		now := time.Unix(0, 0).UTC().Add(time.Duration(n) * w.step)
		w.WithSamplesTill(now, func(err error) {
			if err != nil {
				t.Fatal(err)
			}
			if w.recorded(name) {
				w.records.Eval(w.Context(), now)
			}
			for _, a := range w.alerts {
				if name != "" && a.Name() != name {
					continue
				}
				if _, err := a.Eval(w.Context(), 0, now, w.query, nil, 0); err != nil {
					t.Fatalf("%s at %s: %v", a.Name(), now.Format(time.TimeOnly), err)
				}
				for _, active := range a.ActiveAlerts() {
					if active.State == rules.StateFiring {
						fired[a.Name()] = fmt.Sprintf("%s at %s: %s", active.Labels, now.Format(time.TimeOnly), active.Annotations)
					}
				}
			}
		})
	}
	return fired
}

// recorded tells whether the alert of that name reads what the recording rules write.
func (w *world) recorded(name string) bool {
	return slices.ContainsFunc(w.alerts, func(a *rules.AlertingRule) bool {
		return (name == "" || name == a.Name()) && strings.Contains(a.Query().String(), "fleet:")
	})
}

// TestEachAlertFires fires every alert, and shows for each what does not. A template that fails writes "<error" or "<no value>".
func TestEachAlertFires(t *testing.T) {
	for _, r := range parsedRules(t) {
		if r.Alert == "" {
			continue
		}
		t.Run(r.Alert, func(t *testing.T) {
			c, ok := cases[r.Alert]
			if !ok || c.fires == "" || c.quiet == "" {
				t.Fatal("there is no case that fires it and one that does not")
			}
			step, steps := 30*time.Second, 90
			if c.days > 0 {
				step, steps = 5*time.Minute, c.days*24*12
			}
			fired, ok := newWorld(t, step, c.fires).run(t, r.Alert, steps)[r.Alert]
			if !ok {
				t.Errorf("it did not fire:\n%s", c.fires)
			}
			if strings.Contains(fired, "<no value>") || strings.Contains(fired, "<error") {
				t.Errorf("its words: %s", fired)
			}
			if fired, ok := newWorld(t, step, c.quiet).run(t, r.Alert, steps)[r.Alert]; ok {
				t.Errorf("it fired:\n%s\n%s", c.quiet, fired)
			}
		})
	}
	for name := range cases {
		found := false
		for _, r := range parsedRules(t) {
			found = found || r.Alert == name
		}
		if !found {
			t.Errorf("there are cases for %s, which is no alert", name)
		}
	}
}

// TestOneFleetOfTwo: what befalls one fleet is told of that one, though all is well with another that the same Prometheus watches.
func TestOneFleetOfTwo(t *testing.T) {
	for name, c := range map[string]struct{ alert, series string }{
		"no issuer of it is scraped any more": {"SidekeyNoIssuerReady", `sidekey_ready{fleet="well",instance="a"} 1x90
sidekey_ready{fleet="ill",instance="b"} 1x20
sidekey_ready{fleet="ill",instance="c"} 1x15`},
		"none of its issuers is ready": {"SidekeyNoIssuerReady", `sidekey_ready{fleet="well",instance="a"} 1x90
sidekey_ready{fleet="ill",instance="b"} 1x20 0x70`},
		"nobody knows whether its bus syncs": {"SidekeyBusNotSynced", `sidekey_bus_connected{fleet="well",instance="a"} 1x90
sidekey_bus_synced{fleet="well",instance="a"} 1x90
sidekey_bus_connected{fleet="ill",instance="b"} 1x90`},
		"a server of its bus does not sync": {"SidekeyBusNotSynced", `sidekey_bus_synced{fleet="well",instance="a"} 1x90
sidekey_bus_synced{fleet="ill",instance="b"} 1x90
sidekey_bus_synced{fleet="ill",instance="c"} 0x90`},
	} {
		fired := newWorld(t, 30*time.Second, c.series).run(t, c.alert, 90)[c.alert]
		if !strings.Contains(fired, `fleet="ill"`) {
			t.Errorf("%s: got %q, want %s of the fleet ill", name, fired, c.alert)
		}
	}
	if fired := newWorld(t, 30*time.Second, `up{job="others"} 1x90`).run(t, "SidekeyNoIssuerReady", 90); len(fired) != 1 {
		t.Errorf("Prometheus scrapes no issuer at all: got %v, want SidekeyNoIssuerReady", fired)
	}
}

// TestHealthyFleetIsQuiet runs three issuers and two agents through a restart of each and a takeover of the duty: no alert fires.
func TestHealthyFleetIsQuiet(t *testing.T) {
	if fired := newWorld(t, 30*time.Second, healthy).run(t, "", 120); len(fired) > 0 {
		t.Errorf("in a healthy fleet there fired %v", fired)
	}
}
