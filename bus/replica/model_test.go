package replica_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// world is a log, the truth about it, and a reader to which everything happens.
type world struct {
	t       *testing.T
	log     *bustest.Log
	entries []bus.Entry // all that ever stood in the log
	issuer  *replica.Replica
	agent   process
	dir     string
	revoked map[string]known
	keys    map[string]keyring.State
	creds   map[string]*standing // by id
	used    map[string]bool      // ids that were revoked: none is used again
	cuts    map[string]uint64    // by sub: the newest cutoff that is not for sessions only; for ever
	cutEnds map[string]int64     // by sub: when cutoffs may begin to be forgotten
	time    int64                // of the newest tick
	rules   map[string]*bus.RulesFact
}

// standing is a credential as the log has it.
type standing struct {
	text, sub string
	seq       uint64
	exp       int64
}

// known is a revocation that the log has had: whom it refuses, from where, until when.
type known struct {
	claims keyring.Claims
	exp    int64
}

func newWorld(t *testing.T, dir string) *world {
	w := &world{t: t, log: bustest.NewLog(), issuer: replica.New(replica.Config{}), dir: dir, revoked: map[string]known{}, keys: map[string]keyring.State{},
		creds: map[string]*standing{}, used: map[string]bool{}, cuts: map[string]uint64{}, cutEnds: map[string]int64{}, rules: map[string]*bus.RulesFact{}}
	w.agent = begin(t, dir)
	return w
}

// append appends a fact, and notes it in the truth.
func (w *world) append(f bus.Fact) {
	mustAppend(w.t, w.log, f)
	w.read()
}

// read has the issuer, which is never disturbed, apply what is new.
func (w *world) read() {
	enough := errors.New("enough")
	err := w.log.Follow(context.Background(), w.issuer.Cursor(), func(es []bus.Entry, _ uint64) error {
		w.entries = append(w.entries, es...)
		if err := w.issuer.Apply(es...); err != nil {
			return err
		}
		return enough
	})
	if !errors.Is(err, enough) {
		w.t.Fatalf("the issuer: %v", err)
	}
}

// catchUp has the agent follow up to the head.
func (w *world) catchUp() { caught(w.t, w.agent.Replica, w.log, uint64(len(w.entries))) }

// check holds the agent, at the head, to the truth.
func (w *world) check(t *rapid.T) {
	at := w.agent.Snapshot()
	if at.Position != w.issuer.Snapshot().Position || w.agent.Cursor().Chain != w.issuer.Cursor().Chain {
		t.Fatalf("the agent is at %v, the log at %v", at.Position, w.issuer.Snapshot().Position)
	}
	for name, k := range w.revoked {
		if !revoked(w.agent.Replica, k.claims) && !w.agent.Forgotten(k.exp) {
			t.Fatalf("%s, until %d, is not refused at %d", name, k.exp, time.Now().Unix())
		}
	}
	for n := range 12 {
		if name := fmt.Sprint(n); revoked(w.agent.Replica, jti(name)) && w.revoked["j"+name].exp == 0 {
			t.Fatalf("token %s is refused, and was never revoked", name)
		}
	}
	if w.agent.Forgotten(time.Now().Unix() + 1) {
		t.Fatal("a token that has not ended counts as forgotten")
	}
	for kid, state := range w.keys {
		rec, ok := at.Ring.Record(kid)
		if !ok || rec.State != state {
			t.Fatalf("key %s is %+v, and %s in the log", kid, rec, state)
		}
	}
	want := make(map[string]bool)
	for _, c := range w.creds {
		want[c.text] = c.seq >= w.cuts[c.sub] && (c.exp == 0 || c.exp > w.time)
	}
	for n := range 4 {
		if text := fmt.Sprint("text ", n); stands(w.agent.Replica, text) != want[text] {
			t.Fatalf("%s stands %v, want %v", text, !want[text], want[text])
		}
	}
	if n := len(at.Rules.All()); n != len(w.rules) {
		t.Fatalf("%d sets of rules, want %d", n, len(w.rules))
	}
	for name, want := range w.rules {
		if got := at.Rules.Get(name); !reflect.DeepEqual(got, want) {
			t.Fatalf("rules %q are %+v, want %+v", name, got, want)
		}
	}
	if n := len(at.Ring.Records()); n != len(w.keys) {
		t.Fatalf("%d keys, want %d", n, len(w.keys))
	}
}

