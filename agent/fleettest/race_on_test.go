//go:build race

package fleettest_test

// underRace: the race detector makes a thousand agents in one process ten times slower, and what is measured no figure.
const underRace = true
