package lease_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
)

// clock is a machine's clocks, which a test turns.
type clock struct {
	mu  sync.Mutex
	now lease.Reading
}

func newClock() *clock {
	return &clock{now: lease.Reading{Mono: time.Minute, Boot: time.Hour, Wall: 20_000 * 24 * time.Hour}}
}

func (c *clock) read() lease.Reading {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) turn(mono, boot, wall time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.Mono, c.now.Boot, c.now.Wall = c.now.Mono+mono, c.now.Boot+boot, c.now.Wall+wall
}

// pass lets time pass, by all clocks.
func (c *clock) pass(d time.Duration) { c.turn(d, d, d) }

// tape is a log's positions and chains, without what it says.
type tape struct {
	epoch  uint64
	salt   byte // another one is another log of the same length
	chains []bus.Chain
}

func newTape() *tape { return &tape{epoch: 1} }

// next appends an entry.
func (l *tape) next() bus.Cursor {
	var last bus.Chain
	if n := len(l.chains); n > 0 {
		last = l.chains[n-1]
	}
	l.chains = append(l.chains, sha256.Sum256(append(last[:], l.salt, byte(l.epoch))))
	return l.at(uint64(len(l.chains)))
}

func (l *tape) at(seq uint64) bus.Cursor {
	return bus.Cursor{Position: bus.Position{Epoch: l.epoch, Seq: seq}, Chain: l.chains[seq-1]}
}

func (l *tape) upTo(seq uint64) bus.Cursor {
	for uint64(len(l.chains)) < seq {
		l.next()
	}
	return l.at(seq)
}

func (l *tape) chainAt(seq uint64) (bus.Chain, bool) {
	if seq == 0 || seq > uint64(len(l.chains)) {
		return bus.Chain{}, false
	}
	return l.chains[seq-1], true
}

// answers makes the grant that answers a request by the tick at a cursor.
func answers(req lease.Request, at bus.Cursor) lease.Grant {
	return lease.Grant{Request: req, Position: at.Position, Chain: at.Chain}
}

// vouches tells whether a holder vouches now.
func vouches(h *lease.Holder, c *clock) bool {
	l := h.Current()
	return l != nil && l.Vouches(c.read())
}

// runtimeDir is a folder in memory.
func runtimeDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "sidekey-lease-")
	if err != nil {
		t.Skipf("there is no folder in memory here: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func openFile(t testing.TB, dir string) *lease.File {
	t.Helper()
	f, err := lease.OpenFile(dir, "web-1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// filePath is where an agent's lease file lies.
func filePath(dir, agent string) string { return filepath.Join(dir, bus.Name(agent), "lease") }

// rewrite changes what a lease file says, and seals it again as a process of its own would.
func rewrite(t *testing.T, path string, change func(map[string]any)) {
	t.Helper()
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var rec map[string]any
	dec := json.NewDecoder(bytes.NewReader(page[8 : 8+binary.BigEndian.Uint32(page)]))
	dec.UseNumber()
	if err := dec.Decode(&rec); err != nil {
		t.Fatal(err)
	}
	change(rec)
	body, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	writePage(t, path, body)
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// agentKey is the key of an agent in these tests: the same one for the same name.
func agentKey(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(name))
	return ed25519.NewKeyFromSeed(seed[:])
}
