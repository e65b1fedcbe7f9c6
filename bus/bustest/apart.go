package bustest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// envApart names the configuration that a child process of StartApart runs a nats-server with.
const envApart = "SIDEKEY_TEST_NATS"

// Main is called first in the TestMain of a package that uses StartApart: in a child process it runs a
// nats-server until it is told to stop, and does not return.
func Main() {
	conf := os.Getenv(envApart)
	if conf == "" {
		return
	}
	opts, err := server.ProcessConfigFile(conf)
	if err == nil {
		opts.NoSigs, opts.LogFile = true, "nats.log"
		var srv *server.Server
		if srv, err = server.NewServer(opts); err == nil {
			srv.ConfigureLogger()
			srv.Start()
			stop := make(chan os.Signal, 1)
			signal.Notify(stop, syscall.SIGTERM)
			<-stop
			srv.Shutdown()
			os.Exit(0)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// Apart are nats-servers in processes of their own, so that what they use can be told from what a test uses.
type Apart struct{ pids []int }

// StartApart starts so many nats-servers, one or a cluster, as `sidekey bus export` configures them, in
// processes of their own; streams and buckets have as many replicas. The package's TestMain calls Main.
func StartApart(t testing.TB, servers int) (*Bus, *Apart) {
	t.Helper()
	keys, err := bus.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	authority, err := keyring.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	b := &Bus{Keys: keys, Authority: authority, Master: keyring.NewMasterKey(), replicas: servers, revoked: filepath.Join(t.TempDir(), "bus.revoked")}
	var routes, listens []string
	for range servers {
		listens, routes = append(listens, freeAddress(t)), append(routes, freeAddress(t))
	}
	x := new(Apart)
	for n, listen := range listens {
		dir := t.TempDir()
		if _, err := bus.Export(dir, keys, bus.ExportConfig{Listen: listen}); err != nil {
			t.Fatal(err)
		}
		conf := filepath.Join(dir, "nats-server.conf")
		if servers > 1 {
			text, err := os.ReadFile(conf)
			if err != nil {
				t.Fatal(err)
			}
			more := fmt.Sprintf("\nserver_name: \"s%d\"\ncluster { name: c, listen: %q, routes: [%s] }\n", n, routes[n], `"nats://`+strings.Join(routes, `", "nats://`)+`"`)
			if err := os.WriteFile(conf, append(text, more...), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command(os.Args[0])
		cmd.Dir, cmd.Env, cmd.Stderr = dir, append(os.Environ(), envApart+"="+conf), t.Output()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it has ended already, then
			cmd.Wait()                          //nolint:errcheck // a signal is how it ends
		})
		x.pids = append(x.pids, cmd.Process.Pid)
		b.urls = append(b.urls, "nats://"+listen)
	}
	b.awaitApart(t)
	return b, x
}

// awaitApart waits until the servers have a leader.
func (b *Bus) awaitApart(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn := b.Connect(t)
	for {
		l, err := bus.OpenLog(ctx, conn, bus.LogConfig{Authority: b.Authority, Issuer: "issuer-1", Replicas: b.replicas})
		if err == nil {
			l.Close()
			return
		}
		if ctx.Err() != nil {
			t.Fatal(errors.Join(ctx.Err(), err))
		}
	}
}

func freeAddress(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// Usage is what the servers have used since they were started.
type Usage struct {
	CPU      time.Duration
	In, Out  int64 // bytes that they have read and written, on the network and on the disk
	Resident int64 // bytes of memory, now
}

// Usage asks the system. Where it is no Linux the test is skipped.
func (x *Apart) Usage(t testing.TB) (u Usage) {
	t.Helper()
	for _, pid := range x.pids {
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			t.Skipf("what a process uses cannot be read here: %v", err)
		}
		f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		user, _ := strconv.ParseInt(f[11], 10, 64)
		system, _ := strconv.ParseInt(f[12], 10, 64)
		pages, _ := strconv.ParseInt(f[21], 10, 64)
		u.CPU += time.Duration(user+system) * 10 * time.Millisecond // Linux tells hundredths of a second
		u.Resident += pages * int64(os.Getpagesize())
		io, err := os.ReadFile(filepath.Join(dir, "io"))
		if err != nil {
			t.Skipf("what a process uses cannot be read here: %v", err)
		}
		var in, out int64
		fmt.Sscanf(string(io), "rchar: %d\nwchar: %d", &in, &out) //nolint:errcheck // both stand there
		u.In, u.Out = u.In+in, u.Out+out
	}
	return u
}
