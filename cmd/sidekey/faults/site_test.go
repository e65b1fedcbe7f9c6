//go:build linux

package faults

import (
	"bytes"
	"cmp"
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
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus/bustest"
)

// patience is how long anything is waited for that must come; far above what a loaded machine needs.
const patience = 90 * time.Second

// siteConfig says what a site is made of.
type siteConfig struct {
	binary    string
	issuers   int  // the first has the bus in it, the others join it; 0: one
	agents    int  // 0: two
	cluster   bool // every issuer has a server of the bus's in it, and they are a cluster; nobody has a proxy
	networked bool // with cluster: every issuer is in a network namespace of its own, see network_test.go
	disk      int  // bytes that the folder of the issuer with the bus has; 0: no bound
	power     bool // every issuer's folder is on a disk of its own, whose power can be cut, see power_test.go
	few       bool // of every client one, and with longer rests: for a machine that has other tests to run
	lease     time.Duration
	grace     time.Duration
}

// site is issuers and agents as processes, each with a folder of its own, and a proxy between each and the bus (but for the
// issuer that has the bus in it).
type site struct {
	testing.TB
	siteConfig
	dir     string
	memory  string // for the agents' leases
	admin   string // token
	issuers []*node
	agents  []*node
	network *network // nil: everybody is on loopback
}

// node is one process of the site, over all its restarts.
type node struct {
	s      *site
	name   string
	url    string
	bus    string // URL of the server in it, "": it has none
	dir    string
	args   []string
	env    []string
	clock  []string       // what its clock is off by, see clock_test.go
	proxy  *bustest.Proxy // nil: it has the bus in it
	port   *port          // nil: loopback
	power  *powered       // nil: its folder is where all others are
	client *http.Client
	mu     sync.Mutex // guards what follows
	cmd    *exec.Cmd
	ended  chan struct{}
	starts int
	out    bytes.Buffer
}

// newSite starts one and waits until everybody is ready.
func newSite(t testing.TB, cfg siteConfig) *site {
	t.Helper()
	cfg.issuers, cfg.agents = cmp.Or(cfg.issuers, 1), cmp.Or(cfg.agents, 2)
	s := &site{TB: t, siteConfig: cfg, dir: t.TempDir()}
	var err error
	if s.memory, err = os.MkdirTemp("/dev/shm", "sidekey-faults-"); err != nil {
		lacking(t, "making a folder in memory for leases: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(s.memory) })
	if cfg.networked {
		s.network = newNetwork(t)
	}
	first := s.issuer("issuer-1", "")
	if cfg.disk > 0 {
		first.mountDisk(cfg.disk)
	}
	busAddress := first.hostBus()
	if cfg.cluster {
		first.hostRoutes()
	}
	first.start()
	first.ready()
	token, err := os.ReadFile(filepath.Join(first.dir, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	s.admin = strings.TrimSpace(string(token))
	var joining sync.WaitGroup
	for n := 1; n < cfg.issuers; n++ {
		i := s.another(fmt.Sprintf("issuer-%d", n+1), busAddress)
		i.args = append(i.args, "--join", s.invite("issuers", i.name))
		joining.Go(i.start)
		if cfg.cluster { // they join one after the other
			joining.Wait()
			i.ready()
		}
	}
	if cfg.cluster {
		s.awaitReplicas()
		busAddress = ""
	}
	for n := range cfg.agents {
		a := s.agent(fmt.Sprintf("agent-%d", n+1), busAddress)
		a.args = append(a.args, "--join", s.invite("agents", a.name))
		joining.Go(a.start)
	}
	joining.Wait()
	for _, n := range s.nodes() {
		n.ready()
		n.args = n.args[:1] // the token is used up
	}
	return s
}

func (s *site) nodes() []*node { return append(append([]*node{}, s.issuers...), s.agents...) }

func (s *site) node(name, verb, busAddress string, env ...string) *node {
	n := &node{s: s, name: name, dir: filepath.Join(s.dir, name), args: []string{verb}, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}}
	n.env = append(os.Environ(), env...)
	if busAddress != "" {
		n.proxy = bustest.NewProxy(s, busAddress)
		n.env = append(n.env, "SIDEKEY_BUS_URLS="+n.proxy.URL())
	}
	s.Cleanup(func() {
		n.end()
		if s.Failed() {
			s.Logf("%s said:\n%s", n.name, tail(n.said(), 3000))
		}
	})
	return n
}

func (s *site) issuer(name, busAddress string) *node {
	listen := freeAddress(s)
	n := s.node(name, "issuer", busAddress, "SIDEKEY_ISSUER_LISTEN="+listen, "SIDEKEY_DATA_DIR="+filepath.Join(s.dir, name),
		"SIDEKEY_KEYS_ALG=ES256", "SIDEKEY_KEYS_PUBLISH_AHEAD=0s", "SIDEKEY_ISSUER_LOGIN_PER_MINUTE=0", "SIDEKEY_ISSUER_REFRESH_PER_MINUTE=0",
		"SIDEKEY_ISSUER_REFRESH_GRACE="+s.grace.String(), "SIDEKEY_ISSUER_PASSWORD_MIN_LENGTH=1", "SIDEKEY_ISSUER_PASSWORD_COMMON=allow",
		"SIDEKEY_ISSUER_AUDIT_MAX_MIB=8", "SIDEKEY_ISSUER_MAX_SESSIONS=100000")
	n.url = "http://" + listen
	first := n.url
	if len(s.issuers) > 0 {
		first = s.issuers[0].url
	}
	n.env = append(n.env, "SIDEKEY_ISSUER_URL="+first)
	if s.networked {
		n.inNetwork()
	}
	if s.siteConfig.power {
		n.plugDisk()
	}
	s.issuers = append(s.issuers, n)
	return n
}

func (s *site) agent(name, busAddress string) *node {
	listen := freeAddress(s)
	n := s.node(name, "agent", busAddress, "SIDEKEY_AGENT_LISTEN="+listen, "SIDEKEY_AGENT_DATA_DIR="+filepath.Join(s.dir, name),
		"SIDEKEY_AGENT_RUNTIME_DIR="+s.memory, "SIDEKEY_AGENT_MAX_STALENESS="+s.lease.String())
	n.url = "http://" + listen
	if s.networked {
		n.env = append(n.env, "SIDEKEY_INSECURE=true")
	}
	s.agents = append(s.agents, n)
	return n
}

// invite makes a join token and gives the path of its file.
func (s *site) invite(role, name string) string {
	s.Helper()
	var answer struct{ Token string }
	status, err := s.issuers[0].call(s.Context(), patience, "POST", "/admin/v1/"+role, s.admin, map[string]string{"name": name}, &answer)
	if err != nil || status/100 != 2 || answer.Token == "" {
		s.Fatalf("inviting %s: got %d %v %+v", name, status, err, answer)
	}
	path := filepath.Join(s.dir, name+".token")
	if err := os.WriteFile(path, []byte(answer.Token), 0o600); err != nil {
		s.Fatal(err)
	}
	return path
}

// start starts the process, which must not run. It may be called from any goroutine.
func (n *node) start() {
	n.mu.Lock()
	defer n.mu.Unlock()
	command := append([]string{n.s.binary}, n.args...)
	if n.port != nil {
		command = append([]string{"ip", "netns", "exec", n.port.space}, command...)
	}
	n.cmd = exec.Command(command[0], command[1:]...)
	n.cmd.Env = append(n.env, n.clock...)
	n.cmd.Stdout, n.cmd.Stderr = n, n
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	n.ended = make(chan struct{})
	n.starts++
	if err := n.cmd.Start(); err != nil {
		n.s.Errorf("starting %s: %v", n.name, err)
		close(n.ended)
		return
	}
	go func(cmd *exec.Cmd, ended chan struct{}) {
		defer close(ended)
		_ = cmd.Wait() // how it ended is not what is tested
	}(n.cmd, n.ended)
}

// processes is how often the process has been started.
func (n *node) processes() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.starts
}

// signal sends one to the process, if it runs.
func (n *node) signal(sig syscall.Signal) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd != nil && n.cmd.Process != nil {
		_ = n.cmd.Process.Signal(sig) // it may be over
	}
}

// kill ends the process as nothing can prepare for, and returns when it is gone.
func (n *node) kill() { n.signal(syscall.SIGKILL); n.gone() }

// drainWithin is how long a process may take to end when it is asked to.
const drainWithin = 30 * time.Second

// end stops the process as an operator does.
func (n *node) end() {
	n.signal(syscall.SIGCONT)
	n.signal(syscall.SIGTERM)
	late := time.AfterFunc(drainWithin, func() {
		n.s.Errorf("%s has not ended %s after SIGTERM", n.name, drainWithin)
		n.signal(syscall.SIGKILL)
	})
	defer late.Stop()
	n.gone()
}

func (n *node) gone() {
	n.mu.Lock()
	ended := n.ended
	n.mu.Unlock()
	if ended != nil {
		<-ended
	}
}

// over tells whether the process has ended.
func (n *node) over() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-n.ended:
		return true
	default:
		return false
	}
}

