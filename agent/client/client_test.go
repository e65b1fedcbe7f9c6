package client_test

import (
	"errors"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/agent/client"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

func TestNewRefuses(t *testing.T) {
	for _, tc := range []struct {
		cfg  client.Config
		want string
	}{
		{client.Config{Address: "http://192.0.2.1:7461"}, "would carry credentials in clear over a network"},
		{client.Config{Address: "http://localhost.evil.example"}, "would carry credentials in clear over a network"},
		{client.Config{Address: "ftp://127.0.0.1"}, "would carry credentials in clear over a network"},
		{client.Config{Address: "unix:agent.sock"}, "lacks the absolute path of a socket"},
		{client.Config{Address: "127.0.0.1:7461"}, "is no address such as http://127.0.0.1:7461 or unix:"},
		{client.Config{Address: "http://127.0.0.1/v1"}, "is no address such as"},
		{client.Config{Address: "http://a:b@127.0.0.1"}, "is no address such as"},
		{client.Config{Timeout: -1}, "negative"},
		{client.Config{MaxConnections: -1}, "negative"},
	} {
		if _, err := client.New(tc.cfg); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("New(%+v): got %v, want %q", tc.cfg, err, tc.want)
		}
	}
	for _, address := range []string{"", "http://localhost:7461/", "http://[::1]:7461", "http://127.9.9.9", "https://agent.example", "unix:/run/sidekey/agent.sock"} {
		if _, err := client.New(client.Config{Address: address}); err != nil {
			t.Errorf("New(%q): %v", address, err)
		}
	}
}

func TestVerify(t *testing.T) {
	w := newWorld(t, "unix")
	c := newClient(t, client.Config{Address: w.address})
	token := w.token(alice, func(c *keyring.Claims) { c.SessionID = "s-1" })
	got, err := c.Verify(t.Context(), token, client.Query{Scope: "read", MaxStaleness: time.Hour, AtLeastSeq: 1})
	if err != nil || got.Subject != "alice" || got.Scope != "read" || got.SessionID != "s-1" || got.Seq != 1 || got.Claims["jti"] != "one" || got.ExpiresAt == 0 {
		t.Fatalf("Verify: got %+v, %v", got, err)
	}
	for _, tc := range []struct {
		name, token string
		query       client.Query
		status      int
		reason      string
		challenges  int
	}{
		{"none", "", client.Query{}, 401, "missing", 1},
		{"no token", "x", client.Query{}, 401, "malformed", 1},
		{"very long", strings.Repeat("x", 1<<20), client.Query{}, 401, "malformed", 0},
		{"no text", "\xff", client.Query{}, 401, "malformed", 0},
		{"another audience", token, client.Query{Audience: "https://else.test"}, 401, "wrong_audience", 1},
		{"a scope that lacks", token, client.Query{Scope: "read write"}, 403, "insufficient_scope", 1},
		{"a sequence ahead", token, client.Query{AtLeastSeq: 9}, 503, "stale", 0},
	} {
		_, err := c.Verify(t.Context(), tc.token, tc.query)
		var r *client.Refusal
		if !errors.As(err, &r) || r.Status != tc.status || r.Reason != tc.reason || len(r.Challenges) != tc.challenges || err.Error() != "the token is refused: "+tc.reason {
			t.Errorf("%s: got %+v, want %d %s with %d challenges", tc.name, err, tc.status, tc.reason, tc.challenges)
		}
		if errors.Is(err, client.ErrUnavailable) != (tc.status == 503) || tc.status == 503 && r.RetryAfter != time.Second {
			t.Errorf("%s: got %+v, want ErrUnavailable and a second at 503 only", tc.name, r)
		}
	}
	w.apply(&bus.Revocation{ID: "one", ExpiresAt: time.Now().Add(time.Hour).Unix()})
	if _, err := c.Verify(t.Context(), token, client.Query{}); err == nil || err.Error() != "the token is refused: revoked" {
		t.Errorf("revoked: got %v", err)
	}
	for _, answer := range []string{`{"active":false,"sub":"alice"}`, `{"active":true}`, `[]`, `yes`} {
		address, _ := fake(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(answer))
		})
		if got, err := newClient(t, client.Config{Address: address}).Verify(t.Context(), "x", client.Query{}); !errors.Is(err, client.ErrUnavailable) || got != nil {
			t.Errorf("Verify(%s): got %v, %v, want ErrUnavailable", answer, got, err)
		}
	}
}

// TestStandardLibraryOnly: who imports this package does not import NATS.
func TestStandardLibraryOnly(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Skip("there is no go command: ", err)
	}
	if got := strings.Fields(string(out)); !slices.Equal(got, []string{"github.com/sidekey/sidekey/agent/client"}) {
		t.Errorf("go list -deps: got %q, want this package and the standard library", got)
	}
}
