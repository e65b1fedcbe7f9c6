package bus_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// external is a nats-server as an operator runs it, from an exported configuration alone.
type external struct {
	srv  *server.Server
	conf string
}

func (x *external) start(t *testing.T) {
	t.Helper()
	opts, err := server.ProcessConfigFile(x.conf)
	if err != nil {
		t.Fatal(err)
	}
	opts.NoSigs, opts.NoLog = true, true
	if x.srv, err = server.NewServer(opts); err != nil {
		t.Fatal(err)
	}
	x.srv.Start()
	if !x.srv.ReadyForConnections(10 * time.Second) {
		t.Fatal("the exported server is not ready")
	}
}

func (x *external) stop() {
	x.srv.Shutdown()
	x.srv.WaitForShutdown()
}

// TestExport: a real nats-server, run from what is exported, is a bus: the log is kept on it, synced,
// an agent joins and follows over TLS, and a removed one is cut off there, also after a restart.
func TestExport(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	keys, err := bus.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	written, err := bus.Export(dir, keys, bus.ExportConfig{Listen: addr, Names: []string{"127.0.0.1"}})
	if err != nil || len(written) != 4 {
		t.Fatalf("Export: got %v, %v, want four files", written, err)
	}
	for _, path := range written {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v (%v), want 0600", path, info.Mode(), err)
		}
		if text, err := os.ReadFile(path); err != nil || strings.Contains(string(text), "\nSA") || strings.Contains(string(text), " SA") || strings.Contains(string(text), " SO") {
			t.Errorf("%s holds a seed (%v)", path, err)
		}
	}
	x := &external{conf: filepath.Join(dir, "nats-server.conf")}
	x.start(t)
	t.Cleanup(func() { x.stop() })
	if !x.srv.JetStreamEnabled() || !x.srv.JetStreamConfig().SyncAlways {
		t.Error("the exported server acknowledges before it syncs")
	}

	user, err := keys.IssuerUser("issuer-1")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := bus.Connect(bus.ConnectConfig{URLs: []string{"tls://" + addr}, User: user, CA: keys.CAPEM(), Name: "issuer"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	if err := conn.Await(timeout(t, 10*time.Second)); err != nil || conn.AtIssuer() {
		t.Errorf("an existing NATS is taken for an issuer's own server, or is not there: %v", err)
	}
	authority, err := keyring.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	l, err := bus.OpenLog(t.Context(), conn, bus.LogConfig{Authority: authority, Issuer: "issuer-1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	mustAppend(t, l, revocation("a"))
	master := keyring.NewMasterKey()
	bucket := func(name string) *bus.Bucket {
		k, err := bus.OpenBucket(t.Context(), conn, name, master, 1)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	e, err := bus.OpenEnrolment(t.Context(), bus.EnrolConfig{
		Conn: conn, Keys: keys, Authority: authority, Master: master, URLs: []string{"tls://" + addr}, CA: keys.CAPEM(),
		Joins: bucket(bus.BucketJoins), Agents: bucket(bus.BucketAgents), Issuers: bucket(bus.BucketIssuers),
		Revoked: filepath.Join(dir, "bus.revoked"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	var agents []*bus.Conn
	for _, name := range []string{"good", "bad"} {
		text, err := e.Invite(t.Context(), bus.RoleAgent, name, 0)
		if err != nil {
			t.Fatal(err)
		}
		token, err := bus.ParseToken([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		id, err := join(t, token, newDir(t))
		if err != nil {
			t.Fatal(err)
		}
		agents = append(agents, connectAs(t, id))
		if got := collect(t, readerLog{bus.NewReader(agents[len(agents)-1], id.Authority), l}, bus.Cursor{}, 1); ids(got)[0] != "a" {
			t.Errorf("%s follows: got %v", name, ids(got))
		}
	}
	pushes := heardPushes(t, addr, keys)
	if err := e.Remove(t.Context(), bus.RoleAgent, "bad"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removed one's connection to end", func() bool { return !agents[1].Connected() })
	for range 3 { // as it does every few seconds
		if err := e.Look(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := pushes(); got != 2 {
		t.Errorf("the accounts were handed over %d times, want each of the two once", got)
	}
	if !agents[0].Connected() {
		t.Error("a removal has cut off another agent")
	}
	x.stop()
	x.start(t) // with what it keeps itself: the preloaded accounts are older
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := agents[0].Await(ctx); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	never(t, agents[1])
}

// heardPushes counts the accounts that the server is handed from here on.
func heardPushes(t *testing.T, addr string, keys *bus.Keys) func() int {
	t.Helper()
	user, err := keys.SystemUser()
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(keys.CAPEM())
	nc, err := nats.Connect("tls://"+addr, nats.UserJWTAndSeed(user.JWT, string(user.Seed)), nats.Secure(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	var n atomic.Int64
	if _, err := nc.Subscribe("$SYS.REQ.CLAIMS.UPDATE", func(*nats.Msg) { n.Add(1) }); err != nil {
		t.Fatal(err)
	}
	count := func() int {
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		return int(n.Load())
	}
	count()
	return count
}
