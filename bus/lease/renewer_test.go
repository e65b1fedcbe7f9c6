package lease_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/keyring"
)

// TestRenewal: a lease is renewed when a third of it is over, or up to a fifth of that sooner (the first
// at any moment of that third), and is there without a break.
func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t)
		h := l.holder(15 * time.Minute)
		l.renew(t, h)
		for range 24 * 60 {
			time.Sleep(time.Minute)
			if cur := h.Current(); cur == nil || cur.Left(l.now()) < 10*time.Minute {
				t.Fatal("the lease in force lasts less than two thirds")
			}
		}
		apart := make(map[time.Duration]bool)
		for i := 1; i < len(l.questions()); i++ {
			d := l.questions()[i].Sub(l.questions()[i-1])
			if apart[d] = true; d < 4*time.Minute && i > 1 || d > 5*time.Minute {
				t.Fatalf("asked again after %s, want 4 to 5 minutes", d)
			}
		}
		if len(apart) < len(l.questions())/2 {
			t.Errorf("%d different pauses in %d: agents that started together go on together", len(apart), len(l.questions()))
		}
		t.Logf("a day of leases of 15 minutes: asked %d times, never less than 10 minutes left", len(l.questions()))
	})
}

// TestRenewalSlow: an agent of a short lease gets one from issuers whose answers all take longer than it waits at first, as on a slow
// disk, as long as they come within the lease.
func TestRenewalSlow(t *testing.T) {
	for _, slow := range []time.Duration{600 * time.Millisecond, 1500 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			l := newLine(t)
			l.slow = slow
			h := l.holder(2 * time.Second)
			l.renew(t, h)
			live := 0
			for range 6000 {
				time.Sleep(10 * time.Millisecond)
				if cur := h.Current(); cur != nil && cur.Live(l.now()) {
					live++
				}
			}
			if live == 0 {
				t.Errorf("answers take %s: in a minute there was never a lease", slow)
			}
			t.Logf("answers take %s: a lease of 2s was there %d%% of a minute", slow, live/60)
		})
	}
}

// TestRenewalFails: who gets no answer asks again, soon at first and every 5 s at last, and at least
// once in a tenth of a short lease.
func TestRenewalFails(t *testing.T) {
	for length, most := range map[time.Duration]time.Duration{15 * time.Minute: 5 * time.Second, 10 * time.Second: time.Second, time.Second: 200 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			l := newLine(t)
			l.err = errors.New("no answer")
			h := l.holder(length)
			l.renew(t, h)
			time.Sleep(10 * time.Minute)
			for i := 1; i < len(l.questions()); i++ {
				if d := l.questions()[i].Sub(l.questions()[i-1]); d < 100*time.Millisecond || d > most {
					t.Fatalf("length %s: asked again after %s, want 100ms to %s", length, d, most)
				}
			}
			if h.Current() != nil {
				t.Error("there is a lease that nobody granted")
			}
			l.set(func() { l.err = nil })
			time.Sleep(most)
			synctest.Wait()
			if h.Current() == nil {
				t.Errorf("length %s: %s after the issuer is back there is no lease", length, most)
			}
			// While the bus is away nothing is asked.
			l.set(func() { l.away, l.asked = true, nil })
			time.Sleep(length)
			if len(l.questions()) != 0 {
				t.Errorf("asked %d times while the bus was away", len(l.questions()))
			}
		})
	}
}

// TestHurry: whoever wants fresher knowledge has it soon, but sets no pace.
func TestHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t)
		h := l.holder(15 * time.Minute)
		r := l.renew(t, h)
		time.Sleep(10 * time.Second)
		first := h.Current()
		r.Hurry()
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		if h.Current() == first {
			t.Error("no fresher lease after 200 ms")
		}
		l.set(func() { l.asked = nil })
		for range 10_000 {
			r.Hurry()
			time.Sleep(time.Millisecond)
		}
		if n := len(l.questions()); n < 40 || n > 51 {
			t.Errorf("asked %d times in 10 s of hurry, want 5 a second", n)
		}
	})
}

