package main

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/agent/rules"
	"github.com/sidekey/sidekey/bus"
)

// checkHandedOut tells what is wrong with a set of rules before it is handed out. Of the schemes it knows those of this
// program; an agent that has fewer refuses a set that names another.
func checkHandedOut(name, text string) error {
	_, err := rules.ParseSet(name, text, rules.Options{Authenticators: agent.Schemes()})
	return err
}

const rulesAdmin = "/admin/v1/rules"

func (a *app) rulesPushCommand() *cobra.Command {
	w := waiting{means: "every agent has read it or vouches for nobody; sidekey rules status shows, some seconds later, who could not take it"}
	var replaces uint64
	var force bool
	cmd := &cobra.Command{
		Use:   "push NAME FILE",
		Short: "Hand a set of rules out to the agents: those that have NAME in agent.rules_sets decide by it",
		Long: "Hand a set of rules out to the agents: those that have NAME in agent.rules_sets decide by it at once, and Envoy's routes\n" +
			"may name it. The first push of a name needs no flag; a later one says by --replaces which version it takes the place of,\n" +
			"so that nobody writes over what they have not seen. A text that stands already changes nothing.\n\n" +
			"With --wait every agent has read it at the end. One that could not take it (a name that its own file has too, a scheme\n" +
			"that it lacks) goes on by the version before: `sidekey rules status` tells, once the agents have told their status.",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := readRulesText(args[1])
			if err != nil {
				return err
			}
			if err := checkHandedOut(args[1], text); err != nil {
				return err
			}
			body := map[string]any{"name": args[0], "text": text}
			if replaces != 0 {
				body["replaces"] = replaces
			}
			if force {
				body["force"] = true
			}
			return a.withdraw(cmd, &w, http.MethodPost, rulesAdmin, body, "handed out rules "+args[0])
		},
	}
	cmd.Flags().Uint64Var(&replaces, "replaces", 0, "the version that stands now, as `sidekey rules list` shows it")
	cmd.Flags().BoolVar(&force, "force", false, "replace whatever stands")
	cmd.MarkFlagsMutuallyExclusive("replaces", "force")
	return a.addFormat(a.addWait(cmd, &w))
}

// readRulesText reads a file whose rules are to be handed out.
func readRulesText(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("reading the rules: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, bus.MaxRulesText+1))
	if err == nil && len(data) > bus.MaxRulesText {
		err = fmt.Errorf("%s: more than %d bytes; hand it out as several sets", path, bus.MaxRulesText)
	}
	return string(data), err
}

func (a *app) rulesWithdrawCommand() *cobra.Command {
	w := waiting{means: "no agent decides by it any more"}
	cmd := &cobra.Command{
		Use:   "withdraw NAME",
		Short: "Take a set of rules back: an agent that has NAME in agent.rules_sets denies every request from there on",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withdraw(cmd, &w, http.MethodDelete, rulesAdmin+"/"+url.PathEscape(args[0]), nil, "withdrew rules "+args[0])
		},
	}
	return a.addFormat(a.addWait(cmd, &w))
}

// rulesAnswer is GET /admin/v1/rules.
type rulesAnswer struct {
	Rules []struct {
		Name      string  `json:"name"`
		Version   uint64  `json:"version"`
		Changed   float64 `json:"changed"`
		Withdrawn bool    `json:"withdrawn"`
		Bytes     int     `json:"bytes"`
	} `json:"rules"`
	Agents []struct {
		Agent   string  `json:"agent"`
		Seen    float64 `json:"seen"`
		Rules   int     `json:"rules"`
		Version string  `json:"version"`
		Fault   string  `json:"fault"`
		Sets    []struct {
			Name      string `json:"name"`
			Version   uint64 `json:"version"`
			Merged    bool   `json:"merged"`
			Withdrawn bool   `json:"withdrawn"`
			Fault     string `json:"fault"`
		} `json:"sets"`
	} `json:"agents"`
}

