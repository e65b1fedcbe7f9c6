package bus

import (
	"crypto/ed25519"
	"encoding/json"
	"time"
)

// Registration is how an agent makes itself known, at each start:
//
//	{"agent": "web-1", "run": "…", "version": "v1.0.0", "signing_key": "base64", "sealing_key": "base64"}
type Registration struct {
	Agent      string `json:"agent"` // its name, unique in the fleet
	Run        string `json:"run"`   // this process: a random id
	Version    string `json:"version"`
	SigningKey []byte `json:"signing_key"` // public, Ed25519: its lease requests and acknowledgements are signed with it
	SealingKey []byte `json:"sealing_key"` // public, MLKEM768X25519: HS256 secrets are sealed to it
}

// AgentInfo is what the issuers know of one agent.
type AgentInfo struct {
	Name       string
	Run        string // of the newest process under that name
	Version    string
	Position   // applied, by its own status; zero: not heard
	Seen       time.Time
	Registered time.Time
	SigningKey ed25519.PublicKey
	SealingKey []byte
	Status     json.RawMessage // the agent's own words, informative
}
