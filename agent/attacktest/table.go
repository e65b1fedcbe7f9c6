package attacktest

import (
	"slices"
	"strings"
)

// The reasons of the table.
const (
	ambiguous = "ambiguous_request"
	missing   = "missing"
	noRule    = "no_rule"
	noRole    = "role_required"
	noScope   = "insufficient_scope"
)

// asReader is the credential of a caller who may read.
const asReader = "Authorization: Bearer {reader}"

// All is the table.
func All() []Attack {
	return slices.Concat(honest(), paths(), hosts(), methods(), credentials(), identities(), framing())
}

// honest are requests that must pass: without them a table of refusals would be held by an agent that refuses everything.
func honest() []Attack {
	return []Attack{
		{Name: "the public page", Target: "/", Status: 200, Word: "anonymous"},
		{Name: "a public file", Target: "/static/a.css", Status: 200, Word: "anonymous"},
		{Name: "reading with a token", Target: "/api/x", Header: []string{asReader}, Status: 200, Word: "bearer", As: "reader"},
		{Name: "reading with a key", Target: "/api/x", Header: []string{"X-API-Key: {key}"}, Status: 200, Word: "api_key", As: "svc"},
		{Name: "an escape that need not be", Target: "/%61pi/x", Header: []string{asReader}, Status: 200, Word: "bearer", As: "reader"},
		{Name: "a slash at the end", Target: "/api/x/", Header: []string{asReader}, Status: 200, Word: "bearer", As: "reader"},
		{Name: "a query that holds a path", Target: "/api/x?next=/../admin//;", Header: []string{asReader}, Status: 200, Word: "bearer", As: "reader"},
		{Name: "an escaped slash where a rule takes it", Target: "/files/a%2Fb", Header: []string{asReader}, Status: 200, Word: "bearer", As: "reader"},
		{Name: "letters beyond ASCII", Target: "/static/caf%C3%A9", Status: 200, Word: "anonymous"},
		{Name: "three dots", Target: "/static/.../x", Status: 200, Word: "anonymous"},
		{Name: "preflight", Method: "OPTIONS", Target: "/api/x", Header: []string{"Origin: https://page.example", "Access-Control-Request-Method: POST"}, Status: 200, Word: "anonymous"},
	}
}

// path is an attack on a path, by nobody.
func path(name, target string, status int, word string) Attack {
	return Attack{Name: name, Target: target, Status: status, Word: word}
}

