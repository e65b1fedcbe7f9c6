package attacktest

import (
	"bytes"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Through sends the table to a proxy that asks an agent with the scene's rules, and whose upstream is up; dial opens a
// connection to the proxy. It returns what went wrong: every attack that the upstream saw, and every honest request that
// it did not see. An empty list is success.
func Through(dial func() (net.Conn, error), up *Upstream, s *Scene) []string {
	var wrong []string
	all := All()
	for i := range all {
		a := &all[i]
		up.Take()
		c, err := dial()
		if err != nil {
			return append(wrong, fmt.Sprintf("%s: dialling: %v", a.Name, err))
		}
		wait := 10 * time.Second
		if a.Raw != "" {
			wait = 2 * time.Second // the proxy may well be waiting for more
		}
		answer := exchange(c, a.Request(s), wait)
		seen := up.Take()
		for _, one := range seen {
			if why := one.Wrong(a.played(s), s); why != "" {
				wrong = append(wrong, fmt.Sprintf("%s: the upstream saw %q %q with %q: %s", a.Name, one.Method, one.Target, one.Header, why))
			}
		}
		if a.Status == 200 && len(seen) != 1 && !a.mayBeRefused() {
			wrong = append(wrong, fmt.Sprintf("%s: the upstream saw %d requests, want this one; the proxy answered %.100q", a.Name, len(seen), answer))
		}
		if a.Status != 0 && a.Status != 200 && bytes.HasPrefix(answer, []byte("HTTP/1.1 200")) && bytes.Contains(answer, []byte("App: here")) && len(seen) == 0 {
			wrong = append(wrong, fmt.Sprintf("%s: answered 200 and not seen", a.Name))
		}
	}
	return wrong
}

// mayBeRefused: a proxy may refuse an honest request of this kind by itself, as one that sends its own identity.
func (a *Attack) mayBeRefused() bool {
	return slices.ContainsFunc(a.Header, func(line string) bool {
		name, _, _ := strings.Cut(strings.ToLower(line), ":")
		return strings.HasPrefix(strings.ReplaceAll(name, "_", "-"), "x-auth-") || name == "connection"
	})
}

// zone is what a reading of a request reaches.
type zone int

const (
	open zone = iota
	reading
	writing
	administering
)

// writes are the methods that write.
var writes = []string{"POST", "PUT", "PATCH", "DELETE"}

// Wrong says why the upstream must not have seen that, "": it may. The attack is one that was played.
func (one *Sighting) Wrong(a *Attack, s *Scene) string {
	admin := s.AdminHost
	if admin == "" {
		admin = "admin.example"
	}
	for _, name := range []string{"Host", "X-Forwarded-Host", "X-Original-Host"} {
		for _, v := range one.values(name) {
			for part := range strings.FieldsFuncSeq(strings.ToLower(v), func(r rune) bool { return strings.ContainsRune(" ,@/\\?#:\t", r) }) {
				if strings.TrimRight(part, ".") == admin {
					return "it can be read as the administrators' host"
				}
			}
		}
	}
	if why := one.wrongIdentity(a); why != "" {
		return why
	}
	if trailer := (&Sighting{Header: one.Trailer}).wrongIdentity(a); trailer != "" && !s.Trailers {
		return "in the trailer, " + trailer
	}
	asked := one.values("Access-Control-Request-Method")
	preflight := one.Method == "OPTIONS" && len(one.values("Origin")) == 1 && len(asked) == 1 && slices.Contains(writes, asked[0])
	for _, path := range Readings(one.Target) {
		switch z := reaches(one.Method, path); {
		case z == administering:
			return fmt.Sprintf("it can be read as %s", path)
		case z == writing:
			return fmt.Sprintf("it can be read as writing to %s", path)
		case z == reading && a.As == "" && !preflight:
			return fmt.Sprintf("it can be read as %s, by nobody", path)
		}
	}
	return ""
}

// wrongIdentity: what says who it is says the truth, in every field that a service could read.
func (one *Sighting) wrongIdentity(a *Attack) string {
	for _, v := range one.values("X-Auth-Subject") {
		if v != "" && v != a.As {
			return fmt.Sprintf("X-Auth-Subject is %q", v)
		}
	}
	for _, name := range []string{"X-Auth-Roles", "X-Auth-Session", "X-Auth-Client"} {
		for _, v := range one.values(name) {
			if strings.Contains(v, "admin") || strings.Contains(v, "root") {
				return fmt.Sprintf("%s is %q", name, v)
			}
		}
	}
	for _, v := range one.values("X-Auth-Scope") {
		if strings.Contains(v, "write") {
			return fmt.Sprintf("X-Auth-Scope is %q", v)
		}
	}
	return ""
}

// reaches tells what a request for a path, in this reading, would reach.
func reaches(method, path string) zone {
	under := func(prefix string) bool { return path == prefix || strings.HasPrefix(path, prefix+"/") }
	switch {
	case under("/admin"):
		return administering
	case under("/api"):
		if slices.Contains(writes, strings.ToUpper(method)) {
			return writing
		}
		return reading
	case under("/files"):
		return reading
	}
	return open
}

// Readings gives every path that some service could make of a target: decoded once or more, overlong bytes too, cut at what
// ends a path somewhere, without parameters, with dots resolved, in lower case.
func Readings(target string) []string {
	first, _, _ := strings.Cut(target, "?")
	all := []string{first}
	for i := 0; i < len(all) && len(all) < 500; i++ {
		for _, next := range again(all[i]) {
			if !slices.Contains(all, next) {
				all = append(all, next)
			}
		}
	}
	return all
}

var (
	parameters = regexp.MustCompile(`;[^/\\]*`)
	endings    = regexp.MustCompile(`[. ]+(/|$)`)
	slashes    = regexp.MustCompile(`/{2,}`)
	unicodeHex = regexp.MustCompile(`%u[0-9a-fA-F]{4}`)
	overlong   = strings.NewReplacer("\xc0\xae", ".", "\xe0\x80\xae", ".", "\xf0\x80\x80\xae", ".", "\xc0\xaf", "/", "\xc1\x9c", `\`)
)

// again gives what one more step of each kind makes of a path.
func again(p string) []string {
	var all []string
	if decoded, err := url.PathUnescape(p); err == nil {
		all = append(all, decoded)
	}
	all = append(all,
		unicodeHex.ReplaceAllStringFunc(p, func(e string) string {
			n, _ := strconv.ParseUint(e[2:], 16, 32)
			return string(rune(n))
		}),
		overlong.Replace(p),
		strings.ReplaceAll(p, `\`, "/"),
		parameters.ReplaceAllString(p, ""),
		slashes.ReplaceAllString(p, "/"),
		endings.ReplaceAllString(p, "$1"),
		strings.ToLower(p),
		resolve(p),
		strings.ReplaceAll(p, "\x00", ""),
	)
	for _, end := range []string{"\x00", "#", "?", "\r", "\n", "\t"} {
		cut, _, _ := strings.Cut(p, end)
		all = append(all, cut)
	}
	if u, err := url.Parse(p); err == nil && u.Host != "" { // an absolute form, or two slashes at the beginning
		all = append(all, u.Path)
	}
	return all
}

// resolve takes out dots as RFC 3986 §5.2.4 does.
func resolve(p string) string {
	var kept []string
	for _, s := range strings.Split(p, "/") {
		switch s {
		case ".":
		case "..":
			if len(kept) > 1 {
				kept = kept[:len(kept)-1]
			}
		default:
			kept = append(kept, s)
		}
	}
	return strings.Join(kept, "/")
}
