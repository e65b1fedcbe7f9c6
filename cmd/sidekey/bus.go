package main

import (
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sidekey/sidekey/bus"
)

func (a *app) busCommand() *cobra.Command {
	return group("bus", "The NATS that carries the log", a.busExportCommand(), a.busRemoveLeafCommand(), a.busBeginAnewCommand())
}

// busExport is what `sidekey bus export` is told.
type busExport struct {
	dir, listen string
	hosts       []string
	servers     []string
	routePort   string
	leafListen  string
	leaf        string
	hubs        []string
}

func (a *app) busExportCommand() *cobra.Command {
	var e busExport
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write the configuration of a nats-server that is to be the bus, instead of the one inside the issuer",
		Long: "Write nats-server.conf: operator, accounts, permissions and the resolver through which agents are removed; and with --host\n" +
			"a certificate. Run it as the issuer's user, where the issuer's data_dir is; then start nats-server in that folder, and the\n" +
			"issuer with bus.urls (and bus.ca, with --host).\n\n" +
			"--server NAME=HOST, three times or more, writes a cluster: a folder for each, with routes by TLS. --leaf SITE writes the\n" +
			"leaf node of a site instead, to which its agents attach; the servers listen to those with --leaf-listen.",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.busExport(e) },
	}
	f := cmd.Flags()
	f.StringVar(&e.dir, "dir", "sidekey-bus", "folder to write to")
	f.StringVar(&e.listen, "listen", "0.0.0.0:4222", "address that the server is to listen on (\":4222\" in a cluster: each on its own host)")
	f.StringSliceVar(&e.hosts, "host", nil, "host name or IP address of a server, for its certificate; none: no TLS")
	f.StringSliceVar(&e.servers, "server", nil, "NAME=HOST of a server of a cluster")
	f.StringVar(&e.routePort, "route-port", "6222", "port at which the servers of a cluster reach one another")
	f.StringVar(&e.leafListen, "leaf-listen", "", "address for the leaf nodes of sites, as 0.0.0.0:7422; none: no leaf nodes")
	f.StringVar(&e.leaf, "leaf", "", "name of a site: write its leaf node's configuration and credential")
	f.StringSliceVar(&e.hubs, "hub", nil, "with --leaf: tls://HOST:PORT where a server listens to leaf nodes")
	return cmd
}

func (a *app) busExport(e busExport) error {
	cfg, keys, revoked, err := a.busKeys()
	if err != nil {
		return err
	}
	var written []string
	if e.leaf != "" {
		written, err = exportLeaf(cfg, keys, e, revoked)
	} else {
		x := bus.ExportConfig{Listen: e.listen, Names: e.hosts, RoutePort: e.routePort, LeafListen: e.leafListen, Revoked: revoked}
		for _, s := range e.servers {
			name, host, ok := strings.Cut(s, "=")
			if !ok {
				return usagef("--server %q: want NAME=HOST", s)
			}
			x.Servers = append(x.Servers, bus.ExportServer{Name: name, Host: host})
		}
		written, err = bus.Export(e.dir, keys, x)
	}
	if err != nil {
		return err
	}
	for _, path := range written {
		if err := a.say("%s", path); err != nil {
			return err
		}
	}
	return nil
}

// busKeys gives the bus's keys of this host's data_dir, made where they are absent, and who was revoked.
func (a *app) busKeys() (cfg Config, keys *bus.Keys, revoked []string, err error) {
	if cfg, err = a.config(defaultConfig()); err != nil {
		return cfg, nil, nil, err
	}
	if err := makeDataDir("data_dir", cfg.DataDir); err != nil {
		return cfg, nil, nil, err
	}
	master, err := openMasterKey(cfg)
	if err != nil {
		return cfg, nil, nil, err
	}
	if keys, err = bus.OpenKeys(filepath.Join(cfg.DataDir, bus.KeysFile), master); err != nil {
		return cfg, nil, nil, err
	}
	revoked, err = bus.ReadRevoked(filepath.Join(cfg.DataDir, revokedFile))
	return cfg, keys, revoked, err
}
