package issuer

import (
	"errors"
	"mime"
	"net/http"

	"github.com/sidekey/sidekey/keyring"
)

// With issuer.cookie_refresh, three of Simple JWT's endpoints keep the refresh token in a cookie, which no script reads
// and which is sent to them alone. It never stands in a body, of an answer or of a request.

// cookieEndpoints are the endpoints that do otherwise then; nil: none do.
func (i *Issuer) cookieEndpoints() map[string]http.HandlerFunc {
	if !i.cfg.CookieRefresh {
		return nil
	}
	return map[string]http.HandlerFunc{
		"/api/token":           i.ownPage(i.cookieObtain),
		"/api/token/refresh":   i.ownPage(i.cookieRefresh),
		"/api/token/blacklist": i.ownPage(i.cookieBlacklist),
	}
}

// ownPage lets a POST through only if it can come from no page of another origin: the browser does not say so, and
// it has what such a page cannot send unasked (a body that is JSON, or X-Requested-With).
func (i *Issuer) ownPage(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
		switch {
		case crossOrigin(r):
			i.refuseCSRF(w, r, "CSRF Failed: the request comes from another origin.")
		case r.Method == http.MethodPost && kind != "application/json" && r.Header.Get("X-Requested-With") == "":
			i.refuseCSRF(w, r, "CSRF Failed: send the body as application/json, or the header X-Requested-With.")
		default:
			next(w, r)
		}
	}
}

func (i *Issuer) refuseCSRF(w http.ResponseWriter, r *http.Request, text string) {
	i.refusal(r.Context(), "browser request refused", "route", r.Pattern, "problem", text)
	writeJSON(w, http.StatusForbidden, detail{text})
}

// cookieAnswer is what stays in the body.
type cookieAnswer struct {
	Access string `json:"access"`
}

func (i *Issuer) cookieObtain(w http.ResponseWriter, r *http.Request) {
	i.simple(endpoint{required: []string{"username", "password"}, answer: func(r *http.Request, in map[string]string) (any, error) {
		t, err := i.Login(r.Context(), Credentials{Username: in["username"], Password: in["password"], Address: clientAddress(r)})
		if err != nil {
			return nil, err
		}
		i.setRefreshCookie(w, t)
		return cookieAnswer{t.Access}, nil
	}})(w, r)
}

func (i *Issuer) cookieRefresh(w http.ResponseWriter, r *http.Request) {
	i.withRefreshCookie(w, r, func(token string) (any, error) {
		t, err := i.Refresh(r.Context(), token)
		if err != nil {
			return nil, err
		}
		i.setRefreshCookie(w, t)
		return cookieAnswer{t.Access}, nil
	})
}

func (i *Issuer) cookieBlacklist(w http.ResponseWriter, r *http.Request) {
	i.withRefreshCookie(w, r, func(token string) (any, error) {
		if err := i.EndWith(r.Context(), token); err != nil {
			return nil, err
		}
		i.clearRefreshCookie(w)
		return struct{}{}, nil
	})
}

func (i *Issuer) setRefreshCookie(w http.ResponseWriter, t *Tokens) {
	i.setCookie(w, http.Cookie{Name: refreshCookie, Value: t.Refresh, Path: refreshPath, HttpOnly: true, SameSite: http.SameSiteStrictMode}, t.RefreshUntil)
}

func (i *Issuer) clearRefreshCookie(w http.ResponseWriter) { i.setRefreshCookie(w, &Tokens{}) }

// withRefreshCookie answers a POST with what call gives for the cookie's token. A cookie that is refused is taken away.
func (i *Issuer) withRefreshCookie(w http.ResponseWriter, r *http.Request, call func(token string) (any, error)) {
	if r.Method == http.MethodPost && !i.refuseBodyRefresh(w, r) {
		return
	}
	i.simple(endpoint{answer: func(r *http.Request, _ map[string]string) (any, error) {
		token, err := cookie(r, refreshCookie)
		if err != nil || token == "" {
			return nil, keyring.Deny(keyring.Malformed, "", errors.New("there is no refresh cookie, or more than one"))
		}
		answer, err := call(token)
		if keyring.ReasonOf(err) != "" || errors.Is(err, ErrNoAccount) {
			i.clearRefreshCookie(w)
		}
		return answer, err
	}})(w, r)
}

// refuseBodyRefresh answers a request whose body has a refresh token, or cannot be read; true: it may go on, and its
// body is empty.
func (i *Issuer) refuseBodyRefresh(w http.ResponseWriter, r *http.Request) bool {
	data, err := readBody(r)
	var body *bodyError
	if errors.As(err, &body) {
		writeJSON(w, body.status, detail{body.detail})
		return false
	}
	fields, status, problems := parseFields(r.Header.Get("Content-Type"), data)
	if problems == nil && fields["refresh"] != nil {
		status, problems = http.StatusBadRequest, fieldErrors{{"refresh", "Not accepted in a body: it is read from its cookie."}}
	}
	if problems != nil {
		writeJSON(w, status, problems)
		return false
	}
	r.Body = http.NoBody
	return true
}
