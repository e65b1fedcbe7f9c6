package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sidekey/sidekey/bus"
)

// The outcomes of a check.
const (
	checkOK   = "ok"
	checkWarn = "warn"
	checkFail = "fail"
)

// finding is what one check found: {"check": "disk", "status": "fail", "detail": "…", "do": "…"}. No secret is ever in one.
type finding struct {
	Check  string `json:"check"`
	Status string `json:"status"`
	Detail string `json:"detail"`
	Do     string `json:"do,omitempty"` // what to do; "": nothing
}

func (a *app) doctorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check this host: files, disk, certificates, clocks, versions, what can be reached; and say what to do",
		Long: "Check the issuer, the agent, or both, of this host: what lies in data_dir and agent.data_dir says which. Run it as their user.\n" +
			"Nothing is changed. Exit status 1 if a check fails; a warning is none.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.config(defaultConfig())
			if err != nil {
				return err
			}
			d := &doctor{app: a, cfg: cfg, now: time.Now()}
			d.examine(cmd.Context())
			return d.report()
		},
	}
	return a.addFormat(cmd)
}

// doctor is one examination.
type doctor struct {
	app           *app
	cfg           Config
	now           time.Time
	issuer, agent bool // of which there is something here
	findings      []finding
}

func (d *doctor) ok(check, format string, args ...any) {
	d.findings = append(d.findings, finding{check, checkOK, fmt.Sprintf(format, args...), ""})
}

func (d *doctor) warn(check, do, format string, args ...any) {
	d.findings = append(d.findings, finding{check, checkWarn, fmt.Sprintf(format, args...), do})
}

func (d *doctor) fail(check, do, format string, args ...any) {
	d.findings = append(d.findings, finding{check, checkFail, fmt.Sprintf(format, args...), do})
}

// probeWithin bounds each question to the network.
const probeWithin = 3 * time.Second

// examine makes all checks of what is here.
func (d *doctor) examine(ctx context.Context) {
	dir := d.cfg.DataDir
	for _, name := range []string{bus.KeysFile, masterKeyFile, "jetstream", identityDir, restoringFile, adminTokenFile} {
		d.issuer = d.issuer || exists(filepath.Join(dir, name))
	}
	d.agent = exists(filepath.Join(d.cfg.Agent.DataDir, identityDir))
	if !d.issuer && !d.agent {
		d.fail("host", "name the folders with --config FILE or --data-dir, or run it as the user that may read them", "neither an issuer (%s) nor an agent (%s) has been here", dir, d.cfg.Agent.DataDir)
		return
	}
	d.files()
	d.certificates()
	d.hostClock(clockSynced())
	if d.issuer {
		d.issuerState(ctx)
	}
	if d.agent {
		d.agentState(ctx)
	}
	d.busses(ctx)
}

// report prints what was found. A failed check is an error.
func (d *doctor) report() error {
	failed := 0
	for _, f := range d.findings {
		if f.Status == checkFail {
			failed++
		}
	}
	body, err := json.Marshal(map[string]any{"failed": failed, "findings": d.findings})
	if err != nil {
		return err
	}
	err = d.app.answer(body, func(w *tabwriter.Writer) {
		for _, f := range d.findings {
			row(w, f.Status, f.Check, f.Detail)
			if f.Do != "" {
				row(w, "", "", "-> "+f.Do)
			}
		}
	})
	if err == nil && failed > 0 {
		err = fmt.Errorf("%d of %d checks failed", failed, len(d.findings))
	}
	return err
}

// failErr is fail for an error.
func (d *doctor) failErr(check, do string, err error) {
	if errors.Is(err, context.Canceled) {
		return // the user ended it
	}
	d.fail(check, do, "%v", err)
}
