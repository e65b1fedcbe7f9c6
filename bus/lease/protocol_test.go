package lease_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// history lets a driver choose what happens, step by step, and gives what it broke. In each some things
// do not happen at all: the others come to more of what takes long.
func history(w *world, steps int, choose pick) (did []string, broke string) {
	some := []action{(*world).up}
	for _, do := range actions {
		if choose(6) > 0 {
			some = append(some, do)
		}
	}
	return w.play(some, steps, choose)
}

// play is a history of these actions.
func (w *world) play(some []action, steps int, choose pick) (did []string, broke string) {
	for range steps {
		if what := some[choose(len(some))](w, choose); what != "" {
			did = append(did, what)
			if strings.HasPrefix(what, "VIOLATION") {
				return did, what
			}
		}
		if v := w.promise(); v != "" {
			return append(did, v), v
		}
	}
	return did, ""
}

// TestProtocol: no history breaks promise 1, and after each, once all is well, everybody has a lease and
// every entry is confirmed.
func TestProtocol(t *testing.T) {
	dir := runtimeDir(t)
	if f := flag.Lookup("rapid.checks"); !long && f.Value.String() == f.DefValue {
		f.Value.Set("150")
		defer f.Value.Set(f.DefValue)
	}
	var histories, steps, asked, granted, confirmed, checked int
	rapid.Check(t, func(rt *rapid.T) {
		choose := func(n int) int { return rapid.IntRange(0, n-1).Draw(rt, "choice") }
		home, err := os.MkdirTemp(dir, "h")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(home)
		w := newModel(home, faults{}, choose)
		defer w.close()
		did, broke := history(w, rapid.IntRange(60, 200).Draw(rt, "steps"), choose)
		if broke == "" {
			broke = w.heal()
		}
		if broke != "" {
			rt.Fatalf("%s\n%s", strings.Join(did, "\n"), broke)
		}
		histories, steps = histories+1, steps+len(did)
		asked, granted, confirmed, checked = asked+w.asked, granted+w.granted, confirmed+len(w.confirmed), checked+w.checked
	})
	t.Logf("%d histories of %d steps, with %d requests, %d grants taken, %d checks and %d entries confirmed: promise 1 broken 0 times",
		histories, steps, asked, granted, checked, confirmed)
}

// randomly drives histories by chance until one breaks.
func randomly(t *testing.T, f faults, only []action, histories, steps int) (tried int, broke string) {
	dir := runtimeDir(t)
	for seed := range uint64(histories) {
		rng := rand.New(rand.NewPCG(seed, 1))
		home := filepath.Join(dir, fmt.Sprint(seed))
		w := newModel(home, f, rng.IntN)
		var did []string
		if only != nil {
			did, broke = w.play(only, steps, rng.IntN)
		} else {
			did, broke = history(w, steps, rng.IntN)
		}
		if broke == "" && f == (faults{}) {
			broke = w.heal()
		}
		w.close()
		os.RemoveAll(home)
		if broke != "" {
			if testing.Verbose() && len(did) > 12 {
				did = did[len(did)-12:]
			}
			return int(seed) + 1, strings.Join(did, "; ") + "; " + broke
		}
	}
	return histories, ""
}

// TestProtocolByChance drives the model harder than rapid does, without shrinking.
func TestProtocolByChance(t *testing.T) {
	n := 150
	if long {
		n = 600
	}
	for _, menu := range [][]action{nil, restarts, delays} {
		if tried, broke := randomly(t, faults{}, menu, n, 200); broke != "" {
			t.Errorf("history %d: %s", tried, broke)
		}
	}
	t.Logf("%d histories of 200 steps: promise 1 broken 0 times", 3*n)
}

// TestPlantedFaults: each rule that is taken away breaks promise 1 in some history.
func TestPlantedFaults(t *testing.T) {
	for _, c := range []struct {
		rule string
		f    faults
		only []action // nil: whatever can happen
	}{
		{"1: an acknowledgement leaves before its floor is written", faults{ackBeforeFloor: true}, restarts},
		{"1: a restart forgets the floor", faults{floorForgotten: true}, restarts},
		{"1: an acknowledgement leaves before the verify path sees the entry", faults{ackBeforeApplied: true}, nil},
		{"2: a check does not look at its lease again", faults{noRecheck: true}, nil},
		{"2: a check looks at a lease renewed meanwhile", faults{otherLease: true}, nil},
		{"3: processes under one name are one run", faults{names: true}, nil},
		{"3: an old lease file comes back with a disk image", faults{fileOnDisk: true}, restarts},
		{"4: a receipt is given before the issuer has read up to the entry", faults{unread: true}, nil},
		{"4: only the newest lease of a run counts", faults{onlyNewest: true}, delays},
		{"5: an issuer that starts from a checkpoint knows no leases", faults{restoredLong: true}, nil},
		{"6: a tick answers who asked when it was under way", faults{tickUnderWay: true}, delays},
		{"8: clocks run at rates that differ by more than the drift", faults{fastClocks: true}, nil},
		{"a lease counts from when it was received", faults{datedAtReceipt: true}, delays},
		{"a lease counts before its tick is applied", faults{leaseWithoutTick: true}, nil},
		{"another agent's acknowledgement counts", faults{settledByAnyAgent: true}, nil},
	} {
		t.Run(c.rule, func(t *testing.T) {
			tried, broke := randomly(t, c.f, c.only, 5000, 200)
			if broke == "" {
				t.Errorf("taken away, no history of %d breaks promise 1: the test does not look", tried)
			}
			t.Logf("caught in history %d: …; %s", tried, broke)
		})
	}
}
