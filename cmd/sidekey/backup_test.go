package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nkeys"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/backup"
	"github.com/sidekey/sidekey/issuer"
)

// inProcess runs an issuer in this process, on ports of its own, until the returned function is called.
func inProcess(t *testing.T, dir string) (*issuerProcess, func()) {
	t.Helper()
	a := &app{environ: inProcessEnv(dir), stderr: t.Output(), flags: map[string]string{}}
	cfg, err := a.config(defaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	if err := makeDataDir("data_dir", dir); err != nil {
		t.Fatal(err)
	}
	p, err := openIssuer(t.Context(), cfg, nil, hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: t.Output()}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done, ready := make(chan error, 1), make(chan struct{})
	go func() { done <- p.run(ctx, func() { close(ready) }) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the issuer ended with %v", err)
		}
		p.close()
	})
	t.Cleanup(stop)
	<-ready
	return p, stop
}

func inProcessEnv(dir string) []string {
	return []string{
		"SIDEKEY_DATA_DIR=" + dir, "SIDEKEY_ISSUER_LISTEN=127.0.0.1:0", "SIDEKEY_ISSUER_URL=http://auth.example", "SIDEKEY_BUS_LISTEN=127.0.0.1:0",
		"SIDEKEY_INSECURE=true", "SIDEKEY_ISSUER_LOGIN_PER_MINUTE=0", "SIDEKEY_ISSUER_REFRESH_PER_MINUTE=0", "SIDEKEY_ISSUER_REFRESH_GRACE=0s",
		"SIDEKEY_KEYS_ALG=EdDSA", "SIDEKEY_AGENT_NAME=auth-1",
	}
}

// oneSession is what a client knows of its session, in the order in which it learnt it.
type oneSession struct {
	tokens   *issuer.Tokens
	used     []string  // refresh tokens that were exchanged, oldest first
	finished time.Time // when the client had its last answer
	seq      uint64    // of its revocation; 0: none
}

// load is clients that log in, refresh and revoke until stopped, and tell of each life; of three sessions one is left alone after its login, one
// refreshed, one revoked.
func load(t *testing.T, p *issuerProcess, lives chan<- struct{}, until <-chan struct{}) []*oneSession {
	var mu sync.Mutex
	var all []*oneSession
	var clients sync.WaitGroup
	for worker := range 4 {
		clients.Go(func() {
			for n := worker; ; n++ {
				s, err := oneLife(t.Context(), p, n%3)
				if err != nil {
					t.Errorf("a session's life: %v", err)
					return
				}
				mu.Lock()
				all = append(all, s)
				mu.Unlock()
				select {
				case lives <- struct{}{}:
				case <-until:
					return
				}
			}
		})
	}
	clients.Wait()
	return all
}

func oneLife(ctx context.Context, p *issuerProcess, kind int) (*oneSession, error) {
	s := new(oneSession)
	var err error
	if s.tokens, err = p.issuer.Login(ctx, issuer.Credentials{Username: "bob", Password: "looking-glass-house"}); err != nil {
		return nil, err
	}
	switch kind {
	case 1:
		for range 3 {
			s.used = append(s.used, s.tokens.Refresh)
			if s.tokens, err = p.issuer.Refresh(ctx, s.tokens.Refresh); err != nil {
				return nil, err
			}
		}
	case 2:
		r, err := p.issuer.Revoke(ctx, issuer.Target{SessionID: s.tokens.SessionID})
		if err != nil {
			return nil, err
		}
		s.seq = r.Seq
	}
	s.finished = time.Now()
	return s, nil
}

