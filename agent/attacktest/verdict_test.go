package attacktest_test

import (
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/sidekey/sidekey/agent/attacktest"
)

// TestThroughSeesALeak: a proxy that asks nobody, and hands everything on as it comes, is caught by nearly the whole table;
// the requests that are honest are not held against it.
func TestThroughSeesALeak(t *testing.T) {
	up, err := attacktest.NewUpstream()
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	dial := func() (net.Conn, error) { return net.Dial("tcp", up.Addr()) }
	scene := &attacktest.Scene{Reader: "token", Other: "token2", Key: "key"}
	wrong := attacktest.Through(dial, up, scene)
	caught := func(name string) bool {
		return slices.ContainsFunc(wrong, func(w string) bool { return strings.HasPrefix(w, name+": ") })
	}
	for _, a := range attacktest.All() {
		switch {
		case a.Status == 200 && !strings.Contains(a.Name, "identity") && caught(a.Name):
			t.Errorf("%s is honest, and held against the proxy", a.Name)
		case a.Status == 401 && !strings.HasPrefix(a.Name, "host ") && !caught(a.Name):
			t.Errorf("%s passed, and was not held against the proxy", a.Name)
		}
	}
	for _, name := range []string{
		"dots", "escaped dots and slash", "twice escaped dots", "overlong dots of two bytes", "an overlong backslash", "parameters behind dots", "a backslash",
		"an end of a C string in dots", "an escape of another kind", "two slashes first", "a fragment", "a whole URL", "dots where escaped slashes are taken",
		"host ADMIN.example", "host admin.example..", "host app.example@admin.example", "a method in lower case", "writing", "two tokens",
		"its own identity", "its own identity with underscores", "its own identity with an underscore", "its own identity, from nobody", "a request behind another",
		"two hosts", "line feeds alone", "a field in the trailer",
	} {
		if !caught(name) {
			t.Errorf("%s passed, and was not held against the proxy", name)
		}
	}
}

func TestReadings(t *testing.T) {
	for target, want := range map[string]string{
		"/a/../b": "/b", "/a/%2e%2e/b": "/b", "/a/%252e%252e/b": "/b", "/a/..;x/b": "/b", `/a\..\b`: "/b", "/a/%c0%ae%c0%ae/b": "/b", "//b": "/b", "/B": "/b",
		"/b%00.css": "/b", "/b#x": "/b", "/b%20": "/b", "/b.": "/b", "http://h/b": "/b", "/a/%u002e%u002e/b": "/b", "/b?x": "/b", "/a/..%2fb": "/b", "/a%2f..%2fb": "/b",
	} {
		if got := attacktest.Readings(target); !slices.Contains(got, want) {
			t.Errorf("Readings(%q): got %q, want %q among them", target, got, want)
		}
	}
	for _, target := range []string{"/a?x=/../b", "/ab", "/c/b"} {
		if got := attacktest.Readings(target); slices.Contains(got, "/b") {
			t.Errorf("Readings(%q): got %q", target, got)
		}
	}
}
