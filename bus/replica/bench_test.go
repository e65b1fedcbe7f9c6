package replica_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/replica"
)

// Every benchmark measures its floor in the same run, turn by turn, and reports the ratio: what the
// same work takes at the least on this machine, now.

// report gives a rate or a time, and how many times its floor it took.
func report(b *testing.B, mine, floor time.Duration, n int, per string) {
	b.Helper()
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(mine)/float64(floor), "x-floor")
	if per == "entries/s" {
		b.ReportMetric(float64(n)/mine.Seconds(), per)
	} else {
		b.ReportMetric(float64(mine.Microseconds())/float64(n), per)
	}
}

// BenchmarkApply decodes and applies revocations. The floor is decoding the same bodies.
func BenchmarkApply(b *testing.B) {
	const n = 20_000
	var bodies [][]byte
	for i := range n {
		body, err := bus.Encode(revocation(fmt.Sprintf("0192f0c1-%08x-7c3e", i)))
		if err != nil {
			b.Fatal(err)
		}
		bodies = append(bodies, body)
	}
	var mine, floor time.Duration
	for b.Loop() {
		r := replica.New(replica.Config{})
		begun := time.Now()
		for from := 0; from < n; from += 2000 { // as they come from the bus
			entries := make([]bus.Entry, 2000)
			for i := range entries {
				fact, err := bus.Decode(bus.KindRevoke, bodies[from+i])
				if err != nil {
					b.Fatal(err)
				}
				entries[i] = bus.Entry{Position: bus.Position{Epoch: 1, Seq: uint64(from + i + 1)}, Fact: fact}
			}
			if err := r.Apply(entries...); err != nil {
				b.Fatal(err)
			}
		}
		mid := time.Now()
		for _, body := range bodies {
			if err := json.Unmarshal(body, new(bus.Revocation)); err != nil {
				b.Fatal(err)
			}
		}
		mine, floor = mine+mid.Sub(begun), floor+time.Since(mid)
	}
	report(b, mine, floor, n*b.N, "entries/s")
}

// BenchmarkReadBack reads the log back from the real server, proving every entry: by the ticks among
// them, as a log that lives has them, or each by its own signature, where no tick came. The floor is
// the same stream by the same requests, with nothing looked at.
func BenchmarkReadBack(b *testing.B) {
	for name, every := range map[string]int{"ticks": 1000, "signatures": 1 << 30} {
		b.Run(name, func(b *testing.B) { readBack(b, every) })
	}
}

func readBack(b *testing.B, tickEvery int) {
	const n = 20_000
	srv := bustest.Start(b)
	l := srv.Log(b)
	var head bus.Position
	for from := 0; from < n; {
		var facts []bus.Fact
		for ; from < n && len(facts) < tickEvery; from++ {
			facts = append(facts, revocation(fmt.Sprintf("0192f0c1-%08x-7c3e", from)))
		}
		head = mustAppend(b, l, facts...)
		if tickEvery < n {
			var err error
			if head, err = l.Tick(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
	nc := owner(b, srv)
	js, err := jetstream.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	reader := srv.Reader(b)
	enough := errors.New("enough")
	var mine, floor time.Duration
	for b.Loop() {
		begun := time.Now()
		err := reader.Follow(b.Context(), bus.Cursor{}, func(entries []bus.Entry, _ uint64) error {
			if entries[len(entries)-1].Seq == head.Seq {
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) {
			b.Fatal(err)
		}
		mid := time.Now()
		for seq := uint64(1); seq <= head.Seq; {
			msgs, err := jetstreamext.GetBatch(b.Context(), js, "sidekey_log", 2000, jetstreamext.GetBatchSeq(seq), jetstreamext.GetBatchMaxBytes(4<<20))
			if err != nil {
				b.Fatal(err)
			}
			for m, err := range msgs {
				if err != nil {
					b.Fatal(err)
				}
				seq = m.Sequence + 1
			}
		}
		mine, floor = mine+mid.Sub(begun), floor+time.Since(mid)
	}
	report(b, mine, floor, int(head.Seq)*b.N, "entries/s")
}

// BenchmarkAppendToVisible is the time from an Append to the revocation's being refused by a replica
// that follows over NATS. The floor is one acknowledged JetStream write, and then one core NATS
// publish to its receipt.
func BenchmarkAppendToVisible(b *testing.B) {
	srv := bustest.Start(b)
	l := srv.Log(b)
	r := replica.New(replica.Config{})
	ctx, cancel := context.WithCancel(context.Background())
	followed := make(chan struct{})
	go func() { defer close(followed); r.Follow(ctx, srv.Reader(b)) }() //nolint:errcheck // it ends with ctx
	defer func() { cancel(); <-followed }()
	until(b, r, "the replica to be ready", func() bool { return r.Snapshot().Ready })
	here, there := owner(b, srv), owner(b, srv)
	js, err := jetstream.New(here)
	if err == nil {
		_, err = js.CreateStream(b.Context(), jetstream.StreamConfig{Name: "floor", Subjects: []string{"floor.written"}, Storage: jetstream.FileStorage})
	}
	if err != nil {
		b.Fatal(err)
	}
	received := make(chan *nats.Msg, 1)
	if _, err := there.ChanSubscribe("floor.sent", received); err != nil {
		b.Fatal(err)
	}
	if err := there.Flush(); err != nil {
		b.Fatal(err)
	}
	body, err := bus.Encode(revocation("0192f0c1-00000000-7c3e"))
	if err != nil {
		b.Fatal(err)
	}
	var mine, floor time.Duration
	for i := 0; b.Loop(); i++ {
		begun := time.Now()
		pos, err := l.Append(b.Context(), revocation(fmt.Sprint(i)))
		if err == nil {
			err = r.Wait(b.Context(), pos.Seq)
		}
		if err != nil {
			b.Fatal(err)
		}
		mid := time.Now()
		if _, err := js.Publish(b.Context(), "floor.written", body); err != nil {
			b.Fatal(err)
		}
		if err := here.Publish("floor.sent", body); err != nil {
			b.Fatal(err)
		}
		<-received
		mine, floor = mine+mid.Sub(begun), floor+time.Since(mid)
	}
	report(b, mine, floor, b.N, "µs/entry")
}
