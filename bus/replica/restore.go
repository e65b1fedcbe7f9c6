package replica

import "github.com/sidekey/sidekey/bus"

// What a restore does with the state that a backup has, before anybody reads it.

// ForgetKeys drops the keys that drop chooses, with no trace: a token of theirs is of an unknown key.
func (r *Replica) ForgetKeys(drop func(*bus.KeyFact) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := *r.tip
	for _, f := range r.keysLocked() {
		if drop(f) {
			delete(r.keys, f.KeyID)
			next.Ring = next.Ring.Without(f.KeyID)
		}
	}
	r.publish(&next)
}

// Unite adds what is withdrawn in more, and takes nothing back: revocations, cutoffs, and, where more is ahead, the
// credentials that it has no longer. Of keys and of new credentials it takes none, so more need not be trusted for that. It
// tells how many revocations there are more, and how many credentials fewer.
func (r *Replica) Unite(more *Replica) (revocations, credentials int) {
	more.mu.Lock()
	at := more.tip.cursor()
	h, packed := more.collectLocked(at)
	more.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	was, had := r.Revocations(), len(r.credentials.all())
	r.loadRevocations(h, packed)
	for _, c := range r.credentials.all() {
		if r.idRevoked(c.Fact.ID) {
			r.credentials.revoke(c.Fact.ID)
		}
	}
	r.credentials.removeIf(func(c *Credential) bool { return c.withdrawn.Load() || r.cutOff(c) })
	if r.tip.Position.Before(at.Position) {
		held := make(map[string]bool, len(h.Credentials))
		for _, c := range h.Credentials {
			held[c.Fact.ID] = true
		}
		r.credentials.removeIf(func(c *Credential) bool { return !held[c.ID] })
	}
	return r.Revocations() - was, had - len(r.credentials.all())
}
