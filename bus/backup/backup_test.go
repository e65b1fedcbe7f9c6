package backup_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/backup"
)

// records is a bucket in memory.
type records struct {
	name string
	recs []bus.Record
	last uint64
	read func() // called when it is read
}

func (r *records) Name() string                            { return r.name }
func (r *records) LastSeq(context.Context) (uint64, error) { return r.last, nil }
func (r *records) Each(_ context.Context, _ string, fn func(bus.Record) error) error {
	if r.read != nil {
		r.read()
	}
	for _, rec := range r.recs {
		if err := fn(rec); err != nil {
			return err
		}
	}
	return nil
}

func many(name string, n, size int) *records {
	r := &records{name: name, last: uint64(n) + 7}
	for i := range n {
		r.recs = append(r.recs, bus.Record{Name: bus.Name(fmt.Sprint(name, i)), Value: bytes.Repeat([]byte{byte(i)}, size), Revision: uint64(i + 1)})
	}
	return r
}

// source is one with three buckets, of which "users" takes several members.
func source() backup.Source {
	return backup.Source{
		Head:    backup.Head{Version: "test", Issuer: "auth-1", URL: "https://auth.example", Time: 1767225600},
		Secrets: backup.Secrets{Master: "master", Bus: json.RawMessage(`{"operator":"SO"}`), Founder: true, Revoked: []string{"UA"}},
		Mark:    func(context.Context) (bus.Position, error) { return bus.Position{Epoch: 5, Seq: 40}, nil },
		Buckets: []backup.Records{many("users", 3000, 500), many("sessions", 0, 0)},
		Image: func(_ context.Context, at bus.Position) ([]byte, bus.Cursor, error) {
			return []byte("the image"), bus.Cursor{Position: bus.Position{Epoch: at.Epoch, Seq: at.Seq + 2}}, nil
		},
		Keys: many("keys", 2, 30),
		Audit: func(_ context.Context, fn func(string, []byte) error) error {
			return errors.Join(fn("auth-1", []byte{1}), fn("auth-2", []byte{2}))
		},
	}
}

func identity(t *testing.T) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func take(t *testing.T, src backup.Source, to ...age.Recipient) []byte {
	t.Helper()
	var file bytes.Buffer
	if _, _, err := backup.Take(t.Context(), &file, to, src); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

// TestRoundTrip: what is read is what was written, in its order.
func TestRoundTrip(t *testing.T) {
	id := identity(t)
	file := take(t, source(), id.Recipient())
	var order []string
	said := func(what string) {
		if n := len(order); n == 0 || order[n-1] != what {
			order = append(order, what)
		}
	}
	var got []bus.Record
	var audit []string
	man, err := backup.Read(bytes.NewReader(file), backup.Visitor{
		Head: func(h backup.Head) error {
			said("head")
			if want := (backup.Head{Format: backup.Format, Version: "test", Issuer: "auth-1", URL: "https://auth.example", Time: 1767225600, From: bus.Position{Epoch: 5, Seq: 40}}); h != want {
				t.Errorf("head: got %+v, want %+v", h, want)
			}
			return nil
		},
		Secrets: func(s backup.Secrets) error {
			said("secrets")
			if s.Master != "master" || string(s.Bus) != `{"operator":"SO"}` || !s.Founder || !slices.Equal(s.Revoked, []string{"UA"}) {
				t.Errorf("secrets: got %+v", s)
			}
			return nil
		},
		Record: func(b string, rec bus.Record) error {
			said(b)
			if b == "users" {
				got = append(got, rec)
			}
			return nil
		},
		Image: func(img []byte) error {
			said("image")
			if string(img) != "the image" {
				t.Errorf("image: got %q", img)
			}
			return nil
		},
		Audit: func(issuer string, rec []byte) error {
			said("audit")
			audit = append(audit, fmt.Sprint(issuer, rec))
			return nil
		},
	}, id)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"head", "secrets", "users", "image", "keys", "audit"}; !slices.Equal(order, want) {
		t.Errorf("order: got %v, want %v", order, want)
	}
	want := source().Buckets[0].(*records).recs
	if !slices.EqualFunc(got, want, func(a, b bus.Record) bool {
		return a.Name == b.Name && a.Revision == b.Revision && bytes.Equal(a.Value, b.Value)
	}) {
		t.Errorf("users: got %d records, want the %d that were written", len(got), len(want))
	}
	if want := []string{"auth-1[1]", "auth-2[2]"}; !slices.Equal(audit, want) {
		t.Errorf("audit: got %v, want %v", audit, want)
	}
	if man.At.Seq != 42 || man.Buckets["users"] != (backup.Bucket{Records: 3000, Last: 3007}) || man.Audit != 2 {
		t.Errorf("manifest: got %+v", man)
	}
}

