package attacktest

import (
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
)

// CheckRequest gives the check request by which Envoy tells the agent of the attack over gRPC. Its fields are a map, those of one
// name joined by a comma; or with raw (encode_raw_headers) a list that has each as it came. Names are in lower case in both. What is
// no UTF-8 a message cannot hold: Envoy has put "!" there, but for the values of the list, which are bytes.
func CheckRequest(a *Attack, s *Scene, raw bool) *authv3.CheckRequest {
	a = a.played(s)
	lines := append([]string{":method: " + a.Method, ":authority: " + a.Host, ":path: " + a.Target, ":scheme: https"}, a.Header...)
	is := &authv3.AttributeContext_HttpRequest{Method: text(a.Method), Host: text(a.Host), Path: text(a.Target), Scheme: "https", Protocol: "HTTP/1.1"}
	if raw {
		is.HeaderMap = new(corev3.HeaderMap)
	} else {
		is.Headers = map[string]string{}
	}
	for _, line := range lines {
		at := 1 + strings.Index(line[1:], ":") // the first byte may be a colon of the name's
		name, value := strings.ToLower(line[:at]), strings.Trim(line[at+1:], " \t")
		if raw {
			is.HeaderMap.Headers = append(is.HeaderMap.Headers, &corev3.HeaderValue{Key: text(name), RawValue: []byte(value)})
			continue
		}
		if before, twice := is.Headers[name]; twice {
			value = before + "," + value
		}
		is.Headers[name] = text(value)
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source: &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{
			SocketAddress: &corev3.SocketAddress{Address: "192.0.2.7"},
		}}},
		Request: &authv3.AttributeContext_Request{Http: is},
	}}
}

// text is what a message of protobuf can hold of s.
func text(s string) string { return strings.ToValidUTF8(s, "!") }

// Granted says why the service must not see what Envoy sends it after that answer, "": it may.
func Granted(a *Attack, s *Scene, answer *authv3.OkHttpResponse) string {
	a = a.played(s)
	taken := map[string]bool{}
	seen := &Sighting{Method: a.Method, Target: a.Target, Header: []string{"Host: " + a.Host}}
	for _, h := range answer.GetHeaders() { // each overwrites
		name := h.GetHeader().GetKey()
		taken[name] = true
		seen.Header = append(seen.Header, name+": "+h.GetHeader().GetValue())
	}
	for _, name := range answer.GetHeadersToRemove() {
		taken[name] = true
	}
	for _, line := range a.Header {
		if name, _, _ := strings.Cut(strings.ToLower(line), ":"); !taken[name] {
			seen.Header = append(seen.Header, line)
		}
	}
	return seen.Wrong(a, s)
}