// TestBackupUnderLoad: backups are taken while clients work. Restored as it should be, nothing of before is good. With the
// sessions kept, nothing that was revoked before a backup's position is good, nor any refresh token that was used before it,
// and whoever was done before it began goes on.
func TestBackupUnderLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p, stop := inProcess(t, filepath.Join(dir, "first"))
	if _, err := p.issuer.AddUser(t.Context(), issuer.NewUser{Username: "bob", Password: "looking-glass-house"}); err != nil {
		t.Fatal(err)
	}
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	identity := write("key", []byte(key.String()+"\n"))
	lives, until := make(chan struct{}, 1000), make(chan struct{})
	pass := func(n int) {
		for range n {
			<-lives
		}
	}
	var sessions []*oneSession
	var working sync.WaitGroup
	working.Go(func() { sessions = load(t, p, lives, until) })
	var begun time.Time
	var man *backup.Manifest
	var file bytes.Buffer
	for range 3 { // the last has most before it, and clients at work around it
		pass(8)
		file.Reset()
		begun = time.Now()
		if _, man, err = p.takeBackup(t.Context(), &file, []age.Recipient{key.Recipient()}, true); err != nil {
			t.Fatal(err)
		}
	}
	pass(8 + len(lives))
	close(until)
	working.Wait()
	stop()
	path := write("backup.age", file.Bytes())
	restore := func(name string, more ...string) *issuerProcess {
		to := filepath.Join(dir, name)
		args := append([]string{"restore", path, "--identity", identity, "--longest-lease", "1s", "--format", "json"}, more...)
		if status, _, stderr := sidekey(t, "", inProcessEnv(to), args...); status != 0 {
			t.Fatalf("restore: got status %d: %s", status, stderr)
		}
		p, _ := inProcess(t, to)
		return p
	}
	ended := restore("ended")
	if _, err := ended.issuer.Login(t.Context(), issuer.Credentials{Username: "bob", Password: "looking-glass-house"}); err != nil {
		t.Errorf("a login after the restore: %v", err)
	}
	kept := restore("kept", "--keep-sessions")
	before, revoked, after := 0, 0, 0
	for _, s := range sessions {
		for _, token := range append(s.used, s.tokens.Refresh, s.tokens.Access) {
			if ended.issuer.Check(t.Context(), token) == nil {
				t.Fatal("a token of before the restore is good")
			}
		}
		switch good := kept.issuer.Check(t.Context(), s.tokens.Refresh) == nil; {
		case s.seq > 0 && (s.finished.Before(begun) || s.seq <= man.At.Seq):
			revoked++
			if good || kept.issuer.Check(t.Context(), s.tokens.Access) == nil {
				t.Errorf("revoked at entry %d, before the backup's %d, and good again", s.seq, man.At.Seq)
			}
		case s.seq == 0 && s.finished.Before(begun):
			before++
			if !good {
				t.Error("a session that was acknowledged before the backup began is not in it")
			}
			for _, token := range s.used {
				if kept.issuer.Check(t.Context(), token) == nil {
					t.Error("a refresh token that was used before the backup is good again")
				}
			}
		default:
			after++
		}
	}
	t.Logf("%d sessions were there before the last backup, %d were revoked before its position %d, %d came later", before, revoked, man.At.Seq, after)
	if before == 0 || revoked == 0 || after == 0 {
		t.Error("the load is no test: it has to have some of each")
	}
	checkLost(t, sessions, kept)
}

// checkLost: every session that is kept is one that a client has.
func checkLost(t *testing.T, sessions []*oneSession, kept *issuerProcess) {
	t.Helper()
	list, err := kept.issuer.ListSessions(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	known := make(map[string]bool)
	for _, s := range sessions {
		known[s.tokens.SessionID] = true
	}
	for _, s := range list {
		if !known[s.ID] {
			t.Errorf("the restored issuer has a session %s that no client has", s.ID)
		}
	}
}

// TestRestoreUndone: a restore that fails leaves the folder as it was, and one that died is undone by the next; until then no
// issuer starts there.
func TestRestoreUndone(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, restoringFile), []byte(`["master.key","jetstream","../../outside"]`), 0o600); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(filepath.Dir(filepath.Dir(dir)), "outside")
	for _, name := range []string{"master.key", "mine"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := checkRestored(dir); err == nil || !strings.Contains(err.Error(), "was not finished; run `sidekey restore` again") {
		t.Errorf("an issuer's start: got %v, want a refusal", err)
	}
	if err := new(restoring).undo(dir); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"master.key": false, restoringFile: false, "mine": true} {
		if exists(filepath.Join(dir, name)) != want {
			t.Errorf("%s is there: got %t, want %t", name, !want, want)
		}
	}
	if exists(outside) {
		t.Error("it made something outside")
	}
	if err := checkRestored(dir); err != nil {
		t.Errorf("afterwards: got %v", err)
	}
}

