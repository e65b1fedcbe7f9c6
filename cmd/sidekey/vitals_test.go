package main

import (
	"context"
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
