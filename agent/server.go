package agent

import (
	"bytes"
	"errors"
	"net"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/valyala/fasthttp"
)

// What a client may take of the agent. Each is a bound on something that it could let grow.
const (
	maxHeader    = 32 << 10 // bytes of request line and header fields; also the read buffer of a connection
	maxBody      = 64 << 10
	maxBatchBody = 2 << 20

	readTimeout  = 10 * time.Second // for a whole request, from its first byte (slow senders)
	writeTimeout = 10 * time.Second
	idleTimeout  = 2 * time.Minute // longer than proxies keep a connection (60 s), so that they close first
)

// Server gives a new fasthttp server with the agent's handler and every bound set; the caller
// serves one listener with it (its limit of connections counts per listener) and shuts it down.
//
// The care that fasthttp wants is taken here: it would print a request that it cannot parse,
// tokens and all; it would read a body as long as it is promised; it would pre-parse forms into
// files; and it would take any panic for the end of the process (see serve).
func (a *Agent) Server() *fasthttp.Server {
	return &fasthttp.Server{
		Handler:      a.serve,
		ErrorHandler: refuseUnreadable,
		HeaderReceived: func(h *fasthttp.RequestHeader) fasthttp.RequestConfig {
			dropBody(h)
			return fasthttp.RequestConfig{MaxRequestBodySize: bodyLimit(h)}
		},
		ExpectHandler: expect,

		ReadBufferSize:               maxHeader,
		MaxRequestBodySize:           maxBody,
		Concurrency:                  a.cfg.MaxConnections,
		ReadTimeout:                  readTimeout,
		WriteTimeout:                 writeTimeout,
		IdleTimeout:                  idleTimeout,
		CloseOnShutdown:              true,
		DisablePreParseMultipartForm: true,
		NoDefaultServerHeader:        true,
		LazyRequestTime:              true, // nothing here asks for it: it is a clock reading saved

		// Header names are normalized, fasthttp's default: "authorization" twice in two spellings
		// is then two of one field, and refused.
		DisableHeaderNamesNormalizing: false,

		SecureErrorLogMessage: true,
		Logger:                quiet{a.log},
	}
}

// quiet is the server's logger. It logs what happened and never with what: fasthttp's arguments
// hold parts of requests, also with SecureErrorLogMessage (an invalid request line, a header value).
type quiet struct{ log hclog.Logger }

// Printf implements fasthttp.Logger. A format is a constant of fasthttp's own.
func (q quiet) Printf(format string, _ ...any) {
	q.log.Debug("serving a connection", "event", format)
}

// bodyLimit is how long the request's body may be.
func bodyLimit(h *fasthttp.RequestHeader) int {
	if bytes.Equal(path(h.RequestURI()), []byte(routeBatch)) {
		return maxBatchBody
	}
	return maxBody
}

// dropBody keeps fasthttp from waiting for the body of a forward-auth request, which is never read: a proxy may announce
// the original's and not send it. What comes all the same is no request: the connection is closed after the answer.
func dropBody(h *fasthttp.RequestHeader) {
	if h.ContentLength() == 0 || h.ContentLength() == -2 || !bytes.HasPrefix(h.RequestURI(), []byte(routeAuth)) {
		return
	}
	h.SetContentLength(0)
	h.Del(fasthttp.HeaderExpect)
	h.SetConnectionClose()
}

// expect answers "Expect: 100-continue" (RFC 9110 §10.1.1): a body that is too long need not be sent.
func expect(ctx *fasthttp.RequestCtx) int {
	if ctx.Request.Header.ContentLength() > bodyLimit(&ctx.Request.Header) {
		return fasthttp.StatusRequestEntityTooLarge
	}
	return fasthttp.StatusContinue
}

// refuseUnreadable answers a request that could not be read, before the connection is closed.
func refuseUnreadable(ctx *fasthttp.RequestCtx, err error) {
	var small *fasthttp.ErrSmallBuffer
	var timeout net.Error
	noStore(ctx)
	switch {
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		writeProblem(ctx, fasthttp.StatusRequestEntityTooLarge, "the body is larger than is read here")
	case errors.As(err, &small):
		writeProblem(ctx, fasthttp.StatusRequestHeaderFieldsTooLarge, "the request line and header fields are larger than 32 KiB")
	case errors.As(err, &timeout) && timeout.Timeout():
		writeProblem(ctx, fasthttp.StatusRequestTimeout, "the request did not arrive in time")
	default:
		writeProblem(ctx, fasthttp.StatusBadRequest, "the request could not be read as HTTP/1.1")
	}
}
