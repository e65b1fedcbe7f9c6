package rules

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
)

// ParseSet reads a set that the log hands out. It holds rules and nothing else, and at least one.
func ParseSet(name, text string, opt Options) (*Set, error) {
	opt.Only = true
	s, err := Parse(name, []byte(text), opt)
	if err != nil {
		return nil, err
	}
	if s.Len() == 0 {
		return nil, fmt.Errorf("%s: it has no [[rules]]", name)
	}
	for _, rule := range s.rules {
		rule.Set = name
	}
	return s, nil
}

// Merge makes one Set of several: all rules of the first, then those of the next; nil counts as none. No sets give a Set that
// allows nothing, and one is given back as it is. The rules are shared. Two rules of one name are an error, which says where both stand: which of them was
// meant cannot be told.
func Merge(sets ...*Set) (*Set, error) {
	sets = slices.DeleteFunc(slices.Clone(sets), func(s *Set) bool { return s == nil })
	if len(sets) == 1 {
		return sets[0], nil
	}
	merged := &Set{index: newIndex()}
	names := make(map[string]string)
	sum := sha256.New()
	for _, s := range sets {
		io.WriteString(sum, s.version+"\n") //nolint:errcheck // a hash takes all
		for _, rule := range s.rules {
			if first, taken := names[rule.Name]; taken {
				return nil, fmt.Errorf("%s: rule %q: the name is taken by the rule at %s", rule.Line, rule.Name, first)
			}
			names[rule.Name] = rule.Line
			merged.add(rule)
		}
	}
	if len(merged.rules) > maxRules {
		return nil, fmt.Errorf("%d rules are more than %d", len(merged.rules), maxRules)
	}
	merged.version = hex.EncodeToString(sum.Sum(nil)[:6])
	return merged, nil
}
