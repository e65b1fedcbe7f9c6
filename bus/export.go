package bus

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// ExportConfig says for what servers Export writes a configuration.
type ExportConfig struct {
	Listen string   // "host:port" for clients; an empty host in a cluster: each server's own
	Names  []string // host names and IP addresses of the servers, for a certificate; none: no TLS
	// Servers of a cluster, of which each gets a folder of its own; none: one server that stands alone.
	Servers []ExportServer
	// RoutePort is where the servers of a cluster reach one another.
	RoutePort string
	// LeafListen is the "host:port" for the leaf nodes of sites, as Listen is written; "": none.
	LeafListen string
	Revoked    []string // nkeys that were removed before
}

// ExportServer is one server of a cluster.
type ExportServer struct {
	Name string // "nats-a"; also its folder's
	Host string // host name or IP address under which agents, issuers and the other servers reach it
}

// exportedLifetime is how long an exported certificate lives: somebody has to replace it by hand.
const exportedLifetime = 825 * 24 * time.Hour

// Export writes into dir what a nats-server needs to be this bus: nats-server.conf, with the operator
// and the accounts as JWTs, a resolver that takes later changes of them, and JetStream that syncs
// what it acknowledges; and, where names are given, a certificate with its key and the CA. For a cluster
// it writes that into a folder a server, with routes on which both ends prove themselves. It
// replaces what is there. The names of the files that were written are given.
func Export(dir string, keys *Keys, cfg ExportConfig) (written []string, err error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("exporting the bus: %w", err)
	}
	files, err := exportedFiles(keys, cfg)
	if err != nil {
		return nil, fmt.Errorf("exporting the bus: %w", err)
	}
	return writeExported(dir, files)
}

// writeExported writes files, by their paths below dir.
func writeExported(dir string, files map[string][]byte) (written []string, err error) {
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, fmt.Errorf("exporting the bus: %w", err)
		}
		if err := WriteFile(path, content); err != nil {
			return nil, fmt.Errorf("exporting the bus: %w", err)
		}
		written = append(written, path)
	}
	return sortedSet(written), nil
}

func (cfg ExportConfig) check() error {
	if n := len(cfg.Servers); n == 1 || n == 2 {
		return fmt.Errorf("a cluster of %d servers stops when one does; name three", n)
	}
	seen := map[string]bool{}
	for _, s := range cfg.Servers {
		if err := checkFolder(s.Name); err != nil {
			return err
		}
		if seen[s.Name] || seen["host "+s.Host] || s.Host == "" {
			return fmt.Errorf("server %q: each server of a cluster has a name and a host of its own", s.Name)
		}
		seen[s.Name], seen["host "+s.Host] = true, true
	}
	if cfg.LeafListen != "" && len(cfg.Names)+len(cfg.Servers) == 0 {
		return errors.New("leaf nodes are let in by TLS alone, and a certificate needs the names of the server's host")
	}
	return nil
}

