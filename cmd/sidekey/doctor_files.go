package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// Bounds of what is said of a disk and a certificate.
const (
	diskFail   = 256 << 20 // free bytes: JetStream stops soon, and no revocation can be written
	diskWarn   = 2 << 30
	certWarn   = 21 * 24 * time.Hour
	notPrivate = 0o077
)

// files checks who may read what is secret, where it lies, and how much room there is.
func (d *doctor) files() {
	if d.issuer {
		d.private("data_dir", d.cfg.DataDir)
		if exists(filepath.Join(d.cfg.DataDir, restoringFile)) {
			d.fail("restore", "run `sidekey restore` again", "a restore into %s was not finished", d.cfg.DataDir)
		}
		d.master()
		d.disk("data_dir", d.cfg.DataDir, true)
	}
	if d.agent {
		d.private("agent.data_dir", d.cfg.Agent.DataDir)
		d.private("identity", filepath.Join(d.cfg.Agent.DataDir, identityDir))
		d.disk("agent.data_dir", d.cfg.Agent.DataDir, false)
		d.runtime()
	}
	for key, path := range map[string]string{
		"issuer.tls_key": d.cfg.Issuer.TLSKey, "agent.tls_key": d.cfg.Agent.TLSKey, "bus.tls_key": d.cfg.Bus.TLSKey, "bus.credentials": d.cfg.Bus.Credentials,
	} {
		d.secretFile(key, path)
	}
}

func (d *doctor) private(key, dir string) {
	err := bus.CheckPrivate(dir)
	switch {
	case errors.Is(err, fs.ErrPermission):
		d.fail("permissions", "run it as the user that the service runs as", "%s %s cannot be read by this user", key, dir)
	case err != nil:
		d.failErr("permissions", "", err)
	default:
		d.ok("permissions", "%s %s is this user's alone", key, dir)
	}
}

func (d *doctor) secretFile(key, path string) {
	if path == "" {
		return
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		d.fail("permissions", "put it there, or correct "+key, "%s: %v", key, err)
	case info.Mode().Perm()&notPrivate&^0o040 != 0: // a key may be readable for the service's group
		d.fail("permissions", fmt.Sprintf("chmod 600 %s; and if anybody may have read it, replace it", path), "%s %s may be used by others (mode %04o)", key, path, info.Mode().Perm())
	default:
		d.ok("permissions", "%s %s", key, path)
	}
}

// master says where the master key is. Beside the state, one lost disk loses both.
func (d *doctor) master() {
	switch path := filepath.Join(d.cfg.DataDir, masterKeyFile); {
	case d.cfg.masterKeyFile != "" && !exists(d.cfg.masterKeyFile):
		d.fail("master key", "put it back: without it nothing of the state can be opened", "there is none at %s", d.cfg.masterKeyFile)
	case d.cfg.masterKeyFile != "":
		d.ok("master key", "%s, apart from the state", d.cfg.masterKeyFile)
	case exists(path):
		d.warn("master key", "keep a copy elsewhere, or a backup (sidekey backup); SIDEKEY_MASTER_KEY_FILE or a systemd credential keeps it apart", "it lies beside the state that it opens, %s", path)
	case exists(filepath.Join(d.cfg.DataDir, "jetstream")):
		d.fail("master key", "put it back, or restore a backup: without it nothing of the state can be opened", "there is state in %s, and no %s", d.cfg.DataDir, masterKeyFile)
	}
}

// room is what is known of a file system.
type room struct {
	free, size   uint64 // bytes; free for this user
	inodes       uint64 // free
	memory       bool   // it is lost with the power
	network      string // its kind, where another host keeps it; "": none
	knownToMatch bool   // the kind could be told
}

// disk checks where a folder lies.
func (d *doctor) disk(key, dir string, state bool) {
	r, err := roomOf(dir)
	if err != nil {
		d.failErr("disk", "", fmt.Errorf("%s: %w", key, err))
		return
	}
	d.judgeRoom(key, dir, state, r)
}

