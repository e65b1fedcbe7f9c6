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
	"github.com/sidekey/sidekey/keyring"
)

// theLog is what the issuers and the agents use of a log, and what the contract is about.
type theLog interface {
	Append(ctx context.Context, facts ...bus.Fact) (bus.Position, error)
	AppendIf(ctx context.Context, kind bus.Kind, last uint64, fact bus.Fact) (bus.Position, error)
	Tick(ctx context.Context) (bus.Position, error)
	Follow(ctx context.Context, after bus.Cursor, fn func([]bus.Entry, uint64) error) error
	Checkpoint(ctx context.Context) ([]byte, error)
	WriteCheckpoint(ctx context.Context, at bus.Cursor, image, held []byte) error
}

// TestLogContract holds the log in memory and the log on NATS to one contract.
func TestLogContract(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(*testing.T) theLog{
		"memory": func(*testing.T) theLog { return bustest.NewLog() },
		"nats":   func(t *testing.T) theLog { return bustest.Start(t).Log(t) },
	} {
		t.Run(name, func(t *testing.T) {
			for name, check := range map[string]func(*testing.T, theLog){
				"order":          checkOrder,
				"resume":         checkResume,
				"concurrent":     checkConcurrent,
				"condition":      checkCondition,
				"cancel":         checkCancel,
				"callback error": checkCallbackError,
				"slow reader":    checkSlowReader,
				"empty":          checkEmpty,
				"bad facts":      checkBadFacts,
				"checkpoint":     checkCheckpoint,
			} {
				t.Run(name, func(t *testing.T) { check(t, open(t)) })
			}
		})
	}
}

func revocation(jti string) *bus.Revocation {
	return &bus.Revocation{ID: jti, ExpiresAt: time.Now().Add(time.Hour).Unix()}
}

func mustAppend(t *testing.T, l theLog, facts ...bus.Fact) bus.Position {
	t.Helper()
	pos, err := l.Append(t.Context(), facts...)
	if err != nil {
		t.Fatalf("Append: %v", err)
	}
	return pos
}

var errEnough = errors.New("enough")

