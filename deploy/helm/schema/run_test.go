package schema

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
)

// buildDir is where the binary is, until all tests have ended; "": none was built.
var buildDir string

func TestMain(m *testing.M) {
	status := m.Run()
	if buildDir != "" {
		os.RemoveAll(buildDir)
	}
	os.Exit(status)
}

var built = sync.OnceValues(func() (path string, err error) {
	if buildDir, err = os.MkdirTemp("", "sidekey-chart-"); err != nil {
		return "", err
	}
	path = filepath.Join(buildDir, "sidekey")
	build := exec.Command("go", "build", "-o", path, "./cmd/sidekey")
	build.Dir = "../../.."
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building: %w\n%s", err, out)
	}
	return path, nil
})

// binary is a sidekey of this tree.
func binary(t *testing.T) string {
	t.Helper()
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// environ are a container's variables as its process has them, with what the API server fills in.
func environ(c core.Container, filled map[string]string) (env []string) {
	for _, v := range c.Env {
		value := cmp.Or(v.Value, filled[v.Name])
		for name, text := range filled {
			value = strings.ReplaceAll(value, "$("+name+")", text)
		}
		env = append(env, v.Name+"="+value)
	}
	return env
}

// TestCommandsReachTheIssuer runs what README.md has kubectl exec run, with the variables that such a command has: it goes to the
// admin socket, where the issuer of that configuration has it.
func TestCommandsReachTheIssuer(t *testing.T) {
	page, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := regexp.MustCompile(`kubectl exec (?:-it )?sidekey-issuer-0 -- /usr/local/bin/sidekey ([a-z][^>|\n]*)`).FindAllStringSubmatch(string(page), -1)
	if len(shown) < 4 {
		t.Fatalf("found %d commands in README.md, want all", len(shown))
	}
	for name, values := range sets {
		docs, err := render(t, values)
		if err != nil {
			t.Fatal(err)
		}
		all := decode(t, docs)
		issuer := all["StatefulSet sk-issuer"].(*apps.StatefulSet).Spec.Template.Spec.Containers[0]
		const mounted = "/etc/sidekey/issuer.toml"
		if !slices.ContainsFunc(issuer.VolumeMounts, func(m core.VolumeMount) bool { return m.MountPath == mounted && m.SubPath == "issuer.toml" }) || !slices.Contains(issuer.Args, mounted) {
			t.Errorf("%s: the issuer does not read %s: %+v", name, mounted, issuer)
		}
		file := filepath.Join(t.TempDir(), "issuer.toml")
		if err := os.WriteFile(file, []byte(all["ConfigMap sk-config"].(*core.ConfigMap).Data["issuer.toml"]), 0o600); err != nil {
			t.Fatal(err)
		}
		env := environ(issuer, map[string]string{"POD_NAME": "sk-issuer-0"})
		for n := range env {
			env[n] = strings.ReplaceAll(env[n], mounted, file)
		}
		for _, m := range shown {
			args := strings.Fields(strings.ReplaceAll(m[1], `"`, ""))
			cmd := exec.Command(binary(t), args...)
			cmd.Env = env
			if slices.Equal(args, []string{"users", "add", "alice"}) { // asks a person
				cmd.Args, cmd.Stdin = append(cmd.Args, "--password", "-"), strings.NewReader("correct horse battery")
			}
			out, err := cmd.CombinedOutput()
			if want := "connecting to the issuer at unix:/var/lib/sidekey/data/admin.sock: no such file"; err == nil || !strings.Contains(string(out), want) {
				t.Errorf("%s: sidekey %s: got %v, %s, want %q", name, m[1], err, out, want)
			}
		}
	}
}

// TestHostCommandsReachTheIssuer runs what deploy/README.md has an operator run on a host with systemd: with the configuration of an
// issuer that others reach, they go to its admin socket.
func TestHostCommandsReachTheIssuer(t *testing.T) {
	page, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	const named = "/etc/sidekey/config.toml"
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte("[issuer]\nlisten = \"0.0.0.0:7460\"\nurl = \"https://id.test\"\ntls_cert = \"c\"\ntls_key = \"k\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	shown := regexp.MustCompile("sudo -u sidekey ([^>`\n]*)").FindAllStringSubmatch(string(page), -1)
	if len(shown) < 4 {
		t.Fatalf("found %d commands in deploy/README.md, want all", len(shown))
	}
	for _, m := range shown {
		before, after, ok := strings.Cut(" "+m[1], " sidekey ")
		if !ok || !strings.Contains(m[1], named) {
			t.Errorf("%s: it names no configuration, or is no command", m[1])
			continue
		}
		cmd := exec.Command(binary(t), strings.Fields(strings.ReplaceAll(after, named, file))...)
		cmd.Env = strings.Fields(strings.ReplaceAll(before, named, file))
		switch {
		case strings.HasPrefix(after, "users add"): // asks a person
			cmd.Args, cmd.Stdin = append(cmd.Args, "--password", "-"), strings.NewReader("correct horse battery")
		case strings.HasPrefix(after, "bus export"):
			continue // asks nobody: it reads the issuer's files
		}
		out, err := cmd.CombinedOutput()
		if want := "connecting to the issuer at unix:/var/lib/sidekey/admin.sock: no such file"; err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: got %v, %s, want %q", m[1], err, out, want)
		}
	}
}

// TestSidecarStarts runs the sidecar as its pod has it, over folders as Kubernetes makes them: a claim that its group may write, an
// emptyDir in memory that everybody may. It joins, and starts again when its token has been taken out of the Secret.
func TestSidecarStarts(t *testing.T) {
	runtime, err := os.MkdirTemp("/dev/shm", "sidekey-chart-")
	if err != nil {
		t.Skipf("no folder in memory here: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(runtime) })
	docs, err := render(t, "")
	if err != nil {
		t.Fatal(err)
	}
	side := decode(t, docs)["Pod app"].(*core.Pod).Spec.InitContainers[0]
	dir := t.TempDir()
	folders := map[string]string{"sidekey-state": filepath.Join(dir, "state"), "sidekey-runtime": runtime, "sidekey-join": filepath.Join(dir, "join")}
	for volume, mode := range map[string]os.FileMode{"sidekey-state": 0o775 | os.ModeSetgid, "sidekey-runtime": 0o777 | os.ModeSetgid, "sidekey-join": 0o755} {
		if err := errors.Join(os.MkdirAll(folders[volume], 0o700), os.Chmod(folders[volume], mode)); err != nil {
			t.Fatal(err)
		}
	}
	agent, ops := freeAddr(t), freeAddr(t)
	here := []string{"127.0.0.1:7461", agent, "0.0.0.0:7469", ops}
	mounts := slices.SortedFunc(slices.Values(side.VolumeMounts), func(a, b core.VolumeMount) int { return len(b.MountPath) - len(a.MountPath) })
	for _, m := range mounts { // the longest first: one path begins another
		here = append(here, m.MountPath, folders[m.Name])
	}
	moved := strings.NewReplacer(here...)
	var args, env []string
	for _, a := range side.Args {
		args = append(args, moved.Replace(a))
	}
	for _, v := range environ(side, nil) {
		env = append(env, moved.Replace(v))
	}

	issuer := freeAddr(t)
	at := []string{"SIDEKEY_DATA_DIR=" + filepath.Join(dir, "issuer"), "SIDEKEY_ISSUER_LISTEN=" + issuer, "SIDEKEY_BUS_LISTEN=" + freeAddr(t)}
	run(t, at, "issuer").await(t, issuer)
	join := exec.Command(binary(t), "agents", "add", "app")
	join.Env = at
	token, err := join.Output()
	if err != nil {
		t.Fatalf("agents add: %v", err)
	}
	file := filepath.Join(folders["sidekey-join"], "sidekey.join")
	for _, text := range []string{string(token), ""} {
		if err := os.WriteFile(file, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		p := run(t, env, args...)
		p.await(t, ops)
		p.end()
	}
}

// process is a sidekey that runs until the test ends.
type process struct {
	*exec.Cmd
	said  bytes.Buffer
	ended chan struct{}
}

func run(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(binary(t), args...), ended: make(chan struct{})}
	p.Env, p.Stdout, p.Stderr = env, &p.said, &p.said
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		_ = p.Wait() // a test looks at what it said
	}()
	t.Cleanup(p.end)
	return p
}

func (p *process) end() {
	_ = p.Process.Signal(os.Interrupt) // it may have ended
	<-p.ended
}

// await waits until a process is ready.
func (p *process) await(t *testing.T, addr string) {
	t.Helper()
	for late := time.After(time.Minute); ; {
		if resp, err := http.Get("http://" + addr + "/readyz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-p.ended:
			t.Fatalf("%v ended:\n%s", p.Args, &p.said)
		case <-late:
			p.end()
			t.Fatalf("%v was not ready:\n%s", p.Args, &p.said)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// freeAddr is an address at which nobody listens.
func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}
