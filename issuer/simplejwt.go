package issuer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/sidekey/sidekey/keyring"
)

// The bodies, statuses and codes of djangorestframework-simplejwt 5.5, with ROTATE_REFRESH_TOKENS
// and BLACKLIST_AFTER_ROTATION on, and of the Django REST framework under it.
const (
	notValid       = "token_not_valid"
	wwwBearer      = `Bearer realm="api"`
	nonFieldErrors = "non_field_errors"
)

// routeSimpleJWT adds the four endpoints and those that are switched on, with and without the trailing slash.
func (i *Issuer) routeSimpleJWT(mux *http.ServeMux) {
	endpoints := map[string]endpoint{
		"/api/token":           {required: []string{"username", "password"}, answer: i.simpleObtain},
		"/api/token/refresh":   {required: []string{"refresh"}, answer: i.simpleRefresh},
		"/api/token/verify":    {required: []string{"token"}, answer: i.simpleVerify},
		"/api/token/blacklist": {required: []string{"refresh"}, answer: i.simpleBlacklist},
	}
	if i.cfg.Sliding {
		endpoints["/api/token/sliding"] = endpoint{required: []string{"username", "password"}, answer: i.simpleSliding}
		endpoints["/api/token/sliding/refresh"] = endpoint{required: []string{"token"}, answer: i.simpleSlidingRefresh}
	}
	if i.cfg.APITokenAuth {
		endpoints["/api-token-auth"] = i.authToken()
	}
	for path, e := range endpoints {
		handler := i.simple(e)
		if own := i.cookieEndpoints()[path]; own != nil {
			handler = own
		}
		mux.HandleFunc(path, handler)
		mux.HandleFunc(path+"/{$}", handler)
	}
}

// endpoint is one of them: the members that it requires, and what it answers.
type endpoint struct {
	required []string
	verbatim string // the one of them that keeps the blanks around it
	answer   func(r *http.Request, in map[string]string) (any, error)
}

// simple reads the body as the REST framework does, calls the endpoint and answers.
func (i *Issuer) simple(e endpoint) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Allow", "POST, OPTIONS")
		switch r.Method {
		case http.MethodPost:
		case http.MethodOptions:
			w.WriteHeader(http.StatusNoContent)
			return
		default:
			writeJSON(w, http.StatusMethodNotAllowed, detail{fmt.Sprintf("Method %q not allowed.", r.Method)})
			return
		}
		in, status, problems := readFields(r, e.required, e.verbatim)
		if problems != nil {
			writeJSON(w, status, problems)
			return
		}
		answer, err := e.answer(r, in)
		if err != nil {
			i.failSimple(w, r, err)
			return
		}
		writeJSON(w, http.StatusOK, answer)
	}
}

type detail struct {
	Detail string `json:"detail"`
}

type codedDetail struct {
	Detail string `json:"detail"`
	Code   string `json:"code"`
}

// errBlacklisted is TokenVerifySerializer's ValidationError.
//
//lint:ignore ST1005 the words are Simple JWT's
var errBlacklisted = errors.New("Token is blacklisted")

func (i *Issuer) simpleObtain(r *http.Request, in map[string]string) (any, error) {
	t, err := i.Login(r.Context(), Credentials{Username: in["username"], Password: in["password"], Address: clientAddress(r)})
	if err != nil {
		return nil, err
	}
	return struct {
		Refresh string `json:"refresh"`
		Access  string `json:"access"`
	}{t.Refresh, t.Access}, nil
}

func (i *Issuer) simpleRefresh(r *http.Request, in map[string]string) (any, error) {
	t, err := i.Refresh(r.Context(), in["refresh"])
	if err != nil {
		return nil, err
	}
	return struct {
		Access  string `json:"access"`
		Refresh string `json:"refresh"`
	}{t.Access, t.Refresh}, nil
}

// slid is the answer of the sliding endpoints, and of /api-token-auth/.
type slid struct {
	Token string `json:"token"`
}

func (i *Issuer) simpleSliding(r *http.Request, in map[string]string) (any, error) {
	t, err := i.LoginSliding(r.Context(), Credentials{Username: in["username"], Password: in["password"], Address: clientAddress(r)})
	if err != nil {
		return nil, err
	}
	return slid{t.Access}, nil
}

func (i *Issuer) simpleSlidingRefresh(r *http.Request, in map[string]string) (any, error) {
	t, err := i.RefreshSliding(r.Context(), in["token"])
	if err != nil {
		return nil, err
	}
	return slid{t.Access}, nil
}

