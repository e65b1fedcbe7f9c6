package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// mariadb is a MariaDB server of the test's own, on loopback, with an empty database "sidekey" and a user of that name.
type mariadb struct{ Port string }

// mariadbPassword is that user's.
const mariadbPassword = "of-the-end-to-end-suites-only"

// newMariaDB starts one until the test ends. It runs as root only when it is told to, so there it runs as the user mysql.
func newMariaDB(t *testing.T) *mariadb {
	t.Helper()
	need(t, "command -v mariadbd mariadb-install-db mariadb", "test $(id -u) != 0 || id mysql")
	dir, err := os.MkdirTemp("", "sidekey-mariadb-") // t.TempDir's folders are closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := &mariadb{Port: freePort(t)}
	as := serverUser(t, "mysql", dir)
	command := func(program string, args ...string) *exec.Cmd {
		cmd := exec.Command(program, append([]string{"--no-defaults"}, args...)...)
		cmd.Dir = dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
		return cmd
	}
	data, socket := filepath.Join(dir, "data"), filepath.Join(dir, "socket")
	if out, err := command("mariadb-install-db", "--datadir="+data, "--auth-root-authentication-method=normal", "--skip-test-db").CombinedOutput(); err != nil {
		t.Fatalf("mariadb-install-db: %v\n%s", err, out)
	}
	start(t, command("mariadbd", "--datadir="+data, "--port="+m.Port, "--bind-address=127.0.0.1", "--socket="+socket, "--pid-file="+filepath.Join(dir, "pid")))
	const make = `CREATE DATABASE sidekey CHARACTER SET utf8mb4; CREATE USER 'sidekey'@'127.0.0.1' IDENTIFIED BY '` + mariadbPassword + `'; GRANT ALL ON sidekey.* TO 'sidekey'@'127.0.0.1';`
	await(t, "mariadbd", func() error {
		out, err := command("mariadb", "--socket="+socket, "--user=root", "--execute="+make).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	return m
}

// dsn is how go-sql-driver reaches it.
func (m *mariadb) dsn() string {
	return "sidekey:" + mariadbPassword + "@tcp(127.0.0.1:" + m.Port + ")/sidekey"
}

// djangoDatabase is DATABASES for a Django project's settings.
func (m *mariadb) djangoDatabase() string {
	return fmt.Sprintf("DATABASES = {'default': {'ENGINE': 'django.db.backends.mysql', 'NAME': 'sidekey', 'USER': 'sidekey', 'PASSWORD': '%s', 'HOST': '127.0.0.1', 'PORT': '%s', 'OPTIONS': {'charset': 'utf8mb4'}}}\n", mariadbPassword, m.Port)
}
