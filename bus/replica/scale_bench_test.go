package replica_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/replica"
)

// BenchmarkDay goes through a day of revocations, an entry at a time of the log's own clock, with a tick each ten seconds of it and an
// image each ten minutes: 1 million revocations of what lives for a day (sessions), and 8.6 million of what lives for a
// quarter of an hour (access tokens). Its floor is the count that a set without any slack would hold: what is alive by its own expiry.
func BenchmarkDay(b *testing.B) {
	for _, c := range []struct {
		name      string
		perSecond int
		lifetime  time.Duration
	}{{"12-a-second-live-a-day", 12, 24 * time.Hour}, {"100-a-second-live-15-minutes", 100, 15 * time.Minute}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				day(b, c.perSecond, c.lifetime)
			}
		})
	}
}

func day(b *testing.B, perSecond int, lifetime time.Duration) {
	const step = 10 // seconds
	before := inUse()
	r := replica.New(replica.Config{})
	start := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	var seq uint64
	var most, mostMemory, mostImage int
	var images []time.Duration
	begun := time.Now()
	entries := make([]bus.Entry, 0, perSecond*step+1)
	for s := 0; s < 24*3600; s += step {
		now := start.Add(time.Duration(s) * time.Second)
		entries = entries[:0]
		put := func(f bus.Fact) {
			seq++
			entries = append(entries, bus.Entry{Position: bus.Position{Epoch: 1, Seq: seq}, Fact: f})
		}
		for range perSecond * step {
			put(&bus.Revocation{ID: fmt.Sprintf("0192f0c1-%08x-7c3e-9b1d", seq), ExpiresAt: now.Add(lifetime).Unix()})
		}
		put(&bus.Tick{Time: now.UnixMilli(), Issuer: "issuer-1", Head: seq})
		if err := r.Apply(entries...); err != nil {
			b.Fatal(err)
		}
		most = max(most, r.Revocations())
		if s%600 != 0 {
			continue
		}
		at := time.Now()
		img, _, err := r.Image()
		if err != nil {
			b.Fatal(err)
		}
		images, mostImage = append(images, time.Since(at)), max(mostImage, len(img))
		if s%3600 == 3000 { // before an hour's are dropped
			img = nil
			mostMemory = max(mostMemory, inUse()-before)
		}
	}
	took := time.Since(begun)
	alive := perSecond * int(lifetime/time.Second)
	if most < alive || most > perSecond*(int(lifetime/time.Second)+3600+step) {
		b.Fatalf("at most %d were held, of %d that are alive: want no fewer, and no more than an hour's beyond", most, alive)
	}
	slices.Sort(images)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(seq), "entries")
	b.ReportMetric(float64(seq)/took.Seconds(), "entries/s")
	b.ReportMetric(float64(most), "live-most")
	b.ReportMetric(float64(most)/float64(alive), "x-floor-live")
	b.ReportMetric(float64(mostMemory)/1e6, "MB-most")
	b.ReportMetric(float64(mostImage)/1e6, "image-MB-most")
	b.ReportMetric(float64(images[len(images)/2].Microseconds())/1000, "ms-image-p50")
	b.ReportMetric(float64(images[len(images)-1].Microseconds())/1000, "ms-image-most")
	runtime.KeepAlive(r)
}

// inUse is the heap, garbage apart.
func inUse() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// BenchmarkChurn holds 1 million live revocations in an issuer's replica and in an agent's, which keeps a store on its disk, while so many more
// a second come over the embedded server for 15 s, 20 to an append, as from issuers that are asked for them side by side. It reports how long it takes from
// the call of an append until the agent has applied it, how long checkpoints take meanwhile, and what each replica takes of memory. Its floor is the same churn
// on an empty log; that of a checkpoint, the same bytes written to a file and synced.
func BenchmarkChurn(b *testing.B) {
	for b.Loop() {
		floor := churn(b, 0)
		got := churn(b, 1_000_000)
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(got.rate, "entries/s")
		b.ReportMetric(floor.rate, "entries/s-floor")
		for _, p := range []struct {
			at   int
			unit string
		}{{50, "p50"}, {99, "p99"}} {
			lag, least := got.lags[len(got.lags)*p.at/100], floor.lags[len(floor.lags)*p.at/100]
			b.ReportMetric(float64(lag.Microseconds())/1000, "ms-lag-"+p.unit)
			b.ReportMetric(float64(lag)/float64(least), "x-floor-lag-"+p.unit)
		}
		plain := middle(got.plain)
		for _, took := range []struct {
			all  []time.Duration
			what string
		}{{got.images, "checkpoint"}, {got.saves, "save"}} {
			p50 := middle(took.all)
			b.ReportMetric(float64(p50.Milliseconds()), "ms-"+took.what)
			b.ReportMetric(float64(took.all[len(took.all)-1].Milliseconds()), "ms-"+took.what+"-most")
			b.ReportMetric(float64(p50)/float64(plain), "x-floor-"+took.what)
		}
		b.ReportMetric(got.memory/1e6/2, "MB-replica")
		b.ReportMetric(float64(got.log)/1e6, "MB-log-most")
		b.ReportMetric(float64(got.log)/float64(got.held), "B-log/entry")
	}
}

// middle sorts, and gives the median.
func middle(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)/2]
}

