package issuer_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

var errLost = errors.New("planted")

func TestRefreshGraceAndReuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		one := start(t, b)
		two := newIssuer(t, b)
		began := login(t, one)
		next := refresh(t, one, began.Refresh)
		time.Sleep(30 * time.Second)
		again := refresh(t, two, began.Refresh) // by another issuer, at the edge of the grace time
		if again.Refresh != next.Refresh {
			t.Error("a retry within the grace time: got another refresh token, want the same, byte for byte")
		}
		if again.Access == next.Access || claims(t, again.Access)["jti"] == claims(t, next.Access)["jti"] {
			t.Error("a retry within the grace time: got the same access token, want a new one")
		}
		time.Sleep(time.Millisecond)
		_, err := two.Refresh(t.Context(), began.Refresh)
		refused(t, "Refresh after the grace time", err, keyring.Revoked)
		synctest.Wait() // both replicas have read the revocation
		for name, access := range map[string]string{"first": began.Access, "second": next.Access, "third": again.Access} {
			refused(t, "verify("+name+") at another replica", verify(one.replica, access), keyring.Revoked)
		}
		_, err = one.Refresh(t.Context(), next.Refresh)
		refused(t, "Refresh of the successor", err, keyring.Revoked)
	})
}

func TestRefreshUsedSuccessorEndsGrace(t *testing.T) {
	ti := start(t, newBus())
	began := login(t, ti)
	refresh(t, ti, refresh(t, ti, began.Refresh).Refresh)
	_, err := ti.Refresh(t.Context(), began.Refresh)
	refused(t, "Refresh of the first token once its successor was used", err, keyring.Revoked)
}

func TestRefreshExpiryAndRoles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		ti := start(t, b, func(c *issuer.Config, _ *issuer.Parts) { c.RefreshLifetime = time.Hour })
		tokens := login(t, ti)
		time.Sleep(time.Hour - time.Second)
		scope, roles := "read", []string{"admin"}
		if _, err := ti.ChangeUser(t.Context(), "alice", issuer.UserChange{Scope: &scope, Roles: &roles}); err != nil {
			t.Fatal(err)
		}
		tokens = refresh(t, ti, tokens.Refresh)
		if c := claims(t, tokens.Access); c["scope"] != "read" || c["roles"].([]any)[0] != "admin" || c["auth_time"] == c["iat"] {
			t.Errorf("claims after the user changed: got %v, want the narrower scope, the new roles, the old auth_time", c)
		}
		time.Sleep(time.Hour + 6*time.Second)
		_, err := ti.Refresh(t.Context(), tokens.Refresh)
		refused(t, "Refresh of an expired token", err, keyring.Expired)
		if err := ti.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if err := ti.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n, _ := b.sessions.Count(t.Context(), ""); n != 0 {
			t.Errorf("sessions after the sweep: got %d, want 0", n)
		}
	})
}

