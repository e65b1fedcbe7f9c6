package bus_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/keyring"
)

// follower follows in the background and remembers what it was given.
type follower struct {
	mu    sync.Mutex
	got   []bus.Entry
	heads []uint64
	done  chan error
}

func follow(t *testing.T, l theFollower, after bus.Cursor) *follower {
	t.Helper()
	return followOn(t, l, after, nil)
}

// followOn goes on behind what was read already.
func followOn(t *testing.T, l theFollower, after bus.Cursor, got []bus.Entry) *follower {
	t.Helper()
	f := &follower{done: make(chan error, 1), got: got}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		f.done <- l.Follow(ctx, after, func(entries []bus.Entry, head uint64) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.got, f.heads = append(f.got, entries...), append(f.heads, head)
			return nil
		})
	}()
	t.Cleanup(cancel)
	return f
}

type theFollower interface {
	Follow(ctx context.Context, after bus.Cursor, fn func([]bus.Entry, uint64) error) error
}

func (f *follower) entries() []bus.Entry {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.got[:len(f.got):len(f.got)]
}

// calls is how often the callback was called.
func (f *follower) calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.heads)
}

// reach waits until the entry at seq has come, and gives the cursor there.
func (f *follower) reach(t *testing.T, seq uint64) bus.Cursor {
	t.Helper()
	var at bus.Cursor
	eventually(t, fmt.Sprintf("entry %d", seq), func() bool {
		select {
		case err := <-f.done:
			t.Fatalf("Follow ended before entry %d: %v", seq, err)
		default:
		}
		got := f.entries()
		if len(got) == 0 || got[len(got)-1].Seq < seq {
			return false
		}
		at = got[len(got)-1].Cursor()
		return true
	})
	return at
}

// ends waits until Follow returns, and wants that error.
func (f *follower) ends(t *testing.T, want error) {
	t.Helper()
	select {
	case err := <-f.done:
		if !errors.Is(err, want) {
			t.Errorf("Follow: got %v, want %v", err, want)
		}
	case <-time.After(15 * time.Second):
		t.Errorf("Follow goes on, want %v", want)
	}
}

// contiguous fails unless the entries are those from first on, each once.
func contiguous(t *testing.T, got []bus.Entry, first uint64) {
	t.Helper()
	for i, en := range got {
		if en.Seq != first+uint64(i) {
			t.Fatalf("entry %d of those read has sequence %d, want %d", i, en.Seq, first+uint64(i))
		}
	}
}

func tick(t *testing.T, l theLog) bus.Position {
	t.Helper()
	pos, err := l.Tick(t.Context())
	if err != nil {
		t.Fatalf("Tick: %v", err)
	}
	return pos
}

// stored is a message as it stands in the log, or as somebody would like it to.
type stored struct {
	subject   string
	epoch     uint64
	signature []byte
	body      []byte
}

// signed makes an entry that the authority did sign, for that place.
func signed(b *bustest.Bus, subject string, at bus.Position, body []byte) stored {
	return stored{subject, at.Epoch, b.Authority.Sign(bus.SignedBytes(subject, at, body)), body}
}

func (s stored) msg(subject string) *nats.Msg {
	return &nats.Msg{Subject: subject, Data: s.body, Header: nats.Header{
		"Sidekey-Epoch":     {fmt.Sprint(s.epoch)},
		"Sidekey-Signature": {base64.RawURLEncoding.EncodeToString(s.signature)},
	}}
}

