package issuer

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	_ "embed" // for the page
	"encoding/base64"
	"errors"
	"html/template"
	"net/http"
	"net/url"
	"strings"
	"time"
)

//go:embed login.html
var loginHTML string

var loginTemplate = template.Must(template.New("login").Parse(loginHTML))

// loginStyle is the page's style. The page's policy names its hash, so that no other style is taken.
const loginStyle = `
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 0; }
main { box-sizing: border-box; max-width: 24rem; margin: 10vh auto 0; padding: 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; }
label { display: block; margin: 1rem 0 .25rem; }
input, button { box-sizing: border-box; width: 100%; font: inherit; padding: .6rem; }
button { margin-top: 1.5rem; cursor: pointer; }
[role=alert] { border-left: .25rem solid #c00; margin: 0; padding: .5rem .75rem; }
`

// loginPolicy lets the page load nothing, run nothing, be framed by nobody, and send its form to its own origin only.
var loginPolicy = func() string {
	sum := sha256.Sum256([]byte(loginStyle))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
}()

// loginPage is what the page shows.
type loginPage struct {
	Username, Next string
	Problem        string // what went wrong; "": nothing yet
	FormToken      string
	Style          template.CSS
}

// formTokenLife is how long a browser keeps what binds the login form to it.
const formTokenLife = 12 * time.Hour

func (i *Issuer) showLogin(w http.ResponseWriter, r *http.Request) {
	i.writeLogin(w, r, http.StatusOK, loginPage{Next: localPath(r.URL.Query().Get("next"), "/")})
}

// writeLogin answers with the page, and sees that the browser has the cookie that its form is bound to.
func (i *Issuer) writeLogin(w http.ResponseWriter, r *http.Request, status int, page loginPage) {
	secret, err := cookie(r, loginCookie)
	if err != nil || len(secret) != len(newCSRF()) {
		secret = newCSRF()
	}
	i.setCookie(w, http.Cookie{Name: loginCookie, Value: secret, HttpOnly: true}, i.now().Add(formTokenLife))
	page.FormToken, page.Style = formToken(secret), loginStyle
	var b bytes.Buffer
	if err := loginTemplate.Execute(&b, page); err != nil {
		panic(err) // it is a string in every place
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", loginPolicy)
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "same-origin") // with no-referrer the form's Origin would be null
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	if status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", wwwSession)
	}
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // the client may be gone
}

// formToken is what the form carries of a browser whose cookie holds this secret. A page of another origin can neither
// read the cookie nor set it, so it cannot log its visitor in as somebody else.
func formToken(secret string) string {
	sum := sha256.Sum256([]byte("sidekey login form\x00" + secret))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func (i *Issuer) logInByForm(w http.ResponseWriter, r *http.Request) {
	form, err := readPageForm(r, "username", "password", "next", "form_token")
	if err != nil {
		i.failBrowser(w, r, err)
		return
	}
	page := loginPage{Username: form.Get("username"), Next: localPath(form.Get("next"), "/")}
	secret, err := cookie(r, loginCookie)
	if err != nil || secret == "" || subtle.ConstantTimeCompare([]byte(form.Get("form_token")), []byte(formToken(secret))) != 1 {
		i.refusal(r.Context(), "login form refused", "problem", "it is not bound to this browser")
		page.Problem = "This form has expired, or your browser keeps no cookies. Please try again."
		i.writeLogin(w, r, http.StatusForbidden, page)
		return
	}
	if strings.TrimSpace(page.Username) == "" || form.Get("password") == "" {
		page.Problem = "Enter your user name and your password."
		i.writeLogin(w, r, http.StatusBadRequest, page)
		return
	}
	b, err := i.loginBrowser(r, page.Username, form.Get("password"))
	if err != nil {
		i.writeLoginProblem(w, r, err, page)
		return
	}
	i.setSessionCookies(w, b)
	i.setCookie(w, http.Cookie{Name: loginCookie, HttpOnly: true}, time.Time{})
	w.Header().Set("Location", page.Next)
	w.WriteHeader(http.StatusSeeOther)
}

// writeLoginProblem shows the page again with what went wrong.
func (i *Issuer) writeLoginProblem(w http.ResponseWriter, r *http.Request, err error, page loginPage) {
	var busy *BusyError
	status := http.StatusServiceUnavailable
	switch {
	case errors.Is(err, ErrCredentials):
		status, page.Problem = http.StatusUnauthorized, "The user name or the password is not right."
	case errors.Is(err, ErrTooManySessions):
		status, page.Problem = http.StatusTooManyRequests, "You are signed in too many times already. Sign out somewhere else first."
	case errors.As(err, &busy):
		status = busy.status()
		w.Header().Set("Retry-After", retryAfter(busy))
		page.Problem = "Too many attempts. Please wait " + retryAfter(busy) + " s and try again."
	default:
		i.log.Warn("could not answer a request", traced(r, "route", r.Pattern, "error", err)...)
		w.Header().Set("Retry-After", "1")
		page.Problem = "Signing in is not possible at the moment. Please try again."
	}
	i.writeLogin(w, r, status, page)
}

// maxNext bounds where a login leads to.
const maxNext = 2048

// localPath gives next if it is a path of the same origin, else otherwise: a login leads nowhere else. It takes printable
// ASCII that begins with one slash, without backslashes, which browsers read as slashes, and without empty or dot segments.
func localPath(next, otherwise string) string {
	if len(next) > maxNext || !strings.HasPrefix(next, "/") ||
		strings.ContainsFunc(next, func(c rune) bool { return c <= ' ' || c > '~' || c == '\\' }) {
		return otherwise
	}
	u, err := url.Parse(next)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || u.Opaque != "" {
		return otherwise
	}
	path, _, _ := strings.Cut(next, "?")
	path, _, _ = strings.Cut(path, "#")
	segments := strings.Split(path[1:], "/")
	for at, segment := range segments {
		if segment == "." || segment == ".." || segment == "" && at < len(segments)-1 {
			return otherwise
		}
	}
	return next
}
