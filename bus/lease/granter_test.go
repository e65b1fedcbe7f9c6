package lease_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
)

// TestPulse: a tick a second where nobody asks, and not more often than every 50 ms where all ask.
func TestPulse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPulse(t)
		p.run(t)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := len(p.seen().ticks); n < 10 || n > 11 {
			t.Errorf("%d ticks in 10 s, want one a second", n)
		}
		if tick := p.seen().ticks[0]; tick.Run != "own" || tick.Applied != 41 || tick.Grants != nil {
			t.Errorf("a tick that answers nobody says %+v", tick)
		}
		p.set(func() { p.at = nil })
		for range 2000 {
			p.Hear(p.question(t, request("web-1", "a")))
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		for i := 1; i < len(p.seen().at); i++ {
			if apart := p.seen().at[i].Sub(p.seen().at[i-1]); apart < 50*time.Millisecond {
				t.Fatalf("two ticks were %s apart", apart)
			}
		}
		if n := len(p.seen().at); n < 30 || n > 41 {
			t.Errorf("%d ticks in 2 s of requests, want some 20 a second", n)
		}
	})
}

// TestAnsweredByTheNextTick: a request is answered by a tick that was begun after it came, never by
// one that was under way.
func TestAnsweredByTheNextTick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPulse(t)
		p.slow = 400 * time.Millisecond
		p.run(t)
		time.Sleep(200 * time.Millisecond) // the first tick is under way
		came := time.Now()
		p.Hear(p.question(t, request("web-1", "a")))
		time.Sleep(300 * time.Millisecond)
		synctest.Wait()
		if len(p.seen().ticks) != 1 || len(p.seen().answers) != 0 {
			t.Fatalf("%d ticks, %d answers when the tick that was under way has come", len(p.seen().ticks), len(p.seen().answers))
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if len(p.seen().answers) != 1 || p.seen().answers[0].Seq != 2 || p.seen().answers[0].Chain != p.log.at(2).Chain || p.seen().at[1].Before(came) {
			t.Fatalf("got the answers %+v, want one, by tick 2, begun after the request came", p.seen().answers)
		}
		var list lease.List
		if err := json.Unmarshal(p.lists.lists[p.seen().ticks[1].ListSeq-1], &list); err != nil || list.Issuer != "issuer-1" || len(list.Grants) != 1 || list.Grants[0].Run != "a" {
			t.Errorf("the tick's list is %+v, %v", list, err)
		}
	})
}

// TestTickOfUnknownFate: nobody is answered by a tick of which it is not certain that it stands in the
// log, also where it does; nor by one whose list is not.
func TestTickOfUnknownFate(t *testing.T) {
	unanswered := 0
	for name, fail := range map[string]func(p *pulse){
		"not stored":              func(p *pulse) { p.tickErr = errors.New("timeout") },
		"stored, the answer lost": func(p *pulse) { p.tickErr, p.stored = errors.New("timeout"), true },
		"its list not written":    func(p *pulse) { p.listErr = errors.New("timeout") },
		"takes too long":          func(p *pulse) { p.slow = time.Minute },
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPulse(t)
			fail(p)
			p.run(t)
			p.Hear(p.question(t, request("web-1", "a")))
			time.Sleep(20 * time.Second)
			synctest.Wait()
			p.set(func() { p.tickErr, p.listErr, p.stored, p.slow = nil, nil, false, 0 })
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if len(p.seen().answers) != 0 {
				t.Errorf("%s: the request was answered by tick %d", name, p.seen().answers[0].Seq)
			}
			p.Hear(p.question(t, request("web-1", "a")))
			time.Sleep(time.Second)
			synctest.Wait()
			if len(p.seen().answers) != 1 {
				t.Errorf("%s: asked again when all is well: %d answers", name, len(p.seen().answers))
			}
			unanswered++
		})
	}
	t.Logf("%d kinds of ticks of unknown fate: 0 requests answered", unanswered)
}

