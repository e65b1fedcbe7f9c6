package lease_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/lease"
)

// contender is an issuer that wants the duty, within a synctest bubble: its own way to the bucket, and its own clocks.
type contender struct {
	*lease.Duty
	lease.DutyBucket
	cut   atomic.Bool // the bus does not answer it
	unfit atomic.Bool
	lags  atomic.Bool
	rate  float64                       // of its clocks; 0: 1
	boot  atomic.Int64                  // nanoseconds that only CLOCK_BOOTTIME has passed
	hang  atomic.Pointer[chan struct{}] // its next calls stand until this is closed, whatever their context says: a paused process
	stop  func()
}

func (c *contender) clock(begin time.Time) lease.Clock {
	if c.rate == 0 {
		c.rate = 1
	}
	return func() lease.Reading {
		at := time.Hour + time.Duration(float64(time.Since(begin))*c.rate)
		return lease.Reading{Mono: at, Boot: at + time.Duration(c.boot.Load()), Wall: at}
	}
}

var errAway = errors.New("the bus is away")

func (c *contender) pass() error {
	if hang := c.hang.Load(); hang != nil {
		<-*hang
	}
	if c.cut.Load() {
		return errAway
	}
	return nil
}

func (c *contender) Get(ctx context.Context, name string) (bus.Record, error) {
	if err := c.pass(); err != nil {
		return bus.Record{}, err
	}
	return c.DutyBucket.Get(ctx, name)
}

func (c *contender) Create(ctx context.Context, name string, value []byte) (uint64, error) {
	if err := c.pass(); err != nil {
		return 0, err
	}
	return c.DutyBucket.Create(ctx, name, value)
}

func (c *contender) Update(ctx context.Context, name string, value []byte, revision uint64) (uint64, error) {
	if err := c.pass(); err != nil {
		return 0, err
	}
	return c.DutyBucket.Update(ctx, name, value, revision)
}

