package main

import (
	"path/filepath"
	"slices"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"
)

// scriptSignal sends STOP or CONT to the agent of a name that runs in the background, or to the issuer with a data_dir of that
// name given by --data-dir: a machine that stands still.
func scriptSignal(ts *testscript.TestScript, neg bool, args []string) {
	refuseNeg(ts, neg)
	signals := map[string]syscall.Signal{"STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT}
	if len(args) != 2 || signals[args[0]] == 0 {
		ts.Fatalf("usage: signal STOP|CONT AGENT|ISSUER")
	}
	for _, cmd := range ts.BackgroundCmds() {
		agent, issuer := slices.Index(cmd.Args, "--agent-name"), slices.Index(cmd.Args, "--data-dir")
		if agent > 0 && cmd.Args[agent+1] == args[1] || issuer > 0 && filepath.Base(cmd.Args[issuer+1]) == args[1] {
			ts.Check(cmd.Process.Signal(signals[args[0]]))
			ts.Defer(func() { cmd.Process.Signal(syscall.SIGCONT) }) // one that stands still would never end
			return
		}
	}
	ts.Fatalf("no agent or issuer %q runs in the background", args[1])
}
