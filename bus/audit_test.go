package bus_test

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

func audited(t *testing.T, a *bus.AuditTrail, content ...string) {
	t.Helper()
	for _, c := range content {
		if broken, err := a.Write(t.Context(), []byte(c)); err != nil || broken != "" {
			t.Fatalf("Write(%s): got %q, %v", c, broken, err)
		}
	}
}

// readAudit gives every record as "issuer content" or as what is broken.
func readAudit(t *testing.T, a *bus.AuditTrail) (all []string) {
	t.Helper()
	err := a.Read(t.Context(), time.Time{}, false, func(r bus.AuditRecord) error {
		all = append(all, r.Issuer+" "+string(r.Content)+strings.TrimSuffix(" BROKEN: "+r.Broken, " BROKEN: "))
		return nil
	})
	if err != nil {
		t.Fatalf("Read: %v", err)
	}
	return all
}

// TestAuditTrail: the chains of two issuers in one stream, through a restart of one, sealed on the bus.
func TestAuditTrail(t *testing.T) {
	b := bustest.Start(t)
	one, two := b.Audit(t, "one"), b.Audit(t, "two")
	if got := readAudit(t, one); got != nil {
		t.Errorf("Read of an empty trail: got %q, want nothing", got)
	}
	audited(t, one, "a", "b")
	audited(t, two, "secret-c")
	audited(t, b.Audit(t, "one"), "d") // it has started anew
	audited(t, one, "e")               // and the first one, which was still there, finds its place
	want := []string{"one a", "one b", "two secret-c", "one d", "one e"}
	if got := readAudit(t, two); !slices.Equal(got, want) {
		t.Errorf("Read: got %q, want %q", got, want)
	}
	raw, err := jetStream(t, b).GetMsg(t.Context(), 3)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(raw.Data), "secret") {
		t.Errorf("the bus can read a record: %q", raw.Data)
	}
	if _, err := one.Write(t.Context(), make([]byte, bus.MaxAuditRecord+1)); err == nil || !strings.Contains(err.Error(), "262145 bytes") {
		t.Errorf("Write of too much: got %v, want a refusal that names its size", err)
	}
}

// jetStream is the trail as the bus's owner has it.
func jetStream(t *testing.T, b *bustest.Bus) jetstream.Stream {
	t.Helper()
	js, err := jetstream.New(operator(t, b, b.Issuer(t)))
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), "sidekey_audit")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// retell has the bus's owner make the trail anew, with what change makes of its messages.
func retell(t *testing.T, b *bustest.Bus, change func([]*nats.Msg) []*nats.Msg) {
	t.Helper()
	s := jetStream(t, b)
	var msgs []*nats.Msg
	for seq := uint64(1); seq <= s.CachedInfo().State.LastSeq; seq++ {
		m, err := s.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		msgs = append(msgs, &nats.Msg{Subject: m.Subject, Data: m.Data})
	}
	nc := operator(t, b, b.Issuer(t))
	request := func(subject string, body []byte) {
		if m, err := nc.Request(subject, body, 5*time.Second); err != nil || strings.Contains(string(m.Data), `"error"`) {
			t.Fatalf("%s: %v %s", subject, err, m.Data)
		}
	}
	request("$JS.API.STREAM.DELETE.sidekey_audit", nil)
	cfg, err := json.Marshal(s.CachedInfo().Config)
	if err != nil {
		t.Fatal(err)
	}
	request("$JS.API.STREAM.CREATE.sidekey_audit", cfg)
	for _, m := range change(msgs) {
		request(m.Subject, m.Data)
	}
}

// TestAuditTampered: what the owner of the bus does to the trail is seen by who reads it, at its place.
func TestAuditTampered(t *testing.T) {
	forged := &nats.Msg{Subject: "sidekey.audit._b25l", Data: []byte("\x01 not an issuer's, and long enough to be taken for a record of one")}
	for name, c := range map[string]struct {
		change func([]*nats.Msg) []*nats.Msg
		want   []string
	}{
		"a hole": {
			func(m []*nats.Msg) []*nats.Msg { return append(m[:1:1], m[2:]...) },
			[]string{"one a", `one c BROKEN: records of issuer "one" are missing, or not in their places: 3 comes behind 1`, "one d"},
		},
		"another order": {
			func(m []*nats.Msg) []*nats.Msg { return []*nats.Msg{m[0], m[2], m[1], m[3]} },
			[]string{"one a", `one c BROKEN: records of issuer "one" are missing, or not in their places: 3 comes behind 1`,
				`one b BROKEN: records of issuer "one" are missing, or not in their places: 2 comes behind 3`,
				`one d BROKEN: records of issuer "one" are missing, or not in their places: 4 comes behind 2`},
		},
		"a forgery": {
			func(m []*nats.Msg) []*nats.Msg { return append(m, forged) },
			[]string{"one a", "one b", "one c", "one d", `one  BROKEN: record 5 was not written by issuer "one"`},
		},
		"another's name": {
			func(m []*nats.Msg) []*nats.Msg {
				return append(m, &nats.Msg{Subject: "sidekey.audit._dHdv", Data: m[0].Data})
			},
			[]string{"one a", "one b", "one c", "one d", `two  BROKEN: record 5 was not written by issuer "two"`},
		},
		"the oldest dropped": {
			func(m []*nats.Msg) []*nats.Msg { return m[2:] },
			[]string{"one c", "one d"}, // which is what retention does
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := bustest.Start(t)
			a := b.Audit(t, "one")
			audited(t, a, "a", "b", "c", "d")
			retell(t, b, c.change)
			if got := readAudit(t, a); !slices.Equal(got, c.want) {
				t.Errorf("Read: got %q, want %q", got, c.want)
			}
		})
	}
}

