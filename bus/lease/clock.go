package lease

import "time"

// Reading is what a process's clocks say at one moment. Readings of one process, and the Boot and
// Wall of readings of one boot, can be compared; the zero value is no moment at all.
type Reading struct {
	Mono time.Duration // CLOCK_MONOTONIC, since some moment of this process: stands still while the machine is suspended
	Boot time.Duration // CLOCK_BOOTTIME: since the boot, suspension included
	Wall time.Duration // since 1970: steps when somebody sets it
}

// Clock reads the clocks. Tests have their own.
type Clock func() Reading

// longest is the most time that can have passed between two readings by any clock that outlives a
// process: what a holder must assume (PROTOCOL 8). CLOCK_BOOTTIME is never behind CLOCK_MONOTONIC.
func longest(from, to Reading) time.Duration { return max(to.Boot-from.Boot, to.Wall-from.Wall) }

// shortest is the least time that can have passed by any clock: what a fence must assume.
func shortest(from, to Reading) time.Duration {
	return min(to.Mono-from.Mono, to.Boot-from.Boot, to.Wall-from.Wall)
}

var processStart = time.Now()
