//go:build !linux

package lease

// checkInMemory refuses: only on Linux is it known how to tell.
func checkInMemory(string) error { return ErrNotInMemory }
