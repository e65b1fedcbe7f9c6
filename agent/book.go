package agent

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/sidekey/sidekey/agent/rules"
	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
)

// book is by which rules the agent decides. It is immutable; there is one at any time, and a decision is by one.
type book struct {
	main   *rules.Set            // for a request that names no set; nil: whoever is known may pass
	sets   map[string]*rules.Set // that the log hands out, by name. Those that deny are not here
	handed bool                  // main is from the log, or some of it
	status *RulesStatus          // nil: there are no rules
}

// nobody is the set by which everything is denied.
var nobody, _ = rules.Merge()

// named gives a set that the log hands out. One that is not there, or was withdrawn, denies.
func (b *book) named(name string) *rules.Set {
	if s := b.sets[name]; s != nil {
		return s
	}
	return nobody
}

// shelf is what books are made of. One goroutine at a time makes one.
type shelf struct {
	mu    sync.Mutex
	names []string // agent.rules_sets
	opt   rules.Options

	awaits bool                  // there is a file (Config.LocalRules), and it was not given yet
	local  *rules.Set            // of the file; nil: there is none
	fault  error                 // of a newer file
	handed map[string]*handedSet // all that the log has handed out, by name
	epoch  uint64                // of the log that they were last read in
	good   *rules.Set            // what was last merged of everything; nil: nothing was, or a set of it was, or may have been, withdrawn
	said   string                // the fault that the log had last
}

// handedSet is a set as the agent has it.
type handedSet struct {
	fact    *bus.RulesFact // the newest version
	set     *rules.Set     // of the newest version that can be meant; nil: none could be since it was last withdrawn
	version uint64         // of set; withdrawn: of that
	within  bool           // shelf.good was made of it
	err     error          // why the newest version is not in force
	gone    bool           // the log hands it out no more
}

// SetRules puts the rules of this host's own file in force for every request that is decided from now on; nil: there are
// none. They come before the sets that the log hands out (Config.RuleSets). The error says why they cannot be taken together
// with those: what was in force stays, nothing if there was nothing, and they are tried again with the next sets.
// With Config.LocalRules nobody may pass before its first call. Any goroutine may call it.
func (a *Agent) SetRules(s *rules.Set) error {
	a.shelf.mu.Lock()
	defer a.shelf.mu.Unlock()
	a.shelf.local, a.shelf.awaits = s, false
	return a.rebind()
}

// SetRulesFault says why the newest file is not in force, nil: it is. It shows in the status.
func (a *Agent) SetRulesFault(err error) {
	a.shelf.mu.Lock()
	defer a.shelf.mu.Unlock()
	a.shelf.fault = err
	a.rebind() //nolint:errcheck // it is in the status
}

// TakeRules puts the sets in force that the log hands out at a Snapshot. It is the replica's Config.Rules: called before that
// is published. So a receipt of an entry means that this agent has read it: by what is withdrawn there it decides no more, and
// by what is handed out there it decides, or it cannot, and says so in its status and its log (docs/rules.md).
func (a *Agent) TakeRules(next *replica.Snapshot) {
	a.shelf.mu.Lock()
	defer a.shelf.mu.Unlock()
	a.shelf.take(next)
	a.rebind() //nolint:errcheck // it is in the status and the log
}

// Rules gives the set by which a request is decided that names none; nil: there is none.
func (a *Agent) Rules() *rules.Set { return a.book.Load().main }

// rebind makes a new book of what is on the shelf, whole or not at all.
func (a *Agent) rebind() error {
	s := &a.shelf
	b := &book{sets: make(map[string]*rules.Set), handed: len(s.names) > 0}
	main, err := s.merge()
	b.main = main
	for name, h := range s.handed {
		if h.set != nil {
			b.sets[name] = h.set
		}
	}
	b.status = s.status(main, errors.Join(s.fault, err))
	a.book.Store(b)
	a.sayRules(b, err)
	return err
}

// sayRules logs what has changed.
func (a *Agent) sayRules(b *book, err error) {
	if a.shelf.awaits {
		return // an agent that begins
	}
	if err == nil {
		if a.shelf.said != "" {
			a.log.Info("rules are whole again", "rules", b.main.Len(), "version", b.main.Version())
		}
		a.shelf.said = ""
		return
	}
	if a.shelf.said == err.Error() {
		return
	}
	if a.shelf.said = err.Error(); b.main == nobody {
		a.log.Error("denying every request: the rules are not whole", "error", err)
	} else {
		a.log.Error("not taking the newest rules, the old ones stay in force", "error", err)
	}
}

