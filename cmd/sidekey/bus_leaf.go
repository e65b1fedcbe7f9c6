package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/sidekey/sidekey/bus"
)

// leavesFile keeps in the issuer's data_dir which credentials the leaf nodes of sites have, so that they can be taken
// away from them: {"berlin": ["UAB…"]}, by site, public nkeys.
const leavesFile = "bus.leaves"

func readLeaves(cfg Config) (map[string][]string, error) {
	path, leaves := filepath.Join(cfg.DataDir, leavesFile), map[string][]string{}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return leaves, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &leaves)
	}
	if err != nil {
		return nil, fmt.Errorf("reading which leaf nodes there are, %s: %w", path, err)
	}
	return leaves, nil
}

func exportLeaf(cfg Config, keys *bus.Keys, e busExport, revoked []string) ([]string, error) {
	if len(e.servers) > 0 || e.leafListen != "" {
		return nil, usagef("--leaf writes a leaf node, --server and --leaf-listen the servers that it connects to: give one or the other")
	}
	leaves, err := readLeaves(cfg)
	if err != nil {
		return nil, err
	}
	nkey, written, err := bus.ExportLeaf(e.dir, keys, bus.LeafConfig{Site: e.leaf, Hubs: e.hubs, Listen: e.listen, Names: e.hosts, Revoked: revoked})
	if err != nil || slices.Contains(leaves[e.leaf], nkey) {
		return written, err
	}
	leaves[e.leaf] = append(leaves[e.leaf], nkey)
	text, err := json.Marshal(leaves)
	if err != nil {
		return nil, err
	}
	return written, bus.WriteFile(filepath.Join(cfg.DataDir, leavesFile), append(text, '\n'))
}

func (a *app) busRemoveLeafCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove-leaf SITE",
		Short: "Take its credential away from the leaf node of a site, and end its connection",
		Long: "Every credential that `sidekey bus export --leaf SITE` has made is refused from now on, by all servers of bus.urls.\n" +
			"Agents of the site go on until their leases end. Run it as the issuer's user, where the issuer's data_dir is.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.removeLeaf(cmd.Context(), args[0]) },
	}
}

func (a *app) removeLeaf(ctx context.Context, site string) error {
	cfg, keys, revoked, err := a.busKeys()
	if err != nil {
		return err
	}
	leaves, err := readLeaves(cfg)
	if err != nil {
		return err
	}
	if len(leaves[site]) == 0 {
		return fmt.Errorf("no leaf node of a site %q was exported here", site)
	}
	if len(cfg.Bus.URLs) == 0 {
		return errors.New("set bus.urls, as the issuer has it: the servers have to be told")
	}
	ca := keys.CAPEM()
	if cfg.Bus.CA != "" {
		if ca, err = os.ReadFile(cfg.Bus.CA); err != nil {
			return fmt.Errorf("reading bus.ca: %w", err)
		}
	}
	revoked = append(revoked, leaves[site]...)
	slices.Sort(revoked)
	revoked = slices.Compact(revoked)
	text, err := json.Marshal(revoked)
	if err != nil {
		return err
	}
	path := filepath.Join(cfg.DataDir, revokedFile)
	if err := bus.WriteFile(path, append(text, '\n')); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	if err := bus.PushRevoked(ctx, bus.ConnectConfig{URLs: cfg.Bus.URLs, CA: ca, Insecure: cfg.Insecure, Name: "bus remove-leaf"}, keys, revoked); err != nil {
		return err
	}
	now, err := bus.ReadRevoked(path)
	if err != nil {
		return err
	}
	for _, nkey := range leaves[site] {
		if !slices.Contains(now, nkey) {
			return errors.New("an issuer has removed somebody at this very moment; run this again")
		}
	}
	return a.say("the leaf node of %s is cut off; start it anew with `sidekey bus export --leaf %s` into an empty folder", site, site)
}
