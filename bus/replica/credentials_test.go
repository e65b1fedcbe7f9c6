package replica_test

import (
	"testing"
	"testing/synctest"
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

// with is a credential changed.
func with(c *bus.Credential, change func(*bus.Credential)) *bus.Credential {
	change(c)
	return c
}

// TestCredentialOrder: what stands is a matter of the log's order alone, for who reads it and for who loads an
// image of it over whatever else it knew.
func TestCredentialOrder(t *testing.T) {
	exp, now := time.Now().Add(time.Hour).Unix(), time.Now().Unix()
	gone := func(c *bus.Credential) { c.Gone = true }
	known := func(seq uint64) func(*bus.Credential) {
		return func(c *bus.Credential) { c.KnownSeq = seq }
	}
	cut := func() bus.Fact { return &bus.Revocation{Subject: "u", ExpiresAt: exp, Time: now} }
	for name, c := range map[string]struct {
		facts []bus.Fact
		want  string // the texts that stand, of "1" and "2"
		held  int
	}{
		"one hash under two ids: the newer has it":   {[]bus.Fact{credential("a", "1", "u"), credential("b", "1", "v")}, "1", 1},
		"and with it gone, nobody":                   {[]bus.Fact{credential("a", "1", "u"), credential("b", "1", "v"), with(credential("b", "1", "v"), gone)}, "", 0},
		"the older, withdrawn, takes nothing along":  {[]bus.Fact{credential("a", "1", "u"), credential("b", "1", "v"), with(credential("a", "1", "u"), gone)}, "1", 1},
		"the older, with another hash, stands again": {[]bus.Fact{credential("a", "1", "u"), credential("b", "1", "v"), credential("a", "2", "u")}, "12", 2},
		"another hash":                                     {[]bus.Fact{credential("a", "1", "u"), credential("a", "2", "u")}, "2", 1},
		"there and back":                                   {[]bus.Fact{credential("a", "1", "u"), credential("a", "2", "u"), credential("a", "1", "u")}, "1", 1},
		"two change places":                                {[]bus.Fact{credential("a", "1", "u"), credential("b", "2", "u"), credential("a", "2", "u"), credential("b", "1", "u")}, "12", 2},
		"gone, by another hash":                            {[]bus.Fact{credential("a", "1", "u"), with(credential("a", "2", "u"), gone)}, "", 0},
		"gone, and new":                                    {[]bus.Fact{credential("a", "1", "u"), with(credential("a", "1", "u"), gone), credential("a", "1", "u")}, "1", 1},
		"gone before it came":                              {[]bus.Fact{with(credential("a", "1", "u"), gone)}, "", 0},
		"revoked by its id":                                {[]bus.Fact{credential("a", "1", "u"), &bus.Revocation{ID: "a", ExpiresAt: exp}}, "", 1},
		"and gone":                                         {[]bus.Fact{credential("a", "1", "u"), &bus.Revocation{ID: "a", ExpiresAt: exp}, with(credential("a", "1", "u"), gone)}, "", 0},
		"revoked, and its hash another's":                  {[]bus.Fact{credential("a", "1", "u"), &bus.Revocation{ID: "a", ExpiresAt: exp}, credential("b", "1", "u")}, "1", 1},
		"written after that, with another's hash":          {[]bus.Fact{credential("b", "1", "u"), &bus.Revocation{ID: "a", ExpiresAt: exp}, credential("a", "1", "u")}, "1", 1},
		"written only after that":                          {[]bus.Fact{&bus.Revocation{ID: "a", ExpiresAt: exp}, credential("a", "1", "u")}, "", 1},
		"written by an issuer that had not read of that":   {[]bus.Fact{credential("a", "1", "u"), &bus.Revocation{ID: "a", ExpiresAt: exp}, credential("a", "2", "u")}, "", 1},
		"a session of its id":                              {[]bus.Fact{credential("a", "1", "u"), &bus.Revocation{SessionID: "a", ExpiresAt: exp}}, "1", 1},
		"cut off":                                          {[]bus.Fact{credential("a", "1", "u"), cut()}, "", 1},
		"an edit behind the cutoff":                        {[]bus.Fact{with(credential("a", "1", "u"), known(1)), cut(), with(credential("a", "1", "u"), known(1))}, "", 1},
		"an edit behind it, by one who knew":               {[]bus.Fact{with(credential("a", "1", "u"), known(1)), cut(), with(credential("a", "1", "u"), known(2))}, "1", 1},
		"one that claims to know what is to come":          {[]bus.Fact{with(credential("a", "1", "u"), known(99)), cut()}, "", 1},
		"a cutoff of its client":                           {[]bus.Fact{with(credential("a", "1", "u"), func(c *bus.Credential) { c.ClientID = "app" }), &bus.Revocation{ClientID: "app", ExpiresAt: exp, Time: now}}, "", 1},
		"a cutoff of a client of the subject's name":       {[]bus.Fact{credential("a", "1", "u"), &bus.Revocation{ClientID: "u", ExpiresAt: exp, Time: now}}, "1", 1},
		"a cutoff for sessions behind one for all":         {[]bus.Fact{credential("a", "1", "u"), cut(), &bus.Revocation{Subject: "u", ExpiresAt: exp, Time: now, Sessions: true}, credential("b", "2", "u")}, "2", 2},
		"a cutoff for sessions between":                    {[]bus.Fact{credential("a", "1", "u"), &bus.Revocation{Subject: "u", ExpiresAt: exp, Time: now, Sessions: true}}, "1", 1},
		"handed to another user, who was cut off before":   {[]bus.Fact{credential("a", "1", "v"), cut(), credential("a", "1", "u")}, "1", 1},
		"handed to another user, who is cut off afterward": {[]bus.Fact{credential("a", "1", "v"), credential("a", "1", "u"), cut()}, "", 1},
	} {
		l, r := bustest.NewLog(), replica.New(replica.Config{})
		pos := mustAppend(t, l, c.facts...)
		caught(t, r, l, pos.Seq)
		img, _, err := r.Image()
		if err != nil {
			t.Fatal(err)
		}
		fresh, before := replica.New(replica.Config{}), replica.New(replica.Config{})
		other := bustest.NewLog() // what a reader may have known that the image does not
		caught(t, before, other, mustAppend(t, other, with(credential("b", "2", "w"), func(c *bus.Credential) { c.ExpiresAt = exp })).Seq)
		later := replica.New(replica.Config{})
		if pos.Seq == 1 { // an image that is not ahead is not loaded
			before = later
		}
		for _, r := range []*replica.Replica{fresh, before} {
			if err := r.Load(img); err != nil {
				t.Fatal(err)
			}
		}
		for how, r := range map[string]*replica.Replica{"log": r, "image": fresh, "image over another state": before} {
			got := ""
			for _, text := range []string{"1", "2"} {
				if stands(r, text) {
					got += text
				}
			}
			if got != c.want || r.Credentials() != c.held || len(r.ListCredentials()) != c.held {
				t.Errorf("%s (%s): %q stand of %d, want %q of %d", name, how, got, r.Credentials(), c.want, c.held)
			}
		}
	}
}

// TestWithdrawnForGood: a credential outlives the revocations and cutoffs that withdrew it, and does not come back
// when they are dropped; nor does it for a request that had found it before.
func TestWithdrawnForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, r := bustest.NewLog(), replica.New(replica.Config{})
		run := start(t, r, l)
		exp, now := time.Now().Add(time.Minute).Unix(), time.Now().Unix()
		app := func(c *bus.Credential) { c.ClientID = "app" }
		pos := mustAppend(t, l,
			credential("a", "by id", "u"), credential("b", "by sub", "v"), with(credential("c", "by client", "w"), app),
			credential("d", "spared", "x"), credential("e", "stays", "u"))
		wait(t, r, pos.Seq)
		behind := replica.New(replica.Config{}) // reads this far, and then an image
		caught(t, behind, l, pos.Seq)
		texts := []string{"by id", "by sub", "by client"}
		found := make(map[string]*replica.Credential)
		for _, text := range texts {
			hash := bus.HashCredential([]byte(text))
			if found[text] = r.Credential(&hash); found[text] == nil || r.CredentialRevoked(found[text]) {
				t.Fatalf("%q does not stand at first", text)
			}
		}
		pos = mustAppend(t, l, &bus.Revocation{ID: "a", ExpiresAt: exp}, &bus.Revocation{Subject: "v", ExpiresAt: exp, Time: now}, &bus.Revocation{ClientID: "app", ExpiresAt: exp, Time: now},
			&bus.Revocation{Subject: "x", ExpiresAt: exp, Time: now, Sessions: true})
		wait(t, r, pos.Seq)
		img, _, err := r.Image()
		if err == nil {
			err = behind.Load(img)
		}
		if err != nil {
			t.Fatal(err)
		}
		other := start(t, behind, l)
		for range 12 {
			pos, err := l.Tick(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			wait(t, r, pos.Seq)
			for _, text := range texts {
				wait(t, behind, pos.Seq)
				if stands(behind, text) {
					t.Errorf("%q stands %s after its revocation, for a reader of an image", text, time.Since(time.Unix(now, 0)))
				}
				if stands(r, text) || !r.CredentialRevoked(found[text]) {
					t.Errorf("%q stands %s after its revocation", text, time.Since(time.Unix(now, 0)))
				}
			}
			if !stands(r, "spared") || !stands(r, "stays") {
				t.Errorf("a credential that nobody withdrew does not stand after %s", time.Since(time.Unix(now, 0)))
			}
			time.Sleep(13 * time.Minute)
		}
		if n := r.Revocations(); n != 0 {
			t.Fatalf("%d revocations are left: nothing was dropped, and nothing shown", n)
		}
		if n := r.Credentials(); n != 2 {
			t.Errorf("%d credentials are left, want the two that stand", n)
		}
		other.stop()
		run.stop()
	})
}

