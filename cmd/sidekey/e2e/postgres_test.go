package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// postgresBin is where Debian has the server's programs.
const postgresBin = "/usr/lib/postgresql/15/bin"

// postgres is a PostgreSQL server of the test's own, on loopback, with an empty database "sidekey".
type postgres struct{ Port string }

// newPostgres starts one until the test ends. PostgreSQL refuses to run as root: there it runs as the user postgres.
func newPostgres(t *testing.T) *postgres {
	t.Helper()
	need(t, "test -x "+postgresBin+"/postgres", "test $(id -u) != 0 || id postgres")
	dir, err := os.MkdirTemp("", "sidekey-postgres-") // t.TempDir's folders are closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &postgres{Port: freePort(t)}
	as := serverUser(t, "postgres", dir)
	command := func(program string, args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(postgresBin, program), args...)
		cmd.Dir = dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
		return cmd
	}
	data := filepath.Join(dir, "data")
	if out, err := command("initdb", "--auth=trust", "--username=sidekey", "--encoding=UTF8", "--pgdata", data).CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	start(t, command("postgres", "-D", data, "-p", p.Port, "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="+dir))
	await(t, "postgres", func() error {
		out, err := command("createdb", "-h", "127.0.0.1", "-p", p.Port, "-U", "sidekey", "sidekey").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	return p
}

// serverUser gives dir to the user that a database's server runs as where the suite is root, as which it would not run; else
// nil: this user.
func serverUser(t *testing.T, name, dir string) *syscall.Credential {
	t.Helper()
	if os.Getuid() != 0 {
		return nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, uerr := strconv.ParseUint(u.Uid, 10, 32)
	gid, gerr := strconv.ParseUint(u.Gid, 10, 32)
	if uerr != nil || gerr != nil {
		t.Fatal(uerr, gerr)
	}
	if err := os.Chown(dir, int(uid), int(gid)); err != nil {
		t.Fatal(err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// dsn is how pgx and psql reach it.
func (p *postgres) dsn() string {
	return "postgres://sidekey@127.0.0.1:" + p.Port + "/sidekey?sslmode=disable"
}

// djangoDatabase is DATABASES for a Django project's settings.
func (p *postgres) djangoDatabase() string {
	return fmt.Sprintf("DATABASES = {'default': {'ENGINE': 'django.db.backends.postgresql', 'NAME': 'sidekey', 'USER': 'sidekey', 'HOST': '127.0.0.1', 'PORT': '%s', 'CONN_MAX_AGE': 600}}\n", p.Port)
}
