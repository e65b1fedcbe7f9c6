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
	"github.com/sidekey/sidekey/bus/replica"
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

// oneLife is what a client knows of its session, or its API key, in the order in which it learnt it.
type oneLife struct {
	what     string // "session", "key", or "user": a session of a user who was disabled
	username string
	tokens   *issuer.Tokens // nil: of a key
	key      string         // its id
	used     []string       // refresh tokens that were exchanged, oldest first
	finished time.Time      // when the client had its last answer
	seq      uint64         // up to where the log says that it has ended; 0: it has not
}

// load is clients that live until stopped, and tell of each life: of six one is a session that is left alone after its login, one is
// refreshed, one revoked; one is an API key that is left alone, one is revoked; and one is a user who is disabled.
func load(t *testing.T, p *issuerProcess, lives chan<- struct{}, until <-chan struct{}) []*oneLife {
	var mu sync.Mutex
	var all []*oneLife
	var clients sync.WaitGroup
	for worker := range 4 {
		clients.Go(func() {
			for n := worker; ; n++ {
				s, err := live(t.Context(), p, n%6)
				if err != nil {
					t.Errorf("a life: %v", err)
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

func live(ctx context.Context, p *issuerProcess, kind int) (*oneLife, error) {
	s := &oneLife{what: "session", username: "bob"}
	var err error
	switch kind {
	case 3, 4:
		err = s.liveAsKey(ctx, p, kind == 4)
	case 5:
		err = s.liveAsUser(ctx, p)
	default:
		err = s.liveAsSession(ctx, p, kind)
	}
	s.finished = time.Now()
	return s, err
}

func (s *oneLife) liveAsSession(ctx context.Context, p *issuerProcess, kind int) error {
	var err error
	s.tokens, err = s.login(ctx, p)
	for range 3 {
		if err == nil && kind == 1 {
			s.used = append(s.used, s.tokens.Refresh)
			s.tokens, err = p.issuer.Refresh(ctx, s.tokens.Refresh)
		}
	}
	if err != nil || kind != 2 {
		return err
	}
	return s.revoke(ctx, p, issuer.Target{SessionID: s.tokens.SessionID})
}

func (s *oneLife) liveAsKey(ctx context.Context, p *issuerProcess, revoke bool) error {
	made, err := p.issuer.AddCredential(ctx, issuer.NewCredential{Name: "key", Username: s.username})
	if err != nil {
		return err
	}
	if s.what, s.key = "key", made.ID; !revoke {
		return nil
	}
	return s.revoke(ctx, p, issuer.Target{ID: s.key})
}

func (s *oneLife) revoke(ctx context.Context, p *issuerProcess, of issuer.Target) error {
	r, err := p.issuer.Revoke(ctx, of)
	if err == nil {
		s.seq = r.Seq
	}
	return err
}

func (s *oneLife) liveAsUser(ctx context.Context, p *issuerProcess) error {
	s.what, s.username = "user", randomToken()
	if _, err := p.issuer.AddUser(ctx, issuer.NewUser{Username: s.username, Password: "looking-glass-house"}); err != nil {
		return err
	}
	var err error
	if s.tokens, err = s.login(ctx, p); err != nil {
		return err
	}
	disabled := true
	_, err = p.issuer.ChangeUser(ctx, s.username, issuer.UserChange{Disabled: &disabled})
	s.seq = p.replica.Snapshot().Position.Seq // the cutoff stands in front of it
	return err
}

func (s *oneLife) login(ctx context.Context, p *issuerProcess) (*issuer.Tokens, error) {
	return p.issuer.Login(ctx, issuer.Credentials{Username: s.username, Password: "looking-glass-house"})
}

// good tells whether p would let it go on.
func (s *oneLife) good(ctx context.Context, p *issuerProcess) bool {
	if s.tokens == nil {
		return slices.ContainsFunc(p.replica.ListCredentials(), func(c *replica.Credential) bool { return c.ID == s.key })
	}
	return p.issuer.Check(ctx, s.tokens.Refresh) == nil
}

// TestBackupUnderLoad: backups are taken while clients work. Restored as it should be, nothing that ends with a restore is good. With
// the sessions kept, nothing that was revoked or cut off before a backup's position is good, nor any refresh token that was used
// before it, and whoever was done before it began goes on.
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
	var all []*oneLife
	var working sync.WaitGroup
	working.Go(func() { all = load(t, p, lives, until) })
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
	for _, s := range all {
		for _, token := range s.everyToken() {
			if ended.issuer.Check(t.Context(), token) == nil {
				t.Fatal("a token of before the restore is good")
			}
		}
	}
	checkLives(t, all, kept, begun, man.At.Seq)
	checkLost(t, all, kept)
}

func (s *oneLife) everyToken() []string {
	if s.tokens == nil {
		return nil
	}
	return append(slices.Clone(s.used), s.tokens.Refresh, s.tokens.Access)
}

// checkLives holds an issuer that was restored with its sessions against what clients were told, for a backup that was begun then and
// has the log up to at.
func checkLives(t *testing.T, all []*oneLife, kept *issuerProcess, begun time.Time, at uint64) {
	t.Helper()
	found := make(map[string]int)
	for _, s := range all {
		good := s.good(t.Context(), kept)
		switch before := s.finished.Before(begun); {
		case s.seq > 0 && (before || s.seq <= at):
			found[s.what+" ended"]++
			if good || s.tokens != nil && kept.issuer.Check(t.Context(), s.tokens.Access) == nil {
				t.Errorf("a %s ended at entry %d, before the backup's %d, and is good again", s.what, s.seq, at)
			}
			if before && s.what == "user" {
				if _, err := s.login(t.Context(), kept); err == nil {
					t.Error("a user who was disabled before the backup began logs in")
				}
			}
		case s.seq == 0 && before:
			found[s.what]++
			if !good {
				t.Errorf("a %s that was acknowledged before the backup began is not in it", s.what)
			}
			for _, token := range s.used {
				if kept.issuer.Check(t.Context(), token) == nil {
					t.Error("a refresh token that was used before the backup is good again")
				}
			}
		default:
			found["later"]++
		}
	}
	t.Logf("of the last backup, with the log up to %d: %v", at, found)
	for _, some := range []string{"session", "session ended", "key", "key ended", "user ended", "later"} {
		if found[some] == 0 {
			t.Errorf("the load is no test: it has no %s", some)
		}
	}
}

// checkLost: every session that is kept is one that a client has.
func checkLost(t *testing.T, all []*oneLife, kept *issuerProcess) {
	t.Helper()
	list, err := kept.issuer.ListSessions(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	known := make(map[string]bool)
	for _, s := range all {
		if s.tokens != nil {
			known[s.tokens.SessionID] = true
		}
	}
	for _, s := range list {
		if !known[s.ID] {
			t.Errorf("the restored issuer has a session %s that no client has", s.ID)
		}
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
