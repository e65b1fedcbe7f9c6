//go:build !linux

package agent_test

// readBootClock: there is none here, and no decision reads it.
func readBootClock() bool { return true }
