package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/backup"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

// backedUp is a backup of an issuer that had one user, bob, and is gone.
type backedUp struct {
	keys           *bus.Keys
	path, identity string
}

// backUp takes it, with what alter makes of it.
func backUp(t *testing.T, alter func(*backup.Source)) *backedUp {
	t.Helper()
	dir := t.TempDir()
	p, stop := inProcess(t, filepath.Join(dir, "first"))
	defer stop()
	if _, err := p.issuer.AddUser(t.Context(), issuer.NewUser{Username: "bob", Password: "looking-glass-house"}); err != nil {
		t.Fatal(err)
	}
	secrets, err := p.backupSecrets()
	if err != nil {
		t.Fatal(err)
	}
	src := backup.Source{
		Head: backup.Head{Version: "test", Issuer: "auth-1", Time: time.Now().Unix()}, Secrets: *secrets, Mark: p.entries.Tick, Keys: p.buckets[bus.BucketKeys],
		Image: func(ctx context.Context, at bus.Position) ([]byte, bus.Cursor, error) {
			if err := p.replica.Wait(ctx, at.Seq); err != nil {
				return nil, bus.Cursor{}, err
			}
			return p.replica.Image()
		},
	}
	for _, name := range backupOrder(p.buckets) {
		src.Buckets = append(src.Buckets, p.buckets[name])
	}
	if alter != nil {
		alter(&src)
	}
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if _, _, err := backup.Take(t.Context(), &file, []age.Recipient{key.Recipient()}, src); err != nil {
		t.Fatal(err)
	}
	return &backedUp{p.keys, put(t, filepath.Join(dir, "backup.age"), file.String()), put(t, filepath.Join(dir, "key"), key.String()+"\n")}
}

// restore restores it into a folder, onto the embedded bus or the one at url.
func (b *backedUp) restore(ctx context.Context, dir, url string, more ...string) (status int, stderr string) {
	var out, errs bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, environ: inProcessEnv(dir), flags: map[string]string{}}
	if url != "" {
		a.environ = append(a.environ, "SIDEKEY_BUS_URLS="+url)
	}
	status = a.run(ctx, append([]string{"restore", b.path, "--identity", b.identity, "--longest-lease", "1s", "--format", "json"}, more...))
	return status, errs.String()
}

// natsElsewhere is an operator's own NATS, with what a test needs to look at it.
type natsElsewhere struct {
	url  string
	conn *bus.Conn
	srv  *bus.Server
	cfg  bus.ServerConfig
}

func startElsewhere(t *testing.T, keys *bus.Keys) *natsElsewhere {
	t.Helper()
	n := &natsElsewhere{cfg: bus.ServerConfig{Listen: freeAddr(t), Dir: t.TempDir(), Keys: keys, Logger: hclog.NewNullLogger()}}
	n.start(t)
	t.Cleanup(func() { n.srv.Close() }) //nolint:errcheck // some tests have stopped it
	n.url = n.srv.URL()
	user, err := keys.IssuerUser("looks-on")
	if err != nil {
		t.Fatal(err)
	}
	if n.conn, err = bus.Connect(bus.ConnectConfig{URLs: []string{n.url}, User: user, Name: "looks-on"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.conn.Close)
	return n
}

func (n *natsElsewhere) start(t *testing.T) {
	t.Helper()
	var err error
	if n.srv, err = bus.StartServer(n.cfg); err != nil {
		t.Fatal(err)
	}
}

// state lists what is sidekey's there.
func (n *natsElsewhere) state(t *testing.T) []string {
	t.Helper()
	found, err := n.conn.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// half leaves what a restore that died has left: a mark, and a bucket.
func (n *natsElsewhere) half(t *testing.T, id string) {
	t.Helper()
	if err := n.conn.MarkRestore(t.Context(), id, 1); err != nil {
		t.Fatal(err)
	}
	b, err := bus.OpenBucket(t.Context(), n.conn, bus.BucketUsers, keyring.NewMasterKey(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Create(t.Context(), bus.Name("half"), []byte("x")); err != nil {
		t.Fatal(err)
	}
}

// died makes a data_dir as a restore leaves it that died while it wrote the master key.
func died(t *testing.T, left string) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "issuer")
	if err := makeDataDir("data_dir", dir); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, restoringFile), left)
	put(t, filepath.Join(dir, masterKeyFile+".tmp123"), "half a key")
	return dir
}