// TestOrder: the mark comes before every bucket, the image behind them, and the private keys behind the image.
func TestOrder(t *testing.T) {
	src, order := source(), []string(nil)
	note := func(what string) func() { return func() { order = append(order, what) } }
	mark, image := src.Mark, src.Image
	src.Mark = func(ctx context.Context) (bus.Position, error) { note("mark")(); return mark(ctx) }
	src.Image = func(ctx context.Context, at bus.Position) ([]byte, bus.Cursor, error) {
		note("image")()
		return image(ctx, at)
	}
	src.Buckets = []backup.Records{&records{name: "users", read: note("users")}, &records{name: "sessions", read: note("sessions")}}
	src.Keys = &records{name: "keys", read: note("keys")}
	take(t, src, identity(t).Recipient())
	if want := []string{"mark", "users", "sessions", "image", "keys"}; !slices.Equal(order, want) {
		t.Errorf("order: got %v, want %v", order, want)
	}
}

// TestDamaged: a file that was cut short or altered anywhere does not read.
func TestDamaged(t *testing.T) {
	id := identity(t)
	file := take(t, source(), id.Recipient())
	read := func(b []byte) error { _, err := backup.Read(bytes.NewReader(b), backup.Visitor{}, id); return err }
	if err := read(file); err != nil {
		t.Fatal(err)
	}
	step := len(file) / 60
	for at := 0; at < len(file); at += step {
		if err := read(file[:at]); err == nil {
			t.Errorf("cut to %d of %d bytes: it reads", at, len(file))
		}
		bent := bytes.Clone(file)
		bent[at] ^= 1 << (at % 8)
		if err := read(bent); err == nil {
			t.Errorf("one bit of byte %d changed: it reads", at)
		}
	}
	for name, b := range map[string][]byte{
		"the last byte gone": file[:len(file)-1], "a byte more": append(bytes.Clone(file), 0), "twice": append(bytes.Clone(file), file...), "nothing": nil, "something else": []byte("hello"),
	} {
		if err := read(b); !errors.Is(err, backup.ErrDamaged) {
			t.Errorf("%s: got %v, want ErrDamaged", name, err)
		}
	}
}

