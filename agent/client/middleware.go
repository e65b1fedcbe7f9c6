package client

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"
)

type principalKey struct{}

// FromContext gives whom a request is from; false: no Middleware of this package has let it pass. What it gives is a copy.
func FromContext(ctx context.Context) (Principal, bool) {
	p, ok := ctx.Value(principalKey{}).(*Principal)
	if !ok {
		return Principal{}, false
	}
	return p.clone(), true
}

// Middleware lets a request pass to next if the agent allows it: FromContext then says whom it is from, and the
// request's X-Auth-* fields are the agent's; those that the client sent are gone, in whatever spelling. All other requests are
// answered here with a problem (RFC 9457): 401 with the challenges, 403, 429, and 503 where there is no answer.
func (c *Client) Middleware(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q, bad := c.question(r)
		if bad != nil {
			refuse(w, &Decision{Status: bad.status, Reason: bad.reason}, bad.detail)
			return
		}
		d, err := c.Check(r.Context(), q)
		switch {
		case err != nil:
			refuse(w, &Decision{Status: http.StatusServiceUnavailable, Reason: "unavailable", RetryAfter: time.Second}, sentences[503])
		case !d.Allow:
			refuse(w, d, sentences[d.Status])
		default:
			next.ServeHTTP(w, admitted(r, &d.Principal))
		}
	})
}

// admitted is the request as the next handler may believe it.
func admitted(r *http.Request, p *Principal) *http.Request {
	r = r.WithContext(context.WithValue(r.Context(), principalKey{}, p))
	h := make(http.Header, len(r.Header)+len(p.Headers))
	for name, values := range r.Header {
		if !identity(name) {
			h[name] = values
		}
	}
	for name, value := range p.Headers {
		if h.Del(name); value != "" {
			h.Set(name, value)
		}
	}
	r.Header = h
	return r
}

// identity tells whether a field looks like one by which the agent says who somebody is. CGI and its heirs take a line
// below for a hyphen.
func identity(name string) bool {
	const prefix = "x-auth-"
	return len(name) >= len(prefix) && strings.EqualFold(strings.ReplaceAll(name[:len(prefix)], "_", "-"), prefix)
}

// sentences are what the client is told.
var sentences = map[int]string{
	http.StatusUnauthorized:       "Nobody is known by what was sent.",
	http.StatusForbidden:          "This is not allowed.",
	http.StatusTooManyRequests:    "There were too many attempts.",
	http.StatusServiceUnavailable: "Who this is from cannot be checked now.",
}

// refuse answers a request that may not pass. It says the reason and not the rule.
func refuse(w http.ResponseWriter, d *Decision, detail string) {
	h := w.Header()
	for _, challenge := range d.Challenges {
		h.Add("WWW-Authenticate", challenge)
	}
	if d.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64(d.RetryAfter/time.Second), 10))
	}
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", "application/problem+json")
	w.WriteHeader(d.Status)
	_ = json.NewEncoder(w).Encode(struct { // the client may be gone
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Reason string `json:"reason"`
		Detail string `json:"detail"`
	}{"about:blank", http.StatusText(d.Status), d.Status, d.Reason, detail})
}

// RequireScope lets pass whom all these scopes are granted, behind Middleware; others get 403, with RFC 6750's challenge if it
// was a bearer token that lacks them. A request that no Middleware has let pass is refused.
func RequireScope(scopes ...string) func(http.Handler) http.Handler {
	for _, s := range scopes {
		if s == "" || strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c == '"' || c == '\\' || c > '~' }) {
			panic("client.RequireScope: " + strconv.Quote(s) + " is no scope (RFC 6749 §3.3)")
		}
	}
	challenge := `Bearer error="insufficient_scope", scope="` + strings.Join(scopes, " ") + `"`
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p, _ := r.Context().Value(principalKey{}).(*Principal)
			if p != nil && p.HasScope(scopes...) {
				next.ServeHTTP(w, r)
				return
			}
			d := &Decision{Status: http.StatusForbidden, Reason: "insufficient_scope"}
			if p != nil && p.Method == "bearer" {
				d.Challenges = []string{challenge}
			}
			refuse(w, d, sentences[d.Status])
		})
	}
}
