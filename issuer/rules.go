package issuer

import (
	"context"
	"errors"
	"fmt"

	"github.com/sidekey/sidekey/bus"
)

// RuleSet is the newest version of a set of rules that agents are handed.
//
//	{"name": "base", "version": 3, "changed": 1767225600, "withdrawn": false, "bytes": 212}
type RuleSet struct {
	Name      string `json:"name"`
	Version   uint64 `json:"version"` // from 1; every push and every withdrawal is one
	Changed   int64  `json:"changed"` // NumericDate
	Withdrawn bool   `json:"withdrawn"`
	Bytes     int    `json:"bytes"`
	Text      string `json:"text,omitempty"` // not in lists
}

func ruleSet(f *bus.RulesFact) *RuleSet {
	return &RuleSet{Name: f.Name, Version: f.Version, Changed: f.Time, Withdrawn: f.Withdrawn, Bytes: len(f.Text), Text: f.Text}
}

// RulesPush hands out a set of rules. It says which version it takes the place of, so that nobody writes over what they
// have not seen.
type RulesPush struct {
	Name     string `json:"name"`
	Text     string `json:"text"`
	Replaces uint64 `json:"replaces"` // the version that stands, withdrawn or not; 0: there was none yet
	Force    bool   `json:"force"`    // whatever stands
}

// RuleSets gives all sets that were ever handed out, ordered by name, without their texts.
func (i *Issuer) RuleSets() []*RuleSet {
	all := []*RuleSet{}
	for _, f := range i.Replica.Snapshot().Rules.All() {
		s := ruleSet(f)
		s.Text = ""
		all = append(all, s)
	}
	return all
}

// RuleSet gives the newest version of a set. ErrNotFound: there never was one.
func (i *Issuer) RuleSet(name string) (*RuleSet, error) {
	f := i.Replica.Snapshot().Rules.Get(name)
	if f == nil {
		return nil, fmt.Errorf("reading rules %q: %w", name, ErrNotFound)
	}
	return ruleSet(f), nil
}

// PushRules hands out a set, and gives the entry that it is. An agent that has acknowledged that decides by it, or could not take
// it and tells so in its status. A text that stands already is handed out
// no second time; the position is then the newest. The errors are *InputError, *ConflictError and ErrUnavailable.
func (i *Issuer) PushRules(ctx context.Context, p RulesPush) (*RuleSet, bus.Position, error) {
	if err := i.checkRules(&p); err != nil {
		return nil, bus.Position{}, err
	}
	return i.nextRules(ctx, p.Name, func(held *bus.RulesFact) (*bus.RulesFact, error) {
		switch {
		case held != nil && !held.Withdrawn && held.Text == p.Text:
			return nil, nil
		case held == nil && len(i.Replica.Snapshot().Rules.All()) >= bus.MaxRuleSets:
			return nil, &ConflictError{fmt.Sprintf("there are %d sets of rules already, withdrawn ones included; push to one of those", bus.MaxRuleSets)}
		}
		if err := replaces(held, p.Replaces, p.Force); err != nil {
			return nil, err
		}
		return &bus.RulesFact{Text: p.Text}, nil
	}, func(f *bus.RulesFact, pos bus.Position) {
		i.event(ctx, "rules pushed", "name", f.Name, "version", f.Version, "bytes", len(f.Text), "force", p.Force, "seq", pos.Seq)
	})
}

// WithdrawRules takes a set back: agents that were to decide by it deny everything from there on. version is the one that
// stands, 0: whichever. A set that is withdrawn stays so.
func (i *Issuer) WithdrawRules(ctx context.Context, name string, version uint64) (*RuleSet, bus.Position, error) {
	return i.nextRules(ctx, name, func(held *bus.RulesFact) (*bus.RulesFact, error) {
		switch {
		case held == nil:
			return nil, fmt.Errorf("withdrawing rules %q: %w", name, ErrNotFound)
		case held.Withdrawn:
			return nil, nil
		}
		if err := replaces(held, version, version == 0); err != nil {
			return nil, err
		}
		return &bus.RulesFact{Withdrawn: true}, nil
	}, func(f *bus.RulesFact, pos bus.Position) {
		i.event(ctx, "rules withdrawn", "name", f.Name, "version", f.Version, "seq", pos.Seq)
	})
}

