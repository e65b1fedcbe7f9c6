package lease_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
)

// writePage writes a lease file with this body and its checksum.
func writePage(t *testing.T, path string, body []byte) {
	t.Helper()
	page := make([]byte, 4096)
	binary.BigEndian.PutUint32(page, uint32(len(body)))
	binary.BigEndian.PutUint32(page[4:], crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
	copy(page[8:], body)
	if err := os.WriteFile(path, page, 0o600); err != nil {
		t.Fatal(err)
	}
}

// kept is an agent whose lease outlives its process.
type kept struct {
	*holding
	dir  string
	file *lease.File
}

// newKept has applied and acknowledged 10 entries, under a lease of the tick at 8, of a minute.
func newKept(t *testing.T, change ...func(*lease.HolderConfig)) *kept {
	k := &kept{holding: &holding{t: t, clock: newClock(), log: newTape()}, dir: runtimeDir(t)}
	k.start(change...)
	k.take(k.Ask(), 8)
	k.applied(10)
	if err := k.Floor(k.log.at(10)); err != nil {
		t.Fatal(err)
	}
	k.want("before the restart", true)
	return k
}

// stop is the end of a process, however it comes.
func (k *kept) stop() { k.file.Close() }

func (k *kept) start(change ...func(*lease.HolderConfig)) {
	k.t.Helper()
	k.file = openFile(k.t, k.dir)
	k.restart(append(change, func(c *lease.HolderConfig) { c.File = k.file })...)
}

// TestRestart: what a process finds of the one before it.
func TestRestart(t *testing.T) {
	served := func(c *lease.HolderConfig) { c.Mode = lease.Serve }
	shorter := func(c *lease.HolderConfig) { c.Length = 10 * time.Second }
	longer := func(c *lease.HolderConfig) { c.Length = time.Hour }
	none := func(*lease.HolderConfig) {}
	for name, c := range map[string]struct {
		before, after func(*lease.HolderConfig)
		between       func(t *testing.T, k *kept)
		sameRun       bool
		left          time.Duration // of the lease, at the floor; 0: it does not vouch
	}{
		"at once":                 {none, none, func(_ *testing.T, k *kept) {}, true, time.Minute},
		"a moment before its end": {none, none, func(_ *testing.T, k *kept) { k.clock.pass(time.Minute - 1) }, true, 1},
		"at its end":              {none, none, func(_ *testing.T, k *kept) { k.clock.pass(time.Minute) }, false, 0},
		"another process's monotonic clock": {none, none, func(_ *testing.T, k *kept) { k.clock.turn(-time.Minute, time.Second, time.Second) },
			true, 59 * time.Second},
		"suspended over its end": {none, none, func(_ *testing.T, k *kept) { k.clock.turn(0, time.Minute, 0) }, false, 0},
		"wall clock back":        {none, none, func(_ *testing.T, k *kept) { k.clock.turn(0, 20*time.Second, -time.Hour) }, true, 40 * time.Second},
		"wall clock forward":     {none, none, func(_ *testing.T, k *kept) { k.clock.turn(0, 0, time.Hour) }, false, 0},
		"another boot": {none, none, func(t *testing.T, k *kept) {
			rewrite(t, filePath(k.dir, "web-1"), func(rec map[string]any) { rec["boot"] = "c0ffee" })
		}, false, 0},
		"another agent's file": {none, none, func(t *testing.T, k *kept) {
			rewrite(t, filePath(k.dir, "web-1"), func(rec map[string]any) { rec["agent"] = "web-2" })
		}, false, 0},
		"no run": {none, none, func(t *testing.T, k *kept) {
			rewrite(t, filePath(k.dir, "web-1"), func(rec map[string]any) { rec["run"] = "" })
		}, false, 0},
		"no file":          {none, none, func(t *testing.T, k *kept) { os.Remove(filePath(k.dir, "web-1")) }, false, 0},
		"an empty file":    {none, none, func(t *testing.T, k *kept) { os.Truncate(filePath(k.dir, "web-1"), 0) }, false, 0},
		"a file cut short": {none, none, func(t *testing.T, k *kept) { os.Truncate(filePath(k.dir, "web-1"), 4095) }, false, 0},
		"no JSON":          {none, none, func(t *testing.T, k *kept) { writePage(t, filePath(k.dir, "web-1"), []byte("{")) }, false, 0},
		"an absurd length": {none, none, func(t *testing.T, k *kept) {
			page := make([]byte, 4096)
			binary.BigEndian.PutUint32(page, 1<<32-1)
			os.WriteFile(filePath(k.dir, "web-1"), page, 0o600)
		}, false, 0},
		"a shorter max_staleness":           {none, shorter, func(_ *testing.T, k *kept) {}, true, 10 * time.Second},
		"a shorter one, over by it":         {none, shorter, func(_ *testing.T, k *kept) { k.clock.pass(10 * time.Second) }, false, 0},
		"a longer max_staleness":            {none, longer, func(_ *testing.T, k *kept) {}, true, time.Minute},
		"serve, then refuse":                {served, none, func(_ *testing.T, k *kept) {}, true, time.Minute},
		"serve, then refuse, over":          {served, none, func(_ *testing.T, k *kept) { k.clock.pass(time.Minute) }, false, 0},
		"serve, over":                       {served, served, func(_ *testing.T, k *kept) { k.clock.pass(time.Hour) }, true, time.Hour},
		"refuse, then serve":                {none, served, func(_ *testing.T, k *kept) {}, true, time.Minute},
		"refuse, then serve, over":          {none, served, func(_ *testing.T, k *kept) { k.clock.pass(time.Minute) }, false, 0},
		"serve, then refuse, then serve":    {served, served, func(t *testing.T, k *kept) { k.start(none); k.stop() }, true, time.Hour},
		"two restarts, an hour, both serve": {served, served, func(t *testing.T, k *kept) { k.clock.pass(time.Hour); k.start(served); k.stop() }, true, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKept(t, c.before)
			was := k.Run()
			k.stop()
			c.between(t, k)
			k.start(c.after)
			if same := k.Run() == was; same != c.sameRun {
				t.Errorf("the run is the same: %v, want %v", same, c.sameRun)
			}
			k.want("before anything is applied", false)
			if k.AtFloor() == c.sameRun {
				t.Errorf("AtFloor: got %v", k.AtFloor())
			}
			k.applied(9)
			k.want("beyond its tick, below the floor", false)
			k.applied(10)
			k.want("at the floor", c.left > 0)
			if c.left > 0 && c.left < time.Hour {
				k.clock.pass(c.left - 1)
				k.want("a nanosecond before its end", true)
				k.clock.pass(1)
				k.want("at its end", false)
			}
		})
	}
}