// wantUnfinished holds whether an issuer refuses to start in the folder.
func wantUnfinished(t *testing.T, dir string, want bool) {
	t.Helper()
	if err := checkRestored(dir); (err != nil) != want {
		t.Errorf("an issuer's start: got %v, want a refusal: %t", err, want)
	}
}

// TestRestoreLosesItsBus: a restore that fails because the bus went away, and one that does not reach it then, leave no state that an
// issuer starts on; the next one removes what they left.
func TestRestoreLosesItsBus(t *testing.T) {
	t.Parallel()
	b := backUp(t, nil)
	n := startElsewhere(t, b.keys)
	dir := filepath.Join(t.TempDir(), "issuer")
	type end struct {
		status int
		stderr string
	}
	ended := make(chan end, 1)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	go func() {
		status, stderr := b.restore(ctx, dir, n.url)
		ended <- end{status, stderr}
	}()
	for bucket := false; !bucket && ctx.Err() == nil; {
		bucket = slices.ContainsFunc(n.state(t), func(name string) bool { return strings.HasPrefix(name, "KV_") })
	}
	if err := n.srv.Close(); err != nil { // a dozen streams are to come
		t.Fatal(err)
	}
	cancel() // the bus does not come back while it waits
	if e := <-ended; e.status != 1 || !strings.Contains(e.stderr, "; what was restored so far is on the bus still (") || !strings.Contains(e.stderr, "run `sidekey restore` again with the same configuration, which removes it first") {
		t.Errorf("with its bus lost: got %d %s", e.status, e.stderr)
	}
	wantUnfinished(t, dir, true)

	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if status, stderr := b.restore(short, dir, n.url); status != 1 || !strings.Contains(stderr, "connecting to bus") {
		t.Errorf("with no bus: got %d %s", status, stderr)
	}
	wantUnfinished(t, dir, true)
	if status, stderr := b.restore(t.Context(), dir, ""); status != 1 || !strings.Contains(stderr, "give the same configuration again (--config FILE), with bus.urls") {
		t.Errorf("without the configuration: got %d %s", status, stderr)
	}
	wantUnfinished(t, dir, true)

	n.start(t)
	if status, stderr := b.restore(t.Context(), dir, n.url); status != 0 {
		t.Fatalf("with the bus back: got %d %s", status, stderr)
	}
	wantUnfinished(t, dir, false)
	if found := n.state(t); !slices.Contains(found, "sidekey_log") || slices.Contains(found, "sidekey_restoring") {
		t.Errorf("on the bus: got %v, want a whole state", found)
	}
}

// TestRestoreIsUndone: one that fails with its bus at hand leaves nothing, neither there nor in the folder.
func TestRestoreIsUndone(t *testing.T) {
	t.Parallel()
	b := backUp(t, func(src *backup.Source) { src.Audit = damagedAudit })
	n := startElsewhere(t, b.keys)
	dir := filepath.Join(t.TempDir(), "issuer")
	if status, stderr := b.restore(t.Context(), dir, n.url); status != 1 || !strings.Contains(stderr, "audit") {
		t.Fatalf("got %d %s, want a failure in the middle", status, stderr)
	}
	wantUnfinished(t, dir, false)
	if found := n.state(t); len(found) > 0 {
		t.Errorf("on the bus: got %v, want nothing", found)
	}
	for _, name := range restoredFiles {
		if exists(filepath.Join(dir, name)) {
			t.Errorf("%s is left", name)
		}
	}
}

// damagedAudit has a record that is longer than a message may be.
func damagedAudit(_ context.Context, fn func(string, []byte) error) error {
	return fn("auth-1", make([]byte, 2<<20))
}