// TestRequestsRefused: whoever is not the enrolled agent itself gets no lease, and is told why.
func TestRequestsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPulse(t)
		p.run(t)
		with := func(change func(*lease.Request)) lease.Request {
			req := request("web-1", "a")
			change(&req)
			return req
		}
		cases := map[string]struct {
			s    bus.Spoken
			want string
		}{
			"no signature": {p.question(t, request("web-1", "a"), func(s *bus.Spoken) { s.Signature = nil }), "its signature is not the enrolled agent's"},
			"another's":    {p.question(t, request("web-1", "a"), func(s *bus.Spoken) { s.Signature = ed25519.Sign(agentKey("web-2"), s.Body) }), "its signature is not the enrolled agent's"},
			"an ack's": {p.question(t, request("web-1", "a"), func(s *bus.Spoken) {
				s.Signature = ed25519.Sign(agentKey("web-1"), append([]byte("sidekey-ack-1\x00"), s.Body...))
			}), "its signature is not the enrolled agent's"},
			"altered":          {p.question(t, request("web-1", "a"), func(s *bus.Spoken) { s.Body = []byte(strings.Replace(string(s.Body), `"run":"a"`, `"run":"b"`, 1)) }), "its signature is not the enrolled agent's"},
			"another's name":   {p.question(t, request("web-1", "a"), func(s *bus.Spoken) { s.Agent = "web-2" }), `it asks for \"web-1\"`},
			"removed":          {p.question(t, request("removed", "a")), "not found"},
			"no JSON":          {p.question(t, request("web-1", "a"), func(s *bus.Spoken) { s.Body = []byte("{") }), "the request is no JSON"},
			"no run":           {p.question(t, request("web-1", "")), "names its agent and run"},
			"no name":          {p.question(t, request("", "a")), "names its agent and run"},
			"a long run":       {p.question(t, request("web-1", strings.Repeat("r", 65))), "names its agent and run"},
			"a short nonce":    {p.question(t, with(func(r *lease.Request) { r.Nonce = r.Nonce[:15] })), "a nonce of 15 bytes, not 16"},
			"a moment":         {p.question(t, with(func(r *lease.Request) { r.Length = 99 })), "100ms to 24h0m0s long, not 99ms (agent.max_staleness)"},
			"a day and more":   {p.question(t, with(func(r *lease.Request) { r.Length = lease.MaxLength.Milliseconds() + 1 })), "not 24h0m0.001s"},
			"an overflow":      {p.question(t, with(func(r *lease.Request) { r.Length = 1<<63 - 1 })), "long, not"},
			"an overflow to 1": {p.question(t, with(func(r *lease.Request) { r.Length = 1 << 58 })), "long, not"},
			"less than none":   {p.question(t, with(func(r *lease.Request) { r.Length = -1 })), "long, not -1ms"},
			"an unknown mode":  {p.question(t, with(func(r *lease.Request) { r.Mode = "maybe" })), `the mode \"maybe\", not refuse or serve (agent.on_stale)`},
		}
		for name, c := range cases {
			time.Sleep(2 * time.Second) // one agent is not heard often between two ticks
			p.set(func() { p.refusals = nil })
			p.Hear(c.s)
			if len(p.seen().refusals) != 1 || !strings.Contains(p.seen().refusals[0], c.want) {
				t.Errorf("%s: refused with %q, want %q", name, p.seen().refusals, c.want)
			}
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if len(p.seen().answers) != 0 || slices.ContainsFunc(p.seen().ticks, func(t bus.Tick) bool { return t.Grants != nil }) {
			t.Errorf("%d of them were granted a lease", len(p.seen().answers))
		}
		t.Logf("%d kinds of wrong requests: 0 granted", len(cases))
	})
}

// TestUnsoundRefuses: an issuer that may not tick refuses at once whoever asks, and whoever waits by its next turn, for as long as that lasts:
// another may grant.
func TestUnsoundRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var why atomic.Pointer[error]
		p := newPulse(t, func(c *lease.GranterConfig) {
			c.Sound = func() error {
				if err := why.Load(); err != nil {
					return *err
				}
				return nil
			}
		})
		p.run(t)
		time.Sleep(time.Millisecond) // behind a tick: this one waits
		p.Hear(p.question(t, request("web-1", "a")))
		wrong := errors.New("its clock is wrong")
		why.Store(&wrong)
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if n := len(p.seen().refusals); n != 1 {
			t.Errorf("one that waited as the clock was set wrong: %d refusals, want 1", n)
		}
		for n := range 30 {
			time.Sleep(time.Second)
			p.set(func() { p.refusals = nil })
			p.Hear(p.question(t, request("web-1", "a")))
			if all := p.seen().refusals; len(all) != 1 || !strings.Contains(all[0], "this issuer does not tick") || !strings.Contains(all[0], wrong.Error()) {
				t.Fatalf("question %d: got the refusals %q, want one at once that says why", n, all)
			}
		}
		why.Store(nil)
		time.Sleep(2 * time.Second)
		p.Hear(p.question(t, request("web-1", "a")))
		time.Sleep(time.Second)
		synctest.Wait()
		if n := len(p.seen().answers); n != 1 {
			t.Errorf("once its clock is right: %d answers, want that to the last question", n)
		}
	})
}

