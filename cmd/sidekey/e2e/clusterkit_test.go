package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// issuers is a cluster of real issuer processes on loopback, each with the embedded bus and [bus.cluster]:
//
//	c := newCluster(t, 3)            // founded, grown, ready, all streams with their replicas
//	c.node[0].kill()                 // SIGKILL; .stop() is SIGTERM
//	c.node[0].restart()              // on the same folder; .awaitReady() waits
//	c.add("d"); c.remove(via, "a")   // a further issuer joins; one is removed, asked of the node via
//	c.agent("web")                   // an agent process that joined through the cluster
//
// node.URL is public and admin, node.Bus the bus's address, node.Dir its data_dir, node.token() the admin token.
type issuers struct {
	t      *testing.T
	dir    string
	tables string // more of each config.toml
	url    string // issuer.url, the same for all
	node   []*issuerNode
}

type issuerNode struct {
	c               *issuers
	Name, Dir       string
	URL, Bus, Route string
	config          string
	proc            *process
}

// newCluster starts n issuers, a, b, c…, with more lines of configuration, and waits until every stream has min(n, 3)
// replicas.
func newCluster(t *testing.T, n int, tables ...string) *issuers {
	t.Helper()
	c := &issuers{t: t, dir: t.TempDir(), tables: strings.Join(tables, "\n"), url: "http://issuer.example"}
	for i := range n {
		c.add(string(rune('a' + i)))
	}
	if n >= 3 {
		c.awaitReplicas()
	}
	return c
}

// add founds the cluster with an issuer, or lets one join it through the first that is up, and waits until it is ready.
func (c *issuers) add(name string) *issuerNode {
	c.t.Helper()
	n := &issuerNode{c: c, Name: name, Dir: filepath.Join(c.dir, fmt.Sprintf("%s-%d", name, len(c.node)))}
	http, bus := "127.0.0.1:"+freePort(c.t), "127.0.0.1:"+freePort(c.t)
	n.URL, n.Bus, n.Route, n.config = "http://"+http, "nats://"+bus, "127.0.0.1:"+freePort(c.t), n.Dir+".toml"
	text := fmt.Sprintf("data_dir = %q\n[agent]\nname = %q\n[issuer]\nlisten = %q\nadmin_listen = %q\nurl = %q\nlogin_per_minute = 0\nrefresh_per_minute = 0\ndrain = \"1s\"\n[keys]\npublish_ahead = \"0s\"\n[bus]\nlisten = %q\n[bus.cluster]\nlisten = %q\n%s\n",
		n.Dir, name, http, http, c.url, bus, n.Route, c.tables)
	c.write(n.config, text)
	var args []string
	if len(c.node) > 0 {
		var up *issuerNode
		await(c.t, "an issuer that lets another in", func() error { // none is ready while a leader is elected
			if up = c.up(); up == nil {
				return errors.New("none is ready")
			}
			return nil
		})
		token := n.Dir + ".join"
		c.write(token, up.sidekey("issuers", "add", name))
		args = []string{"--join", token}
	}
	c.node = append(c.node, n)
	n.restart(args...)
	n.awaitReady()
	return n
}

