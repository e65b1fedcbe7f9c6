package main

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sidekey/sidekey/bus"
)

func (a *app) busCommand() *cobra.Command {
	return group("bus", "The NATS that carries the log", a.busExportCommand())
}

func (a *app) busExportCommand() *cobra.Command {
	var dir, listen string
	var hosts []string
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write the configuration of a nats-server that is to be the bus, instead of the one inside the issuer",
		Long: "Write nats-server.conf, for one server or a cluster of your own: operator, accounts, permissions and the resolver through\n" +
			"which agents are removed; and with --host a certificate. Run it as the issuer's user, where the issuer's data_dir is;\n" +
			"then start nats-server in that folder, and the issuer with bus.urls (and bus.ca, with --host).",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			cfg, err := a.config(defaultConfig())
			if err != nil {
				return err
			}
			if err := makeDataDir("data_dir", cfg.DataDir); err != nil {
				return err
			}
			master, err := openMasterKey(cfg)
			if err != nil {
				return err
			}
			keys, err := bus.OpenKeys(filepath.Join(cfg.DataDir, bus.KeysFile), master)
			if err != nil {
				return err
			}
			revoked, err := bus.ReadRevoked(filepath.Join(cfg.DataDir, revokedFile))
			if err != nil {
				return err
			}
			written, err := bus.Export(dir, keys, bus.ExportConfig{Listen: listen, Names: hosts, Revoked: revoked})
			if err != nil {
				return err
			}
			for _, path := range written {
				if err := a.say("%s", path); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "sidekey-bus", "folder to write to")
	cmd.Flags().StringVar(&listen, "listen", "0.0.0.0:4222", "address that the server is to listen on")
	cmd.Flags().StringSliceVar(&hosts, "host", nil, "host name or IP address of a server, for its certificate; none: no TLS")
	return cmd
}