// take notes what the log hands out.
//
// A version that cannot be meant leaves the one before it in force, and so does one that does not go with the other sets: but
// only where nothing can have lain between the two. Entries come in batches, and a checkpoint or a log that was begun anew
// holds the newest versions alone: what stood before a version that was not seen may have been withdrawn by that, and by what
// is withdrawn nobody decides any more. Fails closed.
func (s *shelf) take(next *replica.Snapshot) {
	anew := s.epoch != next.Position.Epoch
	s.epoch = next.Position.Epoch
	for _, f := range next.Rules.All() {
		old := s.handed[f.Name]
		same := old != nil && old.fact.Version == f.Version && old.fact.Text == f.Text && old.fact.Withdrawn == f.Withdrawn
		unseen := old != nil && (anew || old.gone || !same && f.Version != old.fact.Version+1)
		switch {
		case same && (!unseen || old.within):
			old.fact, old.gone = f, false // and its fault is what it was
			continue
		case unseen:
			if old = nil; slices.Contains(s.names, f.Name) {
				s.good = nil
			}
		}
		s.handed[f.Name] = s.read(f, old)
	}
	for name, h := range s.handed {
		h.gone = next.Rules.Get(name) == nil
	}
}

// read reads a version. old is what stands if that cannot be meant, nil: nothing.
func (s *shelf) read(f *bus.RulesFact, old *handedSet) *handedSet {
	h := &handedSet{fact: f, version: f.Version}
	if f.Withdrawn {
		return h
	}
	if h.set, h.err = parseHanded(f, s.opt); h.err != nil {
		h.version = 0
		if old != nil && old.set != nil {
			h.set, h.version = old.set, old.version
		}
	}
	return h
}

// errGone: the log was begun anew from a state that had no such set yet.
var errGone = errors.New("the log hands it out no more, though it was not withdrawn")

// fault is why a set is not in force as the log has it.
func (h *handedSet) fault() error {
	if h.gone {
		return errGone
	}
	return h.err
}

// parseHanded reads a set. Nothing that is in one ends the agent.
func parseHanded(f *bus.RulesFact, opt rules.Options) (s *rules.Set, err error) {
	defer func() {
		if p := recover(); p != nil {
			s, err = nil, fmt.Errorf("reading rules %q failed inside: %v", f.Name, p)
		}
	}()
	return rules.ParseSet(f.Name, f.Text, opt)
}

// errAwaits: an agent that has a file decides by nothing without it, least of all by the sets that are to come behind it.
var errAwaits = errors.New("this host's own file is not read yet")

// merge gives by what a request is decided that names no set. With an error that is what it was before, and nobody's where
// there was nothing, or where a set was withdrawn: to go on without one of several sets would let those pass whom it denied.
func (s *shelf) merge() (*rules.Set, error) {
	if s.awaits {
		return nobody, errAwaits
	}
	if len(s.names) == 0 {
		return s.local, nil
	}
	sets, faults := []*rules.Set{s.local}, []error(nil)
	for _, name := range s.names {
		h := s.handed[name]
		switch {
		case h == nil:
			faults = append(faults, fmt.Errorf("rules %q were never handed out", name))
		case h.fact.Withdrawn:
			s.good = nil
			faults = append(faults, fmt.Errorf("rules %q were withdrawn by version %d", name, h.fact.Version))
		case h.fault() != nil:
			faults = append(faults, fmt.Errorf("version %d of rules %q: %w", h.fact.Version, name, h.fault()))
		default:
			sets = append(sets, h.set)
		}
	}
	err := errors.Join(faults...)
	if err == nil {
		var merged *rules.Set
		if merged, err = rules.Merge(sets...); err == nil {
			s.good = merged
			for name, h := range s.handed {
				h.within = slices.Contains(s.names, name)
			}
		}
	}
	if s.good == nil {
		return nobody, err
	}
	return s.good, err
}

// status tells what is in force; nil: there are no rules.
func (s *shelf) status(main *rules.Set, err error) *RulesStatus {
	if main == nil && len(s.handed) == 0 {
		return nil
	}
	st := &RulesStatus{}
	if main != nil && main != nobody {
		st.Rules, st.Version = main.Len(), main.Version()
	}
	if err != nil {
		st.Fault = clipFault(err)
	}
	for _, name := range s.names {
		st.Sets = append(st.Sets, s.setStatus(name, true))
	}
	for _, name := range slices.Sorted(maps.Keys(s.handed)) {
		if !slices.Contains(s.names, name) {
			st.Sets = append(st.Sets, s.setStatus(name, false))
		}
	}
	return st
}

func (s *shelf) setStatus(name string, merged bool) RuleSetStatus {
	st := RuleSetStatus{Name: name, Merged: merged}
	if h := s.handed[name]; h != nil {
		st.Version, st.Withdrawn = h.version, h.fact.Withdrawn
		if err := h.fault(); err != nil {
			st.Fault = clipFault(err)
		}
	} else {
		st.Fault = "it was never handed out"
	}
	return st
}

// maxFault bounds a fault in the status: issuers hear no status above 64 KiB, and there may be a fault for every set.
const maxFault = 300

func clipFault(err error) string {
	text := strings.ToValidUTF8(strings.ReplaceAll(err.Error(), "\n", "; "), "?")
	if len(text) > maxFault {
		text = strings.ToValidUTF8(text[:maxFault], "") + "…"
	}
	return text
}
