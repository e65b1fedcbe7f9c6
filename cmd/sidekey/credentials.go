package main

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) credentialsCommand() *cobra.Command {
	return group("credentials", "API keys and opaque tokens",
		a.credentialsAddCommand(), a.credentialsListCommand(), a.credentialsShowCommand(), a.credentialsChangeCommand(),
		a.credentialsRotateCommand(), a.credentialsRevokeCommand(), a.credentialsDeleteCommand(), a.credentialsImportCommand())
}

func credentialPath(id string) string { return "/admin/v1/credentials/" + url.PathEscape(id) }

// credential is one as the admin API answers it.
type credential struct {
	ID         string   `json:"id"`
	Type       string   `json:"type"`
	Name       string   `json:"name"`
	Subject    string   `json:"sub"`
	Username   string   `json:"username"`
	ClientID   string   `json:"client_id"`
	Scope      string   `json:"scope"`
	Roles      []string `json:"roles"`
	Networks   []string `json:"networks"`
	Created    float64  `json:"created"`
	Expires    float64  `json:"expires"`
	LastUsed   float64  `json:"last_used"`
	LastAgent  string   `json:"last_agent"`
	Replaces   string   `json:"replaces"`
	ReplacedBy string   `json:"replaced_by"`
	State      string   `json:"state"`
	Reason     string   `json:"reason"`
	Secret     string   `json:"secret"` // when it is new
}

func (a *app) credentialsAddCommand() *cobra.Command {
	var user, sub, kind, scope, client, expires string
	var roles, networks []string
	cmd := &cobra.Command{
		Use:   "add NAME (--user USER | --sub SUB)",
		Short: "Make an API key or a token for a user; its text is shown this once",
		Long: "Make an API key (X-API-Key), or with --type token an opaque token (Authorization: Token), for a user. Its text is written\n" +
			"to standard output, this once: sidekey keeps only its hash. Without --scope and --role it may do what the user may,\n" +
			"now and later; with them never more than both the user and they allow.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			body := map[string]any{"name": args[0], "type": kind}
			flags := cmd.Flags()
			for name, value := range map[string]string{"username": user, "sub": sub, "client_id": client} {
				if value != "" {
					body[name] = value
				}
			}
			if flags.Changed("scope") {
				body["scope"] = scope
			}
			if flags.Changed("role") {
				body["roles"] = roles
			}
			if len(networks) > 0 {
				body["networks"] = networks
			}
			if expires != "" {
				at, err := expiry(expires)
				if err != nil {
					return err
				}
				body["expires"] = at
			}
			return a.newCredential(cmd, "/admin/v1/credentials", body, "added credential")
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&user, "user", "", "name of the user whose it is")
	flags.StringVar(&sub, "sub", "", "id of the user whose it is")
	flags.StringVar(&kind, "type", "api_key", "api_key or token")
	flags.StringVar(&scope, "scope", "", "the most that it may have, words with a blank between (default what the user has)")
	flags.StringArrayVar(&roles, "role", nil, "role that it may have; may be repeated (default what the user has)")
	flags.StringSliceVar(&networks, "network", nil, "network (10.0.0.0/8) or address from which it may be used, by comma (default everywhere)")
	flags.StringVar(&expires, "expires", "", "when it ends: a duration (720h), a day (2027-01-31) or an RFC 3339 time (default never)")
	flags.StringVar(&client, "client", "", "client_id that it has, and ends with")
	for _, name := range []string{"user", "sub"} {
		a.refuseEmpty(cmd, name)
	}
	cmd.MarkFlagsOneRequired("user", "sub")
	cmd.MarkFlagsMutuallyExclusive("user", "sub")
	return a.addFormat(cmd)
}

// expiry reads when a credential is to end: a NumericDate, 0 for never.
func expiry(text string) (int64, error) {
	if text == "never" {
		return 0, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return time.Now().Add(d).Unix(), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if at, err := time.Parse(layout, text); err == nil {
			return at.Unix(), nil
		}
	}
	return 0, usagef("--expires: want a duration such as 720h, a day such as 2027-01-31, an RFC 3339 time or never, got %q", text)
}

// newCredential makes one call that answers a new credential. In a table its text stands alone on standard output, with what
// it is on standard error, so that it can be piped into a file.
func (a *app) newCredential(cmd *cobra.Command, path string, body any, done string) error {
	c, err := a.adminClient()
	if err != nil {
		return err
	}
	r, err := c.call(cmd.Context(), http.MethodPost, path, body)
	if err != nil {
		return err
	}
	var answer struct {
		credential
		Old credential `json:"old"`
	}
	if err := r.decode(&answer); err != nil {
		return err
	}
	asTable, err := a.asTable()
	if err != nil {
		return err
	}
	if !asTable {
		return a.answer(r.body, nil)
	}
	if answer.Old.ID != "" {
		a.note("%s is %s%s", answer.Old.ID, answer.Old.State, until(answer.Old.Expires))
	}
	a.note("%s %s; its text, which is not shown again:", done, answer.ID)
	return a.say("%s", answer.Secret)
}

// until is " until" and a time, or nothing.
func until(at float64) string {
	if at == 0 {
		return ""
	}
	return " until " + when(at)
}

