package issuer

import (
	"encoding/json"
	"net/http"
	"strconv"

	"github.com/sidekey/sidekey/bus"
)

const (
	rulesPath = "/admin/v1/rules"
	// maxRulesBody holds the longest text, whatever of it JSON must escape, and the other members.
	maxRulesBody = 6*bus.MaxRulesText + 4<<10
)

func (i *Issuer) ruleRoutes() map[string]func(*http.Request) (int, any, error) {
	return map[string]func(*http.Request) (int, any, error){
		"GET " + rulesPath:                i.adminListRules,
		"POST " + rulesPath:               i.adminPushRules,
		"GET " + rulesPath + "/{name}":    i.adminRules,
		"DELETE " + rulesPath + "/{name}": i.adminWithdrawRules,
	}
}

// agentRules is by which rules an agent decides, in its own words (agent.RulesStatus).
type agentRules struct {
	Agent   string          `json:"agent"`
	Seen    int64           `json:"seen"`            // NumericDate of those words, 0: it was not heard
	Rules   int             `json:"rules"`           // that are in force
	Version string          `json:"version"`         // of those, "": it has none
	Fault   string          `json:"fault,omitempty"` // why newer ones are not
	Sets    []agentRulesSet `json:"sets"`
}

type agentRulesSet struct {
	Name      string `json:"name"`
	Version   uint64 `json:"version"` // by which it decides, 0: none
	Merged    bool   `json:"merged"`  // it is one of its agent.rules_sets
	Withdrawn bool   `json:"withdrawn,omitempty"`
	Fault     string `json:"fault,omitempty"`
}

func (i *Issuer) adminListRules(r *http.Request) (int, any, error) {
	agents, err := i.Fleet.Agents(r.Context())
	if err != nil {
		return 0, nil, unavailable("listing", "agents", err)
	}
	all := make([]agentRules, 0, len(agents))
	for _, a := range agents {
		all = append(all, toldRules(a))
	}
	return http.StatusOK, map[string]any{"rules": i.RuleSets(), "agents": all}, nil
}

// toldRules reads the member "rules" of an agent's status.
func toldRules(a bus.AgentInfo) agentRules {
	var s struct {
		Rules agentRules `json:"rules"`
	}
	if len(a.Status) > 0 {
		if err := json.Unmarshal(a.Status, &s); err != nil {
			s.Rules = agentRules{Fault: "its status cannot be read"}
		}
	}
	s.Rules.Agent, s.Rules.Seen = a.Name, numericDate(a.Seen)
	if s.Rules.Sets == nil {
		s.Rules.Sets = []agentRulesSet{}
	}
	return s.Rules
}

// rulesAnswer is a set without its text, and what became of a change.
type rulesAnswer struct {
	*RuleSet
	*receiptAnswer
}

// answerRules does something to a set and, where the request says so, awaits the agents.
func (i *Issuer) answerRules(r *http.Request, w *wait, do func() (*RuleSet, bus.Position, error)) (int, any, error) {
	if err := w.check(); err != nil {
		return 0, nil, err
	}
	var s *RuleSet
	receipt, err := i.settled(r.Context(), w.limit(), func() (pos bus.Position, err error) {
		s, pos, err = do()
		return pos, err
	})
	status, answer, err := receiptStatus(receipt, w, err)
	if err != nil {
		return 0, nil, err
	}
	s.Text = ""
	return status, rulesAnswer{s, answer.(*receiptAnswer)}, nil
}

func (i *Issuer) adminPushRules(r *http.Request) (int, any, error) {
	var in struct {
		RulesPush
		wait
	}
	if err := readJSON(r, &in); err != nil {
		return 0, nil, err
	}
	return i.answerRules(r, &in.wait, func() (*RuleSet, bus.Position, error) { return i.PushRules(r.Context(), in.RulesPush) })
}

func (i *Issuer) adminRules(r *http.Request) (int, any, error) {
	s, err := i.RuleSet(r.PathValue("name"))
	return http.StatusOK, s, err
}

func (i *Issuer) adminWithdrawRules(r *http.Request) (int, any, error) {
	w, err := queryWait(r)
	if err != nil {
		return 0, nil, err
	}
	var version uint64
	if text := r.URL.Query().Get("version"); text != "" {
		if version, err = strconv.ParseUint(text, 10, 64); err != nil || version == 0 {
			return 0, nil, &InputError{"version", "must be the version that stands"}
		}
	}
	return i.answerRules(r, w, func() (*RuleSet, bus.Position, error) {
		return i.WithdrawRules(r.Context(), r.PathValue("name"), version)
	})
}
