package issuer_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

// crowd is a fleet of any size.
type crowd struct {
	*bustest.Fleet
	agents []bus.AgentInfo
}

func (c *crowd) Agents(context.Context) ([]bus.AgentInfo, error) { return c.agents, nil }

func (c *crowd) add(name, status string, seen time.Time) {
	c.agents = append(c.agents, bus.AgentInfo{Name: name, Version: "v1", Position: bus.Position{Seq: 1 << 40}, Seen: seen, Status: json.RawMessage(status)})
}

type statusView struct {
	Issuer struct{ Ready bool }
	Agents struct {
		Total, Vouching, More int
		Lag                   int64 `json:"lag_ms"`
		States, Versions      map[string]int
		Worst                 []struct {
			Name, State, Fault string
			MayVouch           int64 `json:"may_vouch_ms"`
			Lag                int64 `json:"lag_ms"`
		}
	}
	Keys     []struct{ State string }
	Problems []string
}

func askStatus(t *testing.T, ti *testIssuer) (statusView, int) {
	t.Helper()
	rec := ask(ti.LocalAdminHandler(), "GET", "/admin/v1/status", "")
	var s statusView
	if err := json.Unmarshal(rec.Body.Bytes(), &s); err != nil || rec.Code != 200 {
		t.Fatalf("GET /admin/v1/status: got %d %s", rec.Code, rec.Body)
	}
	return s, rec.Body.Len()
}

// TestStatus puts an agent into each state, and holds that the worst come first.
func TestStatus(t *testing.T) {
	now := time.Now()
	fleet := &crowd{Fleet: new(bustest.Fleet)}
	fleet.add("a-ok", `{}`, now)
	fleet.add("b-clock", `{"clock_off_ms":-31000}`, now)
	fleet.add("c-silent", `{}`, now.Add(-time.Minute))
	fleet.add("d-never", ``, time.Time{})
	fleet.add("e-stale", `{"stale":true}`, now)
	fleet.add("f-serving", `{"stale":true,"serving":true}`, now)
	fleet.add("g-fault", `{"fault":"the log was rolled back\u001b[2J"}`, now)
	b := newBus()
	ti := start(t, b, func(_ *issuer.Config, p *issuer.Parts) {
		p.Fleet = fleet
		p.Overview.Vouching = func() []lease.Vouching {
			return []lease.Vouching{{Agent: "c-silent", Left: time.Minute}, {Agent: "f-serving", Serving: true}}
		}
	})
	s, _ := askStatus(t, ti)
	var order []string
	for _, a := range s.Agents.Worst {
		order = append(order, a.State)
	}
	if got, want := fmt.Sprint(order), "[fault serving stale silent silent clock]"; got != want {
		t.Errorf("status: got the worst agents %s, want %s", got, want)
	}
	if s.Agents.Total != 7 || s.Agents.States["ok"] != 1 || s.Agents.States["silent"] != 2 || s.Agents.States["behind"] != 0 || s.Agents.Vouching != 2 {
		t.Errorf("status: got %+v, want 7 agents, one ok, two silent, two that may vouch", s.Agents)
	}
	if got := s.Agents.Worst[0].Fault; got != "the log was rolled back[2J" {
		t.Errorf("status: got the fault %q, want it without control characters", got)
	}
	if s.Agents.Worst[1].MayVouch != -1 || s.Agents.Worst[3].MayVouch != 60_000 {
		t.Errorf("status: got %+v, want -1 for who serves without end and a minute for c-silent", s.Agents.Worst)
	}
	if !s.Issuer.Ready || len(s.Keys) == 0 || len(s.Problems) != 5 {
		t.Errorf("status: got %+v, want an issuer that is ready, its keys and five problems", s)
	}
	ask(ti.PublicHandler(), "GET", "/healthz", "")
	if problems, err := testutil.GatherAndLint(ti.Registry); err != nil || len(problems) > 0 {
		t.Errorf("GatherAndLint: got %v, %v, want none", problems, err)
	}
}

// TestStatusOfManyKeys: the key that signs is found among more keys than a status shows.
func TestStatusOfManyKeys(t *testing.T) {
	ti := start(t, newBus())
	for n := range 51 {
		if _, err := ti.ImportKey(t.Context(), issuer.Import{Secret: fmt.Sprintf("%032d", n)}); err != nil {
			t.Fatal(err)
		}
	}
	s, _ := askStatus(t, ti)
	for _, k := range s.Keys {
		if k.State == string(keyring.Active) {
			t.Fatal("status: the key that signs is among the newest 50, so this shows nothing")
		}
	}
	if len(s.Keys) != 50 || slices.Contains(s.Problems, "no key signs") {
		t.Errorf("status: got %d keys and the problems %q, want 50, and that a key signs", len(s.Keys), s.Problems)
	}
}

