package issuer

import (
	"context"
	"errors"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/sidekey/sidekey/keyring"
)

// routeBrowser adds the browser sessions. They are meant to be reached under each application's own host, through its
// proxy: the answers name no host, and the cookies are those of the host that the browser sees.
func (i *Issuer) routeBrowser(mux *http.ServeMux) {
	mux.HandleFunc("GET /session", i.sameOrigin(i.showSession))
	mux.HandleFunc("GET /session/login", i.sameOrigin(i.showLogin))
	mux.HandleFunc("POST /session/login", i.sameOrigin(i.logIn))
	mux.HandleFunc("POST /session/renew", i.sameOrigin(i.renewSession))
	mux.HandleFunc("POST /session/logout", i.sameOrigin(i.logOut))
}

// origins refuses unsafe requests that a browser says, by Sec-Fetch-Site or else Origin, come from another origin.
// What says neither comes from no browser of this decade; the tokens decide about it.
var origins = http.NewCrossOriginProtection()

// crossOrigin tells whether a browser says that the page of another origin made an unsafe request. The host that Origin is
// held against is the one that the browser asked, where a trusted proxy tells it (issuer.trusted_proxies).
func crossOrigin(r *http.Request) bool {
	asked := *r
	if host := originOf(r.Context()).Host; host != "" {
		asked.Host = host
	}
	return origins.Check(&asked) != nil
}

// sameOrigin is around every route of the browser sessions.
func (i *Issuer) sameOrigin(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cross-Origin-Resource-Policy", "same-origin")
		if crossOrigin(r) {
			i.failBrowser(w, r, &CSRFError{"the request comes from another origin"})
			return
		}
		next(w, r)
	}
}

func (i *Issuer) showSession(w http.ResponseWriter, r *http.Request) {
	token, err := cookie(r, sessionCookie)
	if err != nil {
		i.failBrowser(w, r, err)
		return
	}
	if token == "" {
		i.failBrowser(w, r, errNoSession)
		return
	}
	b, err := i.Browser(r.Context(), token)
	if err != nil {
		i.failBrowser(w, r, err)
		return
	}
	if have, _ := cookie(r, csrfCookie); have != b.CSRF {
		i.setCSRFCookie(w, b) // it was lost
	}
	writeJSON(w, http.StatusOK, b)
}

// logIn takes the page's form, or JSON from a page's script.
func (i *Issuer) logIn(w http.ResponseWriter, r *http.Request) {
	if isForm(r) {
		i.logInByForm(w, r)
		return
	}
	var in struct {
		Username *string `json:"username"`
		Password *string `json:"password"`
	}
	err := readJSON(r, &in)
	switch {
	case err != nil:
	case in.Username == nil || *in.Username == "":
		err = &InputError{"username", "is missing"}
	case in.Password == nil || *in.Password == "":
		err = &InputError{"password", "is missing"}
	}
	if err != nil {
		i.failBrowser(w, r, err)
		return
	}
	b, err := i.loginBrowser(r, *in.Username, *in.Password)
	if err != nil {
		i.failBrowser(w, r, err)
		return
	}
	i.setSessionCookies(w, b)
	writeJSON(w, http.StatusOK, b)
}

// loginBrowser logs in, and ends the session that the browser had before.
func (i *Issuer) loginBrowser(r *http.Request, username, password string) (*BrowserSession, error) {
	b, err := i.LoginBrowser(r.Context(), Credentials{Username: strings.TrimSpace(username), Password: password, Address: clientAddress(r)})
	if err != nil {
		return nil, err
	}
	for _, old := range r.CookiesNamed(sessionCookie) {
		i.endReplaced(r.Context(), old.Value)
		break // one is all that a browser has
	}
	return b, nil
}

func (i *Issuer) renewSession(w http.ResponseWriter, r *http.Request) {
	token, csrf, _, err := readUnsafe(r)
	if err == nil && token == "" {
		err = errNoSession
	}
	if err != nil {
		i.failBrowser(w, r, err)
		return
	}
	b, err := i.RenewBrowser(r.Context(), token, csrf)
	if err != nil {
		i.failBrowser(w, r, err)
		return
	}
	i.setSessionCookies(w, b)
	writeJSON(w, http.StatusOK, b)
}

