package lease

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// record is what a lease file holds, behind its length and CRC-32C (4 bytes each, big-endian):
//
//	{"boot": "…", "agent": "web-1", "run": "…", "floor": {"epoch": …, "seq": …}, "floor_chain": […],
//	 "begin": {…}, "length": …, "mode": "refuse", "position": {…}, "chain": […]}
//
// A plain write is enough: the file dies with the boot, as the lease does.
type record struct {
	Boot       string        `json:"boot"` // the kernel's boot id
	Agent      string        `json:"agent"`
	Run        string        `json:"run"`
	Floor      bus.Position  `json:"floor"`
	FloorChain bus.Chain     `json:"floor_chain"`
	Begin      Reading       `json:"begin"`
	Length     time.Duration `json:"length"`
	Mode       Mode          `json:"mode"`
	Position   bus.Position  `json:"position"`
	Chain      bus.Chain     `json:"chain"`
}

// fileSize is the size of a lease file: one page, which a single write replaces.
const fileSize = 4096

// ErrNotInMemory means that a folder is not in memory: a lease in it could be brought back by a
// disk image when it has long been fenced.
var ErrNotInMemory = errors.New("the folder is on a disk")

// File is a lease and a floor in a runtime folder in memory, held by one process at a time. It
// outlives the process and not the boot.
type File struct {
	f    *os.File
	boot string
}

// OpenFile opens, and makes where it is absent, the lease file of an agent in dir/NAME. ErrNotInMemory:
// go on without one. Any other error names what is in the way.
func OpenFile(dir, agent string) (*File, error) {
	dir = filepath.Join(dir, bus.Name(agent))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening agent.runtime_dir: %w", err)
	}
	if err := checkFolders(filepath.Dir(dir), dir); err != nil {
		return nil, err
	}
	if err := checkInMemory(dir); err != nil {
		return nil, err
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lease"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("refusing the lease file: it is a symbolic link; run: rm %s", filepath.Join(dir, "lease"))
	}
	if err != nil {
		return nil, fmt.Errorf("opening the lease file: %w", err)
	}
	info, err := f.Stat()
	if err == nil {
		err = checkOwn(f.Name(), info, 0)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("opening the lease file %s: another process holds it; give each agent a name (agent.name) or a runtime_dir of its own", f.Name())
	}
	return &File{f: f, boot: boot}, nil
}

// checkFolders checks agent.runtime_dir and the agent's own folder in it. The former may be a link,
// if its maker is trusted: systemd makes one for a service with a user of its own.
func checkFolders(runtime, own string) error {
	link, err := os.Lstat(runtime)
	if err == nil {
		err = checkOwner(runtime, link)
	}
	if err != nil {
		return err
	}
	for folder, stat := range map[string]func(string) (fs.FileInfo, error){runtime: os.Stat, own: os.Lstat} {
		info, err := stat(folder)
		if err != nil {
			return fmt.Errorf("opening agent.runtime_dir: %w", err)
		}
		if err := checkOwn(folder, info, fs.ModeDir); err != nil {
			return err
		}
	}
	return nil
}

// checkOwn refuses a folder or file that somebody else put there or may write: a lease in it could be
// forged, or taken away and brought back. It says what to do.
func checkOwn(path string, info fs.FileInfo, want fs.FileMode) error {
	if got := info.Mode().Type(); got != want {
		return fmt.Errorf("refusing %s: it is %v, a link or something else that agents do not make; remove it, or change agent.runtime_dir", path, info.Mode())
	}
	if err := checkOwner(path, info); err != nil {
		return err
	}
	// In a sticky folder, such as /dev/shm, others cannot touch what is ours.
	if info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("refusing %s: others may write it (mode %04o); run: chmod go-w %s", path, info.Mode().Perm(), path)
	}
	return nil
}

func checkOwner(path string, info fs.FileInfo) error {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("refusing %s: it belongs to another user; run: chown $(id -u) %s", path, path)
	}
	return nil
}

// Close gives the file up. What is in it stays for the next process.
func (f *File) Close() error { return f.f.Close() }

// read gives what an earlier process of this boot wrote, if that is whole.
func (f *File) read() (record, bool) {
	var rec record
	page := make([]byte, fileSize)
	if n, _ := f.f.ReadAt(page, 0); n < fileSize {
		return rec, false
	}
	n := binary.BigEndian.Uint32(page)
	if n > fileSize-8 {
		return rec, false
	}
	body := page[8 : 8+n]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(page[4:]) || json.Unmarshal(body, &rec) != nil {
		return rec, false
	}
	return rec, rec.Boot == f.boot && rec.Run != ""
}

func (f *File) write(rec record) error {
	rec.Boot = f.boot
	body, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("writing the lease file: %w", err)
	}
	if len(body) > fileSize-8 {
		return fmt.Errorf("writing the lease file: %d bytes are more than its page holds; is the agent's name very long?", len(body))
	}
	page := make([]byte, fileSize)
	binary.BigEndian.PutUint32(page, uint32(len(body)))
	binary.BigEndian.PutUint32(page[4:], crc32.Checksum(body, castagnoli))
	copy(page[8:], body)
	if _, err := f.f.WriteAt(page, 0); err != nil {
		return fmt.Errorf("writing the lease file: %w", err)
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// bootID names this boot of the machine.
func bootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("%w: the boot has no id here: %w", ErrNotInMemory, err)
	}
	return strings.TrimSpace(string(text)), nil
}