func (d *doctor) judgeRoom(key, dir string, state bool, r room) {
	grow := "make room, or move it to a larger disk"
	switch mib := r.free >> 20; {
	case r.memory && state:
		d.fail("disk", "put data_dir on a disk: all keys, users and revocations are in it", "%s %s is in memory: it is gone with the power", key, dir)
	case r.network != "":
		d.warn("disk", "use a disk of this host: locks and syncs of such file systems are not what they say", "%s %s is on %s", key, dir, r.network)
	case r.free < diskFail && state:
		d.fail("disk", grow, "%s %s has %d MiB left; when it is full nothing can be revoked", key, dir, mib)
	case r.free < diskFail, r.free < diskWarn && state, state && r.size > 0 && r.free < r.size/20:
		d.warn("disk", grow, "%s %s has %d MiB left", key, dir, mib)
	case r.inodes > 0 && r.inodes < 1000:
		d.warn("disk", "remove small files on that file system", "%s %s has room for %d more files", key, dir, r.inodes)
	default:
		d.ok("disk", "%s %s has %d MiB left", key, dir, mib)
	}
}

// runtime checks the folder of lease and floor.
func (d *doctor) runtime() {
	dir := d.cfg.Agent.RuntimeDir
	do := "set agent.runtime_dir to a folder in memory, as /run/sidekey (systemd: RuntimeDirectory=sidekey)"
	if dir == "" {
		d.warn("runtime_dir", do, "there is none: an agent that restarts while the issuer is away answers 503")
		return
	}
	r, err := roomOf(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.warn("runtime_dir", do, "%s is not there: no agent runs here, or it keeps no lease over a restart", dir)
	case err != nil:
		d.failErr("runtime_dir", "", err)
	case r.knownToMatch && !r.memory:
		d.fail("runtime_dir", do, "%s is on a disk: a lease there could come back with an old image", dir)
	default:
		d.ok("runtime_dir", "%s is in memory", dir)
	}
}

// certificates looks when they end, and whether key and certificate are a pair.
func (d *doctor) certificates() {
	for _, c := range []struct{ key, cert, private string }{
		{"issuer.tls_cert", d.cfg.Issuer.TLSCert, d.cfg.Issuer.TLSKey},
		{"agent.tls_cert", d.cfg.Agent.TLSCert, d.cfg.Agent.TLSKey},
		{"bus.tls_cert", d.cfg.Bus.TLSCert, d.cfg.Bus.TLSKey},
	} {
		if c.cert == "" {
			continue
		}
		if _, err := tls.LoadX509KeyPair(c.cert, c.private); err != nil {
			d.fail("certificates", "put the right pair there", "%s: %v", c.key, err)
			continue
		}
		d.pemFile(c.key, c.cert)
	}
	if d.cfg.Bus.CA != "" {
		d.pemFile("bus.ca", d.cfg.Bus.CA)
	}
	if path := filepath.Join(d.cfg.Agent.DataDir, identityDir, "ca.pem"); d.agent && exists(path) {
		d.pemFile("the agent's CA of the bus", path)
	}
}

func (d *doctor) pemFile(key, path string) {
	text, err := os.ReadFile(path)
	if err != nil {
		d.fail("certificates", "", "%s: %v", key, err)
		return
	}
	end, err := firstEnd(text)
	if err != nil {
		d.fail("certificates", "put the right file there", "%s %s: %v", key, path, err)
		return
	}
	d.judgeEnd(key+" "+path, end)
}

// judgeEnd says what the end of a certificate means.
func (d *doctor) judgeEnd(what string, end time.Time) {
	switch left := end.Sub(d.now); {
	case left <= 0:
		d.fail("certificates", "replace it now: nobody who checks it connects", "%s ended %s", what, end.UTC().Format(time.RFC3339))
	case left < certWarn:
		d.warn("certificates", "replace it before", "%s ends %s, in %d days", what, end.UTC().Format(time.RFC3339), int(left.Hours()/24))
	default:
		d.ok("certificates", "%s is good until %s", what, end.UTC().Format(time.DateOnly))
	}
}

// firstEnd is when the first certificate of a PEM file ends.
func firstEnd(text []byte) (end time.Time, err error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return end, err
		}
		if end.IsZero() || cert.NotAfter.Before(end) {
			end = cert.NotAfter
		}
	}
	if end.IsZero() {
		err = errors.New("there is no certificate in it")
	}
	return end, err
}
