package replica

import (
	"errors"
	"slices"
	"strings"

	"github.com/sidekey/sidekey/bus"
)

// RuleSets are the newest versions of all sets of rules that the log has had, the withdrawn ones among them: a name goes on
// where it was. They are immutable; nil is none.
type RuleSets struct {
	sets []*bus.RulesFact // by name, ascending
}

func newRuleSets(sets []*bus.RulesFact) *RuleSets {
	if len(sets) == 0 {
		return nil
	}
	return &RuleSets{sets}
}

// Get gives the newest version of a set, which may be withdrawn; nil: there never was one.
func (s *RuleSets) Get(name string) *bus.RulesFact {
	if s == nil {
		return nil
	}
	if n, ok := slices.BinarySearchFunc(s.sets, name, byRulesName); ok {
		return s.sets[n]
	}
	return nil
}

// All gives every set, ordered by name. Do not change the slice.
func (s *RuleSets) All() []*bus.RulesFact {
	if s == nil {
		return nil
	}
	return s.sets
}

func byRulesName(f *bus.RulesFact, name string) int { return strings.Compare(f.Name, name) }

// with gives the sets with another version of one of them.
func (s *RuleSets) with(f *bus.RulesFact) *RuleSets {
	next := &RuleSets{slices.Clone(s.All())}
	n, ok := slices.BinarySearchFunc(next.sets, f.Name, byRulesName)
	if ok {
		next.sets[n] = f
	} else {
		next.sets = slices.Insert(next.sets, n, f)
	}
	return next
}

// checkRules refuses what no replica makes.
func checkRules(sets []*bus.RulesFact) error {
	for n, f := range sets {
		if f == nil || n > 0 && sets[n-1].Name >= f.Name {
			return errors.New("its sets of rules are not in order")
		}
		if err := bus.Check(f); err != nil {
			return err
		}
	}
	return nil
}

// foldRules takes in a set's new version. One that is not above the version that stands is passed over by every reader
// alike, so that what was withdrawn does not come back by an entry that knew nothing of it.
func (r *Replica) foldRules(next *Snapshot, f *bus.RulesFact, seq uint64) {
	next.RulesSeq = seq
	if old := next.Rules.Get(f.Name); old != nil && f.Version <= old.Version {
		r.cfg.Logger.Warn("ignoring rules of a version that is not above the one that stands", "name", f.Name, "version", f.Version, "stands", old.Version, "seq", seq)
		return
	}
	next.Rules = next.Rules.with(f)
}
