package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/issuer"
)

// The user that `sidekey dev` makes.
const (
	devUser     = "alice"
	devPassword = "wonderland"
)

func (a *app) devCommand() *cobra.Command {
	return a.daemonCommand(daemonSpec{
		use:   "dev",
		short: "Run bus, issuer and one agent in this process, to try it out; not for production",
		long: "Run bus, issuer and one agent in this process, with no file needed. The state is in data_dir where that is set, " +
			"else in a temporary folder that is removed at the end. The user alice has the password wonderland, and logins are not limited.",
		base: devConfig,
		keys: []string{"issuer", "keys", "bus", "agent"},
		run:  a.runDev,
	})
}

func (a *app) runDev(ctx context.Context, cfg Config, log hclog.Logger) error {
	if !cfg.isSet("data_dir") {
		dir, err := os.MkdirTemp("", "sidekey-dev-")
		if err != nil {
			return fmt.Errorf("making a temporary folder for the state: %w; name one with --data-dir", err)
		}
		defer os.RemoveAll(dir)
		cfg.moveDataDir(dir)
	}
	if !cfg.isSet("agent.runtime_dir") {
		cfg.Agent.RuntimeDir = "" // its lease ends with the process, and an agent of this host keeps its own
	}
	if err := makeDataDir("data_dir", cfg.DataDir); err != nil {
		return err
	}
	iss, err := openIssuer(ctx, cfg, nil, log)
	if err != nil {
		return err
	}
	defer iss.close()
	g, ctx := errgroup.WithContext(ctx)
	up := make(chan struct{}, 2)
	ready := func() { up <- struct{}{} }
	g.Go(func() error { return iss.run(ctx, ready) })
	g.Go(func() error { return runDevAgent(ctx, cfg, log, iss, ready) })
	g.Go(func() error {
		for range 2 {
			select {
			case <-up:
			case <-ctx.Done():
				return nil
			}
		}
		if err := addDevUser(ctx, iss.issuer); err != nil {
			return err
		}
		return a.greet(cfg)
	})
	return g.Wait()
}

// runDevAgent runs the one agent, which joins the way every agent does, within this process.
func runDevAgent(ctx context.Context, cfg Config, log hclog.Logger, iss *issuerProcess, ready func()) error {
	ag, err := openAgent(cfg, log, func(p *agentProcess) (*bus.Identity, error) {
		dir := filepath.Join(p.cfg.Agent.DataDir, identityDir)
		if err := iss.joinHere(ctx, p.cfg.Agent.Name, dir); err != nil {
			return nil, err
		}
		return bus.ReadIdentity(dir)
	}, iss.server)
	if err != nil {
		return err
	}
	defer ag.close()
	return ag.run(ctx, ready)
}

// addDevUser makes the user where it is absent.
func addDevUser(ctx context.Context, iss *issuer.Issuer) error {
	_, err := iss.AddUser(ctx, issuer.NewUser{Username: devUser, Password: devPassword, Scope: "read write", Roles: []string{"staff"}})
	if errors.Is(err, issuer.ErrExists) || errors.Is(err, issuer.ErrElsewhere) || ctx.Err() != nil {
		return nil
	}
	return err
}

// greet prints where everything is, and lines to copy.
func (a *app) greet(cfg Config) error {
	agentURL := "http://" + cfg.Agent.Listen[0]
	curl := "curl -s"
	if socket, ok := strings.CutPrefix(cfg.Agent.Listen[0], "unix:"); ok {
		agentURL, curl = "http://localhost", "curl -s --unix-socket "+socket
	}
	issuerURL := "http://" + cfg.Issuer.Listen
	user, password := devUser, devPassword
	if cfg.Issuer.Users != usersHere {
		user, password = "USER", "PASSWORD" // of those who live elsewhere
	}
	return a.say(`
sidekey dev: bus, issuer and one agent in this process. NOT FOR PRODUCTION: a known user, no login limits.

  issuer  %[1]s
  agent   %[2]s
  bus     nats://%[3]s
  state   %[4]s
  user    %[5]s, password %[6]s

Log in, and have the agent check the token:

  TOKEN=$(curl -s %[1]s/api/token/ -d username=%[5]s -d password=%[6]s | sed 's/.*"access":"\([^"]*\)".*/\1/')
  %[7]s %[2]s/v1/verify -H "Authorization: Bearer $TOKEN"

Revoke it, and have it checked again:

  curl -s %[1]s/admin/v1/revocations -H "Authorization: Bearer $(cat %[4]s/admin.token)" --json "{\"token\": \"$TOKEN\"}"
  %[7]s %[2]s/v1/verify -H "Authorization: Bearer $TOKEN"

Rotate the keys: tokens made before stay good.

  curl -s %[1]s/admin/v1/keys/rotate -H "Authorization: Bearer $(cat %[4]s/admin.token)" --json '{}'

For the commands, such as sidekey users list:

  export SIDEKEY_DATA_DIR=%[4]s

Next: docs/tour.md. Stop with Ctrl-C.
`, issuerURL, agentURL, cfg.Bus.Listen, cfg.DataDir, user, password, curl)
}
