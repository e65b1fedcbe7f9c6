package bus_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats.go"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

// asks asks a slow issuer something from the agents' account, and does something before it is answered.
func asks(t *testing.T, b *bustest.Bus, meanwhile func()) error {
	t.Helper()
	issuer, agent := owner(t, b), operator(t, b, b.Agent(t, "x"), nats.CustomInboxPrefix("_INBOX_AGENT._eA"))
	heard := make(chan *nats.Msg, 1)
	if _, err := issuer.ChanSubscribe("sidekey.lease.*", heard); err != nil {
		t.Fatal(err)
	}
	if err := issuer.Flush(); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := agent.Request("sidekey.lease._eA", []byte("?"), 2*time.Second)
		answered <- err
	}()
	select {
	case m := <-heard:
		meanwhile()
		if err := m.Respond([]byte("!")); err != nil {
			t.Fatal(err)
		}
		return <-answered
	case err := <-answered:
		t.Fatalf("the issuer did not hear the request: %v", err)
		return nil
	}
}

// TestUnchangedRemovalsCostNoAnswer: whoever waits for an answer across the accounts gets it though the list of the removed, which
// is looked at every few seconds, is applied meanwhile: nobody and, later, somebody was removed.
func TestUnchangedRemovalsCostNoAnswer(t *testing.T) {
	b := bustest.Start(t)
	e := b.Enrolment(t)
	apply := func(what string, f func() error) {
		t.Helper()
		if err := asks(t, b, func() {
			if err := f(); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}); err != nil {
			t.Errorf("%s: the request that was under way: %v", what, err)
		}
	}
	apply("an empty list", func() error { return b.Server.Revoke(nil) })
	apply("a look", func() error { return e.Look(t.Context()) })
	b.Join(t, "gone")
	if err := e.Remove(t.Context(), bus.RoleAgent, "gone"); err != nil {
		t.Fatal(err)
	}
	apply("a look after a removal", func() error { return e.Look(t.Context()) })
	b.Restart(t)
	e = b.OpenEnrolment(t, func(*bus.EnrolConfig) {})
	apply("a look after a restart", func() error { return e.Look(t.Context()) })
}

// failures counts the lines that are written to it.
type failures struct{ lines atomic.Int64 }

func (f *failures) Write(line []byte) (int, error) {
	f.lines.Add(1)
	return len(line), nil
}

// unheard marks an agent's record removed, as another issuer does whose word of it is lost.
func unheard(t *testing.T, b *bustest.Bus, name string) {
	t.Helper()
	bucket := b.Bucket(t, bus.BucketAgents)
	rec, err := bucket.Get(t.Context(), bus.Name(name))
	if err != nil {
		t.Fatal(err)
	}
	var m bus.Member
	if err := json.Unmarshal(rec.Value, &m); err != nil {
		t.Fatal(err)
	}
	m.RemovedAt = time.Now().Unix()
	value, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bucket.Update(t.Context(), rec.Name, value, rec.Revision); err != nil {
		t.Fatal(err)
	}
}

// TestRemovalUnheard: who was removed at another issuer is cut off though this one has not heard of it, and though it failed to
// at first.
func TestRemovalUnheard(t *testing.T) {
	bus.LookOften(t.Cleanup)
	b := bustest.Start(t)
	folder := filepath.Join(t.TempDir(), "full disk")
	failed := new(failures)
	b.OpenEnrolment(t, func(cfg *bus.EnrolConfig) {
		cfg.Revoked = filepath.Join(folder, "bus.revoked")
		cfg.Logger = hclog.New(&hclog.LoggerOptions{Level: hclog.Error, Output: failed})
	})
	var conns []*bus.Conn
	for _, name := range []string{"one", "two"} { // by the kit's own enrolment, which is to look no more
		conns = append(conns, connectAs(t, b.Join(t, name)))
	}
	b.Enrolment(t).Close()
	unheard(t, b, "one")
	eventually(t, "some looks to fail", func() bool { return failed.lines.Load() > 3 })
	if !conns[0].Connected() {
		t.Error("cut off without a place for the list")
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first one's connection to end", func() bool { return !conns[0].Connected() })
	unheard(t, b, "two")
	eventually(t, "the second one's connection to end", func() bool { return !conns[1].Connected() })
}