func paths() []Attack {
	all := []Attack{
		path("plainly", "/admin/x", 401, missing),
		{Name: "by somebody who may not", Target: "/admin/x", Header: []string{asReader}, Status: 403, Word: noRole, As: "reader"},
		path("the folder", "/admin", 401, missing),
		path("the folder with a slash", "/admin/", 401, missing),
		path("an escaped letter", "/%61dmin/x", 401, missing),
		path("all letters escaped", "/%61%64%6d%69%6e/x", 401, missing),
		path("an ending that looks public", "/admin/x.css", 401, missing),
		path("a blank at the end", "/admin/x%20", 401, missing),
		path("capital letters", "/ADMIN/x", 403, noRule),
		path("an escaped capital letter", "/%41dmin/x", 403, noRule),
		path("a blank behind a segment", "/admin%20/x", 403, noRule),
		path("a dot behind a segment", "/admin./x", 403, noRule),
		path("elsewhere", "/other", 403, noRule),
		path("a method in the query", "/admin/x?_method=GET", 401, missing),
	}
	for _, p := range []struct{ name, target string }{
		{"dots", "/static/../admin/x"},
		{"dots at the end", "/admin/x/.."},
		{"one dot", "/./admin/x"},
		{"one dot at the end", "/admin/."},
		{"many dots", "/static/../../../../admin/x"},
		{"escaped dots", "/static/%2e%2e/admin/x"},
		{"escaped dots in both cases", "/static/%2E%2e/admin/x"},
		{"half escaped dots", "/static/.%2e/admin/x"},
		{"an escaped dot", "/static/%2e/../admin/x"},
		{"dots and an escaped slash", "/static/..%2fadmin/x"},
		{"escaped dots and slash", "/static/%2e%2e%2fadmin%2fx"},
		{"twice escaped dots", "/static/%252e%252e/admin/x"},
		{"thrice escaped dots", "/static/%25252e%25252e/admin/x"},
		{"a twice escaped slash", "/static/..%252fadmin/x"},
		{"overlong dots of two bytes", "/static/%c0%ae%c0%ae/admin/x"},
		{"overlong dots of three bytes", "/static/%e0%80%ae%e0%80%ae/admin/x"},
		{"overlong dots of four bytes", "/static/%f0%80%80%ae%f0%80%80%ae/admin/x"},
		{"an overlong slash", "/static/..%c0%afadmin/x"},
		{"an overlong backslash", "/static/..%c1%9cadmin/x"},
		{"a surrogate", "/static/%ed%a0%80/x"},
		{"bytes that are no text", "/static/%ff%fe"},
		{"a backslash", `/static/..\admin\x`},
		{"a backslash first", `/\admin/x`},
		{"an escaped backslash", "/static/..%5cadmin%5cx"},
		{"two slashes first", "//admin/x"},
		{"two slashes within", "/static//../admin/x"},
		{"two slashes at the end", "/admin//"},
		{"another host behind two slashes", "//admin.example/x"},
		{"an escaped slash first", "/%2fadmin/x"},
		{"an escaped slash instead of one", "/api%2fx"},
		{"parameters", "/admin;a=b/x"},
		{"parameters behind dots", "/static/..;/admin/x"},
		{"parameters alone", "/static/;/../admin/x"},
		{"escaped parameters", "/static/..%3b/admin/x"},
		{"a session in the path", "/admin/x;jsessionid=1"},
		{"an end of a C string", "/admin/x%00.css"},
		{"an end of a C string in dots", "/static/..%00/admin/x"},
		{"an escaped line break", "/static/x%0d%0aX-Auth-Subject:%20admin"},
		{"an escaped line feed", "/static/x%0a"},
		{"an escaped tab", "/static/%09../admin/x"},
		{"an escaped delete", "/static/%7f"},
		{"a control character of two bytes", "/static/%c2%85"},
		{"a line separator", "/static/%e2%80%a8"},
		{"a percent sign alone", "/static/%/x"},
		{"half an escape", "/static/%2"},
		{"no hexadecimal", "/static/%zz"},
		{"an escape of another kind", "/static/%u002e%u002e/admin/x"},
		{"a fragment", "/admin/x#/../../static"},
		{"a fragment that hides the rest", "/static#/../admin/x"},
		{"a whole URL", "http://app.example/admin/x"},
		{"a whole URL of another host", "http://admin.example/"},
		{"a whole URL with a user", "http://app.example@admin.example/"},
		{"a path without a slash", "admin/x"},
		{"a host before a path", "@admin.example/x"},
		{"an asterisk", "*"},
		{"nothing but a query", "?/admin/x"},
		{"a path that is too long", "/static/" + strings.Repeat("a", 8192)},
		{"too many segments", "/static" + strings.Repeat("/a", 130)},
		{"a blank", "/static/ /../admin/x"},
		{"a tab", "/static/\t/../admin/x"},
		{"a raw end of a C string", "/admin/x\x00.css"},
		{"a raw line break", "/static/x\r\nX-Auth-Subject: admin"},
	} {
		all = append(all, path(p.name, p.target, 403, ambiguous))
	}
	all = append(all, Attack{
		Name: "raw bytes that are no text", Target: "/static/\xff\xfe", Status: 403, Word: ambiguous,
		Unsaid: "a string of protobuf is UTF-8: Envoy writes ! for such a byte, and hands it on to the service. Its raw list has it",
	})
	for _, p := range []struct{ name, target string }{
		{"dots where escaped slashes are taken", "/files/..%2Fadmin"},
		{"escaped dots where escaped slashes are taken", "/files/%2e%2e%2Fadmin%2Fx"},
		{"a dot where escaped slashes are taken", "/files/a%2F.%2F..%2Fb"},
		{"dots within what may be read", "/api/../api/x"},
	} {
		all = append(all, Attack{Name: p.name, Target: p.target, Header: []string{asReader}, Status: 403, Word: ambiguous, As: "reader"})
	}
	return all
}

