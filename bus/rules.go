package bus

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Bounds of the rules in the log. Issuers keep the second one; it counts withdrawn sets too, whose versions stay.
const (
	MaxRulesText = 64 << 10 // bytes of one set
	MaxRuleSets  = 64       // names
)

// RulesFact is a version of a set of rules that agents enforce: what the file of an agent's own rules holds, handed out to
// all of them. Every version is an entry of its own, which repeats the whole text; one with Withdrawn set has none, and
// whoever was to decide by the set denies from there on.
//
//	{"name": "base", "version": 3, "time": 1767225600, "text": "[[rules]]\nname = …"}
//
// A version that is not above the one before it is passed over by every reader alike.
type RulesFact struct {
	Name      string `json:"name"`    // 1 to 64 of a-z, 0-9 and "-"
	Version   uint64 `json:"version"` // from 1; it goes on behind a withdrawal
	Time      int64  `json:"time"`    // NumericDate, by the issuer's clock
	Text      string `json:"text,omitempty"`
	Withdrawn bool   `json:"withdrawn,omitempty"`
}

// Kind is KindRules.
func (*RulesFact) Kind() Kind { return KindRules }

// CheckRulesName refuses what cannot be the name of a set of rules.
func CheckRulesName(name string) error {
	if name == "" || len(name) > 64 || strings.ContainsFunc(name, func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' }) {
		return errors.New(`a set of rules has a name of 1 to 64 of a-z, 0-9 and "-"`)
	}
	return nil
}

func (f *RulesFact) check() error {
	if err := CheckRulesName(f.Name); err != nil {
		return err
	}
	switch {
	case f.Version == 0:
		return fmt.Errorf("rules %q need a version from 1", f.Name)
	case f.Time <= 0:
		return fmt.Errorf("rules %q need a time", f.Name)
	case f.Withdrawn && f.Text != "":
		return fmt.Errorf("rules %q are withdrawn, and have a text", f.Name)
	case !f.Withdrawn && f.Text == "":
		return fmt.Errorf("rules %q have no text", f.Name)
	case len(f.Text) > MaxRulesText:
		return fmt.Errorf("rules %q have %d bytes, more than %d", f.Name, len(f.Text), MaxRulesText)
	case !utf8.ValidString(f.Text):
		return fmt.Errorf("rules %q are not UTF-8", f.Name)
	}
	return nil
}
