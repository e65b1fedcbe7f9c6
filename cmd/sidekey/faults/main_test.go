package faults

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"
)

// long says that all runs are wanted. Both variables are taken away from what the suite starts: sidekey refuses one that it does
// not know.
var (
	long      = os.Getenv("SIDEKEY_LONG") == "1"
	seedText  = os.Getenv("SIDEKEY_FAULT_SEED")
	tableFile = os.Getenv("SIDEKEY_FAULT_TABLE")
)

var buildDir string // for the binaries, gone at the end

func TestMain(m *testing.M) {
	for _, name := range []string{"SIDEKEY_LONG", "SIDEKEY_FAULT_SEED", "SIDEKEY_FAULT_TABLE"} {
		os.Unsetenv(name)
	}
	if flag.Parse(); long && flag.Lookup("test.parallel").Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0))) //nolint:errcheck // it is a number; sites wait most of their time
	}
	os.Exit(func() int {
		var err error
		if buildDir, err = os.MkdirTemp("", "sidekey-faults-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(buildDir)
		return m.Run()
	}())
}

// sound builds sidekey as it is, once.
var sound = sync.OnceValues(func() (string, error) { return build("sidekey") })

// build builds sidekey under a name, with more arguments for go build. It is linked without what a debugger wants, which halves the time.
func build(name string, args ...string) (string, error) {
	binary := filepath.Join(buildDir, name)
	cmd := exec.Command("go", append(append([]string{"build", "-ldflags=-s -w", "-o", binary}, args...), "..")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", name, err, out)
	}
	return binary, nil
}

// chooseSeed gives the seed of a test's choices, and says it where the test fails.
func chooseSeed(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if seedText != "" {
		n, err := strconv.ParseUint(seedText, 10, 64)
		if err != nil {
			t.Fatalf("SIDEKEY_FAULT_SEED: want a number, got %q", seedText)
		}
		seed = n
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("SIDEKEY_FAULT_SEED=%d makes the same choices again", seed)
		}
	})
	return seed
}

// newRand gives a source of choices for one part of a run.
func newRand(seed uint64, part string) *rand.Rand {
	var stream uint64
	for _, c := range []byte(part) {
		stream = stream*131 + uint64(c)
	}
	return rand.New(rand.NewPCG(seed, stream))
}
