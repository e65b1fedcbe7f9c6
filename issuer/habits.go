package issuer

import (
	"hash/maphash"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// manyHabits is how many stored hashes are remembered by their class.
const manyHabits = 256

// habits know what a login costs with most of the hashes seen last: that much a user name that does not exist must cost too. One
// hash has one voice however often it is tried, so nobody who knows one password moves the answer.
type habits struct {
	first *stored // until one was seen

	mu     sync.Mutex
	seen   *simplelru.LRU[uint64, string] // class by hash
	counts map[string]int
	sample map[string]*stored // by class; of one of its hashes, since all take the same
}

func newHabits(first *stored) *habits {
	h := &habits{first: first, counts: map[string]int{}, sample: map[string]*stored{}}
	seen, err := simplelru.NewLRU(manyHabits, func(_ uint64, class string) {
		if h.counts[class]--; h.counts[class] == 0 {
			delete(h.counts, class)
			delete(h.sample, class)
		}
	})
	if err != nil {
		panic(err) // only a size below 1 is refused
	}
	h.seen = seen
	return h
}

var habitSeed = maphash.MakeSeed()

// note counts a hash that a user has.
func (h *habits) note(text string, s *stored) {
	key := maphash.String(habitSeed, text)
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, again := h.seen.Get(key); again {
		return
	}
	h.counts[s.class]++
	h.sample[s.class] = s
	h.seen.Add(key, s.class)
}

// most gives a hash of the class that most have.
func (h *habits) most() *stored {
	h.mu.Lock()
	defer h.mu.Unlock()
	best, n := h.first, 0
	for class, count := range h.counts {
		if count > n || count == n && class < best.class {
			best, n = h.sample[class], count
		}
	}
	return best
}
