package agent

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"unicode/utf8"

	"github.com/valyala/fasthttp"

	"github.com/sidekey/sidekey/keyring/strictjson"
)

var typeForm = []byte("application/x-www-form-urlencoded")

// introspect answers POST /oauth2/introspect (RFC 7662): form or JSON in, the claims out. Who may
// ask is decided by the connection: this host may, by loopback or unix socket. Authorization
// there is the caller's own and never the token asked about.
func (a *Agent) introspect(ctx *fasthttp.RequestCtx) {
	if !local(ctx) {
		ctx.Response.Header.SetCanonical(fieldChallenge, []byte(`Basic realm="`+a.cfg.Realm+`"`))
		writeOAuth(ctx, http.StatusUnauthorized, "invalid_client", "the caller must authenticate on this listener; use loopback or the unix socket")
		return
	}
	token, given, err := field(ctx, "token")
	switch {
	case errors.Is(err, errMedia):
		writeProblem(ctx, http.StatusUnsupportedMediaType, err.Error())
		return
	case err != nil:
		writeOAuth(ctx, http.StatusBadRequest, "invalid_request", err.Error())
		return
	case !given:
		writeOAuth(ctx, http.StatusBadRequest, "invalid_request", `the parameter "token" is required`)
		return
	}
	v := a.Verify(borrow(token), Query{})
	ctx.Response.Header.SetContentTypeBytes(typeJSON)
	switch v.Status {
	case http.StatusOK:
		ctx.Response.SetBodyRaw(v.proof.appendIntrospection(nil))
	case http.StatusServiceUnavailable:
		a.writeVerdict(ctx, &v, "")
	default: // RFC 7662 §2.2: no reason is given
		ctx.Response.SetBodyString(`{"active":false}`)
	}
}

// writeOAuth answers with an error as RFC 6749 §5.2 shapes it. The description is put as JSON;
// RFC 6749 allows it neither quotes nor backslashes, so they become apostrophes.
func writeOAuth(ctx *fasthttp.RequestCtx, status int, code, description string) {
	b := appendText([]byte(`{"error":`), code)
	d := bytes.Map(func(r rune) rune {
		if r == '"' || r == '\\' || r < ' ' || r > '~' {
			return '\''
		}
		return r
	}, []byte(description))
	b = appendText(append(b, `,"error_description":`...), string(d))
	ctx.Response.Header.SetContentTypeBytes(typeJSON)
	ctx.Response.SetStatusCode(status)
	ctx.Response.SetBodyRaw(append(b, '}'))
}

// local tells whether a request comes from this host, by a socket that only this host can reach:
// a unix socket, or loopback at both ends. Any other kind of connection is not (fails closed).
func local(ctx *fasthttp.RequestCtx) bool {
	if _, ok := ctx.LocalAddr().(*net.UnixAddr); ok {
		return true
	}
	here, ok1 := ctx.LocalAddr().(*net.TCPAddr)
	there, ok2 := ctx.RemoteAddr().(*net.TCPAddr)
	return ok1 && ok2 && here.IP.IsLoopback() && there.IP.IsLoopback()
}

var errMedia = errors.New("the body must be application/x-www-form-urlencoded or application/json")

// field reads one parameter from a form or a JSON object; others are not looked at (RFC 7662
// §2.1 has more of them). given is false if it is not there. The value may point into the body.
// errMedia: the body is of neither type. Any other error is for the client.
func field(ctx *fasthttp.RequestCtx, name string) (value []byte, given bool, err error) {
	switch {
	case bodyIs(ctx, typeForm):
		return formField(ctx, name)
	case bodyIs(ctx, typeJSON):
		v, err := jsonField(ctx.Request.Body(), name)
		if err != nil || v.Kind() == 0 {
			return nil, false, err
		}
		value, given = v.Bytes(nil)
		if !given {
			return nil, false, fmt.Errorf("%q must be a string", name)
		}
		return value, true, nil
	}
	return nil, false, errMedia
}

// formField reads a parameter that may stand only once (RFC 6749 §3.1).
func formField(ctx *fasthttp.RequestCtx, name string) ([]byte, bool, error) {
	values := ctx.PostArgs().PeekMulti(name)
	switch {
	case len(values) == 0:
		return nil, false, nil
	case len(values) > 1:
		return nil, false, fmt.Errorf("the parameter %q is there twice", name)
	case !utf8.Valid(values[0]):
		return nil, false, fmt.Errorf("the parameter %q is not UTF-8", name)
	}
	return values[0], true, nil
}

// jsonField reads one member of a JSON object; the zero Value if it is not there.
func jsonField(body []byte, name string) (strictjson.Value, error) {
	var found strictjson.Value
	err := strictjson.Object(body, []string{name}, func(n []byte, v strictjson.Value) error {
		if string(n) == name {
			found = v
		}
		return nil
	})
	if err != nil {
		return strictjson.Value{}, fmt.Errorf("the body must be one JSON object: %w", err)
	}
	return found, nil
}
