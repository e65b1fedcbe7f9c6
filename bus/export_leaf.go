package bus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
)

// LeafConfig says for what site ExportLeaf writes a leaf node.
type LeafConfig struct {
	Site    string   // "berlin"
	Hubs    []string // where the hub's servers listen to leaf nodes: "tls://nats-a.example:7422"
	Listen  string   // "host:port" for the site's agents
	Names   []string // host names and IP addresses under which the site's agents reach it
	Revoked []string // nkeys that were removed before
}

// leafCreds is the file with which a leaf node connects to the hub: a secret.
const leafCreds = "leaf.creds"

const leafOperator = "operator.jwt"

// ExportLeaf writes into dir what a nats-server needs to be the leaf node of a site: agents of the site attach
// to it as to the bus itself, and one connection leads to the hub. It keeps nothing on disk, knows the agents'
// account alone, and its credential may do what agents together may. It gives the nkey of that credential: one that is in
// dir already is kept, with what it may and when it ends made anew.
//
// What a leaf node knows of removed agents is what was known when this was called: it takes no changes of
// accounts from the hub, because that would need a way into the system account.
func ExportLeaf(dir string, keys *Keys, cfg LeafConfig) (nkey string, written []string, err error) {
	if err := cfg.check(); err != nil {
		return "", nil, fmt.Errorf("exporting a leaf node: %w", err)
	}
	conf, err := leafConfig(keys, cfg)
	if err != nil {
		return "", nil, fmt.Errorf("exporting a leaf node: %w", err)
	}
	user, err := keys.leafUser(filepath.Join(dir, leafCreds), cfg)
	if err != nil {
		return "", nil, fmt.Errorf("exporting a leaf node: %w", err)
	}
	creds, err := user.Creds()
	if err != nil {
		return "", nil, fmt.Errorf("exporting a leaf node: %w", err)
	}
	operator, err := keys.leafOperator(filepath.Join(dir, leafOperator))
	if err != nil {
		return "", nil, fmt.Errorf("exporting a leaf node: %w", err)
	}
	files := map[string][]byte{"nats-server.conf": conf, leafCreds: creds, leafOperator: operator, "ca.pem": keys.CAPEM()}
	if err := addCertificate(files, "server", cfg.Names, keys.ServerCertificate); err != nil {
		return "", nil, fmt.Errorf("exporting a leaf node: %w", err)
	}
	if nkey, err = user.nkeyOf(); err != nil {
		return "", nil, err
	}
	written, err = writeExported(dir, files)
	return nkey, written, err
}

// leafOperator gives the operator's JWT, as the file at path has it where it is ours: a nats-server that runs
// reads its configuration anew only if that has not changed.
func (k *Keys) leafOperator(path string) ([]byte, error) {
	ours, token, err := k.operatorClaims()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return []byte(token), nil
	}
	if err != nil {
		return nil, err
	}
	was, err := jwt.DecodeOperatorClaims(string(text))
	if err != nil || was.Subject != ours.Subject || was.Issuer != ours.Subject || was.SystemAccount != ours.SystemAccount {
		return []byte(token), nil
	}
	return text, nil
}

func (cfg LeafConfig) check() error {
	if err := checkFolder(cfg.Site); err != nil {
		return err
	}
	if len(cfg.Names) == 0 || len(cfg.Hubs) == 0 {
		return errors.New("it needs the names under which the site's agents reach it, and the addresses at which the hub listens to leaf nodes")
	}
	for _, hub := range cfg.Hubs {
		u, err := url.Parse(hub)
		if err != nil || u.Scheme != "tls" || u.Port() == "" || u.Hostname() == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
			return fmt.Errorf("the hub's address %q: want tls://HOST:PORT", hub)
		}
	}
	if _, _, err := net.SplitHostPort(cfg.Listen); err != nil {
		return fmt.Errorf("reading the address %q: %w; want host:port", cfg.Listen, err)
	}
	return nil
}

