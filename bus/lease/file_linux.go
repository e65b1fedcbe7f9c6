package lease

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// checkInMemory refuses folders that outlive the boot.
func checkInMemory(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("looking at %s: %w", dir, err)
	}
	if fs.Type != unix.TMPFS_MAGIC && fs.Type != unix.RAMFS_MAGIC {
		return fmt.Errorf("%w: %s is no tmpfs; a lease kept there could come back with a disk image", ErrNotInMemory, dir)
	}
	return nil
}
