package e2e

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// TestBasic: a password at an agent's forward-auth, whose yes is remembered, until the user has another password or is disabled: then the
// old one is refused at once. In clear from beyond loopback nobody is asked. TestDRF has the other shapes.
func TestBasic(t *testing.T) {
	need(t)
	c := dev(t, "", "[agent]\nauthenticators = [\"basic\"]")
	file := filepath.Join(t.TempDir(), "password")
	write(t, file, "looking-glass")
	ask := func(what, proto, from, userpass string, status int, reason string) {
		t.Helper()
		res, body := do(t, http.MethodGet, c.Agent+"/v1/auth/forward", http.Header{
			"Authorization": {basicHeader(userpass)}, "X-Forwarded-Method": {"GET"}, "X-Forwarded-Uri": {"/"}, "X-Forwarded-Host": {"app.example"},
			"X-Forwarded-Proto": {proto}, "X-Forwarded-For": {from},
		}, "")
		if res.StatusCode != status || reason != "" && !strings.Contains(body, `"reason":"`+reason+`"`) || (status == 200) != (res.Header.Get("X-Auth-Method") == "basic") {
			t.Errorf("%s: got %d %s %v, want %d %s", what, res.StatusCode, body, res.Header, status, reason)
		}
	}
	await(t, "the key to seal passwords to", func() error {
		req, err := http.NewRequest(http.MethodGet, c.Agent+"/v1/auth/forward", nil)
		if err != nil {
			return err
		}
		req.Header = http.Header{
			"Authorization": {basicHeader("alice:wonderland")}, "X-Forwarded-Method": {"GET"}, "X-Forwarded-Uri": {"/"}, "X-Forwarded-Proto": {"https"},
		}
		return expectStatus(http.StatusOK)(http.DefaultClient.Do(req))
	})
	const out, old, young = "203.0.113.9", "alice:wonderland", "alice:looking-glass"
	for range 2 { // from there asked, then remembered
		ask("right", "https", out, old, 200, "")
	}
	ask("right, in clear on this host", "http", "127.0.0.1", old, 200, "")
	ask("right, in clear over a network", "http", out, old, 403, "insecure_transport")
	ask("wrong", "https", out, "alice:x", 401, "bad_password")
	ask("unknown", "https", out, "nobody:wonderland", 401, "bad_password")
	c.sidekey("users", "passwd", "alice", "--password", "@"+file, "--wait")
	ask("the old password", "https", out, old, 401, "bad_password")
	for range 2 {
		ask("the new password", "https", out, young, 200, "")
	}
	c.sidekey("users", "disable", "alice", "--wait")
	ask("disabled", "https", out, young, 401, "bad_password")
}