func (c *issuers) write(path, text string) {
	c.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// up is the first issuer that is ready; nil: none is.
func (c *issuers) up() *issuerNode {
	for _, n := range c.node {
		if n.proc != nil && !n.proc.over() && n.ready() == nil {
			return n
		}
	}
	return nil
}

// remove strikes an issuer off by another one's word, and forgets it here; its process is the caller's to look at.
func (c *issuers) remove(via *issuerNode, name string) {
	c.t.Helper()
	await(c.t, "issuer "+name+" to be removed", func() error { // not before the streams that it led have a leader again
		out, err := via.trySidekey("issuers", "remove", name)
		if err != nil && !strings.Contains(out, "status 503") {
			c.t.Fatalf("removing issuer %s: %s", name, out)
		}
		return err
	})
	for i, n := range c.node {
		if n.Name == name {
			c.node = append(c.node[:i:i], c.node[i+1:]...)
			break
		}
	}
}

// awaitReplicas waits until an issuer that is up has last said that every stream is held whole by the servers of three
// issuers, and these are the ones here: the line that docs/operations.md tells operators to wait for.
func (c *issuers) awaitReplicas() {
	c.t.Helper()
	var want []string
	for _, n := range c.node {
		want = append(want, n.Name)
	}
	slices.Sort(want)
	awaitFor(c.t, 2*time.Minute, "every stream to have its replicas", func() error {
		var said string
		for _, n := range c.node {
			if n.proc.over() {
				continue
			}
			for line := range strings.Lines(n.proc.output()) {
				if heldLine.MatchString(line) {
					said += n.Name + ": " + line
				}
			}
			if slices.Equal(n.heldBy(), want) {
				return nil
			}
		}
		return fmt.Errorf("want by %v, was said:\n%s", want, said)
	})
}

var heldLine = regexp.MustCompile(`every stream is held by all its servers: replicas=3 servers="([^"]*)"`)

// heldBy are the issuers whose servers, as this one last said, hold every stream.
func (n *issuerNode) heldBy() (names []string) {
	said := heldLine.FindAllStringSubmatch(n.proc.output(), -1)
	if len(said) == 0 {
		return nil
	}
	for server := range strings.FieldsSeq(said[len(said)-1][1]) {
		name, _, _ := strings.Cut(server, "-")
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// restart starts the process, again on what it has.
func (n *issuerNode) restart(args ...string) {
	n.c.t.Helper()
	cmd := exec.Command(binary, append([]string{"issuer", "--config", n.config}, args...)...)
	n.proc = start(n.c.t, cmd)
}

func (n *issuerNode) signal(s syscall.Signal) {
	n.c.t.Helper()
	if err := n.proc.Process.Signal(s); err != nil {
		n.c.t.Fatalf("signalling %s: %v", n.Name, err)
	}
}

func (n *issuerNode) kill() { n.c.t.Helper(); n.signal(syscall.SIGKILL); <-n.proc.ended }
func (n *issuerNode) stop() { n.proc.stop() }

// awaitRemoved waits until the process ends, and says why.
func (n *issuerNode) awaitRemoved() {
	n.c.t.Helper()
	select {
	case <-n.proc.ended:
	case <-time.After(30 * time.Second):
		n.c.t.Fatalf("issuer %s goes on after its removal", n.Name)
	}
	if !strings.Contains(n.proc.output(), "sidekey: this issuer was removed") {
		n.c.t.Errorf("issuer %s does not say that it was removed", n.Name)
	}
}

func (n *issuerNode) ready() error {
	client := &http.Client{Timeout: 2 * time.Second}
	resp, err := client.Get(n.URL + "/readyz")
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s/readyz: %s", n.URL, resp.Status)
	}
	return nil
}

func (n *issuerNode) awaitReady() {
	n.c.t.Helper()
	await(n.c.t, "issuer "+n.Name+" to be ready", func() error {
		if n.proc.over() {
			n.c.t.Fatalf("issuer %s has ended", n.Name)
		}
		return n.ready()
	})
}

func (n *issuerNode) token() string {
	n.c.t.Helper()
	text, err := os.ReadFile(filepath.Join(n.Dir, "admin.token"))
	if err != nil {
		n.c.t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// sidekey runs an admin command at this issuer and gives what it prints.
func (n *issuerNode) sidekey(args ...string) string {
	n.c.t.Helper()
	out, err := n.trySidekey(args...)
	if err != nil {
		n.c.t.Fatalf("sidekey %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (n *issuerNode) trySidekey(args ...string) (string, error) {
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), "SIDEKEY_ADDR="+n.URL, "SIDEKEY_TOKEN="+n.token())
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// agent starts an agent that joins by a token of the first issuer that is up, and gives its URL and process.
func (c *issuers) agent(name string) (string, *process) {
	c.t.Helper()
	dir, listen := filepath.Join(c.dir, "agent-"+name), "127.0.0.1:"+freePort(c.t)
	config := dir + ".toml"
	c.write(config, fmt.Sprintf("data_dir = %q\n[agent]\nname = %q\nlisten = [%q]\nmax_staleness = \"1m\"\n", dir, name, listen))
	c.write(dir+".join", c.up().sidekey("agents", "add", name))
	p := start(c.t, exec.Command(binary, "agent", "--config", config, "--join", dir+".join"))
	await(c.t, "agent "+name+" to be ready", func() error {
		resp, err := http.Get("http://" + listen + "/readyz")
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("readyz: %s", resp.Status)
		}
		return nil
	})
	return "http://" + listen, p
}
