package issuer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net"
	"net/http"
	"reflect"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/strictjson"
)

// maxBody bounds every request's body but that of a set of rules.
const maxBody = 64 << 10

// bodyLimit is the bound for a request: rules are text, which JSON makes longer.
func bodyLimit(r *http.Request) int64 {
	if r.URL.Path == rulesPath {
		return maxRulesBody
	}
	return maxBody
}

// PublicHandler serves what clients call: Simple JWT's endpoints, the JWK Set, a user's own
// devices; and health and metrics, unless Config says that they have a listener of their own.
func (i *Issuer) PublicHandler() http.Handler {
	mux := http.NewServeMux()
	i.routeSimpleJWT(mux)
	i.routeDevices(mux)
	i.routeOAuth(mux)
	i.routeBrowser(mux)
	mux.HandleFunc("GET /.well-known/jwks.json", i.serveJWKS)
	if !i.cfg.OpsApart {
		i.routeOps(mux)
	}
	mux.HandleFunc("/", elsewhere(mux))
	return i.guard(mux)
}

// OpsHandler serves GET /healthz, /readyz and /metrics.
func (i *Issuer) OpsHandler() http.Handler {
	mux := http.NewServeMux()
	i.routeOps(mux)
	mux.HandleFunc("/", elsewhere(mux))
	return i.guard(mux)
}

func (i *Issuer) routeOps(mux *http.ServeMux) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := i.Ready(); err != nil {
			w.Header().Set("Retry-After", "1")
			writeJSON(w, http.StatusServiceUnavailable, map[string]string{"status": "starting", "reason": err.Error()})
			return
		}
		writeJSON(w, http.StatusOK, map[string]string{"status": "ready"})
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(i.Registry, promhttp.HandlerOpts{}))
}

// guard is around every route: bounds on the body, headers that every answer has, the count, and
// an answer of 500 where a handler panics, so that it fails closed.
func (i *Issuer) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w := &statusWriter{ResponseWriter: rw}
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		r = r.WithContext(WithOrigin(r.Context(), i.requestOrigin(r)))
		r.Body = http.MaxBytesReader(w, r.Body, bodyLimit(r))
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler {
					panic(p)
				}
				i.log.Error("a request panicked", traced(r, "route", r.Pattern, "panic", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))...)
				if w.status == 0 {
					problem(w, http.StatusInternalServerError, "this is a fault of the issuer; its log says more")
				}
			}
			i.metrics.count(r.Pattern, w.status)
		}()
		next.ServeHTTP(w, r)
	})
}

// serveJWKS gives the public keys (RFC 7517 §5): announced, active and retiring ones, never a
// symmetric key. Anybody may ask, also a page of another origin.
func (i *Issuer) serveJWKS(w http.ResponseWriter, r *http.Request) {
	snap := i.Replica.Snapshot()
	w.Header().Set("Access-Control-Allow-Origin", "*")
	if !snap.Ready {
		w.Header().Set("Retry-After", "1")
		problem(w, http.StatusServiceUnavailable, "the issuer is starting")
		return
	}
	set := snap.Ring.JWKS()
	sum := sha256.Sum256(set)
	w.Header().Set("ETag", `"`+hex.EncodeToString(sum[:16])+`"`)
	w.Header().Set("Cache-Control", "public, max-age=300")
	w.Header().Set("Content-Type", "application/jwk-set+json")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(set)) // answers If-None-Match
}

func notFound(w http.ResponseWriter, r *http.Request) {
	problem(w, http.StatusNotFound, fmt.Sprintf("there is no %q here", r.URL.Path))
}

// writeJSON answers with a value of ours, without the escaping that is meant for HTML.
func writeJSON(w http.ResponseWriter, status int, v any) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err) // every value that is answered has a JSON
	}
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json")
	}
	w.WriteHeader(status)
	_, _ = w.Write(bytes.TrimSuffix(b.Bytes(), []byte("\n"))) // the client may be gone
}

// problem answers with RFC 9457's application/problem+json.
func problem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	writeJSON(w, status, struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail,omitempty"`
	}{"about:blank", http.StatusText(status), status, detail})
}

