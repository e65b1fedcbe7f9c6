package issuer_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/backup"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/issuer"
)

// withBackup gives an issuer a Backup that writes so many bytes of a secret, encrypted, and ends as fn does.
func withBackup(size int, fn func() error) setup {
	return func(_ *issuer.Config, p *issuer.Parts) {
		p.Trail = new(bustest.AuditTrail)
		p.Backup = func(_ context.Context, w io.Writer, to []age.Recipient, withAudit bool) (*backup.Head, *backup.Manifest, error) {
			sealed, err := age.Encrypt(w, to...)
			if err == nil {
				_, err = sealed.Write(bytes.Repeat([]byte("TOP-SECRET"), size/10))
			}
			if err = errors.Join(err, fn(), sealed.Close()); err != nil {
				return nil, nil, err
			}
			man := &backup.Manifest{At: bus.Position{Seq: 9}, Buckets: map[string]backup.Bucket{"users": {Records: 3}}}
			if withAudit {
				man.Audit = 7
			}
			return &backup.Head{Issuer: "auth-1", From: bus.Position{Seq: 8}}, man, nil
		}
	}
}

func backupKey(t *testing.T) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestBackupEncrypted: what leaves the issuer is for the recipient alone; a trailer says what it is; the audit has both ends.
func TestBackupEncrypted(t *testing.T) {
	id := backupKey(t)
	ti := start(t, newBus(), withBackup(200_000, func() error { return nil }), backupOnlyFor(id.Recipient().String()))
	srv := httptest.NewServer(ti.AdminHandler(only("t0ken")))
	defer srv.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+"/admin/v1/backup", strings.NewReader(`{"recipients":["`+id.Recipient().String()+`"],"audit":true}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer t0ken")
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("got %d and %v: %s", resp.StatusCode, err, body)
	}
	if bytes.Contains(body, []byte("TOP-SECRET")) {
		t.Error("the answer has a secret in clear")
	}
	plain, err := age.Decrypt(bytes.NewReader(body), id)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(plain); err != nil || len(text) != 200_000 {
		t.Errorf("decrypted: got %d bytes and %v, want 200000", len(text), err)
	}
	var s issuer.BackupSummary
	if err := json.Unmarshal([]byte(resp.Trailer.Get(issuer.BackupTrailer)), &s); err != nil || s.At != 9 || s.Head.From.Seq != 8 || s.Buckets["users"].Records != 3 || s.Audit != 7 {
		t.Errorf("trailer: got %+v and %v", s, err)
	}
	if e := awaitEvent(t, ti, "backup taken"); e.Actor != "admin token" || e.Details["recipients"] != 1.0 {
		t.Errorf("the event: got %+v", e)
	}
	var outcomes []issuer.Outcome
	for _, e := range events(t, ti, "event=admin+call") {
		if e.Details["path"] == "/admin/v1/backup" {
			outcomes = append(outcomes, e.Outcome)
		}
	}
	if len(outcomes) != 2 || outcomes[0] != issuer.Attempt || outcomes[1] != issuer.Done {
		t.Errorf("the audit of the call: got %v, want an attempt and its end", outcomes)
	}
}

// backupOnlyFor sets issuer.backup_recipients.
func backupOnlyFor(recipients ...string) setup {
	return func(c *issuer.Config, _ *issuer.Parts) { c.BackupRecipients = recipients }
}

// TestBackupForNobodyElse: with the admin token alone nobody takes the secrets for themselves.
func TestBackupForNobodyElse(t *testing.T) {
	mine, other := backupKey(t).Recipient().String(), backupKey(t).Recipient().String()
	with := start(t, newBus(), withBackup(10, func() error { return nil }), backupOnlyFor(mine))
	without := start(t, newBus(), withBackup(10, func() error { return nil }))
	for name, c := range map[string]struct {
		handler http.Handler
		body    string
		status  int
		want    string
	}{
		"its own":                       {with.AdminHandler(only("t0ken")), `{"recipients":["` + mine + `"]}`, 200, ""},
		"its own, unnamed":              {with.AdminHandler(only("t0ken")), `{}`, 200, ""},
		"another":                       {with.AdminHandler(only("t0ken")), `{"recipients":["` + other + `"]}`, 403, "issuer.backup_recipients"},
		"another beside its own":        {with.AdminHandler(only("t0ken")), `{"recipients":["` + mine + `","` + other + `"]}`, 403, "is none of them"},
		"two in one":                    {with.AdminHandler(only("t0ken")), `{"recipients":["` + mine + `\n` + other + `"]}`, 403, "is none of them"},
		"a passphrase":                  {with.AdminHandler(only("t0ken")), `{"passphrase":"hunter2hunter2"}`, 403, "with no passphrase"},
		"a passphrase beside its own":   {with.AdminHandler(only("t0ken")), `{"passphrase":"hunter2hunter2","recipients":["` + mine + `"]}`, 403, "with no passphrase"},
		"none are set":                  {without.AdminHandler(only("t0ken")), `{"recipients":["` + other + `"]}`, 403, "it names none"},
		"none are set, and none named":  {without.AdminHandler(only("t0ken")), `{}`, 403, "it names none"},
		"the socket, another":           {with.LocalAdminHandler(), `{"recipients":["` + other + `"]}`, 200, ""},
		"the socket, a passphrase":      {with.LocalAdminHandler(), `{"passphrase":"hunter2hunter2"}`, 200, ""},
		"the socket, unnamed":           {with.LocalAdminHandler(), `{}`, 200, ""},
		"the socket, none are set":      {without.LocalAdminHandler(), `{}`, 400, "say who is to be able to open the backup"},
		"the socket, another, none set": {without.LocalAdminHandler(), `{"recipients":["` + other + `"]}`, 200, ""},
	} {
		got := ask(c.handler, "POST", "/admin/v1/backup", c.body, "Content-Type", "application/json", "Authorization", "Bearer t0ken")
		if got.Code != c.status || !strings.Contains(got.Body.String(), c.want) || c.status != 200 && strings.Contains(got.Body.String(), "age-encryption.org") {
			t.Errorf("%s: got %d %s, want %d with %q", name, got.Code, got.Body, c.status, c.want)
		}
	}
	if e := events(t, with, "event=backup+taken"); len(e) != 5 {
		t.Errorf("the audit has %d backups, want those 5 that were taken", len(e))
	}
}

func TestBackupRefused(t *testing.T) {
	id := backupKey(t)
	ti := start(t, newBus(), withBackup(10, func() error { return errors.New("no bus") }))
	none := start(t, newBus())
	good := `{"recipients":["` + id.Recipient().String() + `"]}`
	for name, c := range map[string]struct {
		handler http.Handler
		body    string
		status  int
		want    string
	}{
		"for nobody":           {ti.LocalAdminHandler(), `{}`, 400, "say who is to be able to open the backup"},
		"a bad recipient":      {ti.LocalAdminHandler(), `{"recipients":["age1"]}`, 400, "is no age recipient"},
		"a secret key":         {ti.LocalAdminHandler(), `{"recipients":["` + id.String() + `"]}`, 400, "AGE-SECRET-KEY-…"},
		"a short passphrase":   {ti.LocalAdminHandler(), `{"passphrase":"hunter2"}`, 400, "the passphrase is too short"},
		"both":                 {ti.LocalAdminHandler(), `{"passphrase":"hunter2hunter2","recipients":["` + id.Recipient().String() + `"]}`, 400, "not with both"},
		"an unknown member":    {ti.LocalAdminHandler(), `{"plain":true}`, 400, "plain"},
		"without the token":    {ti.AdminHandler(only("t0ken")), good, 401, "give the admin token"},
		"of no state":          {none.LocalAdminHandler(), good, 404, "this issuer has no state"},
		"a fault at its start": {ti.LocalAdminHandler(), good, 503, ""},
	} {
		got := ask(c.handler, "POST", "/admin/v1/backup", c.body, "Content-Type", "application/json")
		if got.Code != c.status || !strings.Contains(got.Body.String(), c.want) || strings.Contains(got.Body.String(), id.String()[20:]) || strings.Contains(got.Body.String(), "hunter2") {
			t.Errorf("%s: got %d %s, want %d with %q and no secret", name, got.Code, got.Body, c.status, c.want)
		}
	}
}

// TestBackupBrokenOff: a fault in the middle is no end of the answer, so nobody takes what came for a whole one.
func TestBackupBrokenOff(t *testing.T) {
	ti := start(t, newBus(), withBackup(2_000_000, func() error { return errors.New("no bus") }))
	srv := httptest.NewServer(ti.LocalAdminHandler())
	defer srv.Close()
	resp, err := http.Post(srv.URL+"/admin/v1/backup", "application/json", strings.NewReader(`{"recipients":["`+backupKey(t).Recipient().String()+`"]}`))
	if err == nil {
		defer resp.Body.Close()
		_, err = io.ReadAll(resp.Body)
	}
	if err == nil {
		t.Error("a backup that failed in the middle reads to its end")
	}
}

// TestOneBackupAtATime: the second is told so, and the next after the first is not.
func TestOneBackupAtATime(t *testing.T) {
	begun, goOn := make(chan struct{}), make(chan struct{})
	ti := start(t, newBus(), withBackup(10, func() error {
		begun <- struct{}{}
		<-goOn
		return nil
	}))
	body := `{"recipients":["` + backupKey(t).Recipient().String() + `"]}`
	post := func() int {
		return ask(ti.LocalAdminHandler(), "POST", "/admin/v1/backup", body, "Content-Type", "application/json").Code
	}
	first := make(chan int)
	go func() { first <- post() }()
	<-begun
	if got := post(); got != http.StatusConflict {
		t.Errorf("a second backup: got %d, want 409", got)
	}
	close(goOn)
	if got := <-first; got != 200 {
		t.Errorf("the first: got %d, want 200", got)
	}
	go func() { <-begun }()
	if got := post(); got != 200 {
		t.Errorf("the next: got %d, want 200", got)
	}
}