// TestStatusOfTheBus says of a bus what is known, and what to do where nothing is.
func TestStatusOfTheBus(t *testing.T) {
	for sync, want := range map[bus.Durability]string{
		bus.Synced: "", bus.Delayed: "does not sync before it acknowledges (sync_interval", bus.Unknown: "is not known to this issuer; set bus.monitor_url, or where another has the bus inside, ask that one",
	} {
		ti := start(t, newBus(), func(_ *issuer.Config, p *issuer.Parts) {
			p.Overview.Bus = func() *bus.Health { return &bus.Health{At: time.Now(), Connected: true, Sync: sync} }
		})
		s, _ := askStatus(t, ti)
		if all := strings.Join(s.Problems, "\n"); strings.Contains(all, "sync") != (want != "") || !strings.Contains(all, want) {
			t.Errorf("sync %s: got the problems %q, want %q", sync, s.Problems, want)
		}
	}
}

// TestStatusOverdue: who is waited for is asked where it is told.
func TestStatusOverdue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		join(t, b, "a") // and does not catch up
		ti := start(t, b, func(c *issuer.Config, _ *issuer.Parts) { c.RotateEvery = time.Hour })
		time.Sleep(2 * time.Hour)
		if s, _ := askStatus(t, ti); !slices.Contains(s.Problems, "the scheduled rotation is overdue; keys rotate says who is waited for") {
			t.Errorf("status: got the problems %q, want that the rotation is overdue", s.Problems)
		}
	})
}

// TestStatusBehind: an agent that lacks an entry which has been there for over 15 s is behind, by the age of that entry; one that is
// at the head is not, however long nothing was appended; and the farthest of those that may vouch is the fleet's lag.
func TestStatusBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := &crowd{Fleet: new(bustest.Fleet)}
		vouching := []lease.Vouching{{Agent: "acked", Left: time.Minute}, {Agent: "late", Left: time.Minute}}
		ti := start(t, newBus(), func(_ *issuer.Config, p *issuer.Parts) {
			p.Fleet = fleet
			p.Overview.Vouching = func() []lease.Vouching { return vouching }
		})
		at := func(name string, seq uint64) {
			fleet.agents = append(fleet.agents, bus.AgentInfo{Name: name, Position: bus.Position{Seq: seq}, Seen: time.Now(), Status: json.RawMessage(`{}`)})
		}
		old := ti.replica.Snapshot().Position.Seq
		look := func(wait time.Duration) statusView {
			time.Sleep(wait)
			synctest.Wait()
			fleet.agents = nil
			at("late", old)
			at("head", ti.replica.Snapshot().Position.Seq)
			s, _ := askStatus(t, ti)
			return s
		}
		vouching[0].Acked.Seq, vouching[1].Acked.Seq = old, old
		if s := look(time.Hour); s.Agents.States["ok"] != 2 || s.Agents.Lag != 0 {
			t.Errorf("an hour with no entry: got %+v, want both agents ok, and no lag", s.Agents)
		}
		if _, err := ti.Revoke(t.Context(), issuer.Target{ID: "x"}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		vouching[0].Acked.Seq = ti.replica.Snapshot().Position.Seq
		if s := look(14 * time.Second); s.Agents.States["ok"] != 2 || s.Agents.Lag != 14_000 {
			t.Errorf("14 s behind: got %+v, want both ok, and the lag of who has not acknowledged", s.Agents)
		}
		s := look(10 * time.Second)
		if s.Agents.States["behind"] != 1 || s.Agents.States["ok"] != 1 || len(s.Agents.Worst) != 1 || s.Agents.Lag != 24_000 {
			t.Fatalf("24 s behind: got %+v, want late behind and head ok", s.Agents)
		}
		if w := s.Agents.Worst[0]; w.Name != "late" || w.State != "behind" || w.Lag != 24_000 || w.MayVouch != 60_000 {
			t.Errorf("24 s behind: got %+v, want late, by 24 s", w)
		}
		if len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "agents are behind the log") {
			t.Errorf("24 s behind: got the problems %q, want that agents are behind", s.Problems)
		}
		vouching[1].Acked.Seq = vouching[0].Acked.Seq
		old = vouching[0].Acked.Seq
		if s := look(time.Minute); s.Agents.States["ok"] != 2 || s.Agents.Lag != 0 {
			t.Errorf("caught up: got %+v, want both ok", s.Agents)
		}
	})
}