// TestNobodyCrowdsOut: one agent that asks without end, and a fleet that asks at once with the longest
// names, leave every list small enough for the bus, and nobody without a lease.
func TestNobodyCrowdsOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPulse(t)
		for n := range 1000 {
			p.Hear(p.question(t, request("greedy", fmt.Sprint(n))))
		}
		const fleet = 3000
		for n := range fleet {
			p.Hear(p.question(t, request(strings.Repeat("<", 120)+fmt.Sprint(n), strings.Repeat("r", 64))))
		}
		p.run(t)
		time.Sleep(time.Second)
		synctest.Wait()
		greedy := 0
		for _, g := range p.seen().answers {
			if g.Agent == "greedy" {
				greedy++
			}
		}
		if got := len(p.seen().answers) - greedy; got != fleet {
			t.Errorf("%d of %d agents were answered within a second", got, fleet)
		}
		if greedy > 8 {
			t.Errorf("one agent got %d answers of one tick", greedy)
		}
		if most := slices.Max(p.seen().listSizes); most > 768<<10 {
			t.Errorf("a list has %d bytes: more than the bus takes in one message", most)
		}
		t.Logf("%d agents at once: answered by %d lists of at most %d bytes", fleet, len(p.seen().listSizes), slices.Max(p.seen().listSizes))
	})
}

// TestAnAgentCostsLittle: whatever one agent sends, between two ticks it costs a few reads; a request
// that is not its own costs none, and a length that grows by a millisecond no write each time.
func TestAnAgentCostsLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads, noted := 0, []time.Duration(nil)
		p := newPulse(t, func(c *lease.GranterConfig) {
			c.Known = c.Key
			c.Key = func(ctx context.Context, agent string) (ed25519.PublicKey, error) {
				reads++
				return c.Known(ctx, agent)
			}
			c.Note = func(_ context.Context, _ string, length time.Duration, _ bool) error {
				noted = append(noted, length)
				return nil
			}
		})
		forge := func(s *bus.Spoken) { s.Signature = nil }
		for range 1000 {
			p.Hear(p.question(t, request("web-1", "a"), forge))
		}
		if reads != 0 || len(p.seen().refusals) > 8 {
			t.Errorf("1000 forged requests: %d reads, %d refusals, want 0 and a few", reads, len(p.seen().refusals))
		}
		for range 1000 {
			p.Hear(p.question(t, request("web-2", "a")))
		}
		if reads > 8 || len(noted) > 8 {
			t.Errorf("1000 requests at once: %d reads, %d notes, want a few", reads, len(noted))
		}
		noted = nil
		p.run(t)
		for ms := int64(100); ms < 400; ms++ {
			req := request("web-1", "a")
			req.Length = ms
			p.Hear(p.question(t, req))
			time.Sleep(time.Second)
		}
		req := request("web-1", "a")
		req.Length = lease.MaxLength.Milliseconds()
		p.Hear(p.question(t, req))
		want := []time.Duration{128 * time.Millisecond, 256 * time.Millisecond, 512 * time.Millisecond, lease.MaxLength}
		if got := slices.Compact(noted); !slices.Equal(got, want) {
			t.Errorf("lengths written down: %v, want %v", got, want)
		}
	})
}

// TestRemovedAMomentAgo: a key in memory is no reason to grant a lease.
func TestRemovedAMomentAgo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPulse(t, func(c *lease.GranterConfig) {
			c.Known = c.Key
			c.Key = func(context.Context, string) (ed25519.PublicKey, error) { return nil, bus.ErrNotFound }
		})
		p.Hear(p.question(t, request("web-1", "a")))
		if len(p.seen().refusals) != 1 || !strings.Contains(p.seen().refusals[0], "not found") {
			t.Errorf("a removed agent got %q, want a refusal", p.seen().refusals)
		}
	})
}
