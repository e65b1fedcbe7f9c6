package bus_test

import (
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// TestReconnectSpread: who loses the bus tries again soon, later only every few seconds, and a thousand
// who lost it together do not come together.
func TestReconnectSpread(t *testing.T) {
	const agents = 1000
	var arrivals [agents]time.Duration // when each comes again, at every round so far
	for round := 1; round <= 12; round++ {
		step := 100 * time.Millisecond << min(round-1, 10)
		step = min(step, 4*time.Second)
		in := make(map[int]int)
		most := 0
		for i := range arrivals {
			pause := bus.ReconnectPause(round)
			if pause < step/2 || pause >= step+step/2 {
				t.Fatalf("round %d: a pause of %s, want %s to %s", round, pause, step/2, step+step/2)
			}
			arrivals[i] += pause
			bin := int(arrivals[i] * 10 / step) // tenths of the step
			in[bin]++
			most = max(most, in[bin])
		}
		if most > agents/5 {
			t.Errorf("round %d: %d of %d come within %s", round, most, agents, step/10)
		}
	}
	if first := bus.ReconnectPause(1); first > 150*time.Millisecond {
		t.Errorf("the first pause is %s", first)
	}
	if p := bus.ReconnectPause(1 << 40); p > 6*time.Second {
		t.Errorf("after many rounds: a pause of %s", p)
	}
}
