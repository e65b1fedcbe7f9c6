package issuer_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

// TestRemovalRotates: what signs after a removal is nothing that the removed agent has, and what it has
// verifies nothing once the tokens made before have expired. To refuse those at once too is an emergency.
func TestRemovalRotates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		ti := newIssuer(t, b, hs256, func(c *issuer.Config, _ *issuer.Parts) { c.PublishAhead = time.Hour })
		stays, goes, apart := join(t, b, "stays"), join(t, b, "goes"), join(t, b, "apart", audienceB)
		settle := func() {
			for range 12 {
				ti.steps(t)
				for _, m := range []*member{stays, apart} {
					m.catchUp(t, ti)
				}
			}
		}
		ti.steps(t)
		goes.catchUp(t, ti)
		settle()
		goes.catchUp(t, ti)
		settle()
		farBefore, _ := ti.replica.Snapshot().Ring.ActiveFor(audienceB)
		held := goes.Snapshot().Ring.Records()
		if err := ti.RemoveAgent(t.Context(), "goes"); err != nil {
			t.Fatal(err)
		}
		settle()
		now, _ := ti.replica.Snapshot().Ring.ActiveFor(issuerURL)
		for _, rec := range held {
			if rec.Key != nil && (rec.KeyID == now.KeyID || rec.KeyID == standby(t, ti)) {
				t.Errorf("the removed agent holds %q, which signs or is to sign", rec.KeyID)
			}
		}
		if far, _ := ti.replica.Snapshot().Ring.ActiveFor(audienceB); far.KeyID != farBefore.KeyID {
			t.Errorf("the key of an audience that it did not serve was replaced: %q", far.KeyID)
		}
		if err := ofAudience(stays.Replica, mint(t, ti, issuerURL), issuerURL); err != nil {
			t.Errorf("the other agent's verdict on a new token: %v", err)
		}
		synctest.Wait()
		if at := goes.Cursor(); at.Seq >= ti.position().Seq {
			t.Errorf("the removed agent is at %d, want it to stand still at the key that it lacks", at.Seq)
		}
		time.Sleep(6 * time.Second) // then it is retiring
		settle()
		time.Sleep(17 * time.Minute) // then every token that it signed has expired
		settle()
		for _, rec := range held {
			if rec.Key == nil {
				continue
			}
			forged, err := rec.Key.Sign(keyring.AccessToken, claimsFor(issuerURL))
			if err != nil {
				t.Fatal(err)
			}
			if err := ofAudience(stays.Replica, forged, issuerURL); err == nil {
				t.Errorf("what the removed agent signs with %q is accepted", rec.KeyID)
			}
		}
	})
}

// TestRejoin: an agent that joins anew with another sealing key leaves nothing usable to who has the old one.
func TestRejoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		ti := newIssuer(t, b, hs256)
		old := join(t, b, "web-1")
		ti.steps(t)
		old.catchUp(t, ti)
		before := checkRing(t, ti)
		time.Sleep(2 * time.Second)
		again := join(t, b, "web-1")
		for range 8 {
			ti.steps(t)
			again.catchUp(t, ti)
		}
		if got := checkRing(t, ti); got == before {
			t.Errorf("active key: got %q, which the agent's old sealing key opens", got)
		}
		if err := ofAudience(again.Replica, mint(t, ti, issuerURL), issuerURL); err != nil {
			t.Errorf("its verdict on a new token: %v", err)
		}
		if at := old.Cursor(); at.Seq >= ti.position().Seq {
			t.Errorf("who has the old key is at %d, want it to stand still", at.Seq)
		}
	})
}
