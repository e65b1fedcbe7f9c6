package agent

import (
	"crypto/sha256"
	"net/http"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// Answer says what this agent would say of a token that an issuer asks about (`sidekey token verify
// --everywhere`): by the same ring, revocations, time and lease as a request, all but the signature,
// for the token itself is not sent. A bare jti is judged by its revocation alone.
func (a *Agent) Answer(q bus.Question) bus.Answer {
	at := a.look()
	v := a.settle(&at, a.judgeQuestion(&at, &q), &Query{})
	return bus.Answer{
		Position: bus.Position{Epoch: at.snap.Position.Epoch, Seq: v.Seq},
		Status:   v.Status, Reason: string(v.Reason), Serving: v.Serving, Cached: a.cache.holds(q.Token),
	}
}

// judgeQuestion is judge, for a token of which only the claims are known.
func (a *Agent) judgeQuestion(at *view, q *bus.Question) Verdict {
	v := Verdict{Seq: at.snap.Position.Seq}
	switch {
	case !at.snap.Ready:
		return v.unavailable(Starting)
	case at.lease == nil:
		return v.unavailable(Stale)
	}
	t := question(q)
	var err error
	if len(q.Token) > 0 {
		err = at.snap.Ring.Check(t, a.expect(at, keyring.AccessToken, &[1]string{}))
	}
	ids := replica.Fingerprint(&t.Claims)
	if err == nil && a.replica.Revoked(&ids) {
		err = keyring.Deny(keyring.Revoked, t.KeyID, nil)
	}
	if err == nil && len(q.Token) > 0 && a.replica.Forgotten(end(t.Claims.ExpiresAt.Time(), a.cfg.Leeway)) {
		err = keyring.Deny(keyring.Expired, t.KeyID, errForgotten)
	}
	if err != nil {
		return v.denied(a.denial(err))
	}
	v.Status = http.StatusOK
	return v
}

// question is the token that is asked about, as far as it is told.
func question(q *bus.Question) *keyring.Token {
	c := keyring.Claims{
		Issuer: q.Issuer, Subject: q.Subject, Audience: q.Audience, ID: q.ID, SessionID: q.SessionID, ClientID: q.ClientID,
		IssuedAt: keyring.NumericDate(q.IssuedAt), NotBefore: keyring.NumericDate(q.NotBefore), ExpiresAt: keyring.NumericDate(q.ExpiresAt),
	}
	if q.SessionSeq != nil {
		c.SessionSeq, c.HasSessionSeq = *q.SessionSeq, true
	}
	return &keyring.Token{KeyID: q.KeyID, Alg: keyring.Alg(q.Alg), Type: keyring.AccessToken, Claims: c}
}

// holds tells whether the token of that hash is remembered. It looks at every one: it is for a
// person's question, and not for a request.
func (c *cache) holds(hash []byte) bool {
	if len(hash) != sha256.Size {
		return false
	}
	for _, token := range c.proofs.Keys() {
		if sha256.Sum256([]byte(token)) == [sha256.Size]byte(hash) {
			return true
		}
	}
	return false
}
