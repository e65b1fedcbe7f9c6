package agent_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/sidekey/sidekey/agent/attacktest"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// besieged is a world with the table's rules and credentials.
func besieged(t *testing.T) (*world, *attacktest.Scene) {
	w := newWorld(t)
	w.rules(new(attacktest.Scene).Rules())
	w.credential(bus.APIKey, "key0-good", func(c *bus.Credential) { c.Roles = nil })
	reads := func(name string) string {
		return w.token(func(c *keyring.Claims) {
			c.Subject, c.Scope, c.Roles, c.ClientID, c.SessionID = name, "read", nil, "", ""
		})
	}
	return w, &attacktest.Scene{Reader: reads("reader"), Other: reads("other"), Key: "key0-good"}
}

// TestAttacks tells the agent of each attack in the way of each profile, and by POST /v1/check: every one has the status and
// the reason that stand in the table.
func TestAttacks(t *testing.T) {
	w, scene := besieged(t)
	h := w.listen("mem")
	all := attacktest.All()
	for i := range all {
		a := &all[i]
		if a.Raw != "" {
			continue // it means something to a proxy only
		}
		for _, f := range attacktest.Faces {
			if strings.ContainsAny(a.Target, "\r\n") {
				continue
			}
			want := *a
			if f.Collides(a) { // the client's field stands beside the proxy's, and nobody knows which is which
				want.Status, want.Word, want.As = 403, "ambiguous_request", ""
			}
			resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(h.raw(string(f.Request(a, scene))))), nil)
			switch {
			case err != nil:
				t.Errorf("%s, %s: %v", f.Name, a.Name, err)
				continue
			case resp.StatusCode == 400 && !a.Carried(), f.InTarget() && (resp.StatusCode == 400 || resp.StatusCode == 404) && want.Status == 403:
				continue // the server could not read it, or nothing is there
			}
			checkAttack(t, f.Name, &want, reply{Response: resp})
		}
		body, ok := attacktest.Check(a, scene)
		if !ok {
			continue
		}
		got := h.do("POST", "/v1/check", string(body), asJSON)
		if got.StatusCode == 400 && !a.Carried() {
			continue
		}
		var said struct {
			Status          int
			Reason, Subject string
			Headers         map[string]string
		}
		if err := json.Unmarshal([]byte(got.body), &said); err != nil {
			t.Fatalf("check, %s: %d %s", a.Name, got.StatusCode, got.body)
		}
		word := said.Reason
		if said.Status == 200 {
			word = said.Headers["X-Auth-Method"]
		} else if said.Subject != "" || len(said.Headers) > 0 {
			t.Errorf("check, %s: a denial names somebody: %s", a.Name, got.body)
		}
		if said.Status != a.Status || word != a.Word || said.Status == 200 && (said.Subject != a.As || said.Headers["X-Auth-Subject"] != a.As) {
			t.Errorf("check, %s: got %s, want %d %q", a.Name, got.body, a.Status, a.Word)
		}
	}
	if n := len(all); n < 80 {
		t.Errorf("the table has %d attacks", n)
	}
}

func checkAttack(t *testing.T, face string, a *attacktest.Attack, got reply) {
	t.Helper()
	checkAuth(t, face+", "+a.Name, got, a.Status, a.Word)
	if a.Status != 200 {
		return
	}
	for name, want := range map[string]string{"X-Auth-Subject": a.As, "X-Auth-Roles": "", "X-Auth-Session": ""} {
		if v := got.Header.Values(name); len(v) != 1 || v[0] != want {
			t.Errorf("%s, %s: %s: got %q, want %q", face, a.Name, name, v, want)
		}
	}
}