func (w *world) revoke(t *rapid.T) {
	id := fmt.Sprint(rapid.IntRange(0, 2).Draw(t, "id"))
	exp := time.Now().Unix() + rapid.Int64Range(1, 4*3600).Draw(t, "for")
	f, name, k := &bus.Revocation{ExpiresAt: exp, Time: time.Now().Unix()}, "", known{exp: exp}
	switch rapid.IntRange(0, 3).Draw(t, "what") {
	case 0:
		f.ID, name, k.claims = id, "j"+id, jti(id)
	case 1:
		f.SessionID, name, k.claims = id, "s"+id, keyring.Claims{ID: "-", SessionID: id}
	case 2:
		f.Subject, name, k.claims = id, "u"+id, keyring.Claims{ID: "-", Subject: id, HasSessionSeq: true, SessionSeq: uint64(len(w.entries))}
	case 3:
		f.ClientID, name, k.claims = id, "c"+id, keyring.Claims{ID: "-", ClientID: id, HasSessionSeq: true, SessionSeq: uint64(len(w.entries))}
	}
	w.append(f)
	w.cut(f)
	k.exp = max(k.exp, w.revoked[name].exp)
	w.revoked[name] = k
}

// credential appends an API key's record, new, changed or gone.
func (w *world) credential(t *rapid.T) {
	id := fmt.Sprint(rapid.IntRange(0, 3).Draw(t, "id"))
	c := &standing{text: fmt.Sprint("text ", rapid.IntRange(0, 3).Draw(t, "text")), sub: fmt.Sprint(rapid.IntRange(0, 2).Draw(t, "sub")), seq: uint64(len(w.entries)) + 1}
	f := credential("key "+id, c.text, c.sub)
	f.Gone = rapid.IntRange(0, 3).Draw(t, "gone") == 0
	if rapid.Bool().Draw(t, "ends") {
		c.exp = time.Now().Unix() + rapid.Int64Range(1, 3*3600).Draw(t, "for")
		f.ExpiresAt = c.exp
	}
	if rapid.Bool().Draw(t, "an edit") {
		f.KnownSeq = rapid.Uint64Range(1, c.seq).Draw(t, "known")
		c.seq = f.KnownSeq
	}
	if w.used[id] || c.seq < w.cuts[c.sub] && w.cutEnds[c.sub] <= time.Now().Unix() {
		return // no issuer changes what it no longer holds itself
	}
	w.append(f)
	for other, o := range w.creds {
		if !f.Gone && o.text == c.text {
			delete(w.creds, other)
		}
	}
	if w.creds[id] = c; f.Gone {
		delete(w.creds, id)
	}
}

// withdraw revokes a credential's id, or all that a subject has.
func (w *world) withdraw(t *rapid.T) {
	id, exp := fmt.Sprint(rapid.IntRange(0, 3).Draw(t, "id")), time.Now().Unix()+rapid.Int64Range(1, 2*3600).Draw(t, "for")
	if rapid.Bool().Draw(t, "one") {
		w.append(&bus.Revocation{ID: "key " + id, ExpiresAt: exp})
		w.used[id] = true
		delete(w.creds, id)
		return
	}
	f := &bus.Revocation{Subject: id, ExpiresAt: exp, Time: time.Now().Unix(), Sessions: rapid.Bool().Draw(t, "sessions only")}
	w.append(f)
	w.cut(f)
}

