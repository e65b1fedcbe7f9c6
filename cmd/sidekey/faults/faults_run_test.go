//go:build linux

package faults

import (
	"testing"
	"time"
)

// TestShort: a site of one issuer and one agent, which is cut off for longer than its lease. It is a smoke test of the suite and of
// sidekey, and cheap: `go test ./...` has other things to do.
func TestShort(t *testing.T) {
	binary, err := sound()
	if err != nil {
		t.Fatal(err)
	}
	plan{
		name: "short", seed: chooseSeed(t), site: siteConfig{binary: binary, agents: 1, few: true, lease: time.Second, grace: 300 * time.Millisecond},
		faults: []*fault{named("partition of an agent")},
	}.run(t).report(t)
}

// TestFaults: each fault, on a site of three issuers (one with the bus in it) and three agents.
func TestFaults(t *testing.T) {
	if !long {
		t.Skip("set SIDEKEY_LONG=1 to run them all")
	}
	binary, err := sound()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			plan{
				name: f.name, seed: chooseSeed(t), faults: []*fault{f},
				site: siteConfig{binary: binary, issuers: 3, agents: 3, lease: 2 * time.Second, grace: 500 * time.Millisecond},
			}.run(t).report(t)
		})
	}
}
