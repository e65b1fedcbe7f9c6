package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// host is an issuer with its bus, and agents, as processes of their own.
type host struct {
	t      *testing.T
	dir    string
	Issuer string // URL
	Bus    string // address
	env    []string
	issuer *process
}

// newHost starts an issuer on free ports, its environment being this one, what is given, and how a test wants it.
func newHost(t *testing.T, env ...string) *host {
	t.Helper()
	h := &host{t: t, dir: t.TempDir(), Bus: "127.0.0.1:" + freePort(t)}
	listen := "127.0.0.1:" + freePort(t)
	h.Issuer = "http://" + listen
	h.env = append(os.Environ(), "SIDEKEY_ISSUER_LISTEN="+listen, "SIDEKEY_BUS_LISTEN="+h.Bus, "SIDEKEY_DATA_DIR="+filepath.Join(h.dir, "issuer"),
		"SIDEKEY_KEYS_PUBLISH_AHEAD=0s", "SIDEKEY_ISSUER_LOGIN_PER_MINUTE=0")
	h.startIssuer(env...)
	return h
}

func (h *host) startIssuer(env ...string) {
	h.t.Helper()
	cmd := exec.Command(binary, "issuer")
	cmd.Env = append(h.env[:len(h.env):len(h.env)], env...)
	h.issuer = start(h.t, cmd)
	h.ready(h.issuer, http.DefaultClient, h.Issuer)
}

// ready waits for a process to say that it is.
func (h *host) ready(p *process, client *http.Client, url string) {
	h.t.Helper()
	await(h.t, url+" to be ready", func() error {
		if p.over() {
			h.t.Fatalf("%s has ended", strings.Join(p.Args, " "))
		}
		return expectStatus(http.StatusOK)(client.Get(url + "/readyz"))
	})
}

// sidekey runs a command of an operator on the issuer's host, and gives its output.
func (h *host) sidekey(args ...string) string {
	h.t.Helper()
	out, err := h.command(args...)
	if err != nil {
		h.t.Fatalf("sidekey %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (h *host) command(args ...string) (string, error) {
	cmd := exec.Command(binary, args...)
	cmd.Env = h.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// join gives the folder of an agent that has a join token and has not joined yet, and the token's file.
func (h *host) join(name string) (dir, token string) {
	h.t.Helper()
	dir = filepath.Join(h.dir, name)
	token = dir + ".join"
	if err := os.WriteFile(token, []byte(h.sidekey("agents", "add", name)), 0o600); err != nil {
		h.t.Fatal(err)
	}
	return dir, token
}

// agentCommand is an agent's command line, not started.
func (h *host) agentCommand(dir string, args ...string) *exec.Cmd {
	cmd := exec.Command(binary, append([]string{"agent"}, args...)...)
	cmd.Env = append(os.Environ(), "SIDEKEY_DATA_DIR="+dir, "SIDEKEY_AGENT_DATA_DIR="+dir, "SIDEKEY_AGENT_RUNTIME_DIR="+h.runtimeDir(dir))
	return cmd
}

// runtimeDir is a folder in memory for an agent's lease.
func (h *host) runtimeDir(dir string) string {
	h.t.Helper()
	path := filepath.Join("/dev/shm", "sidekey-e2e-"+filepath.Base(h.dir)+"-"+filepath.Base(filepath.Dir(h.dir))+"-"+filepath.Base(dir))
	if err := os.MkdirAll(path, 0o700); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { os.RemoveAll(path) })
	return path
}

// agent starts an agent that joins, and gives its URL once it is ready.
func (h *host) agent(name string, env ...string) (*process, string) {
	h.t.Helper()
	dir, token := h.join(name)
	listen := "127.0.0.1:" + freePort(h.t)
	cmd := h.agentCommand(dir, "--join", token, "--agent-listen", listen)
	cmd.Env = append(cmd.Env, env...)
	p := start(h.t, cmd)
	h.ready(p, http.DefaultClient, "http://"+listen)
	return p, "http://" + listen
}

// login makes a user of that name where there is none, and gives a token of it.
func (h *host) login(user string) string {
	h.t.Helper()
	if out, err := h.command("users", "add", user, "--password", "wonderland"); err != nil && !strings.Contains(out, "exists") {
		h.t.Fatalf("adding a user: %v: %s", err, out)
	}
	res, body := do(h.t, http.MethodPost, h.Issuer+"/api/token/", http.Header{"Content-Type": {"application/json"}},
		`{"username":"`+user+`","password":"wonderland"}`)
	var got struct{ Access string }
	if err := json.Unmarshal([]byte(body), &got); err != nil || res.StatusCode != http.StatusOK {
		h.t.Fatalf("logging in: got %d %s", res.StatusCode, body)
	}
	return got.Access
}

// verify asks an agent about a token.
func (h *host) verify(client *http.Client, url, token string) (int, error) {
	req, err := http.NewRequest(http.MethodGet, url+"/v1/verify", nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	return res.StatusCode, res.Body.Close()
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
