package fleettest_test

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/agent/fleettest"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
)

// BenchmarkColdStart is the time from an agent's start, with nothing on its disk, until it vouches, by a
// lease of its own, over the embedded bus: with so many live revocations in a checkpoint, and with so many
// in the log alone.
func BenchmarkColdStart(b *testing.B) {
	const revocations = 1_000_000
	b.Run(fmt.Sprint("checkpoint/", revocations), func(b *testing.B) {
		f := fleettest.Start(b)
		i := f.Issuer("issuer-1", nil)
		img := imageOf(b, i, revocations)
		coldStart(b, f, revocations)
		b.ReportMetric(float64(len(img)), "image-B")
	})
	entries := revocations / 10
	if long {
		entries = revocations
	}
	b.Run(fmt.Sprint("log/", entries), func(b *testing.B) {
		f := fleettest.Start(b)
		i := f.Issuer("issuer-1", nil)
		facts := make([]bus.Fact, 250)
		for n := 0; n < entries; n += len(facts) {
			for k := range facts {
				facts[k] = &bus.Revocation{ID: "revoked-" + strconv.Itoa(n+k), ExpiresAt: time.Now().Add(2 * time.Hour).Unix()}
			}
			if _, err := i.Log.Append(b.Context(), facts...); err != nil {
				b.Fatal(err)
			}
			if _, err := i.Log.Tick(b.Context()); err != nil { // as where they come at a few hundred a second
				b.Fatal(err)
			}
		}
		coldStart(b, f, entries)
	})
}

// coldStart starts agents, one after the other.
func coldStart(b *testing.B, f *fleettest.Fleet, revocations int) {
	good, bad := f.Token("good"), f.Token("revoked-"+strconv.Itoa(revocations/2))
	var read time.Duration
	b.ResetTimer()
	for n := 0; b.Loop(); n++ {
		begun := time.Now()
		a := f.Agent(fmt.Sprint("web-", n), fleettest.AgentConfig{Length: time.Minute, Direct: true})
		f.Eventually("it has read everything", func() bool { return a.Replica.Snapshot().Ready })
		read += time.Since(begun)
		f.Eventually("it vouches", func() bool { return a.Verify(good) == 200 })
		b.StopTimer()
		if v := a.Agent.Verify(bad, agent.Query{}); v.Status != 401 || a.Replica.Revocations() != revocations {
			b.Fatalf("it answers %d %s to what is revoked, and has %d revocations", v.Status, v.Reason, a.Replica.Revocations())
		}
		a.Stop()
		b.StartTimer()
	}
	b.ReportMetric(float64(read.Milliseconds())/float64(b.N), "ms-until-read/op")
}

// imageOf writes a checkpoint with so many revocations where the issuer stands.
func imageOf(b testing.TB, i *fleettest.Issuer, revocations int) []byte {
	b.Helper()
	all := replica.New(replica.Config{})
	img, at, err := i.Replica.Image()
	if err == nil {
		err = all.Load(img)
	}
	entries := make([]bus.Entry, revocations)
	for n := range entries {
		entries[n].Position = bus.Position{Epoch: at.Epoch, Seq: at.Seq + 1 + uint64(n)}
		entries[n].Fact = &bus.Revocation{ID: "revoked-" + strconv.Itoa(n), ExpiresAt: time.Now().Add(time.Duration(1+n%24) * time.Hour).Unix()}
	}
	if err == nil {
		err = all.Apply(entries...)
	}
	if err == nil {
		img, err = all.ImageAt(at)
	}
	var held []byte
	if err == nil {
		held, err = i.Ledger.Image(b.Context(), at.Position)
	}
	if err == nil {
		err = i.Log.WriteCheckpoint(b.Context(), at, img, held)
	}
	if err != nil {
		b.Fatal(err)
	}
	return img
}