// TestCredentialsExpire: each is dropped by the log's time, also one whose end was moved, in any order.
func TestCredentialsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, r := bustest.NewLog(), replica.New(replica.Config{})
		run := start(t, r, l)
		now := time.Now()
		until := func(id string, minutes int) *bus.Credential {
			return with(credential(id, "text of "+id, "u"), func(c *bus.Credential) {
				if minutes > 0 {
					c.ExpiresAt = now.Add(time.Duration(minutes) * time.Minute).Unix()
				}
			})
		}
		mustAppend(t, l, until("e", 5), until("c", 3), until("d", 4), until("a", 1), until("b", 2), until("for good", 0),
			until("moved on", 1), until("moved on", 4), until("moved back", 9), until("moved back", 2), until("set free", 1), until("set free", 0))
		for range 300 { // moved many times
			mustAppend(t, l, until("often", 8), until("often", 7))
		}
		for minute, want := range []int{10, 9, 7, 6, 4, 3, 3, 2} {
			pos, err := l.Tick(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			wait(t, r, pos.Seq)
			if got := r.Credentials(); got != want {
				t.Errorf("after %d minutes: %d credentials, want %d", minute, got, want)
			}
			time.Sleep(time.Minute)
		}
		run.stop()
	})
}

// TestCredentialsOfALogBegunAnew: what the new log lacks does not stand.
func TestCredentialsOfALogBegunAnew(t *testing.T) {
	b := bustest.Start(t)
	l := b.Log(t)
	r := replica.New(replica.Config{})
	run := start(t, r, b.Reader(t))
	pos := mustAppend(t, l, credential("a", "1", "u"), credential("b", "2", "u"))
	wait(t, r, pos.Seq)
	until(t, r, "both stand", func() bool { return stands(r, "1") && stands(r, "2") })
	known := replica.New(replica.Config{}) // an issuer's own copy, which lacks the second
	caught(t, known, memory(t, credential("a", "1", "u")), 1)
	at := r.Cursor()
	l.Close()
	if _, err := bus.BeginAnew(t.Context(), b.Connect(t), bus.LogConfig{Authority: b.Authority, Issuer: "issuer-1"}, at, known.ImageAt, nil); err != nil {
		t.Fatal(err)
	}
	until(t, r, "the new log is read", func() bool { s := r.Snapshot(); return s.Ready && s.Position.Epoch > at.Epoch })
	if !stands(r, "1") || stands(r, "2") {
		t.Errorf("the first stands %v, the second %v, want the first alone", stands(r, "1"), stands(r, "2"))
	}
	run.stop()
}

