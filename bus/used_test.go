package bus_test

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

// usedBooks is what issuers have heard was used.
type usedBooks struct {
	mu       sync.Mutex
	messages int
	used     map[string]int64
}

func (b *usedBooks) hear(_ string, used map[string]int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.messages++
	if b.used == nil {
		b.used = make(map[string]int64)
	}
	maps.Copy(b.used, used)
}

func (b *usedBooks) look() (map[string]int64, int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.used), b.messages
}

// speaker is an agent that has joined, and its link.
func speaker(t *testing.T, b *bustest.Bus, agents *bus.Bucket, name string, used func() map[string]int64) *bus.Link {
	t.Helper()
	public, private := generate(t)
	member(t, agents, bus.Member{Name: name, SigningKey: public}, 0)
	return &bus.Link{
		Conn: b.ConnectAgent(t, name), Agent: name, Key: private, Used: used,
		Status: func() ([]byte, error) { return status(name, "r", 1), nil },
	}
}

// TestUsed: what an agent says was used reaches one issuer, message by message, at once and at the agent's
// end; what no issuer hears is told again.
func TestUsed(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	one, agents := openFleet(t, b)
	two, _ := openFleet(t, b)
	now := time.Now().Unix()
	var calls atomic.Int64
	link := speaker(t, b, agents, "web-1", func() map[string]int64 {
		if calls.Add(1) > 1 {
			return map[string]int64{"early": now - 5, "late": now - 4}
		}
		used := map[string]int64{"early": now - 9, "": now, strings.Repeat("x", bus.MaxID+1): now}
		for n := range 5000 {
			used[fmt.Sprintf("k_%d <&>", n)] = now - 7
		}
		return used
	})
	run := func(heard func() bool) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); link.Run(ctx) }()
		eventually(t, "what was used", heard)
		cancel()
		<-done
	}
	// Nobody listens: all of it is kept, and told when the agent ends, if somebody does by then.
	var books usedBooks
	run(func() bool { return calls.Load() > 0 })
	if used, _ := books.look(); len(used) > 0 {
		t.Fatalf("heard by nobody: %d", len(used))
	}
	for _, f := range []*bus.Fleet{one, two} {
		stop, err := f.OnUsed(books.hear)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(stop)
	}
	run(func() bool { used, _ := books.look(); return len(used) == 5002 })
	used, messages := books.look()
	if used["early"] != now-5 || used["late"] != now-4 || used["k_77 <&>"] != now-7 {
		t.Errorf("got early %d, late %d, k_77 %d, want %d, %d and %d", used["early"], used["late"], used["k_77 <&>"], now-5, now-4, now-7)
	}
	if messages < 2 || messages > 10 {
		t.Errorf("5002 uses came in %d messages, want a few, each once", messages)
	}
}

// TestUsedRefused: an agent is believed under its own name and signature, and about the last hour only.
func TestUsedRefused(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	fleet, agents := openFleet(t, b)
	var books usedBooks
	stop, err := fleet.OnUsed(books.hear)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	link, stranger := speaker(t, b, agents, "web-1", nil), speaker(t, b, agents, "web-2", nil)
	nc, now := owner(t, b), time.Now().Unix()
	say := func(on string, body any, key ed25519.PrivateKey, context string) bool {
		t.Helper()
		data, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		sig := ed25519.Sign(key, append([]byte(context), data...))
		_, err = nc.RequestMsg(&nats.Msg{Subject: "sidekey.used." + bus.Name(on), Data: data, Header: nats.Header{
			"Sidekey-Signature": {base64.RawURLEncoding.EncodeToString(sig)},
		}}, 300*time.Millisecond)
		return err == nil
	}
	type msg map[string]any
	type uses map[string]int64
	many := make(uses)
	for n := range 4097 {
		many[fmt.Sprint(n)] = now
	}
	const context = "sidekey-used-1\x00"
	for name, heard := range map[string]bool{
		"another's key":     say("web-1", msg{"agent": "web-1", "used": uses{"x": now}}, stranger.Key, context),
		"another's subject": say("web-1", msg{"agent": "web-2", "used": uses{"x": now}}, link.Key, context),
		"a stranger":        say("web-3", msg{"agent": "web-3", "used": uses{"x": now}}, link.Key, context),
		"another context":   say("web-1", msg{"agent": "web-1", "used": uses{"x": now}}, link.Key, "sidekey-ack-1\x00"),
		"too many":          say("web-1", msg{"agent": "web-1", "used": many}, link.Key, context),
		"too long":          say("web-1", msg{"agent": "web-1", "used": uses{strings.Repeat("x", 70_000): now}}, link.Key, context),
		"no times":          say("web-1", msg{"agent": "web-1", "used": msg{"x": "now"}}, link.Key, context),
		"a fraction":        say("web-1", msg{"agent": "web-1", "used": msg{"x": 1.5}}, link.Key, context),
	} {
		if heard {
			t.Errorf("%s: it was confirmed", name)
		}
	}
	if used, n := books.look(); n != 0 {
		t.Fatalf("what nobody may say was heard: %v", used)
	}
	if !say("web-1", msg{"agent": "web-1", "used": uses{"future": now + 1e6, "past": now - 3700, "good": now - 3000, "": now, strings.Repeat("x", 1025): now}}, link.Key, context) {
		t.Error("what the agent itself says was not confirmed")
	}
	used, _ := books.look()
	if len(used) != 2 || used["good"] != now-3000 || used["future"] < now || used["future"] > time.Now().Unix() {
		t.Errorf("of what the agent itself says: got %v, want good and, as of now, future", used)
	}
}