func TestOneSuccessorAmongManyIssuers(t *testing.T) {
	b := newBus()
	issuers := []*testIssuer{start(t, b), newIssuer(t, b)}
	began := login(t, issuers[0])
	var wg sync.WaitGroup
	var mu sync.Mutex
	successors, accesses := make(map[string]int), make(map[string]int)
	for n := range 64 {
		wg.Go(func() {
			tokens, err := issuers[n%2].Refresh(context.Background(), began.Refresh)
			if err != nil {
				t.Errorf("Refresh %d: got %v, want tokens", n, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			successors[tokens.Refresh]++
			accesses[tokens.Access]++
		})
	}
	wg.Wait()
	if len(successors) != 1 || len(accesses) != 64 {
		t.Errorf("64 refreshes of one token: got %d successors and %d access tokens, want 1 and 64", len(successors), len(accesses))
	}
}

func TestOneWinnerWithoutGrace(t *testing.T) {
	b := newBus()
	noGrace := func(c *issuer.Config, _ *issuer.Parts) { c.RefreshGrace = 0 }
	issuers := []*testIssuer{start(t, b, noGrace), newIssuer(t, b, noGrace)}
	began := login(t, issuers[0])
	var wg sync.WaitGroup
	won := make(chan string, 16)
	for n := range 16 {
		wg.Go(func() {
			if tokens, err := issuers[n%2].Refresh(context.Background(), began.Refresh); err == nil {
				won <- tokens.Refresh
			} else if keyring.ReasonOf(err) != keyring.Revoked {
				t.Errorf("Refresh %d: got %v, want tokens or a denial: revoked", n, err)
			}
		})
	}
	wg.Wait()
	if len(won) > 1 {
		t.Errorf("16 refreshes of one token without grace: %d won, want one at most", len(won))
	}
}

func TestRefreshFaults(t *testing.T) {
	noGrace := func(c *issuer.Config, _ *issuer.Parts) { c.RefreshGrace = 0 }
	t.Run("the write was stored though its answer was lost", func(t *testing.T) {
		b := newBus()
		ti := start(t, b, noGrace)
		began := login(t, ti)
		b.sessions.Fail(bustest.Failure{Err: errLost, Stored: true})
		next := refresh(t, ti, began.Refresh)
		if c := claims(t, next.Refresh); c["gen"] != 2.0 {
			t.Errorf("gen: got %v, want 2: the write counts once", c["gen"])
		}
		refresh(t, ti, next.Refresh)
	})
	t.Run("the write was not stored", func(t *testing.T) {
		b := newBus()
		ti := start(t, b, noGrace)
		began := login(t, ti)
		b.sessions.Fail(bustest.Failure{Err: errLost}, bustest.Failure{Err: bus.ErrConflict})
		refresh(t, ti, began.Refresh)
	})
	t.Run("a reuse whose revocation cannot be written is no denial", func(t *testing.T) {
		b := newBus()
		ti := start(t, b, noGrace)
		began := login(t, ti)
		next := refresh(t, ti, began.Refresh)
		b.log.Fail(bustest.Failure{Err: errLost})
		if _, err := ti.Refresh(t.Context(), began.Refresh); !errors.Is(err, issuer.ErrUnavailable) {
			t.Errorf("Refresh: got %v, want ErrUnavailable", err)
		}
		_, err := ti.Refresh(t.Context(), began.Refresh)
		refused(t, "Refresh again", err, keyring.Revoked)
		refused(t, "verify(the successor's access)", verify(ti.replica, next.Access), keyring.Revoked)
	})
	t.Run("a reuse whose revocation was stored though its answer was lost", func(t *testing.T) {
		b := newBus()
		ti := start(t, b, noGrace)
		began := login(t, ti)
		refresh(t, ti, began.Refresh)
		b.log.Fail(bustest.Failure{Err: errLost, Stored: true})
		if _, err := ti.Refresh(t.Context(), began.Refresh); !errors.Is(err, issuer.ErrUnavailable) {
			t.Errorf("Refresh: got %v, want ErrUnavailable", err)
		}
		_, err := ti.Refresh(t.Context(), began.Refresh)
		refused(t, "Refresh again", err, keyring.Revoked)
	})
	t.Run("the session's record was lost", func(t *testing.T) {
		b := newBus()
		ti := start(t, b)
		began := login(t, ti)
		recs, err := b.sessions.List(t.Context(), "")
		if err != nil || len(recs) != 1 {
			t.Fatal(recs, err)
		}
		if err := b.sessions.Delete(t.Context(), recs[0].Name, recs[0].Revision); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			_, err = ti.Refresh(t.Context(), began.Refresh)
			refused(t, "Refresh without a record", err, keyring.Revoked)
		}
	})
}

// missing is a bucket whose first read of a name comes from a follower that has not heard of it.
type missing struct {
	*bustest.Bucket
	reads *int
}

func (m missing) Get(ctx context.Context, name string) (bus.Record, error) {
	if *m.reads++; *m.reads == 1 {
		return bus.Record{}, bus.ErrNotFound
	}
	return m.Bucket.Get(ctx, name)
}

func TestOldReadsOfASessionNeverDeny(t *testing.T) {
	b := newBus()
	one := start(t, b)
	began := login(t, one)
	reads := 0
	two := newIssuer(t, b, func(_ *issuer.Config, p *issuer.Parts) { p.Sessions = missing{&b.sessions, &reads} })
	next := refresh(t, two, began.Refresh)

	old, err := b.sessions.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	after := refresh(t, two, next.Refresh)
	stale := true
	three := newIssuer(t, b, func(_ *issuer.Config, p *issuer.Parts) { p.Sessions = oldCopy{&b.sessions, old[0], &stale} })
	if got := refresh(t, three, after.Refresh); claims(t, got.Refresh)["gen"] != 4.0 || stale {
		t.Error("Refresh of a token newer than the copy read: want the next generation")
	}
}

func TestSessionClosedByWhoeverReadsTheRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		dead := start(t, b)
		alive := newIssuer(t, b)
		alive.run(t)
		tokens := login(t, dead)
		// The first issuer crashes between the log and the record.
		if _, err := b.log.Append(t.Context(), &bus.Revocation{SessionID: tokens.SessionID, ExpiresAt: time.Now().Add(time.Second).Unix()}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		sessions, err := alive.ListSessions(t.Context(), "")
		if err != nil || len(sessions) != 1 || sessions[0].Closed == 0 {
			t.Errorf("ListSessions: got %v, %v, want the session closed", sessions, err)
		}
		// The revocation given ended before the access token: it was appended again (PROTOCOL 14).
		outlives := false
		for _, r := range alive.Feed.Recent() {
			outlives = outlives || r.SessionID == tokens.SessionID && r.ExpiresAt > tokens.ExpiresAt.Unix()
		}
		if !outlives {
			t.Errorf("revocations: got %v, want one of sid %s beyond %s", alive.Feed.Recent(), tokens.SessionID, tokens.ExpiresAt)
		}
	})
}