func (i *Issuer) simpleVerify(r *http.Request, in map[string]string) (any, error) {
	err := i.Check(r.Context(), in["token"])
	if keyring.ReasonOf(err) == keyring.Revoked {
		err = errBlacklisted
	}
	return struct{}{}, err
}

func (i *Issuer) simpleBlacklist(r *http.Request, in map[string]string) (any, error) {
	return struct{}{}, i.EndWith(r.Context(), in["refresh"])
}

// failSimple is the one table from an error to Simple JWT's answer.
func (i *Issuer) failSimple(w http.ResponseWriter, r *http.Request, err error) {
	var busy *BusyError
	var denied *keyring.Denial
	switch {
	case errors.As(err, &denied):
		i.log.Debug("token refused", "route", r.Pattern, "error", denied)
		w.Header().Set("WWW-Authenticate", wwwBearer)
		writeJSON(w, http.StatusUnauthorized, codedDetail{simpleDetail(denied.Reason), notValid})
	case errors.Is(err, ErrCredentials):
		w.Header().Set("WWW-Authenticate", wwwBearer)
		writeJSON(w, http.StatusUnauthorized, detail{"No active account found with the given credentials"})
	case errors.Is(err, errUnableToLogIn):
		writeJSON(w, http.StatusBadRequest, map[string][]string{nonFieldErrors: {errUnableToLogIn.Error()}})
	case errors.Is(err, ErrNoAccount):
		w.Header().Set("WWW-Authenticate", wwwBearer)
		writeJSON(w, http.StatusUnauthorized, detail{"No active account found for the given token."})
	case errors.Is(err, ErrClaims): // the operator's to mend, not the client's to repeat
		i.log.Error("could not make a user's tokens", traced(r, "route", r.Pattern, "error", err)...)
		writeJSON(w, http.StatusInternalServerError, detail{"No token can be made for this user; the issuer's log says why."})
	case errors.Is(err, errBlacklisted):
		writeJSON(w, http.StatusBadRequest, map[string][]string{nonFieldErrors: {errBlacklisted.Error()}})
	case errors.Is(err, ErrTooManySessions):
		writeJSON(w, http.StatusTooManyRequests, detail{"Too many sessions; end one of them first."})
	case errors.Is(err, ErrTooManyCredentials):
		writeJSON(w, http.StatusTooManyRequests, detail{"Too many tokens; revoke one of them first."})
	case errors.As(err, &busy):
		w.Header().Set("Retry-After", retryAfter(busy))
		text := "The server is busy."
		if busy.Limited {
			text = throttled(retryAfter(busy))
		}
		writeJSON(w, busy.status(), detail{text})
	case errors.Is(err, context.Canceled):
		w.WriteHeader(499) // the client is gone; nobody reads this
	default:
		// Not knowing is no denial: the client keeps its token and tries again.
		i.log.Warn("could not answer a request", traced(r, "route", r.Pattern, "error", err)...)
		w.Header().Set("Retry-After", "1")
		writeJSON(w, http.StatusServiceUnavailable, detail{"The issuer cannot answer now; try again."})
	}
}

// simpleDetail gives Simple JWT's words for a refusal: tokens.py and backends.py know these.
func simpleDetail(reason keyring.Reason) string {
	switch reason {
	case keyring.Expired:
		return "Token is expired"
	case keyring.Revoked:
		return "Token is blacklisted"
	case keyring.WrongType:
		return "Token has wrong type"
	}
	return "Token is invalid"
}

func throttled(seconds string) string {
	unit := "seconds"
	if seconds == "1" {
		unit = "second"
	}
	return fmt.Sprintf("Request was throttled. Expected available in %s %s.", seconds, unit)
}

// readFields reads a body's members as the REST framework's parsers and CharField do: JSON or a
// form, numbers taken as text, blanks trimmed but for verbatim's. Where that fails it gives the status and the body
// to answer with.
func readFields(r *http.Request, required []string, verbatim string) (in map[string]string, status int, problems any) {
	data, err := readBody(r)
	var body *bodyError
	if errors.As(err, &body) {
		return nil, body.status, detail{body.detail}
	}
	fields, status, problems := parseFields(r.Header.Get("Content-Type"), data)
	if problems != nil {
		return nil, status, problems
	}
	in = make(map[string]string, len(required))
	bad := make(fieldErrors, 0, len(required))
	for _, name := range required {
		text, problem := charField(fields[name], name != verbatim)
		if problem != "" {
			bad = append(bad, fieldError{name, problem})
		}
		in[name] = text
	}
	if len(bad) > 0 {
		return nil, http.StatusBadRequest, bad
	}
	return in, 0, nil
}

