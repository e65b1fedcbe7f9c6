package replica_test

import (
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/replica"
)

func credential(id, text, sub string) *bus.Credential {
	hash := bus.HashCredential([]byte(text))
	return &bus.Credential{ID: id, Type: bus.APIKey, Hash: hash[:], Subject: sub, IssuedAt: time.Now().Unix()}
}

// stands tells whether the text of a credential would be accepted.
func stands(r *replica.Replica, text string) bool {
	hash := bus.HashCredential([]byte(text))
	c := r.Credential(&hash)
	return c != nil && !r.CredentialRevoked(c)
}

// TestCredentials holds what withdraws a credential against what does not, in the log and in an image of it.
func TestCredentials(t *testing.T) {
	l, r := bustest.NewLog(), replica.New(replica.Config{})
	exp, now := time.Now().Add(time.Hour).Unix(), time.Now().Unix()
	gone, other := credential("gone", "text of gone", "alice"), credential("other", "second text", "alice")
	gone.Gone = true
	over := credential("over", "text of over", "alice")
	over.ExpiresAt = now - 1
	pos := mustAppend(t, l,
		credential("kept", "text of kept", "alice"),
		credential("gone", "text of gone", "alice"), gone,
		credential("other", "first text", "alice"), other,
		credential("by-id", "text of by-id", "alice"), &bus.Revocation{ID: "by-id", ExpiresAt: exp},
		credential("cut", "text of cut", "bob"), &bus.Revocation{Subject: "bob", ExpiresAt: exp, Time: now},
		credential("later", "text of later", "bob"),
		credential("spared", "text of spared", "carol"), &bus.Revocation{Subject: "carol", ExpiresAt: exp, Time: now, Sessions: true},
		over, &bus.Tick{Time: now * 1000, Head: 1, Chain: make([]byte, 32)})
	caught(t, r, l, pos.Seq)
	img, _, err := r.Image()
	if err != nil {
		t.Fatal(err)
	}
	loaded := replica.New(replica.Config{})
	if err := loaded.Load(img); err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]*replica.Replica{"log": r, "image": loaded} {
		for text, want := range map[string]bool{
			"text of kept": true, "text of gone": false, "first text": false, "second text": true, "text of by-id": false,
			"text of cut": false, "text of later": true, "text of spared": true, "text of over": false, "": false,
		} {
			if got := stands(r, text); got != want {
				t.Errorf("%s: Credential(%q) stands: got %v, want %v", name, text, got, want)
			}
		}
		if got := r.Credentials(); got != 6 {
			t.Errorf("%s: Credentials: got %d, want 6", name, got)
		}
	}
	hash := bus.HashCredential([]byte("text of kept"))
	if n := testing.AllocsPerRun(100, func() { r.CredentialRevoked(r.Credential(&hash)) }); n != 0 {
		t.Errorf("looking a credential up allocates %v times", n)
	}
}
