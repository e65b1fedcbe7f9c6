package agent

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/sidekey/sidekey/keyring/strictjson"
)

const routeCheck = "/v1/check"

var checkMembers = []string{"method", "scheme", "host", "path", "headers", "source_ip"}

// maxCheckHeaders is how many fields a check may bring along.
const maxCheckHeaders = 128

// serveCheck answers POST /v1/check: what the forward-auth faces would say of a request that is described in JSON, for a
// service that asks by itself. It is 200 whatever the decision, also where there is none to be had (API.md §3).
func (a *Agent) serveCheck(ctx *fasthttp.RequestCtx) {
	if !bodyIs(ctx, typeJSON) {
		writeProblem(ctx, http.StatusUnsupportedMediaType, "the body must be JSON, with Content-Type: application/json")
		return
	}
	r, err := readCheck(ctx.Request.Body())
	if err != nil {
		writeProblem(ctx, http.StatusBadRequest, err.Error())
		return
	}
	a.authorize(r)
	if r.d.Serving {
		ctx.Response.Header.Set(fieldStale, "true")
	}
	ctx.Response.Header.SetContentTypeBytes(typeJSON)
	ctx.Response.SetBodyRaw(a.appendCheck(nil, r))
}

// readCheck reads the description of a request. The error is for the caller.
func readCheck(body []byte) (*Request, error) {
	r := &Request{}
	fields := make(http.Header)
	err := strictjson.Object(body, checkMembers, func(name []byte, v strictjson.Value) error {
		if string(name) == "headers" {
			return readCheckHeaders(fields, v)
		}
		text, ok := v.Text()
		if !ok {
			return fmt.Errorf("%q must be a string", clip(name))
		}
		switch string(name) {
		case "method":
			r.method = text
		case "scheme":
			r.proto = text
		case "host":
			r.host = text
		case "path":
			r.target = text
		case "source_ip":
			addr, err := netip.ParseAddr(text)
			if err != nil {
				return errors.New(`"source_ip" must be an IP address`)
			}
			r.client = addr.Unmap().WithZone("")
		default:
			return fmt.Errorf("the body has an unknown member %q", clip(name))
		}
		return nil
	})
	var bad *strictjson.Error
	switch {
	case errors.As(err, &bad):
		return nil, fmt.Errorf("the body must be one JSON object: %w", err)
	case err != nil:
		return nil, err
	}
	r.headers = mapFields(fields)
	r.readCredentials()
	r.judgeShape()
	return r, nil
}

// readCheckHeaders reads {"Name": "value"}. Two names that differ in case only are one field that stands there twice.
func readCheckHeaders(fields http.Header, v strictjson.Value) error {
	if v.Kind() != strictjson.KindObject {
		return errors.New(`"headers" must be an object of strings`)
	}
	n := 0
	return strictjson.Object(v.Raw(), nil, func(name []byte, v strictjson.Value) error {
		text, ok := v.Text()
		switch n++; {
		case n > maxCheckHeaders:
			return fmt.Errorf(`"headers" may hold at most %d`, maxCheckHeaders)
		case !validField(string(name)):
			return fmt.Errorf("%q is no name of a field (RFC 9110 §5.1)", clip(name))
		case !ok || strings.ContainsAny(text, "\r\n\x00"):
			return fmt.Errorf("field %q must be a string that a field can hold", clip(name))
		}
		fields.Add(string(name), text)
		return nil
	})
}

// appendCheck appends the answer:
//
//	{"decision": "deny", "status": 401, "reason": "missing", "rule": "api", "set": "base", "detail": "", "subject": "", "headers": {}, "www_authenticate": ["…"], "seq": 412}
//
// set, only there where the rule is of one that the log hands out; and, with 429 and 503, "retry_after" in seconds.
func (a *Agent) appendCheck(b []byte, r *Request) []byte {
	d := &r.d
	status, challenges := a.outcomeOf(r)
	b = append(b, `{"decision":"`...)
	if d.Active() {
		b = append(b, `allow"`...)
	} else {
		b = append(b, `deny"`...)
	}
	b = strconv.AppendInt(append(b, `,"status":`...), int64(status), 10)
	b = appendText(append(b, `,"reason":`...), string(d.Reason))
	rule, set := "", ""
	if r.rule != nil {
		rule, set = r.rule.Name, r.rule.Set
	}
	b = appendText(append(b, `,"rule":`...), rule)
	if set != "" {
		b = appendText(append(b, `,"set":`...), set)
	}
	b = appendText(append(b, `,"detail":`...), r.outcome.Detail)
	b = appendText(append(b, `,"subject":`...), d.Principal.Subject)
	b = append(b, `,"headers":{`...)
	if d.Active() {
		a.eachHeader(&d.Principal, func(name []byte, value string) {
			b = appendText(append(appendText(b, borrow(name)), ':'), value)
			b = append(b, ',')
		})
		b = b[:len(b)-1]
	}
	b = append(b, `},"www_authenticate":[`...)
	for i, c := range challenges {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendText(b, c)
	}
	b = append(b, ']')
	if after := d.retryAfter(status); after != "" {
		b = append(append(b, `,"retry_after":`...), after...)
	}
	b = strconv.AppendUint(append(b, `,"seq":`...), d.Seq, 10)
	return append(b, '}')
}
