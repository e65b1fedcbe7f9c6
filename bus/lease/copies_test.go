package lease_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
)

// forgetful is a log that may lose its lists.
type forgetful struct {
	lists
	gone error // of every read; nil: nothing is lost
}

func (f *forgetful) WriteGrants(_ context.Context, list []byte) (uint64, []byte, error) {
	seq, hash := f.write(list)
	return seq, hash, nil
}

func (f *forgetful) AppendTick(context.Context, bus.Tick) (bus.Cursor, error) {
	return bus.Cursor{}, nil
}

func (f *forgetful) ReadGrants(ctx context.Context, seq uint64, hash []byte) ([]byte, error) {
	if f.gone != nil {
		return nil, f.gone
	}
	return f.read(ctx, seq, hash)
}

func openCopies(t testing.TB, path string, log lease.ListLog) *lease.Copies {
	t.Helper()
	c, err := lease.OpenCopies(path, log, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// list is the n-th list.
func list(n int) []byte { return fmt.Appendf(nil, `{"issuer":"issuer-1","grants":[%d]}`, n) }

// has asks for the n-th list when the bus has lost it.
func has(c *lease.Copies, n int) bool {
	sum := sha256.Sum256(list(n))
	got, err := c.ReadGrants(context.Background(), 1, sum[:])
	return err == nil && bytes.Equal(got, list(n))
}

// TestCopies: what the bus has lost of the lists that an issuer wrote or read is taken from its own copy, also in the next process; and
// from a copy that a disk has damaged only what is sound.
func TestCopies(t *testing.T) {
	for name, c := range map[string]struct {
		damage func([]byte) []byte
		lost   []int
	}{
		"sound":           {func(b []byte) []byte { return b }, nil},
		"a bit flipped":   {func(b []byte) []byte { b[len(list(0))+10] ^= 1; return b }, []int{1}},
		"the tail cut":    {func(b []byte) []byte { return b[:len(b)-5] }, []int{9}},
		"the line's end":  {func(b []byte) []byte { b[len(list(0))] = 'x'; return b }, []int{0, 1}},
		"emptied":         {func([]byte) []byte { return nil }, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}},
		"a line too long": {func(b []byte) []byte { return append(bytes.Repeat([]byte("x"), 3<<20), append([]byte("\n"), b...)...) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			path, log := filepath.Join(t.TempDir(), "grants"), new(forgetful)
			before := openCopies(t, path, log)
			for n := range 8 {
				if _, _, err := before.WriteGrants(t.Context(), list(n)); err != nil {
					t.Fatal(err)
				}
			}
			for n := 8; n < 10; n++ { // another issuer's
				seq, hash := log.write(list(n))
				if _, err := before.ReadGrants(t.Context(), seq, hash); err != nil {
					t.Fatal(err)
				}
			}
			before.Close()
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, c.damage(text), 0o600); err != nil {
				t.Fatal(err)
			}
			log.gone = bus.ErrForged
			after := openCopies(t, path, log)
			if _, _, err := after.WriteGrants(t.Context(), list(10)); err != nil {
				t.Fatal(err)
			}
			var lost []int
			for n := range 12 {
				if !has(after, n) {
					lost = append(lost, n)
				}
			}
			if want := append(c.lost, 11); fmt.Sprint(lost) != fmt.Sprint(want) {
				t.Errorf("lost are %v, want %v", lost, want)
			}
			sum := sha256.Sum256(list(11))
			if _, err := after.ReadGrants(t.Context(), 1, sum[:]); !errors.Is(err, bus.ErrForged) {
				t.Errorf("a list that nobody has: got %v, want what the bus said", err)
			}
		})
	}
}

// TestCopiesTakeTurns: a copy is kept for twenty minutes at least, and not for ever; and written once, however often it is read.
func TestCopiesTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path, log := filepath.Join(t.TempDir(), "grants"), new(forgetful)
		c := openCopies(t, path, log)
		for n := range 100 {
			seq, hash, err := c.WriteGrants(t.Context(), list(n))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.ReadGrants(t.Context(), seq, hash); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
		log.gone = bus.ErrNotFound
		for n, want := range map[int]bool{99: true, 80: true, 40: false, 0: false} {
			if has(c, n) != want {
				t.Errorf("list %d of a hundred minutes: got %v, want %v", n, !want, want)
			}
		}
		for _, p := range []string{path, path + ".old"} {
			text, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			if lines := strings.Count(string(text), "{"); lines > 20 {
				t.Errorf("%s has %d lists, want 20 at most", filepath.Base(p), lines)
			}
		}
	})
}

// TestCopiesUnwritten: a copy that cannot be written stops nobody.
func TestCopiesUnwritten(t *testing.T) {
	path, log := filepath.Join(t.TempDir(), "grants"), new(forgetful)
	c := openCopies(t, path, log)
	c.Close() // no file any more, as good as none to write
	if _, _, err := c.WriteGrants(t.Context(), list(1)); err != nil {
		t.Errorf("without a copy: got %v, want the list written", err)
	}
	log.gone = bus.ErrNotFound
	if has(c, 1) {
		t.Error("a list that was not copied is there")
	}
	if _, err := lease.OpenCopies(t.TempDir(), log, hclog.NewNullLogger()); err == nil || !strings.Contains(err.Error(), "opening this issuer's copy of the grants") {
		t.Errorf("a folder in its place: got %v", err)
	}
}