// craft encrypts an archive of one's own making: who has the recipient can make such a file.
func craft(t *testing.T, id *age.X25519Identity, members ...string) []byte {
	t.Helper()
	var file bytes.Buffer
	w, err := age.Encrypt(&file, id.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	archive := tar.NewWriter(w)
	for _, m := range members {
		name, content, _ := strings.Cut(m, " ")
		h := &tar.Header{Name: name, Size: int64(len(content)), Mode: 0o600}
		if name == "link" {
			h.Typeflag, h.Size, content = tar.TypeSymlink, 0, ""
		}
		if err := archive.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(archive, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(archive.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

func TestRefused(t *testing.T) {
	id := identity(t)
	head, secrets := `head.json {"format":"sidekey-backup-1"}`, `secrets.json {"master":"m"}`
	for name, c := range map[string]struct {
		members []string
		want    string
	}{
		"of another format":     {[]string{`head.json {"format":"sidekey-backup-2","version":"v9","new":1}`}, `it is of the format "sidekey-backup-2", written by sidekey "v9", and this sidekey reads "sidekey-backup-1"; restore it with that version`},
		"another archive":       {[]string{"notes.txt hello"}, "it does not begin with head.json"},
		"no secrets":            {[]string{head, "log/image x"}, `member "log/image" stands where "secrets.json" belongs`},
		"no manifest":           {[]string{head, secrets, "log/image x"}, "it ends before its manifest"},
		"no image":              {[]string{head, secrets, `manifest.json {}`}, "it has no log/image"},
		"two images":            {[]string{head, secrets, "log/image x", "log/image y"}, `member "log/image" is not one that a backup has there`},
		"a member of no list":   {[]string{head, secrets, "log/image x", `manifest.json {"members":[]}`}, "what is in it is not what its manifest lists"},
		"an unknown member":     {[]string{head, secrets, "../../etc/passwd x"}, `member "../../etc/passwd" is not one that a backup has there`},
		"a link":                {[]string{head, secrets, "link x"}, `member "link" is no file`},
		"an unknown field":      {[]string{head, secrets, `buckets/users/000001.jsonl {"name":"a","secret":"s3"}`}, `member "buckets/users/000001.jsonl" is not what this version of sidekey knows`},
		"audit before the log":  {[]string{head, secrets, `audit/000001.jsonl {}`}, `member "audit/000001.jsonl" is not one that a backup has there`},
		"an unreadable secrets": {[]string{head, `secrets.json "s3cret"`}, `member "secrets.json" is not what this version of sidekey knows`},
	} {
		_, err := backup.Read(bytes.NewReader(craft(t, id, c.members...)), backup.Visitor{}, id)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "s3") {
			t.Errorf("%s: got %v, want %q in it, and no secret", name, err, c.want)
		}
	}
}

func TestIdentities(t *testing.T) {
	to, err := backup.Recipients(nil, "correct horse battery")
	if err != nil {
		t.Fatal(err)
	}
	to[0].(*age.ScryptRecipient).SetWorkFactor(10)
	mine, other := identity(t), identity(t)
	phrase := func(text string) age.Identity {
		id, err := age.NewScryptIdentity(text)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	forPhrase, forMine := take(t, source(), to...), take(t, source(), mine.Recipient(), identity(t).Recipient())
	for name, c := range map[string]struct {
		file []byte
		id   age.Identity
		ok   bool
	}{
		"the passphrase":       {forPhrase, phrase("correct horse battery"), true},
		"another passphrase":   {forPhrase, phrase("incorrect horse"), false},
		"an identity instead":  {forPhrase, mine, false},
		"one of two":           {forMine, mine, true},
		"another identity":     {forMine, other, false},
		"a passphrase instead": {forMine, phrase("correct horse battery"), false},
	} {
		_, err := backup.Read(bytes.NewReader(c.file), backup.Visitor{}, c.id)
		if c.ok != (err == nil) || err != nil && !strings.Contains(err.Error(), "it is not encrypted to this identity, or the passphrase is another; nothing was done") {
			t.Errorf("%s: got %v, want ok %t", name, err, c.ok)
		}
	}
}

func TestRecipients(t *testing.T) {
	key := identity(t)
	good := key.Recipient().String()
	for name, c := range map[string]struct {
		recipients []string
		passphrase string
		want       string // "": no error
	}{
		"one":            {[]string{good}, "", ""},
		"two":            {[]string{good, good}, "", ""},
		"both":           {[]string{good}, "a long passphrase", "not with both"},
		"neither":        {nil, "", "an age recipient (age1…, made with age-keygen) or a passphrase"},
		"short":          {nil, "short", "the passphrase is too short"},
		"two in one":     {[]string{good + "\n" + good}, "", "is no age recipient"},
		"a word":         {[]string{"backup"}, "", `"backup" is no age recipient`},
		"the secret key": {[]string{key.String()}, "", `"AGE-SECRET-KEY-…" is no age recipient`},
		"too many":       {slices.Repeat([]string{good}, 33), "", "there are 33 recipients, and 32 are the most"},
	} {
		_, err := backup.Recipients(c.recipients, c.passphrase)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), key.String()[20:]) {
			t.Errorf("%s: the error has the secret key: %v", name, err)
		}
	}
}

// TestTakeFails: a part that cannot be read ends the backup, and what was written does not read as one.
func TestTakeFails(t *testing.T) {
	id, broken := identity(t), errors.New("no bus")
	for name, change := range map[string]func(*backup.Source){
		"mark": func(s *backup.Source) {
			s.Mark = func(context.Context) (bus.Position, error) { return bus.Position{}, broken }
		},
		"image": func(s *backup.Source) {
			s.Image = func(context.Context, bus.Position) ([]byte, bus.Cursor, error) { return nil, bus.Cursor{}, broken }
		},
		"audit": func(s *backup.Source) {
			s.Audit = func(context.Context, func(string, []byte) error) error { return broken }
		},
	} {
		src := source()
		change(&src)
		var file bytes.Buffer
		if _, _, err := backup.Take(t.Context(), &file, []age.Recipient{id.Recipient()}, src); !errors.Is(err, broken) {
			t.Errorf("%s: got %v, want its error", name, err)
		}
		if _, err := backup.Read(&file, backup.Visitor{}, id); err == nil {
			t.Errorf("%s: what was written reads as a backup", name)
		}
	}
}
