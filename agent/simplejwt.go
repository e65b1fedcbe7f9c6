package agent

import (
	"bytes"
	"fmt"
	"net/http"

	"github.com/valyala/fasthttp"

	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/strictjson"
)

// simpleJWT answers POST /api/token/verify/ as djangorestframework-simplejwt 5.5 does: 200 {},
// 401 token_not_valid, and Django REST Framework's own bodies for what it cannot read. A refresh
// token is not valid here, as everywhere on an agent: only issuers can read one.
func (a *Agent) simpleJWT(ctx *fasthttp.RequestCtx) {
	value, refusal := simpleJWTToken(ctx)
	if refusal != nil {
		writeDRF(ctx, refusal.status, refusal.body)
		return
	}
	v := a.Verify(borrow(value), Query{})
	switch v.Status {
	case http.StatusOK:
		writeDRF(ctx, http.StatusOK, "{}")
	case http.StatusServiceUnavailable:
		ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, retryAfter)
		writeDRF(ctx, v.Status, fmt.Sprintf(`{"detail":"Token cannot be verified now.","code":%q}`, v.Reason))
	default:
		ctx.Response.Header.SetCanonical(fieldChallenge, []byte(`Bearer realm="api"`))
		writeDRF(ctx, http.StatusUnauthorized, fmt.Sprintf(`{"detail":%q,"code":"token_not_valid"}`, simpleJWTDetail(v.Reason)))
	}
}

// simpleJWTDetail is Simple JWT's sentence for a reason.
func simpleJWTDetail(reason keyring.Reason) string {
	switch reason {
	case keyring.Expired:
		return "Token is expired"
	case keyring.WrongType:
		return "Token has wrong type"
	case keyring.Revoked:
		return "Token is blacklisted"
	}
	return "Token is invalid"
}

// drf is a refusal of Django REST Framework's serializers and parsers.
type drf struct {
	status int
	body   string
}

func badToken(sentence string) *drf {
	return &drf{http.StatusBadRequest, fmt.Sprintf(`{"token":[%q]}`, sentence)}
}

// simpleJWTToken reads the field "token" as a CharField does: trimmed, not blank, a number taken
// for its digits.
func simpleJWTToken(ctx *fasthttp.RequestCtx) ([]byte, *drf) {
	var v []byte
	switch {
	case bodyIs(ctx, typeForm):
		values := ctx.PostArgs().PeekMulti("token")
		if len(values) == 0 {
			return nil, badToken("This field is required.")
		}
		v = values[len(values)-1] // as Django's QueryDict
	case bodyIs(ctx, typeJSON):
		found, err := jsonField(ctx.Request.Body(), "token")
		if err != nil {
			return nil, &drf{http.StatusBadRequest, `{"detail":"JSON parse error - the body must be one JSON object"}`}
		}
		switch found.Kind() {
		case strictjson.KindString:
			v, _ = found.Bytes(nil)
		case strictjson.KindNumber:
			v = found.Raw()
		case 0:
			return nil, badToken("This field is required.")
		case strictjson.KindNull:
			return nil, badToken("This field may not be null.")
		default:
			return nil, badToken("Not a valid string.")
		}
	case len(ctx.Request.Body()) == 0:
		return nil, badToken("This field is required.")
	default:
		media := string(appendText(nil, "Unsupported media type \""+printable(ctx.Request.Header.ContentType())+"\" in request."))
		return nil, &drf{http.StatusUnsupportedMediaType, `{"detail":` + media + `}`}
	}
	if v = bytes.TrimSpace(v); len(v) == 0 {
		return nil, badToken("This field may not be blank.")
	}
	return v, nil
}

// printable bounds a header's value for an answer.
func printable(b []byte) string {
	return string(bytes.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, clip(b)))
}

// writeDetail answers with an error of Django REST Framework: {"detail": …}.
func writeDetail(ctx *fasthttp.RequestCtx, status int, detail string) {
	writeDRF(ctx, status, string(append(appendText([]byte(`{"detail":`), detail), '}')))
}

func writeDRF(ctx *fasthttp.RequestCtx, status int, body string) {
	ctx.Response.Header.SetContentTypeBytes(typeJSON)
	ctx.Response.SetStatusCode(status)
	ctx.Response.SetBodyString(body)
}
