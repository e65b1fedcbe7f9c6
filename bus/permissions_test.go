package bus_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

// denials collects what the server refuses on a connection.
type denials struct {
	mu  sync.Mutex
	all []string
}

func (d *denials) option() nats.Option {
	return nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.all = append(d.all, err.Error())
	})
}

// of tells whether the server has refused a verb ("publish", "subscription") on a subject.
func (d *denials) of(verb, subject string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, text := range d.all {
		if strings.Contains(strings.ToLower(text), "permissions violation for "+verb+" to \""+strings.ToLower(subject)+"\"") {
			return true
		}
	}
	return false
}

// eventually waits for something that another goroutine or process brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	again := time.NewTicker(2 * time.Millisecond)
	defer again.Stop()
	for !ok() {
		select {
		case <-again.C:
		case <-deadline.C:
			t.Fatalf("not within ten seconds: %s", what)
		}
	}
}

// a stocked bus: a log with two entries and a tick, a checkpoint, every bucket with a record.
func stocked(t *testing.T) (*bustest.Bus, *bus.Log) {
	t.Helper()
	b := bustest.Start(t)
	l := b.Log(t)
	mustAppend(t, l, revocation("a"), revocation("b"))
	if _, err := l.Tick(t.Context()); err != nil {
		t.Fatal(err)
	}
	head := collect(t, l, bus.Cursor{}, 2)[1].Cursor()
	writeCheckpoint(t, l, head, []byte("image"))
	audited(t, b.Audit(t, "one"), "secret")
	for _, name := range buckets {
		if _, err := b.Bucket(t, name).Create(t.Context(), bus.Name("x"), []byte("secret")); err != nil {
			t.Fatal(err)
		}
	}
	return b, l
}

var buckets = []string{bus.BucketUsers, bus.BucketSubjects, bus.BucketSessions, bus.BucketClients, bus.BucketKeys, bus.BucketAgents, bus.BucketIssuers, bus.BucketJoins}

func streams() []string {
	all := []string{"sidekey_log", "sidekey_checkpoint", "sidekey_grants", "sidekey_audit"}
	for _, name := range buckets {
		all = append(all, "KV_sidekey_"+name)
	}
	return all
}

