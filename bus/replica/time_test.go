package replica_test

import (
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
)

// TestTimeSetRight: the log's time follows the issuers' clocks back once a wrong one is set right, but nothing that was dropped by the
// wrong one is vouched for.
func TestTimeSetRight(t *testing.T) {
	r := replica.New(replica.Config{})
	now := time.Date(2026, 12, 1, 10, 30, 0, 0, time.UTC)
	soon, late := now.Add(10*time.Minute).Unix(), now.Add(26*time.Hour).Unix()
	for n, f := range []bus.Fact{
		&bus.Tick{Time: now.UnixMilli()},
		&bus.Revocation{ID: "soon", ExpiresAt: soon}, &bus.Revocation{ID: "late", ExpiresAt: late},
		&bus.Tick{Time: now.Add(24 * time.Hour).UnixMilli()}, // somebody's clock
		&bus.Tick{Time: now.Add(time.Second).UnixMilli()},
	} {
		if err := r.Apply(bus.Entry{Position: bus.Position{Epoch: 1, Seq: uint64(n + 1)}, Fact: f}); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := r.Snapshot().TickTime, now.Add(time.Second); !got.Equal(want) {
		t.Errorf("the log's time: got %v, want %v", got, want)
	}
	if !r.Forgotten(soon) {
		t.Error("a token whose revocation is dropped counts as known")
	}
	if r.Forgotten(late) || !revoked(r, jti("late")) {
		t.Error("what lives longer than the wrong time is dropped")
	}
}
