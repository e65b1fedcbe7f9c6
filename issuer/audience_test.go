package issuer_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

const audienceB = "https://b.example"

func sealingKey(t *testing.T) *keyring.SealingKey {
	t.Helper()
	k, err := keyring.GenerateSealingKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// newAgent is an agent's replica, which needs the keys of its audiences.
func newAgent(t *testing.T, b *testBus, name string, k *keyring.SealingKey, audiences ...string) *replica.Replica {
	t.Helper()
	r := replica.New(replica.Config{Open: replica.OpenSealed(name, k), Needs: replica.Serving(name, audiences)})
	feed(t, r, b.log)
	return r
}

func await(t *testing.T, agents map[string]*replica.Replica, pos bus.Position) {
	t.Helper()
	for _, r := range agents {
		if err := r.Wait(t.Context(), pos.Seq); err != nil {
			t.Fatal(err)
		}
	}
}

// member is an agent that has joined, told its audiences, and reads the log.
type member struct {
	*replica.Replica
	name string
	b    *testBus
}

func join(t *testing.T, b *testBus, name string, audiences ...string) *member {
	t.Helper()
	k := sealingKey(t)
	b.fleet.Join(name, k.Public())
	b.fleet.Tell(name, audiences...)
	return &member{newAgent(t, b, name, k, audiences...), name, b}
}

// catchUp waits until the agent has applied what the issuer has, and acknowledges.
func (m *member) catchUp(t *testing.T, ti *testIssuer) {
	t.Helper()
	await(t, map[string]*replica.Replica{m.name: m.Replica}, ti.position())
	m.b.fleet.Acknowledge(m.name, m.Cursor().Position)
}

// mint makes an access token for an audience.
func mint(t *testing.T, ti *testIssuer, audience string) string {
	t.Helper()
	token, err := ti.Sign(t.Context(), keyring.AccessToken, claimsFor(audience))
	if err != nil {
		t.Fatalf("Sign for %q: %v", audience, err)
	}
	return token
}

func claimsFor(audience string) keyring.Claims {
	now := keyring.NumericDate(time.Now().Unix())
	return keyring.Claims{
		Issuer: issuerURL, Subject: "someone", Audience: []string{audience}, ID: "jti-1", TokenType: "access",
		IssuedAt: now, NotBefore: now, ExpiresAt: now + 600,
	}
}

// ofAudience judges a token as an agent of that audience does.
func ofAudience(r *replica.Replica, token, audience string) error {
	_, err := r.Snapshot().Ring.Verify(token, keyring.Expect{
		Type: keyring.AccessToken, Audiences: []string{audience}, Leeway: 5 * time.Second, Now: time.Now(),
	})
	return err
}

// TestHS256PerAudience: a host can verify, and so forge, for the audiences that it serves and no other.
func TestHS256PerAudience(t *testing.T) {
	b := newBus()
	a, other := join(t, b, "a"), join(t, b, "b", audienceB)
	ti := newIssuer(t, b, hs256)
	entries := journal(t, b, ti)
	ti.steps(t)
	for _, m := range []*member{a, other} {
		m.catchUp(t, ti)
	}
	ti.steps(t)
	for _, m := range []*member{a, other} {
		m.catchUp(t, ti)
	}
	home, far := mint(t, ti, issuerURL), mint(t, ti, audienceB)
	if err := ofAudience(a.Replica, home, issuerURL); err != nil {
		t.Errorf("a's verdict on a token of its audience: %v", err)
	}
	if err := ofAudience(other.Replica, far, audienceB); err != nil {
		t.Errorf("b's verdict on a token of its audience: %v", err)
	}
	refused(t, "a's verdict on b's token", ofAudience(a.Replica, far, audienceB), keyring.UnknownKey)
	refused(t, "b's verdict on a's token", ofAudience(other.Replica, home, issuerURL), keyring.UnknownKey)

	mine, ok := a.Snapshot().Ring.ActiveFor(issuerURL)
	theirs, ok2 := other.Snapshot().Ring.ActiveFor(audienceB)
	if !ok || !ok2 || mine.KeyID == theirs.KeyID || bytes.Equal(mine.Key.Secret(), theirs.Key.Secret()) {
		t.Fatalf("the keys of two audiences: got %v and %v, want two", mine, theirs)
	}
	for name, kid := range map[string]string{"its own kid": mine.KeyID, "b's kid": theirs.KeyID} {
		forged, err := mine.Key.WithID(kid).Sign(keyring.AccessToken, claimsFor(audienceB))
		if err != nil {
			t.Fatal(err)
		}
		if err := ofAudience(other.Replica, forged, audienceB); err == nil {
			t.Errorf("what a forges for b under %s is accepted", name)
		}
		if err := ofAudience(ti.replica, forged, audienceB); err == nil {
			t.Errorf("what a forges for b under %s is accepted by an issuer", name)
		}
	}
	if ring := a.Snapshot().Ring; ring.Audience() != issuerURL || string(ring.JWKS()) != `{"keys":[]}` {
		t.Errorf("the ring: default audience %q and JWKS %s, want the issuer's own and no key", ring.Audience(), ring.JWKS())
	}
	noSecretIn(t, b, entries())
}

// noSecretIn searches what the bus carries for every secret that the issuers hold, in every form.
func noSecretIn(t *testing.T, b *testBus, entries []bus.Entry) {
	t.Helper()
	var carried []byte
	for _, en := range entries {
		body, err := bus.Encode(en.Fact)
		if err != nil {
			t.Fatal(err)
		}
		carried = append(carried, body...)
	}
	recs, err := b.key.List(t.Context(), bus.Filter("ring", bus.Any))
	if err != nil || len(recs) == 0 {
		t.Fatalf("the issuers' secrets: got %d, %v, want some", len(recs), err)
	}
	searched := 0
	for _, r := range recs {
		var rec struct{ Master, JWK json.RawMessage }
		if err := json.Unmarshal(r.Value, &rec); err != nil {
			t.Fatal(err)
		}
		for _, jwk := range []json.RawMessage{rec.Master, rec.JWK} {
			if jwk == nil {
				continue
			}
			key, err := keyring.ParseJWK(jwk)
			if err != nil {
				t.Fatal(err)
			}
			searched += search(t, carried, key.Secret())
		}
	}
	for _, rec := range ringSecrets(t, b) {
		searched += search(t, carried, rec)
	}
	t.Logf("searched %d bytes of %d entries for %d forms of secrets: no hit", len(carried), len(entries), searched)
	if searched == 0 {
		t.Error("nothing was searched for")
	}
}

func search(t *testing.T, carried, secret []byte) int {
	t.Helper()
	forms := [][]byte{
		secret, []byte(hex.EncodeToString(secret)), []byte(base64.StdEncoding.EncodeToString(secret)), []byte(base64.RawURLEncoding.EncodeToString(secret)),
	}
	for _, form := range forms {
		if bytes.Contains(carried, form) {
			t.Error("a secret stands in the log in clear")
		}
	}
	return len(forms)
}

// ringSecrets are the HS256 secrets that an issuer's ring holds.
func ringSecrets(t *testing.T, b *testBus) [][]byte {
	t.Helper()
	r := replica.New(replica.Config{Open: issuer.OpenSecret(&b.key)})
	follow(t, r, b.log)
	var all [][]byte
	for _, rec := range r.Snapshot().Ring.Records() {
		if rec.Key != nil && rec.Alg.Symmetric() {
			all = append(all, rec.Key.Secret())
		}
	}
	return all
}

// TestAudienceThatNobodyServes: no key, a clear error; a key as soon as somebody does.
func TestAudienceThatNobodyServes(t *testing.T) {
	b := newBus()
	a := join(t, b, "a")
	ti := newIssuer(t, b, hs256)
	ti.steps(t)
	if _, err := ti.Sign(t.Context(), keyring.AccessToken, claimsFor(audienceB)); !errors.Is(err, issuer.ErrUnavailable) || !strings.Contains(err.Error(), "agent.audiences") {
		t.Errorf("Sign for an audience without a key: got %v, want it said", err)
	}
	two := claimsFor(issuerURL)
	two.Audience = append(two.Audience, audienceB)
	if _, err := ti.Sign(t.Context(), keyring.AccessToken, two); !isInput(err) {
		t.Errorf("Sign for two audiences: got %v, want an InputError", err)
	}
	b.fleet.Tell("a", issuerURL, audienceB)
	if err := ti.Register(t.Context(), bus.Member{}); err != nil { // a look at the agents
		t.Fatal(err)
	}
	a.catchUp(t, ti)
	ti.steps(t)
	a.catchUp(t, ti)
	ti.steps(t)
	if err := ofAudience(a.Replica, mint(t, ti, audienceB), audienceB); err != nil {
		t.Errorf("the agent's verdict on a token of its new audience: %v", err)
	}
	if err := ofAudience(a.Replica, mint(t, ti, issuerURL), issuerURL); err != nil {
		t.Errorf("the agent's verdict on a token of its other audience: %v", err)
	}
}

// TestNeedsItsKey: an agent that cannot open a key of its audience does not go on (PROTOCOL 19), and
// does once it has its box; nobody signs with the key meanwhile.
func TestNeedsItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		ti := start(t, b, hs256)
		active := checkRing(t, ti)
		k := sealingKey(t)
		agent := newAgent(t, b, "late", k)
		b.fleet.Join("late", k.Public()) // it has not told which audiences it serves
		synctest.Wait()
		if snap := agent.Snapshot(); snap.Ready || snap.Position.Seq != 0 || agent.Fault() == nil || !strings.Contains(agent.Fault().Error(), active) {
			t.Fatalf("an agent without a box: ready %v at %d, fault %v, want it to stand still and say why", snap.Ready, snap.Position.Seq, agent.Fault())
		}
		if st, err := ti.Rotate(t.Context(), issuer.Rotation{Waiting: lasting(time.Second)}); err != nil || st.Done || !slices.Equal(st.Pending, []string{"late"}) {
			t.Fatalf("Rotate: got %+v, %v, want it to wait for the agent", st, err)
		}
		b.fleet.Tell("late")
		time.Sleep(time.Second) // the issuer looks at the agents that often
		ti.steps(t)
		synctest.Wait()
		if snap := agent.Snapshot(); !snap.Ready || snap.Position != ti.position() || agent.Fault() != nil {
			t.Fatalf("the agent with its boxes: ready %v at %d, fault %v, want it at %d", snap.Ready, snap.Position.Seq, agent.Fault(), ti.position().Seq)
		}
		b.fleet.Acknowledge("late", agent.Cursor().Position)
		ti.steps(t)
		synctest.Wait()
		if err := verify(agent, login(t, ti).Access); err != nil {
			t.Errorf("verify after the rotation: %v", err)
		}
	})
}

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

