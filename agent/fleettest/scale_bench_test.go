package fleettest_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sidekey/sidekey/agent/fleettest"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/lease"
)

// BenchmarkReach is the time from the call that revokes a token until each of so many agents refuses it,
// with leases, acknowledgements and all, on a nats-server in a process of its own: 1,000 with a connection
// each, and 3,000 and 10,000 that share 100. They start a few hundred at a time, and 10,000 hold leases of a day: two cores that are all of
// their hosts cannot prove a tick 10,000 times for each lease that one of them renews. Its floor is a raw TCP fan-out of as many messages over as many connections; what
// stands beside it are the proofs of the entry's signature, which hosts of their own make side by side.
func BenchmarkReach(b *testing.B) {
	for _, c := range []struct{ agents, conns int }{{1000, 1000}, {3000, 100}, {10_000, 100}} {
		b.Run(fmt.Sprint(c.agents), func(b *testing.B) {
			if c.agents > 1000 && !long {
				b.Skip("set SIDEKEY_LONG=1")
			}
			server, apart := bustest.StartApart(b, 1)
			f := fleettest.StartOn(b, server)
			i := f.Issuer("issuer-1", nil)
			shared := func(int) *bus.Conn { return nil }
			if c.conns < c.agents {
				shared = sharing(b, f, c.conns)
			}
			length := 15 * time.Minute
			if c.agents == 10_000 {
				length = lease.MaxLength
			}
			good := f.Token("good")
			var agents []*fleettest.Agent
			for len(agents) < c.agents {
				begun, first := time.Now(), len(agents)
				more := startAgents(f, first, min(250, c.agents-first), func(n int) fleettest.AgentConfig {
					return fleettest.AgentConfig{Length: length, Direct: true, Bare: true, Shared: shared(n)}
				})
				whenAll(b, more, begun, func(a *fleettest.Agent) bool { return a.Verify(good) == 200 })
				agents = append(agents, more...)
			}
			raw := newFanOut(b, c.conns, c.agents/c.conns)
			var ours, floors [2][]time.Duration
			var settles, proofs []time.Duration
			reach(b, i, agents, "warm")
			for n := 0; b.Loop(); n++ {
				before := apart.Usage(b)
				refused, settled := reach(b, i, agents, fmt.Sprint("jti-", n))
				after := apart.Usage(b)
				b.ReportMetric(float64((after.CPU-before.CPU).Microseconds())/float64(c.agents), "µs-bus/agent")
				b.ReportMetric(float64(after.Out-before.Out)/float64(c.agents), "B-bus-sent/agent")
				came := raw.measure(b)
				for k, p := range []int{50, 99} {
					ours[k], floors[k] = append(ours[k], part(refused, p)), append(floors[k], part(came, p))
				}
				settles, proofs = append(settles, settled), append(proofs, prove(b, f, c.agents))
			}
			report := func(all []time.Duration, unit string) float64 {
				slices.Sort(all)
				ms := float64(part(all, 50).Microseconds()) / 1000
				b.ReportMetric(ms, unit)
				return ms
			}
			p50, p99 := report(ours[0], "ms-p50"), report(ours[1], "ms-p99")
			f50, f99 := report(floors[0], "ms-floor-p50"), report(floors[1], "ms-floor-p99")
			report(settles, "ms-settled")
			proof := report(proofs, "ms-proofs")
			b.ReportMetric(p50/f50, "x-floor-p50")
			b.ReportMetric(p99/f99, "x-floor-p99")
			b.ReportMetric((p99-proof)/f99, "x-floor-p99-without-proofs")
		})
	}
}

// prove takes the time of proving a signature so many times on all cores.
func prove(b *testing.B, f *fleettest.Fleet, n int) time.Duration {
	body := make([]byte, 300)
	signature, public := f.Bus.Authority.Sign(body), f.Bus.Authority.Public()
	var all sync.WaitGroup
	begun := time.Now()
	for range n {
		all.Go(func() {
			if !public.Verify(body, signature) {
				b.Error("the signature does not verify")
			}
		})
	}
	all.Wait()
	return time.Since(begun)
}
