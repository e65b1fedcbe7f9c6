package issuer

import (
	"fmt"
	"testing"
	"time"
)

// TestInventedNames: names that nobody has do not push out the one whose password is being guessed,
// whether it is out of attempts or about to be; a minute later they are forgotten.
func TestInventedNames(t *testing.T) {
	for _, tried := range []int{2, 3} {
		l, now := newLimits(3, 10), time.Unix(1e9, 0)
		for range tried {
			if err := l.take("alice", "127.0.0.1", now); err != nil {
				t.Fatal(err)
			}
		}
		for n := range 2 * maxLimited {
			l.take(fmt.Sprint(n), "127.0.0.1", now) //nolint:errcheck // there is no room for them all
		}
		left := 0
		for l.take("alice", "127.0.0.1", now) == nil {
			left++
		}
		if left != 3-tried {
			t.Errorf("after %d of 3 attempts and a flood of names: %d left, want %d", tried, left, 3-tried)
		}
		if n := l.names.seen.Len(); n > maxLimited {
			t.Errorf("%d names are remembered, want %d at most", n, maxLimited)
		}
		if err := l.take("bob", "127.0.0.1", now.Add(time.Minute)); err != nil {
			t.Errorf("a new name a minute later: %v", err)
		}
	}
}

// TestInventedAddresses: they lock nobody out.
func TestInventedAddresses(t *testing.T) {
	l, now := newLimits(3, 10), time.Unix(1e9, 0)
	for n := range maxLimited + 1 {
		l.take("alice", fmt.Sprintf("10.%d.%d.%d", n>>16, n>>8&255, n&255), now) //nolint:errcheck // she is out of attempts
	}
	if err := l.take("bob", "192.0.2.1", now); err != nil {
		t.Errorf("another name from a new address: %v", err)
	}
}
