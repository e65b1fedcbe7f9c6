//go:build !linux

package lease

import "time"

// SystemClock reads this machine's clocks. Without CLOCK_BOOTTIME a suspension shows in the wall
// clock alone, and no lease outlives a process: Boot begins with it.
func SystemClock() Reading {
	now := time.Now()
	mono := now.Sub(processStart)
	return Reading{Mono: mono, Boot: mono, Wall: time.Duration(now.UnixNano())}
}
