package attacktest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Face is a way to ask an agent about a request.
type Face struct {
	Name  string
	path  string
	tells func(a *Attack) []string // the profile's own fields
	reads []string                 // fields that it reads, which a client's of that name makes ambiguous
}

// Faces are the forward-auth profiles; the check request brings the client's own fields along, as proxies do.
var Faces = []Face{
	{"nginx", "/v1/auth/nginx", original, []string{"x-original-method", "x-original-uri", "x-original-url", "x-original-host", "x-original-proto", "x-original-remote-addr"}},
	{"haproxy", "/v1/auth/haproxy", original, []string{"x-original-method", "x-original-uri", "x-original-url", "x-original-host", "x-original-proto", "x-original-remote-addr"}},
	{"forward", "/v1/auth/forward", forwarded, []string{"x-forwarded-method", "x-forwarded-uri", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-for"}},
	{"envoy", "", func(*Attack) []string {
		return []string{"X-Forwarded-Proto: https", "X-Envoy-External-Address: 192.0.2.7"}
	}, []string{"x-forwarded-proto", "x-envoy-external-address"}},
}

func original(a *Attack) []string {
	return []string{"X-Original-Method: " + a.Method, "X-Original-URI: " + a.Target, "X-Original-Host: " + a.Host, "X-Original-Proto: https", "X-Original-Remote-Addr: 192.0.2.7"}
}

func forwarded(a *Attack) []string {
	return []string{"X-Forwarded-Method: " + a.Method, "X-Forwarded-Uri: " + a.Target, "X-Forwarded-Host: " + a.Host, "X-Forwarded-Proto: https", "X-Forwarded-For: 192.0.2.7"}
}

// Request gives the bytes of the check request by which a proxy of this kind tells the agent of the attack. A line break
// of the attack's would end a field: no proxy can tell of it.
func (f *Face) Request(a *Attack, s *Scene) []byte {
	a = a.played(s)
	var b strings.Builder
	if f.path == "" {
		fmt.Fprintf(&b, "%s /v1/auth/envoy%s HTTP/1.1\r\nHost: %s\r\n", a.Method, a.Target, a.Host)
	} else {
		host := "agent"
		if a.Host == "" {
			host = "" // of which nginx's face would take that of the check
		}
		fmt.Fprintf(&b, "GET %s HTTP/1.1\r\nHost: %s\r\n", f.path, host)
	}
	for _, line := range slices.Concat(f.tells(a), a.Header, []string{"Connection: close"}) {
		b.WriteString(line + "\r\n")
	}
	b.WriteString("\r\n")
	return []byte(b.String())
}

// Collides tells whether the client sends a field that this face reads, beside the proxy's own: a second one.
func (f *Face) Collides(a *Attack) bool {
	return slices.ContainsFunc(a.Header, func(line string) bool {
		name, _, _ := strings.Cut(line, ":")
		return slices.Contains(f.reads, strings.ToLower(name))
	})
}

// InTarget tells whether the face says the attack's method and target in the request line of the check itself, where HTTP
// reads them before the agent does.
func (f *Face) InTarget() bool { return f.path == "" }

// Check gives the body of POST /v1/check. ok is false where JSON cannot say it: two fields of one spelling, bytes that are
// no UTF-8.
func Check(a *Attack, s *Scene) (body []byte, ok bool) {
	a = a.played(s)
	fields := map[string]string{}
	for _, line := range a.Header {
		name, value, _ := strings.Cut(line, ":")
		if _, twice := fields[name]; twice {
			return nil, false
		}
		fields[name] = strings.TrimPrefix(value, " ")
	}
	body, err := json.Marshal(map[string]any{"method": a.Method, "scheme": "https", "host": a.Host, "path": a.Target, "headers": fields, "source_ip": "192.0.2.7"})
	return body, err == nil && strings.ToValidUTF8(a.Target+a.Host, "") == a.Target+a.Host
}
