package replica_test

import (
	"testing"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
)

// TestDue: an issuer waits to hear of entries, and one whose process has just begun of anything; not of ticks.
func TestDue(t *testing.T) {
	r := replica.New(replica.Config{})
	for n, c := range []struct {
		fact bus.Fact
		want uint64
	}{
		{&bus.Tick{Issuer: "a", Run: "a-1"}, 1},
		{&bus.Tick{Issuer: "a", Run: "a-1"}, 1},
		{&bus.Revocation{ID: "x", ExpiresAt: 1 << 40}, 3},
		{&bus.Tick{Issuer: "b", Run: "b-1"}, 4},
		{&bus.Tick{Issuer: "a", Run: "a-1"}, 4},
		{&bus.Tick{Issuer: "b", Run: "b-1"}, 4},
		{&bus.Tick{Issuer: "a", Run: "a-2"}, 7},
		{&bus.Tick{Issuer: "b", Run: "b-1"}, 7},
	} {
		seq := uint64(n + 1)
		if err := r.Apply(bus.Entry{Position: bus.Position{Epoch: 1, Seq: seq}, Fact: c.fact}); err != nil {
			t.Fatal(err)
		}
		if got := r.Due(); got != c.want {
			t.Errorf("after entry %d: got %d, want %d", seq, got, c.want)
		}
	}
	img, _, err := r.Image()
	if err != nil {
		t.Fatal(err)
	}
	fresh := replica.New(replica.Config{})
	if err := fresh.Load(img); err != nil || fresh.Due() != 8 {
		t.Errorf("from an image of entry 8: got %d (%v), want 8", fresh.Due(), err)
	}
}
