package agent

import (
	"bytes"
	"fmt"
	"net/http"
	"runtime"
	"runtime/debug"
	"strconv"

	"github.com/valyala/fasthttp"

	"github.com/sidekey/sidekey/bus/trace"
)

// The routes, as they stand in the request line (API.md §3).
const (
	routeVerify     = "/v1/verify"
	routeBatch      = "/v1/verify/batch"
	routeStatus     = "/v1/status"
	routeIntrospect = "/oauth2/introspect"
	routeSimpleJWT  = "/api/token/verify"
	routeJWKS       = "/.well-known/jwks.json"
	routeHealth     = "/healthz"
	routeReady      = "/readyz"
	routeMetrics    = "/metrics"
)

// Header fields and values that are written to most answers, in the form that fasthttp copies.
var (
	fieldCacheControl = []byte("Cache-Control")
	fieldChallenge    = []byte("WWW-Authenticate")
	fieldRetryAfter   = []byte("Retry-After")
	valueNoStore      = []byte("no-store")
	typeJSON          = []byte("application/json")
	typeProblem       = []byte("application/problem+json")
)

// route is a path and what answers it.
type route struct {
	name      string                  // as the metrics have it
	get, post fasthttp.RequestHandler // nil: not allowed; get answers HEAD as well
	any       fasthttp.RequestHandler // for every method, instead of both
	allow     string                  // RFC 9110 §10.2.1
	refuse    func(ctx *fasthttp.RequestCtx, status int, detail string)
	requests  routeCounters
}

// faces are the ways in to the agent over HTTP: the routes, and the answers made beforehand.
type faces struct {
	routes    map[string]*route
	elsewhere *route // for every path that is none: 404
	realm     string // `Bearer realm="…"`, a bare challenge (RFC 6750 §3.1)
}

func newFaces(a *Agent) faces {
	f := faces{routes: make(map[string]*route), realm: `Bearer realm="` + a.cfg.Realm + `"`}
	add := func(name string, get, post fasthttp.RequestHandler) *route {
		r := &route{name: name, get: get, post: post, refuse: writeProblem, requests: a.metrics.route(name)}
		switch {
		case get != nil && post != nil:
			r.allow = "GET, HEAD, POST"
		case get != nil:
			r.allow = "GET, HEAD"
		case post != nil:
			r.allow = "POST"
		}
		return r
	}
	f.routes[routeVerify] = add(routeVerify, a.verifyGet, a.verifyPost)
	f.routes[routeBatch] = add(routeBatch, nil, a.verifyBatch)
	f.routes[routeIntrospect] = add(routeIntrospect, nil, a.introspect)
	f.routes[routeSimpleJWT] = add(routeSimpleJWT, nil, a.simpleJWT)
	f.routes[routeSimpleJWT].refuse = writeDetail
	f.routes[routeSimpleJWT+"/"] = f.routes[routeSimpleJWT]
	f.routes[routeJWKS] = add(routeJWKS, a.serveJWKS, nil)
	f.routes[routeMetrics] = add(routeMetrics, a.metrics.handler, nil)
	f.routes[routeCheck] = add(routeCheck, nil, a.serveCheck)
	for path, p := range profiles {
		f.routes[path] = add(path, nil, nil)
		f.routes[path].any = a.forwardAuth(p)
	}
	for path, answer := range a.ops() {
		f.routes[path] = add(path, func(ctx *fasthttp.RequestCtx) { answer().write(ctx) }, nil)
	}
	f.elsewhere = add("other", nil, nil)
	return f
}

// Handler gives the handler of all the agent's routes, for a server of the caller's own. Server
// has the bounds that go with it.
func (a *Agent) Handler() fasthttp.RequestHandler { return a.serve }

// path is the raw target up to its query. It is judged as it was sent: nothing decodes or
// collapses it, so no two spellings reach one route.
func path(target []byte) []byte {
	if i := bytes.IndexByte(target, '?'); i >= 0 {
		return target[:i]
	}
	return target
}

// prefixEnvoy is what Envoy puts before the path of the original request.
var prefixEnvoy = []byte(routeEnvoy + "/")