// TestRestartBelowTheTick: a kept lease counts from its own tick on, floor or no floor.
func TestRestartBelowTheTick(t *testing.T) {
	k := &kept{holding: &holding{t: t, clock: newClock(), log: newTape()}, dir: runtimeDir(t)}
	k.start()
	k.take(k.Ask(), 8)
	k.applied(8)
	k.stop()
	k.start()
	k.applied(7)
	k.want("at 7", false)
	k.applied(8)
	k.want("at 8", true)
}

// TestRestartByAnOldCheckpointOfAnotherLog: the kept lease counts only where the entries are those
// that the earlier process had applied.
func TestRestartByAnOldCheckpointOfAnotherLog(t *testing.T) {
	for name, seq := range map[string]int{"at its tick": 7, "at the floor": 9} {
		k := newKept(t)
		k.stop()
		k.start()
		k.log.chains[seq][0] ^= 1
		if err := k.Applied(k.log.at(10).Position, k.log.chainAt); !errors.Is(err, bus.ErrRollback) {
			t.Errorf("another entry %s: got %v, want ErrRollback", name, err)
		}
		k.want("with another log", false)
	}
}

// TestGrantsOfTheProcessBefore: an answer to a question of the process before is none to this one's,
// though both are the same run.
func TestGrantsOfTheProcessBefore(t *testing.T) {
	k := newKept(t)
	req := k.Ask()
	k.stop()
	k.start()
	if req.Run != k.Run() {
		t.Fatal("the run is another one")
	}
	if err := k.Take(answers(req, k.log.upTo(11))); !errors.Is(err, lease.ErrGrant) {
		t.Errorf("Take: got %v, want ErrGrant", err)
	}
}

