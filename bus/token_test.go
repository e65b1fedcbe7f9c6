package bus_test

import (
	"encoding/base64"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

// FuzzToken holds that no text makes the reader panic, and that a token which is taken says the same
// when it is written and read again.
func FuzzToken(f *testing.F) {
	token := bus.Token{Role: bus.RoleAgent, Name: "web-1", ID: "x", URLs: []string{"nats://h:1"}, Authority: make([]byte, 32), Expires: 1}
	text, err := token.Text()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(text))
	f.Add([]byte("sidekey-join-1:" + base64.RawURLEncoding.EncodeToString([]byte(`{"role":"issuer","name":1}`))))
	f.Add([]byte("sidekey-join-1:"))
	f.Fuzz(func(t *testing.T, text []byte) {
		one, err := bus.ParseToken(text)
		if err != nil {
			return
		}
		again, err := one.Text()
		if err != nil {
			t.Fatal(err)
		}
		if two, err := bus.ParseToken([]byte(again)); err != nil && len(again) < 16<<10 || err == nil && !reflect.DeepEqual(one, two) {
			t.Fatalf("written and read again: got %+v (%v), want %+v", two, err, one)
		}
	})
}

// TestJoinGarbage: whatever is sent instead of a request to join is refused in words, lets nobody in
// and leaves the token as it was.
func TestJoinGarbage(t *testing.T) {
	b := bustest.Start(t)
	token := b.Invite(t, bus.RoleAgent, "web-1")
	nc := operator(t, b, &token.User, nats.CustomInboxPrefix("_INBOX_JOIN."+token.ID))
	inner := func(v any) []byte {
		body, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return body
	}
	good := map[string]any{"id": token.ID, "role": "agent", "name": "web-1", "nkey": "U", "signing_key": make([]byte, 32), "sealing_key": make([]byte, 1216)}
	for name, body := range map[string][]byte{
		"nothing":       nil,
		"no JSON":       []byte("{"),
		"an array":      []byte("[]"),
		"no request":    []byte("{}"),
		"request, null": inner(map[string]any{"request": []byte("null")}),
		"not signed":    inner(map[string]any{"request": inner(good)}),
		"zero signed":   inner(map[string]any{"request": inner(good), "by_token": make([]byte, 64), "by_nkey": make([]byte, 64), "by_signer": make([]byte, 64)}),
		"another id":    inner(map[string]any{"request": inner(map[string]any{"id": "../../x"})}),
		"large":         []byte(strings.Repeat(" ", 100<<10)),
	} {
		m, err := nc.Request("sidekey.join."+token.ID, body, 10*time.Second)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var ans map[string]any
		if json.Unmarshal(m.Data, &ans) != nil || ans["error"] == nil || ans["answer"] != nil {
			t.Errorf("%s: got %s, want an error", name, m.Data)
		}
	}
	if members, err := b.Enrolment(t).Members(t.Context(), bus.RoleAgent); err != nil || len(members) != 0 {
		t.Errorf("Members: got %v, %v, want none", members, err)
	}
	if _, err := join(t, token, newDir(t)); err != nil {
		t.Errorf("joining after the garbage: %v", err)
	}
}
