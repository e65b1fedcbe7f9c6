package bus_test

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

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
