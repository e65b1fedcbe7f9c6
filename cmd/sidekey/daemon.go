package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
)

// A daemonSpec is a command that runs until it is told to stop.
type daemonSpec struct {
	use, short, long string
	base             func() Config // its defaults
	keys             []string      // the configuration keys, or tables of them, that it has flags for
	run              func(ctx context.Context, cfg Config, log hclog.Logger) error
}

// daemonCommand makes the command of d: it loads the configuration, sets up the log and runs d until an interrupt
// ends the context. Whatever d returns then decides the exit status.
func (a *app) daemonCommand(d daemonSpec) *cobra.Command {
	cmd := &cobra.Command{
		Use:   d.use,
		Short: d.short,
		Long:  d.long,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.config(d.base())
			if err != nil {
				return err
			}
			log := newLogger(cfg, a.stderr)
			stopping := context.AfterFunc(cmd.Context(), func() { notify(log, sd.SdNotifyStopping) })
			defer stopping()
			// Files are watched; who has something to read again listens for itself. It is no reason to end.
			hup := make(chan os.Signal, 1)
			signal.Notify(hup, syscall.SIGHUP)
			defer signal.Stop(hup)
			err = d.run(cmd.Context(), cfg, log)
			if cmd.Context().Err() != nil && errors.Is(err, context.Canceled) {
				return nil // it was told to stop, and did
			}
			return err
		},
	}
	a.addKeyFlags(cmd.Flags(), append([]string{"log_level", "log_format"}, d.keys...)...)
	return cmd
}
