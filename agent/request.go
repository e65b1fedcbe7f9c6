package agent

import (
	"crypto/sha256"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/sidekey/sidekey/agent/rules"
	"github.com/sidekey/sidekey/bus/trace"
)

// Request is what a client asked of a service, as the proxy before that service tells it. A Scheme reads it while
// Authenticate runs and no longer; what it gives out are copies.
type Request struct {
	// They may point into a request's buffer; the accessors copy.
	method, proto, host, target string
	client                      netip.Addr

	headers source
	// The credentials, one of a kind: "" where there is none.
	authorization, cookie, apiKey string
	// doubled: a field that may stand once stands twice. Whatever else is found, the request is refused: what is
	// behind the proxy may read the other one.
	doubled bool
	faulty  bool // the proxy did not say what was asked for, or said it twice

	// Here, since what is handed to a scheme escapes: a request that is used again costs no garbage.
	at    view
	d     Decision
	hash  [sha256.Size]byte // of an API key or token
	asked []answered        // of the schemes that ask somebody, by their place in the chain
	envoy envoyFields       // the source of a request of ext_authz

	// What decides beside who it is, where there are rules: rule is for this request, wanted what it is given.
	named   bool   // by the set of this name, whatever the agent's own
	ruleSet string //
	rule    *rules.Rule
	wanted  rules.Request
	outcome rules.Outcome
}

// source is where a request's fields are found. The values live as long as the request.
type source interface{ all(name string) [][]byte }

// fastFields are the fields of a request that fasthttp has read.
type fastFields fasthttp.RequestHeader

func (f *fastFields) all(name string) [][]byte { return (*fasthttp.RequestHeader)(f).PeekAll(name) }

// mapFields are fields by canonical name.
type mapFields http.Header

func (f mapFields) all(name string) [][]byte {
	var all [][]byte
	for _, v := range http.Header(f).Values(name) {
		all = append(all, []byte(v))
	}
	return all
}

// trace is the trace that the request says it belongs to.
func (r *Request) trace() trace.Parent { return traceOf(r.headers) }

// NewRequest makes a Request of what a client asked for: for the test of a Scheme. target is path and query, scheme and
// host are in the form of a URL ("https", "app.example").
func NewRequest(method, scheme, host, target string, header http.Header, client netip.Addr) *Request {
	r := &Request{method: method, proto: scheme, host: host, target: target, client: client.Unmap(), headers: mapFields(header)}
	r.readCredentials()
	return r
}

// Method is the request's method, as it was sent.
func (r *Request) Method() string { return strings.Clone(r.method) }

// Scheme is "https" or "http", "" where the proxy does not say.
func (r *Request) Scheme() string { return strings.Clone(r.proto) }

// Host is the host that was asked, with its port if it was given, as it was sent.
func (r *Request) Host() string { return strings.Clone(r.host) }

// Target is path and query, as they were sent: nothing is decoded.
func (r *Request) Target() string { return strings.Clone(r.target) }

// Client is the client's address as the proxy tells it; the zero Addr where it does not.
func (r *Request) Client() netip.Addr { return r.client }

// Header is the value of a field, "" if it is not there. A field that is there twice is ambiguous: it is "" too, and
// the request is refused whatever the scheme says.
func (r *Request) Header(name string) string { return strings.Clone(r.field(name)) }

// field is Header without the copy.
func (r *Request) field(name string) string {
	all := r.headers.all(name)
	switch len(all) {
	case 0:
		return ""
	case 1:
		return borrow(all[0])
	}
	r.doubled = true
	return ""
}

// readCredentials finds the credentials. Two of one kind are ambiguous.
func (r *Request) readCredentials() {
	r.authorization = r.field(fasthttp.HeaderAuthorization)
	r.cookie = r.field(fasthttp.HeaderCookie)
	r.apiKey = r.field("X-Api-Key")
}

// script tells whether a page's script sent the request, and no person: such a one gets no challenge that would open
// the browser's dialog.
func (r *Request) script() bool {
	return len(r.headers.all("Sec-Fetch-Mode")) > 0 || len(r.headers.all("X-Requested-With")) > 0
}

// loopback tells whether the client is on the proxy's own host.
func (r *Request) loopback() bool { return r.client.IsValid() && r.client.IsLoopback() }

// answered is what a scheme that asks somebody was told, for one request.
type answered struct {
	way     int // its place in the chain
	verdict Verdict
	retry   time.Duration // of a 429
	// who is accepted, at 200, and what that can be revoked by.
	who *remembered
}

// answer finds what the scheme at that place was told.
func (r *Request) answer(way int) *answered {
	for i := range r.asked {
		if r.asked[i].way == way {
			return &r.asked[i]
		}
	}
	return nil
}

var requests = sync.Pool{New: func() any { return new(Request) }}

// release gives a request back, empty: nothing of it may be found in another one.
func (r *Request) release() {
	clear(r.asked[:cap(r.asked)])
	*r = Request{asked: r.asked[:0]}
	requests.Put(r)
}

// after is the text behind the name of an authentication scheme and the space (RFC 9110 §11.4), which may be of any
// case; mine is false for any other scheme.
func after(field, scheme string) (rest string, mine bool) {
	if len(field) < len(scheme) || !strings.EqualFold(field[:len(scheme)], scheme) {
		return "", false
	}
	rest = field[len(scheme):]
	if rest == "" {
		return "", true
	}
	if rest[0] != ' ' {
		return "", false // another scheme, which begins alike
	}
	return strings.TrimLeft(rest, " "), true
}