// collect follows until n entries other than ticks have come, and gives them.
func collect(t *testing.T, l theLog, after bus.Cursor, n int) []bus.Entry {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var got []bus.Entry
	err := l.Follow(ctx, after, func(entries []bus.Entry, _ uint64) error {
		for _, en := range entries {
			if en.Fact.Kind() != bus.KindTick {
				got = append(got, en)
			}
		}
		if len(got) >= n {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Fatalf("Follow after %d: got %d entries and %v, want %d entries", after.Seq, len(got), err, n)
	}
	return got
}

func ids(entries []bus.Entry) []string {
	var all []string
	for _, en := range entries {
		all = append(all, en.Fact.(*bus.Revocation).ID)
	}
	return all
}

func checkOrder(t *testing.T, l theLog) {
	first := mustAppend(t, l, revocation("a"), revocation("b"))
	if _, err := l.Tick(t.Context()); err != nil {
		t.Fatal(err)
	}
	last := mustAppend(t, l, revocation("c"))
	if !first.Before(last) || first.Epoch != last.Epoch || first.Epoch == 0 {
		t.Errorf("positions: got %v then %v, want them to grow within one epoch", first, last)
	}
	got := collect(t, l, bus.Cursor{}, 3)
	if fmt.Sprint(ids(got)) != "[a b c]" || got[2].Position != last || got[1].Position != first {
		t.Errorf("Follow: got %v ending at %v, want [a b c] ending at %v", ids(got), got[2].Position, last)
	}
	if got[0].Chain == got[1].Chain || got[0].Chain == (bus.Chain{}) {
		t.Error("the chain does not move with the entries")
	}
}

func checkResume(t *testing.T, l theLog) {
	mustAppend(t, l, revocation("a"), revocation("b"), revocation("c"))
	all := collect(t, l, bus.Cursor{}, 3)
	again := collect(t, l, all[0].Cursor(), 2)
	if fmt.Sprint(ids(again)) != "[b c]" || again[1].Chain != all[2].Chain {
		t.Errorf("Follow after the first: got %v, want [b c] with the same chain", ids(again))
	}
}

// checkConcurrent: many writers at once; everything stands in the log once, at the position told.
func checkConcurrent(t *testing.T, l theLog) {
	const writers, each = 8, 10
	var mu sync.Mutex
	told := make(map[uint64]string)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := range each {
				id := fmt.Sprintf("%d-%d", w, n)
				pos, err := l.Append(t.Context(), revocation(id))
				if err != nil {
					t.Errorf("Append(%s): %v", id, err)
					return
				}
				mu.Lock()
				told[pos.Seq] = id
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	got := collect(t, l, bus.Cursor{}, writers*each)
	if len(got) != writers*each || len(told) != writers*each {
		t.Fatalf("got %d entries at %d positions, want %d", len(got), len(told), writers*each)
	}
	for _, en := range got {
		if id := en.Fact.(*bus.Revocation).ID; told[en.Seq] != id {
			t.Errorf("entry %d: got %q, want %q", en.Seq, id, told[en.Seq])
		}
	}
}

func key(kid string) *bus.KeyFact {
	return &bus.KeyFact{KeyID: kid, Alg: "HS256", State: string(keyring.Announced), Issuer: "i", Audience: "a"}
}

// checkCondition: of two decisions taken from one view, one stands.
func checkCondition(t *testing.T, l theLog) {
	first, err := l.AppendIf(t.Context(), bus.KindKey, 0, key("k1"))
	if err != nil {
		t.Fatalf("AppendIf on an empty log: %v", err)
	}
	if _, err := l.AppendIf(t.Context(), bus.KindKey, 0, key("k2")); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("AppendIf behind another's: got %v, want ErrConflict", err)
	}
	mustAppend(t, l, revocation("x"))
	if _, err := l.AppendIf(t.Context(), bus.KindKey, first.Seq, key("k3")); err != nil {
		t.Errorf("AppendIf with only another kind behind: %v", err)
	}
	head := mustAppend(t, l, revocation("y"))
	var wg sync.WaitGroup
	won := make(chan string, 16)
	for n := range 16 {
		wg.Go(func() {
			kid := fmt.Sprintf("race-%d", n)
			if _, err := l.AppendIf(t.Context(), bus.KindKey, head.Seq, key(kid)); err == nil {
				won <- kid
			} else if !errors.Is(err, bus.ErrConflict) {
				t.Errorf("AppendIf: %v", err)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Errorf("%d of 16 decisions from one view stood, want 1", len(won))
	}
}

func checkCancel(t *testing.T, l theLog) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- l.Follow(ctx, bus.Cursor{}, func([]bus.Entry, uint64) error { cancel(); return nil })
	}()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Follow: got %v, want context.Canceled", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("Follow goes on after its context ended")
	}
	if _, err := l.Append(ctx, revocation("late")); !errors.Is(err, context.Canceled) {
		t.Errorf("Append with an ended context: got %v, want context.Canceled", err)
	}
}

func checkCallbackError(t *testing.T, l theLog) {
	mustAppend(t, l, revocation("a"))
	if err := l.Follow(t.Context(), bus.Cursor{}, func([]bus.Entry, uint64) error { return errEnough }); !errors.Is(err, errEnough) {
		t.Errorf("Follow: got %v, want the callback's error", err)
	}
}

// checkSlowReader: a reader that stands still while much is written misses nothing.
func checkSlowReader(t *testing.T, l theLog) {
	const n = 300
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	started, resume := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var got []bus.Entry
	done := make(chan error, 1)
	go func() {
		done <- l.Follow(ctx, bus.Cursor{}, func(entries []bus.Entry, _ uint64) error {
			once.Do(func() { close(started); <-resume })
			if got = append(got, entries...); len(got) >= n {
				return errEnough
			}
			return nil
		})
	}()
	<-started
	for i := 0; i < n; i += 50 {
		var facts []bus.Fact
		for k := range 50 {
			facts = append(facts, revocation(fmt.Sprint(i+k)))
		}
		mustAppend(t, l, facts...)
	}
	close(resume)
	if err := <-done; !errors.Is(err, errEnough) {
		t.Fatalf("Follow: %v after %d entries", err, len(got))
	}
	for i, id := range ids(got) {
		if id != fmt.Sprint(i) {
			t.Fatalf("entry %d: got %s", i, id)
		}
	}
}

func checkEmpty(t *testing.T, l theLog) {
	called := false
	err := l.Follow(t.Context(), bus.Cursor{}, func(entries []bus.Entry, head uint64) error {
		called = true
		if len(entries) != 0 || head != 0 {
			t.Errorf("an empty log: got %d entries and head %d", len(entries), head)
		}
		return errEnough
	})
	if !called || !errors.Is(err, errEnough) {
		t.Errorf("Follow on an empty log: called %v, error %v", called, err)
	}
	if _, err := l.Checkpoint(t.Context()); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("Checkpoint: got %v, want ErrNotFound", err)
	}
}

func checkBadFacts(t *testing.T, l theLog) {
	for name, f := range map[string]bus.Fact{
		"no id":           &bus.Revocation{ExpiresAt: 1},
		"two ids":         &bus.Revocation{ID: "a", SessionID: "b", ExpiresAt: 1},
		"no exp":          &bus.Revocation{ID: "a"},
		"symmetric clear": &bus.KeyFact{KeyID: "k", Alg: "HS256", State: "active", JWK: []byte(`{"k":"secret"}`)},
		"no kid":          &bus.KeyFact{Alg: "HS256", State: "active"},
	} {
		if _, err := l.Append(t.Context(), f); err == nil {
			t.Errorf("%s: appended", name)
		}
	}
	mustAppend(t, l, revocation("good"))
	if got := collect(t, l, bus.Cursor{}, 1); got[0].Seq != 1 {
		t.Errorf("a refused fact took a place in the log: the first entry is %d", got[0].Seq)
	}
}

func checkCheckpoint(t *testing.T, l theLog) {
	image := make([]byte, 1_300_000) // several pieces
	for i := range image {
		image[i] = byte(i * 7)
	}
	mustAppend(t, l, revocation("a"))
	got := collect(t, l, bus.Cursor{}, 1)
	if err := l.WriteCheckpoint(t.Context(), got[0].Cursor(), image, []byte("held")); err != nil {
		t.Fatalf("WriteCheckpoint: %v", err)
	}
	back, err := l.Checkpoint(t.Context())
	if err != nil || string(back) != string(image) {
		t.Fatalf("Checkpoint: got %d bytes and %v, want the %d written", len(back), err, len(image))
	}
}