// Write takes the process's output.
func (n *node) Write(b []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.out.Write(b)
}

func (n *node) said() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.out.String()
}

// ready waits until the process answers that it is.
func (n *node) ready() {
	n.s.Helper()
	if err := n.await(patience); err != nil {
		n.s.Fatalf("%s is not ready: %v\n%s", n.name, err, tail(n.said(), 3000))
	}
}

func (n *node) await(within time.Duration) error {
	deadline, look := time.After(within), time.NewTicker(20*time.Millisecond)
	defer look.Stop()
	for {
		status, err := n.call(context.Background(), time.Second, "GET", "/readyz", "", nil, nil)
		if status == http.StatusOK {
			return nil
		}
		if n.over() {
			return errors.New("the process has ended")
		}
		select {
		case <-look.C:
		case <-deadline:
			return fmt.Errorf("after %s: status %d, %v", within, status, err)
		}
	}
}

// call asks the process; body and answer are JSON, nil: none. status 0: there was no answer.
func (n *node) call(ctx context.Context, within time.Duration, method, path, token string, body, answer any) (status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var in io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return 0, err
		}
		in = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, n.url+path, in)
	if err != nil {
		return 0, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := n.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err
	}
	if answer != nil && len(text) > 0 && json.Unmarshal(text, answer) != nil {
		return res.StatusCode, fmt.Errorf("%s%s: %d %s", n.url, path, res.StatusCode, tail(string(text), 200))
	}
	return res.StatusCode, nil
}

// nextPort is where the search for a free port goes on. It stays below the ports that the system gives to outgoing connections (32768
// and up), so that none of those takes one while its process is down, and gives none twice.
var nextPort = int64(os.Getpid()) * 64

// freeAddress gives an address of loopback that nobody listens on.
func freeAddress(t testing.TB) string {
	t.Helper()
	for range 1000 {
		address := fmt.Sprintf("127.0.0.1:%d", 10000+atomic.AddInt64(&nextPort, 1)%9000)
		if ln, err := net.Listen("tcp", address); err == nil {
			ln.Close()
			return address
		}
	}
	t.Fatal("no port is free")
	return ""
}

func tail(text string, n int) string {
	if len(text) <= n {
		return text
	}
	return "…" + text[len(text)-n:]
}
