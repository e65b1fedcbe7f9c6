package lease_test

import (
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// TestCopiesGoOn: a file that could not be opened once, when it was its turn, is tried again, and what is granted from then on is copied; and
// closed is closed.
func TestCopiesGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := new(forgetful)
		c := openCopies(t, filepath.Join(t.TempDir(), "grants"), log)
		write := func(n int) {
			t.Helper()
			if _, _, err := c.WriteGrants(t.Context(), list(n)); err != nil {
				t.Fatal(err)
			}
		}
		write(0)
		time.Sleep(21 * time.Minute)
		var limit syscall.Rlimit
		if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Max: limit.Max}); err != nil {
			t.Fatal(err)
		}
		write(1)
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		write(2) // it is not tried so soon
		time.Sleep(11 * time.Second)
		write(3)
		write(4)
		c.Close()
		time.Sleep(11 * time.Second)
		write(5)
		log.gone = bus.ErrNotFound
		for n, want := range []bool{true, false, false, true, true, false} {
			if has(c, n) != want {
				t.Errorf("list %d: copied is %v, want %v", n, !want, want)
			}
		}
	})
}