// TestAnswersRefused: an answer that the authority did not sign as a grant is none.
func TestAnswersRefused(t *testing.T) {
	cases := map[string]func(l *line){
		"altered":      func(l *line) { l.sent = func(s *bus.Spoken) { s.Body[len(s.Body)-3] ^= 1 } },
		"no signature": func(l *line) { l.sent = func(s *bus.Spoken) { s.Signature = nil } },
		"another authority's": func(l *line) {
			other, _ := keyring.NewAuthority()
			l.sent = func(s *bus.Spoken) { s.Signature = other.Sign(append([]byte("sidekey-lease-grant-1\x00"), s.Body...)) }
		},
		"signed as an entry": func(l *line) { l.sent = func(s *bus.Spoken) { s.Signature = l.authority.Sign(s.Body) } },
		"a refusal": func(l *line) {
			l.sent = func(s *bus.Spoken) { s.Body, s.Signature = []byte(`{"error":"removed"}`), nil }
		},
		"for another run":   func(l *line) { l.answer = func(g *lease.Grant) { g.Run = "x" } },
		"for another nonce": func(l *line) { l.answer = func(g *lease.Grant) { g.Nonce[0] ^= 1 } },
		"of another chain":  func(l *line) { l.answer = func(g *lease.Grant) { g.Chain[0] ^= 1 } },
		"of another epoch":  func(l *line) { l.answer = func(g *lease.Grant) { g.Epoch++ } },
		"of the future":     func(l *line) { l.answer = func(g *lease.Grant) { g.Seq++ } },
		"the first answer to every question": func(l *line) {
			var first *bus.Spoken
			l.sent = func(s *bus.Spoken) {
				if first == nil {
					kept := *s
					first = &kept
					return
				}
				*s = *first
			}
		},
	}
	for name, change := range cases {
		synctest.Test(t, func(t *testing.T) {
			l := newLine(t)
			change(l)
			h := l.holder(time.Minute)
			l.renew(t, h)
			time.Sleep(time.Minute)
			synctest.Wait()
			if cur := h.Current(); cur != nil && cur.Live(l.now()) {
				t.Errorf("%s: it became a lease", name)
			}
			if len(l.questions()) < 3 {
				t.Errorf("%s: asked again only %d times in a minute", name, len(l.questions()))
			}
		})
	}
	t.Logf("%d kinds of forged, altered and replayed answers: 0 became a lease", len(cases))
}

// TestAcknowledgementsPaced: the first after a pause leaves at once, then at most 20 a second do, and
// the last thing applied is acknowledged in the end.
func TestAcknowledgementsPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t)
		h := l.holder(time.Minute)
		l.renew(t, h)
		time.Sleep(time.Second)
		l.set(func() { l.acks = nil })
		applied := time.Now()
		l.apply()
		synctest.Wait()
		if len(l.said()) != 1 || l.said()[0].at != applied || l.said()[0].seq != 2 || l.said()[0].run != h.Run() {
			t.Errorf("after a pause: got the acknowledgements %+v, want one of entry 2 at once", l.said())
		}
		for range 10_000 {
			l.apply()
			time.Sleep(100 * time.Microsecond)
		}
		if n := len(l.said()); n > 22 {
			t.Errorf("%d acknowledgements in a second, want at most 20", n)
		}
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
		if last := l.said()[len(l.said())-1].seq; last != 10_002 {
			t.Errorf("50 ms after the last entry: %d is acknowledged, want 10002", last)
		}
		n := len(l.said())
		time.Sleep(time.Minute)
		if len(l.said()) != n {
			t.Errorf("%d acknowledgements of nothing new", len(l.said())-n)
		}
		t.Logf("10,000 entries in a second: %d acknowledgements", n)
	})
}

// TestLeaseComesWithItsTick: the pace of acknowledgements does not hold a lease back.
func TestLeaseComesWithItsTick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t)
		l.answer = func(g *lease.Grant) {
			next := newTape().upTo(g.Seq + 1)
			g.Position, g.Chain = next.Position, next.Chain
		}
		h := l.holder(time.Minute)
		l.renew(t, h)
		if h.Current() != nil {
			t.Fatal("it is in force before its tick is applied")
		}
		l.apply()
		synctest.Wait()
		if h.Current() == nil {
			t.Error("it is not in force when its tick is applied")
		}
	})
}