// checkFolder tells whether a name can be a folder's, and stand in a server's name: letters, digits, "-" and "_".
func checkFolder(name string) error {
	if ok := regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`).MatchString(name); !ok {
		return fmt.Errorf("reading the name %q: want up to 63 letters, digits, - and _", name)
	}
	return nil
}

func exportedFiles(keys *Keys, cfg ExportConfig) (map[string][]byte, error) {
	servers := cfg.Servers
	if len(servers) == 0 {
		servers = []ExportServer{{Name: "sidekey-1"}}
	}
	files := make(map[string][]byte)
	for _, s := range servers {
		folder, names := "", cfg.Names
		if s.Host != "" {
			folder, names = s.Name, append([]string{s.Host}, cfg.Names...)
		}
		conf, err := exportedConfig(keys, cfg, s)
		if err != nil {
			return nil, err
		}
		files[filepath.Join(folder, "nats-server.conf")] = conf
		if len(names) == 0 {
			continue
		}
		if err := addCertificate(files, filepath.Join(folder, "server"), names, keys.ServerCertificate); err != nil {
			return nil, err
		}
		files[filepath.Join(folder, "ca.pem")] = keys.CAPEM()
		if s.Host == "" {
			continue
		}
		if err := addCertificate(files, filepath.Join(folder, "route"), []string{s.Host}, keys.routeCertificate); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// addCertificate makes a certificate and its key, as PATH.pem and PATH-key.pem.
func addCertificate(files map[string][]byte, path string, names []string, make func([]string, time.Duration) ([]byte, []byte, error)) error {
	cert, key, err := make(names, exportedLifetime)
	files[path+".pem"], files[path+"-key.pem"] = cert, key
	return err
}

func exportedConfig(keys *Keys, cfg ExportConfig, self ExportServer) ([]byte, error) {
	accounts, err := keys.accounts(cfg.Revoked)
	if err != nil {
		return nil, err
	}
	listen, advertise, err := self.at(cfg.Listen)
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	fmt.Fprintf(&b, `# The bus of a sidekey, for nats-server 2.12 or later: written by "sidekey bus export".
# Paths are relative to the folder that nats-server is started in.

listen: %q
server_name: %q
max_payload: 1MB
`, listen, self.Name)
	if self.Host != "" {
		fmt.Fprintf(&b, "client_advertise: %q # what agents are told, and what the certificate is for\n", advertise)
		b.WriteString(`
# To stop this server, run "nats-server --signal ldm=PID": it hands over what it leads, then sends its clients to the others
# one after another. Stopped otherwise it fails what was under way.
lame_duck_grace_period: "2s"
`)
	}
	b.WriteString(`
# An acknowledgement must mean: on the disk. Without sync_interval a loss of power loses what was acknowledged.
jetstream {
  store_dir: "./jetstream"
  sync_interval: always
}
`)
	_, operator, err := keys.operatorClaims()
	if err != nil {
		return nil, err
	}
	if err := writeTrust(&b, keys, operator, accounts, `# The resolver takes changes of the accounts: that is how "sidekey agents remove" cuts an agent off.
resolver {
  type: full
  dir: "./jwt"
  allow_delete: false
  interval: "2m"
}
`); err != nil {
		return nil, err
	}
	if len(cfg.Names) > 0 || self.Host != "" {
		b.WriteString("\n" + serverTLSBlock)
	}
	if self.Host != "" {
		writeRoutes(&b, cfg, self)
	}
	if cfg.LeafListen != "" {
		if err := writeLeafListener(&b, cfg, self); err != nil {
			return nil, err
		}
	}
	return []byte(b.String()), nil
}

const serverTLSBlock = `tls {
  cert_file: "./server.pem"
  key_file: "./server-key.pem"
}
`

// writeTrust writes who may connect: the operator, and the accounts behind their resolver.
func writeTrust(b *strings.Builder, keys *Keys, operator string, accounts []account, resolver string) error {
	system, err := keys.systemAccount()
	if err != nil {
		return err
	}
	fmt.Fprintf(b, `
# Nobody connects without a JWT that this operator's accounts have signed.
operator: %s
system_account: %s

%sresolver_preload {
`, operator, system.key, resolver)
	for _, a := range append(accounts, system) {
		fmt.Fprintf(b, "  # %s\n  %s: %s\n", a.name, a.key, a.token)
	}
	b.WriteString("}\n")
	return nil
}

// writeRoutes joins a server to the others. Only a certificate that is made for routes is taken there.
func writeRoutes(b *strings.Builder, cfg ExportConfig, self ExportServer) {
	own := net.JoinHostPort(self.Host, cfg.RoutePort)
	listen := net.JoinHostPort("0.0.0.0", cfg.RoutePort)
	if host, _, err := net.SplitHostPort(cfg.Listen); err == nil {
		listen = net.JoinHostPort(host, cfg.RoutePort)
		if host == "" {
			listen = own
		}
	}
	fmt.Fprintf(b, `
# Who has a route has all accounts, so both ends show a certificate that "sidekey bus export" made for routes; no other
# certificate of the bus's CA is good for that.
cluster {
  name: "sidekey"
  listen: %q
  advertise: %q
  routes: [
`, listen, own)
	for _, s := range cfg.Servers {
		if s != self {
			fmt.Fprintf(b, "    \"tls://%s\"\n", net.JoinHostPort(s.Host, cfg.RoutePort))
		}
	}
	b.WriteString(`  ]
  tls {
    cert_file: "./route.pem"
    key_file: "./route-key.pem"
    ca_file: "./ca.pem"
    verify: true
    timeout: 5
  }
}
`)
}

func writeLeafListener(b *strings.Builder, cfg ExportConfig, self ExportServer) error {
	listen, advertise, err := self.at(cfg.LeafListen)
	if err != nil {
		return err
	}
	fmt.Fprintf(b, `
# The leaf nodes of sites: "sidekey bus export --leaf" makes each its credential.
leafnodes {
  listen: %q
`, listen)
	if self.Host != "" {
		fmt.Fprintf(b, "  advertise: %q\n", advertise)
	}
	b.WriteString("  " + strings.ReplaceAll(strings.TrimSuffix(serverTLSBlock, "\n"), "\n", "\n  ") + "\n}\n")
	return nil
}

// at is where a server listens, and under which address others know it.
func (s ExportServer) at(listen string) (on, as string, err error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", "", fmt.Errorf("reading the address %q: %w; want host:port", listen, err)
	}
	as = net.JoinHostPort(s.Host, port)
	if host == "" && s.Host != "" {
		return as, as, nil
	}
	return listen, as, nil
}