// memory is a log in memory with these facts.
func memory(t *testing.T, facts ...bus.Fact) *bustest.Log {
	t.Helper()
	l := bustest.NewLog()
	mustAppend(t, l, facts...)
	return l
}

// TestSealing: the newest sealing key is known, from the log and from an image, until it expires by the log's time.
func TestSealing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := func(id string, exp int64) *bus.SealingFact {
			return &bus.SealingFact{ID: id, Public: make([]byte, 1216), Created: 1, ExpiresAt: exp}
		}
		l, r := bustest.NewLog(), replica.New(replica.Config{})
		run := start(t, r, l)
		until := time.Now().Add(time.Hour).Unix()
		check := func(id string, seq uint64) {
			t.Helper()
			pos, err := l.Tick(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			wait(t, r, pos.Seq)
			img, _, err := r.Image()
			if err != nil {
				t.Fatal(err)
			}
			loaded := replica.New(replica.Config{})
			if err := loaded.Load(img); err != nil {
				t.Fatal(err)
			}
			for how, r := range map[string]*replica.Replica{"log": r, "image": loaded} {
				snap, got := r.Snapshot(), ""
				if snap.Sealing != nil {
					got = snap.Sealing.ID
				}
				if got != id || snap.SealingSeq != seq {
					t.Errorf("%s: sealing key %q of entry %d, want %q of %d", how, got, snap.SealingSeq, id, seq)
				}
			}
		}
		check("", 0)
		mustAppend(t, l, key("first", 0), key("second", until))
		check("second", 3)
		time.Sleep(time.Hour + time.Second)
		check("", 3)
		mustAppend(t, l, key("third", 0))
		check("third", 6)
		run.stop()
	})
}
