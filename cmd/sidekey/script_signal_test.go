package main

import (
	"slices"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"
)

// scriptSignal sends STOP or CONT to the agent of a name that runs in the background: a machine that stands still.
func scriptSignal(ts *testscript.TestScript, neg bool, args []string) {
	refuseNeg(ts, neg)
	signals := map[string]syscall.Signal{"STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT}
	if len(args) != 2 || signals[args[0]] == 0 {
		ts.Fatalf("usage: signal STOP|CONT AGENT")
	}
	for _, cmd := range ts.BackgroundCmds() {
		if at := slices.Index(cmd.Args, "--agent-name"); at > 0 && cmd.Args[at+1] == args[1] {
			ts.Check(cmd.Process.Signal(signals[args[0]]))
			ts.Defer(func() { cmd.Process.Signal(syscall.SIGCONT) }) // one that stands still would never end
			return
		}
	}
	ts.Fatalf("no agent %q runs in the background", args[1])
}