// world is what an intruder could change: every stream's state, as its owner sees it.
func world(t *testing.T, owner *nats.Conn) string {
	t.Helper()
	var all strings.Builder
	for _, stream := range streams() {
		m, err := owner.Request("$JS.API.STREAM.INFO."+stream, nil, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		var info struct {
			State struct {
				Messages  uint64 `json:"messages"`
				FirstSeq  uint64 `json:"first_seq"`
				LastSeq   uint64 `json:"last_seq"`
				Consumers int    `json:"consumer_count"`
			} `json:"state"`
			Error any `json:"error"`
		}
		if err := json.Unmarshal(m.Data, &info); err != nil || info.Error != nil {
			t.Fatalf("%s: %v %v", stream, err, info.Error)
		}
		fmt.Fprintln(&all, stream, info.State)
	}
	return all.String()
}

// TestAgentMayNot is the table of what an agent's credential is refused: by the server, each call
// by itself, and with no effect on any stream.
func TestAgentMayNot(t *testing.T) {
	b, _ := stocked(t)
	owner := operator(t, b, b.Issuer(t))
	before := world(t, owner)
	var refused denials
	agent := operator(t, b, b.Agent(t, "x"), refused.option())

	publish := []string{
		"$JS.API.INFO", "$JS.API.ACCOUNT.PURGE.x", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST",
		"$JS.API.META.LEADER.STEPDOWN", "$JS.API.SERVER.REMOVE",
		"sidekey.log.key", "sidekey.log.revoke", "sidekey.log.tick", "sidekey.log.other", "sidekey.grants", "sidekey.audit._eA",
		"sidekey.live.key", "sidekey.live.revoke", "sidekey.live.tick",
		"sidekey.checkpoint.manifest", "sidekey.checkpoint.chunk.x", "$SYS.REQ.SERVER.PING", "$SYS.ACCOUNT.SIDEKEY.CONNECT",
		"_INBOX.x.y", "_INBOX_AGENT.x.y", "_INBOX_AGENT._eA.y", "_INBOX_JOIN.x.y", "_R_.x", "other",
		"sidekey.ack._eQ", "sidekey.lease._eQ", "sidekey.status._eQ", "sidekey.used._eQ", "sidekey.basic._eQ", "sidekey.basic", "sidekey.basic._eA.x",
		"sidekey.log.sealing", "sidekey.log.credential", "sidekey.live.sealing", "sidekey.ack", "sidekey.ack._eA.x", "sidekey.join.x", "sidekey.removed", // another agent's
		"$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.USER.INFO", "$SYS.REQ.ACCOUNT.PING.CONNZ",
	}
	for _, stream := range streams() {
		for _, call := range []string{
			"STREAM.CREATE.%s", "STREAM.UPDATE.%s", "STREAM.DELETE.%s", "STREAM.PURGE.%s", "STREAM.INFO.%s", "STREAM.SNAPSHOT.%s",
			"STREAM.RESTORE.%s", "STREAM.MSG.GET.%s", "STREAM.MSG.DELETE.%s", "STREAM.LEADER.STEPDOWN.%s", "STREAM.PEER.REMOVE.%s",
			"CONSUMER.CREATE.%s", "CONSUMER.CREATE.%s.c", "CONSUMER.CREATE.%s.c.x", "CONSUMER.DURABLE.CREATE.%s.c",
			"CONSUMER.NAMES.%s", "CONSUMER.LIST.%s", "CONSUMER.INFO.%s.c", "CONSUMER.DELETE.%s.c", "CONSUMER.MSG.NEXT.%s.c", "CONSUMER.PAUSE.%s.c",
		} {
			publish = append(publish, "$JS.API."+fmt.Sprintf(call, stream))
		}
		if stream != "sidekey_log" && stream != "sidekey_checkpoint" {
			publish = append(publish, "$JS.API.DIRECT.GET."+stream, "$JS.API.DIRECT.GET."+stream+".x")
		}
	}
	for _, name := range buckets {
		publish = append(publish, "$KV.sidekey_"+name+"."+bus.Name("x"))
	}
	for _, subject := range publish {
		if err := agent.PublishRequest(subject, "_INBOX_AGENT._eA.answer", []byte(`{}`)); err != nil {
			t.Fatal(err)
		}
	}
	subscribe := []string{
		">", "*", "sidekey.>", "sidekey.*.*", "sidekey.log.>", "sidekey.ack.*", "sidekey.status.*", "sidekey.used.*", "sidekey.basic.*", "sidekey.basic._eA", "sidekey.join.*", "sidekey.removed", "sidekey.up", "sidekey.lease.*", "sidekey.grants", "sidekey.audit.*",
		"sidekey.checkpoint.>", "_INBOX.>", "_INBOX.x.*", "_INBOX_AGENT.>", "_INBOX_AGENT._eQ.>", "_INBOX_AGENT.*.>", "_INBOX_JOIN.>", "_R_.>", "$SYS.>", "$JS.>", "$JS.API.>", "$JS.EVENT.>", "$KV.>", "$KV.sidekey_users.>",
	}
	for _, subject := range subscribe {
		if _, err := agent.Subscribe(subject, func(m *nats.Msg) { t.Errorf("an agent received %s through %s", m.Subject, subject) }); err != nil {
			t.Fatal(err)
		}
	}
	for _, subject := range publish {
		eventually(t, "refusal to publish to "+subject, func() bool { return refused.of("publish", subject) })
	}
	for _, subject := range subscribe {
		eventually(t, "refusal to subscribe to "+subject, func() bool { return refused.of("subscription", subject) })
	}
	if after := world(t, owner); after != before {
		t.Errorf("an agent changed the bus: before\n%safter\n%s", before, after)
	}
}

// TestAgentCannotBorrowTheServersHand: the server does not check the reply subject of a request.
// Whatever an agent may ask, with the answer addressed to any place, writes nothing there.
func TestAgentCannotBorrowTheServersHand(t *testing.T) {
	b, _ := stocked(t)
	owner := operator(t, b, b.Issuer(t))
	before := world(t, owner)
	agent := operator(t, b, b.Agent(t, "x"))
	targets := []string{
		"sidekey.log.revoke", "sidekey.log.tick", "sidekey.live.revoke", "sidekey.checkpoint.manifest", "sidekey.checkpoint.chunk.x", "sidekey.grants",
		"$KV.sidekey_users." + bus.Name("x"), "$KV.sidekey_keys." + bus.Name("y"),
		"$JS.API.STREAM.DELETE.KV_sidekey_users", "$JS.API.STREAM.PURGE.sidekey_checkpoint", "$JS.API.STREAM.PURGE.KV_sidekey_keys",
	}
	heard := make(chan string, 100)
	for _, target := range targets[:8] {
		if _, err := owner.Subscribe(target, func(m *nats.Msg) { heard <- m.Subject }); err != nil {
			t.Fatal(err)
		}
	}
	if err := owner.Flush(); err != nil {
		t.Fatal(err)
	}
	requests := [][2]string{
		{"$JS.API.DIRECT.GET.sidekey_log", `{"seq":1}`}, {"$JS.API.DIRECT.GET.sidekey_log", `{"seq":99999}`}, {"$JS.API.DIRECT.GET.sidekey_log", `{"seq":1,"batch":10}`},
		{"$JS.API.DIRECT.GET.sidekey_log", `x`}, {"$JS.API.DIRECT.GET.sidekey_log.sidekey.log.revoke", ``},
		{"$JS.API.DIRECT.GET.sidekey_checkpoint", `{"last_by_subj":"sidekey.checkpoint.manifest"}`}, {"$JS.API.DIRECT.GET.sidekey_checkpoint", `{"seq":1}`},
		{"sidekey.ack._eA", `{}`}, {"sidekey.status._eA", `{}`}, {"sidekey.lease._eA", `{}`}, {"sidekey.used._eA", `{}`}, {"sidekey.basic._eA", `{}`},
	}
	for _, target := range targets {
		for _, r := range requests {
			if err := agent.PublishRequest(r[0], target, []byte(r[1])); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The agent's requests are answered in order: behind this answer all of them have been.
	if _, err := agentRequest(agent, "$JS.API.DIRECT.GET.sidekey_log", `{"seq":1}`); err != nil {
		t.Fatal(err)
	}
	if after := world(t, owner); after != before {
		t.Errorf("an agent had the server write: before\n%safter\n%s", before, after)
	}
	if len(heard) > 0 {
		t.Errorf("an agent had the server publish to %s", <-heard)
	}
}

// agentRequest asks over the inbox that agents have.
func agentRequest(nc *nats.Conn, subject, body string) (*nats.Msg, error) {
	inbox := "_INBOX_AGENT._eA." + nats.NewInbox()[len(nats.InboxPrefix):]
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer sub.Unsubscribe() //nolint:errcheck // the test ends
	if err := nc.PublishRequest(subject, inbox, []byte(body)); err != nil {
		return nil, err
	}
	return sub.NextMsg(5 * time.Second)
}

// TestAgentMay is the other half of the table: all that an agent needs, with its own credential.
func TestAgentMay(t *testing.T) {
	b, l := stocked(t)
	r := b.Reader(t)
	if img, err := r.Checkpoint(t.Context()); err != nil || string(img) != "image" {
		t.Errorf("reading the checkpoint: got %q, %v", img, err)
	}
	live := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- r.Follow(t.Context(), bus.Cursor{}, func(entries []bus.Entry, _ uint64) error {
			for _, en := range entries {
				if rev, ok := en.Fact.(*bus.Revocation); ok && rev.ID == "b" {
					close(live)
				} else if ok && rev.ID == "live" {
					return errEnough
				}
			}
			return nil
		})
	}()
	<-live
	mustAppend(t, l, revocation("live"))
	if err := <-done; !errors.Is(err, errEnough) {
		t.Errorf("following the log: %v", err)
	}

	owner, agent := operator(t, b, b.Issuer(t)), operator(t, b, b.Agent(t, "x"))
	if _, err := owner.Subscribe("sidekey.>", func(m *nats.Msg) {
		if m.Reply != "" {
			m.Respond([]byte("heard " + m.Subject)) //nolint:errcheck // its absence fails the test
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := owner.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{"sidekey.ack._eA", "sidekey.status._eA", "sidekey.lease._eA", "sidekey.used._eA", "sidekey.basic._eA"} {
		if m, err := agentRequest(agent, subject, "{}"); err != nil || string(m.Data) != "heard "+subject {
			t.Errorf("speaking on %s: %v", subject, err)
		}
	}
}
