package replica

import "crypto/sha256"

// CredentialByID gives the credential of an id as the log has it, nil: there is none. An issuer asks it; the
// request path asks Credential.
func (r *Replica) CredentialByID(id string) *Credential {
	r.mu.Lock()
	defer r.mu.Unlock()
	hash, ok := r.credentials.hashes[id]
	if !ok {
		return nil
	}
	held, ok := r.credentials.byHash.Load([sha256.Size]byte(hash))
	if !ok {
		return nil
	}
	return held.(*Credential)
}

// ListCredentials gives all credentials that the log has, in no particular order.
func (r *Replica) ListCredentials() []*Credential {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]*Credential, 0, len(r.credentials.hashes))
	for _, hash := range r.credentials.hashes {
		if held, ok := r.credentials.byHash.Load([sha256.Size]byte(hash)); ok {
			all = append(all, held.(*Credential))
		}
	}
	return all
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
