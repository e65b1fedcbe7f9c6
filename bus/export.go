package bus

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// ExportConfig says for what server Export writes a configuration.
type ExportConfig struct {
	Listen  string   // "host:port"
	Names   []string // host names and IP addresses of the servers, for a certificate; none: no TLS
	Revoked []string // nkeys that were removed before
}

// exportedLifetime is how long an exported certificate lives: somebody has to replace it by hand.
const exportedLifetime = 825 * 24 * time.Hour

// Export writes into dir what a nats-server needs to be this bus: nats-server.conf, with the operator
// and the accounts as JWTs, a resolver that takes later changes of them, and JetStream that syncs
// what it acknowledges; and, where names are given, a certificate with its key and the CA. It
// replaces what is there. The names of the files that were written are given.
func Export(dir string, keys *Keys, cfg ExportConfig) (written []string, err error) {
	conf, err := exportedConfig(keys, cfg)
	if err != nil {
		return nil, fmt.Errorf("exporting the bus: %w", err)
	}
	files := map[string][]byte{"nats-server.conf": conf}
	if len(cfg.Names) > 0 {
		cert, key, err := keys.ServerCertificate(cfg.Names, exportedLifetime)
		if err != nil {
			return nil, fmt.Errorf("exporting the bus: %w", err)
		}
		files["server.pem"], files["server-key.pem"], files["ca.pem"] = cert, key, keys.CAPEM()
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("exporting the bus: %w", err)
	}
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := WriteFile(path, content); err != nil {
			return nil, fmt.Errorf("exporting the bus: %w", err)
		}
		written = append(written, path)
	}
	return sortedSet(written), nil
}

func exportedConfig(keys *Keys, cfg ExportConfig) ([]byte, error) {
	_, operator, err := keys.operatorClaims()
	if err != nil {
		return nil, err
	}
	system, err := keys.systemAccount()
	if err != nil {
		return nil, err
	}
	accounts, err := keys.accounts(cfg.Revoked)
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	fmt.Fprintf(&b, `# The bus of a sidekey, for nats-server 2.12 or later: written by "sidekey bus export".
# Paths are relative to the folder that nats-server is started in. In a cluster every server has this
# configuration, and a server_name and a cluster block of its own.

listen: %q
server_name: "sidekey-1"
max_payload: 1MB

# An acknowledgement must mean: on the disk. Without sync_interval a loss of power loses what was acknowledged.
jetstream {
  store_dir: "./jetstream"
  sync_interval: always
}

# Nobody connects without a JWT that this operator's accounts have signed.
operator: %s
system_account: %s

# The resolver takes changes of the accounts: that is how "sidekey agents remove" cuts an agent off.
resolver {
  type: full
  dir: "./jwt"
  allow_delete: false
  interval: "2m"
}
resolver_preload {
`, cfg.Listen, operator, system.key)
	for _, a := range append(accounts, system) {
		fmt.Fprintf(&b, "  # %s\n  %s: %s\n", a.name, a.key, a.token)
	}
	b.WriteString("}\n")
	if len(cfg.Names) > 0 {
		b.WriteString(`
tls {
  cert_file: "./server.pem"
  key_file: "./server-key.pem"
}
`)
	}
	return []byte(b.String()), nil
}
