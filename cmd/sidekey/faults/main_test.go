//go:build linux

package faults

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
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
var sound = sync.OnceValues(func() (string, error) { return build("sidekey", nil) })

// The cost of a password's hash, as it is and as it is in this suite: at its full cost a run would hash most of the time, on the two cores
// that all of a site's hosts share, and look at little else.
const (
	hashFile = "issuer/password.go"
	fullHash = "var DefaultHash = Hash{Memory: 64 << 10, Time: 3, Threads: 4}"
	thinHash = "var DefaultHash = Hash{Memory: 1 << 10, Time: 1, Threads: 1}"
)

// build builds sidekey under a name, with other sources in some files' places. It is linked without what a debugger wants, which halves the
// time.
func build(name string, changed map[string]string) (string, error) {
	hashes, err := replaced(hashFile, fullHash, thinHash)
	if err != nil {
		return "", err
	}
	files := map[string]string{filepath.Join(repository, hashFile): hashes}
	maps.Copy(files, changed)
	replace := make(map[string]string)
	for path, source := range files {
		replace[path] = filepath.Join(buildDir, fmt.Sprintf("%s-%d.go", name, len(replace)))
		if err := os.WriteFile(replace[path], []byte(source), 0o600); err != nil {
			return "", err
		}
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	binary, overlay := filepath.Join(buildDir, name), filepath.Join(buildDir, name+".json")
	if err := os.WriteFile(overlay, text, 0o600); err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-overlay", overlay, "-o", binary, "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", name, err, out)
	}
	return binary, nil
}

// replaced is the source of a file of the repository with one place changed.
func replaced(file, old, to string) (string, error) {
	source, err := os.ReadFile(filepath.Join(repository, file))
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(source), old); n != 1 {
		return "", fmt.Errorf("%s has this %d times, want once: %s", file, n, old)
	}
	return strings.Replace(string(source), old, to, 1), nil
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

// lacking skips a test for want of something on the machine; in CI, where it must be there, the test fails.
func lacking(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// newRand gives a source of choices for one part of a run.
func newRand(seed uint64, part string) *rand.Rand {
	var stream uint64
	for _, c := range []byte(part) {
		stream = stream*131 + uint64(c)
	}
	return rand.New(rand.NewPCG(seed, stream))
}