// TestLagOfAnIdleFleet: agents acknowledge ticks half a minute late, which is no lag; of entries before its lease a run lacks none, though it
// has acknowledged nothing yet; the last entry before a silence counts, also of a second that began with another.
func TestLagOfAnIdleFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, vouching := newBus(), []lease.Vouching{{Agent: "web-1", Left: time.Minute}}
		fleet := &crowd{Fleet: new(bustest.Fleet)}
		ti := start(t, b, func(_ *issuer.Config, p *issuer.Parts) {
			p.Fleet, p.Overview.Vouching = fleet, func() []lease.Vouching { return vouching }
		})
		tick := func(n int) (at bus.Position) {
			for range n {
				var err error
				if at, err = b.log.Tick(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
			}
			return at
		}
		lag := func(when string, want time.Duration) {
			t.Helper()
			synctest.Wait()
			if s, _ := askStatus(t, ti); s.Agents.Lag != want.Milliseconds() {
				t.Errorf("%s: got a lag of %d ms, want %s", when, s.Agents.Lag, want)
			}
		}
		revoke := func(id string) bus.Position {
			t.Helper()
			if _, err := ti.Revoke(t.Context(), issuer.Target{ID: id}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			return ti.replica.Snapshot().Position
		}
		revoke("an hour ago")
		time.Sleep(time.Hour)
		vouching[0].First = tick(1)
		lag("a new run that has acknowledged nothing", 0)
		vouching[0].Acked = tick(1)
		tick(40)
		lag("40 ticks that are not acknowledged", 0)
		fleet.add("stuck", `{}`, time.Now())
		fleet.agents[0].Seq = vouching[0].Acked.Seq
		time.Sleep(3 * time.Second)
		if s, _ := askStatus(t, ti); s.Agents.States["behind"] != 1 {
			t.Errorf("an agent that says it has not read 40 ticks: got %v, want it behind", s.Agents.States)
		}
		vouching[0].Acked = revoke("one")
		time.Sleep(500 * time.Millisecond)
		revoke("another in that second")
		tick(40)
		lag("an entry and 40 ticks", 40*time.Second)
	})
}

// awayFleet is a fleet that the bus does not answer about, until it is back.
type awayFleet struct {
	crowd
	asked int
	back  bool
}

func (f *awayFleet) Agents(ctx context.Context) ([]bus.AgentInfo, error) {
	f.asked++
	if f.back {
		return f.agents, nil
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestScrapesWhileTheBusIsAway: however many ask for metrics while the bus is away, as anybody may where these have no listener of their
// own, the fleet is looked at once in a while and not for each of them; an administrator does not wait behind them all, and the fleet is seen
// soon after it is back.
func TestScrapesWhileTheBusIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := &awayFleet{crowd: crowd{Fleet: new(bustest.Fleet)}}
		ti := start(t, newBus(), func(_ *issuer.Config, p *issuer.Parts) { p.Fleet = fleet })
		before, began := fleet.asked, time.Now()
		for range 10 {
			if w := ask(ti.PublicHandler(), "GET", "/metrics", ""); w.Code != 200 || strings.Contains(w.Body.String(), "sidekey_agents{") {
				t.Fatalf("GET /metrics while the bus is away: got %d %s, want 200 without the agents", w.Code, w.Body)
			}
		}
		rec := ask(ti.LocalAdminHandler(), "GET", "/admin/v1/status", "")
		if rec.Code != 200 || !strings.Contains(rec.Body.String(), "the agents cannot be listed") {
			t.Errorf("GET /admin/v1/status behind 10 scrapes: got %d %s, want it without the agents", rec.Code, rec.Body)
		}
		if took := time.Since(began); took > 6*time.Second || fleet.asked != before+1 {
			t.Errorf("10 scrapes and a status took %s and %d looks at the fleet, want one look's time, 5 s", took, fleet.asked-before)
		}
		fleet.back = true
		fleet.add("web-1", `{}`, time.Now())
		time.Sleep(3 * time.Second)
		if s, _ := askStatus(t, ti); s.Agents.Total != 1 {
			t.Errorf("3 s after the bus is back: got %d agents, want 1", s.Agents.Total)
		}
	})
}

// TestStatusOfMany holds that the answer does not grow with the fleet.
func TestStatusOfMany(t *testing.T) {
	fleet := &crowd{Fleet: new(bustest.Fleet)}
	ti := start(t, newBus(), func(_ *issuer.Config, p *issuer.Parts) { p.Fleet = fleet })
	for n := range 10_000 {
		fleet.add(fmt.Sprintf("web-%05d", n), `{"stale":true}`, time.Now())
		fleet.agents[n].Version = fmt.Sprintf("v1.0.%d", n)
	}
	began := time.Now()
	s, size := askStatus(t, ti)
	if s.Agents.Total != 10_000 || s.Agents.More != 9_980 || len(s.Agents.Worst) != 20 || len(s.Agents.Versions) != 17 {
		t.Errorf("status of 10,000: got %d, %d more, %d worst, %d versions; want 10000, 9980, 20, 17", s.Agents.Total, s.Agents.More, len(s.Agents.Worst), len(s.Agents.Versions))
	}
	if size > 16<<10 {
		t.Errorf("status of 10,000: got %d bytes, want 16 kB at most", size)
	}
	t.Logf("%d bytes in %s", size, time.Since(began))
}
