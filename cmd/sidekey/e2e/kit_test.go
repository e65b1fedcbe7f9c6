package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// python is Debian's, for which the packages are: another one may come first in PATH.
const python = "/usr/bin/python3"

var binary string // sidekey, built once

// long says that the suites are wanted. The variable is taken away from what they start: sidekey refuses one that it
// does not know.
var long = os.Getenv("SIDEKEY_LONG") == "1"

func TestMain(m *testing.M) {
	os.Unsetenv("SIDEKEY_LONG")
	os.Setenv("SIDEKEY_ISSUER_PASSWORD_MIN_LENGTH", "1") // the suites' users have simple passwords
	os.Setenv("SIDEKEY_ISSUER_PASSWORD_COMMON", "allow")
	os.Exit(func() int {
		if long {
			dir, err := os.MkdirTemp("", "sidekey-e2e-")
			if err == nil {
				defer os.RemoveAll(dir)
				binary = filepath.Join(dir, "sidekey")
				build := exec.Command("go", "build", "-o", binary, "..")
				build.Stderr = os.Stderr
				err = build.Run()
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, "building sidekey for the end-to-end suites:", err)
				return 1
			}
		}
		return m.Run()
	}())
}

// need skips the test unless the long suites are wanted and every check succeeds: each is a command line whose exit
// status 0 says that a component is there. Where CI is set, a missing component is a failure.
func need(t *testing.T, checks ...string) {
	t.Helper()
	if !long {
		t.Skip("set SIDEKEY_LONG=1 to run the end-to-end suites")
	}
	for _, check := range checks {
		if out, err := exec.Command("bash", "-c", check).CombinedOutput(); err != nil {
			missing := fmt.Sprintf("a component is missing: %s: %v\n%s", check, err, out)
			if os.Getenv("CI") != "" {
				t.Fatal(missing)
			}
			t.Skip(missing)
		}
	}
}

// needPython is need for modules of Debian's Python.
func needPython(t *testing.T, modules ...string) {
	t.Helper()
	need(t, fmt.Sprintf("%s -c 'import %s'", python, strings.Join(modules, ",")))
}

// process is a program that the suite started, and ends.
type process struct {
	*exec.Cmd
	ended chan struct{} // closed once it has
	mu    sync.Mutex
	out   bytes.Buffer
}

// start runs a program in a process group of its own until the test ends. Its output is shown if the test fails.
func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{Cmd: cmd, ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p, p
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Setpgid = true
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", cmd.Path, err)
	}
	go func() {
		defer close(p.ended)
		_ = cmd.Wait() // how it ended is not what is tested
	}()
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			out := p.output()
			t.Logf("%s said at last:\n%s", filepath.Base(cmd.Path), out[max(0, len(out)-4000):])
		}
	})
	return p
}

func (p *process) stop() {
	if p.over() {
		return
	}
	_ = p.Process.Signal(syscall.SIGTERM) // it may be ending by itself, and ends its children
	killed := time.AfterFunc(15*time.Second, func() { _ = syscall.Kill(-p.Process.Pid, syscall.SIGKILL) })
	<-p.ended
	killed.Stop()
}

func (p *process) over() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// Write takes the program's output.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// freePort gives a port of loopback that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String()) // an address of net's own has a port
	return port
}

// await calls ok until it gives nil, for a minute.
func await(t *testing.T, what string, ok func() error) {
	t.Helper()
	awaitFor(t, time.Minute, what, ok)
}

// awaitFor is await with another bound.
func awaitFor(t *testing.T, within time.Duration, what string, ok func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waiting for %s: %v", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// cluster is `sidekey dev`: bus, issuer and agent in one process.
type cluster struct {
	t       *testing.T
	Issuer  string // URL
	Agent   string // URL
	DataDir string
	Config  string // file
	proc    *process
}

// dev starts one on free ports, with more lines for its config.toml: root first has keys outside of tables, tables what
// follows. The user alice, password wonderland, is there, and logins have no limit.
func dev(t *testing.T, root, tables string) *cluster {
	t.Helper()
	dir := t.TempDir()
	c := &cluster{t: t, DataDir: filepath.Join(dir, "data"), Config: filepath.Join(dir, "config.toml")}
	issuer, agent, bus := "127.0.0.1:"+freePort(t), "127.0.0.1:"+freePort(t), "127.0.0.1:"+freePort(t)
	c.Issuer, c.Agent = "http://"+issuer, "http://"+agent
	if err := os.WriteFile(c.Config, []byte(root+"\n"+tables+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "dev", "--config", c.Config, "--data-dir", c.DataDir)
	cmd.Env = append(os.Environ(), "SIDEKEY_ISSUER_LISTEN="+issuer, "SIDEKEY_AGENT_LISTEN="+agent, "SIDEKEY_BUS_LISTEN="+bus)
	c.proc = start(t, cmd)
	await(t, "the agent to be ready", func() error {
		if c.proc.over() {
			t.Fatal("sidekey dev has ended")
		}
		return expectStatus(http.StatusOK)(http.Get(c.Agent + "/readyz"))
	})
	await(t, "the banner, behind which alice is there", func() error {
		if !strings.Contains(c.proc.output(), "Stop with Ctrl-C") {
			return errors.New("not yet")
		}
		return nil
	})
	return c
}

func expectStatus(want int) func(*http.Response, error) error {
	return func(r *http.Response, err error) error {
		if err != nil {
			return err
		}
		defer r.Body.Close()
		if r.StatusCode != want {
			return fmt.Errorf("got status %d, want %d", r.StatusCode, want)
		}
		return nil
	}
}

// sidekey runs a command of the CLI with the admin's rights, and gives its standard output.
func (c *cluster) sidekey(args ...string) string {
	c.t.Helper()
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), "SIDEKEY_ADDR="+c.Issuer, "SIDEKEY_TOKEN_FILE="+filepath.Join(c.DataDir, "admin.token"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		c.t.Fatalf("sidekey %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}

// do sends a request and gives the answer and its body.
func do(t *testing.T, method, url string, header http.Header, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		req.Header[http.CanonicalHeaderKey(name)] = values
	}
	if host := req.Header.Get("Host"); host != "" {
		req.Host = host
	}
	res, err := http.DefaultTransport.RoundTrip(req) // no redirect is followed
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(got)
}

// login gives alice's tokens.
func (c *cluster) login() (access, refresh string) {
	c.t.Helper()
	res, body := do(c.t, http.MethodPost, c.Issuer+"/api/token/", http.Header{"Content-Type": {"application/json"}},
		`{"username":"alice","password":"wonderland"}`)
	var got struct{ Access, Refresh string }
	if err := json.Unmarshal([]byte(body), &got); err != nil || res.StatusCode != http.StatusOK {
		c.t.Fatalf("logging in: got %d %s", res.StatusCode, body)
	}
	return got.Access, got.Refresh
}

// runPython runs a script of testdata and gives its standard output.
func runPython(t *testing.T, script string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), python, append([]string{filepath.Join("testdata", script)}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", script, err, out, stderr.String())
	}
	return string(out)
}
