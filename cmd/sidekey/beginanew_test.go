package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats.go"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/issuer"
)

// forge has the owner of the bus write an entry that no issuer signed, while the issuer is stopped.
func forge(t *testing.T, dir string, keys *bus.Keys) {
	t.Helper()
	srv, err := bus.StartServer(bus.ServerConfig{Listen: "127.0.0.1:0", Dir: filepath.Join(dir, "jetstream"), Keys: keys, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	user, err := keys.IssuerUser("owner")
	if err != nil {
		t.Fatal(err)
	}
	creds, err := user.Creds()
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(srv.URL(), nats.UserCredentials(put(t, filepath.Join(t.TempDir(), "owner.creds"), string(creds))))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := nc.JetStream()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish("sidekey.log.revoke", []byte(`{"jti":"x","exp":4102444800}`)); err != nil {
		t.Fatal(err)
	}
}

// TestBeginAnewByWord: a forged entry stops the log for good, and an operator's word begins it anew: what was revoked stays
// revoked, sessions go on.
func TestBeginAnewByWord(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "issuer")
	env := inProcessEnv(dir)
	p, stop := inProcess(t, dir)
	if _, err := p.issuer.AddUser(t.Context(), issuer.NewUser{Username: "bob", Password: "looking-glass-house"}); err != nil {
		t.Fatal(err)
	}
	good, bad := loginBob(t, p), loginBob(t, p)
	if _, err := p.issuer.Revoke(t.Context(), issuer.Target{Token: bad.Refresh}); err != nil {
		t.Fatal(err)
	}
	if status, _, stderr := sidekey(t, "", env, "bus", "begin-anew", "--yes"); status != 1 || !strings.Contains(stderr, "another process is using it") {
		t.Errorf("while the issuer runs: got %d %s, want a refusal", status, stderr)
	}
	keys := p.keys
	stop()
	forge(t, dir, keys)
	a := &app{environ: env, stderr: t.Output(), flags: map[string]string{}}
	cfg, err := a.config(defaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openIssuer(t.Context(), cfg, nil, hclog.NewNullLogger()); err == nil {
		t.Fatal("the issuer starts on a forged log")
	}
	if status, _, stderr := sidekey(t, "", env, "bus", "begin-anew"); status != 1 || !strings.Contains(stderr, "nothing was done; with --yes") || !strings.Contains(stderr, "behind that it cannot be read: ") {
		t.Errorf("without --yes: got %d %s", status, stderr)
	}
	if status, _, stderr := sidekey(t, "", env, "bus", "begin-anew", "--yes"); status != 0 || !strings.Contains(stderr, "the log was begun anew at entry") {
		t.Fatalf("got %d %s", status, stderr)
	}
	p, _ = inProcess(t, dir)
	if err := p.issuer.Check(t.Context(), good.Access); err != nil {
		t.Errorf("a good token: %v", err)
	}
	if _, err := p.issuer.Refresh(t.Context(), good.Refresh); err != nil {
		t.Errorf("its refresh token: %v", err)
	}
	if p.issuer.Check(t.Context(), bad.Access) == nil {
		t.Error("what was revoked is good again")
	}
}

func loginBob(t *testing.T, p *issuerProcess) *issuer.Tokens {
	t.Helper()
	tokens, err := p.issuer.Login(t.Context(), issuer.Credentials{Username: "bob", Password: "looking-glass-house"})
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

func TestBeginAnewNeedsACopy(t *testing.T) {
	dir := t.TempDir()
	if status, _, stderr := sidekey(t, "", inProcessEnv(dir), "bus", "begin-anew", "--yes"); status != 1 || !strings.Contains(stderr, "holds no issuer's copy of the log") {
		t.Errorf("got %d %s, want a refusal", status, stderr)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("it left %d files and %v", len(entries), err)
	}
}
