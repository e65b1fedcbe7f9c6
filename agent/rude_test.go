package agent_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sidekey/sidekey/agent"
)

// TestRudeClients: clients that hold connections and say nothing, promise bodies without end, send fields without end, or
// go away in the middle of a check take nothing from the others, and leave nothing behind: goroutines, descriptors and
// memory are as before. SIDEKEY_LONG=1 does it with 10,000 connections.
func TestRudeClients(t *testing.T) {
	idle := 200
	if os.Getenv("SIDEKEY_LONG") == "1" {
		idle = 10_000
	}
	raiseFiles(t, uint64(idle+500))
	before := measure()
	t.Run("while they are there", func(t *testing.T) { beRude(t, idle) })
	var after usage
	for deadline := time.Now().Add(30 * time.Second); ; {
		after = measure()
		if after.within(before) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind: got %+v, want about %+v", after, before)
		}
		<-time.After(50 * time.Millisecond)
	}
	t.Logf("%d idle connections: before %+v, after %+v", idle, before, after)
}

func beRude(t *testing.T, idle int) {
	w := newWorld(t, func(c *agent.Config) { c.MaxConnections = idle + 50 })
	h := w.listen("tcp")
	token := w.token()
	served := func(while string) {
		t.Helper()
		start := time.Now()
		got := h.do("GET", "/v1/auth/forward", "", forwarded("GET", "Authorization: Bearer "+token)...)
		if took := time.Since(start); got.StatusCode != 200 || took > 5*time.Second {
			t.Errorf("another caller, with %s: got %d after %s", while, got.StatusCode, took)
		}
	}
	dial := func(sends string) net.Conn {
		t.Helper()
		c, err := h.dial()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, sends) // it may have been refused already
		return c
	}
	served("nobody there")
	first := dial("")
	defer first.Close()
	holder(t, first.RemoteAddr().String(), idle)
	served(fmt.Sprintf("%d idle connections", idle))
	for _, c := range []struct {
		name, head string
		body       string // sent again and again
		status     int
	}{
		{"a body of 1 GiB", "POST /v1/verify HTTP/1.1\r\nHost: a\r\n" + asJSON + "\r\nContent-Length: 1073741824\r\n\r\n", strings.Repeat("a", 64<<10), 413},
		{"an endless body", "POST /v1/check HTTP/1.1\r\nHost: a\r\n" + asJSON + "\r\nTransfer-Encoding: chunked\r\n\r\n", "8000\r\n" + strings.Repeat("a", 32<<10) + "\r\n", 413},
		{"endless fields", "GET /v1/auth/forward HTTP/1.1\r\nHost: a\r\n", "X-A: " + strings.Repeat("a", 8<<10) + "\r\n", 431},
		{"an endless field", "GET /v1/auth/nginx HTTP/1.1\r\nHost: a\r\nX-A: ", strings.Repeat("a", 64<<10), 431},
		{"an endless request line", "GET /v1/auth/envoy/", strings.Repeat("a", 64<<10), 431},
	} {
		sent, status := flood(dial(c.head), c.body)
		if status != c.status && status != 0 || sent > 64<<20 {
			t.Errorf("%s: got %d after %d bytes, want %d", c.name, status, sent, c.status)
		}
		served(c.name)
	}
	for range 300 { // gone before, while or after it is answered
		_ = dial("GET /v1/auth/forward HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + token + "\r\n" + strings.Join(forwarded("GET"), "\r\n") + "\r\n\r\n").Close()
	}
	served("clients gone")
	if got := measure(); got.Memory > 1<<30 {
		t.Errorf("memory while they are there: %+v", got)
	}
}

// holder opens idle connections from a process of its own, whose descriptors are not counted here, until the test ends.
func holder(t *testing.T, addr string, n int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestHoldConnections$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("RUDE_CLIENTS=%s %d", addr, n))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close() // it ends
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "held\n" {
		t.Fatalf("opening %d connections: got %q, %v", n, line, err)
	}
}

// TestHoldConnections is the process of holder.
func TestHoldConnections(t *testing.T) {
	var addr string
	var n int
	if _, err := fmt.Sscan(os.Getenv("RUDE_CLIENTS"), &addr, &n); err != nil {
		t.Skip("it is run by TestRudeClients")
	}
	raiseFiles(t, uint64(n+100))
	slow := []string{"", "GET /v1/auth/forward HTTP/1.1\r\nHost: a\r\nX-Forw", "POST /v1/check HTTP/1.1\r\nHost: a\r\n" + asJSON + "\r\nContent-Length: 60000\r\n\r\n{"}
	for i := range n {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, slow[i%len(slow)]) // the server's limits may have ended it already
	}
	fmt.Println("held")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// flood sends body again and again until the peer has had enough or 256 MiB are sent, and gives what was sent and the status
// of the answer, 0: the connection was ended without one, or the answer was lost with it.
func flood(c net.Conn, body string) (sent int, status int) {
	defer c.Close()
	answer := make(chan int, 1)
	go func() {
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			answer <- 0
			return
		}
		answer <- resp.StatusCode
	}()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	for sent < 256<<20 {
		n, err := io.WriteString(c, body)
		if sent += n; err != nil {
			break
		}
	}
	return sent, <-answer
}

// usage is what the process holds.
type usage struct {
	Goroutines, Files int
	Memory            uint64 // bytes of the heap in use
}

func measure() usage {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	files, _ := os.ReadDir("/proc/self/fd") // where there is none, nothing is counted
	return usage{runtime.NumGoroutine(), len(files), m.HeapAlloc}
}

// within allows for what other tests of the process and the runtime itself keep.
func (u usage) within(before usage) bool {
	return u.Goroutines <= before.Goroutines+20 && u.Files <= before.Files+20 && u.Memory <= before.Memory+32<<20
}

// raiseFiles lets the process have that many files until the test ends.
func raiseFiles(t *testing.T, n uint64) {
	t.Helper()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if old.Cur >= n {
		return
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: n, Max: max(n, old.Max)}); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%d files are more than this process may have: %v", n, err)
		}
		t.Skipf("%d files are more than this process may have: %v", n, err)
	}
	t.Cleanup(func() { _ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old) })
}
