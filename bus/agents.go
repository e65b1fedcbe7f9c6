package bus

import (
	"crypto/ed25519"
	"encoding/json"
	"time"
)

// AgentInfo is what the issuers know of one agent.
type AgentInfo struct {
	Name       string
	Run        string // of the newest process under that name; "": not heard
	Version    string
	Position   // applied, by its own status; zero: not heard
	Seen       time.Time
	Joined     time.Time
	Removed    time.Time // zero: it is a member
	SigningKey ed25519.PublicKey
	SealingKey []byte
	Audiences  []string        // that it may serve, by its join token; none: the ring's default alone
	Status     json.RawMessage // the agent's own words, informative
}
