package issuer

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// The token types of RFC 8693 §3 that are known here.
const (
	typeAccess = "urn:ietf:params:oauth:token-type:access_token"
	typeJWT    = "urn:ietf:params:oauth:token-type:jwt"
)

// asked gives the audiences that a request names, by resource (RFC 8707 §2: absolute URIs without fragment) or audience
// (RFC 8693 §2.1: any name), each once.
func asked(f form) ([]string, error) {
	for _, r := range f.all("resource") {
		if u, err := url.Parse(r); err != nil || !u.IsAbs() || u.Fragment != "" {
			return nil, oauthFault(invalidTarget, "a resource must be an absolute URI without fragment")
		}
	}
	var audiences []string
	for _, aud := range slices.Concat(f.all("resource"), f.all("audience")) {
		if !slices.Contains(audiences, aud) {
			audiences = append(audiences, aud)
		}
	}
	return audiences, nil
}

// grantExchange gives a narrower token for an access token of ours (RFC 8693): never for more scope, for another audience or
// for longer. It keeps whose it is (sub, sid, session_seq, roles), so that what revokes the one revokes the other.
func (i *Issuer) grantExchange(r *http.Request, f form, c *caller) (*tokenAnswer, error) {
	if err := checkExchange(f); err != nil {
		return nil, err
	}
	var subject *keyring.Token
	err := i.vouchFor(func() (err error) {
		subject, err = i.proveAny(f.get("subject_token"))
		return err
	})
	if keyring.ReasonOf(err) != "" {
		return nil, oauthFault(invalidRequest, "the subject_token is no valid access token of this issuer") // RFC 8693 §2.2.2
	}
	if err != nil {
		return nil, err
	}
	claims, err := i.exchanged(subject, f, c)
	if err != nil {
		i.refusal(r.Context(), "token exchange refused", "client_id", c.ID, "sub", subject.Claims.Subject, "jti", subject.Claims.ID, "error", err)
		return nil, err
	}
	life := min(c.lifetime(i.cfg.AccessLifetime), subject.Claims.ExpiresAt.Time().Sub(i.now()).Truncate(time.Second))
	if life < time.Second {
		return nil, oauthFault(invalidRequest, "the subject_token has expired")
	}
	answer, err := i.issue(r.Context(), *claims, life, "token exchanged")
	if err != nil {
		return nil, err
	}
	answer.IssuedType = typeAccess
	return answer, nil
}

func checkExchange(f form) error {
	kind, wanted := f.get("subject_token_type"), f.get("requested_token_type")
	switch {
	case f.get("subject_token") == "":
		return oauthFault(invalidRequest, "the parameter subject_token is missing")
	case kind != typeAccess && kind != typeJWT:
		return oauthFault(invalidRequest, "subject_token_type must be %s", typeAccess)
	case wanted != "" && wanted != typeAccess && wanted != typeJWT:
		return oauthFault(invalidRequest, "requested_token_type must be %s", typeAccess)
	case f.get("actor_token") != "" || f.get("actor_token_type") != "":
		return oauthFault(invalidRequest, "actor tokens are not supported: the client that asks is the actor")
	}
	return nil
}

// exchanged gives the claims of the token that c gets for another, but for its id and its times.
func (i *Issuer) exchanged(t *keyring.Token, f form, c *caller) (*keyring.Claims, error) {
	from := &t.Claims
	if t.Accept != "" {
		return nil, oauthFault(invalidRequest, "the subject_token was made elsewhere: refresh it first")
	}
	audiences, err := asked(f)
	if err != nil {
		return nil, err
	}
	if len(audiences) == 0 {
		audiences = from.Audience
	}
	if !subset(audiences, from.Audience) {
		return nil, oauthFault(invalidTarget, "the audience may only be narrower than the subject_token's")
	}
	// Who is neither the client of the token nor one whom it is for has no business with it, and has it from a leak.
	if from.ClientID != c.ID && !slices.ContainsFunc(from.Audience, func(aud string) bool { return slices.Contains(c.Audiences, aud) }) {
		return nil, oauthFault(invalidRequest, "the subject_token is neither of this client nor for it")
	}
	scope := narrow(from.Scope, c.Scope)
	if asked := f.get("scope"); asked != "" {
		if !within(asked, scope) {
			return nil, oauthFault(invalidScope, "the scope may only be narrower than the subject_token's and the client's own")
		}
		scope = asked
	}
	origin := from.SubjectClientID
	switch {
	case origin == "":
		origin = from.ClientID
	case from.ClientID != c.ID:
		return nil, oauthFault(invalidRequest, "an exchanged token can be exchanged again by its own client only")
	}
	extra, err := customClaims(from.Raw, i.cfg.UserIDClaim)
	if err != nil {
		return nil, err
	}
	if origin != c.ID {
		extra["act"] = map[string]string{"sub": c.ID, "client_id": c.ID} // RFC 8693 §4.1: who acts for the subject
	}
	next := &keyring.Claims{
		Issuer: i.cfg.URL, Subject: from.Subject, Audience: audiences, SessionID: from.SessionID,
		SessionSeq: from.SessionSeq, HasSessionSeq: from.HasSessionSeq, ClientID: c.ID, ClientSeq: max(c.seq, 1), SubjectClientID: origin,
		Scope: scope, AuthTime: from.AuthTime, TokenType: "access", UserIDClaim: i.cfg.UserIDClaim, Roles: from.Roles, Extra: extra,
	}
	if from.SessionID != "" { // else it is a client's own, which is no user
		next.UserID = from.Subject
	}
	return next, nil
}

// standardClaims are those that exchanged writes anew, and act, which says who acted last.
var standardClaims = []string{
	"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "sid", "session_seq", "client_id", "scope", "auth_time",
	"token_type", "user_id", "roles", "gen", "csrf", "client_seq", "subject_client_id", "act",
}

// customClaims gives the claims of a token that mean nothing here: they go along.
func customClaims(raw []byte, userIDClaim string) (map[string]any, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, fmt.Errorf("reading the claims of a proven token: %w", err)
	}
	extra := make(map[string]any)
	for name, v := range all {
		if name != userIDClaim && !slices.Contains(standardClaims, name) {
			extra[name] = v
		}
	}
	return extra, nil
}

// proveAny is proveAccess for a token of any audience.
func (i *Issuer) proveAny(token string) (*keyring.Token, error) {
	snap := i.Replica.Snapshot()
	if !snap.Ready {
		return nil, fmt.Errorf("%w: the log has not been read yet", ErrUnavailable)
	}
	t, err := snap.Ring.Prove(token, keyring.AccessToken)
	if err != nil {
		return nil, err
	}
	audiences := t.Claims.Audience
	if t.Accept != "" { // made elsewhere: its key says for whom
		audiences = []string{i.cfg.Audience}
	}
	err = snap.Ring.Check(t, keyring.Expect{Type: keyring.AccessToken, Audiences: audiences, Leeway: i.cfg.Leeway, Now: i.now()})
	if err != nil {
		return nil, err
	}
	if ids := replica.Fingerprint(&t.Claims); i.Replica.Revoked(&ids) {
		return nil, keyring.Deny(keyring.Revoked, t.KeyID, nil)
	}
	return t, nil
}
