package bus_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/keyring"
)

// operator connects as one who owns the bus: with nats.go alone, as the given user.
func operator(t testing.TB, b *bustest.Bus, user *bus.User, opts ...nats.Option) *nats.Conn {
	t.Helper()
	kp, err := nkeys.FromSeed(user.Seed)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(b.Server.URL(), append(opts, nats.UserJWT(func() (string, error) { return user.JWT, nil }, kp.Sign))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func serverConfig(t *testing.T) bus.ServerConfig {
	t.Helper()
	keys, err := bus.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	return bus.ServerConfig{Listen: "127.0.0.1:0", Dir: t.TempDir(), Keys: keys}
}

// TestServerRefusals: what would open the bus to others, or cannot be started, is refused with the
// setting that is in the way.
func TestServerRefusals(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*bus.ServerConfig)
		want   string
	}{
		"no port":       {func(c *bus.ServerConfig) { c.Listen = "127.0.0.1" }, "bus.listen"},
		"a large port":  {func(c *bus.ServerConfig) { c.Listen = "127.0.0.1:70000" }, "bus.listen"},
		"a port's name": {func(c *bus.ServerConfig) { c.Listen = "127.0.0.1:nats" }, "bus.listen"},
		"no keys":       {func(c *bus.ServerConfig) { c.Keys = nil }, "never listens without keys"},
		"port in use":   {func(c *bus.ServerConfig) { c.Listen = taken.Addr().String() }, "bus.listen"},
		"store a file":  {func(c *bus.ServerConfig) { c.Dir = file }, file},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := serverConfig(t)
			c.change(&cfg)
			srv, err := bus.StartServer(cfg)
			if err == nil {
				srv.Close()
				t.Fatal("started")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("StartServer: got %q, want it to name %q", err, c.want)
			}
		})
	}
}

// TestServerLetsNobodyIn: without a key, with another key or with a password there is no way in.
func TestServerLetsNobodyIn(t *testing.T) {
	b := bustest.Start(t)
	stranger, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	pub, _ := stranger.PublicKey()
	issuer := b.Issuer(t)
	others, err := bus.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	alien, err := others.IssuerUser("issuer-1")
	if err != nil {
		t.Fatal(err)
	}
	asUser := func(token string, by nkeys.KeyPair) nats.Option {
		return nats.UserJWT(func() (string, error) { return token, nil }, by.Sign)
	}
	alienKey, err := nkeys.FromSeed(alien.Seed)
	if err != nil {
		t.Fatal(err)
	}
	for name, opt := range map[string]nats.Option{
		"nothing":                   func(*nats.Options) error { return nil },
		"password":                  nats.UserInfo("admin", "admin"),
		"token":                     nats.Token("s3cr3t"),
		"another key":               nats.Nkey(pub, stranger.Sign),
		"a JWT, its key not proven": asUser(issuer.JWT, stranger),
		"another operator's JWT":    asUser(alien.JWT, alienKey),
	} {
		if nc, err := nats.Connect(b.Server.URL(), opt); !errors.Is(err, nats.ErrAuthorization) {
			if err == nil {
				nc.Close()
			}
			t.Errorf("connecting with %s: got %v, want an authorization violation", name, err)
		}
	}
}

// listening gives the addresses on which this process and its neighbours in the network namespace listen.
func listening(t *testing.T) map[string]bool {
	t.Helper()
	all := make(map[string]bool)
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Skipf("the system does not say what listens: %v", err)
		}
		for _, line := range strings.Split(string(text), "\n")[1:] {
			if f := strings.Fields(line); len(f) > 9 && f[3] == "0A" && ours(t, f[9]) {
				all[f[1]] = true
			}
		}
	}
	return all
}

// ours tells whether a socket, by its inode, is this process's.
func ours(t *testing.T, inode string) bool {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("the system does not say what is open: %v", err)
	}
	for _, fd := range fds {
		if to, _ := os.Readlink(filepath.Join("/proc/self/fd", fd.Name())); to == "socket:["+inode+"]" {
			return true
		}
	}
	return false
}

// TestServerOpensOnePort: the client port and no other.
func TestServerOpensOnePort(t *testing.T) {
	before := listening(t)
	b := bustest.Start(t)
	b.Log(t) // streams and all
	_, port, err := net.SplitHostPort(strings.TrimPrefix(b.Server.URL(), "nats://"))
	if err != nil {
		t.Fatal(err)
	}
	var opened []string
	for addr := range listening(t) {
		if !before[addr] {
			opened = append(opened, addr)
		}
	}
	var n int
	fmt.Sscan(port, &n)
	if want := fmt.Sprintf("0100007F:%04X", n); len(opened) != 1 || opened[0] != want {
		t.Errorf("listening sockets: got %v, want only %s", opened, want)
	}
}