// put stores it straight in the stream, as the bus's owner can.
func (s stored) put(t *testing.T, nc *nats.Conn) uint64 {
	t.Helper()
	m, err := nc.RequestMsg(s.msg(s.subject), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var ack struct {
		Seq   uint64 `json:"seq"`
		Error any    `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &ack); err != nil || ack.Error != nil {
		t.Fatalf("storing an entry: %s %v", m.Data, err)
	}
	return ack.Seq
}

func body(t *testing.T, f bus.Fact) []byte {
	t.Helper()
	b, err := bus.Encode(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const revokeSubject = "sidekey.log.revoke"

// TestFollowOverRestarts: a reader goes on where it was when the server comes back; nothing is lost
// or doubled.
func TestFollowOverRestarts(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	l, r := b.Log(t), b.Reader(t)
	f := follow(t, r, bus.Cursor{})
	var pos bus.Position
	for round := range 3 {
		for n := range 5 {
			pos = mustAppend(t, l, revocation(fmt.Sprintf("%d-%d", round, n)))
		}
		b.Restart(t)
	}
	pos = mustAppend(t, l, revocation("last"))
	eventually(t, "the last entry", func() bool {
		select {
		case err := <-f.done: // again, from where it was, as replica.Follow does
			var at bus.Cursor
			if got := f.entries(); len(got) > 0 {
				at = got[len(got)-1].Cursor()
			}
			t.Logf("Follow ended at %d: %v; again", at.Seq, err)
			f = followOn(t, r, at, f.entries())
		default:
		}
		return len(f.entries()) >= int(pos.Seq)
	})
	contiguous(t, f.entries(), 1)
	if n := len(f.entries()); n != int(pos.Seq) {
		t.Errorf("got %d entries, want %d", n, pos.Seq)
	}
}

// TestFollowSaysHowMuchThereIs: with the first of several batches the callback learns of the others:
// who has read it is not at the head.
func TestFollowSaysHowMuchThereIs(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	l := b.Log(t)
	facts := make([]bus.Fact, 2500)
	for i := range facts {
		facts[i] = revocation(fmt.Sprint(i))
	}
	mustAppend(t, l, facts...)
	f := follow(t, b.Reader(t), bus.Cursor{})
	f.reach(t, uint64(len(facts)))
	for i, head := range f.heads {
		if head != uint64(len(facts)) {
			t.Errorf("call %d: the head is %d, want %d", i, head, len(facts))
		}
	}
	if len(f.heads) < 2 {
		t.Errorf("%d entries came by one call: the test shows nothing", len(facts))
	}
}

// TestFollowOfASilentBus: a bus that does not answer is not an empty log.
func TestFollowOfASilentBus(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	p := bustest.NewProxy(t, b.Server.URL())
	mustAppend(t, b.Log(t), revocation("a"))
	r := b.Via(p).Reader(t)
	p.DropSubject(bustest.ToServer, "$JS.API.DIRECT.GET")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := r.Follow(ctx, bus.Cursor{}, func(entries []bus.Entry, head uint64) error {
		t.Errorf("the callback was given %d entries and the head %d", len(entries), head)
		return nil
	})
	if err == nil || p.Dropped() == 0 {
		t.Errorf("Follow: got %v after %d dropped requests, want an error", err, p.Dropped())
	}
	ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := r.Checkpoint(ctx); err == nil || errors.Is(err, bus.ErrNotFound) {
		t.Errorf("Checkpoint: got %v, want an error that is not ErrNotFound", err)
	}
	p.Resume()
	follow(t, r, bus.Cursor{}).reach(t, 1)
}

// TestFollowWhileDisconnected: attempts while the bus is away leave nothing behind.
func TestFollowWhileDisconnected(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	conn := b.ConnectAgent(t)
	r := bus.NewReader(conn, b.Authority.Public())
	b.Stop()
	eventually(t, "the connection to be lost", func() bool { return !conn.Connected() })
	for range 20 {
		if err := r.Follow(t.Context(), bus.Cursor{}, func([]bus.Entry, uint64) error { return nil }); err == nil {
			t.Fatal("Follow while the bus is away: no error")
		}
		if _, err := r.Checkpoint(timeout(t, 50*time.Millisecond)); err == nil || errors.Is(err, bus.ErrNotFound) {
			t.Fatalf("Checkpoint while the bus is away: got %v", err)
		}
	}
	if n := conn.Subscriptions(); n > 1 {
		t.Errorf("%d subscriptions are left of 40 attempts", n)
	}
}

func timeout(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// TestSlowConsumer: what NATS drops because a reader is slow is read back.
func TestSlowConsumer(t *testing.T) {
	b := bustest.Start(t)
	l, nc := b.Log(t), owner(t, b)
	entered, resume := make(chan struct{}), make(chan struct{})
	var got []bus.Entry
	done := make(chan error, 1)
	go func() {
		first := true
		done <- b.Reader(t).Follow(t.Context(), bus.Cursor{}, func(entries []bus.Entry, _ uint64) error {
			if first {
				first = false
				close(entered)
				<-resume
			}
			if got = append(got, entries...); len(got) >= 40 {
				return errEnough
			}
			return nil
		})
	}()
	<-entered
	mustAppend(t, l, revocation("0"))
	for range bus.LiveBuffer + 100 { // fills the reader's buffer: what follows is dropped
		if err := nc.Publish("sidekey.live.revoke", nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	for n := 1; n < 39; n++ {
		mustAppend(t, l, revocation(fmt.Sprint(n)))
	}
	close(resume)
	mustAppend(t, l, revocation("39"))
	if err := <-done; !errors.Is(err, errEnough) {
		t.Fatalf("Follow: %v after %d entries", err, len(got))
	}
	contiguous(t, got, 1)
}

// TestGarbageOnTheLiveLog: what the authority did not sign is not applied, and does not stop a reader.
func TestGarbageOnTheLiveLog(t *testing.T) {
	b := bustest.Start(t)
	l, nc := b.Log(t), owner(t, b)
	first := mustAppend(t, l, revocation("a"))
	f := follow(t, b.Reader(t), bus.Cursor{})
	f.reach(t, 1)
	next := bus.Position{Epoch: first.Epoch, Seq: first.Seq + 1}
	good := signed(b, revokeSubject, next, body(t, revocation("forged")))
	other, err := keyring.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	foreign := good
	foreign.signature = other.Sign(bus.SignedBytes(revokeSubject, next, good.body))
	unsigned, altered, later := good, good, good
	unsigned.signature = nil
	altered.body = body(t, revocation("altered"))
	later.epoch++
	live := func(s stored, seq string) {
		t.Helper()
		m := s.msg("sidekey.live.revoke")
		m.Header.Set("Nats-Subject", s.subject)
		m.Header.Set("Nats-Sequence", seq)
		if err := nc.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []stored{unsigned, foreign, altered, later} {
		live(s, "2")
	}
	live(good, "3")  // signed for another place
	live(good, "")   // for none
	live(good, "-1") // for none
	live(stored{subject: "sidekey.log.tick", epoch: first.Epoch, signature: good.signature, body: good.body}, "2")
	for _, data := range [][]byte{nil, []byte("{}"), make([]byte, 100_000)} {
		if err := nc.Publish("sidekey.live.revoke", data); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, revocation("b"))
	f.reach(t, 2)
	if got := fmt.Sprint(ids(f.entries())); got != "[a b]" {
		t.Errorf("got %s, want [a b]", got)
	}
}

// TestForgedEntries: an entry in the stream that the authority did not sign for that very place
// stops the reader there. What stands before it is applied, nothing behind it is.
func TestForgedEntries(t *testing.T) {
	for name, forge := range map[string]func(b *bustest.Bus, next bus.Position, good, before stored) stored{
		"unsigned": func(_ *bustest.Bus, _ bus.Position, good, _ stored) stored { good.signature = nil; return good },
		"an alien signature": func(_ *bustest.Bus, _ bus.Position, good, _ stored) stored {
			good.signature = make([]byte, 64)
			return good
		},
		"altered": func(_ *bustest.Bus, _ bus.Position, good, _ stored) stored {
			good.body = append(good.body, ' ')
			return good
		},
		"an older entry again": func(_ *bustest.Bus, _ bus.Position, _, before stored) stored { return before },
		"signed as another kind": func(_ *bustest.Bus, _ bus.Position, good, _ stored) stored {
			good.subject = "sidekey.log.key"
			return good
		},
		"of another epoch": func(_ *bustest.Bus, _ bus.Position, good, _ stored) stored { good.epoch++; return good },
		"without an epoch": func(_ *bustest.Bus, _ bus.Position, good, _ stored) stored { good.epoch = 0; return good },
		"of a later sequence": func(b *bustest.Bus, next bus.Position, good, _ stored) stored {
			next.Seq++
			return signed(b, good.subject, next, good.body)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := bustest.Start(t)
			l, nc := b.Log(t), owner(t, b)
			mustAppend(t, l, revocation("a"))
			r := b.Reader(t)
			running := follow(t, r, bus.Cursor{})
			running.reach(t, 1)
			last := mustAppend(t, l, revocation("b"))
			running.reach(t, 2)
			l.Close() // nobody appends while the forger does
			before := signed(b, revokeSubject, last, body(t, revocation("b")))
			next := bus.Position{Epoch: last.Epoch, Seq: last.Seq + 1}
			good := signed(b, revokeSubject, next, body(t, revocation("c")))
			forge(b, next, good, before).put(t, nc)
			next.Seq++
			signed(b, revokeSubject, next, body(t, revocation("d"))).put(t, nc)
			running.ends(t, bus.ErrForged)
			cold := follow(t, b.Reader(t), bus.Cursor{})
			cold.ends(t, bus.ErrForged)
			for who, f := range map[string]*follower{"a running reader": running, "a cold reader": cold} {
				if got := fmt.Sprint(ids(f.entries())); got != "[a b]" {
					t.Errorf("%s: got %s, want [a b]", who, got)
				}
			}
			again := follow(t, r, running.entries()[1].Cursor())
			again.ends(t, bus.ErrForged)
			if again.calls() != 0 {
				t.Error("the reader that tries again was told that it is at the head")
			}
		})
	}
}

// TestUnknownKind: an entry of a kind, or with a member, of a later version stops the reader before it.
func TestUnknownKind(t *testing.T) {
	for name, s := range map[string]stored{
		"kind":   {subject: "sidekey.log.rules", body: []byte(`{}`)},
		"member": {subject: revokeSubject, body: []byte(`{"jti":"x","exp":9999999999,"unless":"friday"}`)},
		"fact":   {subject: revokeSubject, body: []byte(`{"exp":9999999999}`)},
	} {
		t.Run(name, func(t *testing.T) {
			b := bustest.Start(t)
			l := b.Log(t)
			last := mustAppend(t, l, revocation("a"))
			f := follow(t, b.Reader(t), bus.Cursor{})
			f.reach(t, 1)
			signed(b, s.subject, bus.Position{Epoch: last.Epoch, Seq: 2}, s.body).put(t, owner(t, b))
			f.ends(t, bus.ErrUnknown)
			cold := follow(t, b.Reader(t), bus.Cursor{})
			cold.ends(t, bus.ErrUnknown)
			if got := fmt.Sprint(ids(f.entries()), ids(cold.entries())); got != "[a] [a]" {
				t.Errorf("got %s, want [a] [a]", got)
			}
		})
	}
}

// chain computes the chain over bodies, all of one kind, as the log's writers must.
func chain(epoch, first uint64, subject string, before bus.Chain, bodies ...[]byte) bus.Chain {
	for i, body := range bodies {
		sum := sha256.Sum256(bus.SignedBytes(subject, bus.Position{Epoch: epoch, Seq: first + uint64(i)}, body))
		before = sha256.Sum256(append(before[:], sum[:]...))
	}
	return before
}

// TestChain: the chain is what the documents say, and a signed tick that is chained to other
// entries is the sign of a fork. What stands before it is not applied either: it is the fork.
func TestChain(t *testing.T) {
	b := bustest.Start(t)
	l, nc := b.Log(t), owner(t, b)
	bodies := [][]byte{body(t, revocation("a")), body(t, revocation("b"))}
	var epoch uint64
	for _, id := range []string{"a", "b"} {
		epoch = mustAppend(t, l, revocation(id)).Epoch
	}
	r := b.Reader(t)
	f := follow(t, r, bus.Cursor{})
	at := f.reach(t, 2)
	if want := chain(epoch, 1, revokeSubject, bus.Chain{}, bodies...); at.Chain != want {
		t.Fatalf("the chain at entry 2: got %x, want %x", at.Chain, want)
	}
	l.Close()
	c := body(t, revocation("c"))
	fork := chain(epoch, 2, revokeSubject, chain(epoch, 1, revokeSubject, bus.Chain{}, bodies[0]), body(t, revocation("other")), c)
	signed(b, revokeSubject, bus.Position{Epoch: epoch, Seq: 3}, c).put(t, nc)
	f.reach(t, 3)
	bad := body(t, &bus.Tick{Time: 1, Issuer: "i", Head: 3, Chain: fork[:]})
	signed(b, "sidekey.log.tick", bus.Position{Epoch: epoch, Seq: 4}, bad).put(t, nc)
	f.ends(t, bus.ErrRollback)
	again := follow(t, b.Reader(t), at) // as a restarted process, from its own disk
	again.ends(t, bus.ErrRollback)
	if got := again.entries(); len(got) != 0 {
		t.Errorf("entries of a fork were applied: %v", ids(got))
	}
}

// TestRecreatedLog: a stream that was made anew, under a later epoch, is told from its own. From
// then on the reader believes no earlier epoch, and reads the new one from its beginning.
func TestRecreatedLog(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	l, nc := b.Log(t), owner(t, b)
	old := mustAppend(t, l, revocation("a"), revocation("b"), revocation("c"))
	writeCheckpoint(t, l, all(t, b, 3)[1].Cursor(), []byte("image"))
	r := b.Reader(t)
	running := follow(t, r, bus.Cursor{})
	cursor := running.reach(t, 3)
	l.Close()
	request(t, nc, "$JS.API.STREAM.DELETE.sidekey_log", "")
	anew := b.Log(t)
	tick(t, anew)
	running.ends(t, bus.ErrEpoch)
	follow(t, r, cursor).ends(t, bus.ErrEpoch)           // the new log is shorter
	follow(t, b.Reader(t), cursor).ends(t, bus.ErrEpoch) // also for a restarted process
	for n := range 5 {
		mustAppend(t, anew, revocation(fmt.Sprintf("new-%d", n)))
	}
	follow(t, b.Reader(t), cursor).ends(t, bus.ErrEpoch) // and when it is longer
	if _, err := r.Checkpoint(t.Context()); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("Checkpoint of the earlier epoch: got %v, want ErrNotFound", err)
	}
	whole := follow(t, r, bus.Cursor{})
	if at := whole.reach(t, 6); at.Epoch <= old.Epoch {
		t.Errorf("the new epoch is %d, not after %d", at.Epoch, old.Epoch)
	}

	// The old log's entries, properly signed, are of no use to whoever kept them.
	replay := signed(b, revokeSubject, bus.Position{Epoch: old.Epoch, Seq: 7}, body(t, revocation("old")))
	m := replay.msg("sidekey.live.revoke")
	m.Header.Set("Nats-Subject", revokeSubject)
	m.Header.Set("Nats-Sequence", "7")
	if err := nc.PublishMsg(m); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, anew, revocation("last"))
	whole.reach(t, 7)
	got := whole.entries()
	if r, ok := got[len(got)-1].Fact.(*bus.Revocation); !ok || r.ID != "last" {
		t.Errorf("the seventh entry is %+v, want the new log's", got[len(got)-1].Fact)
	}
	anew.Close()
	replay.put(t, nc)
	whole.reach(t, 7)
	follow(t, r, got[len(got)-1].Cursor()).ends(t, bus.ErrForged)
}

// TestRolledBackLog: an old copy of the store put back under readers that are ahead of it is seen
// live, by who follows again, and by who starts from its own disk; nothing is applied backwards.
func TestRolledBackLog(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	l := b.Log(t)
	mustAppend(t, l, revocation("a"), revocation("b"))
	tick(t, l)
	l.Close()
	b.Stop()
	old := t.TempDir()
	if err := os.CopyFS(old, os.DirFS(b.Dir())); err != nil {
		t.Fatal(err)
	}
	b.Restart(t)
	l = b.Log(t)
	mustAppend(t, l, revocation("c"), revocation("d"), revocation("e"))
	head := tick(t, l)
	r := b.Reader(t)
	live := follow(t, r, bus.Cursor{})
	cursor := live.reach(t, head.Seq)
	l.Close()
	b.Stop()
	if err := os.RemoveAll(b.Dir()); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(b.Dir(), os.DirFS(old)); err != nil {
		t.Fatal(err)
	}
	b.Restart(t)

	backwards := func(who string, f *follower, calls int) {
		t.Helper()
		f.ends(t, bus.ErrRollback)
		if got := f.calls(); got > calls {
			t.Errorf("%s: the callback was called %d times more", who, got-calls)
		}
	}
	// Before anybody writes: the stream is merely shorter.
	disk := follow(t, b.Reader(t), cursor)
	backwards("from disk", disk, 0)
	// The issuer, not warned, writes on: other entries stand where others stood.
	calls := live.calls()
	l = b.Log(t)
	mustAppend(t, l, revocation("x"))
	tick(t, l)
	select {
	case err := <-live.done: // its connection was lost: again, as replica.Follow does
		if !errors.Is(err, bus.ErrRollback) {
			live = follow(t, r, cursor)
			calls = 0
		} else {
			live.done <- err
		}
	case <-time.After(50 * time.Millisecond):
	}
	backwards("live", live, calls)
	backwards("again", follow(t, r, cursor), 0)
	backwards("from disk, of a fork that is shorter", follow(t, b.Reader(t), cursor), 0)
	mustAppend(t, l, revocation("y"), revocation("z"), revocation("0"))
	tick(t, l)
	mustAppend(t, l, revocation("1"))
	backwards("again, of a fork that is longer", follow(t, r, cursor), 0)
	backwards("from disk, of a fork that is longer", follow(t, b.Reader(t), cursor), 0)
}

// TestPurgedBeyondAReader: a reader that was left behind is told so, and goes on from the checkpoint.
func TestPurgedBeyondAReader(t *testing.T) {
	b := bustest.Start(t)
	l := b.Log(t)
	mustAppend(t, l, revocation("a"), revocation("b"), revocation("c"), revocation("d"))
	entries := all(t, b, 4)
	writeCheckpoint(t, l, entries[1].Cursor(), []byte("first"))
	follow(t, b.Reader(t), bus.Cursor{}).reach(t, 4) // nothing is purged yet
	writeCheckpoint(t, l, entries[2].Cursor(), []byte("second"))
	follow(t, b.Reader(t), bus.Cursor{}).ends(t, bus.ErrBehind)
	follow(t, b.Reader(t), entries[0].Cursor()).ends(t, bus.ErrBehind)
	exact := follow(t, b.Reader(t), entries[1].Cursor()) // just where the purge ends
	exact.reach(t, 4)
	contiguous(t, exact.entries(), 3)
	if img, err := b.Reader(t).Checkpoint(t.Context()); err != nil || string(img) != "second" {
		t.Errorf("Checkpoint: got %q, %v", img, err)
	}
	follow(t, b.Reader(t), entries[2].Cursor()).reach(t, 4)
	if pos := mustAppend(t, b.Log(t), revocation("e")); pos.Seq != 5 {
		t.Errorf("an issuer that starts behind the purge appends at %d, want 5", pos.Seq)
	}
}

// TestManyFollows: any number of Follows of one Reader go on at once, from anywhere.
func TestManyFollows(t *testing.T) {
	b := bustest.Start(t)
	l, r := b.Log(t), b.Reader(t)
	facts := make([]bus.Fact, 200)
	for i := range facts {
		facts[i] = revocation(fmt.Sprint(i))
	}
	mustAppend(t, l, facts...)
	entries := all(t, b, 200)
	var fs []*follower
	for n := 0; n < 200; n += 40 {
		fs = append(fs, follow(t, r, entries[n].Cursor()))
	}
	tick(t, l)
	for i, f := range fs {
		f.reach(t, 201)
		contiguous(t, f.entries(), uint64(40*i+2))
	}
}

// TestForgedCheckpoints: of a checkpoint nothing is believed before its signature and its hash.
func TestForgedCheckpoints(t *testing.T) {
	b := bustest.Start(t)
	l, nc := b.Log(t), owner(t, b)
	mustAppend(t, l, revocation("a"), revocation("b"))
	entries := all(t, b, 2)
	writeCheckpoint(t, l, entries[0].Cursor(), []byte("the first image"))
	r := b.Reader(t)
	last := func(subject string) *nats.Msg {
		t.Helper()
		m, err := nc.Request("$JS.API.DIRECT.GET.sidekey_checkpoint."+subject, nil, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	good := last("sidekey.checkpoint.manifest")
	publish := func(subject string, sig []string, data []byte) {
		t.Helper()
		m := &nats.Msg{Subject: subject, Data: data, Header: nats.Header{}}
		if sig != nil {
			m.Header["Sidekey-Signature"] = sig
		}
		if _, err := nc.RequestMsg(m, 5*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	sig := good.Header["Sidekey-Signature"]
	for name, do := range map[string]func(){
		"unsigned": func() { publish("sidekey.checkpoint.manifest", nil, good.Data) },
		"altered":  func() { publish("sidekey.checkpoint.manifest", sig, append([]byte(" "), good.Data...)) },
		"alien": func() {
			publish("sidekey.checkpoint.manifest", []string{base64.RawURLEncoding.EncodeToString(make([]byte, 64))}, good.Data)
		},
		"no manifest": func() { publish("sidekey.checkpoint.manifest", sig, nil) },
		"an entry's own": func() {
			publish("sidekey.checkpoint.manifest", []string{base64.RawURLEncoding.EncodeToString(b.Authority.Sign(bus.SignedBytes("x", bus.Position{}, good.Data)))}, good.Data)
		},
	} {
		do()
		if img, err := r.Checkpoint(t.Context()); !errors.Is(err, bus.ErrForged) {
			t.Errorf("%s: got %q, %v, want ErrForged", name, img, err)
		}
	}
	publish("sidekey.checkpoint.manifest", sig, good.Data) // the old one again: true, if old
	if img, err := r.Checkpoint(t.Context()); err != nil || string(img) != "the first image" {
		t.Errorf("Checkpoint: got %q, %v", img, err)
	}
	var m struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(good.Data, &m); err != nil {
		t.Fatal(err)
	}
	request(t, nc, "$JS.API.STREAM.PURGE.sidekey_checkpoint", `{"filter":"sidekey.checkpoint.chunk.>"}`)
	if _, err := r.Checkpoint(t.Context()); err == nil {
		t.Error("Checkpoint whose chunks are gone: no error")
	}
	publish("sidekey.checkpoint.chunk."+m.ID, nil, []byte("another image!!"))
	if img, err := r.Checkpoint(t.Context()); !errors.Is(err, bus.ErrForged) {
		t.Errorf("Checkpoint with other chunks: got %q, %v, want ErrForged", img, err)
	}
}

// TestSignedBytes: they are what the document says.
func TestSignedBytes(t *testing.T) {
	got := bus.SignedBytes("sidekey.log.key", bus.Position{Epoch: 7, Seq: 9}, []byte("body"))
	want := []byte("sidekey-entry-1\x00")
	want = binary.BigEndian.AppendUint64(want, 7)
	want = binary.BigEndian.AppendUint64(want, 9)
	want = binary.BigEndian.AppendUint32(want, 15)
	want = append(want, "sidekey.log.keybody"...)
	if string(got) != string(want) {
		t.Errorf("signedBytes: got %q, want %q", got, want)
	}
}