// hosts ask the host that is for administrators.
func hosts() []Attack {
	var all []Attack
	for _, h := range []string{"admin.example", "ADMIN.example", "admin.example.", "admin.example:443", "Admin.Example.:8443"} {
		all = append(all, Attack{Name: "host " + h, Target: "/", Host: h, Status: 401, Word: missing})
	}
	for _, h := range []string{
		noHost, "admin.example..", "ADMIN.example..", "admin..example", ".admin.example", "admin.example:", "admin.example:http", "admin.example:99999", "admin.example:0", "ADMIN.example:1:2",
		"user@admin.example", "app.example@admin.example", "app.example:80@admin.example", "app.example,admin.example", "app.example, admin.example", "app.example admin.example",
		"admin.example/static", "admin.example?", "admin.example#", `admin.example\static`, "%61dmin.example", "adm\u0131n.example", "admin\u3002example", "admin.example%00",
		"[::1", "::1", "[admin.example]", "[fe80::1%25eth0]", "admin.example\x00", "admin.example\tx",
	} {
		all = append(all, Attack{Name: "host " + h, Target: "/", Host: h, Status: 403, Word: ambiguous})
	}
	return all
}

// merged adds what is said of an attack by doubled fields that came as one.
func merged(word string, a Attack) Attack {
	a.Merged = word
	return a
}

// methods try to write as somebody who may read, and to read as nobody.
func methods() []Attack {
	read := func(name, method string, status int, word string, more ...string) Attack {
		return Attack{Name: name, Method: method, Target: "/api/x", Header: append([]string{asReader}, more...), Status: status, Word: word, As: "reader"}
	}
	nobody := func(name, method, target string, status int, word string, header ...string) Attack {
		return Attack{Name: name, Method: method, Target: target, Header: header, Status: status, Word: word}
	}
	const origin, asked = "Origin: https://page.example", "Access-Control-Request-Method: "
	return []Attack{
		read("writing", "POST", 403, noScope),
		read("a method in lower case", "delete", 403, ambiguous),
		read("a method in both cases", "Delete", 403, ambiguous),
		read("a method with a blank", "DELETE\tX", 403, ambiguous),
		read("a method that is no token", "DEL(ETE", 403, ambiguous),
		read("a method that is too long", strings.Repeat("A", 65), 403, ambiguous),
		read("another method in a field", "POST", 403, noScope, "X-HTTP-Method-Override: GET"),
		read("another method in another field", "POST", 403, noScope, "X-Method-Override: GET", "X-HTTP-Method: GET"),
		nobody("a method that nobody knows", "BREW", "/api/x", 401, missing),
		nobody("a method that a proxy may know", "PURGE", "/admin/x", 401, missing),
		nobody("HEAD", "HEAD", "/admin/x", 401, missing),
		nobody("TRACE", "TRACE", "/admin/x", 401, missing),
		nobody("OPTIONS", "OPTIONS", "/api/x", 401, missing),
		nobody("a preflight without the method", "OPTIONS", "/api/x", 401, missing, origin),
		nobody("a preflight without the origin", "OPTIONS", "/api/x", 401, missing, asked+"POST"),
		nobody("a preflight for what has none", "OPTIONS", "/api/x", 401, missing, origin, asked+"GET"),
		nobody("a preflight in lower case", "OPTIONS", "/api/x", 401, missing, origin, asked+"post"),
		nobody("a preflight for administrators", "OPTIONS", "/admin/x", 401, missing, origin, asked+"POST"),
		nobody("a preflight by another method", "POST", "/api/x", 401, missing, origin, asked+"POST"),
		merged(missing, nobody("a preflight for two methods", "OPTIONS", "/api/x", 403, ambiguous, origin, asked+"POST", asked+"GET")),
		merged(missing, nobody("a preflight for two methods, spelled differently", "OPTIONS", "/api/x", 403, ambiguous, origin, asked+"POST", "access-control-request-method: GET")),
		merged(missing, nobody("a preflight from two origins", "OPTIONS", "/api/x", 403, ambiguous, origin, "ORIGIN: null", asked+"POST")),
	}
}