// TestSharedSecret: an imported secret is what it is: it goes where it is sent, and signs on demand.
func TestSharedSecret(t *testing.T) {
	b := newBus()
	ti := start(t, b)
	named, other := join(t, b, "named"), join(t, b, "other")
	secret := strings.Repeat("s", 32)
	for name, in := range map[string]issuer.Import{
		"to sign, not said to be shared": {Secret: secret, Activate: true, Agents: []string{"named", "other"}},
		"to sign, an agent left out":     {Secret: secret, Activate: true, Shared: true, Agents: []string{"named"}},
		"a name that is none":            {Secret: secret, Agents: []string{"two words"}},
		"a public key as shared":         {PEM: publicPEM(t), Shared: true},
		"a public key for agents":        {PEM: publicPEM(t), Agents: []string{"named"}},
	} {
		if _, err := ti.ImportKey(t.Context(), in); !isInput(err) {
			t.Errorf("ImportKey(%s): got %v, want an InputError", name, err)
		}
	}
	st, err := ti.ImportKey(t.Context(), issuer.Import{Secret: secret, Agents: []string{"named"}})
	if err != nil || !st.Done || !st.Shared || !slices.Equal(st.Agents, []string{"named"}) {
		t.Fatalf("ImportKey: got %+v, %v, want it shared with the one named", st, err)
	}
	ti.steps(t)
	named.catchUp(t, ti)
	other.catchUp(t, ti) // it does not need what is not for it
	shared, err := keyring.NewSecret(st.KeyID, []byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	token := foreign(t, shared)
	if err := verify(named.Replica, token); err != nil {
		t.Errorf("verify by the agent named: %v", err)
	}
	refused(t, "verify by another agent", verify(other.Replica, token), keyring.UnknownKey)
	if kid := part(t, login(t, ti).Access, 0)["kid"]; kid == st.KeyID {
		t.Error("a secret imported to verify signs")
	}
	if k, err := ti.Key(t.Context(), st.KeyID); err != nil || !k.Shared {
		t.Errorf("Key: got %+v, %v, want it said to be shared", k, err)
	}

	st, err = ti.ImportKey(t.Context(), issuer.Import{Secret: strings.Repeat("z", 32), Activate: true, Shared: true, Agents: []string{"named", "other"}})
	if err != nil || st.Done {
		t.Fatalf("ImportKey to sign: got %+v, %v, want it to wait for the agents", st, err)
	}
	named.catchUp(t, ti)
	other.catchUp(t, ti)
	ti.steps(t)
	if kid := part(t, login(t, ti).Access, 0)["kid"]; kid != st.KeyID {
		t.Errorf("kid of a new token: got %v, want the imported %q", kid, st.KeyID)
	}
	// The next rotation leads back to secrets of our own.
	for range 4 {
		ti.steps(t)
		named.catchUp(t, ti)
		other.catchUp(t, ti)
	}
	next, err := ti.Rotate(t.Context(), issuer.Rotation{})
	if err != nil || !next.Done || next.Shared || next.Alg != keyring.HS256 {
		t.Errorf("Rotate: got %+v, %v, want an HS256 key of our own", next, err)
	}
}
