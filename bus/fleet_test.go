package bus_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

// member writes a member's record, as enrolment does, and gives its revision.
func member(t *testing.T, b *bus.Bucket, m bus.Member, revision uint64) uint64 {
	t.Helper()
	value, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if revision == 0 {
		revision, err = b.Create(t.Context(), bus.Name(m.Name), value)
	} else {
		revision, err = b.Update(t.Context(), bus.Name(m.Name), value, revision)
	}
	if err != nil {
		t.Fatal(err)
	}
	return revision
}

func openFleet(t *testing.T, b *bustest.Bus) (*bus.Fleet, *bus.Bucket) {
	t.Helper()
	agents := b.Bucket(t, bus.BucketAgents)
	f, err := bus.OpenFleet(b.Connect(t), agents)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f, agents
}

func agentsOf(t *testing.T, f *bus.Fleet) map[string]bus.AgentInfo {
	t.Helper()
	list, err := f.Agents(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	byName := make(map[string]bus.AgentInfo)
	last := ""
	for _, a := range list {
		if a.Name <= last {
			t.Errorf("Agents: %q comes after %q", a.Name, last)
		}
		last, byName[a.Name] = a.Name, a
	}
	return byName
}

func status(agent, run string, seq uint64) []byte {
	return fmt.Appendf(nil, `{"agent":%q,"run":%q,"version":"v1","epoch":7,"applied_seq":%d,"more":"words"}`, agent, run, seq)
}

// TestLinkToFleet: an agent's link tells its status, also over a restart of the bus, and the fleet
// hears it.
func TestLinkToFleet(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	fleet, agents := openFleet(t, b)
	key := make([]byte, 32)
	for _, name := range []string{"web-2", "web-1", "web-3"} {
		member(t, agents, bus.Member{Name: name, SigningKey: key, SealingKey: []byte("s " + name), Joined: 1700000000}, 0)
	}
	if a := agentsOf(t, fleet)["web-1"]; !a.Seen.IsZero() || a.Run != "" || a.Joined.Unix() != 1700000000 || string(a.SealingKey) != "s web-1" {
		t.Errorf("an agent that was not heard: got %+v", a)
	}
	ctx, cancel := context.WithCancel(t.Context())
	changed := fleet.Changed()
	link := &bus.Link{Conn: b.ConnectAgent(t, "web-1"), Agent: "web-1", Status: func() ([]byte, error) { return status("web-1", "run-1", 42), nil }}
	done := make(chan struct{})
	go func() { defer close(done); link.Run(ctx) }()
	<-changed
	a := agentsOf(t, fleet)["web-1"]
	if a.Run != "run-1" || a.Position != (bus.Position{Epoch: 7, Seq: 42}) || a.Version != "v1" || time.Since(a.Seen) > time.Minute || !strings.Contains(string(a.Status), "more") {
		t.Errorf("an agent that was heard: got %+v", a)
	}
	cancel()
	<-done

	b.Restart(t)
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	link.Status = func() ([]byte, error) { return status("web-1", "run-2", 43), nil }
	done = make(chan struct{})
	go func() { defer close(done); link.Run(ctx) }() // at first while it is not connected yet
	eventually(t, "the status after a restart", func() bool { return agentsOf(t, fleet)["web-1"].Run == "run-2" })
	cancel()
	<-done
}

// TestFleetHearsMembersOnly: words under another's subject, of nobody, or past all bounds are not
// heard; a removed agent is not listed.
func TestFleetHearsMembersOnly(t *testing.T) {
	b := bustest.Start(t)
	fleet, agents := openFleet(t, b)
	rev := member(t, agents, bus.Member{Name: "web-1", SigningKey: make([]byte, 32)}, 0)
	member(t, agents, bus.Member{Name: "last", SigningKey: make([]byte, 32)}, 0)
	nc := owner(t, b)
	say := func(subject string, data []byte) {
		t.Helper()
		if err := nc.Publish("sidekey.status."+subject, data); err != nil {
			t.Fatal(err)
		}
	}
	changed := fleet.Changed()
	say(bus.Name("web-2"), status("web-1", "foreign", 1))
	say("web-1", status("web-1", "not encoded", 1))
	say(bus.Name("nobody"), status("nobody", "r", 1))
	say(bus.Name(strings.Repeat("n", 2900)), status(strings.Repeat("n", 2900), "r", 1)) // a record's name past what NATS takes
	say(bus.Name("web-1"), []byte("no JSON"))
	say(bus.Name("web-1"), nil)
	say(bus.Name("web-1"), append(status("web-1", "r", 1), make([]byte, 70_000)...))
	say(bus.Name("web-1"), fmt.Appendf(nil, `{"agent":"web-1","run":"large","more":%q}`, strings.Repeat("x", 70_000)))
	say(bus.Name("last"), status("last", "r", 1))
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	<-changed // the last one, behind which all the others are dealt with
	all := agentsOf(t, fleet)
	if a := all["web-1"]; !a.Seen.IsZero() || a.Run != "" {
		t.Errorf("web-1 was heard through what it did not say: %+v", a)
	}
	if a := all["last"]; a.Run != "r" {
		t.Errorf("last was not heard: %+v", a)
	}
	if n := fleet.HeardNames(); n != 1 {
		t.Errorf("%d names are remembered, want only that of the member who spoke", n)
	}

	member(t, agents, bus.Member{Name: "web-1", SigningKey: make([]byte, 32), RemovedAt: 1700000000}, rev)
	fleet.Touch()
	if _, ok := agentsOf(t, fleet)["web-1"]; ok {
		t.Error("a removed agent is listed")
	}
	everybody, err := fleet.Everybody(t.Context())
	if err != nil || len(everybody) != 2 || everybody[1].Removed.Unix() != 1700000000 {
		t.Errorf("Everybody: got %+v, %v, want the removed one too", everybody, err)
	}
	for name, read := range map[string]func(context.Context, string) (ed25519.PublicKey, error){"SigningKey": fleet.SigningKey, "KnownSigningKey": fleet.KnownSigningKey} {
		for _, agent := range []string{"web-1", "nobody"} {
			if _, err := read(t.Context(), agent); !errors.Is(err, bus.ErrNotFound) {
				t.Errorf("%s of %s: got %v, want ErrNotFound", name, agent, err)
			}
		}
		if key, err := read(t.Context(), "last"); err != nil || len(key) != 32 {
			t.Errorf("%s of a member: got %d bytes, %v", name, len(key), err)
		}
	}
	fleet.Close()
	fleet.Close()
}

// TestMayHold: what may be held by agents that nothing else is known of is the longest that any of them asked for, removed or not; of
// one that was never noted it is not known, and one that goes on without a lease has no end.
func TestMayHold(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	f, agents := openFleet(t, b)
	want := func(when string, longest time.Duration, serving string) {
		t.Helper()
		// What another issuer's fleet reads counts: nothing of it is in this one's memory alone.
		other, _ := openFleet(t, b)
		got, who, err := other.MayHold(t.Context())
		if err != nil || got != longest || who != serving {
			t.Errorf("MayHold, %s: got %s, %q, %v; want %s, %q", when, got, who, err, longest, serving)
		}
	}
	note := func(agent string, length time.Duration, serves bool) {
		t.Helper()
		if err := f.NoteLease(t.Context(), agent, length, serves); err != nil {
			t.Fatal(err)
		}
	}
	want("of nobody", 0, "")
	member(t, agents, bus.Member{Name: "web-1"}, 0)
	want("of one never noted", 0, "")
	note("web-1", time.Minute, false)
	note("web-1", time.Second, false)
	want("of one", time.Minute, "")
	member(t, agents, bus.Member{Name: "gone", Longest: 3_600_000, RemovedAt: 1700000000}, 0)
	want("of one that was removed", time.Hour, "")
	note("web-1", time.Second, true)
	note("web-1", time.Minute, false)
	want("of one that serves", 0, "web-1")
	if err := f.NoteLease(t.Context(), "nobody", time.Minute, false); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("NoteLease of who has not joined: got %v, want ErrNotFound", err)
	}
}
