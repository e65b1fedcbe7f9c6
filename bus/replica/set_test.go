package replica

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// randomIDs gives n fingerprints.
func randomIDs(n int) []id {
	rng := rand.NewChaCha8([32]byte{1})
	ids := make([]id, n)
	for i := range ids {
		rng.Read(ids[i][:]) //nolint:errcheck // never fails
	}
	return ids
}

// TestSetModel: the set does what a map does, but that an id may stay longer than it must.
func TestSetModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s set
		model := make(map[id]int64) // the latest exp, while it lies ahead
		now := int64(0)
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				k := fingerprint('j', fmt.Sprint(rapid.IntRange(0, 40).Draw(t, "id")))
				exp := now + rapid.Int64Range(1, 20*bucketWidth).Draw(t, "exp")
				s.add(k, exp)
				model[k] = max(model[k], exp)
			},
			"drop": func(t *rapid.T) {
				now += rapid.Int64Range(0, 5*bucketWidth).Draw(t, "later")
				s.drop(now)
				for k, exp := range model {
					if exp+bucketWidth <= now {
						delete(model, k)
					}
				}
			},
			"": func(t *rapid.T) {
				for k, exp := range model {
					if exp > now && !s.has(k) {
						t.Fatalf("an id that expires at %d is gone at %d", exp, now)
					}
					if exp <= now && !s.has(k) && exp > s.dropped.Load() {
						t.Fatalf("an id that expired at %d is gone, and it is said only up to %d", exp, s.dropped.Load())
					}
				}
				for n := range 41 {
					k := fingerprint('j', fmt.Sprint(n))
					if _, ok := model[k]; !ok && s.has(k) {
						t.Fatalf("id %d is there, and was never added, or expired an hour before %d", n, now)
					}
				}
				if s.dropped.Load() > now {
					t.Fatalf("ids up to %d are said to be dropped at %d", s.dropped.Load(), now)
				}
				n := 0
				s.each(func(end int64, ids []id) { n += len(ids) })
				if n != int(s.count.Load()) {
					t.Fatalf("%d ids are there, %d are counted", n, s.count.Load())
				}
			},
		})
	})
}

// TestSetMemory: a million ids take at most 32 bytes each, and are all found.
func TestSetMemory(t *testing.T) {
	const n = 1_000_000
	ids := randomIDs(n)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s := new(set)
	now := time.Now().Unix()
	for i, k := range ids {
		s.add(k, now+int64(i%86400))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := float64(after.HeapAlloc-before.HeapAlloc) / n
	t.Logf("%.1f bytes an id", per)
	if per > 32 {
		t.Errorf("%.1f bytes an id, want at most 32", per)
	}
	for i, k := range ids {
		if !s.has(k) {
			t.Fatalf("id %d is not found", i)
		}
		if k[3]++; s.has(k) {
			t.Fatalf("id %d, altered, is found", i)
		}
	}
	s.drop(now + 2*86400)
	if s.count.Load() != 0 || s.has(ids[0]) {
		t.Errorf("%d ids are left after all have expired", s.count.Load())
	}
}

// TestSetBuckets: more hours of expiry than there are buckets; no id goes before its time.
func TestSetBuckets(t *testing.T) {
	for _, order := range []string{"rising", "falling", "shuffled"} {
		const n = 3 * maxBuckets
		var s set
		at := func(i int) int { return i }
		if order == "falling" {
			at = func(i int) int { return n - 1 - i }
		}
		perm := rand.New(rand.NewPCG(1, 2)).Perm(n)
		if order == "shuffled" {
			at = func(i int) int { return perm[i] }
		}
		exp := func(i int) int64 { return int64(i+1) * bucketWidth }
		for i := range n {
			s.add(fingerprint('j', fmt.Sprint(at(i))), exp(at(i)))
		}
		for now := int64(0); now <= exp(n-1); now += 7 * bucketWidth {
			s.drop(now)
			for i := range n {
				if exp(i) > now && !s.has(fingerprint('j', fmt.Sprint(i))) {
					t.Fatalf("%s: id that expires at %d is gone at %d", order, exp(i), now)
				}
			}
			if s.dropped.Load() > now {
				t.Fatalf("%s: dropped up to %d at %d", order, s.dropped.Load(), now)
			}
		}
		s.drop(exp(n))
		if left := s.count.Load(); left != 0 {
			t.Errorf("%s: %d ids are left after all have expired", order, left)
		}
	}
}

// TestSetEndOfTime: an exp at the end of time is not one in the past.
func TestSetEndOfTime(t *testing.T) {
	var s set
	for i, exp := range []int64{math.MaxInt64, math.MaxInt64 - 1, math.MaxInt64 - bucketWidth, math.MaxInt64 / bucketWidth * bucketWidth} {
		k := fingerprint('j', fmt.Sprint(i))
		s.add(k, exp)
		s.drop(time.Now().Unix())
		if !s.has(k) {
			t.Errorf("an id that expires at %d was dropped today", exp)
		}
	}
	if s.dropped.Load() != 0 {
		t.Errorf("something was dropped, up to %d", s.dropped.Load())
	}
}

// TestSetReaders: readers go on while the writer adds and drops, and see what stays.
func TestSetReaders(t *testing.T) {
	var s set
	stay, come := randomIDs(20_000)[:5_000], randomIDs(20_000)[5_000:]
	for _, k := range stay {
		s.add(k, 1000*bucketWidth)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if !s.has(stay[i%len(stay)]) {
					t.Error("an id that stays was not found")
					return
				}
				s.has(come[i%len(come)])
			}
		})
	}
	for round := range int64(3) {
		for _, k := range come {
			s.add(k, (round+1)*bucketWidth)
		}
		s.drop((round + 1) * bucketWidth)
	}
	close(stop)
	wg.Wait()
	if got := s.count.Load(); got != int64(len(stay)) {
		t.Errorf("%d ids are left, want %d", got, len(stay))
	}
}

