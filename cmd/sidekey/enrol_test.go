package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/bus"
)

// TestJoinedNeedsNoToken: an agent that has joined starts whatever lies where its token lay, as where one Secret has the tokens of every
// node; but for a token that lets its own name in anew: what it has may be worth nothing then.
func TestJoinedNeedsNoToken(t *testing.T) {
	t.Parallel()
	p, _ := inProcess(t, filepath.Join(t.TempDir(), "issuer"))
	invite := func(role bus.Role, name string) string {
		text, err := p.enrolment.Invite(t.Context(), role, name, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	anew, other, issuer := invite(bus.RoleAgent, "web-1"), invite(bus.RoleAgent, "web-2"), invite(bus.RoleIssuer, "web-1")
	token, err := bus.ParseToken([]byte(anew))
	if err != nil {
		t.Fatal(err)
	}
	token.Expires = time.Now().Add(-time.Minute).Unix()
	expired, err := token.Text()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := p.joinHere(t.Context(), "web-1", filepath.Join(dir, identityDir)); err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	for name, c := range map[string]struct{ file, warns, fails string }{
		"an empty file":             {put(t, filepath.Join(folder, "empty"), ""), "reading the join token: it is not ", ""},
		"a file that is none":       {folder, "is a directory", ""},
		"another's":                 {put(t, filepath.Join(folder, "other"), other), "token_name=web-2", ""},
		"an issuer's":               {put(t, filepath.Join(folder, "issuer"), issuer), "token_role=issuer", ""},
		"its own that has expired":  {put(t, filepath.Join(folder, "expired"), expired), "has expired", ""},
		"no file":                   {filepath.Join(folder, "none"), "", ""},
		"its own that is good anew": {put(t, filepath.Join(folder, "anew"), anew), "", "has joined already, as \"web-1\"; start it without --join"},
	} {
		var logged bytes.Buffer
		a := &app{stdin: strings.NewReader(""), stderr: t.Output()}
		id, err := a.identify(t.Context(), bus.RoleAgent, dir, c.file, defaultConfig(), hclog.New(&hclog.LoggerOptions{Output: &logged}))
		switch {
		case c.fails != "":
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%s: got %v, want %q", name, err, c.fails)
			}
		case err != nil || id == nil || id.Name != "web-1":
			t.Errorf("%s: got %v, %v, want the identity of web-1", name, id, err)
		case c.warns == "" && logged.Len() > 0, !strings.Contains(logged.String(), c.warns):
			t.Errorf("%s: logged %q, want %q", name, &logged, c.warns)
		}
		for _, secret := range []string{anew, other, issuer, expired} {
			if strings.Contains(logged.String(), secret) {
				t.Errorf("%s: a token stands in the log", name)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(folder, "other")); err != nil {
		t.Errorf("another's token is gone: %v", err)
	}
}