func (i *Issuer) checkRules(p *RulesPush) error {
	if err := bus.CheckRulesName(p.Name); err != nil {
		return &InputError{"name", `must be 1 to 64 of a-z, 0-9 and "-"`}
	}
	switch {
	case p.Force && p.Replaces != 0:
		return &InputError{"replaces, force", "may not both be given"}
	case p.Text == "":
		return &InputError{"text", "must hold rules"}
	case len(p.Text) > bus.MaxRulesText:
		return &InputError{"text", fmt.Sprintf("must be %d bytes at most, and has %d; hand it out as several sets", bus.MaxRulesText, len(p.Text))}
	case i.CheckRules == nil:
		return fmt.Errorf("checking rules: %w: this issuer cannot", ErrUnavailable)
	}
	if err := i.CheckRules(p.Name, p.Text); err != nil {
		return &InputError{"text", "cannot be meant: " + err.Error()}
	}
	return nil
}

// replaces refuses what was decided by another version than the one that stands.
func replaces(held *bus.RulesFact, version uint64, force bool) error {
	switch {
	case force || held == nil && version == 0 || held != nil && held.Version == version:
		return nil
	case held == nil:
		return &ConflictError{fmt.Sprintf("no version of these rules was handed out yet, and this is to replace version %d", version)}
	}
	state := "stand at"
	if held.Withdrawn {
		state = "were withdrawn by"
	}
	return &ConflictError{fmt.Sprintf("rules %q %s version %d: look at that, and say that it is to be replaced", held.Name, state, held.Version)}
}

// nextRules appends the next version of a set, as change makes it of the newest one (nil: there is none); it gives nil where
// nothing is to change. Nobody else's version comes between. done is told of what was appended.
func (i *Issuer) nextRules(ctx context.Context, name string, change func(held *bus.RulesFact) (*bus.RulesFact, error), done func(*bus.RulesFact, bus.Position)) (*RuleSet, bus.Position, error) {
	for attempt := range maxAttempts {
		snap := i.Replica.Snapshot()
		if !snap.Ready {
			return nil, bus.Position{}, unavailable("handing out rules", name, errors.New("the log is not read yet"))
		}
		held := snap.Rules.Get(name)
		f, err := change(held)
		if err != nil {
			return nil, bus.Position{}, err
		}
		if f == nil {
			return ruleSet(held), snap.Position, nil
		}
		f.Name, f.Version, f.Time = name, 1, i.now().Unix()
		if held != nil {
			f.Version = held.Version + 1
		}
		pos, err := i.Log.AppendIf(ctx, bus.KindRules, snap.RulesSeq, f)
		if err == nil {
			done(f, pos)
			return ruleSet(f), pos, i.inForce(ctx, f, pos)
		}
		if !errors.Is(err, bus.ErrConflict) {
			return nil, pos, unavailable("handing out rules", name, err)
		}
		if !pause(ctx, attempt) {
			return nil, pos, ctx.Err()
		}
	}
	return nil, bus.Position{}, unavailable("handing out rules", name, bus.ErrConflict)
}

// inForce waits until this issuer has read its own entry back, and makes sure that it counts: every reader passes over one whose
// version was given before.
func (i *Issuer) inForce(ctx context.Context, f *bus.RulesFact, pos bus.Position) error {
	if err := i.settle(ctx, pos); err != nil {
		return err
	}
	held := i.Replica.Snapshot().Rules.Get(f.Name)
	if held == nil || held.Version < f.Version || held.Version == f.Version && (held.Text != f.Text || held.Withdrawn != f.Withdrawn) {
		return unavailable("handing out rules", f.Name, bus.ErrConflict)
	}
	return nil
}
