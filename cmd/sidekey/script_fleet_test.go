package main

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/rogpeppe/go-internal/testscript"
)

// long says that the slow tests are wanted too: SIDEKEY_LONG=1, as .ci/run sets it. The variable is taken away from
// the processes that the tests start, since sidekey refuses a SIDEKEY_ variable that it does not know.
var long = func() bool {
	defer os.Unsetenv("SIDEKEY_LONG")
	return os.Getenv("SIDEKEY_LONG") == "1"
}()

// scriptFleet chooses the addresses of an issuer with its bus and of two agents.
func scriptFleet(ts *testscript.TestScript, neg bool, args []string) {
	refuseNeg(ts, neg)
	scriptFreePort(ts, false, []string{"ISSUER_PORT", "BUS_PORT", "ONE_PORT", "TWO_PORT"})
	at := func(name string) string { return "127.0.0.1:" + ts.Getenv(name+"_PORT") }
	for name, value := range map[string]string{
		"ISSUER": "http://" + at("ISSUER"), "ONE": "http://" + at("ONE"), "TWO": "http://" + at("TWO"),
		"ONE_LISTEN": at("ONE"), "TWO_LISTEN": at("TWO"), "BUS": at("BUS"),
		"SIDEKEY_ISSUER_LISTEN":      at("ISSUER"),
		"SIDEKEY_BUS_LISTEN":         at("BUS"),
		"SIDEKEY_DATA_DIR":           ts.MkAbs("issuer"),
		"SIDEKEY_KEYS_PUBLISH_AHEAD": "0s",
	} {
		ts.Setenv(name, value)
	}
}

// scriptInvite does what an operator does for a new agent.
func scriptInvite(ts *testscript.TestScript, neg bool, args []string) {
	refuseNeg(ts, neg)
	if len(args) != 1 {
		ts.Fatalf("usage: invite NAME")
	}
	ts.Check(ts.Exec("sidekey", "agents", "add", args[0]))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".token"), []byte(ts.ReadFile("stdout")), 0o600))
}

// natsServers are those that run, by their folder.
var natsServers sync.Map

// scriptNATSServer runs what an operator would start in DIR, or stops it; its relative paths are from there.
func scriptNATSServer(ts *testscript.TestScript, neg bool, args []string) {
	refuseNeg(ts, neg)
	if len(args) == 2 && args[0] == "-stop" {
		srv, ok := natsServers.LoadAndDelete(ts.MkAbs(args[1]))
		if !ok {
			ts.Fatalf("no nats-server runs in %s", args[1])
		}
		srv.(*server.Server).Shutdown()
		srv.(*server.Server).WaitForShutdown()
		return
	}
	if len(args) != 1 {
		ts.Fatalf("usage: natsserver [-stop] DIR")
	}
	dir := ts.MkAbs(args[0])
	conf := strings.ReplaceAll(ts.ReadFile(filepath.Join(dir, "nats-server.conf")), `"./`, `"`+dir+`/`)
	path := filepath.Join(dir, "absolute.conf")
	ts.Check(os.WriteFile(path, []byte(conf), 0o600))
	opts, err := server.ProcessConfigFile(path)
	ts.Check(err)
	opts.NoSigs, opts.NoLog = true, true
	srv, err := server.NewServer(opts)
	ts.Check(err)
	srv.Start()
	natsServers.Store(dir, srv)
	ts.Defer(func() {
		natsServers.CompareAndDelete(dir, srv)
		srv.Shutdown()
		srv.WaitForShutdown()
	})
	if !srv.ReadyForConnections(patience) {
		ts.Fatalf("the nats-server is not ready")
	}
}

// proxy passes TCP connections on to an address, until it is cut. It stands for the network between agent and bus.
type proxy struct {
	target string

	mu    sync.Mutex
	up    bool
	conns map[net.Conn]bool

	carried bytes.Buffer // all that went through, both ways
}

// Write implements io.Writer: it keeps what was carried.
func (p *proxy) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.carried.Write(b)
}

// proxies are those of one script, by name, which it keeps under the key.
type (
	proxies    map[string]*proxy
	proxiesKey struct{}
)

func scriptProxy(ts *testscript.TestScript, neg bool, args []string) {
	refuseNeg(ts, neg)
	if len(args) != 2 {
		ts.Fatalf("usage: proxy NAME ADDRESS")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	p := &proxy{target: args[1], up: true, conns: map[net.Conn]bool{}}
	var serving sync.WaitGroup
	serving.Go(func() { p.serve(ln, &serving) })
	ts.Defer(func() {
		ln.Close()
		p.set(false)
		serving.Wait()
	})
	ts.Value(proxiesKey{}).(proxies)[args[0]] = p
	ts.Setenv(args[0], ln.Addr().String())
}

func (p *proxy) serve(ln net.Listener, serving *sync.WaitGroup) {
	for {
		from, err := ln.Accept()
		if err != nil {
			return
		}
		to, err := net.Dial("tcp", p.target)
		if err != nil {
			from.Close()
			continue
		}
		p.mu.Lock()
		if p.up {
			p.conns[from], p.conns[to] = true, true
			serving.Go(func() { p.pass(from, to) })
			serving.Go(func() { p.pass(to, from) })
		} else {
			from.Close()
			to.Close()
		}
		p.mu.Unlock()
	}
}

// pass copies one way and ends both when that ends.
func (p *proxy) pass(from, to net.Conn) {
	io.Copy(to, io.TeeReader(from, p)) // however it ends, both are closed
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, conn := range []net.Conn{from, to} {
		conn.Close()
		delete(p.conns, conn)
	}
}

// set cuts the proxy or mends it.
func (p *proxy) set(up bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.up = up
	for conn := range p.conns {
		if !up {
			conn.Close()
		}
	}
}

func scriptCut(ts *testscript.TestScript, neg bool, args []string)  { setProxy(ts, neg, args, false) }
func scriptMend(ts *testscript.TestScript, neg bool, args []string) { setProxy(ts, neg, args, true) }

func setProxy(ts *testscript.TestScript, neg bool, args []string, up bool) {
	refuseNeg(ts, neg)
	if len(args) != 1 {
		ts.Fatalf("usage: cut NAME, mend NAME")
	}
	p, ok := ts.Value(proxiesKey{}).(proxies)[args[0]]
	if !ok {
		ts.Fatalf("no proxy %q", args[0])
	}
	p.set(up)
}