// credentials come twice, in the wrong place, or with something beside them.
func credentials() []Attack {
	read := func(name string, status int, word, as string, header ...string) Attack {
		return Attack{Name: name, Target: "/api/x", Header: header, Status: status, Word: word, As: as}
	}
	return []Attack{
		merged("malformed", read("two tokens", 403, ambiguous, "", asReader, "Authorization: Bearer {other}")),
		merged("malformed", read("one token twice", 403, ambiguous, "", asReader, asReader)),
		merged("malformed", read("two tokens, spelled differently", 403, ambiguous, "", asReader, "authorization: Bearer {other}")),
		merged("malformed", read("a token and a password", 403, ambiguous, "", asReader, "AUTHORIZATION: Basic YTpi")),
		read("two tokens in one field", 401, "malformed", "", asReader+", Bearer {other}"),
		read("two tokens by a blank", 401, "malformed", "", asReader+" {other}"),
		read("a tab before the token", 401, missing, "", "Authorization: Bearer\t{reader}"),
		read("no token", 401, missing, "", "Authorization: Bearer"),
		read("a scheme that begins alike", 401, missing, "", "Authorization: Bearer2 {reader}"),
		read("a token of nobody's", 401, "unsupported_alg", "", "Authorization: Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9."),
		merged("unknown_credential", read("two keys", 403, ambiguous, "", "X-API-Key: {key}", "x-api-key: {key}")),
		merged(missing, read("two fields of cookies", 403, ambiguous, "", "Cookie: a=b", "Cookie: c=d")),
		read("two sessions in one field", 403, ambiguous, "", "Cookie: __Host-sidekey_session=a; __Host-sidekey_session=b"),
		read("a token as a session", 401, "wrong_type", "", "Cookie: __Host-sidekey_session={reader}"),
		read("a bad token and a good key", 401, "malformed", "", "Authorization: Bearer x", "X-API-Key: {key}"),
		read("an unknown scheme and a good key", 200, "api_key", "svc", "Authorization: Digest x", "X-API-Key: {key}"),
		read("a good token and a bad key", 200, "bearer", "reader", asReader, "X-API-Key: x"),
		read("a token for the proxy", 401, missing, "", "Proxy-Authorization: Bearer {reader}"),
		read("a token in a cookie", 401, missing, "", "Cookie: Authorization=Bearer {reader}"),
		read("a key spelled with underscores", 401, missing, "", "X_API_KEY: {key}"),
		read("a token spelled as a variable", 401, missing, "", "HTTP_AUTHORIZATION: Bearer {reader}"),
		{Name: "a token in the query", Target: "/api/x?access_token={reader}", Status: 401, Word: missing},
	}
}

// identities come from the client: they are the agent's to say.
func identities() []Attack {
	read := func(name string, header ...string) Attack {
		return Attack{Name: name, Target: "/api/x", Header: append([]string{asReader}, header...), Status: 200, Word: "bearer", As: "reader"}
	}
	deny := func(name string, header ...string) Attack {
		return Attack{Name: name, Target: "/admin/x", Header: header, Status: 401, Word: missing}
	}
	return []Attack{
		read("its own identity", "X-Auth-Subject: admin", "X-Auth-Roles: admin", "X-Auth-Scope: write", "X-Auth-Client: admin", "X-Auth-Session: admin", "X-Auth-Method: session"),
		read("its own identity in small letters", "x-auth-subject: admin", "x-auth-roles: admin"),
		read("its own identity in odd case", "X-AUTH-Subject: admin", "x-AuTh-rOLes: admin"),
		read("its own identity with underscores", "X_Auth_Subject: admin", "X_AUTH_ROLES: admin"),
		read("its own identity with an underscore", "X-Auth_Subject: admin", "X_Auth-Roles: admin"),
		read("its own identity twice", "X-Auth-Subject: admin", "X-Auth-Subject: root"),
		read("fields that the proxy shall drop", "Connection: X-Auth-Subject, X-Auth-Roles"),
		{Name: "its own identity, from nobody", Target: "/", Header: []string{"X-Auth-Subject: admin", "X_Auth_Roles: admin"}, Status: 200, Word: "anonymous"},
		deny("its own identity instead of a credential", "X-Auth-Subject: admin", "X-Auth-Roles: admin", "X-Auth-Method: bearer"),
		deny("another path for nginx", "X-Original-URI: /static/x"),
		deny("another URL for ingress-nginx", "X-Original-URL: http://app.example/static/x"),
		deny("another path for Caddy", "X-Forwarded-Uri: /static/x"),
		deny("another path for Caddy, with underscores", "X_Forwarded_Uri: /static/x"),
		deny("another path for IIS", "X-Rewrite-URL: /static/x"),
		deny("another path for Envoy", "X-Envoy-Original-Path: /static/x"),
		deny("another path and method for all", "X-Original-URI: /", "X-Original-Method: GET", "X-Forwarded-Uri: /", "X-Forwarded-Method: GET", "X-Forwarded-Prefix: /static"),
		{Name: "another method for nginx", Method: "POST", Target: "/api/x", Header: []string{asReader, "X-Original-Method: GET"}, Status: 403, Word: noScope, As: "reader"},
		{Name: "another method for Caddy", Method: "POST", Target: "/api/x", Header: []string{asReader, "X-Forwarded-Method: GET"}, Status: 403, Word: noScope, As: "reader"},
		{Name: "another host for Caddy", Target: "/", Host: "admin.example", Header: []string{"X-Forwarded-Host: app.example"}, Status: 401, Word: missing},
		{Name: "another host for nginx", Target: "/", Host: "admin.example", Header: []string{"X-Original-Host: app.example"}, Status: 401, Word: missing},
		{Name: "another host for all", Target: "/", Host: "admin.example", Header: []string{"Forwarded: for=127.0.0.1;host=app.example", "X-Host: app.example"}, Status: 401, Word: missing},
		deny("an address of this host", "X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1", "X-Original-Remote-Addr: 127.0.0.1", "X-Envoy-External-Address: 127.0.0.1"),
	}
}