type churned struct {
	rate, memory               float64
	log, held                  uint64 // bytes of the log on the server's disk at most, and the entries in it then
	lags, images, saves, plain []time.Duration
}

func churn(b *testing.B, live int) (got churned) {
	const (
		lasts = 15 * time.Second
		every = 20 * time.Millisecond
		each  = 20
		pause = 4 * time.Second // between checkpoints
	)
	srv := bustest.Start(b)
	l := srv.Log(b)
	before := inUse()
	store, err := replica.OpenStore(b.TempDir(), srv.Authority.Public())
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	plain := filepath.Join(b.TempDir(), "plain")
	issuers, agents := replica.New(replica.Config{}), replica.New(replica.Config{Journal: store.Journal})
	laden(b, l, live)
	defer start(b, issuers, l).stop()
	defer start(b, agents, srv.Reader(b)).stop()
	until(b, issuers, "the issuer's replica to be ready", func() bool { return issuers.Snapshot().Ready })
	until(b, agents, "the agent's replica to be ready", func() bool { return agents.Snapshot().Ready })
	if n := agents.Revocations(); n < live {
		b.Fatalf("the agent begins with %d revocations, want %d and more", n, live)
	}
	if err := store.Save(agents); err != nil {
		b.Fatal(err)
	}
	got.memory = float64(inUse() - before)

	conn, reader := srv.Connect(b), srv.Reader(b)
	var side sync.WaitGroup
	var mu sync.Mutex
	var last time.Time // when the agent had applied what was appended last
	ends := time.Now().Add(lasts)
	side.Go(func() { // checkpoints, the issuer's and the agent's, far more often than they are due
		again := time.NewTicker(pause)
		defer again.Stop()
		for ; time.Now().Before(ends); <-again.C {
			at := time.Now()
			img, cursor, err := issuers.Image()
			if err == nil {
				err = l.WriteCheckpoint(b.Context(), cursor, img, nil)
			}
			mid := time.Now()
			if err = errors.Join(err, store.Save(agents)); err != nil {
				b.Error(err)
				return
			}
			got.images, got.saves = append(got.images, mid.Sub(at)), append(got.saves, time.Since(mid))
			got.plain = append(got.plain, plainWrite(b, plain, img))
			if h := bus.LookAtHealth(b.Context(), conn, reader, nil, bus.Synced); h.LogBytes > got.log {
				got.log, got.held = h.LogBytes, h.Last-h.First+1
			}
		}
	})
	begun, n, due := time.Now(), 0, time.NewTicker(every)
	defer due.Stop()
	for ; time.Now().Before(ends); <-due.C {
		facts := make([]bus.Fact, each)
		for k := range facts {
			facts[k] = &bus.Revocation{ID: fmt.Sprintf("0192f0c1-%08x-churn-9b1d", n+k), ExpiresAt: begun.Add(time.Hour).Unix()}
		}
		n += each
		side.Go(func() { // whether or not the one before has come back
			asked := time.Now()
			at, err := l.Append(b.Context(), facts...)
			if err == nil {
				err = agents.Wait(b.Context(), at.Seq)
			}
			if err != nil {
				b.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			last = time.Now()
			got.lags = append(got.lags, last.Sub(asked))
		})
		if n%(each*50) == 0 {
			side.Go(func() {
				if _, err := l.Tick(b.Context()); err != nil {
					b.Error(err)
				}
			})
		}
	}
	side.Wait()
	got.rate = float64(n) / last.Sub(begun).Seconds()
	if have := agents.Revocations(); have != live+n+1 {
		b.Fatalf("the agent holds %d revocations at the end, want %d", have, live+n+1)
	}
	slices.Sort(got.lags)
	runtime.KeepAlive(issuers)
	return got
}

// plainWrite takes the time of writing and syncing a file, which is the floor of both kinds of checkpoint.
func plainWrite(b *testing.B, name string, data []byte) time.Duration {
	begun := time.Now()
	f, err := os.Create(name)
	if err == nil {
		_, err = f.Write(data)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		b.Error(err)
	}
	return time.Since(begun)
}

// laden begins a log with one entry and a checkpoint at it that has so many revocations more.
func laden(b *testing.B, l *bus.Log, live int) {
	b.Helper()
	at := mustAppend(b, l, revocation("first"))
	all := replica.New(replica.Config{})
	first := start(b, all, l)
	until(b, all, "the replica to be ready", func() bool { return all.Snapshot().Ready && all.Snapshot().Position == at })
	first.stop()
	cursor := all.Cursor()
	for from := 0; from < live; from += 1000 {
		entries := make([]bus.Entry, 1000)
		for k := range entries {
			entries[k].Position = bus.Position{Epoch: at.Epoch, Seq: at.Seq + 1 + uint64(from+k)}
			entries[k].Fact = &bus.Revocation{ID: fmt.Sprintf("0192f0c1-%08x-7c3e-9b1d", from+k), ExpiresAt: time.Now().Add(time.Duration(2+k%24) * time.Hour).Unix()}
		}
		if err := all.Apply(entries...); err != nil {
			b.Fatal(err)
		}
	}
	img, err := all.ImageAt(cursor)
	if err == nil {
		err = l.WriteCheckpoint(b.Context(), cursor, img, nil)
	}
	if err != nil {
		b.Fatal(err)
	}
}
