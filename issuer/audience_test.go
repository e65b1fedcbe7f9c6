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
	recs, err := b.key.List(t.Context(), bus.Under("ring"))
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

// TestAudienceClaimed: what an agent says that it serves is not enough to be given an audience's secret.
func TestAudienceClaimed(t *testing.T) {
	b := newBus()
	join(t, b, "thief")
	owner := join(t, b, "owner", audienceB)
	b.fleet.Claim("thief", issuerURL, audienceB)
	ti := newIssuer(t, b, hs256)
	for range 3 {
		ti.steps(t)
		owner.catchUp(t, ti)
		b.fleet.Acknowledge("thief", ti.position())
	}
	far, ok := ti.replica.Snapshot().Ring.ActiveFor(audienceB)
	if !ok {
		t.Fatal("the audience that its owner serves has no key")
	}
	for _, f := range ti.replica.Keys() {
		for _, box := range f.Sealed {
			if f.KeyID == far.KeyID && strings.HasPrefix(box.Agent, "thief") {
				t.Errorf("key %s of %s is sealed to %s", f.KeyID, f.Audience, box.Agent)
			}
		}
	}
	if err := ofAudience(owner.Replica, mint(t, ti, audienceB), audienceB); err != nil {
		t.Errorf("the owner's verdict: %v", err)
	}
}

// TestRotateToHS256: every audience that is served has its key before the ring is changed for it.
func TestRotateToHS256(t *testing.T) {
	b := newBus()
	ti := start(t, b)
	members := []*member{join(t, b, "a"), join(t, b, "b", audienceB)}
	st, err := ti.Rotate(t.Context(), issuer.Rotation{Alg: keyring.HS256})
	if err != nil || st.Done || st.Audience != issuerURL || !slices.Equal(st.Pending, []string{"a", "b"}) {
		t.Fatalf("Rotate(HS256): got %+v, %v, want it to wait for both", st, err)
	}
	if alg := part(t, mint(t, ti, audienceB), 0)["alg"]; alg != "EdDSA" {
		t.Errorf("alg of a token meanwhile: got %v, want EdDSA", alg)
	}
	for range 4 {
		for _, m := range members {
			m.catchUp(t, ti)
		}
		ti.steps(t)
	}
	for _, m := range members {
		m.catchUp(t, ti)
	}
	for at, audience := range []string{issuerURL, audienceB} {
		token := mint(t, ti, audience)
		if alg := part(t, token, 0)["alg"]; alg != "HS256" {
			t.Errorf("alg of a token for %s: got %v, want HS256", audience, alg)
		}
		if err := ofAudience(members[at].Replica, token, audience); err != nil {
			t.Errorf("the agent's verdict on a token for %s: %v", audience, err)
		}
	}
	// And back: one key for every audience.
	if st, err := ti.Rotate(t.Context(), issuer.Rotation{Alg: keyring.ES256}); err != nil || st.Done {
		t.Fatalf("Rotate(ES256): got %+v, %v, want it to wait for both", st, err)
	}
	for _, m := range members {
		m.catchUp(t, ti)
	}
	ti.steps(t)
	for _, m := range members {
		m.catchUp(t, ti)
	}
	for at, audience := range []string{issuerURL, audienceB} {
		if err := ofAudience(members[at].Replica, mint(t, ti, audience), audience); err != nil {
			t.Errorf("the agent's verdict on an ES256 token for %s: %v", audience, err)
		}
	}
	for _, k := range func() []issuer.KeyStatus { all, _ := ti.ListKeys(t.Context()); return all }() {
		if k.Alg == keyring.HS256 && k.State == keyring.Announced {
			t.Errorf("ListKeys: %q for %s stands by still, in a ring of ES256", k.KeyID, k.Audience)
		}
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
