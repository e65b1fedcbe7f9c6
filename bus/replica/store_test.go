package replica_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// process is what one process of an agent has: a store in a folder, and a replica with its journal.
type process struct {
	*replica.Replica
	store *replica.Store
	dir   string
}

var authority = sync.OnceValue(func() *keyring.Authority {
	a, err := keyring.NewAuthority()
	if err != nil {
		panic(err)
	}
	return a
})

func begin(t testing.TB, dir string) process {
	t.Helper()
	s, err := replica.OpenStore(dir, authority().Public())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return process{replica.New(replica.Config{Journal: s.Journal}), s, dir}
}

// restored begins a process that finds what an earlier one left.
func restored(t testing.TB, dir string, want uint64) process {
	t.Helper()
	p := begin(t, dir)
	ok, err := p.store.Restore(p.Replica)
	if err != nil || !ok {
		t.Fatalf("Restore: got %v, %v", ok, err)
	}
	if snap := p.Snapshot(); snap.Position.Seq != want || !snap.Ready {
		t.Fatalf("Restore: at %d, ready %v, want %d and ready", snap.Position.Seq, snap.Ready, want)
	}
	return p
}

func save(t testing.TB, p process) {
	t.Helper()
	if err := p.store.Save(p.Replica); err != nil {
		t.Fatalf("Save: %v", err)
	}
}

// saved is a process with a checkpoint of two entries and a journal of three more.
func saved(t testing.TB) (process, *bustest.Log) {
	t.Helper()
	p, l := begin(t, t.TempDir()), bustest.NewLog()
	caught(t, p.Replica, l, mustAppend(t, l, keyFact(t, "k1", keyring.Active), revocation("a")).Seq)
	save(t, p)
	caught(t, p.Replica, l, mustAppend(t, l, revocation("b"), keyFact(t, "k1", keyring.Retiring), revocation("c")).Seq)
	return p, l
}