// fieldErrors are written in the order of the serializer's fields: {"username":["…"],"password":["…"]}.
type fieldErrors []fieldError

type fieldError struct{ name, problem string }

func (f fieldErrors) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	for at, e := range f {
		b.WriteString([]string{"{", ","}[min(at, 1)])
		fmt.Fprintf(&b, "%q:[%q]", e.name, e.problem)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// parseFields gives the members in their JSON form; a form's values become JSON strings.
func parseFields(contentType string, data []byte) (fields map[string]json.RawMessage, status int, problems any) {
	kind, params, _ := mime.ParseMediaType(contentType)
	switch {
	case len(data) == 0:
		return nil, 0, nil
	case kind == "application/json":
		return parseJSONFields(data)
	case kind == "application/x-www-form-urlencoded":
		values, err := url.ParseQuery(string(data))
		if err != nil {
			return nil, http.StatusBadRequest, detail{"Malformed request."}
		}
		return formFields(values), 0, nil
	case kind == "multipart/form-data":
		values, err := readMultipart(data, params["boundary"])
		if err != nil {
			return nil, http.StatusBadRequest, detail{"Multipart form parse error - " + err.Error()}
		}
		return formFields(values), 0, nil
	}
	return nil, http.StatusUnsupportedMediaType, detail{fmt.Sprintf("Unsupported media type \"%s\" in request.", printableOnly(contentType))}
}

func parseJSONFields(data []byte) (fields map[string]json.RawMessage, status int, problems any) {
	var any json.RawMessage
	var syntax *json.SyntaxError
	if err := json.Unmarshal(data, &any); err != nil || !utf8.Valid(data) {
		at := 0
		if errors.As(err, &syntax) {
			at = max(int(syntax.Offset)-1, 0) // of the byte that does not fit
			if syntax.Error() == "unexpected end of JSON input" {
				at = len(data)
			}
		}
		return nil, http.StatusBadRequest, detail{"JSON parse error - " + pythonPosition(data, at)}
	}
	any = bytes.TrimSpace(any)
	if any[0] != '{' {
		text := "Invalid data. Expected a dictionary, but got " + pythonType(any) + "."
		if any[0] == 'n' {
			text = "No data provided"
		}
		return nil, http.StatusBadRequest, map[string][]string{nonFieldErrors: {text}}
	}
	if err := json.Unmarshal(any, &fields); err != nil {
		return nil, http.StatusBadRequest, detail{"Malformed request."}
	}
	return fields, 0, nil
}

// pythonPosition says where JSON ends to be JSON, as Python's json.JSONDecodeError does.
func pythonPosition(data []byte, at int) string {
	before := data[:min(at, len(data))]
	line := bytes.Count(before, []byte("\n")) + 1
	column := len(before) - bytes.LastIndexByte(before, '\n')
	return fmt.Sprintf("Expecting value: line %d column %d (char %d)", line, column, len(before))
}

func pythonType(raw json.RawMessage) string {
	switch raw[0] {
	case '[':
		return "list"
	case '"':
		return "str"
	case 't', 'f':
		return "bool"
	}
	if bytes.ContainsAny(raw, ".eE") {
		return "float"
	}
	return "int"
}

func formFields(values url.Values) map[string]json.RawMessage {
	fields := make(map[string]json.RawMessage, len(values))
	for name, all := range values {
		fields[name] = encode(all[len(all)-1]) // a QueryDict gives the last
	}
	return fields
}

// charField is the REST framework's CharField: it gives the text, or what is wrong. trim is its trim_whitespace.
func charField(raw json.RawMessage, trim bool) (text, problem string) {
	switch {
	case raw == nil:
		return "", "This field is required."
	case string(raw) == "null":
		return "", "This field may not be null."
	}
	switch raw[0] {
	case '"':
		if err := json.Unmarshal(raw, &text); err != nil {
			return "", "Not a valid string."
		}
	case '{', '[', 't', 'f':
		return "", "Not a valid string."
	default:
		text = string(raw) // a number, taken as its text
	}
	if trim {
		text = strings.TrimSpace(text)
	}
	switch {
	case text == "":
		return "", "This field may not be blank."
	case strings.ContainsRune(text, 0):
		return "", "Null characters are not allowed."
	}
	return text, ""
}

func printableOnly(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return -1
		}
		return r
	}, s)
}
