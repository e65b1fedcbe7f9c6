package bus_test

import (
	"context"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

// TestHealth looks at the embedded server as an issuer does, and holds its metrics against Prometheus's lint and docs/metrics.md.
func TestHealth(t *testing.T) {
	b := bustest.Start(t)
	log := b.Log(t)
	b.Bucket(t, bus.BucketUsers)
	if _, err := log.Append(t.Context(), &bus.Revocation{ID: "j1", ExpiresAt: 2000000000}, &bus.Revocation{ID: "j2", ExpiresAt: 2000000000}); err != nil {
		t.Fatal(err)
	}
	conn := b.Connect(t)
	m := &bus.Monitor{Conn: conn, Reader: log.Reader, Embedded: b.Server}
	if m.Health() != nil || testutil.CollectAndCount(m) != 0 {
		t.Error("Monitor: tells something before it has looked")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); m.Run(ctx) }()
	for m.Health() == nil {
		if _, err := log.Tick(t.Context()); err != nil { // gives it time
			t.Fatal(err)
		}
	}
	cancel()
	<-done
	h := bus.LookAtHealth(t.Context(), conn, log.Reader, b.Server, bus.Unknown)
	if h.Error != "" || !h.Connected || h.Sync != bus.Synced || h.Last < 3 || h.First != 1 || h.LogBytes == 0 || h.Leaderless != 0 || h.Embedded == nil || h.Embedded.Connections == 0 {
		t.Errorf("LookAtHealth: got %+v, want a sound bus with a log of 3 entries or more", h)
	}
	names := map[string]bool{}
	for _, s := range h.Streams {
		names[s.Name] = true
	}
	if !names["log"] || !names["users"] || !names["checkpoint"] {
		t.Errorf("LookAtHealth: got the streams %v, want log, checkpoint and users among them", names)
	}
	lintAndCompare(t, m)
	conn.Close()
	if h := bus.LookAtHealth(t.Context(), conn, log.Reader, nil, bus.Unknown); h.Connected || h.Error == "" || len(h.Streams) != 0 {
		t.Errorf("LookAtHealth without a connection: got %+v, want that it says so", h)
	}
}

// TestSyncedIsToldByWhoKnows: an issuer that cannot know whether the bus syncs, as one that joined another's embedded server, does not
// tell that it does not.
func TestSyncedIsToldByWhoKnows(t *testing.T) {
	b := bustest.Start(t)
	log, conn := b.Log(t), b.Connect(t)
	said := func(d bus.Durability) func(context.Context) (bus.Durability, error) {
		return func(context.Context) (bus.Durability, error) { return d, nil }
	}
	for name, c := range map[string]struct {
		monitor *bus.Monitor
		want    string // "": absent
	}{
		"embedded":          {&bus.Monitor{Embedded: b.Server}, "1"},
		"joined another's":  {new(bus.Monitor), ""},
		"one that syncs":    {&bus.Monitor{Sync: said(bus.Synced)}, "1"},
		"one that does not": {&bus.Monitor{Sync: said(bus.Delayed)}, "0"},
		"one that does not answer": {&bus.Monitor{Sync: func(context.Context) (bus.Durability, error) {
			return bus.Unknown, context.DeadlineExceeded
		}}, ""},
	} {
		c.monitor.Conn, c.monitor.Reader = conn, log.Reader
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); c.monitor.Run(ctx) }()
		for c.monitor.Health() == nil {
			if _, err := log.Tick(t.Context()); err != nil { // gives it time
				t.Fatal(err)
			}
		}
		cancel()
		<-done
		want := ""
		if c.want != "" {
			want = "# HELP sidekey_bus_synced 1 where the bus syncs a write before it acknowledges it; 0: it does not. Absent where this issuer cannot know.\n" +
				"# TYPE sidekey_bus_synced gauge\nsidekey_bus_synced " + c.want + "\n"
		}
		if err := testutil.CollectAndCompare(c.monitor, strings.NewReader(want), "sidekey_bus_synced"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func lintAndCompare(t *testing.T, c prometheus.Collector) {
	t.Helper()
	problems, err := testutil.CollectAndLint(c)
	if err != nil || len(problems) > 0 {
		t.Errorf("CollectAndLint: got %v, %v, want none", problems, err)
	}
	page, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	descs := make(chan *prometheus.Desc, 100)
	c.Describe(descs)
	close(descs)
	for d := range descs {
		name := regexp.MustCompile(`fqName: "([^"]+)"`).FindStringSubmatch(d.String())[1]
		if !strings.Contains(string(page), "`"+name+"`") && !strings.Contains(string(page), "`"+name+"{") {
			t.Errorf("docs/metrics.md lacks %s", name)
		}
	}
}
