package issuer_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

// hooked is a bucket that calls before ahead of each write.
type hooked struct {
	issuer.Bucket
	mu     sync.Mutex
	before func()
}

func (h *hooked) Update(ctx context.Context, name string, value []byte, revision uint64) (uint64, error) {
	h.mu.Lock()
	before := h.before
	h.mu.Unlock()
	before()
	return h.Bucket.Update(ctx, name, value, revision)
}

// once calls f ahead of the next write, and of that one only.
func (h *hooked) once(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.before = func() {
		h.mu.Lock()
		h.before = func() {}
		h.mu.Unlock()
		f()
	}
}

// dying is the log of an issuer that dies: after so many appends nothing is written any more.
type dying struct {
	issuer.Log
	mu   sync.Mutex
	left int
}

func (d *dying) Append(ctx context.Context, facts ...bus.Fact) (bus.Position, error) {
	d.mu.Lock()
	d.left--
	dead := d.left < 0
	d.mu.Unlock()
	if dead {
		return bus.Position{}, errLost
	}
	return d.Log.Append(ctx, facts...)
}

// bureau is two issuers of one bus. The other makes tokens that live for longer than those by which
// the first judges how long a revocation has to live.
type bureau struct {
	first, other        *testIssuer
	sessions, sessions2 *hooked
	log                 *dying
}

func newBureau(t *testing.T) *bureau {
	t.Helper()
	u := &bureau{sessions: &hooked{before: func() {}}, sessions2: &hooked{before: func() {}}, log: &dying{left: 1 << 30}}
	b := newBus()
	u.first = start(t, b, func(_ *issuer.Config, p *issuer.Parts) {
		u.sessions.Bucket, p.Sessions = p.Sessions, u.sessions
		u.log.Log, p.Log = p.Log, u.log
	})
	u.other = newIssuer(t, b, func(c *issuer.Config, p *issuer.Parts) {
		c.AccessLifetime = 2 * time.Hour
		u.sessions2.Bucket, p.Sessions = p.Sessions, u.sessions2
	})
	catchUp(t, []*testIssuer{u.first, u.other})
	return u
}

// covered holds PROTOCOL 14: in the log stands a revocation of the session that outlives the token by
// the skew of clocks, no later than the entry that a receipt names; seq 0: there is no receipt.
func (u *bureau) covered(t *testing.T, k *issuer.Tokens, seq uint64) {
	t.Helper()
	var at uint64
	for _, r := range u.other.Feed.Recent() {
		if r.SessionID == k.SessionID && r.ExpiresAt >= k.ExpiresAt.Unix()+30 {
			at = r.Seq
		}
	}
	if at == 0 {
		t.Errorf("no revocation of session %s outlives its token of %s", k.SessionID, k.ExpiresAt)
	}
	if seq != 0 && at > seq {
		t.Errorf("the receipt is of entry %d: %d, which outlives the token, lies behind it", seq, at)
	}
	refused(t, "verify(the token made meanwhile)", verify(u.other.replica, k.Access), keyring.Revoked)
	s, err := u.other.ListSessions(t.Context(), "")
	if err != nil || len(s) != 1 || s[0].Closed == 0 {
		t.Errorf("ListSessions: got %v, %v, want one, closed", s, err)
	}
}

