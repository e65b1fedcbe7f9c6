//go:build linux

package faults

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// hostBus lets an issuer have a server of the bus in it, and gives its address.
func (n *node) hostBus() string {
	address := freeAddress(n.s)
	if n.port != nil {
		address = n.port.address(clientNet) + ":4222"
	}
	n.bus = "nats://" + address
	n.env = append(n.env, "SIDEKEY_BUS_LISTEN="+address)
	return address
}

// hostRoutes lets an issuer's server be one of a cluster.
func (n *node) hostRoutes() {
	address := freeAddress(n.s)
	if n.port != nil {
		address = n.port.address(routeNet) + ":6222"
	}
	n.env = append(n.env, "SIDEKEY_BUS_CLUSTER_LISTEN="+address)
}

// another is a further issuer: it reaches the first one's bus through a proxy, or has one of the cluster's servers itself.
func (s *site) another(name, busAddress string) *node {
	if !s.cluster {
		return s.issuer(name, busAddress)
	}
	n := s.issuer(name, "")
	n.hostBus()
	n.hostRoutes()
	return n
}

// heldLine is what an issuer says once all servers hold every stream.
var heldLine = regexp.MustCompile(`every stream is held by all its servers: replicas=3 servers="([^"]*)"`)

// awaitReplicas waits until an issuer has last said that the servers of three hold every stream.
func (s *site) awaitReplicas() {
	s.Helper()
	s.eventually("every stream is held by three servers", func() bool {
		for _, n := range s.issuers {
			said := heldLine.FindAllStringSubmatch(n.said(), -1)
			if len(said) > 0 && len(strings.Fields(said[len(said)-1][1])) == len(s.issuers) {
				return true
			}
		}
		return false
	})
}

// election is longer than the servers of a cluster wait for a leader that says nothing, before they choose another (JetStream: 4 to 9 s).
const election = 10 * time.Second

// clusterFaults are what goes wrong with the servers of a cluster.
var clusterFaults = append(clusterOnly, named("kill -9 of everybody"), named("rolling restart of the issuers"))

// clusterOnly are those of them that only a cluster knows.
var clusterOnly = []*fault{
	{name: "kill -9 of each in turn", inject: func(w *workload, _ *rand.Rand) func() {
		for _, n := range w.issuers { // one of them leads the log
			n.kill()
			time.Sleep(shortFault)
			n.start()
			if err := n.await(backWithin); err != nil {
				w.Errorf("%s after kill -9: %v", n.name, err)
			}
		}
		return func() {}
	}},
	{name: "SIGSTOP of one beyond the election", lasts: func(*site) time.Duration { return election }, inject: func(w *workload, rng *rand.Rand) func() {
		n := w.anyIssuer(rng)
		n.signal(syscall.SIGSTOP)
		return func() { n.signal(syscall.SIGCONT) }
	}},
	{name: "SIGSTOP of two: no majority", lasts: beyondLease, inject: func(w *workload, rng *rand.Rand) func() {
		alone := rng.IntN(len(w.issuers))
		each := func(sig syscall.Signal) {
			for n, i := range w.issuers {
				if n != alone {
					i.signal(sig)
				}
			}
		}
		light := w.h.darkenAfter(func() { each(syscall.SIGSTOP) }, "no majority of the servers runs", w.agents...)
		return func() { light(); each(syscall.SIGCONT) }
	}},
	{name: "kill -9 of two: no majority", lasts: beyondLease, inject: func(w *workload, rng *rand.Rand) func() {
		alone := rng.IntN(len(w.issuers))
		each := func(do func(*node)) {
			for n, i := range w.issuers {
				if n != alone {
					do(i)
				}
			}
		}
		light := w.h.darkenAfter(func() { each((*node).kill) }, "no majority of the servers lives", w.agents...)
		return func() { light(); each((*node).start) }
	}},
	{name: "the leaders of all streams step down, again and again", lasts: func(s *site) time.Duration { return 2 * s.lease }, inject: stepDown},
}

// stepDown has the leader of every stream step down, one stream after another, for as long as the fault lasts.
func stepDown(w *workload, _ *rand.Rand) func() {
	nc := w.connectIssuer()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer nc.Close()
		down := 0
		for {
			for _, stream := range w.streams(nc) {
				if answer, err := nc.Request("$JS.API.STREAM.LEADER.STEPDOWN."+stream, nil, issueWithin); err == nil && bytes.Contains(answer.Data, []byte(`"success":true`)) {
					down++
				}
				select {
				case <-stop:
					if w.h.note(fmt.Sprintf("%d leaders have stepped down", down)); down < 5 {
						w.Errorf("only %d leaders have stepped down", down)
					}
					return
				case <-time.After(50 * time.Millisecond):
				}
			}
		}
	}()
	return func() { close(stop); <-done }
}

// streams lists what the bus has.
func (w *workload) streams(nc *nats.Conn) []string {
	var list struct{ Streams []string }
	answer, err := nc.Request("$JS.API.STREAM.NAMES", nil, issueWithin)
	if err == nil {
		err = json.Unmarshal(answer.Data, &list)
	}
	if err != nil || len(list.Streams) == 0 {
		w.Errorf("listing the streams: %v", err)
		return []string{"sidekey_log"}
	}
	return list.Streams
}

// connectIssuer connects to the bus with an issuer's rights, by the keys in the first one's folder.
func (s *site) connectIssuer() *nats.Conn {
	var keys *bus.Keys
	var user *bus.User
	var nc *nats.Conn
	text, err := os.ReadFile(filepath.Join(s.issuers[0].dir, "master.key"))
	if err == nil {
		var master *keyring.MasterKey
		if master, err = keyring.ParseMasterKey(text); err == nil {
			keys, err = bus.ReadKeys(filepath.Join(s.issuers[0].dir, bus.KeysFile), master)
		}
	}
	if err == nil {
		user, err = keys.IssuerUser("faults")
	}
	if err == nil {
		nc, err = nats.Connect(s.issuers[0].bus, nats.UserJWTAndSeed(user.JWT, string(user.Seed)), nats.Timeout(issueWithin))
	}
	if err != nil {
		s.Fatalf("connecting to the bus as an issuer: %v", err)
	}
	return nc
}

// TestCluster: three issuers with a server of the bus in each, and on two such sites one after another of the faults that they are
// there for.
func TestCluster(t *testing.T) {
	if !long {
		t.Skip("set SIDEKEY_LONG=1 to run a cluster")
	}
	t.Parallel()
	binary, err := sound()
	if err != nil {
		t.Fatal(err)
	}
	seed := chooseSeed(t)
	for _, some := range [][]*fault{clusterFaults[:3], clusterFaults[3:]} {
		var names []string
		for _, f := range some {
			names = append(names, f.name)
		}
		t.Run(names[0], func(t *testing.T) {
			t.Parallel()
			plan{
				name: "a cluster of three: " + strings.Join(names, "; then "), seed: seed, faults: some,
				site: siteConfig{binary: binary, issuers: 3, cluster: true, few: true, lease: 2 * time.Second, grace: 500 * time.Millisecond},
			}.run(t).report(t)
		})
	}
}
