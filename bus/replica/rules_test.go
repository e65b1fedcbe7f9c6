package replica_test

import (
	"fmt"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/bus/replica"
)

// rulesFact is a version of a set; without a text it is withdrawn.
func rulesFact(name string, version uint64, text string) *bus.RulesFact {
	return &bus.RulesFact{Name: name, Version: version, Time: 1, Text: text, Withdrawn: text == ""}
}

// TestRulesOrder: of each name the highest version stands, by whatever order the entries came, and a withdrawn one stays
// withdrawn until a higher one is there.
func TestRulesOrder(t *testing.T) {
	for name, c := range map[string]struct {
		facts []bus.Fact
		want  []*bus.RulesFact
		seq   uint64
	}{
		"one":                      {[]bus.Fact{rulesFact("a", 1, "x")}, []*bus.RulesFact{rulesFact("a", 1, "x")}, 1},
		"by name":                  {[]bus.Fact{rulesFact("b", 1, "x"), rulesFact("a", 1, "y")}, []*bus.RulesFact{rulesFact("a", 1, "y"), rulesFact("b", 1, "x")}, 2},
		"a newer version":          {[]bus.Fact{rulesFact("a", 1, "x"), rulesFact("a", 2, "y")}, []*bus.RulesFact{rulesFact("a", 2, "y")}, 2},
		"an older version":         {[]bus.Fact{rulesFact("a", 2, "x"), rulesFact("a", 1, "y")}, []*bus.RulesFact{rulesFact("a", 2, "x")}, 2},
		"the same version":         {[]bus.Fact{rulesFact("a", 2, "x"), rulesFact("a", 2, "y")}, []*bus.RulesFact{rulesFact("a", 2, "x")}, 2},
		"withdrawn":                {[]bus.Fact{rulesFact("a", 1, "x"), rulesFact("a", 2, "")}, []*bus.RulesFact{rulesFact("a", 2, "")}, 2},
		"withdrawn, an older text": {[]bus.Fact{rulesFact("a", 3, ""), rulesFact("a", 2, "x")}, []*bus.RulesFact{rulesFact("a", 3, "")}, 2},
		"withdrawn, its own again": {[]bus.Fact{rulesFact("a", 3, ""), rulesFact("a", 3, "x")}, []*bus.RulesFact{rulesFact("a", 3, "")}, 2},
		"and handed out again":     {[]bus.Fact{rulesFact("a", 3, ""), rulesFact("a", 4, "x")}, []*bus.RulesFact{rulesFact("a", 4, "x")}, 2},
	} {
		l, r := bustest.NewLog(), replica.New(replica.Config{})
		caught(t, r, l, mustAppend(t, l, c.facts...).Seq)
		got := r.Snapshot()
		if !reflect.DeepEqual(got.Rules.All(), c.want) || got.RulesSeq != c.seq {
			t.Errorf("%s: got %+v of entry %d, want %+v of %d", name, got.Rules.All(), got.RulesSeq, c.want, c.seq)
		}
	}
	if none := new(replica.RuleSets); none.Get("a") != nil || (*replica.RuleSets)(nil).Get("a") != nil {
		t.Error("a set is there that nobody handed out")
	}
}

// TestRulesBeforeAcknowledgement: who enforces rules is told of them before a Snapshot, from which acknowledgements are made,
// says that their entry is applied; and only when they are others.
func TestRulesBeforeAcknowledgement(t *testing.T) {
	l := bustest.NewLog()
	var told []string
	var r *replica.Replica
	r = replica.New(replica.Config{Rules: func(next *replica.Snapshot) {
		if at := r.Snapshot().Position; next.Rules == nil || at.Seq >= next.RulesSeq {
			t.Errorf("told of %+v at %v: the entry counts as applied already", next.Rules, at)
		}
		told = append(told, fmt.Sprint(next.Rules.Get("a").Version))
	}})
	mustAppend(t, l, revocation("x"), rulesFact("a", 1, "x"))
	caught(t, r, l, 2)
	caught(t, r, l, mustAppend(t, l, revocation("y")).Seq)
	caught(t, r, l, mustAppend(t, l, rulesFact("a", 2, "y")).Seq)
	caught(t, r, l, mustAppend(t, l, rulesFact("a", 1, "old")).Seq)
	if want := []string{"1", "2"}; !slices.Equal(told, want) {
		t.Errorf("told of versions %v, want %v", told, want)
	}
}

