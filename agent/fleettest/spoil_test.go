package fleettest_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sidekey/sidekey/agent/fleettest"
	"github.com/sidekey/sidekey/bus/bustest"
)

// spoiler alters, forges, repeats, reorders and withholds what it is handed, by chance.
type spoiler struct {
	mu    sync.Mutex
	rng   *rand.Rand
	only  func(bustest.Message) bool
	kept  []bustest.Message // to be sent again, or late
	count map[string]int
}

func newSpoiler(only func(bustest.Message) bool) *spoiler {
	return &spoiler{rng: rand.New(rand.NewPCG(1, 2)), only: only, count: make(map[string]int)}
}

func (s *spoiler) spoil(m bustest.Message) []bustest.Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.only(m) {
		return []bustest.Message{m}
	}
	if len(s.kept) < 200 {
		s.kept = append(s.kept, m.Clone())
	}
	switch s.rng.IntN(8) {
	case 0:
		s.count["altered"]++
		bit := s.rng.IntN(8 * len(m.Body))
		m.Body[bit/8] ^= 1 << (bit % 8)
	case 1:
		s.count["replayed"]++
		return []bustest.Message{s.kept[s.rng.IntN(len(s.kept))].Clone(), m, m.Clone()}
	case 2:
		s.count["withheld"]++
		return nil
	case 3:
		s.count["reordered"]++
		n := s.rng.IntN(len(s.kept))
		late := s.kept[n]
		s.kept[n] = m
		return []bustest.Message{late}
	case 4:
		// What nobody wrote, in the place of what somebody did.
		if forged := m.Clone(); bytes.Contains(forged.Body, []byte(`"jti":"bad-`)) {
			s.count["forged"]++
			copy(forged.Body[bytes.Index(forged.Body, []byte(`"jti":"bad-`)):], `"jti":"good`)
			return []bustest.Message{forged, m}
		}
	}
	return []bustest.Message{m}
}

func (s *spoiler) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprint(s.count)
}

// isEntry tells whether a message carries an entry to an agent: live, or read back.
func isEntry(m bustest.Message) bool {
	return strings.HasPrefix(m.Subject, "sidekey.live.") || bytes.Contains(m.Header, []byte("Sidekey-Epoch:"))
}

// TestSpoiledEntries: whatever a network does to the entries of the log, an agent applies those that the
// issuer wrote, in their order, or none; and when it is well again the agent has all of them.
func TestSpoiledEntries(t *testing.T) {
	t.Parallel()
	f := fleettest.Start(t)
	i := f.Issuer("issuer-1", nil)
	good := f.Token("good")
	a := f.Agent("web-1", fleettest.AgentConfig{Length: time.Minute}).Ready(good)
	s := newSpoiler(isEntry)
	a.Proxy.Tamper(bustest.ToClient, s.spoil)
	entries := 300
	if long {
		entries = 10_000
	}
	wrong := 0
	for n := range entries {
		at := i.Revoke(fmt.Sprint("bad-", n))
		if cur := a.Replica.Cursor(); cur.Seq > at.Seq {
			wrong++
		} else if chain, known := i.Replica.ChainAt(cur.Seq); known && chain != cur.Chain {
			wrong++
		}
		if got := a.Verify(good); got == 401 {
			t.Fatalf("a forged revocation was applied: %v", s)
		}
	}
	a.Proxy.Resume()
	last := i.Revoke("last")
	f.Eventually("the agent has everything", func() bool { return a.Seq() >= last.Seq })
	for n := range entries {
		if a.Verify(f.Token(fmt.Sprint("bad-", n))) != 401 {
			t.Fatalf("revocation %d was lost", n)
		}
	}
	if got := a.Verify(good); got != 200 || wrong != 0 {
		t.Errorf("the other token: %d, want 200; %d times the agent's entries were not the issuer's", got, wrong)
	}
	i.Settle(last)
	t.Logf("%d entries under %v: forged, altered, replayed, reordered and withheld entries applied = 0", entries, s)
}

// TestSpoiledLeases: whatever a network does to questions, answers and acknowledgements, a lease is no
// longer and no acknowledgement says more than the truth: when a receipt is settled nobody vouches.
func TestSpoiledLeases(t *testing.T) {
	t.Parallel()
	f := fleettest.Start(t)
	i := f.Issuer("issuer-1", nil)
	var spoilers []*spoiler
	var agents []*fleettest.Agent
	for _, name := range []string{"web-1", "web-2"} {
		a := f.Agent(name, fleettest.AgentConfig{Length: 500 * time.Millisecond}).Ready(f.Token("any"))
		agents = append(agents, a)
		for _, way := range []bustest.Direction{bustest.ToServer, bustest.ToClient} {
			s := newSpoiler(func(m bustest.Message) bool { return !isEntry(m) && len(m.Body) > 0 })
			a.Proxy.Tamper(way, s.spoil)
			spoilers = append(spoilers, s)
		}
	}
	rounds := 6
	if long {
		rounds = 200
	}
	for n := range rounds {
		jti := fmt.Sprint("bad-", n)
		token := f.Token(jti)
		at := i.Revoke(jti)
		i.Settle(at)
		for _, a := range agents {
			if a.Verify(token) == 200 {
				t.Errorf("%s vouches for what is confirmed to be revoked", a.AgentName)
			}
		}
	}
	for _, a := range agents {
		a.Proxy.Resume()
		a.Ready(f.Token("any"))
	}
	t.Logf("%d receipts while leases and acknowledgements of two agents were spoiled (%v): vouched after a receipt 0 times", rounds, spoilers)
}