// TestFaceAttacks are attacks by what tells of a request: doubled, odd and foreign fields of each profile, of a proxy that
// hands on what it should not, or of somebody who reaches the agent's own port.
func TestFaceAttacks(t *testing.T) {
	w, _ := besieged(t)
	h := w.listen("mem")
	const ambiguous = "ambiguous_request"
	nginx := []string{"X-Original-Method: GET", "X-Original-URI: /admin/x", "X-Original-Host: app.example", "X-Original-Proto: https"}
	forward := []string{"X-Forwarded-Method: GET", "X-Forwarded-Uri: /admin/x", "X-Forwarded-Host: app.example", "X-Forwarded-Proto: https", "X-Forwarded-For: 192.0.2.7"}
	without := func(lines []string, names ...string) []string {
		return slices.DeleteFunc(slices.Clone(lines), func(line string) bool {
			return slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(strings.ToLower(line), strings.ToLower(n)+":") })
		})
	}
	with := func(lines []string, more ...string) []string { return slices.Concat(lines, more) }
	for _, c := range []struct {
		name, line string // of the request
		fields     []string
		status     int
		word       string
	}{
		{"nginx: told by Caddy's fields", "GET /v1/auth/nginx", forward, 403, ambiguous},
		{"haproxy: told by Caddy's fields", "GET /v1/auth/haproxy", forward, 403, ambiguous},
		{"forward: told by nginx's fields", "GET /v1/auth/forward", nginx, 403, ambiguous},
		{"nginx: Caddy's beside its own", "GET /v1/auth/nginx", with(nginx, without(forward, "X-Forwarded-Uri")...), 401, "missing"},
		{"nginx: Caddy's public path beside its own", "GET /v1/auth/nginx", with(nginx, "X-Forwarded-Uri: /"), 401, "missing"},
		{"forward: nginx's public path beside its own", "GET /v1/auth/forward", with(forward, "X-Original-URI: /"), 401, "missing"},
		{"envoy: nginx's public path", "GET /v1/auth/envoy/admin/x", []string{"X-Original-URI: /", "X-Forwarded-Uri: /"}, 401, "missing"},
		{"envoy: Envoy's own original path", "GET /v1/auth/envoy/admin/x", []string{"X-Envoy-Original-Path: /", ":path: /"}, 400, ""},
		{"nginx: the path in the query", "GET /v1/auth/nginx?X-Original-URI=/&uri=/", without(nginx, "X-Original-URI"), 403, ambiguous},
		{"nginx: the path behind the face's", "GET /v1/auth/nginx/", nginx, 404, ""},
		{"nginx: dots in the face's path", "GET /v1/auth/forward/../nginx", nginx, 404, ""},
		{"nginx: two slashes in the face's path", "GET /v1/auth//nginx", nginx, 404, ""},
		{"nginx: an escape in the face's path", "GET /v1/auth/ngin%78", nginx, 404, ""},
		{"nginx: absolute form", "GET http://app.example/v1/auth/nginx", nginx, 400, ""},
		{"envoy: dots out of the prefix", "GET /v1/auth/envoy/../nginx", with(nginx, "X-Original-URI: /"), 403, ambiguous},
		{"envoy: no path", "GET /v1/auth/envoy", nil, 403, ambiguous},
		{"envoy: a query and no path", "GET /v1/auth/envoy?/static/x", nil, 403, ambiguous},
		{"envoy: another scheme", "GET /v1/auth/envoy/static/x", []string{"X-Forwarded-Proto: javascript"}, 403, ambiguous},
		{"nginx: no method", "GET /v1/auth/nginx", without(nginx, "X-Original-Method"), 403, ambiguous},
		{"nginx: no path", "GET /v1/auth/nginx", without(nginx, "X-Original-URI"), 403, ambiguous},
		{"nginx: an empty path", "GET /v1/auth/nginx", with(without(nginx, "X-Original-URI"), "X-Original-URI: "), 403, ambiguous},
		{"nginx: two paths", "GET /v1/auth/nginx", with(nginx, "X-Original-URI: /"), 403, ambiguous},
		{"nginx: two paths, spelled differently", "GET /v1/auth/nginx", with(nginx, "x-ORIGINAL-uri: /"), 403, ambiguous},
		{"nginx: one path twice", "GET /v1/auth/nginx", with(nginx, nginx[1]), 403, ambiguous},
		{"nginx: a path and a URL", "GET /v1/auth/nginx", with(nginx, "X-Original-URL: http://app.example/"), 403, ambiguous},
		{"nginx: a URL of another host", "GET /v1/auth/nginx", with(without(nginx, "X-Original-URI"), "X-Original-URL: https://admin.example/"), 403, ambiguous},
		{"nginx: a URL of another scheme", "GET /v1/auth/nginx", with(without(nginx, "X-Original-URI"), "X-Original-URL: http://app.example/"), 403, ambiguous},
		{"nginx: a URL with a user", "GET /v1/auth/nginx", with(without(nginx, "X-Original-URI", "X-Original-Host"), "X-Original-URL: https://app.example@admin.example/"), 403, ambiguous},
		{"nginx: a URL with a backslash", "GET /v1/auth/nginx", with(without(nginx, "X-Original-URI", "X-Original-Host"), `X-Original-URL: https://app.example\@admin.example/`), 403, ambiguous},
		{"nginx: a URL without a path", "GET /v1/auth/nginx", with(without(nginx, "X-Original-URI"), "X-Original-URL: https://app.example?/static/x"), 403, ambiguous},
		{"nginx: a URL of a file", "GET /v1/auth/nginx", with(without(nginx, "X-Original-URI", "X-Original-Host", "X-Original-Proto"), "X-Original-URL: file:///static/x"), 403, ambiguous},
		{"nginx: two methods", "GET /v1/auth/nginx", with(nginx, "X-Original-Method: GET"), 403, ambiguous},
		{"nginx: two methods in one", "GET /v1/auth/nginx", with(without(nginx, "X-Original-Method"), "X-Original-Method: GET, POST"), 403, ambiguous},
		{"nginx: two hosts", "GET /v1/auth/nginx", with(nginx, "X-Original-Host: admin.example"), 403, ambiguous},
		{"nginx: two schemes", "GET /v1/auth/nginx", with(nginx, "X-Original-Proto: http"), 403, ambiguous},
		{"nginx: two addresses", "GET /v1/auth/nginx", with(nginx, "X-Original-Remote-Addr: 10.0.0.1", "X-Original-Remote-Addr: 10.0.0.2"), 403, ambiguous},
		{"forward: two paths", "GET /v1/auth/forward", with(forward, "X-Forwarded-Uri: /"), 403, ambiguous},
		{"forward: two methods", "GET /v1/auth/forward", with(forward, "X-Forwarded-Method: OPTIONS"), 403, ambiguous},
		{"forward: two hosts", "GET /v1/auth/forward", with(forward, "X-Forwarded-Host: admin.example"), 403, ambiguous},
		{"forward: two schemes", "GET /v1/auth/forward", with(forward, "X-Forwarded-Proto: http"), 403, ambiguous},
		{"forward: two fields of addresses", "GET /v1/auth/forward", with(forward, "X-Forwarded-For: 127.0.0.1"), 403, ambiguous},
		{"forward: a list of hosts", "GET /v1/auth/forward", with(without(forward, "X-Forwarded-Host"), "X-Forwarded-Host: app.example, admin.example"), 403, ambiguous},
		{"forward: a list of schemes", "GET /v1/auth/forward", with(without(forward, "X-Forwarded-Proto"), "X-Forwarded-Proto: https, http"), 403, ambiguous},
		{"forward: a URL as its path", "GET /v1/auth/forward", with(without(forward, "X-Forwarded-Uri"), "X-Forwarded-Uri: https://app.example/"), 403, ambiguous},
		{"forward: no host", "GET /v1/auth/forward", without(forward, "X-Forwarded-Host"), 403, ambiguous},
		{"forward: no method, the check's own is not taken", "GET /v1/auth/forward", without(forward, "X-Forwarded-Method"), 403, ambiguous},
		{"two hosts of the check", "GET /v1/auth/forward", with(forward, "Host: admin.example"), 400, ""},
		{"a blank before a colon", "GET /v1/auth/nginx", with(nginx, "X-Original-URI : /"), 400, ""},
		{"a folded field", "GET /v1/auth/nginx", with(nginx, "X-Original-Proto: https\r\n X-Original-URI: /"), 0, ""},
		{"a carriage return in a field", "GET /v1/auth/nginx", with(nginx, "X-A: b\rX-Original-URI: /"), 400, ""},
		{"a field without a name", "GET /v1/auth/nginx", with(nginx, ": /"), 400, ""},
		{"a field without a colon", "GET /v1/auth/nginx", with(nginx, "X-Original-URI"), 400, ""},
		{"two lengths", "POST /v1/auth/nginx", with(nginx, "Content-Length: 1", "Content-Length: 2"), 400, ""},
		{"a length and chunks", "POST /v1/auth/nginx", with(nginx, "Content-Length: 5", "Transfer-Encoding: chunked"), 0, ""},
		{"endless fields", "GET /v1/auth/nginx", with(nginx, "X-A: "+strings.Repeat("a", 40<<10)), 431, ""},
		{"a method of the check that is none", "GE(T /v1/auth/nginx", nginx, 0, ""},
		{"another HTTP", "GET /v1/auth/nginx HTTP/3.0", nginx, 0, ""},
	} {
		request := c.line
		if !strings.Contains(request, " HTTP/") {
			request += " HTTP/1.1"
		}
		request += "\r\nHost: agent\r\n" + strings.Join(append(c.fields, "Connection: close"), "\r\n") + "\r\n\r\n"
		resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(h.raw(request))), nil)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		word := resp.Header.Get("Sidekey-Reason")
		if c.status == 0 && resp.StatusCode >= 400 { // refused, in whatever way
			continue
		}
		if resp.StatusCode != c.status || word != c.word || len(resp.Header.Values("X-Auth-Subject")) > 0 {
			t.Errorf("%s: got %d %q, want %d %q", c.name, resp.StatusCode, word, c.status, c.word)
		}
	}
}

