package replica

import (
	"maps"
	"slices"
)

// CredentialByID gives the credential of an id as the log has it, nil: there is none. An issuer asks it; the
// request path asks Credential.
func (r *Replica) CredentialByID(id string) *Credential {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.credentials.byID[id]
}

// ListCredentials gives all credentials that the log has, in no particular order.
func (r *Replica) ListCredentials() []*Credential {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.credentials.byID))
}

// CredentialCutAt is the time of the newest cutoff of a credential's subject or client, as its issuer's clock had it;
// 0: there is none.
func (r *Replica) CredentialCutAt(c *Credential) int64 {
	cut, _ := r.cutoffs.get(c.sub)
	at := cut.Time
	if c.ClientID != "" {
		cut, _ = r.cutoffs.get(c.client)
		at = max(at, cut.Time)
	}
	return at
}
