package bus_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

// TestRestoreBucket: a bucket that is restored goes on far above the one before, so a record that somebody kept from that
// one is told from what was written since.
func TestRestoreBucket(t *testing.T) {
	b := bustest.Start(t)
	conn := b.Connect(t)
	const after = 1 << 40
	users, err := bus.RestoreBucket(t.Context(), conn, bus.BucketUsers, b.Master, 1, after)
	if err != nil {
		t.Fatal(err)
	}
	rev, err := users.Create(t.Context(), "alice", []byte("restored"))
	if err != nil || rev != after+1 {
		t.Fatalf("Create: got revision %d and %v, want %d", rev, err, uint64(after+1))
	}
	if rev, err = users.Update(t.Context(), "alice", []byte("changed"), rev); err != nil || rev != after+2 {
		t.Errorf("Update: got revision %d and %v, want %d", rev, err, uint64(after+2))
	}
	if last, err := users.LastSeq(t.Context()); err != nil || last != after+2 {
		t.Errorf("LastSeq: got %d and %v, want %d", last, err, uint64(after+2))
	}
	if _, err := bus.RestoreBucket(t.Context(), conn, bus.BucketUsers, b.Master, 1, after); err == nil || !strings.Contains(err.Error(), "it is there already") {
		t.Errorf("RestoreBucket of one that is there: got %v, want a refusal", err)
	}
}

// TestState: what is sidekey's on the bus is found, and removed by the restore that has marked it, and by nobody else.
func TestState(t *testing.T) {
	b := bustest.Start(t)
	conn := b.Connect(t)
	state := func(what string, want ...string) {
		t.Helper()
		if found, err := conn.State(t.Context()); err != nil || !slices.Equal(found, want) {
			t.Errorf("State %s: got %v and %v, want %v", what, found, err, want)
		}
	}
	all := []string{"KV_sidekey_users", "sidekey_checkpoint", "sidekey_grants", "sidekey_log", "sidekey_restoring"}
	state("of an empty bus")
	if err := conn.RemoveState(t.Context(), "a"); err != nil {
		t.Errorf("RemoveState where nothing is: got %v", err)
	}
	for range 2 { // the answer to the first was lost
		if err := conn.MarkRestore(t.Context(), "a", 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.MarkRestore(t.Context(), "b", 1); !errors.Is(err, bus.ErrOtherState) {
		t.Errorf("MarkRestore by another: got %v, want ErrOtherState", err)
	}
	b.Log(t).Close()
	b.Bucket(t, bus.BucketUsers)
	state("of all", all...)
	for _, other := range []string{"b", ""} {
		if err := conn.RemoveState(t.Context(), other); !errors.Is(err, bus.ErrOtherState) {
			t.Errorf("RemoveState by %q: got %v, want ErrOtherState", other, err)
		}
		if err := conn.RemoveMark(t.Context(), other); !errors.Is(err, bus.ErrOtherState) {
			t.Errorf("RemoveMark by %q: got %v, want ErrOtherState", other, err)
		}
	}
	if mark, err := conn.RestoreMark(t.Context()); err != nil || mark != "a" {
		t.Errorf("RestoreMark: got %q and %v, want a", mark, err)
	}
	state("after refusals", all...)
	if err := conn.RemoveState(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	state("after RemoveState")
}

// TestStateThatIsWhole: once a restore has removed its mark, no restore removes what it has made; nor where there never was one.
func TestStateThatIsWhole(t *testing.T) {
	b := bustest.Start(t)
	conn := b.Connect(t)
	if err := conn.MarkRestore(t.Context(), "a", 1); err != nil {
		t.Fatal(err)
	}
	b.Bucket(t, bus.BucketUsers)
	if err := conn.RemoveMark(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a", ""} {
		if err := conn.RemoveState(t.Context(), id); !errors.Is(err, bus.ErrOtherState) {
			t.Errorf("RemoveState by %q: got %v, want ErrOtherState", id, err)
		}
	}
	if found, err := conn.State(t.Context()); err != nil || !slices.Equal(found, []string{"KV_sidekey_users"}) {
		t.Errorf("State: got %v and %v, want the bucket alone", found, err)
	}
}

// TestAuditRestored: records that are restored as they stood read as the same trail, and the chain goes on.
func TestAuditRestored(t *testing.T) {
	b := bustest.Start(t)
	conn := b.Connect(t)
	cfg := bus.AuditConfig{Issuer: "auth-1", Master: b.Master}
	open := func() *bus.AuditTrail {
		a, err := bus.OpenAudit(t.Context(), conn, cfg)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	write := func(a *bus.AuditTrail, text string) {
		if broken, err := a.Write(t.Context(), []byte(text)); err != nil || broken != "" {
			t.Fatalf("Write: got %q and %v", broken, err)
		}
	}
	trail := open()
	write(trail, "one")
	write(trail, "two")
	type kept struct {
		issuer string
		record []byte
	}
	var all []kept
	if err := trail.Each(t.Context(), func(issuer string, rec []byte) error {
		all = append(all, kept{issuer, slices.Clone(rec)})
		return nil
	}); err != nil || len(all) != 2 {
		t.Fatalf("Each: got %d records and %v, want 2", len(all), err)
	}
	if err := conn.MarkRestore(t.Context(), "a", 1); err != nil {
		t.Fatal(err)
	}
	if err := conn.RemoveState(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	trail = open()
	for _, k := range all {
		if err := trail.Restore(t.Context(), k.issuer, k.record); err != nil {
			t.Fatal(err)
		}
	}
	write(trail, "three")
	var got []string
	if err := trail.Read(t.Context(), time.Unix(1, 0), false, func(rec bus.AuditRecord) error {
		got = append(got, string(rec.Content)+rec.Broken)
		return nil
	}); err != nil || !slices.Equal(got, []string{"one", "two", "three"}) {
		t.Errorf("Read: got %q and %v, want one, two, three", got, err)
	}
}

func TestKeysPlain(t *testing.T) {
	keys, err := bus.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	plain, err := keys.Plain()
	if err != nil {
		t.Fatal(err)
	}
	again, err := bus.ParseKeys(plain)
	if err != nil || !again.Operates() || string(again.CAPEM()) != string(keys.CAPEM()) {
		t.Errorf("ParseKeys(Plain): got %v, want the same keys", err)
	}
	if _, err := bus.ParseKeys(plain[:len(plain)/2]); err == nil {
		t.Error("ParseKeys of a half: got no error")
	}
}
