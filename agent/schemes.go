package agent

import (
	"net/netip"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/replica"
	"github.com/sidekey/sidekey/keyring"
)

// bearerWay is Authorization: Bearer (RFC 6750 §2.1) with an access token.
type bearerWay struct{ *Agent }

func (w *bearerWay) judge(at *view, r *Request, d *Decision) step {
	token, mine := after(r.authorization, "bearer")
	if !mine {
		return notMine
	}
	p, err := w.standing(at, keyring.AccessToken, token, "")
	if err != nil {
		d.Verdict = d.denied(w.denial(err))
		return decided
	}
	d.show(p.principal(w.claims))
	return decided
}

func (w *bearerWay) challenge(_ *Request, refused *Decision) string {
	if refused == nil {
		return w.faces.realm
	}
	return string(w.appendChallenge(nil, &refused.Verdict, ""))
}

// show accepts a token's principal, unless no header could say who that is.
func (d *Decision) show(k *kept) {
	if k.unsafe {
		d.forbid(UnsafeClaim)
		return
	}
	d.grant(&k.Principal)
}

// sessionWay is a browser's session: the cookie __Host-sidekey_session with a session token. A cookie that is good no
// more is as none: the browser sends it whether or not somebody means it.
type sessionWay struct{ *Agent }

func (w *sessionWay) judge(at *view, r *Request, d *Decision) step {
	token, n := cookie(r.cookie, sessionCookie)
	switch {
	case n > 1:
		d.forbid(Ambiguous)
		return decided
	case token == "":
		return notMine
	}
	p, err := w.standing(at, keyring.SessionToken, token, "")
	if err != nil {
		d.refuse(w.denial(err))
		return lapsed
	}
	if reason := forged(r, p.token.Claims.CSRF); reason != "" {
		d.forbid(reason)
		return decided
	}
	d.show(p.principal(w.claims))
	return decided
}

func (*sessionWay) challenge(*Request, *Decision) string { return "" }

// credentialWay is what API keys and opaque tokens have in common: the log knows their hash.
type credentialWay struct {
	*Agent
	method string
}

// judgeText judges a credential's text.
func (w *credentialWay) judgeText(at *view, r *Request, text string, d *Decision) step {
	if len(text) > maxCredential {
		d.refuse(keyring.Deny(UnknownCredential, "", errLength))
		return decided
	}
	r.hash = bus.HashCredential(unsafeBytes(text))
	c := w.replica.Credential(&r.hash)
	if why := w.refuses(at, c, r.client); why != "" {
		d.refuse(w.denial(keyring.Deny(why, "", nil)))
		return decided
	}
	p := Principal{Method: w.method, Subject: c.Subject, Scope: c.Scope, Roles: c.Roles, Client: c.ClientID, ID: c.ID, held: c}
	if len(w.claims) > 0 {
		p.mapped = p.mapClaims(w.claims)
	}
	if !p.presentable() {
		d.forbid(UnsafeClaim)
		return decided
	}
	d.grant(&p)
	return decided
}

// maxCredential is the length of the longest credential that is looked up.
const maxCredential = 1 << 10

// refuses tells why a credential is not good by the view, "": it is.
func (w *credentialWay) refuses(at *view, c *replica.Credential, client netip.Addr) keyring.Reason {
	switch {
	case c == nil:
		return UnknownCredential
	case string(c.Type) != w.method:
		return keyring.WrongType
	case w.replica.CredentialRevoked(c):
		return keyring.Revoked
	case c.ExpiresAt != 0 && at.now.Unix() >= c.ExpiresAt:
		return keyring.Expired
	case !within(c.Networks, client):
		return WrongNetwork
	}
	return ""
}

// within tells whether a credential of these networks may be used from there. Where the proxy does not say from where,
// only one that may be used from everywhere.
func within(networks []netip.Prefix, client netip.Addr) bool {
	if len(networks) == 0 {
		return true
	}
	for _, n := range networks {
		if client.IsValid() && n.Contains(client) {
			return true
		}
	}
	return false
}

// tokenWay is Authorization: Token, as Django REST Framework's TokenAuthentication reads it.
type tokenWay struct{ credentialWay }

func (w *tokenWay) judge(at *view, r *Request, d *Decision) step {
	text, mine := after(r.authorization, "token")
	switch {
	case !mine:
		return notMine
	case text == "":
		d.refuse(keyring.Deny(keyring.Missing, "", nil))
		return decided
	}
	return w.judgeText(at, r, text, d)
}

func (*tokenWay) challenge(*Request, *Decision) string { return "Token" }

// apiKeyWay is X-API-Key. An empty one is none.
type apiKeyWay struct{ credentialWay }

func (w *apiKeyWay) judge(at *view, r *Request, d *Decision) step {
	if r.apiKey == "" {
		return notMine
	}
	return w.judgeText(at, r, r.apiKey, d)
}

func (*apiKeyWay) challenge(*Request, *Decision) string { return "" }