func (w *world) cut(f *bus.Revocation) {
	if f.Subject == "" || f.Sessions {
		return
	}
	if was, ok := w.cutEnds[f.Subject]; !ok || was > f.ExpiresAt {
		w.cutEnds[f.Subject] = f.ExpiresAt
	}
	w.cuts[f.Subject] = uint64(len(w.entries))
}

func (w *world) key(t *rapid.T) {
	kid := fmt.Sprint("k", rapid.IntRange(0, 2).Draw(t, "kid"))
	to := rapid.SampledFrom([]keyring.State{keyring.Announced, keyring.Active, keyring.Retiring, keyring.Retired, keyring.Revoked}).Draw(t, "state")
	w.append(keyFact(w.t, kid, to))
	if from, ok := w.keys[kid]; !ok || from == to || from.Next(to) {
		w.keys[kid] = to
	}
}

// handOut appends a version of a set of rules, also one that somebody made who had not read the newest.
func (w *world) handOut(t *rapid.T) {
	name, version := fmt.Sprint("set-", rapid.IntRange(0, 2).Draw(t, "set")), rapid.Uint64Range(1, 6).Draw(t, "version")
	f := rulesFact(name, version, rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "text"))
	w.append(f)
	if old := w.rules[name]; old == nil || old.Version < version {
		w.rules[name] = f
	}
}

// undated hides the test's deadline, which is no time of the bubble's.
type undated struct{ testing.TB }

// TestAnyHistory: appends, redelivery, checkpoints, purges, crashes and restarts, in any order,
// leave a reader with exactly what the log says.
func TestAnyHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(undated{t}, func(rt *rapid.T) {
			dir := t.TempDir()
			w := newWorld(t, dir)
			rt.Repeat(map[string]func(*rapid.T){
				"revoke": w.revoke,
				"key":    w.key,

				"credential": w.credential,
				"withdraw":   w.withdraw,
				"rules":      w.handOut,
				"tick": func(rt *rapid.T) {
					time.Sleep(time.Duration(rapid.IntRange(1, 5400).Draw(rt, "seconds")) * time.Second)
					if _, err := w.log.Tick(t.Context()); err != nil {
						t.Fatal(err)
					}
					w.time = time.Now().Unix()
					w.read()
				},
				"checkpoint": func(rt *rapid.T) {
					img, at, err := w.issuer.Image()
					if err == nil {
						err = w.log.WriteCheckpoint(t.Context(), at, img, nil)
					}
					if err != nil {
						t.Fatal(err)
					}
					w.log.Purge(rapid.Uint64Range(0, at.Seq).Draw(rt, "purge"))
				},
				"follow": func(*rapid.T) { w.catchUp() },
				"redeliver": func(rt *rapid.T) {
					if n := w.agent.Snapshot().Position.Seq; n > 0 {
						from := rapid.Uint64Range(0, n-1).Draw(rt, "from")
						to := rapid.Uint64Range(from, n).Draw(rt, "to")
						if err := w.agent.Apply(w.entries[from:to]...); err != nil {
							t.Fatalf("redelivery: %v", err)
						}
					}
				},
				"save": func(*rapid.T) { save(t, w.agent) },
				"crash": func(rt *rapid.T) {
					was := w.agent.Snapshot()
					w.agent.store.Close()
					w.agent = begin(t, dir)
					ok, err := w.agent.store.Restore(w.agent.Replica)
					if err != nil && !errors.Is(err, replica.ErrDamaged) {
						t.Fatalf("Restore: %v", err)
					}
					now := w.agent.Snapshot()
					if was.Position.Before(now.Position) || now.Ready != (ok && err == nil) {
						rt.Fatalf("restored at %v from %v: ready %v, %v", now.Position, was.Position, now.Ready, err)
					}
				},
				"": func(*rapid.T) {},
			})
			w.catchUp()
			w.check(rt)
			w.agent.store.Close()
		})
	})
}
