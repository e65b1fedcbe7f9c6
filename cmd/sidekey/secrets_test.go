package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// needle is a secret that must be found nowhere but in the files that are its home.
type needle struct {
	what  string
	forms [][]byte
	homes []string // ends of paths
}

// newNeedle looks for a secret as it is, and as text writes it.
func newNeedle(what string, secret []byte, homes ...string) needle {
	n := needle{what: what, homes: homes, forms: [][]byte{secret, []byte(hex.EncodeToString(secret))}}
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		text := []byte(enc.EncodeToString(secret))
		n.forms = append(n.forms, text[:len(text)-len(text)%4]) // the last letters depend on the padding
	}
	return n
}

// scriptProcesses writes what others can see of this script's processes: their arguments and environments.
func scriptProcesses(ts *testscript.TestScript, neg bool, args []string) {
	refuseNeg(ts, neg)
	var all bytes.Buffer
	found := 0
	procs, err := filepath.Glob("/proc/[0-9]*")
	ts.Check(err)
	for _, proc := range procs {
		environ, err := os.ReadFile(filepath.Join(proc, "environ"))
		if err != nil || !bytes.Contains(environ, []byte("WORK="+ts.Getenv("WORK")+"\x00")) {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join(proc, "cmdline"))
		if bytes.Contains(cmdline, []byte("sidekey")) {
			found++
		}
		all.Write(append(cmdline, environ...))
	}
	if found < 3 {
		ts.Fatalf("processes: found %d of sidekey, want the issuers and the agent", found)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), all.Bytes(), 0o600))
}

// scriptNoSecrets searches every file of the script, and what its proxies carried, for every secret of the issuer and
// the agent.
func scriptNoSecrets(ts *testscript.TestScript, neg bool, args []string) {
	refuseNeg(ts, neg)
	needles := collectSecrets(ts)
	hits := 0
	look := func(where string, content []byte) {
		for _, n := range needles {
			if atHome(where, n.homes) {
				continue
			}
			for _, form := range n.forms {
				if bytes.Contains(content, form) {
					hits++
					fmt.Fprintf(ts.Stderr(), "the %s is in %s\n", n.what, where)
					break
				}
			}
		}
	}
	files, size := 0, 0
	ts.Check(filepath.WalkDir(ts.Getenv("WORK"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		files, size = files+1, size+len(content)
		look(path, content)
		return err
	}))
	carried := 0
	for name, p := range ts.Value(proxiesKey{}).(proxies) {
		p.mu.Lock()
		carried += p.carried.Len()
		look("the wire of "+name, p.carried.Bytes())
		p.mu.Unlock()
	}
	fmt.Fprintf(ts.Stdout(), "%d secrets, %d files of %d bytes, %d bytes on the wire: %d hits\n", len(needles), files, size, carried, hits)
	if carried < 10_000 || files < 30 {
		ts.Fatalf("too little was searched for that to mean anything")
	}
	if hits > 0 {
		ts.Fatalf("%d secrets were found where they do not belong", hits)
	}
}

func atHome(path string, homes []string) bool {
	for _, home := range homes {
		if strings.HasSuffix(path, home) {
			return true
		}
	}
	return false
}

// collectSecrets reads them where they are at home. kept.token and kept2.token are copies of the join tokens.
func collectSecrets(ts *testscript.TestScript) []needle {
	read := func(name string) []byte { return []byte(strings.TrimSpace(ts.ReadFile(name))) }
	needles := []needle{
		newNeedle("password", []byte("correct horse battery"), "/password", ".txtar"),
		newNeedle("imported HS256 secret", read("hs.secret"), "/hs.secret"),
		newNeedle("admin token", read("issuer/admin.token"), "/admin.token"),
	}
	for what, name := range map[string]string{
		"API key": "API_KEY", "client secret": "CLIENT_SECRET", "session cookie": "COOKIE_SESSION", "CSRF token": "CSRF",
		"access token": "BOB_ACCESS", "refresh token": "BOB_REFRESH",
	} {
		secret := ts.Getenv(name)
		if len(secret) < 40 {
			ts.Fatalf("the %s is %q, want one to search for", what, secret)
		}
		needles = append(needles, newNeedle(what, []byte(secret)))
	}
	needles = append(needles, newNeedle("Basic credential", []byte("bob:correct horse battery")))
	block, _ := pem.Decode(read("rsa.pem"))
	key, err := keyring.ParsePEM(read("rsa.pem"), "")
	ts.Check(err)
	jwk, err := key.PrivateJWK()
	ts.Check(err)
	var private struct{ D, P string }
	ts.Check(json.Unmarshal(jwk, &private))
	needles = append(needles, newNeedle("imported private key", block.Bytes[len(block.Bytes)/2:], "/rsa.pem"))
	for _, part := range []string{private.D, private.P} {
		raw, err := base64.RawURLEncoding.DecodeString(part)
		ts.Check(err)
		needles = append(needles, newNeedle("part of the imported private key", raw, "/rsa.pem"))
	}
	for _, name := range []string{"kept.token", "kept2.token"} {
		token, err := bus.ParseToken(read(name))
		ts.Check(err)
		needles = append(needles, newNeedle("join token "+name, read(name), "/"+name), newNeedle("seed in "+name, token.User.Seed, "/"+name))
	}
	master, err := keyring.ParseMasterKey(read("issuer/master.key"))
	ts.Check(err)
	_, text, _ := strings.Cut(string(read("issuer/master.key")), ":")
	raw, err := base64.RawURLEncoding.DecodeString(text)
	ts.Check(err)
	needles = append(needles, newNeedle("master key", raw, "/master.key"))
	plain, err := master.Sealer("bus keys").Open([]byte(ts.ReadFile("issuer/" + bus.KeysFile)))
	ts.Check(err)
	var seeds map[string]string
	ts.Check(json.Unmarshal(plain, &seeds))
	for name, seed := range seeds {
		if name != "ca" {
			needles = append(needles, newNeedle("bus seed "+name, []byte(seed)))
		}
	}
	for _, dir := range []string{"one", "second"} {
		id, err := bus.ReadIdentity(ts.MkAbs(dir + "/identity"))
		ts.Check(err)
		needles = append(needles, newNeedle(dir+"'s bus seed", id.User.Seed, ".creds"),
			newNeedle(dir+"'s signing key", id.Signing.Seed(), "/signing.key"), newNeedle(dir+"'s sealing key", id.Sealing.Private(), "/sealing.key"))
	}
	return needles
}

// TestNeedle holds that the search finds a secret in every form that it looks for.
func TestNeedle(t *testing.T) {
	secret := []byte("a secret \xff\xfe of bytes")
	for name, text := range map[string]string{
		"raw": string(secret), "hex": hex.EncodeToString(secret), "std": base64.StdEncoding.EncodeToString(secret),
		"url": base64.URLEncoding.EncodeToString(secret),
	} {
		found := false
		for _, form := range newNeedle("x", secret).forms {
			found = found || strings.Contains("before "+text+" behind", string(form))
		}
		if !found {
			t.Errorf("%s: not found", name)
		}
	}
}
