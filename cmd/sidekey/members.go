package main

import (
	"net/http"
	"net/url"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// agentsAnswer is GET /admin/v1/agents.
type agentsAnswer struct {
	Agents []memberAnswer `json:"agents"`
}

// issuersAnswer is GET /admin/v1/issuers.
type issuersAnswer struct {
	Issuers []memberAnswer `json:"issuers"`
}

// memberAnswer is an agent or an issuer; times are NumericDate, 0: never.
type memberAnswer struct {
	Name    string  `json:"name"`
	Run     string  `json:"run,omitempty"`
	Version string  `json:"version,omitempty"`
	Epoch   uint64  `json:"epoch,omitempty"`
	Seq     uint64  `json:"seq,omitempty"`
	Seen    float64 `json:"seen,omitempty"`
	Joined  float64 `json:"joined"`
	Removed float64 `json:"removed,omitempty"`
}

func (l *agentsAnswer) table(w *tabwriter.Writer) {
	row(w, "AGENT", "VERSION", "EPOCH", "SEQ", "SEEN", "JOINED", "REMOVED")
	for _, g := range l.Agents {
		row(w, g.Name, g.Version, g.Epoch, g.Seq, when(g.Seen), when(g.Joined), when(g.Removed))
	}
}

func (l *issuersAnswer) table(w *tabwriter.Writer) {
	row(w, "ISSUER", "JOINED", "REMOVED")
	for _, g := range l.Issuers {
		row(w, g.Name, when(g.Joined), when(g.Removed))
	}
}

func (a *app) agentsCommand() *cobra.Command {
	var answer agentsAnswer
	return group("agents", "The agents of the fleet",
		a.listMembers("List the agents and the entry that each has applied", "/admin/v1/agents", &answer, answer.table),
		a.addMember("agent", "/admin/v1/agents"),
		a.removeMember("Strike an agent off: it is cut off from the bus at once, and vouches no longer than its lease", "agent", "/admin/v1/agents"),
	)
}

func (a *app) issuersCommand() *cobra.Command {
	var answer issuersAnswer
	return group("issuers", "The issuers that joined another one",
		a.listMembers("List the issuers that joined", "/admin/v1/issuers", &answer, answer.table),
		a.addMember("issuer", "/admin/v1/issuers"),
		a.removeMember("Strike an issuer off: it is cut off from the bus at once; the secrets that it has, it keeps", "issuer", "/admin/v1/issuers"),
	)
}

func (a *app) listMembers(short, path string, answer any, table func(*tabwriter.Writer)) *cobra.Command {
	return a.addFormat(&cobra.Command{
		Use:   "list",
		Short: short,
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.list(cmd, path, answer, table) },
	})
}

func (a *app) addMember(role, path string) *cobra.Command {
	var expires string
	var audiences []string
	var replace bool
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Print a join token, good for one use: start the " + role + " once with --join FILE",
		Long: "Print a join token for the " + role + " NAME. It is a secret: who has it first joins, once. Hand it over as a file that\n" +
			"only the " + role + "'s user can read, and start `sidekey " + role + " --join FILE` there once; it needs no flag after that.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			body := map[string]any{"name": args[0]}
			if expires != "" {
				body["expires"] = expires
			}
			if len(audiences) > 0 {
				body["audiences"] = audiences
			}
			c, err := a.adminClient()
			if err != nil {
				return err
			}
			if replace {
				if _, err := c.call(cmd.Context(), http.MethodDelete, path+"/"+url.PathEscape(args[0]), nil); err != nil {
					return err
				}
			}
			r, err := c.call(cmd.Context(), http.MethodPost, path, body)
			if err != nil {
				return err
			}
			var answer struct {
				Token string `json:"token"`
			}
			if err := r.decode(&answer); err != nil {
				return err
			}
			return a.say(answer.Token)
		},
	}
	cmd.Flags().BoolVar(&replace, "replace", false, "for who comes in the place of the "+role+" of that name: strike that off first, as remove does")
	cmd.Flags().StringVar(&expires, "expires", "", "how long the token may be used, at most 168h (default 1h)")
	if role == "agent" {
		cmd.Flags().StringSliceVar(&audiences, "audiences", nil, "the audiences whose HS256 secrets it may have (default the ring's own)")
	}
	return cmd
}

func (a *app) removeMember(short, role, path string) *cobra.Command {
	return a.addFormat(&cobra.Command{
		Use:   "remove NAME",
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd, http.MethodDelete, path+"/"+url.PathEscape(args[0]), nil, "removed "+role+" "+args[0])
		},
	})
}
