//go:build linux

package faults

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// row is one fault in the table of docs/faults.md.
type row struct {
	runs, ops, checked, found int
	back                      time.Duration
	seeds                     []string
}

var table = struct {
	sync.Mutex
	rows   map[string]*row
	caught []string
}{rows: make(map[string]*row)}

// noteRun puts a run of the sound binary into the table.
func (r *result) noteRun() {
	table.Lock()
	defer table.Unlock()
	line := table.rows[r.name]
	if line == nil {
		line = new(row)
		table.rows[r.name] = line
	}
	line.runs += max(r.times, 1)
	line.ops += r.ops
	line.found += len(r.found)
	line.back = max(line.back, r.back)
	line.seeds = append(line.seeds, fmt.Sprint(r.seed))
	for _, n := range r.checked {
		line.checked += n
	}
	writeTable()
}

// noteCaught puts a run of a planted fault into the table.
func (r *result) noteCaught(p planted, bites map[string]int) {
	table.Lock()
	defer table.Unlock()
	for _, check := range p.Checks {
		table.caught = append(table.caught, fmt.Sprintf("| %s | `%s` | %s | %s | %d |", p.Name, p.File, p.Fault, check, bites[check]))
	}
	writeTable()
}

// writeTable writes what docs/faults.md shows, where SIDEKEY_FAULT_TABLE says, after each run: what was run is there though another
// hangs. table is locked.
func writeTable() {
	if tableFile == "" {
		return
	}
	var b strings.Builder
	b.WriteString("| fault | times | operations | looked at | violations | everyone back after | planted fault that it catches | seed |\n|---|---|---|---|---|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(table.rows)) {
		r := table.rows[name]
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %.1f s | %s | %s |\n", name, r.runs, r.ops, r.checked, r.found, r.back.Seconds(), catches(name), strings.Join(r.seeds, ", "))
	}
	b.WriteString("\n| planted fault | in | under | found by | times |\n|---|---|---|---|---|\n")
	slices.Sort(table.caught)
	b.WriteString(strings.Join(table.caught, "\n") + "\n")
	if err := os.WriteFile(tableFile, []byte(b.String()), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// catches names the planted faults that are found under a fault, or under one of several that a run had.
func catches(name string) string {
	var names []string
	all, _ := loadPlanted() // the tests of planted faults say what is wrong with it
	for _, p := range all {
		if !p.Unproven && strings.Contains(name, p.Fault) {
			names = append(names, p.Name)
		}
	}
	return strings.Join(names, "; ")
}
