package e2e

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestStaticBinary: built as deploy/container/Dockerfile does it, sidekey needs nothing of the system that it runs on: in an
// empty root, as a user without rights or a name, it logs in, checks and revokes.
func TestStaticBinary(t *testing.T) {
	need(t)
	if os.Getuid() != 0 {
		t.Skip("only root may change its root")
	}
	root, err := os.MkdirTemp("/var/tmp", "sidekey-root-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(root, "sidekey")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, "..")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	f, err := elf.Open(bin)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("the binary is not static: it has %v", p.Type)
		}
	}
	state := filepath.Join(root, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(state, 65532, 65532); err != nil {
		t.Fatal(err)
	}
	issuer, agent, bus := "127.0.0.1:"+freePort(t), "127.0.0.1:"+freePort(t), "127.0.0.1:"+freePort(t)
	env := []string{"SIDEKEY_ISSUER_LISTEN=" + issuer, "SIDEKEY_AGENT_LISTEN=" + agent, "SIDEKEY_BUS_LISTEN=" + bus, "SIDEKEY_DATA_DIR=/state"}
	inside := func(args ...string) *exec.Cmd {
		cmd := exec.Command("/sidekey", args...)
		cmd.Err = nil // it is looked for in the new root
		cmd.Dir, cmd.Env = "/", env
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
		return cmd
	}
	p := start(t, inside("dev"))
	c := &cluster{t: t, Issuer: "http://" + issuer, Agent: "http://" + agent, proc: p}
	await(t, "sidekey dev in an empty root", func() error {
		if p.over() {
			t.Fatal("it has ended")
		}
		return expectStatus(http.StatusOK)(http.Get(c.Agent + "/readyz"))
	})
	var access string
	await(t, "alice to be there", func() error {
		res, err := http.Post(c.Issuer+"/api/token/", "application/json", strings.NewReader(`{"username":"alice","password":"wonderland"}`))
		if err != nil {
			return err
		}
		defer res.Body.Close()
		var got struct{ Access string }
		if err := json.NewDecoder(res.Body).Decode(&got); err != nil || got.Access == "" {
			return os.ErrNotExist
		}
		access = got.Access
		return nil
	})
	bearer := http.Header{"Authorization": {"Bearer " + access}}
	if res, body := do(t, http.MethodGet, c.Agent+"/v1/verify", bearer, ""); res.StatusCode != http.StatusOK {
		t.Errorf("verifying: got %d %s", res.StatusCode, body)
	}
	var out bytes.Buffer
	revoke := inside("revoke", "--token", access, "--wait", "--timeout", "20s")
	revoke.Stdout, revoke.Stderr = &out, &out
	if err := revoke.Run(); err != nil {
		t.Fatalf("revoking: %v: %s", err, out.String())
	}
	if res, body := do(t, http.MethodGet, c.Agent+"/v1/verify", bearer, ""); res.StatusCode != http.StatusUnauthorized || !strings.Contains(body, "revoked") {
		t.Errorf("verifying what was revoked: got %d %s", res.StatusCode, body)
	}
	var names []string
	entries, err := os.ReadDir(root)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); err != nil || got != "sidekey state" {
		t.Errorf("the root has %s (%v), want nothing but binary and state", got, err)
	}
}
