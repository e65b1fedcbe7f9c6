package bus

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats.go"
)

// Bounds of what a file of servers may say.
const (
	maxServers    = 16 // addresses
	maxServersLen = 8 << 10
	maxAddressLen = 300
)

// servers remembers in a file where else the bus is, as its servers tell of one another, so that a
// process can start while the addresses that it was given are gone. The file is a list of addresses:
//
//	["tls://10.0.0.6:7463", "tls://10.0.0.7:7463"]
//
// It holds the server that the process is on and those that this one tells of, and nothing older.
// A server is not believed because it stands there: it has to prove itself by TLS as any other.
type servers struct {
	path     string
	given    []string // by the configuration
	old      []string // by the last process
	secure   bool     // an address in clear is of no use
	log      hclog.Logger
	nc       atomic.Pointer[nats.Conn]
	reached  atomic.Bool // by this process, whose connection knows the others itself from then on
	literals atomic.Pointer[[]string]
}

// openServers reads what the last process left. What cannot be read is left aside: it is rewritten once a server is reached.
func openServers(cfg ConnectConfig, log hclog.Logger) *servers {
	s := &servers{path: cfg.Servers, given: cfg.URLs, secure: len(cfg.CA) > 0, log: log}
	if s.path == "" || cfg.Server != nil || !s.secure && slices.ContainsFunc(cfg.URLs, func(u string) bool { return strings.HasPrefix(u, "tls:") }) {
		// By a CA that everybody knows, whoever had once stood in between could have named a server of
		// his own, which proves itself: what a server tells comes in clear, before TLS.
		s.path = ""
		return s
	}
	text, err := os.ReadFile(s.path)
	var all []string
	if err == nil && len(text) <= maxServersLen {
		err = json.Unmarshal(text, &all)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("not using the remembered addresses of the bus", "file", s.path, "error", err)
	}
	for _, address := range all {
		if s.usable(address) && (s.secure || cfg.Insecure || refuseClear([]string{address}) == nil) && !slices.Contains(s.given, address) && len(s.old) < maxServers {
			s.old = append(s.old, address)
		}
	}
	return s
}

// usable tells whether an address is one, and no more than one: no password, no path.
func (s *servers) usable(address string) bool {
	u, err := url.Parse(address)
	if err != nil || len(address) > maxAddressLen || u.User != nil || u.Hostname() == "" || u.Port() == "" || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		return false
	}
	return u.Scheme == "tls" || u.Scheme == "nats" && !s.secure
}

// offer is called after each round in which no server could be reached. A process that has reached none
// yet is given one of the remembered ones, another each time: of the one that it then is on, the others
// are learnt anew.
func (s *servers) offer(round int) {
	nc := s.nc.Load()
	if nc == nil || len(s.old) == 0 || s.reached.Load() {
		return
	}
	address := s.old[max(round-1, 0)%len(s.old)]
	if err := nc.SetServerPool(append(slices.Clone(s.given), address)); err != nil {
		s.log.Warn("not using a remembered address of the bus", "url", redacted([]string{address}), "error", err)
	}
}

// learn is called when a server is reached, or has told of others.
func (s *servers) learn(nc *nats.Conn) {
	s.reached.Store(true)
	told := nc.DiscoveredServers()
	var literals []string
	for _, address := range told {
		if u, err := url.Parse(address); err == nil && net.ParseIP(u.Hostname()) != nil {
			literals = append(literals, u.Hostname())
		}
	}
	s.literals.Store(&literals)
	if s.path == "" {
		return
	}
	var keep []string
	for _, address := range append([]string{nc.ConnectedUrl()}, told...) {
		if s.usable(address) && !slices.Contains(s.given, address) && len(keep) < maxServers {
			keep = append(keep, address)
		}
	}
	slices.Sort(keep)
	keep = slices.Compact(keep)
	text, err := json.Marshal(append([]string{}, keep...))
	if err == nil {
		if was, rerr := os.ReadFile(s.path); rerr == nil && bytes.Equal(was, append(text, '\n')) {
			return
		}
		err = WriteFile(s.path, append(text, '\n'))
	}
	if err != nil {
		s.log.Warn("could not remember the bus's addresses", "file", s.path, "error", err)
	}
}

// told says whether a server has named another by this IP address.
func (s *servers) told(ip string) bool {
	all := s.literals.Load()
	return all != nil && slices.Contains(*all, ip)
}