// TestRevokedWhileATokenIsMade goes through every order in which one issuer's refresh and another's
// revocation of the session can meet: the refresh's compare-and-set before the entry, between the
// entry and the closing of the record, behind both; and the revoker dying after each of its steps.
func TestRevokedWhileATokenIsMade(t *testing.T) {
	revoke := func(u *bureau, sid string) (*issuer.Receipt, error) {
		return u.first.Revoke(context.Background(), issuer.Target{SessionID: sid})
	}
	t.Run("refresh, entry, close", func(t *testing.T) {
		u := newBureau(t)
		made := refresh(t, u.other, login(t, u.first).Refresh)
		receipt, err := revoke(u, made.SessionID)
		if err != nil {
			t.Fatal(err)
		}
		catchUp(t, []*testIssuer{u.first, u.other})
		u.covered(t, made, receipt.Seq)
	})
	t.Run("entry, refresh, close", func(t *testing.T) {
		u := newBureau(t)
		began := login(t, u.first)
		made := u.betweenEntryAndClose(t, began)
		receipt, err := made.revoked()
		if err != nil {
			t.Fatal(err)
		}
		catchUp(t, []*testIssuer{u.first, u.other})
		u.covered(t, made.tokens, receipt.Seq)
	})
	t.Run("entry, close, refresh", func(t *testing.T) {
		u := newBureau(t)
		began := login(t, u.first)
		u.sessions2.once(func() {
			if _, err := revoke(u, began.SessionID); err != nil {
				t.Error(err)
			}
		})
		_, err := u.other.Refresh(t.Context(), began.Refresh)
		refused(t, "Refresh", err, keyring.Revoked)
	})
	t.Run("entry, refresh; the revoker dies before it closes, another closes", func(t *testing.T) {
		u := newBureau(t)
		made := u.dead(t, 1, login(t, u.first))
		u.other.run(t)
		u.settled(t, made)
	})
	t.Run("entry, refresh, close; the revoker dies before it appends again, another does", func(t *testing.T) {
		u := newBureau(t)
		made := u.dead(t, 2, login(t, u.first))
		u.other.run(t)
		u.settled(t, made)
	})
	for after, name := range map[int]string{1: "closes", 2: "appends again"} {
		t.Run("the revoker dies before it "+name+", nobody reads the entry anew, and a sweep comes", func(t *testing.T) {
			u := newBureau(t)
			made := u.dead(t, after, login(t, u.first))
			if err := u.other.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			catchUp(t, []*testIssuer{u.first, u.other})
			u.covered(t, made, 0)
			before := u.other.position().Seq
			if err := u.other.Sweep(t.Context()); err != nil || u.other.position().Seq != before {
				t.Errorf("a second Sweep: got %v at entry %d, want nothing more to do at %d", err, u.other.position().Seq, before)
			}
		})
	}
}

// making is a refresh and a revocation under way at once.
type making struct {
	tokens  *issuer.Tokens
	revoked func() (*issuer.Receipt, error)
}

// betweenEntryAndClose lets the other issuer judge a refresh, the first append the revocation, the
// other write its compare-and-set, and then the first go on to close the record.
func (u *bureau) betweenEntryAndClose(t *testing.T, began *issuer.Tokens) making {
	t.Helper()
	type result struct {
		r   *issuer.Receipt
		err error
	}
	done, closing, written := make(chan result, 1), make(chan struct{}), make(chan struct{})
	u.sessions.once(func() { close(closing); <-written })
	u.sessions2.once(func() {
		go func() {
			r, err := u.first.Revoke(context.Background(), issuer.Target{SessionID: began.SessionID})
			done <- result{r, err}
		}()
		<-closing
	})
	tokens := refresh(t, u.other, began.Refresh)
	close(written)
	return making{tokens, func() (*issuer.Receipt, error) { r := <-done; return r.r, r.err }}
}

// dead is the same, with a first issuer that dies after so many of its steps: the entry, the closed
// record, the entry again.
func (u *bureau) dead(t *testing.T, steps int, began *issuer.Tokens) *issuer.Tokens {
	t.Helper()
	u.log.left = 1
	if steps == 1 {
		dead := &dead{Bucket: u.sessions.Bucket}
		u.sessions.Bucket = dead
	}
	made := u.betweenEntryAndClose(t, began)
	if _, err := made.revoked(); !errors.Is(err, issuer.ErrUnavailable) {
		t.Fatalf("Revoke by an issuer that dies: got %v, want ErrUnavailable", err)
	}
	return made.tokens
}

// dead is a bucket that takes no more writes.
type dead struct{ issuer.Bucket }

func (*dead) Update(context.Context, string, []byte, uint64) (uint64, error) { return 0, errLost }

// settled waits for the other issuer's background work.
func (u *bureau) settled(t *testing.T, made *issuer.Tokens) {
	t.Helper()
	for changed := u.other.replica.Changed(); ; changed = u.other.replica.Changed() {
		for _, r := range u.other.Feed.Recent() {
			if r.SessionID == made.SessionID && r.ExpiresAt >= made.ExpiresAt.Unix()+30 {
				u.covered(t, made, 0)
				return
			}
		}
		select {
		case <-changed:
		case <-time.After(5 * time.Second):
			t.Fatal("nobody appended a revocation that outlives the token")
		}
	}
}