// logOut ends the session everywhere and takes the cookies away: 204, or, of a form, 303 to where next says. A browser
// whose session has ended already is logged out all the same.
func (i *Issuer) logOut(w http.ResponseWriter, r *http.Request) {
	token, csrf, form, err := readUnsafe(r)
	if err == nil && token != "" {
		err = i.EndBrowser(r.Context(), token, csrf)
	}
	if err != nil && keyring.ReasonOf(err) == "" {
		i.failBrowser(w, r, err)
		return
	}
	i.clearSessionCookies(w)
	if form == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Location", localPath(form.Get("next"), "login"))
	w.WriteHeader(http.StatusSeeOther)
}

// readUnsafe reads what a request that changes the session carries: the session token ("": none), and the CSRF token
// from its header or, of a form, its field csrf_token. form is nil where there is none.
func readUnsafe(r *http.Request) (token, csrf string, form url.Values, err error) {
	if token, err = cookie(r, sessionCookie); err != nil {
		return "", "", nil, err
	}
	if isForm(r) {
		if form, err = readPageForm(r, "csrf_token", "next"); err != nil {
			return "", "", nil, err
		}
		csrf = form.Get("csrf_token")
	} else if err := readJSON(r, &struct{}{}); err != nil {
		return "", "", nil, err
	}
	sent := append(r.Header.Values("X-CSRF-Token"), r.Header.Values("X-CSRFToken")...)
	if csrf != "" {
		sent = append(sent, csrf)
	}
	if len(sent) > 1 {
		return "", "", nil, &InputError{"X-CSRF-Token", "is there more than once"}
	}
	return token, strings.Join(sent, ""), form, nil
}

func isForm(r *http.Request) bool {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && kind == "application/x-www-form-urlencoded"
}

// readPageForm reads a form, whose fields of these names may each be there once. Others are not looked at.
func readPageForm(r *http.Request, names ...string) (url.Values, error) {
	data, err := readBody(r)
	if err != nil {
		return nil, err
	}
	form, err := url.ParseQuery(string(data))
	if err != nil {
		return nil, &bodyError{http.StatusBadRequest, "the body is no form"}
	}
	for _, name := range names {
		if len(form[name]) > 1 {
			return nil, &InputError{name, "is there more than once"}
		}
	}
	return form, nil
}

// errNoSession means that the browser has no session's cookie.
var errNoSession = errors.New("there is no session; log in")

// wwwSession is the challenge of a session's 401 (RFC 9110 §11.6.1 asks for one): a scheme that no browser knows, so
// that none opens a dialog.
const wwwSession = `Session realm="sidekey"`

// failBrowser is fail for the browser sessions.
func (i *Issuer) failBrowser(w http.ResponseWriter, r *http.Request, err error) {
	status, detail := sessionProblem(err)
	var denied *keyring.Denial
	switch {
	case status == 0:
		i.fail(w, r, err)
		return
	case status == http.StatusForbidden:
		i.refusal(r.Context(), "browser request refused", "route", r.Pattern, "problem", detail)
	case errors.As(err, &denied), errors.Is(err, ErrNoAccount):
		i.clearSessionCookies(w) // it will not get better
	}
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", wwwSession)
	}
	problem(w, status, detail)
}

// sessionProblem gives status and text of what only a browser session answers; 0: it is no such thing.
func sessionProblem(err error) (status int, detail string) {
	var csrf *CSRFError
	var denied *keyring.Denial
	switch {
	case errors.As(err, &csrf):
		return http.StatusForbidden, csrf.Error()
	case errors.As(err, &denied):
		return http.StatusUnauthorized, "the session is over: " + string(denied.Reason)
	case errors.Is(err, ErrCredentials), errors.Is(err, ErrNoAccount), errors.Is(err, errNoSession):
		return http.StatusUnauthorized, err.Error()
	case errors.Is(err, ErrTooManySessions):
		return http.StatusTooManyRequests, err.Error()
	case errors.Is(err, context.Canceled):
		return 0, ""
	}
	return 0, ""
}
