package bus_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

// knows is what an issuer knows by its own disk.
type knows struct {
	at     bus.Cursor
	chains map[uint64]bus.Chain
	time   time.Time
}

// knowing is one that has read these entries.
func knowing(entries []bus.Entry) knows {
	k := knows{chains: map[uint64]bus.Chain{}}
	for _, en := range entries {
		k.at, k.chains[en.Seq] = en.Cursor(), en.Chain
		if t, ok := en.Fact.(*bus.Tick); ok {
			k.time = t.At()
		}
	}
	return k
}

// forgetful is k without the chains of before, as from a checkpoint.
func (k knows) forgetful() knows { k.chains = nil; return k }

func (k knows) Cursor() bus.Cursor { return k.at }

func (k knows) Time() time.Time { return k.time }

func (k knows) ChainAt(seq uint64) (bus.Chain, bool) { c, ok := k.chains[seq]; return c, ok }

// TestLacksOnlyWhatFollows: a log that ends before what an issuer knows lacks the rest if it is the beginning of that. If another
// issuer has gone on with it, its entries are not to be discarded, however far back it begins to differ.
func TestLacksOnlyWhatFollows(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	l := b.Log(t)
	mustAppend(t, l, revocation("a"))
	tick(t, l)
	l.Close()
	b.Stop()
	old := t.TempDir()
	if err := os.CopyFS(old, os.DirFS(b.Dir())); err != nil {
		t.Fatal(err)
	}
	b.Restart(t)
	l = b.Log(t)
	mustAppend(t, l, revocation("b"), revocation("c"), revocation("d"))
	tick(t, l)
	known := knowing(all(t, b, 6))
	l.Close()
	b.Stop()
	if err := os.RemoveAll(b.Dir()); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(b.Dir(), os.DirFS(old)); err != nil {
		t.Fatal(err)
	}
	b.Restart(t)
	later := func() time.Time { return time.Now().Add(time.Second) } // a tick tells milliseconds
	l, err := bus.OpenLog(t.Context(), b.Connect(t), bus.LogConfig{Authority: b.Authority, Issuer: "other", Now: later})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	for what, k := range map[string]knows{"by its chain": known, "by its time": known.forgetful()} {
		if lacks, err := l.Lacks(t.Context(), k); !lacks || err != nil {
			t.Errorf("a log that was put back, %s: got %v, %v, want that it lacks entries", what, lacks, err)
		}
	}
	mustAppend(t, l, revocation("acknowledged since"))
	tick(t, l)
	for what, k := range map[string]knows{"by its chain": known, "by its time": known.forgetful()} {
		lacks, err := b.Log(t).Lacks(t.Context(), k)
		if lacks || !errors.Is(err, bus.ErrRollback) || !strings.Contains(err.Error(), "stop every issuer, run `sidekey bus begin-anew --yes` at the one whose entries shall count") {
			t.Errorf("a log that was put back and written on, %s: got %v, %v, want ErrRollback and what to do", what, lacks, err)
		}
	}
}

// TestAnewUnderAWriter: an issuer that runs while another begins the log anew says so once it appends, and appends nothing: what
// it knows has to be compared first. Opened anew it goes on.
func TestAnewUnderAWriter(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	heard := make(chan error, 8)
	cfg := bus.LogConfig{Authority: b.Authority, Issuer: "two", Anew: func(err error) { heard <- err }}
	l, err := bus.OpenLog(t.Context(), b.Connect(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	mustAppend(t, l, revocation("a"))
	tick(t, l)
	known := knowing(all(t, b, 2))
	begun, err := bus.BeginAnew(t.Context(), b.Connect(t), bus.LogConfig{Authority: b.Authority, Issuer: "one"}, known.at,
		func(bus.Cursor) ([]byte, error) { return []byte("image"), nil }, []byte("[]"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Tick(t.Context()); !errors.Is(err, bus.ErrEpoch) {
		t.Errorf("a tick of the one that ran: got %v, want ErrEpoch", err)
	}
	select {
	case err := <-heard:
		if !errors.Is(err, bus.ErrEpoch) {
			t.Errorf("it heard %v, want ErrEpoch", err)
		}
	default:
		t.Error("its process has not heard that the log was begun anew")
	}
	l.Close()
	if l, err = bus.OpenLog(t.Context(), b.Connect(t), cfg); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if lacks, err := l.Lacks(t.Context(), known); lacks || err != nil {
		t.Errorf("Lacks: got %v, %v", lacks, err)
	}
	if at := tick(t, l); at.Epoch != begun.Epoch || at.Seq != begun.Seq+1 {
		t.Errorf("its next tick is at %+v, want right behind %+v", at, begun)
	}
}