// fail is the one table from an error of this package to a problem. What it does not know is this
// issuer's fault: the log has the cause, the client does not.
func (i *Issuer) fail(w http.ResponseWriter, r *http.Request, err error) {
	var input *InputError
	var body *bodyError
	var busy *BusyError
	var denied *keyring.Denial
	var conflict *ConflictError
	switch {
	case errors.As(err, &conflict):
		problem(w, http.StatusConflict, conflict.Error())
	case errors.As(err, &body):
		problem(w, body.status, body.Error())
	case errors.As(err, &input):
		problem(w, http.StatusBadRequest, input.Error())
	case errors.As(err, &denied):
		problem(w, http.StatusBadRequest, "the token is refused: "+string(denied.Reason))
	case errors.As(err, &busy):
		w.Header().Set("Retry-After", retryAfter(busy))
		problem(w, busy.status(), busy.Error())
	case errors.Is(err, ErrNotFound):
		problem(w, http.StatusNotFound, err.Error())
	case errors.Is(err, ErrExists), errors.Is(err, ErrElsewhere), errors.Is(err, bus.ErrOwnRemoval), errors.Is(err, ErrTooManyCredentials):
		problem(w, http.StatusConflict, err.Error())
	case errors.Is(err, ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		i.log.Warn("could not answer a request", traced(r, "route", r.Pattern, "error", err)...)
		w.Header().Set("Retry-After", "1")
		problem(w, http.StatusServiceUnavailable, ErrUnavailable.Error())
	case errors.Is(err, context.Canceled):
		w.WriteHeader(499) // the client is gone; nobody reads this
	default:
		i.log.Error("a request failed", traced(r, "route", r.Pattern, "error", err)...)
		problem(w, http.StatusInternalServerError, "this is a fault of the issuer; its log says more")
	}
}

func (e *BusyError) status() int {
	if e.Limited {
		return http.StatusTooManyRequests
	}
	return http.StatusServiceUnavailable
}

func retryAfter(e *BusyError) string {
	return strconv.Itoa(int(math.Ceil(e.RetryAfter.Seconds())))
}

// bodyError is a request body that cannot be read as what it should be.
type bodyError struct {
	status int
	detail string
}

func (e *bodyError) Error() string { return e.detail }

// readBody reads a body whole, within maxBody.
func readBody(r *http.Request) ([]byte, error) {
	data, err := io.ReadAll(r.Body)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, &bodyError{http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", tooLarge.Limit)}
	case err != nil:
		return nil, &bodyError{http.StatusBadRequest, "the body could not be read"}
	}
	return data, nil
}

// readJSON reads a body strictly into the struct that to points to: one JSON object, no member
// twice, and none that the struct does not name exactly. An empty body leaves it as it is.
func readJSON(r *http.Request, to any) error {
	data, err := readBody(r)
	if err != nil || len(data) == 0 {
		return err
	}
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind != "application/json" {
		return &bodyError{http.StatusUnsupportedMediaType, fmt.Sprintf("the body must be application/json, not %q", r.Header.Get("Content-Type"))}
	}
	known := members(reflect.TypeOf(to).Elem())
	unknown := ""
	err = strictjson.Object(data, nil, func(name []byte, _ strictjson.Value) error {
		if !known[string(name)] && unknown == "" {
			unknown = string(name)
		}
		return nil
	})
	if err != nil {
		return &bodyError{http.StatusBadRequest, "the body is not one strict JSON object: " + err.Error()}
	}
	if unknown != "" {
		return &bodyError{http.StatusBadRequest, fmt.Sprintf("unknown member %q", unknown)}
	}
	var wrong *json.UnmarshalTypeError
	switch err := json.Unmarshal(data, to); {
	case errors.As(err, &wrong):
		return &bodyError{http.StatusBadRequest, fmt.Sprintf("member %q may not be a %s", jsonMember(known, wrong.Field), wrong.Value)}
	case err != nil:
		return &bodyError{http.StatusBadRequest, "the body is not as it should be"}
	}
	return nil
}

// jsonMember takes from a field's path the names of embedded Go structs, which no client knows.
func jsonMember(known map[string]bool, path string) string {
	for {
		first, rest, more := strings.Cut(path, ".")
		if known[first] || !more {
			return path
		}
		path = rest
	}
}

// members are the names that a request's struct gives its fields, embedded ones included.
func members(t reflect.Type) map[string]bool {
	names := make(map[string]bool)
	for f := range t.Fields() {
		if f.Anonymous {
			for name := range members(f.Type) {
				names[name] = true
			}
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		names[name] = true
	}
	return names
}

// clientAddress is the address of the client: what guard has found, else where the connection comes from.
func clientAddress(r *http.Request) string {
	if o := originOf(r.Context()); o.Address != "" {
		return o.Address
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return host
}

// bearer gives the token of Authorization: Bearer (RFC 6750 §2.1); "": there is none, or two.
func bearer(r *http.Request) string {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return ""
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}