// serve finds the route of a request and lets it answer.
func (a *Agent) serve(ctx *fasthttp.RequestCtx) {
	target := ctx.Request.Header.RequestURI()
	r := a.faces.routes[string(path(target))]
	if bytes.HasPrefix(target, prefixEnvoy) {
		r = a.faces.routes[routeEnvoy]
	}
	if r == nil {
		r = a.faces.elsewhere
	}
	defer a.finish(ctx, r)
	noStore(ctx)
	switch method := ctx.Method(); {
	case target[0] != '/':
		// An absolute-form target (RFC 9112 §3.2.2) would take the place of Host.
		writeProblem(ctx, http.StatusBadRequest, "the request target must be a path")
	case r == a.faces.elsewhere:
		writeProblem(ctx, http.StatusNotFound, "there is nothing here; see /v1/verify")
	case r.any != nil:
		r.any(ctx)
	case r.post != nil && string(method) == http.MethodPost:
		r.post(ctx)
	case r.get != nil && (string(method) == http.MethodGet || string(method) == http.MethodHead):
		r.get(ctx)
	default:
		ctx.Response.Header.Set("Allow", r.allow)
		r.refuse(ctx, http.StatusMethodNotAllowed, fmt.Sprintf("Method %q not allowed.", method))
	}
}

// finish counts the request, and turns a panic into a 500: the server would let it end the
// process. It fails closed: nothing that the handler wrote before goes out.
func (a *Agent) finish(ctx *fasthttp.RequestCtx, r *route) {
	if x := recover(); x != nil {
		ctx.Response.Reset()
		noStore(ctx)
		writeProblem(ctx, http.StatusInternalServerError, "the agent failed; its log says where")
		a.panicked(x, (*fastFields)(&ctx.Request.Header))
	}
	r.requests.count(ctx.Response.StatusCode())
	a.told(r.name, ctx.Response.StatusCode(), (*fastFields)(&ctx.Request.Header))
}

// panicked counts and logs what was recovered.
func (a *Agent) panicked(x any, of source) {
	a.metrics.panics.Inc()
	what := fmt.Sprintf("%T", x) // of a value that is not the runtime's own, the type alone: it may hold a token
	if err, ok := x.(runtime.Error); ok {
		what = err.Error()
	}
	a.log.Error("a request failed inside; this is a bug", append([]any{"panic", what, "stack", string(debug.Stack())}, traceOf(of).Pairs()...)...)
}

// told logs an answer, where so much is logged, with the trace that the request belongs to.
func (a *Agent) told(route string, status int, of source) {
	if a.log.IsDebug() {
		a.log.Debug("answered", append([]any{"route", route, "status", status}, traceOf(of).Pairs()...)...)
	}
}

// traceOf is the trace that a request says it belongs to. It is only read where something is logged, or somebody asked.
func traceOf(of source) trace.Parent {
	if of == nil {
		return trace.Parent{}
	}
	return trace.Parse(of.all(trace.Field)...)
}

func noStore(ctx *fasthttp.RequestCtx) {
	ctx.Response.Header.SetCanonical(fieldCacheControl, valueNoStore)
}

// writeProblem answers with a problem (RFC 9457): the shape of every error that no other RFC shapes.
func writeProblem(ctx *fasthttp.RequestCtx, status int, detail string) {
	ctx.Response.Header.SetContentTypeBytes(typeProblem)
	ctx.Response.SetStatusCode(status)
	ctx.Response.SetBodyRaw(appendProblem(nil, status, "", detail))
}

// appendProblem appends {"type":"about:blank","title":…,"status":…,"reason":…,"detail":…}; reason,
// a member of ours, is left out where it is "".
func appendProblem(b []byte, status int, reason, detail string) []byte {
	b = appendText(append(b, `{"type":"about:blank","title":`...), http.StatusText(status))
	b = strconv.AppendInt(append(b, `,"status":`...), int64(status), 10)
	if reason != "" {
		b = appendText(append(b, `,"reason":`...), reason)
	}
	return append(appendText(append(b, `,"detail":`...), detail), '}')
}