// contend starts issuers one after the other, and checks until the test ends that never two hold the duty.
func contend(t *testing.T, bucket lease.DutyBucket, all ...*contender) {
	t.Helper()
	begin := time.Now()
	var running sync.WaitGroup
	for n, c := range all {
		c.DutyBucket = bucket
		c.Duty = lease.NewDuty(lease.DutyConfig{
			Issuer: string(rune('a' + n)), Run: "run of " + string(rune('a'+n)), Bucket: c, Name: "duty", Logger: hclog.NewNullLogger(),
			Fit: func() bool { return !c.unfit.Load() }, Lags: c.lags.Load, Clock: c.clock(begin),
		})
		ctx, stop := context.WithCancel(t.Context())
		c.stop = stop
		running.Go(func() { c.Run(ctx) })
		synctest.Wait()
	}
	ctx, stop := context.WithCancel(t.Context())
	running.Go(func() {
		for ctx.Err() == nil {
			held := 0
			for _, c := range all {
				if c.Held() {
					held++
				}
			}
			if held > 1 {
				t.Errorf("%s: %d issuers hold the duty", time.Since(begin), held)
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	t.Cleanup(func() {
		stop()
		for _, c := range all {
			if hang := c.hang.Swap(nil); hang != nil {
				close(*hang)
			}
			c.stop()
		}
		running.Wait()
	})
}

// passesTo waits until c holds the duty, and tells how long that took.
func passesTo(t *testing.T, c *contender) time.Duration {
	t.Helper()
	begin := time.Now()
	for !c.Held() {
		if time.Since(begin) > time.Minute {
			t.Fatal("nobody took the duty within a minute")
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(begin)
}

// TestDutyPasses holds how soon another has the duty, whatever befalls its holder, and that never two have it.
func TestDutyPasses(t *testing.T) {
	for name, test := range map[string]struct {
		a, b     *contender
		befalls  func(a *contender)
		from, to time.Duration // when the other has it
		back     func(a *contender)
	}{
		"given up": {new(contender), new(contender), func(a *contender) { a.stop() }, 0, 1100 * time.Millisecond, nil},
		"not fit": {new(contender), new(contender), func(a *contender) { a.unfit.Store(true) }, 0, 2600 * time.Millisecond,
			func(a *contender) { a.unfit.Store(false) }},
		"cut off": {new(contender), new(contender), func(a *contender) { a.cut.Store(true) }, 2 * time.Second, 6100 * time.Millisecond,
			func(a *contender) { a.cut.Store(false) }},
		"cut off, its clock slow, the other's fast": {&contender{rate: 0.991}, &contender{rate: 1.009}, func(a *contender) { a.cut.Store(true) },
			2 * time.Second, 6100 * time.Millisecond, func(a *contender) { a.cut.Store(false) }},
		"paused": {new(contender), new(contender), func(a *contender) { hang := make(chan struct{}); a.hang.Store(&hang) }, 2 * time.Second, 6100 * time.Millisecond,
			func(a *contender) { close(*a.hang.Swap(nil)) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				contend(t, new(bustest.Bucket), test.a, test.b)
				if took := passesTo(t, test.a); took > 0 || test.b.Holder() != "a" {
					t.Fatalf("the first took it after %s, and the second sees %q hold it", took, test.b.Holder())
				}
				time.Sleep(10 * time.Second)
				if !test.a.Held() || test.a.Taken() != 1 {
					t.Fatalf("after 10 s: held %v, taken %d times", test.a.Held(), test.a.Taken())
				}
				work, stop, held := test.a.While(t.Context())
				defer stop()
				if !held || work.Err() != nil {
					t.Fatalf("While: held %v, %v", held, work.Err())
				}
				test.befalls(test.a)
				if took := passesTo(t, test.b); took < test.from || took > test.to {
					t.Errorf("passed on after %s, want %s to %s", took, test.from, test.to)
				}
				if test.a.Held() || work.Err() == nil {
					t.Errorf("the other has it, and the first: held %v, its work %v", test.a.Held(), work.Err())
				}
				if test.back != nil {
					test.back(test.a)
				}
				time.Sleep(10 * time.Second)
				if test.a.Held() || !test.b.Held() || test.back != nil && test.a.Holder() != "b" {
					t.Errorf("once it is back: first %v, second %v, and the first sees %q", test.a.Held(), test.b.Held(), test.a.Holder())
				}
				if _, stop, held := test.a.While(t.Context()); held {
					t.Error("While: held by who has it not")
					stop()
				}
			})
		})
	}
}

// TestDutyOfWhoLags holds that one that lags leaves the duty to one that does not, and that where all lag one has it nearly always, and
// now and then offers it.
func TestDutyOfWhoLags(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := new(contender), new(contender)
		contend(t, new(bustest.Bucket), a, b)
		passesTo(t, a)
		time.Sleep(time.Minute)
		a.lags.Store(true)
		if took := passesTo(t, b); took > 2600*time.Millisecond {
			t.Errorf("passed on after %s, want 2.6 s at most", took)
		}
		time.Sleep(time.Hour)
		if !b.Held() || b.Taken() != 1 || a.Taken() != 1 {
			t.Errorf("an hour on: held %v, taken %d and %d times, want it to stay with the other", b.Held(), a.Taken(), b.Taken())
		}
		b.lags.Store(true)
		time.Sleep(10 * time.Second)
		held := 0
		for range 3600 {
			time.Sleep(time.Second)
			if a.Held() || b.Held() {
				held++
			}
		}
		if taken := a.Taken() + b.Taken(); held < 3560 || taken < 5 || taken > 8 {
			t.Errorf("both lag: held for %d s of an hour, taken %d times in all, want nearly always, and some four times an hour", held, taken)
		}
		well := a
		if a.Held() {
			well = b
		}
		well.lags.Store(false)
		time.Sleep(16 * time.Minute)
		if !well.Held() {
			t.Error("a quarter of an hour after it ceased to lag the other has it still")
		}
	})
}

// TestDutySuspended holds that a machine which was suspended knows at its first look that it holds nothing: nobody else need have
// acted yet.
func TestDutySuspended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := new(contender)
		contend(t, new(bustest.Bucket), a)
		changed := a.Changed()
		a.boot.Add(int64(time.Minute))
		if _, stop, held := a.While(t.Context()); held || a.Held() {
			stop()
			t.Fatal("held after a minute of which its other clocks know nothing")
		}
		time.Sleep(2 * time.Second) // nobody else took it: it may have it again, as one that takes it anew
		if !a.Held() || a.Taken() != 2 {
			t.Errorf("two seconds later: held %v, taken %d times", a.Held(), a.Taken())
		}
		select {
		case <-changed:
		default:
			t.Error("nobody was told")
		}
	})
}

// TestDutyLostAnswer holds that a write which was stored though its answer was lost neither loses the duty nor prolongs it.
func TestDutyLostAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bucket := new(bustest.Bucket)
		bucket.Fail(bustest.Failure{Err: errAway, Stored: true})
		a, b := new(contender), new(contender)
		contend(t, bucket, a, b)
		if a.Held() {
			t.Fatal("it holds what it does not know to have")
		}
		if took := passesTo(t, a); took > time.Second {
			t.Errorf("it took %s to find its own record", took)
		}
		for range 5 {
			bucket.Fail(bustest.Failure{Err: errAway, Stored: true}, bustest.Failure{Err: errAway})
			time.Sleep(4 * time.Second)
			if !a.Held() || b.Held() || a.Taken() != 1 {
				t.Fatalf("held %v, by the other %v, taken %d times", a.Held(), b.Held(), a.Taken())
			}
		}
	})
}