// TestOthersAcknowledgements: an agent's credential lets nobody say what another one has applied, nor does
// replaying what that one said earlier.
func TestOthersAcknowledgements(t *testing.T) {
	t.Parallel()
	f := fleettest.Start(t)
	i := f.Issuer("issuer-1", nil)
	token := f.Token("bad")
	one := f.Agent("web-1", fleettest.AgentConfig{Length: time.Hour}).Ready(token)
	two := f.Agent("web-2", fleettest.AgentConfig{Length: time.Hour}).Ready(token)
	earlier, kept := new(sync.Mutex), []bustest.Message(nil)
	one.Proxy.Tamper(bustest.ToServer, func(m bustest.Message) []bustest.Message {
		earlier.Lock()
		defer earlier.Unlock()
		if strings.HasPrefix(m.Subject, "sidekey.ack.") {
			kept = append(kept, m.Clone())
		}
		return []bustest.Message{m}
	})
	before := i.Revoke("before")
	i.Settle(before)
	// From here on what it says is held back, and what it said is repeated in its place.
	var replayed int
	one.Proxy.Tamper(bustest.ToServer, func(m bustest.Message) []bustest.Message {
		earlier.Lock()
		defer earlier.Unlock()
		if strings.HasPrefix(m.Subject, "sidekey.ack.") {
			replayed++
			return []bustest.Message{kept[replayed%len(kept)].Clone()}
		}
		return []bustest.Message{m}
	})
	at := i.Revoke("bad")
	f.Eventually("both refuse", func() bool { return one.Verify(token) == 401 && two.Verify(token) == 401 })
	f.Eventually("web-2 has acknowledged", func() bool { rec := i.Receipt(at); return rec != nil && len(rec.Pending) == 1 })
	forged := 0
	f.While(2*time.Second, "web-1 is pending", func() bool {
		chain := two.Replica.Cursor()
		for _, run := range []string{one.Holder.Run(), two.Holder.Run()} {
			body, err := json.Marshal(map[string]any{"agent": "web-1", "run": run, "epoch": chain.Epoch, "seq": chain.Seq, "chain": chain.Chain})
			if err != nil {
				t.Fatal(err)
			}
			for _, subject := range []string{"web-1", "web-2"} {
				_, stranger, _ := ed25519.GenerateKey(nil)
				two.Conn.Acknowledge(subject, body, ed25519.Sign(stranger, append([]byte("sidekey-ack-1\x00"), body...)))
				forged++
			}
		}
		rec := i.Receipt(at)
		return rec != nil && len(rec.Pending) == 1 && rec.Pending[0] == "web-1"
	})
	one.Proxy.Resume()
	i.Settle(at)
	t.Logf("%d forged and other agents' acknowledgements, %d replayed ones: counted = 0", forged, replayed)
}

// TestWithheld: who withholds a revocation from an agent, and lets everything else through, has it vouch
// for no longer than max_staleness.
func TestWithheld(t *testing.T) {
	t.Parallel()
	const length = time.Second
	f := fleettest.Start(t)
	i := f.Issuer("issuer-1", nil)
	for name, withhold := range map[string]func(bustest.Message, string) bool{
		"all entries":    func(m bustest.Message, _ string) bool { return isEntry(m) },
		"this one entry": func(m bustest.Message, jti string) bool { return bytes.Contains(m.Body, []byte(jti)) },
		"live entries, and it": func(m bustest.Message, jti string) bool {
			return strings.HasPrefix(m.Subject, "sidekey.live.") || bytes.Contains(m.Body, []byte(jti))
		},
	} {
		jti := strings.ReplaceAll(name, " ", "-")
		token := f.Token(jti)
		a := f.Agent(jti, fleettest.AgentConfig{Length: length}).Ready(token)
		var withheld atomic.Int64
		a.Proxy.Tamper(bustest.ToClient, func(m bustest.Message) []bustest.Message {
			if withhold(m, `"`+jti+`"`) && isEntry(m) {
				withheld.Add(1)
				return nil
			}
			return []bustest.Message{m}
		})
		at := i.Revoke(jti)
		last, _ := i.Watch(at, a, token)
		if last > length+50*time.Millisecond || withheld.Load() == 0 {
			t.Errorf("%s: it vouched for %s, want at most %s; %d messages were withheld", name, last, length, withheld.Load())
		}
		t.Logf("%s withheld (%d): vouched for %s by a lease of %s, then 0 times", name, withheld.Load(), last, length)
		a.Proxy.Resume()
		f.Eventually("it refuses when it has the entry", func() bool { return a.Verify(token) == 401 })
		a.Stop()
	}
}