// leafScope is the allow-list of a leaf node's credential: agentScope and joinScope over all names.
func (s subjects) leafScope() jwt.Permissions {
	return jwt.Permissions{
		Pub: jwt.Permission{Allow: s.services()},
		Sub: jwt.Permission{Allow: append(s.heard(), agentInbox+".>", joinInbox+".>")},
	}
}

// leafUser makes the credential of a leaf node, for the nkey that the file at path has, or a new one.
func (k *Keys) leafUser(path string, cfg LeafConfig) (*User, error) {
	mint := func(nkey string) (string, error) {
		uc := jwt.NewUserClaims(nkey)
		uc.Name = "leaf " + cfg.Site
		uc.Expires = time.Now().Add(exportedLifetime).Unix()
		uc.Permissions = k.subjects.leafScope()
		uc.NatsLimits.Payload = 128 << 10
		uc.AllowedConnectionTypes = []string{jwt.ConnectionTypeLeafnode}
		return k.mint(uc, k.agents, k.agents)
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return newUser(mint)
	}
	if err != nil {
		return nil, err
	}
	u, err := ParseUser(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; remove it, and another is made", path, err)
	}
	was, err := jwt.DecodeUserClaims(u.JWT)
	if err != nil || was.Name != "leaf "+cfg.Site {
		return nil, fmt.Errorf("%s is of another site than %q; choose another folder", path, cfg.Site)
	}
	nkey, err := u.nkeyOf()
	if err != nil {
		return nil, err
	}
	if slices.Contains(cfg.Revoked, nkey) {
		return nil, fmt.Errorf("the credential in %s was removed; remove the file, and another is made", path)
	}
	u.JWT, err = mint(nkey)
	return u, err
}

func leafConfig(keys *Keys, cfg LeafConfig) ([]byte, error) {
	if !keys.Operates() {
		return nil, errors.New("the operator's key is with the issuer that made this bus; run this there")
	}
	// Without imports: at the site a request has nowhere to go but over the link, where the hub's account has them.
	ac, err := keys.agentsAlone()
	if err != nil {
		return nil, err
	}
	agents, err := keys.signAccount(ac, cfg.Revoked)
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	fmt.Fprintf(&b, `# The leaf node of site %s, for nats-server 2.12 or later: written by "sidekey bus export --leaf".
# Paths are relative to the folder that nats-server is started in. It keeps nothing on disk.

listen: %q
server_name: %q
max_payload: 1MB
`, cfg.Site, cfg.Listen, "leaf-"+cfg.Site)
	if err := writeTrust(&b, keys, `"./operator.jwt"`, []account{agents}, `# Agents that are removed later are refused here once this file is written anew and the server told:
# "sidekey bus export --leaf" again, then "nats-server --signal reload". They get no lease meanwhile.
resolver: MEMORY
`); err != nil {
		return nil, err
	}
	fmt.Fprintf(&b, `
# The log is read by direct gets of the hub's JetStream: without this line they would end here.
default_js_domain: { %s: "" }
`, agents.key)
	fmt.Fprintf(&b, "\n%s\nleafnodes {\n  remotes: [\n    {\n      urls: [\n", serverTLSBlock)
	for _, hub := range cfg.Hubs {
		fmt.Fprintf(&b, "        %q\n", hub)
	}
	fmt.Fprintf(&b, `      ]
      account: %s
      credentials: "./%s"
      tls {
        ca_file: "./ca.pem"
      }
    }
  ]
}
`, agents.key, leafCreds)
	return []byte(b.String()), nil
}

// PushRevoked has the servers of a NATS that runs elsewhere refuse these nkeys, which are all that were
// revoked, and close their connections.
func PushRevoked(ctx context.Context, cfg ConnectConfig, keys *Keys, revoked []string) error {
	return (&Conn{cfg: cfg}).pushAccounts(ctx, keys, revoked)
}
