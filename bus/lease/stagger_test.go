package lease_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus/lease"
)

// TestRenewalsSpread: agents that were started at one moment, or that waited together for an issuer, do
// not go on renewing together, and none of them renews later than it would alone.
func TestRenewalsSpread(t *testing.T) {
	const agents = 200
	for _, length := range []time.Duration{15 * time.Minute, 5 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			l := newLine(t)
			holders := make([]*lease.Holder, agents)
			for i := range holders {
				holders[i] = l.holder(length)
				l.renew(t, holders[i])
			}
			begun := time.Now()
			spread := func(what string, from time.Time) {
				time.Sleep(time.Until(from.Add(2 * length)))
				// A step is the 54th part of what lies between two renewals of one agent: 3.7 of 200 fall into it.
				step, most := length/180, 0
				in := make(map[time.Duration]int)
				for _, at := range l.questions() {
					if after := at.Sub(from); after > length/10 { // by then each has asked once
						in[after/step]++
						most = max(most, in[after/step])
					}
				}
				if most > 20 {
					t.Errorf("leases of %s, %s: %d of %d agents ask within %s, want at most 20", length, what, most, agents, step)
				}
				for _, h := range holders {
					if cur := h.Current(); cur == nil || cur.Left(l.now()) < length*6/10 {
						t.Fatalf("leases of %s, %s: one lasts less than six tenths", length, what)
					}
				}
				t.Logf("leases of %s, %s: at most %d of %d ask within %s", length, what, most, agents, step)
			}
			spread("started together", begun)
			l.set(func() { l.err = errors.New("no issuer is up") })
			time.Sleep(length * 2 / 5) // more than a third: each has asked in vain
			l.set(func() { l.err, l.asked = nil, nil })
			back := time.Now()
			if time.Sleep(length / 10); len(l.questions()) < agents {
				t.Errorf("leases of %s: %d of %d agents have asked when a tenth has passed since the issuer is back", length, len(l.questions()), agents)
			}
			spread("after an outage", back)
		})
	}
}

// TestRestartedAsksLater: an agent that finds the lease of its last process leaves those without one some
// time, but so little that the lease does not end meanwhile; one without a lease asks at once.
func TestRestartedAsksLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const length = 5 * time.Minute
		l, dir := newLine(t), runtimeDir(t)
		begin := func() (h *lease.Holder, asks time.Duration) {
			l.set(func() { l.asked = nil })
			f := openFile(t, dir)
			h = lease.NewHolder(lease.HolderConfig{Agent: "web-1", Length: length, Mode: lease.Refuse, Clock: l.now, File: f})
			r := lease.NewRenewer(lease.Renewer{
				Holder: h, Agent: "web-1", Key: agentKey("web-1"), Authority: l.authority.Public(), Line: l, Applied: l, Clock: l.now, Logger: hclog.NewNullLogger(),
			})
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan struct{}, 2)
			go func() { r.Renew(ctx); done <- struct{}{} }()
			go func() { r.Acknowledge(ctx); done <- struct{}{} }()
			began := time.Now()
			for len(l.questions()) == 0 {
				time.Sleep(10 * time.Millisecond)
				synctest.Wait()
				if cur := h.Current(); cur == nil || !cur.Live(l.now()) {
					t.Fatal("it does not vouch")
				}
			}
			time.Sleep(10 * time.Millisecond)
			stop()
			<-done
			<-done
			f.Close()
			return h, l.questions()[0].Sub(began)
		}
		if _, first := begin(); first != 0 {
			t.Errorf("without a lease: it asks after %s, want at once", first)
		}
		var sum, most time.Duration
		const restarts = 50
		for range restarts {
			_, after := begin()
			sum, most = sum+after, max(most, after)
		}
		if most > 10*time.Second || sum/restarts < 2*time.Second {
			t.Errorf("with a lease of %s: it asks after %s on average, %s at most; want a spread over 10 s", length, sum/restarts, most)
		}
		// Of a lease that is about to end, it waits for a third of what is left at most.
		time.Sleep(length - 3*time.Second)
		if _, after := begin(); after > time.Second {
			t.Errorf("with 3 s left: it asks after %s, want at most 1 s", after)
		}
	})
}
