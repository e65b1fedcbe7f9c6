package agent

import (
	"fmt"
	"maps"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
)

// The fields that say who a request is from, in fasthttp's canonical form. Each is in every 200, empty where it has no
// value, so that a proxy that copies them overwrites what the client sent.
var (
	fieldSubject = []byte("X-Auth-Subject")
	fieldScope   = []byte("X-Auth-Scope")
	fieldRoles   = []byte("X-Auth-Roles")
	fieldClient  = []byte("X-Auth-Client")
	fieldSession = []byte("X-Auth-Session")
	fieldMethod  = []byte("X-Auth-Method")
	// fieldReason has a denial's reason, also where there is no body.
	fieldReason = []byte("Sidekey-Reason")
)

// ownFields are the fields of an answer that no claim may be put into, by canonical name.
var ownFields = []string{
	"X-Auth-Subject", "X-Auth-Scope", "X-Auth-Roles", "X-Auth-Client", "X-Auth-Session", "X-Auth-Method",
	"Sidekey-Reason", "Sidekey-Stale", "Connection", "Date", "Server", "Trailer", "Transfer-Encoding", "Upgrade", "Keep-Alive",
	"Www-Authenticate", "Proxy-Authenticate", "Cache-Control", "Retry-After", "Location", "Set-Cookie",
	"Authorization", "Cookie", "Host",
}

// CheckHeaders refuses what agent.headers cannot say.
func CheckHeaders(headers map[string]string) error {
	for claim, name := range headers {
		if claim == "" || !validField(name) {
			return fmt.Errorf("claim %q goes to header %q, which is no field name (RFC 9110 §5.1)", claim, name)
		}
	}
	_, _, err := newHeaders(headers)
	return err
}

// newHeaders orders agent.headers: the claims, and where each goes.
func newHeaders(headers map[string]string) (claims []string, fields [][]byte, err error) {
	for _, claim := range slices.Sorted(maps.Keys(headers)) {
		name := textproto.CanonicalMIMEHeaderKey(headers[claim])
		taken := slices.ContainsFunc(fields, func(f []byte) bool { return string(f) == name })
		if taken || slices.Contains(ownFields, name) || strings.HasPrefix(name, "Content-") {
			return nil, nil, fmt.Errorf("claim %q cannot go to header %q, which has another meaning", claim, headers[claim])
		}
		claims, fields = append(claims, claim), append(fields, []byte(name))
	}
	return claims, fields, nil
}

// forwardAuth gives the face of one profile.
func (a *Agent) forwardAuth(p *profile) fasthttp.RequestHandler {
	return func(ctx *fasthttp.RequestCtx) {
		r := readProfile(p, &ctx.Request.Header)
		defer r.release()
		a.authorize(r)
		if r.d.Serving {
			ctx.Response.Header.Set(fieldStale, "true")
		}
		if r.d.Active() {
			h := &ctx.Response.Header
			a.eachHeader(&r.d.Principal, func(name []byte, value string) { h.SetCanonical(name, unsafeBytes(value)) })
			return
		}
		a.writeDenial(ctx, p, r)
	}
}

// eachHeader calls fn with the fields that say who a request is from. All of it has been held to be presentable.
func (a *Agent) eachHeader(p *Principal, fn func(name []byte, value string)) {
	fn(fieldSubject, p.Subject)
	fn(fieldScope, p.Scope)
	fn(fieldRoles, strings.Join(p.Roles, listSeparator)) // one role is not copied
	fn(fieldClient, p.Client)
	fn(fieldSession, p.Session)
	fn(fieldMethod, p.Method)
	for i, name := range a.fields {
		fn(name, p.mapped[i])
	}
}

// outcomeOf gives the status of a decision and the challenges that go with it.
func (a *Agent) outcomeOf(r *Request) (status int, challenges []string) {
	d := &r.d
	switch status = d.Status; {
	case status == http.StatusUnauthorized:
		if challenges = a.chain.challenges(r); len(challenges) == 0 {
			status = http.StatusForbidden // RFC 9110 §15.5.2: a 401 must have one
		}
		if d.Reason == authenticationTooOld {
			addMaxAge(challenges, r.outcome.MaxAge)
		}
	case status == http.StatusForbidden && d.Reason == InsufficientScope && d.Scheme == MethodBearer: // RFC 6750 §3.1
		challenges = []string{string(a.appendChallenge(nil, &d.Verdict, r.outcome.Scope))}
	}
	return status, challenges
}

// addMaxAge tells a client how old a login may be (RFC 9470 §3).
func addMaxAge(challenges []string, seconds int64) {
	for i, c := range challenges {
		if strings.HasPrefix(c, "Bearer ") {
			challenges[i] = fmt.Sprintf(`%s, max_age="%d"`, c, seconds)
		}
	}
}

// retryAfter is the value of Retry-After, "": there is none.
func (d *Decision) retryAfter(status int) string {
	switch {
	case d.RetryAfter > 0:
		return strconv.FormatInt(int64((d.RetryAfter+time.Second-1)/time.Second), 10)
	case status == http.StatusServiceUnavailable, status == http.StatusTooManyRequests:
		return retryAfter
	}
	return ""
}

// writeDenial answers a request that is from nobody, in the profile's own way.
func (a *Agent) writeDenial(ctx *fasthttp.RequestCtx, p *profile, r *Request) {
	h, d := &ctx.Response.Header, &r.d
	status, challenges := a.outcomeOf(r)
	if p.joined && len(challenges) > 1 {
		challenges = []string{strings.Join(challenges, ", ")}
	}
	for _, c := range challenges {
		h.AddBytesK(fieldChallenge, c)
	}
	h.SetCanonical(fieldReason, unsafeBytes(string(d.Reason)))
	if after := d.retryAfter(status); after != "" {
		h.SetCanonical(fieldRetryAfter, unsafeBytes(after))
	}
	status = p.status(status)
	ctx.Response.SetStatusCode(status)
	if p.empty {
		return
	}
	h.SetContentTypeBytes(typeProblem)
	ctx.Response.SetBodyRaw(appendProblem(nil, status, string(d.Reason), d.Description))
}