// TestRulesOutlive: rules are there after the process, by checkpoint and by journal, and in a log that is begun anew from an
// image; a reader of the old one goes by what the new one says.
func TestRulesOutlive(t *testing.T) {
	p, l := begin(t, t.TempDir()), bustest.NewLog()
	caught(t, p.Replica, l, mustAppend(t, l, rulesFact("kept", 1, "x"), rulesFact("gone", 1, "x")).Seq)
	save(t, p)
	caught(t, p.Replica, l, mustAppend(t, l, rulesFact("gone", 2, ""), rulesFact("kept", 2, "y")).Seq)
	q := restored(t, p.dir, 4)
	want := []*bus.RulesFact{rulesFact("gone", 2, ""), rulesFact("kept", 2, "y")}
	if got := q.Snapshot(); !reflect.DeepEqual(got.Rules.All(), want) || got.RulesSeq != 4 {
		t.Errorf("after the process: got %+v of entry %d, want %+v of 4", got.Rules.All(), got.RulesSeq, want)
	}

	anew := bus.Cursor{Position: bus.Position{Epoch: p.Snapshot().Position.Epoch + 1}}
	older := replica.New(replica.Config{})
	if err := older.Apply(firstEntries(t, l, 3)...); err != nil {
		t.Fatal(err)
	}
	img, err := older.ImageAt(anew)
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Load(img); err != nil {
		t.Fatal(err)
	}
	if got, want := q.Snapshot().Rules.All(), older.Snapshot().Rules.All(); !reflect.DeepEqual(got, want) {
		t.Errorf("in a log that was begun anew: got %+v, want what it says, %+v", got, want)
	}
}

// firstEntries reads the first n entries of a log.
func firstEntries(t testing.TB, l replica.Log, n int) []bus.Entry {
	t.Helper()
	var all []bus.Entry
	enough := fmt.Errorf("enough")
	if err := l.Follow(t.Context(), bus.Cursor{}, func(es []bus.Entry, _ uint64) error {
		if all = append(all, es...); len(all) >= n {
			return enough
		}
		return nil
	}); err != enough {
		t.Fatal(err)
	}
	return all[:n]
}

// TestRulesImage: an image gives back the sets that it was made of, and has one form.
func TestRulesImage(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l, r := bustest.NewLog(), replica.New(replica.Config{})
		var last bus.Position
		for range rapid.IntRange(1, 12).Draw(rt, "entries") {
			name := rapid.StringMatching("[a-z0-9-]{1,4}").Draw(rt, "name")
			last = mustAppend(t, l, rulesFact(name, rapid.Uint64Range(1, 1<<63).Draw(rt, "version"), rapid.String().Draw(rt, "text")))
		}
		if err := r.Apply(firstEntries(t, l, int(last.Seq))...); err != nil {
			t.Fatal(err)
		}
		img, _, err := r.Image()
		if err != nil {
			t.Fatal(err)
		}
		back := replica.New(replica.Config{})
		if err := back.Load(img); err != nil {
			t.Fatal(err)
		}
		again, _, err := back.Image()
		if err != nil || string(again) != string(img) || !reflect.DeepEqual(back.Snapshot().Rules, r.Snapshot().Rules) {
			rt.Fatalf("got %+v, want %+v (%v)", back.Snapshot().Rules, r.Snapshot().Rules, err)
		}
	})
}
