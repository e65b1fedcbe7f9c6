package faults

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
)

// planted is a fault of sidekey itself, as testdata/planted.toml has it.
type planted struct {
	Name, Fault    string
	Checks         []string // each must find it
	Unproven       bool
	File, Old, New string
	Times, Issuers int
	Lease          string
	Site           string // "": processes and proxies; "network", "power"
}

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

// changed is the source of the file with the fault in it.
func (p *planted) changed() (string, error) {
	source, err := os.ReadFile(filepath.Join(repository, p.File))
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(source), p.Old); n != 1 {
		return "", fmt.Errorf("testdata/planted.toml, %q: %s has this %d times, want once: %s", p.Name, p.File, n, p.Old)
	}
	return strings.Replace(string(source), p.Old, p.New, 1), nil
}

// binary builds sidekey with the fault in it; the sources stay as they are.
func (p *planted) binary(t *testing.T, name string) string {
	t.Helper()
	source, err := p.changed()
	if err != nil {
		t.Fatal(err)
	}
	binary, err := buildChanged(name, filepath.Join(repository, p.File), source)
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// buildChanged builds sidekey with another source in a file's place.
func buildChanged(name, path, source string) (string, error) {
	file, overlay := filepath.Join(buildDir, name+".go"), filepath.Join(buildDir, name+".json")
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{path: file}})
	for path, content := range map[string][]byte{file: []byte(source), overlay: replace} {
		if err == nil {
			err = os.WriteFile(path, content, 0o600)
		}
	}
	if err != nil {
		return "", err
	}
	return build(name, "-overlay", overlay)
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
						name: p.Name, seed: chooseSeed(t), faults: []*fault{named(p.Fault)}, times: max(p.Times, 1), backWithin: 10 * time.Second, site: at,
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
		})
	}
}

// bites counts what a run has found, by check.
func (r *result) bites() map[string]int {
	n := make(map[string]int)
	for _, v := range r.found {
		n[v.check]++
	}
	return n
}