// framing hides one request in another: proxies only.
func framing() []Attack {
	const hidden = "GET /admin/hidden HTTP/1.1\r\nHost: app.example\r\nX-Auth-Subject: admin\r\n\r\n"
	const head = "POST /static/x HTTP/1.1\r\nHost: app.example\r\n"
	raw := func(name, request string) Attack { return Attack{Name: name, Raw: request} }
	return []Attack{
		raw("a request behind a chunked body that has a length too", head+"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"+hidden),
		raw("the same with a blank before the colon", head+"Content-Length: 4\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n"+hidden),
		raw("the same with another word", head+"Content-Length: 4\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"+hidden),
		raw("the same with a tab", head+"Content-Length: 4\r\nTransfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n"+hidden),
		raw("two lengths", head+"Content-Length: 0\r\nContent-Length: 80\r\n\r\n"+hidden),
		raw("a length with a sign", head+"Content-Length: +0\r\n\r\n"+hidden),
		raw("a request behind another", "GET /static/x HTTP/1.1\r\nHost: app.example\r\n\r\n"+hidden),
		raw("a request behind one that is refused", "GET /admin/x HTTP/1.1\r\nHost: app.example\r\n\r\n"+hidden),
		raw("two hosts", "GET / HTTP/1.1\r\nHost: app.example\r\nHost: admin.example\r\nConnection: close\r\n\r\n"),
		raw("a folded field", "GET /static/x HTTP/1.1\r\nHost: app.example\r\nX-A: b\r\n X-Auth-Subject: admin\r\nConnection: close\r\n\r\n"),
		raw("line feeds alone", "GET /static/x HTTP/1.1\nHost: app.example\nX-Auth-Subject: admin\n\n"),
		raw("a carriage return alone", "GET /static/x HTTP/1.1\r\nHost: app.example\r\nX-A: b\rX-Auth-Subject: admin\r\nConnection: close\r\n\r\n"),
		raw("HTTP/1.0 without a host", "GET /admin/x HTTP/1.0\r\n\r\n"),
		raw("HTTP/0.9", "GET /admin/x\r\n"),
		raw("a field in the trailer", "POST /static/x HTTP/1.1\r\nHost: app.example\r\nTransfer-Encoding: chunked\r\nTrailer: X-Auth-Subject\r\nConnection: close\r\n\r\n0\r\nX-Auth-Subject: admin\r\n\r\n"),
		raw("an upgrade", "GET /static/x HTTP/1.1\r\nHost: app.example\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n"+hidden),
	}
}
