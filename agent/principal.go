package agent

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/strictjson"
)

// Principal is whom a credential speaks for. A Scheme makes one; Subject is required, all the rest may be
// left out. What it holds is judged like a token: revoked by ID (as a jti), Session (as a sid), Subject and
// Client, and refused from ExpiresAt on.
type Principal struct {
	Subject string   // the user's or service's id: sub
	Scope   string   // scope tokens, separated by spaces (RFC 6749 §3.3)
	Roles   []string // none may hold a comma: they become one header
	Client  string   // client_id
	Session string   // sid
	// Method is X-Auth-Method's word: bearer, session, token, api_key, basic, or the name of the scheme. It is
	// the agent's to set.
	Method string
	// ID names the credential in revocations, as a jti does; it is no secret. "": it cannot be revoked by itself.
	ID string
	// IssuedAt is when what the principal stands on began (a login, a key's making): a cutoff of subject or
	// client after it refuses the principal. Zero: it begins with the request.
	IssuedAt time.Time
	// ExpiresAt ends it. Zero: it ends with the request. With an ID or a Session that may be revoked it should
	// be set: a revocation is forgotten once no token of the issuer's could live any more.
	ExpiresAt time.Time
	// Claims are more claims, for agent.headers: strings, numbers, truth values, lists of strings.
	Claims map[string]any

	// Audience is whom the principal's token is for; AuthTime when a password was last proven, zero: not known. Rules ask
	// for them.
	Audience []string
	AuthTime time.Time

	decoded func() map[string]any // all claims of a token, decoded at the first call
	mapped  []string              // the values of agent.headers, in their order; made once it is accepted
	raw     []byte                // the claims of a token of ours, as they were signed
	// What the principal stands on, by which an answer is remembered: a token's proof, or an API key or token of the log.
	// Both nil: nothing is.
	kept *kept
	held *replica.Credential
}

// kept is what is remembered with a proof for the faces that show a principal.
type kept struct {
	Principal
	unsafe bool // it holds what cannot stand in a header
	// envoy is the answer to Envoy, encoded; made at the first ext_authz check.
	envoy atomic.Pointer[[]byte]
}

// principal gives whom a proven token speaks for, made at the first call.
func (p *proof) principal(names []string) *kept {
	if k := p.shown.Load(); k != nil {
		return k
	}
	c := &p.token.Claims
	k := &kept{Principal: Principal{
		Subject: c.Subject, Scope: c.Scope, Roles: c.Roles, Client: c.ClientID, Session: c.SessionID, ID: c.ID,
		Method: MethodBearer, IssuedAt: c.IssuedAt.Time(), ExpiresAt: c.ExpiresAt.Time(), Audience: c.Audience,
		decoded: sync.OnceValue(func() map[string]any { return decodeClaims(p.token.Believed()) }),
	}}
	if c.AuthTime != 0 {
		k.AuthTime = c.AuthTime.Time()
	}
	if p.token.Type == keyring.SessionToken {
		k.Method = MethodSession
	}
	k.kept = k
	if p.token.Accept == "" {
		k.raw = c.Raw
	}
	switch {
	case len(names) == 0:
	case p.token.Accept != "": // made elsewhere: what is not read into the claims is not believed
		k.mapped = k.mapClaims(names)
	default:
		k.mapped = mapRaw(names, c.Raw)
	}
	k.unsafe = !k.presentable()
	p.shown.Store(k)
	return k
}

// decodeClaims gives a payload's claims as rules read them. It has been read strictly before.
func decodeClaims(raw []byte) map[string]any {
	var claims map[string]any
	if json.Unmarshal(raw, &claims) != nil {
		return nil // not reached; a rule that asks for a claim finds none
	}
	return claims
}

// mapRaw reads claims out of a payload that has been read strictly before.
func mapRaw(names []string, raw []byte) []string {
	values := make([]string, len(names))
	for i, want := range names {
		if want == allClaims {
			values[i] = claimsHeader(raw)
		}
	}
	_ = strictjson.Object(raw, nil, func(name []byte, v strictjson.Value) error {
		for i, want := range names {
			if string(name) == want && want != allClaims {
				values[i] = claimText(v)
			}
		}
		return nil
	})
	return values
}

// claimText is a claim as a header has it: a string as it is, a list of strings by commas, anything else as JSON.
func claimText(v strictjson.Value) string {
	if text, ok := v.Text(); ok {
		return text
	}
	if list, ok := v.Texts(); ok {
		return joinList(list)
	}
	if v.Kind() == strictjson.KindNull {
		return ""
	}
	return string(v.Raw())
}