func (a *app) credentialsListCommand() *cobra.Command {
	var user, sub string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the credentials, of one user or of all",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := url.Values{}
			if user != "" {
				q.Set("username", user)
			}
			if sub != "" {
				q.Set("sub", sub)
			}
			var answer struct {
				Credentials []credential `json:"credentials"`
			}
			return a.list(cmd, "/admin/v1/credentials?"+q.Encode(), &answer, func(w *tabwriter.Writer) {
				row(w, "ID", "TYPE", "NAME", "USER", "SCOPE", "EXPIRES", "LAST USED", "STATE")
				for _, c := range answer.Credentials {
					row(w, c.ID, c.Type, c.Name, c.Username, c.Scope, when(c.Expires), when(c.LastUsed), c.State)
				}
			})
		},
	}
	cmd.Flags().StringVar(&user, "user", "", "only this user's, by name")
	cmd.Flags().StringVar(&sub, "sub", "", "only this user's, by id")
	cmd.MarkFlagsMutuallyExclusive("user", "sub")
	return a.addFormat(cmd)
}

func (a *app) credentialsShowCommand() *cobra.Command {
	return a.addFormat(&cobra.Command{
		Use:   "show ID",
		Short: "Show one credential, without its text",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var c credential
			return a.list(cmd, credentialPath(args[0]), &c, func(w *tabwriter.Writer) { c.table(w) })
		},
	})
}

func (c *credential) table(w *tabwriter.Writer) {
	used := when(c.LastUsed)
	if c.LastAgent != "" {
		used += " at " + c.LastAgent
	}
	networks := strings.Join(c.Networks, ", ")
	if networks == "" {
		networks = "everywhere"
	}
	for _, line := range [][2]string{
		{"id", c.ID}, {"type", c.Type}, {"name", c.Name}, {"user", c.Username}, {"sub", c.Subject}, {"client", c.ClientID}, {"scope", c.Scope},
		{"roles", strings.Join(c.Roles, ",")}, {"networks", networks}, {"created", when(c.Created)}, {"expires", when(c.Expires)},
		{"last used", used}, {"replaces", c.Replaces}, {"replaced by", c.ReplacedBy}, {"state", c.State}, {"reason", c.Reason},
	} {
		row(w, line[0], line[1])
	}
}

func (a *app) credentialsChangeCommand() *cobra.Command {
	var name, scope, expires string
	var networks []string
	var w waiting
	cmd := &cobra.Command{
		Use:   "change ID",
		Short: "Change a credential's name, end, networks or scope; its text stays",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			body := map[string]any{}
			flags := cmd.Flags()
			if flags.Changed("name") {
				body["name"] = name
			}
			if flags.Changed("scope") {
				body["scope"] = scope
			}
			if flags.Changed("network") {
				body["networks"] = append([]string{}, networks...)
			}
			if flags.Changed("expires") {
				at, err := expiry(expires)
				if err != nil {
					return err
				}
				body["expires"] = at
			}
			return a.withdraw(cmd, &w, http.MethodPatch, credentialPath(args[0]), body, "changed credential "+args[0])
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&name, "name", "", "another name")
	flags.StringVar(&scope, "scope", "", "less scope than it has")
	flags.StringSliceVar(&networks, "network", nil, `networks from which it may be used, by comma ("": everywhere)`)
	flags.StringVar(&expires, "expires", "", "when it ends: a duration (720h), a day (2027-01-31), an RFC 3339 time or never")
	cmd.MarkFlagsOneRequired("name", "scope", "network", "expires")
	return a.addFormat(a.addWait(cmd, &w))
}

func (a *app) credentialsRotateCommand() *cobra.Command {
	var overlap time.Duration
	cmd := &cobra.Command{
		Use:   "rotate ID",
		Short: "Make a successor with the same name and rights; the old text works for --overlap more",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.newCredential(cmd, credentialPath(args[0])+"/rotate", map[string]any{"overlap": overlap.String()}, "rotated it into")
		},
	}
	cmd.Flags().DurationVar(&overlap, "overlap", 24*time.Hour, "how long the old text works beside the new one; 0s: not at all")
	return a.addFormat(cmd)
}

func (a *app) credentialsRevokeCommand() *cobra.Command {
	var reason string
	var w waiting
	cmd := &cobra.Command{
		Use:   "revoke ID",
		Short: "Refuse a credential everywhere, for good; its record stays for the list",
		Long: "Refuse a credential everywhere, for good. With --wait the command returns when no agent can accept it any more. Who has\n" +
			"only the text uses `sidekey revoke --token -`.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			body := map[string]any{}
			if reason != "" {
				body["reason"] = reason
			}
			return a.withdraw(cmd, &w, http.MethodPost, credentialPath(args[0])+"/revoke", body, "revoked credential "+args[0])
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record")
	return a.addFormat(a.addWait(cmd, &w))
}

func (a *app) credentialsDeleteCommand() *cobra.Command {
	var w waiting
	return a.addFormat(a.addWait(&cobra.Command{
		Use:   "delete ID",
		Short: "Refuse a credential everywhere and forget it; a later import of the same text brings it back",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withdraw(cmd, &w, http.MethodDelete, credentialPath(args[0]), nil, fmt.Sprintf("deleted credential %s", args[0]))
		},
	}, &w))
}
