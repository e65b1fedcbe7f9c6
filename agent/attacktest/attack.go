package attacktest

import (
	"fmt"
	"strings"
)

// rules are those that the table is judged by.
const rules = `
[[rules]]
name = "admin host"
hosts = ["admin.example"]
paths = ["/**"]
require = { roles = ["admin"] }

[[rules]]
name = "public"
paths = ["/", "/static/**"]
allow = "anyone"

[[rules]]
name = "admin"
paths = ["/admin/**"]
require = { roles = ["admin"] }

[[rules]]
name = "write"
methods = ["POST", "PUT", "PATCH", "DELETE"]
paths = ["/api/**"]
cors_preflight = true
require = { scopes = ["write"] }

[[rules]]
name = "read"
paths = ["/api/**"]
require = { scopes = ["read"] }

[[rules]]
name = "files"
paths = ["/files/*"]
encoded_slash = "literal"
require = { scopes = ["read"] }
`

// Scene is what an attack is played on. Reader, Other and Key stand for "{reader}", "{other}" and "{key}" of the table: access
// tokens of the subjects reader and other, and an API key of the subject svc, all with the scope read and no role.
type Scene struct {
	Reader, Other, Key string
	// Host and AdminHost take the place of app.example and admin.example, "": they are these.
	Host, AdminHost string
	// Trailers: the proxy is known to hand on the fields behind a chunked body as they are.
	Trailers bool
}

// put puts the scene's own into a text of the table.
func (s *Scene) put(text string) string {
	text = strings.NewReplacer("{reader}", s.Reader, "{other}", s.Other, "{key}", s.Key).Replace(text)
	if s.Host == "" {
		return text
	}
	// In the table's spellings: this text, THIS.text and This.Text.
	shout := func(host string) string {
		name, rest, _ := strings.Cut(host, ".")
		return strings.ToUpper(name) + "." + rest
	}
	capital := func(host string) string {
		labels := strings.Split(host, ".")
		for i, l := range labels {
			labels[i] = strings.ToUpper(l[:1]) + l[1:]
		}
		return strings.Join(labels, ".")
	}
	return strings.NewReplacer("app.example", s.Host, "admin.example", s.AdminHost, "ADMIN.example", shout(s.AdminHost), "Admin.Example", capital(s.AdminHost)).Replace(text)
}

// Rules are the rules of the table, as a file of them has them.
func (s *Scene) Rules() string { return s.put(rules) }

// Attack is a request as a client sends it, and what the agent must say of it. Status is 200 for those that must pass,
// so that the table is not held by refusing everything.
type Attack struct {
	Name   string
	Method string // "": GET
	Target string
	Host   string   // "": app.example
	Header []string // "Name: value"
	// Raw, where it is set, is the whole request: it means something to a proxy only.
	Raw string

	Status int    // of an agent that is told the request as it is
	Word   string // the reason, or at 200 the scheme: X-Auth-Method
	// Merged is the reason, at 401, of an agent that is told fields of one name as one, with commas between them (Envoy's map
	// over gRPC): it cannot see that there were two. "": it says what another says.
	Merged string
	// Unsaid is why that map cannot tell of the attack, "": it can. Then the agent judges another request than the service gets.
	Unsaid string
	// As is whom the request may come from, in the upstream's eyes, as its credential says; "": nobody.
	As string
}

// noHost is a Host that is empty.
const noHost = "-"

// host gives the text of the Host field.
func (a *Attack) host() string {
	switch a.Host {
	case "":
		return "app.example"
	case noHost:
		return ""
	}
	return a.Host
}

func (a *Attack) method() string {
	if a.Method == "" {
		return "GET"
	}
	return a.Method
}

// played gives the attack as it is on a scene.
func (a *Attack) played(s *Scene) *Attack {
	p := *a
	p.Method, p.Host, p.Target, p.Raw = a.method(), s.put(a.host()), s.put(a.Target), s.put(a.Raw)
	p.Header = nil
	for _, line := range a.Header {
		p.Header = append(p.Header, s.put(line))
	}
	return &p
}

// Request gives the bytes that a client sends.
func (a *Attack) Request(s *Scene) []byte {
	p := a.played(s)
	if p.Raw != "" {
		return []byte(p.Raw)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", p.Method, p.Target, p.Host)
	for _, line := range append(p.Header, "Connection: close") {
		b.WriteString(line + "\r\n")
	}
	b.WriteString("\r\n")
	return []byte(b.String())
}

// Carried tells whether HTTP can carry all of it in fields: what it cannot, the agent's server may refuse to read (400).
func (a *Attack) Carried() bool {
	return a.Host != noHost && !strings.ContainsFunc(a.Method+a.Target+a.Host+strings.Join(a.Header, ""), func(c rune) bool { return c < ' ' || c == 0x7f })
}

// Path gives an attack's target as it is on the scene.
func (s *Scene) Path(a *Attack) string { return a.played(s).Target }

// Hostname gives its host, likewise.
func (s *Scene) Hostname(a *Attack) string { return a.played(s).Host }