// TestFloorFirst: when an acknowledgement leaves its floor is written; without the one the other does
// not leave.
func TestFloorFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, dir := newLine(t), runtimeDir(t)
		f := openFile(t, dir)
		h := lease.NewHolder(lease.HolderConfig{Agent: "web-1", Length: time.Minute, Mode: lease.Refuse, Clock: l.now, File: f})
		l.onAck = func() {
			floor := uint64(0)
			rewrite(t, filePath(dir, "web-1"), func(rec map[string]any) {
				n, _ := rec["floor"].(map[string]any)["seq"].(json.Number).Int64()
				floor = uint64(n)
			})
			if floor != l.applied {
				t.Errorf("an acknowledgement of %d leaves while the floor is %d", l.applied, floor)
			}
		}
		l.renew(t, h)
		for range 100 {
			l.apply()
			time.Sleep(60 * time.Millisecond)
		}
		n := len(l.said())
		if n < 100 {
			t.Errorf("%d acknowledgements of 100 entries", n)
		}
		f.Close()
		for range 10 {
			l.apply()
			time.Sleep(time.Second)
		}
		if len(l.said()) != n {
			t.Errorf("%d acknowledgements left without a floor", len(l.said())-n)
		}
	})
}

// TestFloorUnwritten: a floor that cannot be written is tried again several times a second, and said so every ten seconds.
func TestFloorUnwritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, f, said := newLine(t), openFile(t, runtimeDir(t)), new(bytes.Buffer)
		r := lease.NewRenewer(lease.Renewer{
			Holder: lease.NewHolder(lease.HolderConfig{Agent: "web-1", Length: time.Minute, Mode: lease.Refuse, Clock: l.now, File: f}),
			Agent:  "web-1", Key: agentKey("web-1"), Authority: l.authority.Public(), Line: l, Applied: l, Clock: l.now, Logger: hclog.New(&hclog.LoggerOptions{Output: said}),
		})
		f.Close()
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { r.Acknowledge(ctx); close(done) }()
		time.Sleep(time.Minute)
		stop()
		<-done
		if n := strings.Count(said.String(), "could not acknowledge"); n < 5 || n > 6 {
			t.Errorf("said %d times in a minute, want every 10 s", n)
		}
	})
}

// TestNewEpochIsAHurry: an agent whose lease ended with its log asks for another at once.
func TestNewEpochIsAHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t)
		h := l.holder(15 * time.Minute)
		l.renew(t, h)
		time.Sleep(time.Second)
		l.set(func() { l.log = &tape{epoch: 2}; l.log.next(); l.applied = 1 })
		l.apply()
		synctest.Wait()
		if h.Current() != nil {
			t.Fatal("the lease of the log before is in force")
		}
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		if h.Current() == nil {
			t.Error("200 ms later there is no lease of the new log")
		}
	})
}

// TestTicksAreAcknowledgedSeldom: an entry is acknowledged at once, and again a second later, since a
// message may be lost; ticks alone every half minute, and what could not leave, as soon as it can.
func TestTicksAreAcknowledgedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t)
		l.due = 1
		l.renew(t, l.holder(15*time.Minute))
		ticks := func(n int) (said int) {
			l.set(func() { l.acks = nil })
			for range n {
				l.apply()
				time.Sleep(time.Second)
			}
			return len(l.said())
		}
		ticks(60)
		if n := ticks(320); n < 10 || n > 14 {
			t.Errorf("320 ticks: %d acknowledgements, want 10 to 14", n)
		}
		l.set(func() { l.due = l.applied + 1 })
		if n := ticks(3); n < 2 || n > 3 || l.said()[0].seq != l.due {
			t.Errorf("an entry and two ticks: the acknowledgements %+v, want one at once and one of a tick", l.said())
		}
		l.set(func() { l.away, l.due = true, l.applied+1 })
		ticks(10)
		l.set(func() { l.away = false })
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		if len(l.said()) != 1 || l.said()[0].seq != l.applied {
			t.Errorf("200 ms after the bus is back: the acknowledgements %+v, want that of all that is applied", l.said())
		}
	})
}
