package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

// TestWatchdogIsFedByTheLiving: as long as the loops turn and the probe returns, the watchdog is fed in its time; and not
// any more once one of them does not.
func TestWatchdogIsFedByTheLiving(t *testing.T) {
	for _, tt := range []struct {
		name string
		hang func(loop, probe chan<- bool)
	}{
		{"a loop that hangs", func(loop, _ chan<- bool) { close(loop) }},
		{"a request path that hangs", func(_, probe chan<- bool) { close(probe) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				loop, probe := make(chan bool), make(chan bool)
				v := &vitals{}
				v.probe = func() {
					select {
					case <-probe:
						<-ctx.Done()
					default:
					}
				}
				turn := v.loop("log")
				go func() {
					for {
						turn(time.Minute)
						select {
						case <-time.After(time.Second):
						case <-loop:
							return // and never comes back
						case <-ctx.Done():
							return
						}
					}
				}()
				var fed atomic.Int64
				var last atomic.Pointer[time.Time]
				go v.feed(ctx, 15*time.Second, func() { now := time.Now(); fed.Add(1); last.Store(&now) }, hclog.NewNullLogger())
				time.Sleep(10*time.Minute + time.Second)
				if n := fed.Load(); n != 41 {
					t.Errorf("it was fed %d times in ten minutes, want 41", n)
				}
				tt.hang(loop, probe)
				time.Sleep(10 * time.Minute)
				if since := time.Since(*last.Load()); since < 8*time.Minute {
					t.Errorf("it was fed %s ago, long after something hung", since)
				}
				cancel()
				synctest.Wait()
			})
		})
	}
}

// TestHealthTellsOfTheWedged: what systemd's watchdog is fed by, a kubelet hears at /healthz, and nowhere else is anything changed; a
// probe that hangs is waited for once, however many ask.
func TestHealthTellsOfTheWedged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &vitals{}
		hang := make(chan struct{})
		close(hang)
		var probes atomic.Int32
		v.probe = func() { probes.Add(1); <-hang }
		h := v.health(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
		want := func(when, method, path string, status int, body string) {
			t.Helper()
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
			if w.Code != status || strings.TrimSpace(w.Body.String()) != body {
				t.Errorf("%s: %s %s: got %d %s, want %d %s", when, method, path, w.Code, w.Body, status, body)
			}
		}
		want("nothing has begun", "GET", "/healthz", 204, "")
		turn := v.loop("log")
		turn(time.Minute)
		v.loop("ticks")(time.Hour)
		time.Sleep(time.Minute + slack)
		want("in time", "GET", "/healthz", 204, "")
		time.Sleep(time.Second)
		want("one is late", "GET", "/healthz", 503, `{"loops":["log"],"status":"wedged"}`)
		want("one is late", "GET", "/readyz", 204, "")
		want("one is late", "POST", "/healthz", 204, "")
		turn(time.Minute)
		want("it is back", "GET", "/healthz", 204, "")
		hang = make(chan struct{})
		probes.Store(0)
		want("requests hang", "GET", "/healthz", 503, `{"loops":["requests"],"status":"wedged"}`)
		want("requests hang", "GET", "/healthz", 503, `{"loops":["requests"],"status":"wedged"}`)
		if n := probes.Load(); n != 1 {
			t.Errorf("%d probes hang, want 1", n)
		}
		close(hang)
		synctest.Wait()
		want("they are back", "GET", "/healthz", 204, "")
	})
}

// TestWaitingIsAlive: a loop that says that it will be long, and a process in which no loop has begun, are alive.
func TestWaitingIsAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &vitals{}
		if got := v.wedged(); len(got) != 0 {
			t.Errorf("nothing has begun: got %v", got)
		}
		v.loop("lease")(5 * time.Minute)
		v.loop("log")(time.Minute)
		time.Sleep(time.Minute + slack)
		if got := v.wedged(); len(got) != 0 {
			t.Errorf("in time: got %v", got)
		}
		time.Sleep(time.Second)
		if got := v.wedged(); len(got) != 1 || got[0] != "log" {
			t.Errorf("one is late: got %v", got)
		}
	})
}