// TestStore: what was applied is there after the process, by checkpoint and journal.
func TestStore(t *testing.T) {
	p, l := saved(t)
	q := restored(t, p.dir, 5)
	same(t, q.Replica, p.Replica, []keyring.Claims{jti("a"), jti("b"), jti("c"), jti("d")})
	caught(t, q.Replica, l, mustAppend(t, l, revocation("d")).Seq)
	// Not saved yet: what came since is not there, and what was there is.
	restored(t, p.dir, 5)
	save(t, q)
	caught(t, q.Replica, l, mustAppend(t, l, revocation("e")).Seq)
	save(t, q)
	last := restored(t, p.dir, 7)
	same(t, last.Replica, q.Replica, []keyring.Claims{jti("a"), jti("d"), jti("e")})
	for _, name := range []string{"checkpoint", "journal"} {
		if info, err := os.Stat(filepath.Join(p.dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v, want mode 0600", name, info.Mode(), err)
		}
	}
}

// TestStoreEmpty: an empty folder restores nothing, and nothing that is not whole is saved.
func TestStoreEmpty(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	p := begin(t, dir)
	if ok, err := p.store.Restore(p.Replica); ok || err != nil {
		t.Errorf("Restore of nothing: got %v, %v", ok, err)
	}
	l := bustest.NewLog()
	mustAppend(t, l, revocation("a"), revocation("b"))
	save(t, p)
	var first []bus.Entry
	l.Follow(t.Context(), bus.Cursor{}, func(es []bus.Entry, _ uint64) error { first = es[:1]; return errors.New("enough") }) //nolint:errcheck // it is
	if err := p.Apply(first...); err != nil {
		t.Fatal(err)
	}
	save(t, p) // half of the log, and not ready: whoever starts from it would vouch by half of it
	q := begin(t, dir)
	if ok, err := q.store.Restore(q.Replica); ok || err != nil || q.Snapshot().Ready {
		t.Errorf("Restore of half a log: got %v, %v, ready %v", ok, err, q.Snapshot().Ready)
	}
}

// rewrite changes a file of a store.
func rewrite(t testing.TB, dir, name string, change func([]byte) []byte) {
	t.Helper()
	path := filepath.Join(dir, name)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

// copied copies a store's files into a folder of its own, as a crash would leave them now.
func copied(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	for _, name := range []string{"journal", "checkpoint"} { // a newer checkpoint with an older journal is what a crash may leave
		data, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(to, name), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// refuses wants a store to be refused with ErrDamaged, put aside, and the replica not ready.
func refuses(t *testing.T, what, dir string) {
	t.Helper()
	p := begin(t, dir)
	_, err := p.store.Restore(p.Replica)
	if !errors.Is(err, replica.ErrDamaged) || !strings.Contains(err.Error(), dir) {
		t.Errorf("%s: got %v, want ErrDamaged and the file's name", what, err)
		return
	}
	if p.Snapshot().Ready {
		t.Errorf("%s: ready by a damaged store", what)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, path := range left {
		if !strings.HasSuffix(path, ".damaged") {
			t.Errorf("%s: %s is still there", what, path)
		}
	}
	again := begin(t, dir)
	if ok, err := again.store.Restore(again.Replica); ok || err != nil {
		t.Errorf("%s, started once more: got %v, %v", what, ok, err)
	}
}

// TestStoreDamage: any bit flipped in either file is seen.
func TestStoreDamage(t *testing.T) {
	p, l := saved(t)
	for _, name := range []string{"checkpoint", "journal"} {
		data, err := os.ReadFile(filepath.Join(p.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		step := 1 + len(data)/150
		for i := 0; i < len(data); i += step {
			dir := copied(t, p.dir)
			rewrite(t, dir, name, func(b []byte) []byte { b[i] ^= 0x10; return b })
			refuses(t, fmt.Sprintf("byte %d of the %s", i, name), dir)
		}
	}
	start := strings.Index(string(mustRead(t, p.dir, "journal")), "\n") + 1
	for bit := range 32 { // of the first record's length: none may hide the records behind it
		dir := copied(t, p.dir)
		rewrite(t, dir, "journal", func(b []byte) []byte { b[start+bit/8] ^= 1 << (bit % 8); return b })
		refuses(t, fmt.Sprintf("bit %d of a record's length", bit), dir)
	}
	dir := copied(t, p.dir)
	rewrite(t, dir, "checkpoint", func(b []byte) []byte { return b[:len(b)/2] })
	q := begin(t, dir)
	if _, err := q.store.Restore(q.Replica); !errors.Is(err, replica.ErrDamaged) {
		t.Errorf("a truncated checkpoint: got %v, want ErrDamaged", err)
	}
	caught(t, q.Replica, l, 5) // and the log is read whole
	same(t, q.Replica, p.Replica, []keyring.Claims{jti("a"), jti("b"), jti("c")})
}

func mustRead(t testing.TB, dir, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestStoreTornTail: a last record that was not wholly written was never applied; the rest is good.
func TestStoreTornTail(t *testing.T) {
	p, _ := saved(t)
	data := mustRead(t, p.dir, "journal")
	ends := map[int]uint64{} // by where the journal is cut: what is restored
	at := strings.Index(string(data), "\n") + 1
	for n, seq := at, uint64(2); n <= len(data); n++ {
		if n == at+12+int(uint32(data[at])<<24|uint32(data[at+1])<<16|uint32(data[at+2])<<8|uint32(data[at+3])) {
			if seq++; n < len(data) {
				at = n
			}
		}
		ends[n] = seq
	}
	for cut, seq := range ends {
		if cut%9 != 0 && cut != len(data) {
			continue
		}
		dir := copied(t, p.dir)
		rewrite(t, dir, "journal", func(b []byte) []byte { return b[:cut] })
		restored(t, dir, seq)
	}
	if ends[len(data)] != 5 {
		t.Errorf("the whole journal leads to %d, want 5", ends[len(data)])
	}
}

// TestStoreOfAnotherAuthority: a store is believed only under the key that it was written under.
func TestStoreOfAnotherAuthority(t *testing.T) {
	p, _ := saved(t)
	other, err := keyring.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	s, err := replica.OpenStore(p.dir, other.Public())
	if err != nil {
		t.Fatal(err)
	}
	r := replica.New(replica.Config{Journal: s.Journal})
	if ok, err := s.Restore(r); ok || !errors.Is(err, replica.ErrDamaged) || r.Revocations() != 0 || r.Snapshot().Ready {
		t.Errorf("Restore under another authority: got %v, %v", ok, err)
	}
}

// TestStoreCrashes: a crash at any point of a Save leaves a store from which all comes back.
func TestStoreCrashes(t *testing.T) {
	p, l := saved(t)
	before := copied(t, p.dir)
	save(t, p)
	caught(t, p.Replica, l, mustAppend(t, l, revocation("d")).Seq)
	after := copied(t, p.dir)
	mix := func(checkpoint, journal string) string {
		dir := t.TempDir()
		for name, from := range map[string]string{"checkpoint": checkpoint, "journal": journal} {
			if err := os.WriteFile(filepath.Join(dir, name), mustRead(t, from, name), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	restored(t, before, 5)
	restored(t, mix(after, before), 5) // between the two: the journal's entries are all older
	restored(t, after, 6)
	for _, name := range []string{"checkpoint.tmp123", "journal.tmp9"} {
		if err := os.WriteFile(filepath.Join(after, name), []byte("half of it"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	restored(t, after, 6)

	// What a crash cannot leave: a journal whose beginning is missing.
	refuses(t, "a journal that does not follow its checkpoint", mix(before, after))
	// A journal without a checkpoint says nothing.
	if err := os.Remove(filepath.Join(after, "checkpoint")); err != nil {
		t.Fatal(err)
	}
	q := begin(t, after)
	if ok, err := q.store.Restore(q.Replica); ok || err != nil || q.Snapshot().Ready {
		t.Errorf("Restore of a journal alone: got %v, %v", ok, err)
	}
}

// TestStoreHole: where the replica went on by a checkpoint of the log's, the journal no longer leads
// to what is applied: that is seen at a restart, and mended by the next Save.
func TestStoreHole(t *testing.T) {
	p, l := saved(t)
	ahead := replica.New(replica.Config{})
	caught(t, ahead, l, mustAppend(t, l, revocation("d"), revocation("e")).Seq)
	img, _, err := ahead.Image()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Load(img); err != nil {
		t.Fatal(err)
	}
	caught(t, p.Replica, l, mustAppend(t, l, revocation("f")).Seq)
	refuses(t, "a journal with a hole", copied(t, p.dir))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); p.store.Keep(ctx, p.Replica, func(err error) { t.Errorf("Keep: %v", err) }) }()
	until(t, p.Replica, "a store without a hole", func() bool {
		q := begin(t, copied(t, p.dir))
		ok, err := q.store.Restore(q.Replica)
		return ok && err == nil && q.Snapshot().Position.Seq == 8
	})
	cancel()
	<-done
	restored(t, p.dir, 8)
}

// TestStoreFullDisk: a journal that cannot be written stops no revocation, and leaves no old store to
// start from.
func TestStoreFullDisk(t *testing.T) {
	p, l := saved(t)
	if err := p.store.CloseJournalFile(); err != nil { // as good as a full disk: every write fails
		t.Fatal(err)
	}
	caught(t, p.Replica, l, mustAppend(t, l, revocation("d")).Seq)
	if !revoked(p.Replica, jti("d")) {
		t.Error("a revocation is not applied because it cannot be written down")
	}
	q := begin(t, p.dir)
	if ok, err := q.store.Restore(q.Replica); ok || err != nil {
		t.Errorf("Restore of a store that was given up: got %v, %v", ok, err)
	}
	save(t, p) // there is room again
	restored(t, p.dir, 6)
}

// TestStoreKeep: Keep saves by itself, and once more at the end; entries that come while it saves
// are lost by no Save.
func TestStoreKeep(t *testing.T) {
	before := runtime.NumGoroutine()
	p, l := begin(t, t.TempDir()), bustest.NewLog()
	mustAppend(t, l, revocation("first"))
	run := start(t, p.Replica, l)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); p.store.Keep(ctx, p.Replica, func(err error) { t.Errorf("Keep: %v", err) }) }()
	saves := make(chan struct{})
	go func() {
		defer close(saves)
		var last bus.Position
		for n := range 200 {
			last = mustAppend(t, l, revocation(fmt.Sprint(n)))
		}
		wait(t, p.Replica, last.Seq)
	}()
	<-saves
	copyOf := copied(t, p.dir) // as a crash leaves it
	cancel()
	<-done
	run.stop()
	p.store.Close()
	q := restored(t, p.dir, 201)
	for n := range 200 {
		if !revoked(q.Replica, jti(fmt.Sprint(n))) {
			t.Fatalf("revocation %d is not there", n)
		}
	}
	crashed := begin(t, copyOf)
	if ok, err := crashed.store.Restore(crashed.Replica); err != nil || ok != crashed.Snapshot().Ready {
		t.Errorf("Restore of what a crash left: got %v, %v, ready %v", ok, err, crashed.Snapshot().Ready)
	}
	eventuallyGoroutines(t, before)
}

// TestStoreSavesWhileApplying: whenever the process dies, all that was applied comes back, also what
// came while a Save was under way.
func TestStoreSavesWhileApplying(t *testing.T) {
	p, l := saved(t)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				if err := p.store.Save(p.Replica); err != nil {
					t.Errorf("Save: %v", err)
				}
			}
		}
	}()
	run := start(t, p.Replica, l)
	for n := range 150 {
		pos := mustAppend(t, l, revocation(fmt.Sprint(n)))
		wait(t, p.Replica, pos.Seq)
		q := begin(t, copied(t, p.dir))
		if ok, err := q.store.Restore(q.Replica); !ok || err != nil || q.Snapshot().Position.Seq < pos.Seq {
			t.Fatalf("Restore after entry %d was applied: got %v, %v, at %d", pos.Seq, ok, err, q.Snapshot().Position.Seq)
		}
		q.store.Close()
	}
	close(stop)
	<-stopped
	run.stop()
}

func eventuallyGoroutines(t testing.TB, n int) {
	t.Helper()
	until(t, replica.New(replica.Config{}), "the goroutines to be gone", func() bool { return runtime.NumGoroutine() <= n })
}
