package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Exit statuses, the same for every command.
const (
	exitDone   = 0
	exitFailed = 1 // refused or failed
	exitUsage  = 2
)

func main() { os.Exit(mainStatus()) }

// mainStatus runs the command line of this process. The first interrupt asks the command to end; the second ends it.
func mainStatus() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, environ: os.Environ(), flags: map[string]string{}}
	return a.run(ctx, os.Args[1:])
}

// app is one run of the command line: its streams, its environment and the flags that every command has. Commands
// take nothing from package os, so that a test can run one in memory.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	environ        []string

	configPath string
	flags      map[string]string // text by configuration key
	format     string            // --format, of the commands that have it
	started    bool              // the command itself ran: flags and arguments were right
}

// run executes one command line and returns its exit status. An error is one sentence on stderr.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.rootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	fmt.Fprintf(a.stderr, "sidekey: %s\n", text)
	var usage usageError
	if errors.As(err, &usage) || !a.started {
		return exitUsage
	}
	return exitFailed
}

// usageError is a mistake in the command line that only the command itself could find.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...)} }

// rootCommand is the whole tree.
func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "sidekey",
		Short:         "Tokens issued in one place, and checked beside every service",
		Args:          cobra.ArbitraryArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.RunE = needCommand(root)
	root.SetFlagErrorFunc(dashHint)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.PersistentFlags().StringVar(&a.configPath, "config", "", "configuration file (default $"+envConfig+", else none)")
	a.addKeyFlags(root.PersistentFlags(), "data_dir")
	root.AddCommand(
		a.devCommand(), a.issuerCommand(), a.agentCommand(),
		a.usersCommand(), a.clientsCommand(), a.credentialsCommand(), a.keysCommand(), a.revokeCommand(), a.sessionsCommand(), a.agentsCommand(), a.issuersCommand(), a.adminTokenCommand(), a.busCommand(),
		a.tokenCommand(), a.rulesCommand(), a.statusCommand(), a.auditCommand(), a.backupCommand(), a.restoreCommand(), a.doctorCommand(), a.configCommand(), a.versionCommand(),
	)
	a.markStarted(root)
	return root
}

// dashHint adds to a refused command line what a KID, in which base64url may begin with a dash, needs.
func dashHint(_ *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() != "" {
		return fmt.Errorf("%w; an argument that begins with a dash goes behind --, as in: keys revoke --wait -- KID", err)
	}
	return err
}

// markStarted notes, in front of each command below c, that the command line was understood.
func (a *app) markStarted(c *cobra.Command) {
	if run := c.RunE; run != nil {
		c.RunE = func(cmd *cobra.Command, args []string) error {
			a.started = true
			return run(cmd, args)
		}
	}
	for _, sub := range c.Commands() {
		a.markStarted(sub)
	}
}

// group is a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs}
	c.RunE = needCommand(c)
	c.AddCommand(commands...)
	return c
}

// needCommand refuses a group that was named alone, or with a command that it does not have.
func needCommand(c *cobra.Command) func(*cobra.Command, []string) error {
	return func(_ *cobra.Command, args []string) error {
		var names []string
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				names = append(names, sub.Name())
			}
		}
		if len(args) == 0 {
			return usagef("%s needs a command: %s", c.CommandPath(), strings.Join(names, ", "))
		}
		return usagef("unknown command %q for %s%s", args[0], c.CommandPath(), didYouMean(args[0], names))
	}
}