// TestRestoreStrikesIssuersOff: an issuer that was removed after the backup does not come back by its restore, nor does any
// other: who is restored cannot tell them apart. Issuers that bring no server stay where nothing has happened since.
func TestRestoreStrikesIssuersOff(t *testing.T) {
	dir := t.TempDir()
	p, stop := inProcess(t, filepath.Join(dir, "first"))
	of := make(map[string]string)
	for n, name := range []string{"present", "clustered", "removed"} {
		user, err := nkeys.CreateUser()
		if err != nil {
			t.Fatal(err)
		}
		if of[name], err = user.PublicKey(); err != nil {
			t.Fatal(err)
		}
		m := bus.Member{Name: name, Nkey: of[name], Join: "x", Joined: 1, RemovedAt: int64(n / 2)}
		if name == "clustered" {
			m.Route = "10.0.0.7:7464"
		}
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.buckets[bus.BucketIssuers].Create(t.Context(), bus.Name(name), text); err != nil {
			t.Fatal(err)
		}
	}
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if _, _, err := p.takeBackup(t.Context(), &file, []age.Recipient{key.Recipient()}, false); err != nil {
		t.Fatal(err)
	}
	stop()
	path, identity := filepath.Join(dir, "backup.age"), filepath.Join(dir, "key")
	if err := errors.Join(os.WriteFile(path, file.Bytes(), 0o600), os.WriteFile(identity, []byte(key.String()+"\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args    []string
		records int
		refused []string
	}{
		"ended": {nil, 0, []string{"present", "clustered", "removed"}},
		"kept":  {[]string{"--keep-sessions"}, 2, []string{"clustered", "removed"}},
	} {
		to := filepath.Join(dir, name)
		status, _, stderr := sidekey(t, "", inProcessEnv(to), append([]string{"restore", path, "--identity", identity, "--longest-lease", "1s"}, c.args...)...)
		if status != 0 || !strings.Contains(stderr, "issuers are struck off") {
			t.Fatalf("%s: got status %d: %s", name, status, stderr)
		}
		p, stop := inProcess(t, to)
		records, err := p.buckets[bus.BucketIssuers].List(t.Context(), "")
		if err != nil || len(records) != c.records {
			t.Errorf("%s: got %d records of issuers and %v, want %d", name, len(records), err, c.records)
		}
		if err := p.enrolment.Remove(t.Context(), bus.RoleAgent, "nobody"); !errors.Is(err, bus.ErrNotFound) {
			t.Errorf("%s: got %v", name, err)
		}
		stop()
		refused, err := bus.ReadRevoked(filepath.Join(to, revokedFile))
		if err != nil {
			t.Fatal(err)
		}
		for who, nkey := range of {
			if got, want := slices.Contains(refused, nkey), slices.Contains(c.refused, who); got != want {
				t.Errorf("%s: the credential of %s is refused: %t, want %t", name, who, got, want)
			}
		}
	}
}

// TestBackupOrder: of two records that are written one after the other the later is read first.
func TestBackupOrder(t *testing.T) {
	buckets := map[string]*bus.Bucket{"zebra": nil, "ant": nil, bus.BucketKeys: nil}
	for _, name := range []string{bus.BucketUsers, bus.BucketSubjects, bus.BucketSessions, bus.BucketClients, bus.BucketCredentials, bus.BucketAgents, bus.BucketIssuers, bus.BucketJoins} {
		buckets[name] = nil
	}
	if got, want := strings.Join(backupOrder(buckets), " "), "sessions credentials users subjects clients agents issuers joins ant zebra"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