func TestSweepClosesWhatACrashLeftOpen(t *testing.T) {
	b := newBus()
	ti := start(t, b)
	tokens := login(t, ti)
	pos, err := b.log.Append(t.Context(), &bus.Revocation{SessionID: tokens.SessionID, ExpiresAt: time.Now().Add(time.Hour).Unix()})
	if err != nil {
		t.Fatal(err)
	}
	late := newIssuer(t, b)
	if err := late.replica.Wait(t.Context(), pos.Seq); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := late.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	recs, err := b.sessions.List(t.Context(), "")
	if err != nil || len(recs) != 1 || strings.Contains(string(recs[0].Value), `"closed":0`) {
		t.Errorf("the record after a sweep: got %v, %v, want it closed", recs, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := late.replica.Wait(ctx, pos.Seq+1); err != nil || len(late.Feed.Recent()) != 2 {
		t.Errorf("revocations: got %v (%v), want the first, and one that surely outlives the access token", late.Feed.Recent(), err)
	}
	_, err = late.Refresh(t.Context(), tokens.Refresh)
	refused(t, "Refresh", err, keyring.Revoked)
}

func TestSweepOfACutoffWritesNothingMore(t *testing.T) {
	b := newBus()
	ti := start(t, b)
	tokens := login(t, ti)
	login(t, ti)
	if _, err := ti.Revoke(t.Context(), issuer.Target{ClientID: "sidekey"}); err != nil {
		t.Fatal(err)
	}
	if err := ti.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(ti.Feed.Recent()); n != 1 {
		t.Errorf("revocations: got %d, want the cutoff only", n)
	}
	sessions, err := ti.ListSessions(t.Context(), claims(t, tokens.Access)["sub"].(string))
	if err != nil || len(sessions) != 2 || sessions[0].Closed == 0 || sessions[1].Closed == 0 {
		t.Errorf("ListSessions: got %v, %v, want both closed", sessions, err)
	}
}

func TestRefreshTakesRefreshTokensOnly(t *testing.T) {
	ti := start(t, newBus())
	tokens := login(t, ti)
	for token, want := range map[string]keyring.Reason{
		tokens.Access: keyring.WrongType, "nonsense": keyring.Malformed, tokens.Refresh + "A": keyring.Malformed,
		tokens.Refresh[:len(tokens.Refresh)-4] + "AAAA": keyring.BadSignature,
	} {
		_, err := ti.Refresh(t.Context(), token)
		if got := keyring.ReasonOf(err); got != want && got != keyring.BadSignature {
			t.Errorf("Refresh: got %v, want a denial: %s", err, want)
		}
	}
	if keyring.ReasonOf(verify(ti.replica, tokens.Refresh)) != keyring.WrongType {
		t.Error("an agent takes a refresh token for an access token")
	}
}

func TestRefreshKeysRotate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		every := func(c *issuer.Config, _ *issuer.Parts) { c.RotateEvery = 24 * time.Hour }
		one := start(t, b, every)
		two := newIssuer(t, b, every)
		first := login(t, one)
		second := refresh(t, two, first.Refresh)
		time.Sleep(25 * time.Hour)
		third := refresh(t, one, second.Refresh)
		fourth := refresh(t, two, third.Refresh) // signed with a key that two has not read yet
		if a, b := part(t, second.Refresh, 0)["kid"], part(t, third.Refresh, 0)["kid"]; a == b {
			t.Error("after a day the refresh tokens have the same kid, want a new one")
		}
		if a, b := part(t, third.Refresh, 0)["kid"], part(t, fourth.Refresh, 0)["kid"]; a != b {
			t.Error("two issuers sign with two new keys, want one")
		}
	})
}