// TestFileAltered: a bit flipped anywhere in the record loses the lease, and never makes another one.
func TestFileAltered(t *testing.T) {
	k := newKept(t)
	was := k.Run()
	k.stop()
	path := filePath(k.dir, "web-1")
	page := must(os.ReadFile(path))(t)
	used := 8 + int(binary.BigEndian.Uint32(page))
	for n := range used {
		flipped := append([]byte(nil), page...)
		flipped[n] ^= 1 << (n % 8)
		if err := os.WriteFile(path, flipped, 0o600); err != nil {
			t.Fatal(err)
		}
		k.start()
		if k.Run() == was {
			t.Errorf("bit %d of byte %d flipped: the run goes on", n%8, n)
		}
		k.stop()
	}
	t.Logf("%d altered lease files: 0 believed", used)
}

// TestFileIsSmall: with the longest names the record fits into its page.
func TestFileIsSmall(t *testing.T) {
	f, err := lease.OpenFile(runtimeDir(t), strings.Repeat("n", 128))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	log := newTape()
	log.epoch = 1<<64 - 1
	h := lease.NewHolder(lease.HolderConfig{Agent: strings.Repeat("<", 128), Length: lease.MaxLength, Mode: lease.Refuse, File: f})
	if err := h.Take(answers(h.Ask(), log.next())); err != nil {
		t.Fatal(err)
	}
	if err := h.Floor(log.at(1)); err != nil {
		t.Errorf("Floor: %v", err)
	}
}

// TestFileLocked: two processes never share a lease.
func TestFileLocked(t *testing.T) {
	dir := runtimeDir(t)
	first := openFile(t, dir)
	_, err := lease.OpenFile(dir, "web-1")
	if err == nil || !strings.Contains(err.Error(), "another process holds it; give each agent a name (agent.name)") {
		t.Errorf("opened twice: got %v", err)
	}
	if other, err := lease.OpenFile(dir, "web-2"); err != nil {
		t.Errorf("another agent's: %v", err)
	} else {
		other.Close()
	}
	first.Close()
	openFile(t, dir)
}

// TestFileFolder: a name cannot lead out of the folder, which others may not look into.
func TestFileFolder(t *testing.T) {
	dir := runtimeDir(t)
	for _, name := range []string{"../../etc", "a/b", ".", "web-1"} {
		f, err := lease.OpenFile(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		info := must(os.Stat(filepath.Dir(filePath(dir, name))))(t)
		if info.Mode().Perm() != 0o700 {
			t.Errorf("the folder of %q is %v, want 0700", name, info.Mode().Perm())
		}
	}
	if got := len(must(os.ReadDir(dir))(t)); got != 4 {
		t.Errorf("%d folders for 4 names", got)
	}
}

// TestFileOfOthers: what others may write, or made, is believed for nothing, and the error says what to do.
func TestFileOfOthers(t *testing.T) {
	elsewhere := filepath.Join(runtimeDir(t), "elsewhere")
	for name, c := range map[string]struct {
		spoil func(t *testing.T, dir, file string) error
		want  string
	}{
		"a folder for all":              {func(_ *testing.T, dir, _ string) error { return os.Chmod(dir, 0o777) }, "chmod go-w"},
		"an agent's folder for a group": {func(_ *testing.T, _, file string) error { return os.Chmod(filepath.Dir(file), 0o770) }, "chmod go-w"},
		"a file for all":                {func(_ *testing.T, _, file string) error { return os.Chmod(file, 0o666) }, "chmod go-w"},
		"a link for a file": {func(_ *testing.T, _, file string) error {
			return errors.Join(os.Rename(file, elsewhere), os.Symlink(elsewhere, file))
		}, "it is a symbolic link; run: rm"},
		"a link for a folder": {func(_ *testing.T, _, file string) error {
			dir := filepath.Dir(file)
			return errors.Join(os.Rename(dir, dir+".real"), os.Symlink(dir+".real", dir))
		}, "change agent.runtime_dir"},
		"another's file": {func(t *testing.T, _, file string) error {
			if os.Geteuid() != 0 {
				t.Skip("only root can give a file away")
			}
			return os.Chown(file, 65534, 65534)
		}, "chown $(id -u)"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := runtimeDir(t)
			openFile(t, dir).Close()
			if err := c.spoil(t, dir, filePath(dir, "web-1")); err != nil {
				t.Fatal(err)
			}
			f, err := lease.OpenFile(dir, "web-1")
			if err == nil {
				f.Close()
				t.Fatal("it was opened")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %q, want it to say %q", err, c.want)
			}
		})
	}
}