// TestServerStore: the store is its owner's alone, and outlives a restart.
func TestServerStore(t *testing.T) {
	b := bustest.Start(t)
	if info, err := os.Stat(b.Dir()); err != nil || info.Mode().Perm()&0o077 != 0 {
		// t.TempDir makes it 0777 less the umask; what the server makes inside is what counts.
		entries, err := os.ReadDir(b.Dir())
		if err != nil || len(entries) == 0 {
			t.Fatalf("the store is empty: %v", err)
		}
		for _, e := range entries {
			if info, err := e.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s: mode %v, want nothing for group and others (%v)", e.Name(), info.Mode(), err)
			}
		}
	}
	pos := mustAppend(t, b.Log(t), revocation("kept"))
	b.Restart(t)
	if got := collect(t, b.Log(t), bus.Cursor{}, 1); got[0].Position != pos {
		t.Errorf("after a restart: got %v, want %v", got[0].Position, pos)
	}
	if err := errors.Join(b.Server.Close(), b.Server.Close()); err != nil {
		t.Errorf("Close twice: %v", err)
	}
}

func TestOlder(t *testing.T) {
	for _, c := range []struct {
		have string
		want bool
	}{
		{"2.12.0", false}, {"2.12.1", false}, {"2.13.0", false}, {"3.0.0", false}, {"v2.12.0", false}, {"2.12.0-RC.1", false},
		{"2.11.99", true}, {"2.9.0", true}, {"1.99.99", true}, {"", true}, {"latest", true}, {"2.12", true},
	} {
		if got := bus.Older(c.have, "2.12.0"); got != c.want {
			t.Errorf("older(%q, 2.12.0): got %v, want %v", c.have, got, c.want)
		}
	}
}

// TestConnectErrors: what an operator gets wrong is named, and no password is printed.
func TestConnectErrors(t *testing.T) {
	b := bustest.Start(t)
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.creds")
	if err := os.WriteFile(bad, []byte("no seed"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		cfg  bus.ConnectConfig
		want string
	}{
		"no credentials": {bus.ConnectConfig{URLs: []string{b.Server.URL()}}, "bus.credentials"},
		"no such file":   {bus.ConnectConfig{URLs: []string{b.Server.URL()}, Credentials: filepath.Join(dir, "none")}, "bus.credentials"},
		"no seed":        {bus.ConnectConfig{URLs: []string{b.Server.URL()}, Credentials: bad}, ".creds file"},
		"no url":         {bus.ConnectConfig{URLs: []string{"nats://u:hunter2@host:port"}, User: b.Agent(t, "x")}, "nats://host:port"},
		"odd escape":     {bus.ConnectConfig{URLs: []string{"nats://u:hunter2%zz@host:1"}, User: b.Agent(t, "x")}, "nats://host:1"},
	} {
		conn, err := bus.Connect(c.cfg)
		if err == nil {
			conn.Close()
			t.Errorf("%s: connected", name)
			continue
		}
		if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: got %q, want it to name %q and no password", name, err, c.want)
		}
	}
}

// TestAwait: an unreachable bus does not fail Connect; Await says what to look at.
func TestAwait(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	plain := b.Server.URL()
	b.Stop()
	for _, url := range []string{plain, strings.Replace(plain, "nats://", "nats://u:hunter2@", 1)} {
		conn, err := bus.Connect(bus.ConnectConfig{URLs: []string{url}, User: b.Agent(t, "x")})
		if err != nil {
			t.Fatalf("Connect while the bus is away: %v", err)
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		err = conn.Await(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "is it up") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("Await: got %v, want a deadline, advice and no password", err)
		}
	}
	conn, err := bus.Connect(bus.ConnectConfig{URLs: []string{plain}, User: b.Agent(t, "x")})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b.Restart(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := conn.Await(ctx); err != nil || !conn.Connected() {
		t.Errorf("Await after the bus came: %v", err)
	}
}

// TestKeys: they are made once, sealed, 0600, and read again; a damaged file, another master key and a
// file that others may read are refused.
func TestKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), bus.KeysFile)
	master := keyring.NewMasterKey()
	first, err := bus.OpenKeys(path, master)
	if err != nil {
		t.Fatal(err)
	}
	again, err := bus.OpenKeys(path, master)
	if err != nil || string(again.CAPEM()) != string(first.CAPEM()) || !again.Operates() {
		t.Errorf("OpenKeys again: got %v, want the same keys", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v (%v), want 0600", info.Mode(), err)
	}
	if _, err := bus.OpenKeys(path, keyring.NewMasterKey()); !errors.Is(err, keyring.ErrSealed) {
		t.Errorf("OpenKeys with another master key: got %v, want ErrSealed", err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := bus.OpenKeys(path, master); err == nil || !strings.HasSuffix(err.Error(), "run: chmod 600 "+path) {
		t.Errorf("OpenKeys of a file for others: got %v, want the command that mends it", err)
	}
	if err := os.WriteFile(path, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	os.Chmod(path, 0o600)
	if _, err := bus.OpenKeys(path, master); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("OpenKeys with a torn file: got %v, want its name", err)
	}
}
