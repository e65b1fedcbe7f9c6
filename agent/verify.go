package agent

import (
	"bytes"
	"net/http"
	"strconv"

	"github.com/valyala/fasthttp"

	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/strictjson"
)

// retryAfter is when a caller may ask again that was told 503, in seconds: a full sync and a gap
// in the log are mended in less.
const retryAfter = "1"

// fieldStale says, where it is true, that the agent answered without a lease.
const fieldStale = "Sidekey-Stale"

// maxBatch is the greatest number of tokens in one batch.
const maxBatch = 1000

// verifyGet answers GET /v1/verify: the token is in Authorization, and nothing else is asked.
func (a *Agent) verifyGet(ctx *fasthttp.RequestCtx) {
	if len(ctx.Request.Body()) > 0 {
		writeProblem(ctx, http.StatusBadRequest, "a GET has no body here; use POST")
		return
	}
	a.verifyHeader(ctx)
}

// verifyPost answers POST /v1/verify: the token is in a JSON body or, that being empty, in Authorization.
func (a *Agent) verifyPost(ctx *fasthttp.RequestCtx) {
	body := ctx.Request.Body()
	if len(body) == 0 {
		a.verifyHeader(ctx)
		return
	}
	if len(ctx.Request.Header.PeekAll(fasthttp.HeaderAuthorization)) > 0 {
		writeProblem(ctx, http.StatusBadRequest, "there are two credentials, in the body and in Authorization; send one")
		return
	}
	if !bodyIs(ctx, typeJSON) {
		writeProblem(ctx, http.StatusUnsupportedMediaType, "the body must be JSON, with Content-Type: application/json")
		return
	}
	var r request
	if err := r.read(body, verifyMembers); err != nil {
		writeProblem(ctx, http.StatusBadRequest, err.Error())
		return
	}
	v := a.Verify(borrow(r.token), r.Query)
	a.writeVerdict(ctx, &v, r.Scope)
}

// verifyHeader verifies the token in Authorization (RFC 6750 §2.1).
func (a *Agent) verifyHeader(ctx *fasthttp.RequestCtx) {
	fields := ctx.Request.Header.PeekAll(fasthttp.HeaderAuthorization)
	if len(fields) > 1 {
		writeProblem(ctx, http.StatusBadRequest, "there are two Authorization fields; send one")
		return
	}
	var token []byte
	if len(fields) == 1 {
		token = bearer(fields[0])
	}
	v := a.Verify(borrow(token), Query{})
	a.writeVerdict(ctx, &v, "")
}

// bearer is the token of an Authorization field whose scheme is Bearer (in any case, RFC 9110
// §11.1); nothing for any other scheme.
func bearer(field []byte) []byte {
	const scheme = "bearer"
	if len(field) < len(scheme) || !bytes.EqualFold(field[:len(scheme)], []byte(scheme)) {
		return nil
	}
	token := bytes.TrimLeft(field[len(scheme):], " ")
	if len(token) == len(field)-len(scheme) {
		return nil // no space: another scheme, which begins alike
	}
	return token
}

// bodyIs tells whether the body is of the media type, parameters apart, and not compressed: the
// agent unpacks nothing for a stranger.
func bodyIs(ctx *fasthttp.RequestCtx, media []byte) bool {
	if len(ctx.Request.Header.ContentEncoding()) > 0 {
		return false
	}
	got := ctx.Request.Header.ContentType()
	if i := bytes.IndexByte(got, ';'); i >= 0 {
		got = bytes.TrimRight(got[:i], " \t")
	}
	return bytes.EqualFold(got, media)
}

// writeVerdict answers as POST /v1/verify does. scope is the one that was asked for.
func (a *Agent) writeVerdict(ctx *fasthttp.RequestCtx, v *Verdict, scope string) {
	h := &ctx.Response.Header
	h.SetContentTypeBytes(typeJSON)
	ctx.Response.SetStatusCode(v.Status)
	if v.Serving {
		h.Set(fieldStale, "true")
	}
	switch v.Status {
	case http.StatusOK:
		// One copy, from the parts to the response: they belong to every request for this token.
		p := v.proof
		var seq [20]byte
		ctx.Response.AppendBody(p.head)
		ctx.Response.AppendBody(strconv.AppendUint(seq[:0], v.Seq, 10))
		ctx.Response.AppendBodyString(`,"claims":`)
		ctx.Response.AppendBody(p.token.Claims.Raw)
		ctx.Response.AppendBodyString(`}`)
		return
	case http.StatusServiceUnavailable:
		h.SetContentTypeBytes(typeProblem)
		h.SetCanonical(fieldRetryAfter, []byte(retryAfter))
	case http.StatusUnauthorized, http.StatusForbidden:
		h.SetCanonical(fieldChallenge, a.appendChallenge(nil, v, scope))
	}
	ctx.Response.SetBodyRaw(v.append(nil))
}

