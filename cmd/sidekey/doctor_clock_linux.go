package main

import "golang.org/x/sys/unix"

// clockSynced asks the kernel whether something keeps this host's clock right. Anybody may ask, where nothing is to be set.
func clockSynced() (synced, known bool) {
	var t unix.Timex
	_, err := unix.Adjtimex(&t)
	return t.Status&unix.STA_UNSYNC == 0, err == nil
}
