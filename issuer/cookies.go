package issuer

import (
	"net/http"
	"time"
)

// The cookies, as API.md §4 names them. The __Host- prefix has the browser refuse one that is not Secure, not for "/",
// or set for a whole domain, so that no neighbouring host can plant one (RFC 6265bis §4.1.3.2).
const (
	sessionCookie = "__Host-sidekey_session"   // a session token; no script reads it
	csrfCookie    = "__Host-sidekey_csrf"      // the CSRF token, for the page's scripts
	loginCookie   = "__Host-sidekey_login"     // what binds the login form to this browser
	refreshCookie = "__Secure-sidekey_refresh" // where issuer.cookie_refresh is on
	refreshPath   = "/api/token/"              // it is sent nowhere else
)

// setCookie sets one that lives until a time; one that is past takes the cookie away.
func (i *Issuer) setCookie(w http.ResponseWriter, c http.Cookie, until time.Time) {
	c.Secure = true
	if c.Path == "" {
		c.Path = "/"
	}
	if c.SameSite == 0 {
		c.SameSite = http.SameSiteLaxMode
	}
	if c.MaxAge = int(until.Sub(i.now()) / time.Second); c.MaxAge <= 0 {
		c.MaxAge, c.Value = -1, "" // is written as Max-Age=0
	}
	http.SetCookie(w, &c)
}

// setSessionCookies gives a browser its session. The cookies live no longer than the session token.
func (i *Issuer) setSessionCookies(w http.ResponseWriter, b *BrowserSession) {
	i.setCookie(w, http.Cookie{Name: sessionCookie, Value: b.Token, HttpOnly: true}, unix(b.Expires))
	i.setCSRFCookie(w, b)
}

func (i *Issuer) setCSRFCookie(w http.ResponseWriter, b *BrowserSession) {
	i.setCookie(w, http.Cookie{Name: csrfCookie, Value: b.CSRF}, unix(b.Expires))
}

func (i *Issuer) clearSessionCookies(w http.ResponseWriter) {
	i.setCookie(w, http.Cookie{Name: sessionCookie, HttpOnly: true}, time.Time{})
	i.setCookie(w, http.Cookie{Name: csrfCookie}, time.Time{})
}

// cookie gives the value of the one cookie of a name; "": there is none. Two of them are refused: a browser keeps one
// of a __Host- name, so the other was put in by somebody else.
func cookie(r *http.Request, name string) (string, error) {
	switch all := r.CookiesNamed(name); len(all) {
	case 0:
		return "", nil
	case 1:
		return all[0].Value, nil
	}
	return "", &InputError{name, "is there more than once"}
}