// appendChallenge appends the WWW-Authenticate of a denial (RFC 6750 §3). Descriptions are fixed
// sentences and scopes were judged on the way in, so that nothing in it can end a quoted string.
func (a *Agent) appendChallenge(b []byte, v *Verdict, scope string) []byte {
	b = append(b, a.faces.realm...)
	if v.Reason == keyring.Missing {
		return b // RFC 6750 §3.1: without a credential, no error
	}
	b = append(append(b, `, error="`...), errorCode(v)...)
	b = append(append(b, `", error_description="`...), v.Description...)
	if v.Status == http.StatusForbidden {
		b = append(append(b, `", scope="`...), scope...)
	}
	return append(b, '"')
}

// errorCode is RFC 6750's word for a denial.
func errorCode(v *Verdict) string {
	if v.Reason == authenticationTooOld {
		return string(authenticationTooOld) // RFC 9470 §3
	}
	if v.Status == http.StatusForbidden {
		return "insufficient_scope"
	}
	return "invalid_token"
}

// append appends the body of a verdict: of /v1/verify, and, with its status, of a batch's result.
func (v *Verdict) append(b []byte) []byte {
	switch v.Status {
	case http.StatusOK:
		return v.proof.appendAnswer(b, v.Seq)
	case http.StatusServiceUnavailable:
		return appendProblem(b, v.Status, string(v.Reason), v.Description)
	case http.StatusForbidden:
		b = append(b, `{"active":true,"error":"insufficient_scope","reason":"insufficient_scope"`...)
	default: // fails closed
		b = append(b, `{"active":false`...)
		if v.Reason != keyring.Missing {
			b = append(b, `,"error":"invalid_token"`...)
		}
		b = appendText(append(b, `,"reason":`...), string(v.Reason))
	}
	b = appendText(append(b, `,"error_description":`...), v.Description)
	b = strconv.AppendUint(append(b, `,"seq":`...), v.Seq, 10)
	return append(b, '}')
}

// verifyBatch answers POST /v1/verify/batch: 200 with a result for each token, in their order. A
// result is the body of /v1/verify with its status as the first member.
func (a *Agent) verifyBatch(ctx *fasthttp.RequestCtx) {
	if !bodyIs(ctx, typeJSON) {
		writeProblem(ctx, http.StatusUnsupportedMediaType, "the body must be JSON, with Content-Type: application/json")
		return
	}
	var r request
	if err := r.read(ctx.Request.Body(), batchMembers); err != nil {
		writeProblem(ctx, http.StatusBadRequest, err.Error())
		return
	}
	b := append(make([]byte, 0, 4<<10), `{"results":[`...)
	unavailable := false
	_ = r.tokens.Each(func(e strictjson.Value) error { // read has seen that they are all strings
		token, _ := e.Bytes(nil)
		v := a.Verify(borrow(token), r.Query)
		unavailable = unavailable || v.Status == http.StatusServiceUnavailable
		b = v.appendResult(b)
		return nil
	})
	if b[len(b)-1] == ',' {
		b = b[:len(b)-1]
	}
	ctx.Response.Header.SetContentTypeBytes(typeJSON)
	if unavailable {
		ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, retryAfter)
	}
	ctx.Response.SetBodyRaw(append(b, `]}`...))
}

// appendResult appends one result of a batch and a comma. A problem has its status already.
func (v *Verdict) appendResult(b []byte) []byte {
	if v.Status == http.StatusServiceUnavailable {
		return append(v.append(b), ',')
	}
	b = strconv.AppendInt(append(b, `{"status":`...), int64(v.Status), 10)
	at := len(b)
	b = v.append(b)
	b[at] = ',' // where the body's own brace opened: its members follow the status
	return append(b, ',')
}
