package rules

import (
	"net/netip"
	"strings"
)

// Host reads the host of a request, "app.example.com", "APP.example.com.:443" or "[::1]:443", into the one form that rules
// are compared in: lower case, without port and without the dot of the root; an IPv6 address as RFC 5952 writes it. false:
// it is none, or one that could be read in two ways.
func Host(text string) (string, bool) {
	if strings.HasPrefix(text, "[") {
		return hostIPv6(text)
	}
	name, port, ok := strings.Cut(text, ":")
	if ok && !validPort(port) {
		return "", false
	}
	name = strings.TrimSuffix(name, ".")
	if name == "" || len(name) > 253 {
		return "", false
	}
	upper, label := false, 0
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case c == '.':
			if label == 0 {
				return "", false
			}
			label = 0
			continue
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		case 'A' <= c && c <= 'Z':
			upper = true
		default:
			return "", false
		}
		if label++; label > 63 {
			return "", false
		}
	}
	if label == 0 {
		return "", false
	}
	if upper {
		name = strings.ToLower(name)
	}
	return name, true
}

func hostIPv6(text string) (string, bool) {
	address, rest, ok := strings.Cut(text[1:], "]")
	if !ok || rest != "" && (rest[0] != ':' || !validPort(rest[1:])) {
		return "", false
	}
	ip, err := netip.ParseAddr(address)
	if err != nil || !ip.Is6() || ip.Zone() != "" {
		return "", false
	}
	return "[" + ip.String() + "]", true
}

// validPort accepts 1 to 65535 and nothing else: no sign, no blank, no name.
func validPort(port string) bool {
	n := 0
	for i := 0; i < len(port); i++ {
		if port[i] < '0' || port[i] > '9' || i > 4 {
			return false
		}
		n = n*10 + int(port[i]-'0')
	}
	return 0 < n && n <= 65535
}
