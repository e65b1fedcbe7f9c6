//go:build !race

package fleettest_test

const underRace = false
