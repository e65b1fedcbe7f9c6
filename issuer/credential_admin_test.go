package issuer_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/issuer"
)

func TestAdminCredentials(t *testing.T) {
	b := newBus()
	ti := start(t, b, func(c *issuer.Config, _ *issuer.Parts) { c.MaxCredentials = 3 })
	h := ti.LocalAdminHandler()
	made := addCredential(t, ti, issuer.NewCredential{Name: "first"})
	b.fleet.Join("web-1", nil)
	const at = "/admin/v1/credentials"
	one, none := at+"/"+made.ID, at+"/cred_00000000000000000000000000000000"
	for _, tc := range []struct {
		method, path, body string
		status             int
		holds              string
	}{
		{"GET", at, "", 200, `"name":"first"`},
		{"GET", at + "?username=alice", "", 200, `"id":"` + made.ID + `"`},
		{"GET", at + "?sub=nobody", "", 200, `{"credentials":[]}`},
		{"GET", at + "?sub=a&username=alice", "", 400, `both`},
		{"GET", at + "?username=nobody", "", 404, `not found`},
		{"GET", at + "?sub=*", "", 200, `{"credentials":[]}`},
		{"GET", one, "", 200, `"networks":[],"created"`},
		{"GET", none, "", 404, ``},
		{"GET", at + "/*", "", 404, ``},
		{"POST", at, `{"name":"a"}`, 400, `exactly one`},
		{"POST", at, `{"name":"a","username":"nobody"}`, 404, ``},
		{"POST", at, `{"name":"a","username":"alice","secret":"x"}`, 400, `unknown member \"secret\"`},
		{"POST", at, `{"name":"a","username":"alice","scope":"root"}`, 400, `within`},
		{"POST", at, `{"name":"a","username":"alice","networks":["10.0.0.1/8"]}`, 400, `networks`},
		{"POST", at, `{"name":"second","username":"alice","type":"token","scope":"read","expires_in":"1h"}`, 201, `"secret":"sidekey_`},
		{"PATCH", one, `{}`, 400, `nothing to change`},
		{"PATCH", one, `{"wait":"fleet"}`, 400, `nothing to change`},
		{"PATCH", one, `{"name":"x","wait":"all"}`, 400, `wait`},
		{"PATCH", one, `{"scope":"read root"}`, 400, `within`},
		{"PATCH", one, `{"name":"renamed"}`, 200, `"name":"renamed"`},
		{"PATCH", one, `{"networks":["192.0.2.0/24"],"wait":"fleet","timeout":"10ms"}`, 202, `"pending":["web-1"]`},
		{"PATCH", none, `{"name":"x"}`, 404, ``},
		{"POST", one + "/rotate", `{"overlap":"soon"}`, 400, `overlap`},
		{"POST", one + "/rotate", `{"overlap":"2161h"}`, 400, `overlap`},
		{"POST", none + "/rotate", `{}`, 404, ``},
		{"POST", one + "/rotate", `{"overlap":"1h"}`, 201, `"old":{"id":"` + made.ID},
		{"POST", one + "/rotate", ``, 409, `rotated into`},
		{"POST", at, `{"name":"fourth","username":"alice"}`, 409, `too many`},
		{"POST", one + "/revoke", `{"wait":"soon"}`, 400, `wait`},
		{"POST", one + "/revoke", `{"reason":"` + strings.Repeat("x", 1025) + `"}`, 400, `reason`},
		{"POST", one + "/revoke", `{"wait":"fleet","timeout":"10ms","reason":"found in a log"}`, 202, `"confirmed":false,"applied":[],"fenced":[],"pending":["web-1"]`},
		{"GET", one, "", 200, `"state":"revoked","reason":"found in a log"`},
		{"PATCH", one, `{"name":"x"}`, 409, `revoked`},
		{"POST", one + "/rotate", ``, 409, `revoked`},
		{"POST", "/admin/v1/revocations", `{"jti":"` + made.ID + `"}`, 200, `"seq":`},
		{"POST", "/admin/v1/revocations", `{"token":"` + made.Secret + `"}`, 200, `"seq":`},
		{"POST", "/admin/v1/revocations", `{"token":"` + strings.Repeat("f", 40) + `"}`, 400, `malformed`},
		{"POST", "/admin/v1/revocations", `{"jti":7}`, 400, `"member \"jti\" may not be a number"`},
		{"DELETE", one + "?wait=all", "", 400, `wait`},
		{"DELETE", one, "", 204, ``},
		{"GET", one, "", 404, ``},
		{"DELETE", none, "", 404, ``},
		{"POST", at + "/import", `{}`, 400, `tokens`},
		{"POST", at + "/import", `{"tokens":[{"key":"` + strings.Repeat("a", 40) + `","user_id":"7"}]}`, 200, `"result":"refused","detail":"there is no such user"`},
		{"POST", at + "/import", `{"tokens":[{"key":"` + strings.Repeat("a", 40) + `","user_id":"` + made.Subject + `"}]}`, 200, `"result":"imported"`},
		{"PUT", one, "", 405, `GET, PATCH, DELETE`},
	} {
		w := ask(h, tc.method, tc.path, tc.body)
		if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.holds) {
			t.Errorf("%s %s %s: got %d %s, want %d with %s", tc.method, tc.path, tc.body, w.Code, w.Body, tc.status, tc.holds)
		}
		if body := w.Body.String(); strings.Contains(body, `"hash"`) || strings.Contains(body, "known_seq") || strings.Contains(body, made.Secret) {
			t.Errorf("%s %s: the answer shows what it must not: %s", tc.method, tc.path, body)
		}
	}
}

// TestManyCredentialsOfAUser: a disabled user's hundreds are withdrawn by few appends, and come back.
func TestManyCredentialsOfAUser(t *testing.T) {
	ti := start(t, newBus())
	user, err := ti.User(t.Context(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	var tokens []issuer.ForeignToken
	for n := range 300 {
		tokens = append(tokens, issuer.ForeignToken{Key: fmt.Sprintf("%040d", n), UserID: user.ID, Created: time.Now().Unix()})
	}
	if _, err := ti.ImportTokens(t.Context(), "", tokens); err != nil {
		t.Fatal(err)
	}
	for _, disabled := range []bool{true, false, true} {
		if _, err := ti.ChangeUser(t.Context(), "alice", issuer.UserChange{Disabled: &disabled}); err != nil {
			t.Fatal(err)
		}
		accepted := 0
		for _, token := range tokens {
			if ti.accepted(token.Key) {
				accepted++
			}
		}
		if want := map[bool]int{true: 0, false: len(tokens)}[disabled]; accepted != want {
			t.Errorf("disabled %v: %d are accepted, want %d", disabled, accepted, want)
		}
	}
	all, err := ti.ListCredentials(t.Context(), user.ID, "")
	if err != nil || len(all) != len(tokens) {
		t.Errorf("ListCredentials: got %d, %v, want %d", len(all), err, len(tokens))
	}
	if text, _ := json.Marshal(all); strings.Contains(string(text), tokens[299].Key) {
		t.Error("the list holds a token")
	}
}
