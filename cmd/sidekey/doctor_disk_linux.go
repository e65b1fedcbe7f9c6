package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// networks are the file systems that another host keeps.
var networks = map[int64]string{
	unix.NFS_SUPER_MAGIC: "NFS", unix.SMB_SUPER_MAGIC: "SMB", unix.CIFS_SUPER_MAGIC: "CIFS", unix.SMB2_SUPER_MAGIC: "SMB",
	unix.V9FS_MAGIC: "9p", unix.AFS_SUPER_MAGIC: "AFS", unix.CEPH_SUPER_MAGIC: "Ceph",
}

// roomOf looks at the file system of a folder.
func roomOf(dir string) (room, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return room{}, fmt.Errorf("looking at %s: %w", dir, err)
	}
	kind := int64(s.Type)
	return room{
		free: s.Bavail * uint64(s.Bsize), size: s.Blocks * uint64(s.Bsize), inodes: s.Ffree,
		memory: kind == unix.TMPFS_MAGIC || kind == unix.RAMFS_MAGIC, network: networks[kind], knownToMatch: true,
	}, nil
}
