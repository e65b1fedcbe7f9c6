package lease

import (
	"time"

	"golang.org/x/sys/unix"
)

// SystemClock reads this machine's clocks.
func SystemClock() Reading {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("lease: CLOCK_BOOTTIME cannot be read: " + err.Error()) // since Linux 2.6.39
	}
	now := time.Now()
	return Reading{Mono: now.Sub(processStart), Boot: time.Duration(ts.Nano()), Wall: time.Duration(now.UnixNano())}
}
