package issuer

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/sidekey/sidekey/keyring"
)

// tokenAnswer is RFC 6749 §5.1's, with RFC 8693 §2.2.1's issued_token_type.
type tokenAnswer struct {
	Access     string `json:"access_token"`
	IssuedType string `json:"issued_token_type,omitempty"`
	Type       string `json:"token_type"`
	ExpiresIn  int64  `json:"expires_in"`
	Refresh    string `json:"refresh_token,omitempty"`
	Scope      string `json:"scope,omitempty"`
}

// oauthToken is POST /oauth2/token.
func (i *Issuer) oauthToken(r *http.Request, f form, c *caller) (any, error) {
	kind := f.get("grant_type")
	grants := map[string]func(*http.Request, form, *caller) (*tokenAnswer, error){
		grantClient: i.grantClient, grantRefresh: i.grantRefresh, grantExchange: i.grantExchange,
	}
	if i.cfg.AllowPasswordGrant {
		grants[grantPassword] = i.grantPassword
	}
	serve := grants[kind]
	switch {
	case kind == "":
		return nil, oauthFault(invalidRequest, "the parameter grant_type is missing")
	case serve == nil:
		return nil, oauthFault(unsupportedGrant, "this issuer has no such grant")
	case !validScope(f.get("scope")):
		return nil, oauthFault(invalidScope, "the scope is malformed (RFC 6749 §3.3)")
	case !c.proven && (kind == grantClient || kind == grantExchange):
		return nil, errClient(len(r.Header.Values("Authorization")) > 0) // nobody has said who it is
	case !slices.Contains(c.Grants, kind):
		return nil, oauthFault(unauthorizedClient, "this client may not use this grant")
	}
	answer, err := serve(r, f, c)
	i.metrics.oauthTokens.WithLabelValues(kind, outcome(err)).Inc()
	return answer, err
}

// grantClient gives a client a token of its own (RFC 6749 §4.4): no session, so no sid and no refresh token, but session_seq,
// so that cutoffs refuse it.
func (i *Issuer) grantClient(r *http.Request, f form, c *caller) (*tokenAnswer, error) {
	scope, err := c.grantable(f.get("scope"))
	if err != nil {
		return nil, err
	}
	audiences, err := asked(f)
	if err != nil {
		return nil, err
	}
	if len(audiences) == 0 {
		audiences = c.Audiences[:1]
	}
	if !subset(audiences, c.Audiences) {
		return nil, oauthFault(invalidTarget, "this client gets no tokens for that audience")
	}
	claims := keyring.Claims{
		Issuer: i.cfg.URL, Subject: c.ID, Audience: audiences, ClientID: c.ID, Scope: scope, TokenType: "access", Roles: c.Roles,
		SessionSeq: c.seq, HasSessionSeq: true,
	}
	return i.issue(r.Context(), claims, c.lifetime(i.cfg.AccessLifetime), "client token issued")
}

// issue signs an access token that no session stands behind, and answers with it. It is one that this issuer has a lease for.
func (i *Issuer) issue(ctx context.Context, claims keyring.Claims, life time.Duration, what string) (*tokenAnswer, error) {
	settle := i.vouch()
	key, err := i.signer(ctx, claims.Audience[0])
	if err != nil {
		return nil, err
	}
	if key.Alg().Symmetric() && len(claims.Audience) > 1 {
		return nil, oauthFault(invalidTarget, "a token has one audience here: the keys are HS256")
	}
	now := i.now()
	claims.ID = newID()
	claims.IssuedAt, claims.NotBefore, claims.ExpiresAt = keyring.At(now), keyring.At(now), keyring.At(now.Add(life))
	token, err := key.Sign(keyring.AccessToken, claims)
	if err != nil {
		return nil, err
	}
	if err := settle(); err != nil { // one that stood still meanwhile may have signed with a key retired since
		return nil, err
	}
	i.event(ctx, what, "sub", claims.Subject, "client_id", claims.ClientID, "sid", claims.SessionID, "jti", claims.ID, "kid", key.ID())
	return &tokenAnswer{Access: token, Type: "Bearer", ExpiresIn: int64(claims.ExpiresAt - claims.IssuedAt), Scope: claims.Scope}, nil
}

// grantRefresh is RFC 6749 §6, with the single use of Refresh.
func (i *Issuer) grantRefresh(r *http.Request, f form, c *caller) (*tokenAnswer, error) {
	token := f.get("refresh_token")
	if token == "" {
		return nil, oauthFault(invalidRequest, "the parameter refresh_token is missing")
	}
	if err := i.onlyOwnAudience(f); err != nil {
		return nil, err
	}
	return i.answerTokens(i.refreshFor(r.Context(), token, ask{client: c, scope: f.get("scope")}))
}

// grantPassword is RFC 6749 §4.3, for who cannot do without it.
func (i *Issuer) grantPassword(r *http.Request, f form, c *caller) (*tokenAnswer, error) {
	name, password := f.get("username"), f.get("password")
	if name == "" || password == "" {
		return nil, oauthFault(invalidRequest, "the parameters username and password are needed")
	}
	if err := i.onlyOwnAudience(f); err != nil {
		return nil, err
	}
	credentials := Credentials{Username: name, Password: password, Address: clientAddress(r)}
	tokens, err := i.loginFor(r.Context(), credentials, func(u *userRecord) (grant, error) {
		scope := u.Scope
		if c.registered() {
			scope = narrow(scope, c.Scope)
		}
		if !within(f.get("scope"), scope) {
			return grant{}, oauthFault(invalidScope, "the scope is more than the user and the client have")
		}
		if f.get("scope") != "" {
			scope = f.get("scope")
		}
		return grant{ClientID: c.ID, Scope: scope, Client: c}, nil
	})
	i.metrics.logins.WithLabelValues(outcome(err)).Inc()
	return i.answerTokens(tokens, err)
}

// onlyOwnAudience: a session's tokens are for the issuer's audience; exchange and HS256 have their own rules.
func (i *Issuer) onlyOwnAudience(f form) error {
	audiences, err := asked(f)
	if err == nil && !subset(audiences, []string{i.cfg.Audience}) {
		err = oauthFault(invalidTarget, "the tokens of a session are for %s", i.cfg.Audience)
	}
	return err
}

func (i *Issuer) answerTokens(t *Tokens, err error) (*tokenAnswer, error) {
	if err != nil {
		return nil, err
	}
	left := int64(t.ExpiresAt.Sub(i.now()).Round(time.Second) / time.Second)
	return &tokenAnswer{Access: t.Access, Type: "Bearer", ExpiresIn: left, Refresh: t.Refresh, Scope: t.Scope}, nil
}

// grantable gives the scope that a client gets when it asks for scope: what it has where it asks for none.
func (c *caller) grantable(scope string) (string, error) {
	if scope == "" {
		return c.Scope, nil
	}
	if !within(scope, c.Scope) {
		return "", oauthFault(invalidScope, "the scope is more than this client has")
	}
	return scope, nil
}

func subset(some, all []string) bool {
	return !slices.ContainsFunc(some, func(s string) bool { return !slices.Contains(all, s) })
}
