// Package faults holds a whole site of sidekey, real processes and real connections, to its promises while everything goes wrong
// around it. It has tests only, for Linux.
//
// Read it in this order:
//
//	site_test.go      the processes: issuers, agents, what lies between them and the bus
//	workload_test.go  the clients: logins, refreshes, checks, revocations, rotations, each written down
//	history_test.go   what was written down: who was asked what, from when to when, and what came back
//	family_test.go    a family of refresh tokens as a sequential model, which porcupine holds the history against
//	checks_test.go    the promises, each a plain scan of the history
//	faults_test.go    what goes wrong: each fault by name, what it needs, how it begins and ends
//	cluster_test.go   the same of a cluster of three; network_test.go in network namespaces
//	disk_test.go      full disks and old folders; power_test.go un-synced bytes lost; damage_test.go files damaged
//	clock_test.go     clocks that are off
//	run_test.go       one run: site, workload, faults, then the checks
//	planted_test.go   that the checks bite: sidekey is built with a fault of its own, and a named check must fail
//
// A run is made of a seed. It is printed where the run fails, and SIDEKEY_FAULT_SEED repeats its choices (not its timing); the
// history is then kept in a file, which the failure names. `go test` makes a short run; SIDEKEY_LONG=1 all of them, and
// SIDEKEY_FAULT_TABLE=FILE writes the table of docs/faults.md from what has been run.
package faults
