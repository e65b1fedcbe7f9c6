package bus_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
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
	var all uint64
	for _, n := range []int{1500, 1000} {
		facts := make([]bus.Fact, n)
		for i := range facts {
			facts[i] = revocation(fmt.Sprint(n, i))
		}
		mustAppend(t, l, facts...)
		all = tick(t, l).Seq
	}
	f := follow(t, b.Reader(t), bus.Cursor{})
	f.reach(t, all)
	contiguous(t, f.entries(), 1)
	for i, head := range f.heads {
		if head != all {
			t.Errorf("call %d: the head is %d, want %d", i, head, all)
		}
	}
	if len(f.heads) < 2 {
		t.Errorf("%d entries came by one call: the test shows nothing", all)
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
