package bus

import (
	"encoding/json"
	"time"
)

// Registration is how an agent makes itself known, at each start:
//
//	{"agent": "web-1", "run": "…", "version": "v1.0.0", "sealing_key": "base64"}
type Registration struct {
	Agent      string `json:"agent"` // its name, unique in the fleet
	Run        string `json:"run"`   // this process: a random id
	Version    string `json:"version"`
	SealingKey []byte `json:"sealing_key"` // public, MLKEM768X25519: HS256 secrets are sealed to it
}

// Acknowledgement says that all up to a position is visible to an agent's verify path and its
// cache. Acknowledgements are cumulative.
//
//	{"agent": "web-1", "run": "…", "epoch": 1767225600000, "seq": 412}
type Acknowledgement struct {
	Agent string `json:"agent"`
	Run   string `json:"run"`
	Position
}

// AgentInfo is what the issuers know of one agent.
type AgentInfo struct {
	Name       string
	Run        string // of the newest process under that name
	Version    string
	Position   // acknowledged; zero: nothing yet
	Seen       time.Time
	Registered time.Time
	SealingKey []byte
	Status     json.RawMessage // the agent's own words, informative
}

// Split parts agents into those that have acknowledged pos and those that have not, by name.
func Split(agents []AgentInfo, pos Position) (applied, pending []string) {
	for _, a := range agents {
		if a.Position.Before(pos) {
			pending = append(pending, a.Name)
		} else {
			applied = append(applied, a.Name)
		}
	}
	return applied, pending
}
