package bus_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

func openGuard(t *testing.T, path string) *bus.Guard {
	t.Helper()
	g, err := bus.OpenGuard(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// TestOldStorePutBack: the bus's disk is put back to what it was; an issuer that has seen more refuses
// the bucket, and names what to do. A bucket that has moved on is taken.
func TestOldStorePutBack(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	path := filepath.Join(t.TempDir(), "revisions")
	users := b.Bucket(t, bus.BucketUsers)
	g := openGuard(t, path)
	if err := users.Watch(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	rev := create(t, users, bus.Name("alice"), "enabled")
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	b.Stop()
	old := filepath.Join(t.TempDir(), "old")
	if err := os.CopyFS(old, os.DirFS(b.Dir())); err != nil {
		t.Fatal(err)
	}
	b.Restart(t)
	if err := b.Bucket(t, bus.BucketUsers).Watch(t.Context(), openGuard(t, path)); err != nil {
		t.Errorf("Watch of what was seen: %v", err)
	}
	if _, err := users.Update(t.Context(), bus.Name("alice"), []byte("disabled"), rev); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(g.Close(), g.Close()); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v (%v), want 0600", info.Mode(), err)
	}
	b.Stop()
	if err := errors.Join(os.RemoveAll(b.Dir()), os.CopyFS(b.Dir(), os.DirFS(old))); err != nil {
		t.Fatal(err)
	}
	b.Restart(t)
	err := b.Bucket(t, bus.BucketUsers).Watch(t.Context(), openGuard(t, path))
	if !errors.Is(err, bus.ErrRollback) || !strings.Contains(err.Error(), "remove "+path) {
		t.Errorf("Watch of an old store: got %v, want ErrRollback and what to do", err)
	}
	// The process that was there all the time finds out by the record.
	if rec, err := users.Get(t.Context(), bus.Name("alice")); !errors.Is(err, bus.ErrRollback) || !errors.Is(g.Err(), bus.ErrRollback) {
		t.Errorf("Get of an old record: got %q, %v and the guard %v, want ErrRollback twice", rec.Value, err, g.Err())
	}
	if recs, err := users.List(t.Context(), ""); !errors.Is(err, bus.ErrRollback) {
		t.Errorf("List of an old record: got %d, %v, want ErrRollback", len(recs), err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := b.Bucket(t, bus.BucketUsers).Watch(t.Context(), openGuard(t, path)); err != nil {
		t.Errorf("Watch after the operator's word: %v", err)
	}
	if err := os.WriteFile(path, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := bus.OpenGuard(path, nil); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("OpenGuard of a torn file: got %v, want its name", err)
	}
}

// TestGuardAllowsWhatIsNew: deletion and making anew, by any issuer, are no rollback.
func TestGuardAllowsWhatIsNew(t *testing.T) {
	b := bustest.Start(t)
	one, two := b.Bucket(t, bus.BucketUsers), b.Bucket(t, bus.BucketUsers)
	name := bus.Name("alice")
	for n := range 5 {
		rev := create(t, one, name, "a")
		for range 3 {
			rec, err := two.Get(t.Context(), name)
			if err != nil || rec.Revision != rev {
				t.Fatalf("round %d: got revision %d, %v, want %d", n, rec.Revision, err, rev)
			}
			if rev, err = two.Update(t.Context(), name, []byte("b"), rev); err != nil {
				t.Fatal(err)
			}
			if rec, err := one.Get(t.Context(), name); err != nil || rec.Revision != rev {
				t.Fatalf("round %d: got revision %d, %v, want %d", n, rec.Revision, err, rev)
			}
		}
		if err := two.Delete(t.Context(), name, rev); err != nil {
			t.Fatal(err)
		}
		one, two = two, one
	}
}

// TestGuardRun: the file follows the buckets without being asked, also after a time in which it could not be written.
func TestGuardRun(t *testing.T) {
	b := bustest.Start(t)
	dir := filepath.Join(t.TempDir(), "data")
	path := filepath.Join(dir, "revisions")
	g := openGuard(t, path) // there is no folder yet
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done := make(chan error, 1)
	failed := make(chan error, 10)
	go func() { done <- g.Run(ctx, func(err error) { failed <- err }) }()
	users := b.Bucket(t, bus.BucketUsers)
	if err := users.Watch(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	create(t, users, bus.Name("alice"), "a")
	if err := <-failed; !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("writing without a folder: got %v", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the revision on the disk", func() bool {
		text, _ := os.ReadFile(path)
		return string(text) == "{\"users\":1}\n"
	})
	create(t, users, bus.Name("bob"), "a")
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "{\"users\":2}\n" {
		t.Errorf("at the end: got %q, %v", text, err)
	}
}

// TestOldRecordPutBack: the owner of the bus publishes one old ciphertext again, after an issuer has
// started anew: the newer version, or that the record was deleted, is on the issuer's own disk.
func TestOldRecordPutBack(t *testing.T) {
	t.Parallel()
	for _, bucket := range []string{bus.BucketUsers, bus.BucketSubjects, bus.BucketAgents, bus.BucketIssuers, bus.BucketJoins, bus.BucketKeys} {
		t.Run(bucket, func(t *testing.T) {
			t.Parallel()
			oldRecordPutBack(t, bucket)
		})
	}
}

func oldRecordPutBack(t *testing.T, bucket string) {
	b := bustest.Start(t)
	nc := owner(t, b)
	path := filepath.Join(t.TempDir(), "revisions")
	restarted := func() (*bus.Bucket, *bus.Guard) {
		t.Helper()
		g, k := openGuard(t, path), b.Bucket(t, bucket)
		if err := k.Watch(t.Context(), g); err != nil {
			t.Fatal(err)
		}
		return k, g
	}
	alice, bob := bus.Name("alice"), bus.Name("bob")
	k, g := restarted()
	rev := create(t, k, alice, "old")
	older := storedRecord(t, nc, bucket, alice)
	if _, err := k.Update(t.Context(), alice, []byte("new"), rev); err != nil {
		t.Fatal(err)
	}
	rev = create(t, k, bob, "joined")
	gone := storedRecord(t, nc, bucket, bob)
	if err := errors.Join(k.Delete(t.Context(), bob, rev), g.Close()); err != nil {
		t.Fatal(err)
	}
	running := k

	k, _ = restarted()
	if rec, err := k.Get(t.Context(), alice); err != nil || string(rec.Value) != "new" {
		t.Errorf("the newest record after a restart: got %q, %v", rec.Value, err)
	}
	request(t, nc, "$KV.sidekey_"+bucket+"."+bob, gone)
	for what, k := range map[string]*bus.Bucket{"by the process that deleted it": running, "after a restart": k} {
		if rec, err := k.Get(t.Context(), bob); !errors.Is(err, bus.ErrRollback) {
			t.Errorf("a deleted record put back, read %s: got %q, %v, want ErrRollback", what, rec.Value, err)
		}
	}
	request(t, nc, "$KV.sidekey_"+bucket+"."+alice, older)
	k, g = restarted()
	if rec, err := k.Get(t.Context(), alice); !errors.Is(err, bus.ErrRollback) || !errors.Is(g.Err(), bus.ErrRollback) || !strings.Contains(err.Error(), "remove "+path) {
		t.Errorf("an old record after a restart: got %q, %v and the guard %v, want ErrRollback twice, and what to do", rec.Value, err, g.Err())
	}
	k, _ = restarted()
	if recs, err := k.List(t.Context(), alice); !errors.Is(err, bus.ErrRollback) {
		t.Errorf("an old record after a restart, listed: got %d, %v, want ErrRollback", len(recs), err)
	}
}

// storedRecord is a record as it stands on the bus.
func storedRecord(t *testing.T, nc *nats.Conn, bucket, name string) string {
	t.Helper()
	m, err := nc.Request("$JS.API.DIRECT.GET.KV_sidekey_"+bucket+".$KV.sidekey_"+bucket+"."+name, nil, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return string(m.Data)
}

// TestGuardRecordsFile: deleted by another issuer counts too; a damaged file is refused by its name;
// where the revisions are removed, the operator's word is that all is forgotten.
func TestGuardRecordsFile(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	nc := owner(t, b)
	path := filepath.Join(t.TempDir(), "revisions")
	g, one, two := openGuard(t, path), b.Bucket(t, bus.BucketJoins), b.Bucket(t, bus.BucketJoins)
	if err := one.Watch(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	name := bus.Name("token")
	rev := create(t, one, name, "unused")
	subject := "$KV.sidekey_joins." + name
	unused := storedRecord(t, nc, bus.BucketJoins, name)
	if err := two.Delete(t.Context(), name, rev); err != nil {
		t.Fatal(err)
	}
	if _, err := one.Get(t.Context(), name); !errors.Is(err, bus.ErrNotFound) {
		t.Fatalf("Get of what another deleted: %v", err)
	}
	request(t, nc, subject, unused)
	if _, err := one.Get(t.Context(), name); !errors.Is(err, bus.ErrRollback) {
		t.Errorf("Get of what another deleted, put back: got %v, want ErrRollback", err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path + ".records"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file of versions: got %v, %v, want mode 0600", info, err)
	}
	text, err := os.ReadFile(path + ".records")
	if err != nil {
		t.Fatal(err)
	}
	torn := [][]byte{nil, text[:len(text)-1], text[:len(text)-16], append([]byte{0}, text...)}
	for bit := range 8 * len(text) {
		flipped := bytes.Clone(text)
		flipped[bit/8] ^= 1 << (bit % 8)
		torn = append(torn, flipped)
	}
	for _, torn := range torn {
		if err := os.WriteFile(path+".records", torn, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := bus.OpenGuard(path, nil); err == nil || !strings.Contains(err.Error(), path+".records") {
			t.Errorf("OpenGuard of a torn file of versions: got %v, want its name", err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	k := b.Bucket(t, bus.BucketJoins)
	if err := k.Watch(t.Context(), openGuard(t, path)); err != nil {
		t.Fatal(err)
	}
	if rec, err := k.Get(t.Context(), name); err != nil || string(rec.Value) != "unused" {
		t.Errorf("Get after the operator's word: got %q, %v", rec.Value, err)
	}
}
