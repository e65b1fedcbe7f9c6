package issuer

import (
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// TestUnknownUserCostsTheUsual holds that a name that nobody has does the work of the hashes that most of those tried last have: our own
// until one was seen, one voice for each hash, and only the last 256 count.
func TestUnknownUserCostsTheUsual(t *testing.T) {
	h := newHasher(Hash{Memory: 8, Time: 1, Threads: 1}, false, prometheus.NewHistogram(prometheus.HistogramOpts{Name: "seconds"}))
	work := map[string]int{}
	counting := func(class string) *stored {
		return &stored{class: class, match: func([]byte) bool { work[class]++; return true }}
	}
	h.usual.first = counting("our own")
	seen := func(class string, n int) {
		for k := range n {
			h.usual.note(fmt.Sprint(class, k), counting(class))
		}
	}
	for _, step := range []struct {
		what string
		do   func()
		want string
	}{
		{"before any was seen", func() {}, "our own"},
		{"after one of bcrypt", func() { seen("bcrypt", 1) }, "bcrypt"},
		{"after three of pbkdf2", func() { seen("pbkdf2", 3) }, "pbkdf2"},
		{"after one of bcrypt, ten times", func() {
			for range 10 {
				seen("bcrypt", 1)
			}
		}, "pbkdf2"},
		{"after as many of scrypt as are remembered", func() { seen("scrypt", manyHabits) }, "scrypt"},
	} {
		step.do()
		clear(work)
		for _, text := range []string{"", "!", "no hash"} {
			if ok, stale, _ := h.verify(t.Context(), text, "a password"); ok || stale {
				t.Errorf("%s: the hash %q of nobody is right", step.what, text)
			}
		}
		if len(work) != 1 || work[step.want] != 3 {
			t.Errorf("%s: the work was %v, want that of %s, 3 times", step.what, work, step.want)
		}
	}
	if len(h.usual.counts) != 1 || len(h.usual.sample) != 1 {
		t.Errorf("the classes %v and %d samples are remembered, want scrypt's alone", h.usual.counts, len(h.usual.sample))
	}
}

// TestHashesAreNoted: a login has its user's hash counted.
func TestHashesAreNoted(t *testing.T) {
	h := newHasher(Hash{Memory: 8, Time: 1, Threads: 1}, false, prometheus.NewHistogram(prometheus.HistogramOpts{Name: "seconds"}))
	text := "pbkdf2_sha256$1$c2FsdHNhbHQ$" + "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	if ok, _, err := h.verify(t.Context(), text, "wrong"); ok || err != nil {
		t.Fatalf("verify: got %v, %v", ok, err)
	}
	if got := h.usual.most().class; got == h.usual.first.class {
		t.Errorf("after a login with another class, an unknown name costs %s still", got)
	}
}
