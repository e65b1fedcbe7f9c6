package e2e

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/sidekey/sidekey/agent/attacktest"
)

// TestProxyAttacks sends the table of attacks through the real proxies, byte by byte: the upstream, which refuses nothing
// by itself, never sees one that a service could read as what its sender may not.
func TestProxyAttacks(t *testing.T) {
	for _, kind := range proxyKinds {
		t.Run(kind.name, func(t *testing.T) {
			need(t, kind.needs)
			up, err := attacktest.NewUpstream()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = up.Close() })
			scene := &attacktest.Scene{Host: doorHost, AdminHost: "public.test"} // the names that the proxies of this kit have
			scene.Trailers = kind.name == "HAProxy"                              // 2.6 cannot take them away
			rules := filepath.Join(t.TempDir(), "rules.toml")
			if err := os.WriteFile(rules, []byte(scene.Rules()), 0o600); err != nil {
				t.Fatal(err)
			}
			d := newDoor(t, fmt.Sprintf("rules = %q\n", rules), "")
			scene.Reader, scene.Other = d.reads("reader"), d.reads("other")
			d.sidekey("users", "add", "svc", "--id", "svc", "--scope", "read", "--password", "wonderland")
			scene.Key = d.field("secret", "credentials", "add", "of the table", "--user", "svc", "--format", "json")
			kind.begin(t, d, up.Addr())
			dial := func() (net.Conn, error) {
				return tls.Dial("tcp", d.addr, &tls.Config{InsecureSkipVerify: true, ServerName: doorHost, NextProtos: []string{"http/1.1"}})
			}
			for _, wrong := range attacktest.Through(dial, up, scene) {
				t.Error(wrong)
			}
		})
	}
}

// reads adds a user with that id who may read, and gives an access token of theirs.
func (d *door) reads(name string) string {
	d.t.Helper()
	d.sidekey("users", "add", name, "--id", name, "--scope", "read", "--password", "wonderland")
	return d.field("access", "token", "issue", "--user", name, "--password", "wonderland", "--format", "json")
}

// field runs a command and gives a member of the JSON object that it prints.
func (d *door) field(name string, args ...string) string {
	d.t.Helper()
	var got map[string]any
	if err := json.Unmarshal([]byte(d.sidekey(args...)), &got); err != nil {
		d.t.Fatal(err)
	}
	text, _ := got[name].(string)
	if text == "" {
		d.t.Fatalf("sidekey %s: no %q in %v", args[0], name, got)
	}
	return text
}
