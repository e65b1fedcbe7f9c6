package bus_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus"
)

// pair is a cluster of two servers over TLS, each with a certificate of its own: "localhost", which an
// agent is given, and one that the other tells of by its IP address.
type pair struct {
	keys  *bus.Keys
	given *external
	other *external
	urls  [2]string // of given, of other
}

func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

func startPair(t *testing.T) *pair {
	t.Helper()
	keys, err := bus.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	names := [2]string{"localhost", "127.0.0.1"}
	ports, routes := [2]int{freePort(t), freePort(t)}, [2]int{freePort(t), freePort(t)}
	p := &pair{keys: keys}
	for n, name := range names {
		p.urls[n] = fmt.Sprintf("tls://%s:%d", name, ports[n])
		dir := t.TempDir()
		t.Chdir(dir) // the exported configuration names its files so
		if _, err := bus.Export(dir, keys, bus.ExportConfig{Listen: fmt.Sprintf("127.0.0.1:%d", ports[n]), Names: []string{name}}); err != nil {
			t.Fatal(err)
		}
		conf := filepath.Join(dir, "nats-server.conf")
		f, err := os.OpenFile(conf, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(f, "\nserver_name: \"s%d\"\nclient_advertise: %q\ncluster { name: c, listen: \"127.0.0.1:%d\", routes: [\"nats://127.0.0.1:%d\"] }\n",
			n, fmt.Sprintf("%s:%d", name, ports[n]), routes[n], routes[1-n])
		f.Close()
		x := &external{conf: conf}
		x.start(t)
		t.Cleanup(x.stop)
		if n == 0 {
			p.given = x
		} else {
			p.other = x
		}
	}
	return p
}

// connect is an agent's start.
func (p *pair) connect(t *testing.T, file string) *bus.Conn {
	t.Helper()
	user, err := p.keys.AgentUser("web-1")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := bus.Connect(bus.ConnectConfig{URLs: p.urls[:1], User: user, CA: p.keys.CAPEM(), Agent: "web-1", Servers: file, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

func remembered(t *testing.T, file string) (all []string) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	if err := json.Unmarshal(text, &all); err != nil {
		t.Error(err)
	}
	return all
}

// TestServersRemembered: an agent goes on with a server that it was told of, whose certificate is for an IP
// address, and starts by it while the address that it was given is gone; what was remembered wrongly
// is passed over.
func TestServersRemembered(t *testing.T) {
	p := startPair(t)
	file := filepath.Join(t.TempDir(), "bus.servers")
	agent := p.connect(t, file)
	eventually(t, "the other server is remembered", func() bool { return slices.Contains(remembered(t, file), p.urls[1]) })
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: mode %v (%v), want 0600", info.Mode(), err)
	}
	p.given.stop()
	await(t, agent, "with the given server gone")
	agent.Close()

	bad := []string{"nats://192.0.2.1:4222", "tls://u:p@127.0.0.1:1", "tls://127.0.0.1", "https://127.0.0.1:1", "x", "tls://127.0.0.1:1/path", p.urls[1]}
	text, err := json.Marshal(bad)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	agent = p.connect(t, file)
	await(t, agent, "started with the given server gone")
	eventually(t, "only the reached server is remembered", func() bool { return slices.Equal(remembered(t, file), p.urls[1:]) })
	agent.Close()

	// A damaged file is no reason not to start, and without it there is nowhere to go.
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	agent = p.connect(t, file)
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	if err := agent.Await(ctx); err == nil {
		t.Error("it reached a server that it cannot know")
	}
}

// TestServersByTheSystemsCA: what a server tells comes in clear, so where any CA of the system's would do,
// nothing of it is remembered.
func TestServersByTheSystemsCA(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bus.servers")
	p := startPair(t)
	if err := os.WriteFile(file, []byte(`["`+p.urls[1]+`"]`), 0o600); err != nil {
		t.Fatal(err)
	}
	user, err := p.keys.AgentUser("web-1")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := bus.Connect(bus.ConnectConfig{URLs: []string{"tls://127.0.0.1:1"}, User: user, Agent: "web-1", Servers: file})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := conn.Await(ctx); err == nil {
		t.Error("it went to a remembered server")
	}
}

func await(t *testing.T, c *bus.Conn, what string) {
	t.Helper()
	eventually(t, what+": it is connected", c.Connected)
}
