package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// natsCluster is a NATS cluster of an operator's own, three real nats-servers from what `sidekey bus export` writes and
// changed in nothing, with a leaf node for a site, and on it two issuers and two agents:
//
//	c := startNATSCluster(t)
//	c.near, c.far                  // the agents' URLs: one on the cluster, one behind the leaf node
//	c.node["a"].kill()             // SIGKILL; .restart(); .drain() is what `nats-server --signal ldm` does
//	c.leader("sidekey_log")        // the node that leads a stream
//	c.hub()                        // the node that the leaf node is on
type natsCluster struct {
	t         *testing.T
	dir, nats string // nats: the program
	port      string // for clients, on each node's own address
	node      map[string]*natsNode
	leaf      *process
	issuer    []string   // URLs
	env       []string   // of commands, at the first issuer
	proc      []*process // theirs
	near, far string

	adminToken string
}

type natsNode struct {
	c          *natsCluster
	Name, Host string
	monitor    string // URL
	proc       *process
}

// One address for each node; TLS, routes and leaf nodes use them.
var natsHosts = map[string]string{"a": "127.0.0.1", "b": "127.0.0.2", "c": "127.0.0.3"}

func startNATSCluster(t *testing.T) *natsCluster {
	t.Helper()
	c := &natsCluster{t: t, dir: t.TempDir(), nats: natsBinary(t), port: freePort(t), node: map[string]*natsNode{}}
	first := filepath.Join(c.dir, "one")
	c.env = append(os.Environ(), "SIDEKEY_DATA_DIR="+first)
	routes, leaves := freePort(t), freePort(t)
	c.sidekey("bus", "export", "--dir", filepath.Join(c.dir, "nats"), "--listen", ":"+c.port, "--route-port", routes, "--leaf-listen", ":"+leaves,
		"--server", "a="+natsHosts["a"], "--server", "b="+natsHosts["b"], "--server", "c="+natsHosts["c"])
	var urls, hubs []string
	for _, name := range []string{"a", "b", "c"} {
		monitor := freePort(t)
		c.node[name] = &natsNode{c: c, Name: name, Host: natsHosts[name], monitor: "http://" + natsHosts[name] + ":" + monitor}
		c.node[name].restart()
		urls, hubs = append(urls, fmt.Sprintf("%q", "tls://"+natsHosts[name]+":"+c.port)), append(hubs, "--hub", "tls://"+natsHosts[name]+":"+leaves)
	}
	leafAt := "127.0.0.1:" + freePort(t)
	c.sidekey(append([]string{"bus", "export", "--leaf", "berlin", "--dir", filepath.Join(c.dir, "berlin"), "--listen", leafAt, "--host", "127.0.0.1"}, hubs...)...)
	c.leaf = c.run("berlin")

	c.startIssuer("one", fmt.Sprintf("[bus]\nurls = [%s]\nca = %q\nreplicas = 3\n", strings.Join(urls, ", "), filepath.Join(c.dir, "nats", "a", "ca.pem")))
	c.env = append(c.env, "SIDEKEY_ADDR="+c.issuer[0], "SIDEKEY_TOKEN_FILE="+filepath.Join(first, "admin.token"))
	token, err := os.ReadFile(filepath.Join(first, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	c.adminToken = strings.TrimSpace(string(token))
	c.startIssuer("two", "", "--join", c.invite("issuers", "two")) // its token tells it all
	c.sidekey("users", "add", "alice", "--password", "wonderland")
	c.near, c.far = c.agent("near", ""), c.agent("far", "tls://"+leafAt)
	return c
}

func (c *natsCluster) run(folder string, args ...string) *process {
	c.t.Helper()
	cmd := exec.Command(c.nats, append([]string{"-c", "nats-server.conf"}, args...)...)
	cmd.Dir = filepath.Join(c.dir, folder)
	return start(c.t, cmd)
}

func (c *natsCluster) startIssuer(name, tables string, args ...string) {
	c.t.Helper()
	listen := "127.0.0.1:" + freePort(c.t)
	config := filepath.Join(c.dir, name+".toml")
	c.write(config, fmt.Sprintf("data_dir = %q\n[agent]\nname = %q\n[issuer]\nlisten = %q\nadmin_listen = %q\nurl = \"http://issuer.example\"\nlogin_per_minute = 0\nrefresh_per_minute = 0\n[keys]\npublish_ahead = \"0s\"\n%s",
		filepath.Join(c.dir, name), "issuer-"+name, listen, listen, tables))
	c.issuer, c.proc = append(c.issuer, "http://"+listen), append(c.proc, nil)
	c.runIssuer(len(c.issuer)-1, append([]string{"--config", config}, args...)...)
	c.awaitIssuer(len(c.issuer) - 1)
}

// runIssuer starts an issuer, the n-th, on what it has.
func (c *natsCluster) runIssuer(n int, args ...string) {
	c.t.Helper()
	c.proc[n] = start(c.t, exec.Command(binary, append([]string{"issuer"}, args...)...))
}

func (c *natsCluster) awaitIssuer(n int) {
	c.t.Helper()
	client := &http.Client{Timeout: 2 * time.Second} // it listens before it answers
	await(c.t, c.issuer[n], func() error { return expectStatus(http.StatusOK)(client.Get(c.issuer[n] + "/readyz")) })
}

// invite gives the file of a join token.
func (c *natsCluster) invite(role, name string) string {
	c.t.Helper()
	file := filepath.Join(c.dir, name+".join")
	c.write(file, c.sidekey(role, "add", name))
	return file
}

func (c *natsCluster) agent(name, bus string) string {
	c.t.Helper()
	listen := "127.0.0.1:" + freePort(c.t)
	cmd := exec.Command(binary, "agent", "--join", c.invite("agents", name))
	cmd.Env = append(os.Environ(), "SIDEKEY_AGENT_DATA_DIR="+filepath.Join(c.dir, name), "SIDEKEY_AGENT_LISTEN="+listen, "SIDEKEY_AGENT_MAX_STALENESS=1m")
	if bus != "" {
		cmd.Env = append(cmd.Env, "SIDEKEY_BUS_URLS="+bus)
	}
	start(c.t, cmd)
	await(c.t, "agent "+name, func() error { return expectStatus(http.StatusOK)(http.Get("http://" + listen + "/readyz")) })
	return "http://" + listen
}

func (c *natsCluster) write(path, text string) {
	c.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// sidekey runs a command and gives its standard output.
func (c *natsCluster) sidekey(args ...string) string {
	c.t.Helper()
	cmd := exec.Command(binary, args...)
	cmd.Env = c.env
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		errors.As(err, &exit)
		c.t.Fatalf("sidekey %s: %v\n%s%s", strings.Join(args, " "), err, out, exit.Stderr)
	}
	return string(out)
}

func (n *natsNode) restart() {
	n.c.t.Helper()
	n.proc = n.c.run(filepath.Join("nats", n.Name), "-m", n.monitor[strings.LastIndex(n.monitor, ":")+1:])
}

func (n *natsNode) kill() { n.signal(syscall.SIGKILL); <-n.proc.ended }

// drain stops the server as docs/operations.md says, and waits until it has ended.
func (n *natsNode) drain() { n.signal(syscall.SIGUSR2); <-n.proc.ended }

func (n *natsNode) signal(s syscall.Signal) {
	n.c.t.Helper()
	if err := n.proc.Process.Signal(s); err != nil {
		n.c.t.Fatalf("signalling %s: %v", n.Name, err)
	}
}

func (n *natsNode) ask(path string, answer any) error {
	resp, err := http.Get(n.monitor + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(answer)
}

// streams are all that a node holds.
func (n *natsNode) streams() (all []server.StreamDetail, err error) {
	var info server.JSInfo
	if err := n.ask("/jsz?streams=true&config=true", &info); err != nil {
		return nil, err
	}
	for _, account := range info.AccountDetails {
		all = append(all, account.Streams...)
	}
	return all, nil
}

// owner connects as who owns the bus does.
func (c *natsCluster) owner() *nats.Conn {
	c.t.Helper()
	text, err := os.ReadFile(filepath.Join(c.dir, "one", "master.key"))
	if err != nil {
		c.t.Fatal(err)
	}
	master, err := keyring.ParseMasterKey(text)
	if err != nil {
		c.t.Fatal(err)
	}
	keys, err := bus.OpenKeys(filepath.Join(c.dir, "one", bus.KeysFile), master)
	if err != nil {
		c.t.Fatal(err)
	}
	user, err := keys.IssuerUser("owner")
	if err != nil {
		c.t.Fatal(err)
	}
	nc, err := nats.Connect("tls://"+natsHosts["a"]+":"+c.port, nats.UserJWTAndSeed(user.JWT, string(user.Seed)), nats.RootCAs(filepath.Join(c.dir, "nats", "a", "ca.pem")))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(nc.Close)
	return nc
}

// leader is the node that leads a stream.
func (c *natsCluster) leader(stream string) (leads *natsNode) {
	c.t.Helper()
	await(c.t, "a leader of "+stream, func() error {
		for _, n := range c.node {
			all, err := n.streams()
			for _, s := range all {
				if err == nil && s.Name == stream && s.Cluster != nil && c.node[s.Cluster.Leader] != nil {
					leads = c.node[s.Cluster.Leader]
					return nil
				}
			}
		}
		return errors.New("none is named")
	})
	return leads
}

// hub is the node that the leaf node is on.
func (c *natsCluster) hub() (hub *natsNode) {
	c.t.Helper()
	await(c.t, "the leaf node to be on a server", func() error {
		for _, n := range c.node {
			var leafz server.Leafz
			if !n.proc.over() && n.ask("/leafz", &leafz) == nil && leafz.NumLeafs > 0 {
				hub = n
				return nil
			}
		}
		return errors.New("it is on none")
	})
	return hub
}

// awaitWhole waits until each of the three servers holds every stream, and its leader knows the two others as current.
func (c *natsCluster) awaitWhole() (streams []string) {
	c.t.Helper()
	await(c.t, "three current copies of every stream", func() error {
		var names []string
		for _, n := range c.node {
			all, err := n.streams()
			if err != nil {
				return err
			}
			var held []string
			for _, s := range all {
				if err := whole(s, n.Name); err != nil {
					return fmt.Errorf("server %s, stream %s: %w", n.Name, s.Name, err)
				}
				held = append(held, s.Name)
			}
			slices.Sort(held)
			if names != nil && !slices.Equal(names, held) {
				return fmt.Errorf("server %s holds %v, another one %v", n.Name, held, names)
			}
			names = held
		}
		if streams = names; len(names) < 10 {
			return fmt.Errorf("only the streams %v are there", names)
		}
		return nil
	})
	return streams
}

func whole(s server.StreamDetail, asked string) error {
	if s.Config == nil || s.Config.Replicas != 3 {
		return errors.New("it has not three replicas")
	}
	if s.Cluster == nil || s.Cluster.Leader == "" || len(s.Cluster.Replicas) != 2 {
		return fmt.Errorf("its servers are %+v", s.Cluster)
	}
	for _, r := range s.Cluster.Replicas {
		if s.Cluster.Leader == asked && (!r.Current || r.Offline) { // only the leader knows how far the others are
			return fmt.Errorf("%s is behind", r.Name)
		}
	}
	return nil
}
