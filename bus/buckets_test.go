package bus_test

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/keyring"
)

// theBucket is what the issuers use of a state bucket, and what the contract is about.
type theBucket interface {
	Get(ctx context.Context, name string) (bus.Record, error)
	Create(ctx context.Context, name string, value []byte) (uint64, error)
	Update(ctx context.Context, name string, value []byte, revision uint64) (uint64, error)
	Delete(ctx context.Context, name string, revision uint64) error
	List(ctx context.Context, filter string) ([]bus.Record, error)
	Count(ctx context.Context, filter string) (int, error)
	AtMost(ctx context.Context, filter string) (int, error)
}

// TestBucketContract holds the bucket in memory and the bucket on NATS to one contract.
func TestBucketContract(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(*testing.T) theBucket{
		"memory": func(*testing.T) theBucket { return new(bustest.Bucket) },
		"nats":   func(t *testing.T) theBucket { return bustest.Start(t).Bucket(t, bus.BucketUsers) },
	} {
		t.Run(name, func(t *testing.T) {
			for name, check := range map[string]func(*testing.T, theBucket){
				"life":      checkLife,
				"conflicts": checkConflicts,
				"races":     checkRaces,
				"names":     checkNames,
				"long name": checkLongName,
				"filters":   checkFilters,
				"deleted":   checkDeleted,
				"many":      checkMany,
			} {
				t.Run(name, func(t *testing.T) { check(t, open(t)) })
			}
		})
	}
}

func create(t *testing.T, b theBucket, name, value string) uint64 {
	t.Helper()
	rev, err := b.Create(t.Context(), name, []byte(value))
	if err != nil || rev == 0 {
		t.Fatalf("Create(%s): got %d, %v", name, rev, err)
	}
	return rev
}

func wantRecord(t *testing.T, b theBucket, name, value string, rev uint64) {
	t.Helper()
	rec, err := b.Get(t.Context(), name)
	if err != nil || rec.Name != name || string(rec.Value) != value || rec.Revision != rev {
		t.Errorf("Get(%s): got %+v, %v, want %q at %d", name, rec, err, value, rev)
	}
}

func checkLife(t *testing.T, b theBucket) {
	name := bus.Name("alice")
	if _, err := b.Get(t.Context(), name); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("Get before Create: got %v, want ErrNotFound", err)
	}
	first := create(t, b, name, "one")
	wantRecord(t, b, name, "one", first)
	second, err := b.Update(t.Context(), name, []byte("two"), first)
	if err != nil || second <= first {
		t.Fatalf("Update: got %d, %v, want a revision after %d", second, err, first)
	}
	wantRecord(t, b, name, "two", second)
	if err := b.Delete(t.Context(), name, second); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	if _, err := b.Get(t.Context(), name); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("Get after Delete: got %v, want ErrNotFound", err)
	}
	third := create(t, b, name, "")
	if third <= second {
		t.Errorf("Create after Delete: revision %d was used before (%d)", third, second)
	}
	wantRecord(t, b, name, "", third)
}

func checkConflicts(t *testing.T, b theBucket) {
	name := bus.Name("alice")
	for what, err := range map[string]error{
		"Update of nothing":                   second(b.Update(t.Context(), name, nil, 7)),
		"Update of nothing at no revision":    second(b.Update(t.Context(), name, nil, 0)),
		"Delete of nothing":                   b.Delete(t.Context(), name, 7),
		"Delete of nothing at no revision":    b.Delete(t.Context(), name, 0),
		"Delete of nothing, another was made": b.Delete(t.Context(), bus.Name("bob"), create(t, b, bus.Name("carol"), "c")),
	} {
		if !errors.Is(err, bus.ErrConflict) {
			t.Errorf("%s: got %v, want ErrConflict", what, err)
		}
	}
	rev := create(t, b, name, "one")
	if _, err := b.Create(t.Context(), name, []byte("again")); !errors.Is(err, bus.ErrExists) {
		t.Errorf("Create of what is there: got %v, want ErrExists", err)
	}
	for _, wrong := range []uint64{0, rev - 1, rev + 1} {
		if _, err := b.Update(t.Context(), name, []byte("x"), wrong); !errors.Is(err, bus.ErrConflict) {
			t.Errorf("Update at %d, not %d: got %v, want ErrConflict", wrong, rev, err)
		}
		if err := b.Delete(t.Context(), name, wrong); !errors.Is(err, bus.ErrConflict) {
			t.Errorf("Delete at %d, not %d: got %v, want ErrConflict", wrong, rev, err)
		}
	}
	wantRecord(t, b, name, "one", rev)
	if err := b.Delete(t.Context(), name, rev); err != nil {
		t.Fatal(err)
	}
	if err := b.Delete(t.Context(), name, rev); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("Delete again: got %v, want ErrConflict: of two that delete, one did", err)
	}
	if _, err := b.Update(t.Context(), name, nil, rev); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("Update of what is deleted: got %v, want ErrConflict", err)
	}
}

