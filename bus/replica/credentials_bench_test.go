package replica_test

import (
	"crypto/sha256"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
)

// BenchmarkCredentials holds a million API keys: the memory of each, a look-up with its revocations, and the
// image that a cold agent reads. The look-up's floor is the hash of a text of 44 bytes.
func BenchmarkCredentials(b *testing.B) {
	const n = 1_000_000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	r := replica.New(replica.Config{})
	text := func(i int) []byte { return fmt.Appendf(nil, "sk_%041d", i) }
	for from := 0; from < n; from += 1000 {
		entries := make([]bus.Entry, 1000)
		for i := range entries {
			hash := bus.HashCredential(text(from + i))
			body, err := bus.Encode(&bus.Credential{
				ID: fmt.Sprintf("k_%020d", from+i), Type: bus.APIKey, Hash: hash[:], Subject: fmt.Sprintf("0192f0c1-%08x-7c3e-9b1d", from+i), Scope: "read write",
				Roles: []string{"staff"}, IssuedAt: 1767225600, ExpiresAt: 1798761600 + int64(i), KnownSeq: uint64(from + i + 1),
			})
			if err != nil {
				b.Fatal(err)
			}
			fact, err := bus.Decode(bus.KindCredential, body)
			if err != nil {
				b.Fatal(err)
			}
			entries[i] = bus.Entry{Position: bus.Position{Epoch: 1, Seq: uint64(from + i + 1)}, Fact: fact}
		}
		if err := r.Apply(entries...); err != nil {
			b.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := float64(after.HeapAlloc-before.HeapAlloc) / n
	begun := time.Now()
	img, _, err := r.Image()
	if err != nil {
		b.Fatal(err)
	}
	made := time.Since(begun)
	begun = time.Now()
	if err := replica.New(replica.Config{}).Load(img); err != nil {
		b.Fatal(err)
	}
	loaded := time.Since(begun)
	size := float64(len(img))
	img = nil
	runtime.GC()
	hashes, texts := make([][sha256.Size]byte, 4096), make([][]byte, 4096)
	for i := range hashes {
		texts[i] = text(i * 241)
		hashes[i] = bus.HashCredential(texts[i])
	}
	var mine, floor time.Duration
	rounds := 0
	for b.Loop() {
		begun := time.Now()
		for i := range hashes {
			if c := r.Credential(&hashes[i]); c == nil || r.CredentialRevoked(c) {
				b.Fatal("a credential does not stand")
			}
		}
		mid := time.Now()
		for i := range texts {
			if bus.HashCredential(texts[i]) != hashes[i] {
				b.Fatal("another hash")
			}
		}
		mine, floor, rounds = mine+mid.Sub(begun), floor+time.Since(mid), rounds+1
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(mine)/float64(floor), "x-floor")
	b.ReportMetric(float64(mine)/float64(rounds*len(hashes)), "ns/look-up")
	b.ReportMetric(each, "B/credential")
	b.ReportMetric(size/n, "image-B/credential")
	b.ReportMetric(made.Seconds(), "s/image")
	b.ReportMetric(loaded.Seconds(), "s/load")
	runtime.KeepAlive(r)
}
