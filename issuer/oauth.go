package issuer

import (
	"context"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/sidekey/sidekey/keyring"
)

// routeOAuth adds the endpoints of OAuth 2 and their metadata.
func (i *Issuer) routeOAuth(mux *http.ServeMux) {
	mux.HandleFunc("/oauth2/token", i.oauth(i.oauthToken))
	mux.HandleFunc("/oauth2/revoke", i.oauth(i.oauthRevoke))
	mux.HandleFunc("/oauth2/introspect", i.oauth(i.oauthIntrospect))
	i.routeMetadata(mux)
}

// oauthError is an error as RFC 6749 §5.2 shapes it. The description is safe to show.
type oauthError struct {
	status      int
	code        string
	description string
	challenge   bool // with WWW-Authenticate: Basic
}

func (e *oauthError) Error() string { return e.code + ": " + e.description }

// oauthFault is one with status 400.
func oauthFault(code, format string, args ...any) error {
	return &oauthError{status: http.StatusBadRequest, code: code, description: fmt.Sprintf(format, args...)}
}

// The codes of RFC 6749 §5.2, RFC 8707 §2 and, for what cannot be decided now, RFC 6749 §4.1.2.1.
const (
	invalidRequest     = "invalid_request"
	invalidClient      = "invalid_client"
	invalidGrant       = "invalid_grant"
	unauthorizedClient = "unauthorized_client"
	unsupportedGrant   = "unsupported_grant_type"
	invalidScope       = "invalid_scope"
	invalidTarget      = "invalid_target"
	notNow             = "temporarily_unavailable"
)

// form are the parameters of a request. One that is empty is as one that is not there (RFC 6749 §3.1).
type form url.Values

func (f form) get(name string) string {
	if v := f[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

func (f form) all(name string) []string { return f[name] }

// repeatable are the parameters that may stand more than once (RFC 8707 §2, RFC 8693 §2.1).
var repeatable = map[string]bool{"resource": true, "audience": true}

// maxParameters bounds one request's.
const maxParameters = 64

// readForm reads the parameters, which stand in the body and nowhere else: what is in a URL is in logs.
func readForm(r *http.Request) (form, error) {
	if r.URL.RawQuery != "" || r.URL.ForceQuery {
		return nil, oauthFault(invalidRequest, "parameters belong into the body, not behind the URL")
	}
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind != "application/x-www-form-urlencoded" {
		return nil, oauthFault(invalidRequest, "the body must be application/x-www-form-urlencoded")
	}
	data, err := readBody(r)
	if err != nil {
		return nil, err
	}
	values, err := url.ParseQuery(string(data))
	if err != nil {
		return nil, oauthFault(invalidRequest, "the body is no form")
	}
	f, n := make(form, len(values)), 0
	for name, all := range values {
		n += len(all)
		if len(all) > 1 && !repeatable[name] {
			return nil, oauthFault(invalidRequest, "the parameter %q is there twice", clipped(name))
		}
		for _, v := range all {
			if !utf8.ValidString(v) {
				return nil, oauthFault(invalidRequest, "the parameter %q is not UTF-8", clipped(name))
			}
			if v != "" {
				f[name] = append(f[name], v)
			}
		}
	}
	if n > maxParameters {
		return nil, oauthFault(invalidRequest, "there are more than %d parameters", maxParameters)
	}
	return f, nil
}

// clipped bounds a name from outside for an answer.
func clipped(name string) string { return name[:min(len(name), 64)] }

// oauth reads a request's form, finds out who asks, calls serve and answers.
func (i *Issuer) oauth(serve func(*http.Request, form, *caller) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		answer, err := func() (any, error) {
			if r.Method != http.MethodPost {
				w.Header().Set("Allow", http.MethodPost)
				return nil, &oauthError{http.StatusMethodNotAllowed, invalidRequest, "this takes POST only", false}
			}
			f, err := readForm(r)
			if err != nil {
				return nil, err
			}
			c, err := i.identify(r, f)
			if err != nil {
				return nil, err
			}
			return serve(r, f, c)
		}()
		if err != nil {
			i.failOAuth(w, r, err)
			return
		}
		w.Header().Set("Pragma", "no-cache") // RFC 6749 §5.1; no-store is there already
		writeJSON(w, http.StatusOK, answer)
	}
}

// failOAuth is the one table from an error of this package to an OAuth answer.
func (i *Issuer) failOAuth(w http.ResponseWriter, r *http.Request, err error) {
	e := i.oauthErrorOf(w, r, err)
	if e.challenge {
		w.Header().Set("WWW-Authenticate", `Basic realm="sidekey", charset="UTF-8"`)
	}
	writeJSON(w, e.status, struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}{e.code, descriptionText(e.description)})
}

func (i *Issuer) oauthErrorOf(w http.ResponseWriter, r *http.Request, err error) *oauthError {
	var e *oauthError
	var body *bodyError
	var input *InputError
	var busy *BusyError
	var denied *keyring.Denial
	switch {
	case errors.As(err, &e):
		return e
	case errors.As(err, &body):
		return &oauthError{body.status, invalidRequest, body.detail, false}
	case errors.As(err, &input):
		return &oauthError{http.StatusBadRequest, invalidRequest, input.Error(), false}
	case errors.As(err, &denied):
		i.log.Debug("token refused", "route", r.Pattern, "error", denied)
		return &oauthError{http.StatusBadRequest, invalidGrant, denied.Description(), false}
	case errors.Is(err, ErrCredentials):
		return &oauthError{http.StatusBadRequest, invalidGrant, "No active account has these credentials.", false}
	case errors.Is(err, ErrNoAccount):
		return &oauthError{http.StatusBadRequest, invalidGrant, "No active account was found for the token.", false}
	case errors.Is(err, ErrTooManySessions):
		return &oauthError{http.StatusTooManyRequests, notNow, ErrTooManySessions.Error(), false}
	case errors.As(err, &busy):
		w.Header().Set("Retry-After", retryAfter(busy))
		return &oauthError{busy.status(), notNow, busy.Error(), false}
	case errors.Is(err, context.Canceled):
		return &oauthError{499, notNow, "the client is gone", false} // nobody reads this
	}
	// Not knowing is no denial: the client keeps its token and tries again.
	i.log.Warn("could not answer a request", traced(r, "route", r.Pattern, "error", err)...)
	w.Header().Set("Retry-After", "1")
	return &oauthError{http.StatusServiceUnavailable, notNow, ErrUnavailable.Error(), false}
}

// descriptionText makes a text what RFC 6749 §5.2 allows: printable ASCII without quotes and backslashes.
func descriptionText(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '"' || r == '\\' || r < ' ' || r > '~' {
			return '\''
		}
		return r
	}, s)
}