func second(_ uint64, err error) error { return err }

// checkRaces: of any number that create, replace or delete one record at once, one did.
func checkRaces(t *testing.T, b theBucket) {
	name := bus.Name("alice")
	race := func(what string, refused error, do func(n int) error) {
		t.Helper()
		var wg sync.WaitGroup
		won := make(chan int, 8)
		for n := range 8 {
			wg.Go(func() {
				if err := do(n); err == nil {
					won <- n
				} else if !errors.Is(err, refused) {
					t.Errorf("%s: %v", what, err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Errorf("%s: %d of 8 won, want 1", what, len(won))
		}
	}
	race("Create", bus.ErrExists, func(n int) error { return second(b.Create(t.Context(), name, []byte{byte(n)})) })
	rec, err := b.Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	race("Update", bus.ErrConflict, func(n int) error { return second(b.Update(t.Context(), name, []byte{byte(n)}, rec.Revision)) })
	if rec, err = b.Get(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	race("Delete", bus.ErrConflict, func(int) error { return b.Delete(t.Context(), name, rec.Revision) })
}

// checkNames: every byte that a name from outside can hold names a record of its own.
func checkNames(t *testing.T, b theBucket) {
	names := []string{"", ".", "*", ">", "..", "a.b", "a b", "$", "$KV", "_", "_INBOX", "\x00", "\r\n", "PUB x 1\r\n", "é", "e\u0301", "\xff\xfe", strings.Repeat("x", 300)}
	for c := range 256 {
		names = append(names, "c"+string([]byte{byte(c)}))
	}
	revs := make(map[string]uint64)
	for _, n := range names {
		revs[n] = create(t, b, bus.Name(n), "value of "+n)
	}
	for _, n := range names {
		wantRecord(t, b, bus.Name(n), "value of "+n, revs[n])
	}
	if n, err := b.Count(t.Context(), ""); err != nil || n != len(names) {
		t.Errorf("Count: got %d, %v, want %d: two names met", n, err, len(names))
	}
	if n, err := b.AtMost(t.Context(), ""); err != nil || n != len(names) {
		t.Errorf("AtMost, where none was deleted: got %d, %v, want %d", n, err, len(names))
	}
	create(t, b, bus.Name("a", "b"), "two parts")
	wantRecord(t, b, bus.Name("a.b"), "value of a.b", revs["a.b"])
}

// checkLongName: a name that NATS has no room for is refused, and harms nobody.
func checkLongName(t *testing.T, b theBucket) {
	rev := create(t, b, bus.Name("alice"), "one")
	long := bus.Name(strings.Repeat("x", 5000))
	if _, err := b.Create(t.Context(), long, nil); err == nil {
		t.Error("Create with a name of 6000 bytes: no error")
	}
	if _, err := b.Get(t.Context(), long); err == nil {
		t.Error("Get with a name of 6000 bytes: no error")
	}
	wantRecord(t, b, bus.Name("alice"), "one", rev)
	widest := bus.Name(strings.Repeat("s", bus.MaxID), strings.Repeat("t", bus.MaxID))
	wantRecord(t, b, widest, "wide", create(t, b, widest, "wide"))
}

func listed(t *testing.T, b theBucket, filter string) []string {
	t.Helper()
	recs, err := b.List(t.Context(), filter)
	if err != nil {
		t.Fatalf("List(%q): %v", filter, err)
	}
	var values []string
	for _, r := range recs {
		values = append(values, string(r.Value))
		wantRecord(t, b, r.Name, string(r.Value), r.Revision)
	}
	sort.Strings(values)
	if n, err := b.Count(t.Context(), filter); err != nil || n != len(values) {
		t.Errorf("Count(%q): got %d, %v, want %d", filter, n, err, len(values))
	}
	if n, err := b.AtMost(t.Context(), filter); err != nil || n < len(values) {
		t.Errorf("AtMost(%q): got %d, %v, want %d or more", filter, n, err, len(values))
	}
	return values
}

func checkFilters(t *testing.T, b theBucket) {
	for _, sub := range []string{"alice", "bob"} {
		for _, sid := range []string{"1", "2"} {
			create(t, b, bus.Name(sub, sid), sub+sid)
		}
	}
	create(t, b, bus.Name("alice"), "alice")
	create(t, b, bus.Name("*", "3"), "star")
	for filter, want := range map[string]string{
		"":                            "[alice alice1 alice2 bob1 bob2 star]",
		">":                           "[alice alice1 alice2 bob1 bob2 star]",
		bus.Under("alice"):            "[alice1 alice2]",
		bus.Ending("1"):               "[alice1 bob1]",
		bus.Any:                       "[alice]",
		bus.Name("alice") + ".>":      "[alice1 alice2]",
		bus.Name("alice"):             "[alice]",
		bus.Name("*", "3"):            "[star]",
		bus.Ending("3"):               "[star]",
		bus.Name("*") + "." + bus.Any: "[star]",
		bus.Under("nobody"):           "[]",
		bus.Any + "." + bus.Any:       "[alice1 alice2 bob1 bob2 star]",
		bus.Name("a", "b", "c", "d."): "[]",
	} {
		if got := fmt.Sprint(listed(t, b, filter)); got != want {
			t.Errorf("List(%q): got %s, want %s", filter, got, want)
		}
	}
}

// checkDeleted: what is deleted is not listed, and not counted.
func checkDeleted(t *testing.T, b theBucket) {
	var revs []uint64
	for n := range 5 {
		revs = append(revs, create(t, b, bus.Name("s", fmt.Sprint(n)), fmt.Sprint(n)))
	}
	for _, n := range []int{0, 3} {
		if err := b.Delete(t.Context(), bus.Name("s", fmt.Sprint(n)), revs[n]); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprint(listed(t, b, bus.Under("s"))); got != "[1 2 4]" {
		t.Errorf("List after two deletions: got %s, want [1 2 4]", got)
	}
}

// checkMany: more than the server answers for at once.
func checkMany(t *testing.T, b theBucket) {
	const n = 600
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < n; i += 8 {
				if _, err := b.Create(t.Context(), bus.Name("m", fmt.Sprint(i)), fmt.Append(nil, i)); err != nil {
					t.Errorf("Create: %v", err)
				}
			}
		})
	}
	wg.Wait()
	recs, err := b.List(t.Context(), "")
	seen := make(map[string]bool)
	for _, r := range recs {
		seen[string(r.Value)] = true
	}
	if err != nil || len(recs) != n || len(seen) != n {
		t.Errorf("List: got %d records, %d of them different, %v, want %d", len(recs), len(seen), err, n)
	}
	if got, err := b.Count(t.Context(), ""); err != nil || got != n {
		t.Errorf("Count: got %d, %v, want %d", got, err, n)
	}
}

// TestBucketOnce: of several issuers that make one record at once, all get the same.
func TestBucketOnce(t *testing.T) {
	b := bustest.Start(t)
	got := make([]string, 4)
	var wg sync.WaitGroup
	for n := range got {
		k := b.Bucket(t, bus.BucketKeys)
		wg.Go(func() {
			value, err := k.Once(t.Context(), bus.Name("shared"), func() ([]byte, error) { return fmt.Append(nil, n), nil })
			if err != nil {
				t.Errorf("Once: %v", err)
			}
			got[n] = string(value)
		})
	}
	wg.Wait()
	for _, v := range got {
		if v != got[0] || v == "" {
			t.Errorf("Once: the issuers got %q", got)
		}
	}
	boom := errors.New("no random numbers")
	if _, err := b.Bucket(t, bus.BucketKeys).Once(t.Context(), bus.Name("other"), func() ([]byte, error) { return nil, boom }); !errors.Is(err, boom) {
		t.Errorf("Once with a failing fresh: got %v", err)
	}
}

// TestBucketTampering: one who owns the bus can read no record, and what he writes, copies or
// alters is refused; so is an older version of a record put back under its own name, by who has seen
// the newer one.
func TestBucketTampering(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	users, clients := b.Bucket(t, bus.BucketUsers), b.Bucket(t, bus.BucketClients)
	owner := operator(t, b, b.Issuer(t))
	alice, bob := bus.Name("alice"), bus.Name("bob")
	rev := create(t, users, alice, `{"admin":true,"hash":"argon2id"}`)
	create(t, users, bob, `{"admin":false}`)
	create(t, clients, alice, `{"client":1}`)
	stored := func(bucket, name string) []byte {
		t.Helper()
		m, err := owner.Request("$JS.API.DIRECT.GET.KV_sidekey_"+bucket+".$KV.sidekey_"+bucket+"."+name, nil, nats.DefaultTimeout)
		if err != nil {
			t.Fatal(err)
		}
		return m.Data
	}
	if box := stored(bus.BucketUsers, alice); strings.Contains(string(box), "admin") {
		t.Fatalf("the record stands on the bus in clear: %q", box)
	}
	older := stored(bus.BucketUsers, alice)
	if _, err := users.Update(t.Context(), alice, []byte(`{"admin":false}`), rev); err != nil {
		t.Fatal(err)
	}
	newest := stored(bus.BucketUsers, alice)
	foreign, err := bus.OpenBucket(t.Context(), b.Connect(t), bus.BucketUsers, keyring.NewMasterKey(), 1)
	if err != nil {
		t.Fatal(err)
	}
	create(t, foreign, bus.Name("mallory"), `{"admin":true}`)

	put := func(name string, value []byte) {
		t.Helper()
		if _, err := owner.Request("$KV.sidekey_users."+name, value, nats.DefaultTimeout); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what, name string, value []byte) {
		t.Helper()
		put(name, value)
		if rec, err := users.Get(t.Context(), name); !errors.Is(err, bus.ErrForged) {
			t.Errorf("%s: got %q, %v, want ErrForged", what, rec.Value, err)
		}
		if _, err := users.List(t.Context(), name); !errors.Is(err, bus.ErrForged) {
			t.Errorf("%s, listed: got %v, want ErrForged", what, err)
		}
	}
	refused("sealed under another master key", bus.Name("mallory"), stored(bus.BucketUsers, bus.Name("mallory")))
	refused("written in clear", alice, []byte(`{"admin":true}`))
	refused("an empty record", alice, nil)
	refused("nothing but a version", alice, newest[:9])
	refused("copied to another name", bob, newest)
	refused("copied to a new name", bus.Name("carol"), newest)
	refused("copied from another bucket", alice, stored(bus.BucketClients, alice))
	refused("cut short", alice, newest[:len(newest)-1])
	refused("lengthened", alice, append(newest[:len(newest):len(newest)], 0))
	for i := range newest {
		if i%7 == 0 || i < 12 { // header and nonce whole, the box here and there
			altered := append([]byte(nil), newest...)
			altered[i] ^= 1
			refused(fmt.Sprintf("byte %d altered", i), alice, altered)
		}
	}
	put(alice, newest)
	put(alice, older)
	if rec, err := users.Get(t.Context(), alice); !errors.Is(err, bus.ErrRollback) {
		t.Errorf("an older version put back: got %q, %v, want ErrRollback", rec.Value, err)
	}
}

// TestBucketOutlastsARestart: calls that meet a server which is away wait for it.
func TestBucketOutlastsARestart(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	users := b.Bucket(t, bus.BucketUsers)
	rev := create(t, users, bus.Name("alice"), "one")
	b.Stop()
	done := make(chan error, 1)
	go func() {
		_, err := users.Update(t.Context(), bus.Name("alice"), []byte("two"), rev)
		done <- err
	}()
	b.Restart(t)
	if err := <-done; err != nil {
		t.Errorf("Update over a restart: %v", err)
	}
	if rec, err := users.Get(t.Context(), bus.Name("alice")); err != nil || string(rec.Value) != "two" {
		t.Errorf("Get: got %q, %v", rec.Value, err)
	}
}
