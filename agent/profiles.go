package agent

import (
	"net/http"
	"net/netip"
	"strings"

	"github.com/valyala/fasthttp"
)

// The forward-auth faces: one path for the convention of each kind of proxy, so that no header of another one is ever
// believed (API.md §3).
const (
	routeAuth    = "/v1/auth/"
	routeNginx   = routeAuth + "nginx"
	routeForward = routeAuth + "forward"
	routeEnvoy   = routeAuth + "envoy" // and the original path behind it
	routeHAProxy = routeAuth + "haproxy"
)

// profile is what a kind of proxy tells of the original request, and what answers it takes.
type profile struct {
	// read fills in method, proto, host, target and client from this profile's fields only. What may not be missing and is,
	// or is there twice, makes the request faulty or doubled.
	read func(h *fasthttp.RequestHeader, r *Request)
	// status is the profile's for one that is not 200.
	status func(status int) int
	empty  bool // a denial has no body
	joined bool // the challenges stand in one field: this proxy hands on only one
}

var profiles = map[string]*profile{
	routeNginx:   {read: readOriginal, status: nginxStatus, empty: true, joined: true},
	routeForward: {read: readForwarded, status: func(status int) int { return status }},
	routeEnvoy:   {read: readEnvoy, status: fewStatus},
	routeHAProxy: {read: readOriginal, status: fewStatus, empty: true, joined: true},
}

// nginxStatus: nginx's auth_request takes 401 and 403 for what they are, and makes anything else 500.
func nginxStatus(status int) int {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return status
	case http.StatusTooManyRequests:
		return http.StatusForbidden
	}
	return http.StatusInternalServerError
}

func fewStatus(status int) int {
	if status == http.StatusTooManyRequests {
		return http.StatusForbidden
	}
	return status
}

// readOriginal reads nginx's convention: X-Original-URI, which is a path, or ingress-nginx's X-Original-URL, which is a
// whole URL. Both at once are ambiguous: one of them may be the client's own. So is a host or scheme of another field
// that contradicts the URL.
func readOriginal(h *fasthttp.RequestHeader, r *Request) {
	r.method = r.field("X-Original-Method")
	r.host, r.proto = r.field("X-Original-Host"), r.field("X-Original-Proto")
	r.client = clientAddr(r.field("X-Original-Remote-Addr"))
	uri, url := r.field("X-Original-Uri"), r.field("X-Original-Url")
	switch {
	case uri != "" && url != "":
		r.faulty = true
	case uri != "":
		r.target = uri
	case url != "":
		r.readURL(url)
		r.client = netip.Addr{} // ingress-nginx does not set the address: what is there is the client's own word
	}
	if r.host == "" {
		r.host = borrow(h.Host())
	}
}

// readURL reads an absolute URL, which tells scheme and host too; a bare path is taken as such.
func (r *Request) readURL(url string) {
	if strings.HasPrefix(url, "/") {
		r.target = url
		return
	}
	scheme, rest, ok := strings.Cut(url, "://")
	at := strings.IndexAny(rest, "/?#")
	if !ok || at <= 0 || rest[at] != '/' {
		r.faulty = true
		return
	}
	host := rest[:at]
	if r.host != "" && !strings.EqualFold(r.host, host) || r.proto != "" && r.proto != scheme {
		r.faulty = true
		return
	}
	r.proto, r.host, r.target = scheme, host, rest[at:]
}

// readForwarded reads the convention of Caddy and Traefik. Of X-Forwarded-For the last address counts: the one that the
// proxy itself has added.
func readForwarded(_ *fasthttp.RequestHeader, r *Request) {
	r.method, r.target = r.field("X-Forwarded-Method"), r.field("X-Forwarded-Uri")
	r.host, r.proto = r.field("X-Forwarded-Host"), overHTTP(r.field("X-Forwarded-Proto"))
	from := r.field("X-Forwarded-For")
	r.client = clientAddr(strings.TrimSpace(from[strings.LastIndexByte(from, ',')+1:]))
}

// overHTTP gives the scheme that a WebSocket's is opened by (RFC 6455 §3): Traefik says ws and wss of a handshake. The page that
// opens one says http and https of itself, in Origin.
func overHTTP(scheme string) string {
	switch scheme {
	case "ws":
		return "http"
	case "wss":
		return "https"
	}
	return scheme
}

// readEnvoy reads the convention of ext_authz over HTTP with the path_prefix /v1/auth/envoy: the check request is the
// original one, its path behind the prefix.
func readEnvoy(h *fasthttp.RequestHeader, r *Request) {
	r.method, r.target = borrow(h.Method()), borrow(h.RequestURI()[len(routeEnvoy):])
	r.host, r.proto = borrow(h.Host()), r.field("X-Forwarded-Proto")
	r.client = clientAddr(r.field("X-Envoy-External-Address"))
}

// readProfile makes a Request of a check request; give it back with release.
func readProfile(p *profile, h *fasthttp.RequestHeader) *Request {
	r := requests.Get().(*Request)
	r.headers = (*fastFields)(h)
	p.read(h, r)
	r.readCredentials()
	r.judgeShape()
	return r
}

// judgeShape finds out whether a request can be what a client sent.
func (r *Request) judgeShape() {
	if !validField(r.method) || !validTarget(r.target) || r.proto != "" && r.proto != "https" && r.proto != "http" || strings.ContainsAny(r.host, "/?#@, \\") {
		r.faulty = true
	}
}

// validTarget tells whether a target is a path, with or without a query, that a request line could hold.
func validTarget(target string) bool {
	if target == "" || target[0] != '/' {
		return false
	}
	for i := 0; i < len(target); i++ {
		if c := target[i]; c <= ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

// validField tells whether s is a token (RFC 9110 §5.6.2): a method, or the name of a field.
func validField(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case 'a' <= c|0x20 && c|0x20 <= 'z', '0' <= c && c <= '9', strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return true
}