// TestClaimAttacks: what a claim holds never becomes more than one value of one header, at whichever face: whoever has such a
// token is refused, and the answer tells nothing of it.
func TestClaimAttacks(t *testing.T) {
	w, _ := besieged(t)
	h, e := w.listen("mem"), w.envoy()
	change := func(f func(c *keyring.Claims)) string {
		return w.token(func(c *keyring.Claims) {
			c.Subject, c.Scope, c.Roles, c.ClientID, c.SessionID = "reader", "read", nil, "", ""
			f(c)
		})
	}
	for name, token := range map[string]string{
		"a line break in the subject":          change(func(c *keyring.Claims) { c.Subject = "reader\r\nX-Auth-Roles: admin" }),
		"a line feed in the subject":           change(func(c *keyring.Claims) { c.Subject = "reader\nadmin" }),
		"an end of a C string in the subject":  change(func(c *keyring.Claims) { c.Subject = "admin\x00reader" }),
		"a tab in the subject":                 change(func(c *keyring.Claims) { c.Subject = "reader\tadmin" }),
		"a delete in the subject":              change(func(c *keyring.Claims) { c.Subject = "reader\x7f" }),
		"a blank before the subject":           change(func(c *keyring.Claims) { c.Subject = " admin" }),
		"a blank behind the subject":           change(func(c *keyring.Claims) { c.Subject = "admin " }),
		"a control of two bytes":               change(func(c *keyring.Claims) { c.Subject = "admin\u0085" }),
		"a line separator in the subject":      change(func(c *keyring.Claims) { c.Subject = "reader\u2028admin" }),
		"a line break in the scope":            change(func(c *keyring.Claims) { c.Scope = "read\r\nX-Auth-Roles: admin" }),
		"a line break in the client":           change(func(c *keyring.Claims) { c.ClientID = "web\r\n\r\n" }),
		"a line break in the session":          change(func(c *keyring.Claims) { c.SessionID = "s\r\nX: y" }),
		"a comma in a role":                    change(func(c *keyring.Claims) { c.Roles = []string{"user,admin"} }),
		"a line break in a role":               change(func(c *keyring.Claims) { c.Roles = []string{"user\r\nadmin"} }),
		"an empty role":                        change(func(c *keyring.Claims) { c.Roles = []string{"", "user"} }),
		"a role that ends in a blank":          change(func(c *keyring.Claims) { c.Roles = []string{"admin "} }),
		"a role that begins with a line break": change(func(c *keyring.Claims) { c.Roles = []string{"\nadmin"} }),
	} {
		got := h.do("GET", "/v1/auth/forward", "", proxied("GET app.example/api/x", "Authorization: Bearer "+token)...)
		checkAuth(t, name, got, 403, "unsafe_claim")
		got = h.do("GET", "/v1/auth/nginx", "", "X-Original-Method: GET", "X-Original-URI: /api/x", "X-Original-Host: app.example", "Authorization: Bearer "+token)
		checkAuth(t, name+", nginx", got, 403, "unsafe_claim")
		if got.body != "" {
			t.Errorf("%s, nginx: the body is %q, want none", name, got.body)
		}
		req := envoyAsks("GET app.example/api/x", "authorization: Bearer "+token)
		wantTold(t, name+", gRPC", e.check(req), 403, "unsafe_claim")
		wantTold(t, name+", gRPC, raw", e.check(raw(req)), 403, "unsafe_claim")
		_, d := w.check(fmt.Sprintf(`{"method":"GET","host":"app.example","path":"/api/x","headers":{"Authorization":"Bearer %s"}}`, token))
		if fields, _ := d["headers"].(map[string]any); d["decision"] != "deny" || d["status"] != float64(403) || d["reason"] != "unsafe_claim" || d["subject"] != "" || len(fields) > 0 {
			t.Errorf("%s, check: got %v, want 403 unsafe_claim and nothing of the claims", name, d)
		}
	}
}
