package main

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/issuer"
)

// opened is an issuer in this process that is not run yet.
func opened(t *testing.T, dir string) *issuerProcess {
	t.Helper()
	a := &app{environ: inProcessEnv(dir), stderr: t.Output(), flags: map[string]string{}}
	cfg, err := a.config(defaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	if err := makeDataDir("data_dir", dir); err != nil {
		t.Fatal(err)
	}
	p, err := openIssuer(t.Context(), cfg, nil, hclog.New(&hclog.LoggerOptions{Level: hclog.Error, Output: t.Output()}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	return p
}

// TestAnewUnderAnIssuer: an issuer that runs while another begins the log anew ends and says why, with what it knows of the old
// epoch in its own copy; started again it goes on with the new one.
func TestAnewUnderAnIssuer(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "issuer")
	p := opened(t, dir)
	done, ready := make(chan error, 1), make(chan struct{})
	go func() { done <- p.run(t.Context(), func() { close(ready) }) }()
	<-ready
	if _, err := p.issuer.AddUser(t.Context(), issuer.NewUser{Username: "bob", Password: "looking-glass-house"}); err != nil {
		t.Fatal(err)
	}
	bad := loginBob(t, p)
	if _, err := p.issuer.Revoke(t.Context(), issuer.Target{Token: bad.Refresh}); err != nil {
		t.Fatal(err)
	}
	was := p.replica.Cursor()
	begun, err := bus.BeginAnew(t.Context(), p.conn, bus.LogConfig{Authority: p.authority, Issuer: "other"}, was, p.replica.ImageAt, []byte("[]"))
	if err != nil {
		t.Fatal(err)
	}
	select {
	case err = <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("it runs on")
	}
	if !errors.Is(err, bus.ErrEpoch) || !strings.Contains(err.Error(), "another issuer has done so while this one ran") {
		t.Errorf("it ended with %v, want ErrEpoch and why", err)
	}
	p.close()
	kept := replica.New(replica.Config{})
	if there, err := replica.ReadStore(filepath.Join(dir, "log"), p.authority.Public(), kept); err != nil || !there || kept.Cursor().Epoch != was.Epoch {
		t.Errorf("its own copy: got %v, %v and %+v, want that of epoch %d", there, err, kept.Cursor().Position, was.Epoch)
	}
	p, _ = inProcess(t, dir)
	if got := p.replica.Cursor().Epoch; got != begun.Epoch {
		t.Errorf("started again it is at epoch %d, want %d", got, begun.Epoch)
	}
	if p.issuer.Check(t.Context(), bad.Access) == nil {
		t.Error("what was revoked is good again")
	}
}

// TestOwnClaimEnds: an issuer that died right after it had begun the log anew says so at its next start: others wait for that.
func TestOwnClaimEnds(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "issuer")
	p, stop := inProcess(t, dir)
	if _, err := bus.ClaimAnew(t.Context(), p.duties, "auth-1", 1, false); err != nil {
		t.Fatal(err)
	}
	if _, err := bus.ClaimAnew(t.Context(), p.duties, "auth-2", 1, false); !errors.Is(err, bus.ErrClaimed) {
		t.Fatalf("another's claim meanwhile: got %v, want ErrClaimed", err)
	}
	stop()
	p, _ = inProcess(t, dir)
	if _, err := bus.ClaimAnew(t.Context(), p.duties, "auth-2", p.entries.Epoch(), false); err != nil {
		t.Errorf("another's claim afterwards: %v", err)
	}
}

// TestRunThatFails: what cannot begin to run has left nothing running.
func TestRunThatFails(t *testing.T) {
	p := opened(t, filepath.Join(t.TempDir(), "issuer"))
	p.conn.Close()
	if err := p.run(t.Context(), func() {}); err == nil || !strings.Contains(err.Error(), "listening to agents") {
		t.Errorf("run without a bus: got %v", err)
	}
	stacks := make([]byte, 1<<20)
	if stacks = stacks[:runtime.Stack(stacks, true)]; strings.Contains(string(stacks), "replica.(*Replica).Follow(") {
		t.Error("the log is followed still")
	}
}

// TestBeginAnewInACluster: there it cannot work, and it says what does before it touches anything.
func TestBeginAnewInACluster(t *testing.T) {
	dir := t.TempDir()
	env := append(inProcessEnv(dir), "SIDEKEY_BUS_CLUSTER_LISTEN=127.0.0.1:7464")
	if status, _, stderr := sidekey(t, "", env, "bus", "begin-anew", "--yes"); status != 1 || !strings.Contains(stderr, "this issuer is in a cluster") || !strings.Contains(stderr, "restore a backup") {
		t.Errorf("got %d %s, want a refusal", status, stderr)
	}
}

// TestBusKeysLost: new keys are not made beside a store of the old ones, of whatever kind it is.
func TestBusKeysLost(t *testing.T) {
	for _, store := range []string{aloneStore, clusterStore} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, store), 0o700); err != nil {
			t.Fatal(err)
		}
		cfg := defaultConfig()
		cfg.DataDir = dir
		p := &issuerProcess{cfg: cfg, log: hclog.NewNullLogger()}
		if err := p.openTrust(t.Context()); err == nil || !strings.Contains(err.Error(), "bus.keys is gone, and "+filepath.Join(dir, store)+" is there; put it back from a backup") {
			t.Errorf("%s: got %v, want a refusal", store, err)
		}
		if exists(filepath.Join(dir, bus.KeysFile)) {
			t.Errorf("%s: new keys were made", store)
		}
	}
}
