//go:build linux

package faults

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// network is two nets of a site, each a bridge: by one the issuers are reached, by the other the servers of the bus reach each other.
// Every issuer is in a network namespace of its own, which is plugged into both; the agents and the clients are outside, at the first.
type network struct {
	testing.TB
	name string // of all its devices, and the third byte of its addresses
	byte int
	next int
}

// port is where an issuer is plugged in.
type port struct {
	net    *network
	space  string // its network namespace
	number int
}

// The two nets, as the second byte of their addresses and the last letter of their devices.
const (
	clientNet = 213
	routeNet  = 214
)

func link(network int) string { return map[int]string{clientNet: "c", routeNet: "r"}[network] }

// newNetwork makes one; where that may not be, the test is skipped.
func newNetwork(t testing.TB) *network {
	t.Helper()
	n := &network{TB: t, byte: os.Getpid()%250 + 1}
	for try := 1; ; try++ { // several tests have one each
		n.name = fmt.Sprintf("skf%d", n.byte)
		out, err := exec.Command("ip", "link", "add", n.name+"c", "type", "bridge").CombinedOutput()
		if err == nil {
			break
		}
		if n.byte = n.byte%250 + 1; try == 250 || !strings.Contains(string(out), "File exists") {
			lacking(t, "making a bridge (only root may, and iproute2 must be there): %v: %s", err, out)
		}
	}
	t.Cleanup(func() { n.ip("link", "del", n.name+"c") })
	n.ip("link", "add", n.name+"r", "type", "bridge")
	t.Cleanup(func() { n.ip("link", "del", n.name+"r") })
	n.ip("addr", "add", n.address(clientNet, 254)+"/24", "dev", n.name+"c")
	n.ip("link", "set", n.name+"c", "up")
	n.ip("link", "set", n.name+"r", "up")
	return n
}

func (n *network) ip(args ...string) {
	n.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		n.Errorf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func (n *network) address(network, number int) string {
	return fmt.Sprintf("10.%d.%d.%d", network, n.byte, number)
}

// plug makes the namespace of one more issuer.
func (n *network) plug() *port {
	n.Helper()
	n.next++
	p := &port{net: n, number: n.next, space: fmt.Sprintf("%s-%d", n.name, n.next)}
	n.ip("netns", "add", p.space)
	n.Cleanup(func() { n.ip("netns", "del", p.space) })
	n.ip("-n", p.space, "link", "set", "lo", "up")
	for _, to := range []int{clientNet, routeNet} {
		outside, inside := p.device(to), "eth-"+link(to)
		n.ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", p.space)
		n.ip("link", "set", outside, "master", n.name+link(to), "up")
		n.ip("-n", p.space, "addr", "add", p.address(to)+"/24", "dev", inside)
		n.ip("-n", p.space, "link", "set", inside, "up")
	}
	return p
}

func (p *port) address(network int) string { return p.net.address(network, p.number) }
func (p *port) device(network int) string {
	return fmt.Sprintf("%s%s%d", p.net.name, link(network), p.number)
}

// pull unplugs an issuer from some nets: nothing passes, and nobody is told. It gives what plugs it in again.
func (p *port) pull(networks ...int) (again func()) {
	set := func(to string) {
		for _, network := range networks {
			p.net.ip("link", "set", p.device(network), to)
		}
	}
	set("down")
	return func() { set("up") }
}

// flap unplugs and plugs in an issuer's way to the other servers, again and again: what is sent meanwhile comes late.
func (p *port) flap() (end func()) {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			again := p.pull(routeNet)
			time.Sleep(400 * time.Millisecond)
			again()
			select {
			case <-stop:
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	return func() { close(stop); <-done }
}

// inNetwork puts an issuer into a namespace of its own.
func (n *node) inNetwork() *node {
	n.port = n.s.network.plug()
	http := n.port.address(clientNet) + ":8080"
	n.url = "http://" + http
	n.env = append(n.env, "SIDEKEY_INSECURE=true", "SIDEKEY_ISSUER_LISTEN="+http, "SIDEKEY_ISSUER_ADMIN_LISTEN="+http,
		"SIDEKEY_ISSUER_URL="+"http://issuer.example")
	return n
}

// networkFaults are partitions between the servers of a cluster, and a way between them on which things come late.
var networkFaults = []*fault{
	{name: "partition of a bus node, which clients reach", lasts: beyondElection, inject: func(w *workload, rng *rand.Rand) func() {
		return w.anyIssuer(rng).port.pull(routeNet)
	}},
	{name: "partition of an issuer with its bus node", lasts: beyondElection, inject: func(w *workload, rng *rand.Rand) func() {
		return w.anyIssuer(rng).port.pull(routeNet, clientNet)
	}},
	{name: "no bus node hears another", lasts: beyondLease, inject: func(w *workload, _ *rand.Rand) func() {
		var again []func()
		light := w.h.darkenAfter(func() {
			for _, n := range w.issuers {
				again = append(again, n.port.pull(routeNet))
			}
		}, "no bus node hears another", w.agents...)
		return func() {
			light()
			for _, plug := range again {
				plug()
			}
		}
	}},
	{name: "a bus node hears the others late", lasts: func(s *site) time.Duration { return 4 * s.lease }, inject: func(w *workload, rng *rand.Rand) func() {
		return w.anyIssuer(rng).port.flap()
	}},
}

func beyondElection(*site) time.Duration { return election }

// TestNetwork: a cluster of three whose servers lose each other while clients still reach some of them, in network namespaces.
func TestNetwork(t *testing.T) {
	if !long {
		t.Skip("set SIDEKEY_LONG=1 to make networks")
	}
	binary, err := sound()
	if err != nil {
		t.Fatal(err)
	}
	for _, pair := range [][]*fault{networkFaults[:2], networkFaults[2:]} {
		t.Run(pair[0].name, func(t *testing.T) {
			t.Parallel()
			plan{name: pair[0].name + "; then " + pair[1].name, seed: chooseSeed(t), faults: pair, site: networked(binary)}.run(t).report(t)
		})
	}
}

func networked(binary string) siteConfig {
	return siteConfig{binary: binary, issuers: 3, cluster: true, networked: true, few: true, lease: 2 * time.Second, grace: 500 * time.Millisecond}
}