// TestFileNotInMemory: on a disk no lease is kept.
func TestFileNotInMemory(t *testing.T) {
	dir, err := os.MkdirTemp(".", "on-disk-")
	if err != nil {
		t.Skipf("this folder cannot be written to: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f, err := lease.OpenFile(dir, "web-1")
	if err == nil {
		f.Close()
		t.Skip("this folder is in memory")
	}
	if !errors.Is(err, lease.ErrNotInMemory) {
		t.Errorf("OpenFile on a disk: got %v, want ErrNotInMemory", err)
	}
	if _, err := lease.OpenFile("/proc/self/no-such", "web-1"); err == nil || errors.Is(err, lease.ErrNotInMemory) {
		t.Errorf("OpenFile where nothing can be made: got %v, want the cause", err)
	}
}

// TestFloorThatCannotBeWritten: without its floor no acknowledgement leaves, also not at the second try.
func TestFloorThatCannotBeWritten(t *testing.T) {
	k := newKept(t)
	k.file.Close()
	for try := range 3 {
		if err := k.Floor(k.log.upTo(11)); err == nil {
			t.Errorf("try %d: Floor succeeded though the file is closed", try+1)
		}
	}
	k.start()
	k.applied(10)
	k.want("at the floor that was written", true)
}

// FuzzFile: whatever stands in a lease file, a start neither fails nor takes up a lease without end.
func FuzzFile(f *testing.F) {
	f.Add([]byte(`{"boot":"","agent":"web-1","run":"r","floor":{"epoch":1,"seq":2},"begin":{"Mono":1,"Boot":2,"Wall":3},"length":60000000000,"mode":"refuse"}`))
	f.Add([]byte(`{"agent":"web-1","run":"r","position":{"epoch":1,"seq":2},"begin":{"Boot":9000000000000},"length":60000000000,"mode":"refuse"}`))
	f.Add([]byte(`{"length":9223372036854775807,"run":"r","agent":"web-1","begin":{"Boot":9223372036854775807,"Wall":-9223372036854775808}}`))
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		f.Skip("the boot has no id here")
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var rec map[string]any
		if json.Unmarshal(body, &rec) != nil || rec == nil {
			t.Skip()
		}
		rec["boot"] = strings.TrimSpace(string(boot))
		sealed, err := json.Marshal(rec)
		if err != nil || len(sealed) > 4088 {
			t.Skip()
		}
		dir := runtimeDir(t)
		openFile(t, dir).Close()
		writePage(t, filePath(dir, "web-1"), sealed)
		c := newClock()
		h := lease.NewHolder(lease.HolderConfig{Agent: "web-1", Length: time.Minute, Mode: lease.Refuse, Clock: c.read, File: openFile(t, dir)})
		log := newTape()
		log.upTo(3)
		h.Applied(bus.Position{Epoch: 1, Seq: 1 << 62}, func(uint64) (bus.Chain, bool) { return bus.Chain{}, false })
		if l := h.Current(); l != nil && l.Left(c.read()) > time.Minute {
			t.Errorf("a lease of %s", l.Left(c.read()))
		}
	})
}