// TestCutoffs: they combine by their maxima, and their going is announced before it is done.
func TestCutoffs(t *testing.T) {
	var c cutoffs
	k := fingerprint('u', "alice")
	if c.refuses(k, 0, true, 0) {
		t.Error("an empty set refuses")
	}
	c.add(k, cutoff{Seq: 10, Time: 100, Exp: 1000})
	c.add(k, cutoff{Seq: 5, Time: 200, Exp: 500})
	for _, q := range []struct {
		seq    uint64
		hasSeq bool
		iat    int64
		want   bool
	}{{9, true, 0, true}, {10, true, 0, false}, {10, true, 50, false}, {0, false, 200, true}, {0, false, 201, false}, {99, false, 0, true}} {
		if got := c.refuses(k, q.seq, q.hasSeq, q.iat); got != q.want {
			t.Errorf("refuses(%d, %v, %d): got %v, want %v", q.seq, q.hasSeq, q.iat, got, q.want)
		}
	}
	if c.refuses(fingerprint('c', "alice"), 0, true, 0) {
		t.Error("a subject's cutoff refuses a client of the same name")
	}
	c.drop(999, func(int64) { t.Error("a live cutoff was announced as dropped") })
	said := int64(0)
	c.drop(1000, func(end int64) {
		said = end
		if len(c.byID) != 1 {
			t.Error("it was dropped before it was announced")
		}
	})
	if said != 1000 || c.refuses(k, 0, true, 0) || c.count.Load() != 0 {
		t.Errorf("after its end: announced %d, still %d there", said, c.count.Load())
	}
}

// BenchmarkRevokedLookup is a look-up among a million ids, and what each of them takes. The floor is
// the same in a Go map under a read lock.
func BenchmarkRevokedLookup(b *testing.B) {
	const n = 1_000_000
	ids, absent := randomIDs(n), randomIDs(2 * n)[n:]
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s := new(set)
	for i, k := range ids {
		s.add(k, int64(i%86400+1))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := float64(after.HeapAlloc-before.HeapAlloc) / n
	floor := make(map[id]uint8, n)
	var mu sync.RWMutex
	for _, k := range ids {
		floor[k] = 1
	}
	var mine, maps time.Duration
	hits := 0
	const batch = 4096
	for i := 0; b.Loop(); i++ {
		from := i * batch % (n - batch)
		begun := time.Now()
		for j := range batch {
			if s.has(ids[from+j]) != s.has(absent[from+j]) {
				hits++
			}
		}
		mid := time.Now()
		for j := range batch {
			mu.RLock()
			_, hit := floor[ids[from+j]]
			mu.RUnlock()
			mu.RLock()
			_, miss := floor[absent[from+j]]
			mu.RUnlock()
			if hit != miss {
				hits--
			}
		}
		mine, maps = mine+mid.Sub(begun), maps+time.Since(mid)
	}
	if hits != 0 {
		b.Fatalf("set and map differ in %d look-ups", hits)
	}
	b.ReportMetric(float64(mine.Nanoseconds())/float64(b.N)/(2*batch), "ns/lookup")
	b.ReportMetric(float64(mine)/float64(maps), "x-floor")
	b.ReportMetric(per, "B/entry")
	b.ReportMetric(0, "ns/op")
}