func (a *app) rulesListCommand() *cobra.Command {
	return a.addFormat(&cobra.Command{
		Use:   "list",
		Short: "List the sets of rules that were handed out, withdrawn ones too",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var answer rulesAnswer
			return a.list(cmd, rulesAdmin, &answer, func(w *tabwriter.Writer) {
				row(w, "NAME", "VERSION", "CHANGED", "BYTES", "STATE")
				for _, s := range answer.Rules {
					row(w, s.Name, s.Version, when(s.Changed), s.Bytes, stateOfSet(s.Withdrawn))
				}
			})
		},
	})
}

func stateOfSet(withdrawn bool) string {
	if withdrawn {
		return "withdrawn"
	}
	return "handed out"
}

func (a *app) rulesShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Print the text of a set of rules that was handed out",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.adminClient()
			if err != nil {
				return err
			}
			r, err := c.call(cmd.Context(), http.MethodGet, rulesAdmin+"/"+url.PathEscape(args[0]), nil)
			if err != nil {
				return err
			}
			var s struct {
				Text      string `json:"text"`
				Withdrawn bool   `json:"withdrawn"`
			}
			if err := r.decode(&s); err != nil {
				return err
			}
			if s.Withdrawn {
				return fmt.Errorf("rules %s were withdrawn", args[0])
			}
			_, err = io.WriteString(a.stdout, s.Text)
			return err
		},
	}
}

func (a *app) rulesStatusCommand() *cobra.Command {
	return a.addFormat(&cobra.Command{
		Use:   "status",
		Short: "Show which agent decides by which version of which set; exit status 1 when one does not decide by the newest of those it merges",
		Long: "Show which agent decides by which version of which set, as the agents said last (10 s ago at most, where they are\n" +
			"connected). Exit status 1 when an agent was not heard, when its rules as a whole have a fault, or when a set that it merges\n" +
			"(agent.rules_sets) has a fault or is not the newest version. Of a set that it does not merge, which a route of Envoy may\n" +
			"name all the same, the table alone tells.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var answer rulesAnswer
			err := a.list(cmd, rulesAdmin, &answer, func(w *tabwriter.Writer) { answer.table(w) })
			if err != nil {
				return err
			}
			if behind := answer.behind(); behind > 0 {
				return fmt.Errorf("%d of %d agents do not decide by the newest rules", behind, len(answer.Agents))
			}
			return nil
		},
	})
}

// table has a line for each set of each agent.
func (l *rulesAnswer) table(w *tabwriter.Writer) {
	newest := l.newest()
	row(w, "AGENT", "SET", "VERSION", "NEWEST", "MERGED", "FAULT", "SEEN")
	for _, g := range l.Agents {
		switch {
		case g.Seen == 0:
			row(w, g.Agent, "-", "-", "-", "-", "not heard yet", "-")
			continue
		case len(g.Sets) == 0:
			row(w, g.Agent, "-", "-", "-", "-", cmp.Or(g.Fault, "-"), when(g.Seen))
			continue
		case g.Fault != "":
			row(w, g.Agent, "(all)", "-", "-", "-", g.Fault, when(g.Seen))
		}
		for _, s := range g.Sets {
			version := strconv.FormatUint(s.Version, 10)
			if s.Version == 0 {
				version = "none"
			} else if s.Withdrawn {
				version += " (withdrawn)"
			}
			merged := "no"
			if s.Merged {
				merged = "yes"
			}
			row(w, g.Agent, s.Name, version, newest[s.Name], merged, cmp.Or(s.Fault, "-"), when(g.Seen))
		}
	}
}

func (l *rulesAnswer) newest() map[string]uint64 {
	newest := make(map[string]uint64)
	for _, s := range l.Rules {
		newest[s.Name] = s.Version
	}
	return newest
}

// behind counts the agents that do not decide as the newest of the sets say that they merge.
func (l *rulesAnswer) behind() int {
	n, newest := 0, l.newest()
	for _, g := range l.Agents {
		late := g.Seen == 0 || g.Fault != ""
		for _, s := range g.Sets {
			late = late || s.Merged && (s.Fault != "" || s.Version < newest[s.Name])
		}
		if late {
			n++
		}
	}
	return n
}