// TestAuditEndTakenAway: the issuer that wrote them misses its newest records, at its next one and after a restart.
func TestAuditEndTakenAway(t *testing.T) {
	b := bustest.Start(t)
	a := b.Audit(t, "one")
	dir := t.TempDir()
	guard, err := bus.OpenGuard(filepath.Join(dir, "revisions"), nil)
	if err == nil {
		err = a.Watch(t.Context(), guard)
	}
	if err != nil {
		t.Fatal(err)
	}
	audited(t, a, "a", "b", "c")
	if err := guard.Close(); err != nil {
		t.Fatal(err)
	}
	retell(t, b, func(m []*nats.Msg) []*nats.Msg { return m[:2] })

	anew := b.Audit(t, "one")
	again, err := bus.OpenGuard(filepath.Join(dir, "revisions"), nil)
	if err == nil {
		err = anew.Watch(t.Context(), again)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got, err := anew.Write(t.Context(), []byte("d")); err != nil || got != "the bus now ends at 2, and this issuer has seen 3: its newest records are gone" {
		t.Errorf("the first Write after a restart: got %q, %v", got, err)
	}

	retell(t, b, func(m []*nats.Msg) []*nats.Msg { return m[:1] })
	if got, err := a.Write(t.Context(), []byte("e")); err != nil || got != "records of this issuer up to 3 were there, and the bus now ends at 1" {
		t.Errorf("the next Write: got %q, %v", got, err)
	}
	want := []string{"one a", `one e BROKEN: records of issuer "one" are missing, or not in their places: 4 comes behind 1`}
	if got := readAudit(t, a); !slices.Equal(got, want) {
		t.Errorf("Read: got %q, want %q", got, want)
	}
	audited(t, a, "f")
}

// TestAuditRetention: what retention drops is no hole, also where it drops everything.
func TestAuditRetention(t *testing.T) {
	b := bustest.Start(t)
	a, err := bus.OpenAudit(t.Context(), b.Connect(t), bus.AuditConfig{Issuer: "one", Master: b.Master, MaxBytes: 4096})
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		audited(t, a, strings.Repeat("x", 1000))
	}
	quiet, err := bus.OpenAudit(t.Context(), b.Connect(t), bus.AuditConfig{Issuer: "two", Master: b.Master, MaxBytes: 4096})
	if err != nil {
		t.Fatal(err)
	}
	audited(t, quiet, "a")
	for range 10 {
		audited(t, a, strings.Repeat("y", 1000))
	}
	audited(t, quiet, "b") // its only record is gone by now
	got := readAudit(t, a)
	if len(got) > 5 || len(got) < 2 || strings.Contains(strings.Join(got, ""), "BROKEN") || got[len(got)-1] != "two b" {
		t.Errorf("Read: got %d records, %q", len(got), got)
	}
}

// TestAuditFollow: records come as they are written, and the reader ends with its context.
func TestAuditFollow(t *testing.T) {
	b := bustest.Start(t)
	a := b.Audit(t, "one")
	audited(t, a, "a")
	ctx, cancel := context.WithCancel(t.Context())
	seen, done := make(chan string), make(chan error, 1)
	go func() {
		done <- a.Read(ctx, time.Time{}, true, func(r bus.AuditRecord) error { seen <- string(r.Content); return nil })
	}()
	for _, c := range []string{"a", "b", "c"} {
		if c != "a" {
			audited(t, a, c)
		}
		if got := <-seen; got != c {
			t.Errorf("Read: got %q, want %q", got, c)
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Read: got %v, want %v", err, context.Canceled)
	}
}
