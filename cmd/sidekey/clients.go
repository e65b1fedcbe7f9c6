package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) clientsCommand() *cobra.Command {
	return group("clients", "OAuth clients: services and applications that get tokens",
		a.clientsAddCommand(), a.clientsListCommand(), a.clientsShowCommand(), a.clientsRotateCommand(),
		a.clientsDisableCommand("disable", "Refuse a client and all its tokens everywhere", true),
		a.clientsDisableCommand("enable", "Let a disabled client in again", false),
		a.clientsDeleteCommand())
}

func clientPath(id string) string { return "/admin/v1/clients/" + url.PathEscape(id) }

// oauthClient is a client as the admin API answers it.
type oauthClient struct {
	ID             string   `json:"client_id"`
	Name           string   `json:"client_name"`
	AuthMethods    []string `json:"auth_methods"`
	Grants         []string `json:"grant_types"`
	Scope          string   `json:"scope"`
	Audiences      []string `json:"audiences"`
	AccessLifetime string   `json:"access_lifetime"`
	Roles          []string `json:"roles"`
	Disabled       bool     `json:"disabled"`
	Created        float64  `json:"created"`
	Secrets        []struct {
		Created float64 `json:"created"`
		Expires float64 `json:"expires"` // 0: never
	} `json:"secrets"`
	Secret string `json:"client_secret"` // when it is new
}

func (c *oauthClient) state() string {
	if c.Disabled {
		return "disabled"
	}
	return "enabled"
}

func (a *app) clientsAddCommand() *cobra.Command {
	var name, scope, lifetime, jwks string
	var auth, grants, audiences, roles []string
	cmd := &cobra.Command{
		Use:   "add CLIENT_ID",
		Short: "Register a client; its secret is shown this once",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			body := map[string]any{
				"client_id": args[0], "client_name": name, "scope": scope, "access_lifetime": lifetime,
				"auth_methods": auth, "grant_types": grants, "audiences": audiences, "roles": append([]string{}, roles...),
			}
			if jwks != "" {
				set, err := a.secretArg("JWK Set", jwks) // - and @FILE, as everywhere
				if err != nil {
					return err
				}
				if !json.Valid([]byte(set)) {
					return usagef("--jwks: it is no JSON")
				}
				body["jwks"] = json.RawMessage(set)
			}
			return a.changeClient(cmd, http.MethodPost, "/admin/v1/clients", body, "added client "+args[0])
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&name, "name", "", "name for people")
	flags.StringVar(&scope, "scope", "", "the most that its tokens have, words with a blank between")
	flags.StringArrayVar(&audiences, "audience", nil, "what its tokens may be for, the first by default; may be repeated (default issuer.audience)")
	flags.StringArrayVar(&grants, "grant", nil, "client_credentials, refresh_token, password or urn:ietf:params:oauth:grant-type:token-exchange; may be repeated")
	flags.StringArrayVar(&auth, "auth", nil, "client_secret_basic, client_secret_post, private_key_jwt or none; may be repeated")
	flags.StringVar(&jwks, "jwks", "", "its public keys, a JWK Set, for private_key_jwt: - reads standard input, @FILE a file")
	flags.StringVar(&lifetime, "access-lifetime", "", "how long its access tokens live (default issuer.access_lifetime, which is the most)")
	flags.StringArrayVar(&roles, "role", nil, "role of the tokens that it gets for itself; may be repeated")
	return a.addFormat(cmd)
}

// changeClient makes one call that answers a client, and shows a new secret where there is one: on standard output alone with
// what it is for on standard error, so that it can be piped into a file.
func (a *app) changeClient(cmd *cobra.Command, method, path string, body any, done string) error {
	c, err := a.adminClient()
	if err != nil {
		return err
	}
	r, err := c.call(cmd.Context(), method, path, body)
	if err != nil {
		return err
	}
	var answer oauthClient
	if err := r.decode(&answer); err != nil {
		return err
	}
	asTable, err := a.asTable()
	if err != nil {
		return err
	}
	if asTable && answer.Secret != "" {
		a.note("%s; its secret, which is not shown again:", done)
		return a.say("%s", answer.Secret)
	}
	return a.answer(r.body, func(w *tabwriter.Writer) { row(w, done) })
}

func (a *app) clientsListCommand() *cobra.Command {
	return a.addFormat(&cobra.Command{
		Use:   "list",
		Short: "List the clients",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var answer struct {
				Clients []oauthClient `json:"clients"`
			}
			return a.list(cmd, "/admin/v1/clients", &answer, func(w *tabwriter.Writer) {
				row(w, "CLIENT", "NAME", "AUTH", "GRANTS", "SCOPE", "STATE")
				for _, c := range answer.Clients {
					row(w, c.ID, c.Name, strings.Join(c.AuthMethods, ","), strings.Join(c.Grants, ","), c.Scope, c.state())
				}
			})
		},
	})
}

func (a *app) clientsShowCommand() *cobra.Command {
	return a.addFormat(&cobra.Command{
		Use:   "show CLIENT_ID",
		Short: "Show one client, without its secrets",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var c oauthClient
			return a.list(cmd, clientPath(args[0]), &c, func(w *tabwriter.Writer) {
				for _, line := range [][2]string{
					{"client", c.ID}, {"name", c.Name}, {"auth", strings.Join(c.AuthMethods, " ")}, {"grants", strings.Join(c.Grants, " ")},
					{"scope", c.Scope}, {"audiences", strings.Join(c.Audiences, " ")}, {"access lifetime", c.AccessLifetime},
					{"roles", strings.Join(c.Roles, " ")}, {"created", when(c.Created)}, {"state", c.state()},
				} {
					row(w, line[0], line[1])
				}
				for _, s := range c.Secrets {
					row(w, "secret", fmt.Sprintf("of %s, until %s", when(s.Created), when(s.Expires)))
				}
			})
		},
	})
}

func (a *app) clientsRotateCommand() *cobra.Command {
	var overlap time.Duration
	cmd := &cobra.Command{
		Use:   "rotate CLIENT_ID",
		Short: "Give a client a new secret, shown this once; the old one stays good for --overlap",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeClient(cmd, http.MethodPost, clientPath(args[0])+"/secret",
				map[string]any{"overlap": overlap.String()}, "rotated the secret of "+args[0])
		},
	}
	cmd.Flags().DurationVar(&overlap, "overlap", 24*time.Hour, "how long the old secret stays good; 0s ends it, and the client's tokens, at once")
	return a.addFormat(cmd)
}

func (a *app) clientsDisableCommand(use, short string, disabled bool) *cobra.Command {
	return a.disableCommand(use, "CLIENT_ID", short, "client", clientPath, disabled)
}

func (a *app) clientsDeleteCommand() *cobra.Command {
	return a.deleteCommand("CLIENT_ID", "Delete a client and refuse all its tokens everywhere", "client", clientPath)
}