// TestDutyRecord holds what a new issuer makes of what stands there: a run that is gone is waited for, what cannot be read is
// nobody's, and a bus that does not answer means nothing.
func TestDutyRecord(t *testing.T) {
	for name, test := range map[string]struct {
		record   string
		cut      bool
		from, to time.Duration
	}{
		"none":            {"", false, 0, 0},
		"given up":        {`{"issuer":"a","run":""}`, false, 0, 0},
		"of an older run": {`{"issuer":"a","run":"older"}`, false, 5 * time.Second, 5100 * time.Millisecond},
		"no JSON":         {`{"issuer":`, false, 0, 0},
		"bus away":        {"", true, 20 * time.Second, 21100 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bucket := new(bustest.Bucket)
				if test.record != "" {
					if _, err := bucket.Create(t.Context(), "duty", []byte(test.record)); err != nil {
						t.Fatal(err)
					}
				}
				a := new(contender)
				a.cut.Store(test.cut)
				if test.cut {
					time.AfterFunc(20*time.Second, func() { a.cut.Store(false) })
				}
				contend(t, bucket, a)
				if took := passesTo(t, a); took < test.from || took > test.to {
					t.Errorf("taken after %s, want %s to %s", took, test.from, test.to)
				}
			})
		})
	}
}

// TestDutyContract holds the duty on the bucket in memory and on NATS: of many that start at once one has it, and passes it on at
// once as it stops, by the wake where there is one.
func TestDutyContract(t *testing.T) {
	for name, open := range map[string]func(*testing.T) (lease.DutyBucket, func() <-chan struct{}){
		"memory": func(*testing.T) (lease.DutyBucket, func() <-chan struct{}) {
			return new(bustest.Bucket), func() <-chan struct{} { return nil }
		},
		"nats": func(t *testing.T) (lease.DutyBucket, func() <-chan struct{}) {
			bucket := bustest.Start(t).Bucket(t, bus.BucketDuties)
			return bucket, func() <-chan struct{} {
				written, stop, err := bucket.Written("duty")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(stop)
				return written
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bucket, written := open(t)
			var running sync.WaitGroup
			defer running.Wait()
			duties, stops := make([]*lease.Duty, 4), make([]context.CancelFunc, 4)
			for n := range duties {
				duties[n] = lease.NewDuty(lease.DutyConfig{Issuer: string(rune('a' + n)), Run: string(rune('A' + n)), Bucket: bucket, Name: "duty", Written: written(), Logger: hclog.NewNullLogger()})
				var ctx context.Context
				ctx, stops[n] = context.WithCancel(t.Context())
				defer stops[n]()
				running.Go(func() { duties[n].Run(ctx) })
			}
			for range len(duties) {
				begin, holder := time.Now(), -1
				for holder < 0 {
					for n, d := range duties {
						if d.Held() {
							holder = n
						}
					}
					if time.Since(begin) > 4*time.Second { // below what one that says nothing is waited for
						t.Fatal("nobody took what was free")
					}
					time.Sleep(time.Millisecond)
				}
				for n, d := range duties {
					if n != holder && d.Held() {
						t.Fatalf("both %d and %d hold it", n, holder)
					}
				}
				stops[holder]()
				for duties[holder].Held() {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
}

// TestIdleTicks holds how often an issuer ticks when nobody asks: every second for all, or every two for itself; and that one that
// takes over does so at once.
func TestIdleTicks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var idle atomic.Bool
		p := newPulse(t, func(c *lease.GranterConfig) { c.Idle = idle.Load })
		p.run(t)
		time.Sleep(20 * time.Second)
		own := len(p.seen().ticks)
		idle.Store(true)
		time.Sleep(500 * time.Millisecond)
		before := len(p.seen().ticks)
		time.Sleep(20 * time.Second)
		all := len(p.seen().ticks) - before
		if own < 10 || own > 11 || all < 19 || all > 20 {
			t.Errorf("ticks in 20 s: %d for itself, %d for all; want 10 and 20", own, all)
		}
		for n, at := range p.seen().at[1:] {
			if gap := at.Sub(p.seen().at[n]); gap > 2100*time.Millisecond {
				t.Errorf("tick %d came %s after the one before", n+1, gap)
			}
		}
	})
}
