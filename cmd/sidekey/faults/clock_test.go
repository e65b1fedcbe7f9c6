//go:build linux

package faults

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// clockVariable is what a binary of clocked reads: by how many seconds its clock is ahead.
const clockVariable = "FAULT_CLOCK_AHEAD"

// clocked builds sidekey with a time.Now that is off: the library's source is changed, so that every part of the process, the
// server of the bus and TLS too, has the same wrong time of day. What counts on (CLOCK_MONOTONIC, CLOCK_BOOTTIME) is as it was.
var clocked = sync.OnceValues(func() (string, error) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	path := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	source, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	changed := string(source)
	for old, to := range map[string]string{
		"func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n": "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n\tsec += faultAhead\n",
		"import (\n": "import (\n\t\"syscall\"\n",
	} {
		if strings.Count(changed, old) != 1 {
			return "", fmt.Errorf("%s has another Now than the suite knows; change clock_test.go", path)
		}
		changed = strings.Replace(changed, old, to, 1)
	}
	changed += `
var faultAhead = func() (sec int64) {
	text, _ := syscall.Getenv("` + clockVariable + `")
	sign := int64(1)
	for _, c := range text {
		if c == '-' {
			sign = -1
		} else {
			sec = 10*sec + int64(c-'0')
		}
	}
	return sign * sec
}()
`
	return build("clocked", map[string]string{path: changed})
})

// again starts a node again with its clock so far ahead.
func (n *node) again(ahead time.Duration) {
	n.end()
	n.clock = nil
	if ahead != 0 {
		n.clock = []string{fmt.Sprintf("%s=%d", clockVariable, int64(ahead.Seconds()))}
	}
	n.start() // an issuer whose clock is an hour off may never be ready
}

// clockFaults are clocks that are off, on whole processes. An agent forgives half a minute; an hour ahead it refuses good tokens for their age. An
// issuer refuses refresh tokens that another, with another clock, has made more than that "in the future", until it knows that its own clock is
// what is off: so where an issuer's clock is off, a 401 says nothing about a session. And an issuer that is an hour off dates the end of a key
// an hour off: agents may forget it while tokens that it signed are good still.
var clockFaults = func() (all []*fault) {
	for _, ahead := range []time.Duration{30 * time.Second, -30 * time.Second, time.Hour, -time.Hour} {
		var costs []string
		issuerCosts := []string{checkGood, checkFamily, checkClosed}
		if ahead.Abs() > time.Minute {
			costs = []string{checkGood}
			issuerCosts = append(issuerCosts, checkUnknown)
		}
		text := fmt.Sprint(ahead.Abs(), map[bool]string{true: " ahead", false: " behind"}[ahead > 0])
		all = append(all,
			clockFault("the clock of an agent is "+text, ahead, costs, (*workload).anyAgent),
			clockFault("the clock of the issuer with the bus is "+text, ahead, issuerCosts,
				func(w *workload, _ *rand.Rand) *node { return w.hasBus() }))
	}
	return all
}()

func clockFault(name string, ahead time.Duration, costs []string, who func(*workload, *rand.Rand) *node) *fault {
	return &fault{name: name, costs: costs, lasts: func(s *site) time.Duration { return beyondLease(s) + 2*time.Second }, inject: func(w *workload, rng *rand.Rand) func() {
		n := who(w, rng)
		n.again(ahead)
		return func() { n.again(0) }
	}}
}

// TestClocks: whatever the time of day is believed to be, nothing that is revoked is accepted and nobody vouches without a lease.
func TestClocks(t *testing.T) {
	if !long {
		t.Skip("set SIDEKEY_LONG=1 to build sidekey with clocks that are off")
	}
	binary, err := clocked()
	if err != nil {
		t.Fatal(err)
	}
	for n := range 4 { // a site each for 30 s and an hour, of agents and of the issuer: ahead, then behind
		pair := []*fault{clockFaults[n/2*4+n%2], clockFaults[n/2*4+n%2+2]}
		t.Run(pair[0].name, func(t *testing.T) {
			t.Parallel()
			plan{
				name: pair[0].name + "; then " + pair[1].name, seed: chooseSeed(t), faults: pair,
				site: siteConfig{binary: binary, issuers: 2, few: true, lease: 2 * time.Second, grace: 500 * time.Millisecond},
			}.run(t).report(t)
		})
	}
}
