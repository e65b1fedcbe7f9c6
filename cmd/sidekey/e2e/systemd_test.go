package e2e

import (
	"context"
	"errors"
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

// notified is systemd's end of a service's NOTIFY_SOCKET.
type notified struct {
	conn *net.UnixConn
	env  []string

	mu   sync.Mutex
	said []string
	at   []time.Time
}

func listenNotify(t *testing.T, watchdog time.Duration) *notified {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	n := &notified{conn: conn, env: []string{"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=" + itoa(watchdog.Microseconds())}}
	var reading sync.WaitGroup
	reading.Go(func() {
		buf := make([]byte, 4096)
		for {
			size, _, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			n.mu.Lock()
			n.said, n.at = append(n.said, string(buf[:size])), append(n.at, time.Now())
			n.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		conn.Close()
		reading.Wait()
	})
	return n
}

// count is how often a state that begins so was sent since then, and when last.
func (n *notified) count(state string, since time.Time) (count int, last time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, s := range n.said {
		if strings.HasPrefix(s, state) && n.at[i].After(since) {
			count, last = count+1, n.at[i]
		}
	}
	return count, last
}

func (n *notified) await(t *testing.T, state string, times int, since time.Time) {
	t.Helper()
	await(t, state+" from the service", func() error {
		if got, _ := n.count(state, since); got < times {
			return errors.New("not yet")
		}
		return nil
	})
}

// TestNotify runs issuer and agent under a NOTIFY_SOCKET: each says READY, feeds the watchdog in its time, does not while
// it is stopped, does again after, reloads, and says STOPPING before it ends. The agent feeds it without a bus too.
func TestNotify(t *testing.T) {
	need(t)
	const limit = 600 * time.Millisecond
	atIssuer, atAgent := listenNotify(t, limit), listenNotify(t, limit)
	h := newHost(t, atIssuer.env...)
	rules := filepath.Join(h.dir, "rules.toml")
	if err := os.WriteFile(rules, []byte("[[rules]]\nname = \"all\"\npaths = [\"/**\"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	agent, _ := h.agent("one", append(atAgent.env, "SIDEKEY_AGENT_RULES="+rules)...)
	for _, s := range []struct {
		name string
		p    *process
		n    *notified
	}{{"agent", agent, atAgent}, {"issuer", h.issuer, atIssuer}} {
		s.n.await(t, "READY=1", 1, time.Time{})
		from := time.Now()
		s.n.await(t, "WATCHDOG=1", 10, from)
		if took := time.Since(from); took < 10*limit/2-limit || took > 10*limit {
			t.Errorf("%s: ten times in %s, want each half of %s", s.name, took, limit)
		}
		if err := syscall.Kill(s.p.Process.Pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		stopped := time.Now().Add(limit / 2) // what was on its way
		await(t, "three times the limit", func() error {
			if time.Since(stopped) < 3*limit {
				return errors.New("not yet")
			}
			return nil
		})
		if got, _ := s.n.count("WATCHDOG=1", stopped); got != 0 {
			t.Errorf("%s: fed %d times while it was stopped", s.name, got)
		}
		if err := syscall.Kill(s.p.Process.Pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		s.n.await(t, "WATCHDOG=1", 3, time.Now())
	}

	// A reload: RELOADING with the time that Type=notify-reload wants, then READY; without anything to read it goes on.
	before := time.Now()
	_ = syscall.Kill(agent.Process.Pid, syscall.SIGHUP)
	atAgent.await(t, "RELOADING=1\nMONOTONIC_USEC=", 1, before)
	atAgent.await(t, "READY=1", 1, before)
	_ = syscall.Kill(h.issuer.Process.Pid, syscall.SIGHUP)
	atIssuer.await(t, "WATCHDOG=1", 3, time.Now())

	h.issuer.stop()
	if got, _ := atIssuer.count("STOPPING=1", before); got != 1 {
		t.Errorf("the issuer said STOPPING %d times", got)
	}
	atAgent.await(t, "WATCHDOG=1", 10, time.Now()) // without a bus
	agent.stop()
	if got, _ := atAgent.count("STOPPING=1", before); got != 1 {
		t.Errorf("the agent said STOPPING %d times", got)
	}
}

// handSockets has cmd run with listening sockets as systemd hands them over.
func handSockets(t *testing.T, cmd *exec.Cmd, names string, listeners ...net.Listener) *exec.Cmd {
	t.Helper()
	for _, ln := range listeners {
		f, err := ln.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	shell := exec.Command("/bin/sh", append([]string{"-c", `LISTEN_PID=$$ exec "$@"`, "sh"}, cmd.Args...)...)
	shell.Env = append(cmd.Env, "LISTEN_FDS="+itoa(int64(len(listeners))), "LISTEN_FDNAMES="+names)
	shell.ExtraFiles = cmd.ExtraFiles
	return shell
}

// TestSocketActivation: an agent whose sockets are systemd's is stopped and started again and again, and of the requests
// that come all the while, each on a connection of its own, every one is answered 200.
func TestSocketActivation(t *testing.T) {
	need(t)
	h := newHost(t)
	dir, token := h.join("one")
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	path := filepath.Join(h.dir, "agent.sock")
	unix, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	url := "http://" + tcp.Addr().String()
	over := func(network, address string) *http.Client {
		return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		}}}
	}
	clients := []*http.Client{over("tcp", tcp.Addr().String()), over("unix", path)}
	agent := func(args ...string) *process {
		args = append(args, "--agent-listen", tcp.Addr().String()+",unix:"+path)
		p := start(t, handSockets(t, h.agentCommand(dir, args...), "http:unix", tcp, unix))
		h.ready(p, clients[0], url)
		return p
	}
	p := agent("--join", token)
	access := h.login("alice")

	var asking sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	asked := make([]int, len(clients))
	for i, client := range clients {
		asking.Go(func() {
			for ctx.Err() == nil {
				asked[i]++
				if status, err := h.verify(client, url, access); err != nil || status != http.StatusOK {
					t.Errorf("request %d over socket %d: got %d, %v", asked[i], i, status, err)
					return
				}
			}
		})
	}
	for range 5 {
		p.stop()
		p = agent()
	}
	cancel()
	asking.Wait()
	t.Logf("%d requests over TCP and %d over the unix socket, five restarts", asked[0], asked[1])
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the socket is gone: %v", err)
	}

	p.stop()
	wrong := start(t, handSockets(t, h.agentCommand(dir, "--agent-listen", tcp.Addr().String()), "http:unix", tcp, unix))
	<-wrong.ended
	if out := wrong.output(); !strings.Contains(out, "a socket that nothing here listens on: "+path+" (unix)") {
		t.Errorf("a socket too much: got %s", out)
	}
}

// TestSystemCallFilter: what issuer and agent ask the kernel for, from their start over a login, a check, a revocation and a
// key rotation to their end, is in the units' SystemCallFilter.
func TestSystemCallFilter(t *testing.T) {
	need(t, "strace -V", "systemd-analyze --version")
	allowed := map[string]bool{}
	group := func(name string) []string {
		out, err := exec.Command("systemd-analyze", "syscall-filter", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		var calls []string
		for line := range strings.Lines(string(out)) {
			if line = strings.TrimSpace(line); line != name && !strings.HasPrefix(line, "#") {
				calls = append(calls, line)
			}
		}
		return calls
	}
	var visit func(name string, may bool)
	visit = func(name string, may bool) {
		for _, call := range group(name) {
			switch {
			case strings.HasPrefix(call, "@"):
				visit(call, may)
			default:
				allowed[call] = may
			}
		}
	}
	visit("@default", true)
	visit("@system-service", true)
	visit("@privileged", false)
	visit("@resources", false)

	h := newHost(t)
	trace := filepath.Join(h.dir, "trace")
	traced := func(name string, cmd *exec.Cmd) *process {
		strace := exec.Command("strace", append([]string{"-ff", "-qq", "-o", trace + "." + name, "--"}, cmd.Args...)...)
		strace.Env = cmd.Env
		return start(t, strace)
	}
	h.issuer.stop()
	issuer := exec.Command(binary, "issuer")
	issuer.Env = h.env
	ti := traced("issuer", issuer)
	h.ready(ti, http.DefaultClient, h.Issuer)
	dir, token := h.join("one")
	listen := "127.0.0.1:" + freePort(t)
	ta := traced("agent", h.agentCommand(dir, "--join", token, "--agent-listen", listen+",unix:"+filepath.Join(h.dir, "a.sock")))
	h.ready(ta, http.DefaultClient, "http://"+listen)
	access := h.login("alice")
	if status, err := h.verify(http.DefaultClient, "http://"+listen, access); err != nil || status != http.StatusOK {
		t.Fatalf("verifying: got %d, %v", status, err)
	}
	h.sidekey("keys", "rotate", "--wait", "--timeout", "20s")
	h.sidekey("revoke", "--token", access, "--wait", "--timeout", "20s")
	for _, p := range []*process{ta, ti} {
		_ = syscall.Kill(-p.Process.Pid, syscall.SIGTERM) // strace itself waits for what it traces
		<-p.ended
	}
	files, err := filepath.Glob(trace + ".*")
	if err != nil || len(files) < 2 {
		t.Fatalf("no traces: %v", err)
	}
	calls := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if name, rest, ok := strings.Cut(line, "("); ok && !strings.ContainsAny(name, " +-<") {
				// What strace made of itself before the program ran is not the program's.
				calls[name] = true
				if !allowed[name] && !strings.Contains(rest, "ENOSYS") {
					t.Errorf("%s: %s", filepath.Base(file), strings.TrimSpace(line))
					allowed[name] = true // once is enough
				}
			}
		}
	}
	t.Logf("%d different system calls", len(calls))
}
