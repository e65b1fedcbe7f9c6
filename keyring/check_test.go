package keyring_test

import (
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/keyringtest"
)

// at is a fixed now; tokens here are issued at it and live an hour.
var at = time.Unix(1767225600, 0)

func tokenAt(t testing.TB, key *keyring.Key, edit func(*keyring.Claims)) string {
	t.Helper()
	c := keyringtest.Claims(at)
	if edit != nil {
		edit(&c)
	}
	token, err := key.Sign(keyring.AccessToken, c)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// TestCheckReasons has every reason of Check, and Recheck agreeing with it.
func TestCheckReasons(t *testing.T) {
	rsaKey, secret := keyringtest.RSA(t), keyringtest.Secret(t)
	base := keyring.Expect{Type: keyring.AccessToken, Leeway: 5 * time.Second, Now: at}
	later := func(d time.Duration) keyring.Expect { e := base; e.Now = at.Add(d); return e }
	record := func(state keyring.State) keyring.KeyRecord {
		return keyring.KeyRecord{KeyID: rsaKey.ID(), Alg: keyring.RS256, State: state, Key: rsaKey.Public(), RetiredAt: at, MaxLifetime: time.Hour}
	}
	ring := func(recs ...keyring.KeyRecord) *keyring.Ring {
		return keyring.NewRing(keyringtest.Issuer, keyringtest.Audience, recs...)
	}
	active := ring(record(keyring.Active))
	notHeld := record(keyring.Active)
	notHeld.Key = nil
	ofSecret := keyringtest.Record(secret, keyring.Active, keyringtest.Audience)
	aud := func(names ...string) func(*keyring.Claims) {
		return func(c *keyring.Claims) { c.Audience = names }
	}
	for _, c := range []struct {
		name string
		key  *keyring.Key
		edit func(*keyring.Claims)
		ring *keyring.Ring
		want keyring.Expect
		deny keyring.Reason
	}{
		{"good", rsaKey, nil, active, base, ""},
		{"last moment of the leeway", rsaKey, nil, active, later(time.Hour + 5*time.Second - 1), ""},
		{"expired", rsaKey, nil, active, later(time.Hour + 5*time.Second), keyring.Expired},
		{"exp 1970", rsaKey, func(c *keyring.Claims) { c.ExpiresAt = 1e-9 }, active, base, keyring.Expired},
		{"first moment of the leeway", rsaKey, nil, active, later(-5 * time.Second), ""},
		{"nbf and iat ahead", rsaKey, nil, active, later(-5*time.Second - 1), keyring.NotYetValid},
		{"nbf ahead", rsaKey, func(c *keyring.Claims) { c.NotBefore += 6 }, active, base, keyring.NotYetValid},
		{"iat ahead", rsaKey, func(c *keyring.Claims) { c.IssuedAt += 6 }, active, base, keyring.NotYetValid},
		{"no nbf", rsaKey, func(c *keyring.Claims) { c.NotBefore = 0 }, active, base, ""},
		{"no time given", rsaKey, nil, active, keyring.Expect{Type: keyring.AccessToken}, keyring.NotYetValid},
		{"exp a fraction away", rsaKey, func(c *keyring.Claims) { c.ExpiresAt = keyring.At(at) + 0.5 }, active, later(5*time.Second + 499*time.Millisecond), ""},
		{"exp a fraction ago", rsaKey, func(c *keyring.Claims) { c.ExpiresAt = keyring.At(at) + 0.5 }, active, later(5*time.Second + 500*time.Millisecond), keyring.Expired},
		{"another issuer", rsaKey, func(c *keyring.Claims) { c.Issuer += "/" }, active, base, keyring.WrongIssuer},
		{"a ring without issuer", rsaKey, nil, keyring.NewRing("", keyringtest.Audience, record(keyring.Active)), base, keyring.WrongIssuer},
		{"another audience", rsaKey, aud("https://other.test"), active, base, keyring.WrongAudience},
		{"no audience", rsaKey, aud(), active, base, keyring.WrongAudience},
		{"the empty audience", rsaKey, aud("", "x"), active, keyring.Expect{Type: keyring.AccessToken, Now: at, Audiences: []string{""}}, keyring.WrongAudience},
		{"a ring without audience", rsaKey, nil, keyring.NewRing(keyringtest.Issuer, "", record(keyring.Active)), base, keyring.WrongAudience},
		{"one of many audiences", rsaKey, aud("a", keyringtest.Audience), active, base, ""},
		{"one of many expected", rsaKey, aud("b"), active, keyring.Expect{Type: keyring.AccessToken, Now: at, Audiences: []string{"a", "b"}}, ""},
		{"the default where another is expected", rsaKey, nil, active, keyring.Expect{Type: keyring.AccessToken, Now: at, Audiences: []string{"a"}}, keyring.WrongAudience},
		{"another kind", rsaKey, nil, active, keyring.Expect{Type: keyring.SessionToken, Now: at}, keyring.WrongType},
		{"announced", rsaKey, nil, ring(record(keyring.Announced)), base, ""},
		{"retiring", rsaKey, nil, ring(record(keyring.Retiring)), base, ""},
		{"retiring, issued within the leeway", rsaKey, func(c *keyring.Claims) { c.IssuedAt += 5; c.ExpiresAt += 5 }, ring(record(keyring.Retiring)), base, ""},
		{"retiring, issued later", rsaKey, func(c *keyring.Claims) { c.IssuedAt += 6; c.ExpiresAt += 6 }, ring(record(keyring.Retiring)), later(time.Minute), keyring.UnknownKey},
		{"retiring, living too long", rsaKey, func(c *keyring.Claims) { c.ExpiresAt++ }, ring(record(keyring.Retiring)), base, keyring.UnknownKey},
		{"retired", rsaKey, nil, ring(record(keyring.Retired)), base, keyring.UnknownKey},
		{"revoked", rsaKey, nil, ring(record(keyring.Revoked)), base, keyring.KeyRevoked},
		{"not held", rsaKey, nil, ring(notHeld), base, keyring.UnknownKey},
		{"no state", rsaKey, nil, ring(record("")), base, keyring.UnknownKey},
		{"gone", rsaKey, nil, active.Without(rsaKey.ID()), base, keyring.UnknownKey},
		{"the empty ring", rsaKey, nil, new(keyring.Ring), base, keyring.UnknownKey},
		{"HS256", secret, nil, ring(ofSecret), base, ""},
		{"HS256 with two audiences", secret, aud(keyringtest.Audience, "a"), ring(ofSecret), base, keyring.WrongAudience},
		{"HS256 for another audience that we serve too", secret, aud("a"), ring(ofSecret), keyring.Expect{Type: keyring.AccessToken, Now: at, Audiences: []string{"a", keyringtest.Audience}}, keyring.WrongAudience},
	} {
		whole := ring(record(keyring.Active), ofSecret) // where anything of these keys is proven
		tok, err := whole.Prove(tokenAt(t, c.key, c.edit), keyring.AccessToken)
		if err != nil {
			t.Errorf("Prove(%s): got %v, want no error", c.name, err)
			continue
		}
		if got := keyring.ReasonOf(c.ring.Check(tok, c.want)); got != c.deny {
			t.Errorf("Check(%s): got %q, want %q", c.name, got, c.deny)
		}
		if got := keyring.ReasonOf(c.ring.Recheck(tok, c.want)); got != c.deny {
			t.Errorf("Recheck(%s): got %q, want %q", c.name, got, c.deny)
		}
	}
}

// TestProveByState has a key's state decide at once, also for a header that is known by heart.
func TestProveByState(t *testing.T) {
	key := keyringtest.RSA(t)
	token := keyringtest.Token(t, key, nil)
	for state, want := range map[keyring.State]keyring.Reason{
		keyring.Announced: "", keyring.Active: "", keyring.Retiring: "", "": keyring.UnknownKey, "strange": keyring.UnknownKey,
		keyring.Retired: keyring.UnknownKey, keyring.Revoked: keyring.KeyRevoked,
	} {
		ring := keyring.NewRing(keyringtest.Issuer, keyringtest.Audience, keyringtest.Record(key, state, ""))
		if _, err := ring.Prove(token, keyring.AccessToken); keyring.ReasonOf(err) != want {
			t.Errorf("Prove(key in state %q): got %v, want %q", state, err, want)
		}
	}
}

// TestRefreshTokenIsNoAccessToken has a refresh token refused as such, also where its key is not held.
func TestRefreshTokenIsNoAccessToken(t *testing.T) {
	key := keyringtest.Secret(t)
	token := keyringtest.TokenOf(t, key, keyring.RefreshToken, nil)
	held := keyringtest.Ring(t, keyringtest.Issuer, keyringtest.Audience, key)
	for name, ring := range map[string]*keyring.Ring{"held": held, "not held": keyringtest.Ring(t, keyringtest.Issuer, keyringtest.Audience)} {
		if _, err := ring.Prove(token, keyring.AccessToken); keyring.ReasonOf(err) != keyring.WrongType {
			t.Errorf("Prove(refresh token, key %s): got %v, want %s", name, err, keyring.WrongType)
		}
	}
	if _, err := held.Prove(token, keyring.RefreshToken); err != nil {
		t.Errorf("Prove(refresh token as one): got %v, want no error", err)
	}
	if h, err := keyring.Peek(token); err != nil || h != (keyring.Header{KeyID: key.ID(), Alg: "HS256", Type: keyring.RefreshToken}) {
		t.Errorf("Peek(refresh token): got %+v, %v", h, err)
	}
}

// TestRecheckAgrees has Recheck say what Check, which golang-jwt's validator has a part in, says, for any token and time.
func TestRecheckAgrees(t *testing.T) {
	key := keyringtest.RSA(t)
	auds := []string{"", "a", "b", keyringtest.Audience}
	rapid.Check(t, func(t *rapid.T) {
		second := rapid.Int64Range(-20, 20)
		claims := keyring.Claims{
			Issuer:    rapid.SampledFrom([]string{keyringtest.Issuer, "", "x"}).Draw(t, "iss"),
			Audience:  rapid.SliceOfN(rapid.SampledFrom(auds), 0, 3).Draw(t, "aud"),
			ExpiresAt: keyring.NumericDate(1767225600 + float64(second.Draw(t, "exp"))/4),
			NotBefore: keyring.NumericDate(1767225600 + float64(second.Draw(t, "nbf"))/4),
			IssuedAt:  keyring.NumericDate(1767225600 + float64(second.Draw(t, "iat"))/4),
		}
		rec := keyring.KeyRecord{
			KeyID: key.ID(), Alg: keyring.RS256, Key: key, RetiredAt: at, MaxLifetime: 4 * time.Second,
			State: rapid.SampledFrom([]keyring.State{keyring.Announced, keyring.Active, keyring.Retiring, keyring.Retired, keyring.Revoked}).Draw(t, "state"),
		}
		ring := keyring.NewRing(keyringtest.Issuer, rapid.SampledFrom(auds).Draw(t, "default"), rec)
		tok := &keyring.Token{KeyID: key.ID(), Alg: keyring.RS256, Type: keyring.AccessToken, Claims: claims}
		want := keyring.Expect{
			Type:      rapid.SampledFrom([]keyring.TokenType{keyring.AccessToken, keyring.SessionToken}).Draw(t, "typ"),
			Audiences: rapid.SliceOfN(rapid.SampledFrom(auds), 0, 2).Draw(t, "expected"),
			Leeway:    time.Duration(rapid.Int64Range(0, 3).Draw(t, "leeway")) * time.Second,
			Now:       at.Add(time.Duration(second.Draw(t, "now")) * time.Second / 4),
		}
		check, recheck := keyring.ReasonOf(ring.Check(tok, want)), keyring.ReasonOf(ring.Recheck(tok, want))
		if check != recheck {
			t.Fatalf("Check: %q, Recheck: %q, want the same", check, recheck)
		}
	})
}

// TestRecheckAllocatesNothing keeps the cached path free of the garbage collector.
func TestRecheckAllocatesNothing(t *testing.T) {
	for _, key := range keyringtest.All(t) {
		ring := keyringtest.Ring(t, keyringtest.Issuer, keyringtest.Audience, key)
		want := keyringtest.Expect("other", keyringtest.Audience)
		tok, err := ring.Verify(keyringtest.Token(t, key, nil), want)
		if err != nil {
			t.Fatal(err)
		}
		if n := testing.AllocsPerRun(100, func() { err = errors.Join(err, ring.Recheck(tok, want)) }); n != 0 || err != nil {
			t.Errorf("Recheck(%v): %v allocations and error %v, want none", key, n, err)
		}
	}
}

// TestDenial holds the closed set together.
func TestDenial(t *testing.T) {
	if len(keyring.Reasons) != 12 {
		t.Errorf("there are %d reasons, want the 12 of API.md", len(keyring.Reasons))
	}
	seen := map[string]bool{(&keyring.Denial{}).Description(): true}
	for _, r := range keyring.Reasons {
		d := keyring.Deny(r, "k7", errors.New("why"))
		if text := "token denied: " + string(r) + `: kid "k7": why`; d.Error() != text {
			t.Errorf("Error(%s): got %q, want %q", r, d.Error(), text)
		}
		if seen[d.Description()] {
			t.Errorf("Description(%s): %q is that of another reason", r, d.Description())
		}
		seen[d.Description()] = true
		if keyring.ReasonOf(errors.Join(d)) != r {
			t.Errorf("ReasonOf(%s): got another", r)
		}
	}
}

// TestNewestKey has the ring's records in order and its active one chosen.
func TestNewestKey(t *testing.T) {
	a, b := keyringtest.Record(keyringtest.Ed(t), keyring.Active, ""), keyringtest.Record(keyringtest.EC(t), keyring.Active, "")
	s := keyringtest.Record(keyringtest.Secret(t), keyring.Active, "x")
	a.Seq, b.Seq, s.Seq = 3, 2, 1
	ring := keyring.NewRing("i", "d", a, b, s)
	if got := ring.Records(); len(got) != 3 || got[0].KeyID != s.KeyID || got[2].KeyID != a.KeyID {
		t.Errorf("Records: got %v, want them by sequence", got)
	}
	if rec, ok := ring.Active(); !ok || rec.KeyID != a.KeyID {
		t.Errorf("Active: got %v, want the newest", rec)
	}
	ring = ring.Without(a.KeyID).Without(b.KeyID)
	if _, ok := ring.ActiveFor("y"); ok {
		t.Errorf("ActiveFor(y): got a secret of another audience")
	}
	if rec, ok := ring.ActiveFor("x"); !ok || rec.KeyID != s.KeyID {
		t.Errorf("ActiveFor(x): got %v, want the secret of that audience", rec)
	}
	s.State = keyring.Retiring
	if _, ok := ring.With(s).Active(); ok {
		t.Errorf("Active: got a retiring key")
	}
	if rec, _ := ring.Record(s.KeyID); rec.State != keyring.Active {
		t.Errorf("With: it changed the ring that it was called on")
	}
}

// TestStates has the lifecycle's steps, all of them and no other.
func TestStates(t *testing.T) {
	legal := map[[2]keyring.State]bool{
		{"", keyring.Announced}: true, {"", keyring.Active}: true, {keyring.Announced, keyring.Active}: true,
		{keyring.Active, keyring.Retiring}: true, {keyring.Retiring, keyring.Retired}: true, {keyring.Announced, keyring.Retired}: true,
		{keyring.Announced, keyring.Revoked}: true, {keyring.Active, keyring.Revoked}: true,
		{keyring.Retiring, keyring.Revoked}: true, {keyring.Retired, keyring.Revoked}: true,
	}
	all := []keyring.State{"", keyring.Announced, keyring.Active, keyring.Retiring, keyring.Retired, keyring.Revoked, "strange"}
	for _, from := range all {
		for _, to := range all {
			if from.Next(to) != legal[[2]keyring.State{from, to}] {
				t.Errorf("Next(%q, %q): got %t", from, to, from.Next(to))
			}
		}
	}
}

// TestRingKeepsToItsRecords has a record whose key is another's held back.
func TestRingKeepsToItsRecords(t *testing.T) {
	rsaKey, secret := keyringtest.RSA(t), keyringtest.Secret(t)
	rec := keyringtest.Record(rsaKey, keyring.Active, "")
	rec.Key = secret.WithID(rsaKey.ID())
	ring := keyring.NewRing(keyringtest.Issuer, keyringtest.Audience, rec)
	if got, ok := ring.Record(rsaKey.ID()); !ok || got.Key != nil {
		t.Errorf("Record: got %v, want it without a key of another algorithm", got)
	}
	if _, err := ring.Prove(keyringtest.Token(t, rec.Key, nil), keyring.AccessToken); keyring.ReasonOf(err) != keyring.UnsupportedAlg {
		t.Errorf("Prove: got %v, want %s", err, keyring.UnsupportedAlg)
	}
}
