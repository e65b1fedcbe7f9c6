package replica_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// TestFollowByCheckpoint: over the real bus, a reader whose entries are purged goes on from the
// checkpoint, and a cold one begins with it.
func TestFollowByCheckpoint(t *testing.T) {
	b := bustest.Start(t)
	l := b.Log(t)
	behind := replica.New(replica.Config{})
	caught(t, behind, b.Reader(t), mustAppend(t, l, revocation("a"), keyFact(t, "k1", keyring.Active)).Seq)
	issuer := replica.New(replica.Config{})
	var last bus.Position
	for n := range 3 { // each purges behind the one before it
		last = mustAppend(t, l, revocation(fmt.Sprint(n)), revocation(fmt.Sprint(n, "x")))
		caught(t, issuer, l, last.Seq)
		img, at, err := issuer.Image()
		if err == nil {
			err = l.WriteCheckpoint(t.Context(), at, img, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	errEnough := errors.New("enough")
	if err := b.Reader(t).Follow(t.Context(), behind.Cursor(), func([]bus.Entry, uint64) error { return errEnough }); !errors.Is(err, bus.ErrBehind) {
		t.Fatalf("nothing was purged: %v", err)
	}
	last = mustAppend(t, l, revocation("after"))
	caught(t, issuer, l, last.Seq)
	cold := replica.New(replica.Config{})
	for _, r := range []*replica.Replica{behind, cold} {
		caught(t, r, b.Reader(t), last.Seq)
		same(t, r, issuer, []keyring.Claims{jti("a"), jti("0"), jti("2"), jti("after"), jti("never")})
		if err := r.Fault(); err != nil {
			t.Errorf("Fault: %v", err)
		}
	}
}

// TestFollowIntoANewEpoch: a log begun anew is read whole; revocations that it lacks stay, keys and credentials
// that it lacks go, and nobody is vouched for until its head is reached.
func TestFollowIntoANewEpoch(t *testing.T) {
	b := bustest.Start(t)
	l := b.Log(t)
	r := replica.New(replica.Config{})
	reader := b.Reader(t)
	caught(t, r, reader, mustAppend(t, l, revocation("old"), credential("c", "old key", "u"), keyFact(t, "k1", keyring.Active)).Seq)
	epoch := r.Snapshot().Position.Epoch
	img, at, err := r.Image()
	if err == nil {
		err = l.WriteCheckpoint(t.Context(), at, img, nil) // of the old epoch; it stays
	}
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	destroyLog(t, b)
	anew := b.Log(t)
	mustAppend(t, anew, keyFact(t, "k2", keyring.Active), revocation("new"), revocation("newer"))
	if _, err := anew.Tick(t.Context()); err != nil {
		t.Fatal(err)
	}
	run := start(t, r, reader)
	until(t, r, "the new epoch", func() bool {
		s := r.Snapshot()
		return s.Ready && s.Position.Epoch > epoch && s.Position.Seq == 4
	})
	for _, id := range []string{"old", "new", "newer"} {
		if !revoked(r, jti(id)) {
			t.Errorf("%s is not revoked in the new epoch", id)
		}
	}
	if stands(r, "old key") || r.Credentials() != 0 {
		t.Error("a credential that the new log lacks stands")
	}
	_, old := r.Snapshot().Ring.Record("k1")
	_, fresh := r.Snapshot().Ring.Record("k2")
	if old || !fresh {
		t.Errorf("keys in the new epoch: k1 %v, k2 %v, want k2 alone", old, fresh)
	}
	if err := r.Fault(); err != nil {
		t.Errorf("Fault: %v", err)
	}
	run.stop()
	cold := replica.New(replica.Config{}) // it meets the old checkpoint first
	caught(t, cold, b.Reader(t), 4)
	if got := cold.Snapshot().Position.Epoch; got <= epoch {
		t.Errorf("a cold reader is in epoch %d, want one after %d", got, epoch)
	}
}

// destroyLog deletes the log's stream, as one who owns the bus can.
func destroyLog(t testing.TB, b *bustest.Bus) {
	t.Helper()
	if _, err := owner(t, b).Request("$JS.API.STREAM.DELETE.sidekey_log", nil, nats.DefaultTimeout); err != nil {
		t.Fatal(err)
	}
}

// owner connects as one who owns the bus, with nats.go alone.
func owner(t testing.TB, b *bustest.Bus) *nats.Conn {
	t.Helper()
	user := b.Issuer(t)
	kp, err := nkeys.FromSeed(user.Seed)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(b.Server.URL(), nats.UserJWT(func() (string, error) { return user.JWT, nil }, kp.Sign))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}
