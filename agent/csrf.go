package agent

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/netip"
	"strings"

	"github.com/sidekey/sidekey/keyring"
)

// sessionCookie is the name of the browser's session. A browser takes a cookie of such a name only with Secure, Path=/
// and no Domain, so that no sibling host can set it (RFC 6265bis §4.1.3.2).
const sessionCookie = "__Host-sidekey_session"

// cookie finds a cookie's value in a Cookie field (RFC 6265 §4.2.1), and how many there are of that name. Nothing is
// decoded or unquoted.
func cookie(field, name string) (value string, n int) {
	for field != "" {
		var pair string
		pair, field, _ = strings.Cut(field, ";")
		key, v, ok := strings.Cut(strings.Trim(pair, " \t"), "=")
		if ok && key == name {
			value = v
			n++
		}
	}
	return value, n
}

// forged tells why a request that a browser sent with a session may not be its own page's, "": it is. hash is the
// session's csrf claim. Methods that change nothing (RFC 9110 §9.2.1) need no proof; a WebSocket, opened by a GET,
// must come from the same origin.
func forged(r *Request, hash string) keyring.Reason {
	switch r.method {
	case "GET", "HEAD", "OPTIONS", "TRACE":
		if r.field("Sec-Fetch-Mode") != "websocket" && !strings.EqualFold(r.field("Upgrade"), "websocket") {
			return ""
		}
		if !sameOrigin(r) {
			return CSRFOrigin
		}
		return ""
	}
	if !sameOrigin(r) {
		return CSRFOrigin
	}
	sent, other := r.field("X-Csrf-Token"), r.field("X-Csrftoken")
	switch {
	case sent == "" && other == "":
		return CSRFMissing
	case sent == "":
		sent = other
	case other != "" && other != sent:
		return CSRFMismatch
	}
	var text [43]byte
	sum := sha256.Sum256([]byte(sent))
	base64.RawURLEncoding.Encode(text[:], sum[:])
	if subtle.ConstantTimeCompare(text[:], []byte(hash)) != 1 { // a session without the claim: fails closed
		return CSRFMismatch
	}
	return ""
}

// sameOrigin tells whether nothing that the browser says speaks against the request's being its own page's. Both fields
// are the browser's own: no page can set them. A client that sends neither is no browser of today, and has the token to show.
func sameOrigin(r *Request) bool {
	switch r.field("Sec-Fetch-Site") {
	case "", "same-origin", "none":
	default:
		return false
	}
	if len(r.headers.all("Origin")) == 0 {
		return true
	}
	scheme, host, ok := strings.Cut(r.field("Origin"), "://")
	return ok && r.host != "" && (scheme == "https" || scheme == "http") && scheme == r.proto &&
		strings.EqualFold(withoutPort(scheme, host), withoutPort(scheme, r.host))
}

// withoutPort takes a scheme's own port off a host: browsers leave it out.
func withoutPort(scheme, host string) string {
	port := ":80"
	if scheme == "https" {
		port = ":443"
	}
	return strings.TrimSuffix(host, port)
}

// clientAddr reads an address as proxies write it: bare, or with a port. What is none is the zero Addr: not known.
func clientAddr(text string) netip.Addr {
	if addr, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return addr.Unmap().WithZone("")
	}
	if at, err := netip.ParseAddrPort(text); err == nil {
		return at.Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}
