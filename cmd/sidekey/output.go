package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// newLogger is the logger that cmd hands to every part. It writes what log_level asks for, in log_format.
func newLogger(c Config, w io.Writer) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{
		Name:       "sidekey",
		Level:      hclog.LevelFromString(c.LogLevel),
		JSONFormat: c.LogFormat == "json",
		Output:     w,
	})
}

// addFormat gives cmd the flag --format. A wrong one is refused before anything is done.
func (a *app) addFormat(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&a.format, "format", "", "table or json (default table on a terminal, else json)")
	checkFirst(cmd, func() error {
		_, err := a.asTable()
		return err
	})
	return cmd
}

// checkFirst has check look at the flags before cmd runs, after the checks that were there already.
func checkFirst(cmd *cobra.Command, check func() error) {
	before := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if before != nil {
			if err := before(cmd, args); err != nil {
				return err
			}
		}
		return check()
	}
}

// asTable says which form stdout gets, and refuses a --format that does not exist.
func (a *app) asTable() (bool, error) {
	switch a.format {
	case "table":
		return true, nil
	case "json":
		return false, nil
	case "":
		f, ok := a.stdout.(*os.File)
		return ok && term.IsTerminal(int(f.Fd())), nil
	}
	return false, usagef("--format: want table or json, got %q", a.format)
}

// answer prints an answer of the API: the JSON as it came but indented, or what table writes.
func (a *app) answer(body []byte, table func(w *tabwriter.Writer)) error {
	asTable, err := a.asTable()
	if err != nil {
		return err
	}
	if !asTable {
		var indented bytes.Buffer
		if err := json.Indent(&indented, bytes.TrimSpace(body), "", "  "); err != nil {
			return fmt.Errorf("reading the answer: it is no JSON: %w", err)
		}
		return a.say("%s", indented.String())
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	table(w)
	return w.Flush()
}

// row writes one line of a table. What could move the cursor of a terminal is quoted.
func row(w io.Writer, cells ...any) {
	for i, cell := range cells {
		text := fmt.Sprint(cell)
		if !printable(text) {
			text = strconv.Quote(text)
		}
		if text == "" {
			text = "-"
		}
		if i > 0 {
			io.WriteString(w, "\t")
		}
		io.WriteString(w, text)
	}
	io.WriteString(w, "\n")
}

// when shows a NumericDate; zero is "-".
func when(seconds float64) string {
	if seconds == 0 {
		return "-"
	}
	return time.Unix(int64(seconds), 0).UTC().Format(time.RFC3339)
}

// say prints one line on stdout.
func (a *app) say(format string, args ...any) error {
	_, err := fmt.Fprintf(a.stdout, format+"\n", args...)
	return err
}

// note prints one line for the person at the terminal, on stderr.
func (a *app) note(format string, args ...any) { fmt.Fprintf(a.stderr, format+"\n", args...) }

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version of this binary",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.say("sidekey %s", version())
		},
	}
}

// version is the module's version as the Go tool recorded it, with the commit where there is no release, and the
// version of Go: "v1.2.0 go1.26.0", "devel 1a2b3c4d5e6f modified go1.26.0".
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	parts := []string{info.Main.Version}
	if info.Main.Version == "" || info.Main.Version == "(devel)" {
		parts = []string{"devel"}
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				parts = append(parts, s.Value[:min(len(s.Value), 12)])
			case s.Key == "vcs.modified" && s.Value == "true":
				parts = append(parts, "modified")
			}
		}
	}
	return strings.Join(append(parts, info.GoVersion), " ")
}