// TestRestoreTouchesNoOther: what a restore that died in this folder has not made is not removed, whatever it is; what it has made is,
// unless an issuer runs on it.
func TestRestoreTouchesNoOther(t *testing.T) {
	t.Parallel()
	b := backUp(t, nil)
	for name, c := range map[string]struct {
		left   string // on the bus: another's live state, or half of one with this mark
		up     bool
		status int
		stderr string
	}{
		"restored since elsewhere": {"", false, 1, "somebody has restored since, or that one was all but done; if issuers run on it leave it"},
		"another restore":          {"other", false, 1, "another restore onto it is under way, or has died"},
		"its own, with issuers up": {"mine", true, 1, "issuers are up there: auth-9; if that is the bus which is meant, stop every issuer first"},
		"its own":                  {"mine", false, 0, "restored; start the issuer"},
	} {
		t.Run(name, func(t *testing.T) {
			n := startElsewhere(t, b.keys)
			if c.left != "" {
				n.half(t, c.left)
			} else if status, stderr := b.restore(t.Context(), filepath.Join(t.TempDir(), "host-b"), n.url); status != 0 {
				t.Fatalf("the other host's: got %d %s", status, stderr)
			}
			if c.up {
				absent, err := n.conn.Present("auth-9")
				if err != nil {
					t.Fatal(err)
				}
				defer absent()
			}
			before, dir := n.state(t), died(t, `{"id":"mine","made":["master.key"],"bus":true}`)
			status, stderr := b.restore(t.Context(), dir, n.url)
			if status != c.status || !strings.Contains(stderr, c.stderr) {
				t.Errorf("got %d %s, want %d and %q", status, stderr, c.status, c.stderr)
			}
			wantUnfinished(t, dir, c.status != 0)
			if found := n.state(t); c.status != 0 && !slices.Equal(found, before) {
				t.Errorf("on the bus: got %v, want %v as before", found, before)
			}
		})
	}
}

// TestRestoreUnderAnIssuer: onto a bus on which an issuer is up nothing is restored, though it may be empty by a mishap.
func TestRestoreUnderAnIssuer(t *testing.T) {
	t.Parallel()
	b := backUp(t, nil)
	n := startElsewhere(t, b.keys)
	absent, err := n.conn.Present("auth-9")
	if err != nil {
		t.Fatal(err)
	}
	defer absent()
	dir := filepath.Join(t.TempDir(), "issuer")
	if status, stderr := b.restore(t.Context(), dir, n.url); status != 1 || !strings.Contains(stderr, "stop every issuer first") {
		t.Errorf("got %d %s, want a refusal", status, stderr)
	}
	wantUnfinished(t, dir, false)
	if found := n.state(t); len(found) > 0 {
		t.Errorf("on the bus: got %v, want nothing", found)
	}
}

// TestHalfRestoredElsewhere: an issuer of another host does not start on what a restore has not finished.
func TestHalfRestoredElsewhere(t *testing.T) {
	t.Parallel()
	n := startElsewhere(t, backUp(t, nil).keys)
	p := &issuerProcess{conn: n.conn}
	if err := p.halfRestored(t.Context()); err != nil {
		t.Errorf("nothing is restored: got %v", err)
	}
	n.half(t, "by another host")
	if err := p.halfRestored(t.Context()); err == nil || !strings.Contains(err.Error(), "half restored") {
		t.Errorf("half restored: got %v, want a refusal", err)
	}
}

// part is a bucket of a backup under another name, or without one of its records.
type part struct {
	backup.Records
	name, without string
}

func (p part) Name() string { return p.name }

func (p part) Each(ctx context.Context, filter string, fn func(bus.Record) error) error {
	return p.Records.Each(ctx, filter, func(rec bus.Record) error {
		if rec.Name == p.without {
			return nil
		}
		return fn(rec)
	})
}

