package bus_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

// TestBucketDamaged: nats-server passes over records that its disk has damaged, and tells of that until it is started again. An issuer refuses
// to go on with such a bucket, then too, until somebody has said that it may.
func TestBucketDamaged(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"a bit flipped": func(b []byte) []byte { b[len(b)/2] ^= 4; return b },
		"the tail cut":  func(b []byte) []byte { return b[:len(b)-20] },
	} {
		t.Run(name, func(t *testing.T) {
			b := bustest.Start(t)
			path := filepath.Join(t.TempDir(), "revisions")
			users := b.Bucket(t, bus.BucketUsers)
			if err := users.Watch(t.Context(), openGuard(t, path)); err != nil {
				t.Fatal(err)
			}
			for n := range 6 {
				create(t, users, bus.Name(fmt.Sprint("user-", n)), "a")
			}
			b.Stop()
			blocks, err := filepath.Glob(filepath.Join(b.Dir(), "jetstream/*/streams/KV_sidekey_users/msgs/1.blk"))
			if err != nil || len(blocks) != 1 {
				t.Fatalf("the bucket's blocks: got %q, %v", blocks, err)
			}
			text, err := os.ReadFile(blocks[0])
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(blocks[0], damage(text), 0o600); err != nil {
				t.Fatal(err)
			}
			b.Restart(t)
			const want = "the bus has lost records of bucket users to its disk"
			g := openGuard(t, path)
			if err := b.Bucket(t, bus.BucketUsers).Watch(t.Context(), g); err == nil || !strings.Contains(err.Error(), want) {
				t.Fatalf("Watch: got %v, want %q in it", err, want)
			}
			if err := g.Close(); err != nil {
				t.Fatal(err)
			}
			b.Restart(t) // the server does not know any more
			_, err = bus.OpenGuard(path, nil)
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path+".damaged") {
				t.Fatalf("OpenGuard: got %v, want %q and the file in it", err, want)
			}
			if err := os.Remove(path + ".damaged"); err != nil {
				t.Fatal(err)
			}
			if err := b.Bucket(t, bus.BucketUsers).Watch(t.Context(), openGuard(t, path)); err != nil {
				t.Errorf("Watch once an operator has decided: %v", err)
			}
		})
	}
}
