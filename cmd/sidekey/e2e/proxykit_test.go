package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// arrived is what the application behind a proxy got, as it tells the client.
type arrived struct {
	Method, URI, Host string
	Header            http.Header
	Length            int
	Sum               string // SHA-256 of the body
}

// newApplication runs an application that answers with what has arrived, and counts.
func newApplication(t *testing.T) (addr string, served *atomic.Int64) {
	t.Helper()
	served = new(atomic.Int64)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("App-Subject", r.Header.Get("X-Auth-Subject")) // for HEAD, which has no body
		w.Header().Set("App-Method", r.Method)
		_ = json.NewEncoder(w).Encode(arrived{r.Method, r.RequestURI, r.Host, r.Header, len(body), fmt.Sprintf("%x", sha256.Sum256(body))})
	}))
	t.Cleanup(app.Close)
	return app.Listener.Addr().String(), served
}

// relay stands between a proxy and the agent: it counts the connections, and can be down.
type relay struct {
	t        *testing.T
	addr, to string
	accepted atomic.Int64

	mu    sync.Mutex
	ln    net.Listener
	conns map[net.Conn]bool
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	r := &relay{t: t, to: to, conns: map[net.Conn]bool{}}
	r.addr = "127.0.0.1:" + freePort(t)
	r.up()
	t.Cleanup(r.down)
	return r
}

func (r *relay) up() {
	r.t.Helper()
	ln, err := net.Listen("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	r.ln = ln
	r.mu.Unlock()
	go func() {
		for {
			from, err := ln.Accept()
			if err != nil {
				return // it is down
			}
			r.accepted.Add(1)
			go r.carry(from)
		}
	}()
}

func (r *relay) carry(from net.Conn) {
	defer from.Close()
	to, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	defer to.Close()
	r.mu.Lock()
	r.conns[from] = true
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.conns, from)
		r.mu.Unlock()
	}()
	go func() {
		_, _ = io.Copy(to, from) // either end may go at any time
		_ = to.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(from, to)
}

// down refuses connections and ends those that are there.
func (r *relay) down() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ln.Close()
	for c := range r.conns {
		c.Close()
	}
}

// door is an application behind a proxy that asks an agent.
type door struct {
	*cluster
	relay  *relay // between proxy and agent
	addr   string // of the proxy; its name is app.test
	served *atomic.Int64
	client *http.Client // over HTTP/1.1, with connections of its own
}

// doorHost is the proxy's name, as clients call it.
const doorHost = "app.test"

// newDoor runs sidekey with more lines for [agent], and a relay to it, or to another address that it listens on. The proxy is yet
// to be started.
func newDoor(t *testing.T, agent, to string) *door {
	t.Helper()
	d := &door{cluster: dev(t, "", "[agent]\n"+agent)}
	if to == "" {
		to = strings.TrimPrefix(d.Agent, "http://")
	}
	d.relay = newRelay(t, to)
	d.addr = "127.0.0.1:" + freePort(t)
	d.client = d.newClient()
	return d
}

// newClient gives a client with connections of its own.
func (d *door) newClient() *http.Client {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", d.addr)
		},
		TLSClientConfig:       &tls.Config{InsecureSkipVerify: true, ServerName: doorHost}, // made by this test
		ResponseHeaderTimeout: 30 * time.Second,
		DisableCompression:    true,
	}
	d.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// shipped reads a file of deploy/proxies and puts this test's addresses in place of the examples: each must be there.
func shipped(t *testing.T, file string, here ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../../deploy/proxies", file))
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for i := 0; i < len(here); i += 2 {
		if !strings.Contains(text, here[i]) {
			t.Fatalf("%s does not have %q, which this test replaces", file, here[i])
		}
		text = strings.ReplaceAll(text, here[i], here[i+1])
	}
	return text
}

// writeFiles puts files into a new folder, with a certificate, cert.pem and key.pem, and both in one, both.pem.
func writeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	certificate(t, dir)
	both := ""
	for _, name := range []string{"cert.pem", "key.pem"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		both += string(b)
	}
	files["both.pem"] = both
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.ReplaceAll(text, "DIR", dir)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// run starts the proxy and waits until it takes connections.
func (d *door) run(cmd *exec.Cmd) {
	d.t.Helper()
	p := start(d.t, cmd)
	await(d.t, filepath.Base(cmd.Path), func() error {
		if p.over() {
			d.t.Fatalf("%s has ended", cmd.Path)
		}
		c, err := net.Dial("tcp", d.addr)
		if err == nil {
			c.Close()
		}
		return err
	})
}

// doorAnswer is a proxy's answer to a client.
type doorAnswer struct {
	*http.Response
	body string
	app  *arrived // what the application got; nil: the answer is not its own
}

// send sends a request through the proxy.
func (d *door) send(t *testing.T, method, target string, header http.Header, body io.Reader) doorAnswer {
	t.Helper()
	a, err := d.try(t.Context(), d.client, method, target, header, body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	return a
}

func (d *door) try(ctx context.Context, client *http.Client, method, target string, header http.Header, body io.Reader) (doorAnswer, error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+doorHost+target, body)
	if err != nil {
		return doorAnswer{}, err
	}
	for name, values := range header {
		req.Header[name] = values // as it is spelt
	}
	res, err := client.Do(req)
	if err != nil {
		return doorAnswer{}, err
	}
	return readAnswer(res)
}

func readAnswer(res *http.Response) (doorAnswer, error) {
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return doorAnswer{}, err
	}
	a := doorAnswer{Response: res, body: string(body)}
	if strings.HasPrefix(a.body, `{"Method":`) {
		a.app = new(arrived)
		err = json.Unmarshal(body, a.app)
	}
	return a, err
}

// raw sends lines as they are, over HTTP/1.1, and gives the answer.
func (d *door) raw(t *testing.T, lines ...string) doorAnswer {
	t.Helper()
	conn, err := tls.Dial("tcp", d.addr, &tls.Config{InsecureSkipVerify: true, ServerName: doorHost, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, strings.Join(append(lines, "Connection: close", "", ""), "\r\n")); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(lines[0], " ")
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return doorAnswer{Response: &http.Response{StatusCode: http.StatusBadRequest}} // refused without a word
	}
	if err != nil {
		t.Fatalf("%q: %v", lines, err)
	}
	a, err := readAnswer(res)
	if err != nil {
		t.Fatalf("%q: %v", lines, err)
	}
	return a
}
