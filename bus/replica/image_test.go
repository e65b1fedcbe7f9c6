package replica_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// stocked is a replica that knows something of every sort, and the claims that it refuses.
func stocked(t testing.TB, cfg replica.Config) (*replica.Replica, *bustest.Log, []keyring.Claims) {
	t.Helper()
	l, r := bustest.NewLog(), replica.New(cfg)
	exp := time.Now().Add(24 * time.Hour).Unix()
	pos := mustAppend(t, l,
		keyFact(t, "k1", keyring.Announced), keyFact(t, "k1", keyring.Active), keyFact(t, "k2", keyring.Announced),
		&bus.Revocation{ID: "j1", ExpiresAt: exp}, &bus.Revocation{ID: "j2", ExpiresAt: exp + 90000}, &bus.Revocation{SessionID: "s1", ExpiresAt: exp},
		&bus.Revocation{Subject: "alice", ExpiresAt: exp, Time: 1}, &bus.Revocation{ClientID: "app", ExpiresAt: exp, Time: 1},
		rulesFact("web", 1, "a"), rulesFact("base", 2, ""))
	if _, err := l.Tick(t.Context()); err != nil {
		t.Fatal(err)
	}
	caught(t, r, l, pos.Seq+1)
	return r, l, []keyring.Claims{jti("j1"), jti("j2"), {ID: "x", SessionID: "s1"}, {ID: "x", Subject: "alice"}, {ID: "x", ClientID: "app"}}
}

// same fails unless two replicas know the same.
func same(t testing.TB, got, want *replica.Replica, claims []keyring.Claims) {
	t.Helper()
	g, w := got.Snapshot(), want.Snapshot()
	if got.Cursor() != want.Cursor() || !g.TickTime.Equal(w.TickTime) {
		t.Errorf("position, chain or time: got %v %v, want %v %v", got.Cursor(), g.TickTime, want.Cursor(), w.TickTime)
	}
	if g.Ring.Issuer() != w.Ring.Issuer() || g.Ring.Audience() != w.Ring.Audience() || !bytes.Equal(g.Ring.JWKS(), w.Ring.JWKS()) {
		t.Errorf("the ring: got %s of %q, want %s of %q", g.Ring.JWKS(), g.Ring.Issuer(), w.Ring.JWKS(), w.Ring.Issuer())
	}
	a, aerr := json.Marshal(got.Keys())
	b, berr := json.Marshal(want.Keys())
	if aerr != nil || berr != nil || string(a) != string(b) {
		t.Errorf("the keys: got %s, want %s", a, b)
	}
	for _, k := range want.Keys() {
		a, _ := g.Ring.Record(k.KeyID)
		b, _ := w.Ring.Record(k.KeyID)
		if a == nil || b == nil || a.State != b.State || a.Seq != b.Seq || (a.Key == nil) != (b.Key == nil) {
			t.Errorf("key %s: got %+v, want %+v", k.KeyID, a, b)
		}
	}
	if !reflect.DeepEqual(g.Rules, w.Rules) {
		t.Errorf("the rules: got %+v, want %+v", g.Rules, w.Rules)
	}
	for _, c := range claims {
		if a, b := revoked(got, c), revoked(want, c); a != b {
			t.Errorf("Revoked(%+v): got %v, want %v", c, a, b)
		}
	}
}

// TestImage: a replica made of an image knows what the one knew that made it, and goes on from there.
func TestImage(t *testing.T) {
	r, l, claims := stocked(t, replica.Config{})
	img, at, err := r.Image()
	if err != nil || at != r.Cursor() {
		t.Fatalf("Image: at %v, %v", at, err)
	}
	again, _, err := r.Image()
	if err != nil || len(again) != len(img) {
		t.Errorf("Image again: got %d bytes, want %d (%v)", len(again), len(img), err)
	}
	copied := replica.New(replica.Config{})
	if err := copied.Load(img); err != nil {
		t.Fatal(err)
	}
	same(t, copied, r, claims)
	if copied.Snapshot().Ready {
		t.Error("ready by an image alone")
	}
	pos := mustAppend(t, l, revocation("later"))
	caught(t, copied, l, pos.Seq)
	caught(t, r, l, pos.Seq)
	same(t, copied, r, append(claims, jti("later")))
	if err := copied.Load(img); err != nil || copied.Snapshot().Position != pos {
		t.Errorf("Load of an older image: %v, at %v: it goes back", err, copied.Snapshot().Position)
	}
	empty, _, err := replica.New(replica.Config{}).Image()
	if err != nil {
		t.Fatal(err)
	}
	if err := copied.Load(empty); err != nil || copied.Snapshot().Position != pos {
		t.Errorf("Load of an empty image: %v", err)
	}
}

// TestImageUnites: an image takes nothing away that is held already.
func TestImageUnites(t *testing.T) {
	mine := replica.New(replica.Config{})
	only := bustest.NewLog()
	caught(t, mine, only, mustAppend(t, only, revocation("mine"), &bus.Revocation{Subject: "bob", ExpiresAt: time.Now().Add(time.Hour).Unix(), Time: 1}).Seq)
	r, _, claims := stocked(t, replica.Config{})
	img, _, err := r.Image()
	if err != nil {
		t.Fatal(err)
	}
	if err := mine.Load(img); err != nil {
		t.Fatal(err)
	}
	for _, c := range append(claims, jti("mine"), keyring.Claims{ID: "x", Subject: "bob"}) {
		if !revoked(mine, c) {
			t.Errorf("%+v is no longer revoked", c)
		}
	}
}

// TestImageDamage: an image with any byte altered, or cut short anywhere, is refused, and nothing of
// it is taken.
func TestImageDamage(t *testing.T) {
	r, _, claims := stocked(t, replica.Config{})
	img, _, err := r.Image()
	if err != nil {
		t.Fatal(err)
	}
	into := replica.New(replica.Config{})
	refused := func(what string, damaged []byte) {
		t.Helper()
		if err := into.Load(damaged); !errors.Is(err, replica.ErrDamaged) {
			t.Errorf("%s: got %v, want ErrDamaged", what, err)
		}
	}
	for i := range img {
		damaged := bytes.Clone(img)
		damaged[i] ^= 1 << (i % 8)
		refused(fmt.Sprintf("byte %d altered", i), damaged)
		refused(fmt.Sprintf("cut to %d bytes", i), img[:i])
	}
	refused("lengthened", append(bytes.Clone(img), 0))
	refused("twice", append(bytes.Clone(img), img...))
	if into.Snapshot().Position != (bus.Position{}) || into.Revocations() != 0 || revoked(into, claims[0]) {
		t.Error("something of a damaged image was taken")
	}
	if err := into.Load(img); err != nil {
		t.Errorf("Load of the image itself: %v", err)
	}
}
