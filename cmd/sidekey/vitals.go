package main

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/singleflight"
)

// slack is what a loop may be late by before it counts as wedged: a busy host, a disk that stalls, a process that was
// stopped for a moment and goes on.
const slack = 30 * time.Second

// vitals tell whether a process is alive. Each of its main loops says at every turn how long the next may take; one that
// is not back in time is wedged, and so is a process in which the probe does not return. What is merely away (the bus,
// the other issuers) is no reason: a loop that tries again turns too, and an agent without a bus is alive.
//
// The zero value has no loop and no probe.
type vitals struct {
	mu    sync.Mutex
	due   map[string]time.Time // by loop; none before its first turn
	probe func()               // goes through the parts that a request goes through; nil: none
	asked singleflight.Group   // of health: one probe at a time, however many ask
}

// loop gives what a loop calls at the start of each turn, with how long that may take.
func (v *vitals) loop(name string) func(within time.Duration) {
	return func(within time.Duration) {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.due == nil {
			v.due = map[string]time.Time{}
		}
		v.due[name] = time.Now().Add(within + slack)
	}
}

// wedged names the loops that are not back in time.
func (v *vitals) wedged() (names []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for name, due := range v.due {
		if time.Now().After(due) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// probeTime is how long health waits for the probe, which takes microseconds.
const probeTime = 2 * time.Second

// health is next, but that GET /healthz answers 503 while something is wedged: there a kubelet looks, as systemd waits for its watchdog
// to be fed.
func (v *vitals) health(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" && r.Method == http.MethodGet {
			if names := v.ail(); len(names) > 0 {
				w.Header().Set("Content-Type", "application/json")
				w.Header().Set("Cache-Control", "no-store")
				w.WriteHeader(http.StatusServiceUnavailable)
				_ = json.NewEncoder(w).Encode(map[string]any{"status": "wedged", "loops": names}) // who asked may have gone
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// ail is wedged, and "requests" where the probe does not return.
func (v *vitals) ail() []string {
	names := v.wedged()
	late := time.NewTimer(probeTime)
	defer late.Stop()
	select {
	case <-v.asked.DoChan("", func() (any, error) { <-v.probing(); return nil, nil }):
	case <-late.C:
		names = append(names, "requests")
	}
	return names
}

// watch feeds systemd's watchdog, where there is one, twice in its time as sd_watchdog_enabled(3) asks, while the process is alive.
// What it gives ends it.
func (v *vitals) watch(ctx context.Context, log hclog.Logger) (stop func()) {
	limit, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("could not read what systemd says of its watchdog", "error", err)
	}
	if err != nil || limit == 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // a stop that drains is alive too
	var feeding sync.WaitGroup
	feeding.Go(func() { v.feed(ctx, limit/2, func() { notify(log, sd.SdNotifyWatchdog) }, log) })
	return func() {
		cancel()
		feeding.Wait()
	}
}

// feed calls alive at once and then every so often, until ctx ends, but not while something is wedged.
func (v *vitals) feed(ctx context.Context, every time.Duration, alive func(), log hclog.Logger) {
	again := time.NewTicker(every)
	defer again.Stop()
	probed := v.probing()
	for {
		select {
		case <-probed:
			if names := v.wedged(); len(names) > 0 {
				log.Error("not feeding the watchdog: a loop is not back in time", "loops", strings.Join(names, ", "))
			} else {
				alive()
			}
		case <-ctx.Done():
			return
		}
		select {
		case <-again.C:
			probed = v.probing()
		case <-ctx.Done():
			return
		}
	}
}

// probing is closed once the probe has returned.
func (v *vitals) probing() <-chan struct{} {
	done := make(chan struct{})
	if v.probe == nil {
		close(done)
		return done
	}
	go func() {
		defer close(done)
		v.probe()
	}()
	return done
}

// notify tells systemd, where it listens.
func notify(log hclog.Logger, state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		log.Warn("could not notify systemd", "error", err)
	}
}

// notifyReady tells systemd that who waits for this process may go on.
func notifyReady(log hclog.Logger) {
	log.Info("ready")
	notify(log, sd.SdNotifyReady)
}

// notifyReload tells systemd of a reload, from its start to the end of what reload does.
func notifyReload(log hclog.Logger, reload func()) {
	notify(log, sd.SdNotifyReloading+"\n"+sd.SdNotifyMonotonicUsec())
	reload()
	notify(log, sd.SdNotifyReady)
}