// mapClaims gives the values of agent.headers for a principal that came with no token.
func (p *Principal) mapClaims(names []string) []string {
	values := make([]string, len(names))
	for i, name := range names {
		values[i] = p.claim(name)
	}
	return values
}

func (p *Principal) claim(name string) string {
	switch name {
	case "sub":
		return p.Subject
	case "scope":
		return p.Scope
	case "roles":
		return joinList(p.Roles)
	case "client_id":
		return p.Client
	case "sid":
		return p.Session
	case "jti":
		return p.ID
	case allClaims:
		return claimsHeader(p.claimsJSON())
	}
	switch v := p.Claims[name].(type) {
	case nil:
		return ""
	case string:
		return v
	case []string:
		return joinList(v)
	default:
		text, err := json.Marshal(v)
		if err != nil {
			return "\x00" // which no header may hold: the request is refused
		}
		return string(text)
	}
}

// listSeparator stands between the members of a list in a header.
const listSeparator = ","

// joinList puts a list into one value. A member that holds the separator would be read as two: it makes the
// value one that no header may hold.
func joinList(list []string) string {
	switch {
	case len(list) == 0:
		return ""
	case slices.ContainsFunc(list, func(s string) bool { return strings.Contains(s, listSeparator) || !headerSafe(s) }):
		return "\x00"
	case len(list) == 1:
		return list[0]
	}
	return strings.Join(list, listSeparator)
}

// presentable tells whether all that the faces show of a principal can stand in a header as it is.
func (p *Principal) presentable() bool {
	for _, role := range p.Roles {
		if role == "" || strings.Contains(role, listSeparator) || !headerSafe(role) {
			return false
		}
	}
	for _, v := range p.mapped {
		if !headerSafe(v) {
			return false
		}
	}
	return headerSafe(p.Subject) && headerSafe(p.Scope) && headerSafe(p.Client) && headerSafe(p.Session)
}

// headerSafe tells whether a header brings s over unchanged: UTF-8 without control characters (C0, DEL, C1),
// and no space at an end, which readers cut off: "alice " must not become "alice".
func headerSafe(s string) bool {
	ascii := true
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c < ' ' || c == 0x7f:
			return false
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	if s != "" && (s[0] == ' ' || s[len(s)-1] == ' ') {
		return false
	}
	return ascii || plainUTF8(s)
}

func plainUTF8(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if r >= 0x80 && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return false
		}
	}
	return true
}

// ids are what a principal that came with no token of ours can be revoked by. seq is the position that the agent had
// applied before the principal was made: a cutoff behind it refuses the principal.
func (p *Principal) ids(seq uint64) replica.IDs {
	c := keyring.Claims{ID: p.ID, SessionID: p.Session, Subject: p.Subject, ClientID: p.Client}
	if p.IssuedAt.IsZero() {
		c.SessionSeq, c.HasSessionSeq = seq, true
	} else {
		c.IssuedAt = keyring.At(p.IssuedAt)
	}
	return replica.Fingerprint(&c)
}

// stands tells why such a principal is refused by the view, nil: it is not.
func (a *Agent) stands(at *view, p *Principal, ids *replica.IDs) *keyring.Denial {
	switch {
	case a.replica.Revoked(ids):
		return keyring.Deny(keyring.Revoked, "", nil)
	case p.ExpiresAt.IsZero():
		return nil
	case !at.now.Before(p.ExpiresAt):
		return keyring.Deny(keyring.Expired, "", nil)
	case a.replica.Forgotten(end(p.ExpiresAt, 0)):
		return keyring.Deny(keyring.Expired, "", errForgotten)
	}
	return nil
}

// check refuses a principal that cannot be meant: a fault of the scheme that made it.
func (p *Principal) check() error {
	switch {
	case p.Subject == "":
		return fmt.Errorf("it has no subject")
	case len(p.Subject) > maxPrincipal || len(p.Scope) > maxPrincipal || len(p.Client) > maxPrincipal || len(p.Session) > maxPrincipal || len(p.ID) > maxPrincipal:
		return fmt.Errorf("it has a member of more than %d bytes", maxPrincipal)
	case len(p.Roles) > maxRoles || len(p.Claims) > maxRoles:
		return fmt.Errorf("it has more than %d roles or claims", maxRoles)
	}
	return nil
}

const (
	maxPrincipal = 8 << 10 // bytes of one member, as a token could have it
	maxRoles     = 256
)