// TestRestoreNeedsTheKeys: a backup without the key that signs the log, or without the whole bucket of keys, is not sound.
func TestRestoreNeedsTheKeys(t *testing.T) {
	t.Parallel()
	for name, missing := range map[string]part{
		"no key of the log": {name: bus.BucketKeys, without: authorityName},
		"no bucket of keys": {name: "other"},
	} {
		b := backUp(t, func(src *backup.Source) {
			missing.Records = src.Keys
			src.Keys = missing
		})
		for _, more := range [][]string{{"--check"}, nil} {
			dir := filepath.Join(t.TempDir(), "issuer")
			if status, stderr := b.restore(t.Context(), dir, "", more...); status != 1 || !strings.Contains(stderr, "it lacks the key that signs the log") {
				t.Errorf("%s, %v: got %d %s, want a refusal", name, more, status, stderr)
			}
			if exists(dir) {
				t.Errorf("%s, %v: something was written", name, more)
			}
		}
	}
}

// TestRestoreUndone: what a restore that died has left in the folder is removed by its own list, with what was half written; what is
// not of it stays.
func TestRestoreUndone(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, restoringFile), `{"id":"a","made":["master.key","jetstream","../../outside"]}`)
	outside := put(t, filepath.Join(filepath.Dir(filepath.Dir(dir)), "outside"), "x")
	t.Cleanup(func() { os.Remove(outside) })
	want := map[string]bool{
		"master.key": false, "master.key.tmp2718281828": false, "restoring.tmp1": false, restoringFile: true,
		"mine": true, "mine.tmp1": true, "bus.keys.tmp1": true, "master.key.tmp.mine": true,
	}
	for name := range want {
		if name != restoringFile {
			put(t, filepath.Join(dir, name), "x")
		}
	}
	if err := checkRestored(dir); err == nil || !strings.Contains(err.Error(), "was not finished; run `sidekey restore` again") {
		t.Errorf("an issuer's start: got %v, want a refusal", err)
	}
	left, err := readUnfinished(dir)
	if err == nil {
		err = left.removeFiles(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range want {
		if exists(filepath.Join(dir, name)) != want {
			t.Errorf("%s is there: got %t, want %t", name, !want, want)
		}
	}
	if !exists(outside) {
		t.Error("it removed something outside")
	}
	put(t, filepath.Join(dir, restoringFile), `[`)
	if _, err := readUnfinished(dir); err == nil || !strings.Contains(err.Error(), "move the folder away") {
		t.Errorf("with a list that is damaged: got %v, want a refusal", err)
	}
}

// TestRestoreAgain: where one was killed while it wrote a key the next one leaves nothing of that.
func TestRestoreAgain(t *testing.T) {
	t.Parallel()
	b, dir := backUp(t, nil), died(t, `{"id":"a","made":["master.key","bus.keys","jetstream"]}`)
	if err := os.Mkdir(filepath.Join(dir, "jetstream"), 0o700); err != nil {
		t.Fatal(err)
	}
	if status, stderr := b.restore(t.Context(), dir, ""); status != 0 {
		t.Fatalf("got %d %s", status, stderr)
	}
	wantUnfinished(t, dir, false)
	if name := masterKeyFile + ".tmp123"; exists(filepath.Join(dir, name)) {
		t.Errorf("%s is there still", name)
	}
}

// TestRestoreSynced: that a restore is finished outlives a loss of power, before anybody is told. It listens in to all syncs, and so
// runs beside no other test.
func TestRestoreSynced(t *testing.T) {
	b, dir := backUp(t, nil), filepath.Join(t.TempDir(), "issuer")
	was := syncFolder
	defer func() { syncFolder = was }()
	synced := false
	syncFolder = func(path string) error {
		synced = filepath.Dir(path) == dir && !exists(filepath.Join(dir, restoringFile))
		return was(path)
	}
	if status, stderr := b.restore(t.Context(), dir, ""); status != 0 {
		t.Fatalf("got %d %s", status, stderr)
	}
	if !synced {
		t.Error("the folder was not synced once the restore was finished")
	}
}
