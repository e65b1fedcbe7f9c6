//go:build linux

package faults

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
)

// planted is a fault of sidekey itself, as testdata/planted.toml has it.
type planted struct {
	Name, Fault string
	Checks      []string // each must find it
	Unproven    bool
	change
	Also           []change // in other files
	Times, Issuers int
	Lease          string
	Site           string // "": processes and proxies; "network", "power"
}

// change is a place of the source, and what it becomes.
type change struct{ File, Old, New string }

func readPlanted(t *testing.T) []planted {
	t.Helper()
	all, err := loadPlanted()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func loadPlanted() ([]planted, error) {
	var all struct{ Planted []planted }
	meta, err := toml.DecodeFile("testdata/planted.toml", &all)
	if unknown := meta.Undecoded(); err == nil && len(unknown) > 0 {
		err = fmt.Errorf("testdata/planted.toml: unknown keys %v", unknown)
	}
	return all.Planted, err
}

// repository is the folder of the module.
var repository = func() string {
	dir, err := filepath.Abs("../../..")
	if err != nil {
		panic(err) // the working folder is gone
	}
	return dir
}()

// changed is the source of the files with the fault in them, by path.
func (p *planted) changed() (map[string]string, error) {
	sources := make(map[string]string)
	for _, c := range append([]change{p.change}, p.Also...) {
		source, err := replaced(c.File, c.Old, c.New)
		if err != nil {
			return nil, fmt.Errorf("testdata/planted.toml, %q: %w", p.Name, err)
		}
		sources[filepath.Join(repository, c.File)] = source
	}
	return sources, nil
}

// binary builds sidekey with the fault in it; the sources stay as they are.
func (p *planted) binary(t *testing.T, name string) string {
	t.Helper()
	sources, err := p.changed()
	if err != nil {
		t.Fatal(err)
	}
	binary, err := build(name, sources)
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// at is the site of which a planted fault's binary is part.
func (p *planted) at(binary string, lease time.Duration) siteConfig {
	if p.Site == "network" {
		return networked(binary)
	}
	return siteConfig{binary: binary, issuers: p.Issuers, power: p.Site == "power", lease: lease, grace: 300 * time.Millisecond}
}

// TestPlantedApplies: every planted fault still finds its place, its check and its fault, and each check has one that it must find.
func TestPlantedApplies(t *testing.T) {
	checks := []string{checkFamily, checkSuccessor, checkRevoked, checkUnknown, checkGood, checkOrder, checkLease, checkLost, checkClosed, checkBack}
	found := make(map[string]bool)
	for _, p := range readPlanted(t) {
		if _, err := p.changed(); err != nil {
			t.Error(err)
		}
		named(p.Fault) // panics where there is none
		for _, check := range p.Checks {
			if !slices.Contains(checks, check) {
				t.Errorf("%q names the check %q, which there is not", p.Name, check)
			}
			found[check] = found[check] || !p.Unproven
		}
	}
	for _, check := range checks {
		if !found[check] {
			t.Errorf("no planted fault shows that %q bites", check)
		}
	}
}

// attempts is how often a planted fault may escape: whether it shows depends on who asks whom in some milliseconds, which a machine with
// much else to do moves. What no attempt finds is a check that does not bite.
const attempts = 8

// TestPlanted: each check finds what it is there for.
func TestPlanted(t *testing.T) {
	if !long {
		t.Skip("set SIDEKEY_LONG=1 to build sidekey with faults of its own")
	}
	for n, p := range readPlanted(t) {
		if p.Unproven {
			continue
		}
		t.Run(p.Name, func(t *testing.T) {
			t.Parallel()
			length := 2 * time.Second
			if p.Lease != "" {
				var err error
				if length, err = time.ParseDuration(p.Lease); err != nil {
					t.Fatal(err)
				}
			}
			at := p.at(p.binary(t, fmt.Sprint("planted-", n)), length)
			caught := false
			for try := 1; try <= attempts && !caught && !t.Failed(); try++ {
				t.Run(fmt.Sprint(try), func(t *testing.T) {
					r := plan{
						name: p.Name, seed: chooseSeed(t), faults: []*fault{named(p.Fault)}, times: max(p.Times, 1), backWithin: p.backWithin(), site: at,
					}.run(t)
					bites := r.bites()
					escaped := slices.DeleteFunc(slices.Clone(p.Checks), func(check string) bool { return bites[check] > 0 })
					t.Logf("%d operations: %v", r.ops, bites)
					switch caught = len(escaped) == 0; {
					case caught:
						r.noteCaught(p, bites)
					case try == attempts:
						r.h.keep(t)
						t.Errorf("%q did not find it in %d attempts: %v", escaped, attempts, bites)
					}
				})
			}
			if !caught && !t.Failed() {
				t.Skip("no attempt could be made")
			}
		})
	}
}

// backWithin is how long everybody may take to be back: not long where that is not what must show, since some never are.
func (p *planted) backWithin() time.Duration {
	if slices.Contains(p.Checks, checkBack) {
		return backWithin
	}
	return 10 * time.Second
}

// bites counts what a run has found, by check.
func (r *result) bites() map[string]int {
	n := make(map[string]int)
	for _, v := range r.found {
		n[v.check]++
	}
	return n
}
