package agent_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/sys/unix"
)

// clientEnv, when set, makes this binary the load generator of BenchmarkHTTPVerifyCached: a
// process of its own, so that the other's CPU time is the server's alone.
const clientEnv = "SIDEKEY_AGENT_BENCH_CLIENT"

func TestMain(m *testing.M) {
	if args := os.Getenv(clientEnv); args != "" {
		if err := generate(strings.Fields(args)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// connections are kept alive by the generator, each with one request under way.
const connections = 8

// generate sends the request on standard input n times on each of several connections, and reads
// every answer. args are network, address, n.
func generate(args []string) error {
	request, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	failed := make(chan error, connections)
	if args[0] == "grpc" {
		return repeatCheck(args[1], request, n)
	}
	for range connections {
		go func() { failed <- repeat(args[0], args[1], request, n) }()
	}
	for range connections {
		if err := <-failed; err != nil {
			return err
		}
	}
	return nil
}

// repeat sends a request n times on one connection. The first answer is read as HTTP; the others
// have its length.
func repeat(network, address string, request []byte, n int) error {
	c, err := net.Dial(network, address)
	if err != nil {
		return err
	}
	defer c.Close()
	counted := &counter{r: c}
	length := 0
	for range n {
		if _, err := c.Write(request); err != nil {
			return err
		}
		if length == 0 {
			resp, err := http.ReadResponse(bufio.NewReader(counted), nil)
			if err != nil {
				return err
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
				return fmt.Errorf("answer %d (%v)", resp.StatusCode, err)
			}
			length = counted.n
			continue
		}
		if _, err := io.CopyN(io.Discard, c, int64(length)); err != nil {
			return err
		}
	}
	return nil
}

type counter struct {
	r io.Reader
	n int
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

// cpu is the CPU time that this process has used.
func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkHTTPVerifyCached measures the server's CPU time for POST /v1/verify with a cached
// token. The floor is the same server with a handler that sets three headers and nothing more,
// given the same requests by the same client.
func BenchmarkHTTPVerifyCached(b *testing.B) {
	for _, network := range []string{"tcp", "unix"} {
		b.Run(network, func(b *testing.B) {
			w := newWorld(b)
			token := w.token()
			body := `{"token":"` + token + `"}`
			request := fmt.Sprintf("POST /v1/verify HTTP/1.1\r\nHost: 127.0.0.1:7461\r\nUser-Agent: bench\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			load := func(address string) func(int) time.Duration {
				return func(n int) time.Duration { return served(b, network, address, request, n) }
			}
			n := max(b.N, 20_000) // fewer drown in the starting of the client
			compare(b, n, load(listenAt(b, emptyServer(w), network)), load(listenAt(b, w.agent.Server(), network)))
		})
	}
}

// BenchmarkHTTPForwardAuth measures the server's CPU time for /v1/auth/forward with a cached token and 200 rules, of which
// the one that decides asks for a scope. The floor is as BenchmarkHTTPVerifyCached's, with the same requests.
func BenchmarkHTTPForwardAuth(b *testing.B) {
	for _, network := range []string{"tcp", "unix"} {
		b.Run(network, func(b *testing.B) {
			w := newWorld(b)
			var text strings.Builder
			for n := range 200 {
				fmt.Fprintf(&text, "[[rules]]\nname='%d'\nhosts=['app.example']\nmethods=['GET']\npaths=['/api/v%d/{id}/**']\nrequire={scopes=['read']}\n", n, n)
			}
			w.rules(text.String())
			request := "GET /v1/auth/forward HTTP/1.1\r\nHost: a\r\n" + strings.Join(proxied("GET app.example/api/v150/7/items?page=2", "User-Agent: bench", "Authorization: Bearer "+w.token()), "\r\n") + "\r\n\r\n"
			load := func(address string) func(int) time.Duration {
				return func(n int) time.Duration { return served(b, network, address, request, n) }
			}
			compare(b, max(b.N, 20_000), load(listenAt(b, emptyServer(w), network)), load(listenAt(b, w.agent.Server(), network)))
		})
	}
}

// emptyServer is the agent's server with a handler that sets three headers and nothing more.
func emptyServer(w *world) *fasthttp.Server {
	empty := w.agent.Server()
	empty.Handler = func(ctx *fasthttp.RequestCtx) {
		ctx.Response.Header.SetContentType("application/json")
		ctx.Response.Header.Set("Cache-Control", "no-store")
		ctx.Response.Header.Set("X-Content-Type-Options", "nosniff")
	}
	return empty
}

// served is the CPU time of this process while another one sends a request n times.
func served(b *testing.B, network, address, request string, n int) time.Duration {
	per := n/connections + 1
	start := cpu(b)
	client := exec.Command(os.Args[0])
	client.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d", clientEnv, network, address, per))
	client.Stdin = strings.NewReader(request)
	if out, err := client.CombinedOutput(); err != nil {
		b.Fatalf("client: %v: %s", err, out)
	}
	return (cpu(b) - start) * time.Duration(n) / time.Duration(per*connections)
}

// listenAt serves until the benchmark ends, and gives the address.
func listenAt(b *testing.B, srv *fasthttp.Server, network string) string {
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = filepath.Join(b.TempDir(), "agent.sock")
	}
	ln, err := net.Listen(network, addr)
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln) })
	b.Cleanup(func() { _ = srv.Shutdown(); wg.Wait() })
	return ln.Addr().String()
}
