package issuer

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// maxAssertion is how long a client's assertion is good: so long its jti is remembered.
const maxAssertion = 5 * time.Minute

// assertionEnd is when an assertion ends here: at its exp, or maxAssertion after its iat. Some clients (Authlib) give
// each an hour, of which they need a second.
func assertionEnd(a *keyring.Assertion) time.Time {
	end := a.ExpiresAt.Time()
	if issued := a.IssuedAt.Time().Add(maxAssertion); a.IssuedAt != 0 && issued.Before(end) {
		return issued
	}
	return end
}

// proveAssertion judges what a client signed (RFC 7523 §3). rec may be nil.
func (i *Issuer) proveAssertion(rec *clientRecord, assertion string, now time.Time) (*keyring.Assertion, bool) {
	if rec == nil || len(rec.JWKS) == 0 {
		return nil, false
	}
	keys, err := keyring.ParseJWKS(rec.JWKS)
	if err != nil {
		i.log.Error("reading a client's keys", "client_id", rec.ID, "error", err)
		return nil, false
	}
	a, err := keyring.ProveAssertion(assertion, keys)
	if err != nil {
		i.log.Debug("client assertion refused", "client_id", rec.ID, "error", err)
		return nil, false
	}
	if problem := i.judgeAssertion(a, rec.ID, now); problem != "" {
		i.log.Debug("client assertion refused", "client_id", rec.ID, "problem", problem)
		return nil, false
	}
	return a, true
}

// judgeAssertion gives what is wrong with a proven assertion, "" if nothing is. Its aud must be this issuer alone: one that
// names others too could be shown here by them.
func (i *Issuer) judgeAssertion(a *keyring.Assertion, id string, now time.Time) string {
	skew := max(i.cfg.Leeway, 0)
	end := assertionEnd(a)
	switch {
	case a.Issuer != id, a.Subject != id:
		return "iss and sub are not the client"
	case len(a.Audience) != 1, a.Audience[0] != i.cfg.URL && a.Audience[0] != i.cfg.URL+"/oauth2/token":
		return "aud is not this issuer alone"
	case !now.Before(end.Add(skew)):
		return "it has expired, or its iat is more than 5 minutes ago"
	case end.After(now.Add(maxAssertion + skew)):
		return "exp is more than 5 minutes ahead, and there is no iat that bounds it"
	case a.NotBefore.Time().After(now.Add(skew)), a.IssuedAt.Time().After(now.Add(skew)):
		return "it is from the future"
	case len(a.ID) > bus.MaxID:
		return "jti is too long"
	}
	return ""
}

// usedAssertion is an assertion that was used, in the bucket "clients" under bus.Name("used", client_id, SHA-256 of its jti),
// until it has expired: {"exp":1767225900,"by":"…"}. By makes the record of each use its own.
type usedAssertion struct {
	Expires int64  `json:"exp"` // NumericDate
	By      string `json:"by"`
}

// useAssertion uses an assertion up, for all issuers of this bus: of several that are shown it, one creates the record.
// errNotProven: it was used before.
func (i *Issuer) useAssertion(ctx context.Context, id string, a *keyring.Assertion, now time.Time) error {
	jti := sha256.Sum256([]byte(a.ID))
	until := assertionEnd(a).Add(i.cfg.Leeway + 2*clockSkew)
	_, err := i.Clients.Create(ctx, bus.Name("used", id, string(jti[:])), encode(usedAssertion{until.Unix(), newID()}))
	switch {
	case errors.Is(err, bus.ErrExists):
		i.refusal(ctx, "client assertion used twice", "client_id", id)
		return errNotProven
	case err != nil:
		return unavailable("using an assertion of client", id, err)
	}
	return nil
}

// dropAssertions forgets the assertions that have expired.
func (i *Issuer) dropAssertions(ctx context.Context) error {
	recs, err := i.Clients.List(ctx, bus.Name("used")+"."+bus.Any+"."+bus.Any)
	if err != nil {
		return unavailable("listing", "used assertions", err)
	}
	for _, r := range recs {
		var used usedAssertion
		if err := json.Unmarshal(r.Value, &used); err != nil {
			return fmt.Errorf("reading record %q: %w", r.Name, err)
		}
		if used.Expires < i.now().Unix() {
			_ = i.Clients.Delete(ctx, r.Name, r.Revision) // a conflict: another issuer sweeps too
		}
	}
	return nil
}
