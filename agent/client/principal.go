package client

import (
	"maps"
	"slices"
	"strings"
)

// Principal is whom a request is from.
type Principal struct {
	Subject string   // the user's or service's id; "" where Anonymous
	Scopes  []string // RFC 6749 §3.3
	Roles   []string
	Client  string // client_id
	Session string // sid
	Method  string // how it was proven: bearer, session, token, api_key, basic, a scheme's name, or anonymous

	// Headers are the fields by which the agent shows the principal (X-Auth-* and those of agent.headers), for what
	// this service asks of others in its turn. "" where it has no value.
	Headers map[string]string
}

// principalOf reads the agent's fields. A role holds no comma: the agent refuses one that does.
func principalOf(headers map[string]string) Principal {
	p := Principal{
		Subject: headers["X-Auth-Subject"], Client: headers["X-Auth-Client"], Session: headers["X-Auth-Session"], Method: headers["X-Auth-Method"],
		Scopes: strings.Fields(headers["X-Auth-Scope"]), Headers: headers,
	}
	if roles := headers["X-Auth-Roles"]; roles != "" {
		p.Roles = strings.Split(roles, ",")
	}
	return p
}

// Anonymous tells that a rule lets everybody pass, and nobody is known.
func (p *Principal) Anonymous() bool { return p.Subject == "" }

// HasScope tells whether all of these scopes are granted.
func (p *Principal) HasScope(scopes ...string) bool {
	for _, s := range scopes {
		if !slices.Contains(p.Scopes, s) {
			return false
		}
	}
	return true
}

// HasRole tells whether it has this role.
func (p *Principal) HasRole(role string) bool { return slices.Contains(p.Roles, role) }

func (p Principal) clone() Principal {
	p.Scopes, p.Roles, p.Headers = slices.Clone(p.Scopes), slices.Clone(p.Roles), maps.Clone(p.Headers)
	return p
}
