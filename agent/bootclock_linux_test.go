package agent_test

import "golang.org/x/sys/unix"

// readBootClock reads the clock that goes on while the machine is suspended, as every decision does.
func readBootClock() bool {
	var ts unix.Timespec
	return unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) == nil
}
