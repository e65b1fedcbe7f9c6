package main

import (
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

func (a *app) usersCommand() *cobra.Command {
	return group("users", "Who may log in",
		a.usersAddCommand(), a.usersListCommand(), a.usersPasswdCommand(),
		a.usersDisableCommand("disable", "Refuse a user's logins and log it out everywhere", true),
		a.usersDisableCommand("enable", "Let a disabled user log in again", false),
		a.usersDeleteCommand())
}

func userPath(name string) string { return "/admin/v1/users/" + url.PathEscape(name) }

func (a *app) usersAddCommand() *cobra.Command {
	var id, password, scope, email string
	var roles []string
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a user; without --password it is asked for",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.adminClient()
			if err != nil {
				return err
			}
			secret, err := a.password(password, true)
			if err != nil {
				return err
			}
			body := map[string]any{
				"username": args[0], "password": secret, "scope": scope, "roles": append([]string{}, roles...), "email": email,
			}
			if id != "" {
				body["id"] = id
			}
			r, err := c.call(cmd.Context(), http.MethodPost, "/admin/v1/users", body)
			if err != nil {
				return err
			}
			return a.answer(r.body, func(w *tabwriter.Writer) { row(w, "added user "+args[0]) })
		},
	}
	cmd.Flags().StringVar(&id, "id", "", "the user's id, sub of its tokens: that of a user who comes from elsewhere (default a new one)")
	cmd.Flags().StringVar(&password, "password", "", "the password: - reads standard input, @FILE a file")
	cmd.Flags().StringVar(&scope, "scope", "", "scope of the user's tokens, words with a blank between")
	cmd.Flags().StringArrayVar(&roles, "role", nil, "role of the user; may be repeated")
	cmd.Flags().StringVar(&email, "email", "", "mail address")
	return a.addFormat(cmd)
}

func (a *app) usersListCommand() *cobra.Command {
	return a.addFormat(&cobra.Command{
		Use:   "list",
		Short: "List the users",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var answer struct {
				Users []struct {
					Username string   `json:"username"`
					ID       string   `json:"id"`
					Scope    string   `json:"scope"`
					Roles    []string `json:"roles"`
					Email    string   `json:"email"`
					Disabled bool     `json:"disabled"`

					LastLogin float64 `json:"last_login"`
				} `json:"users"`
			}
			return a.list(cmd, "/admin/v1/users", &answer, func(w *tabwriter.Writer) {
				row(w, "USER", "ID", "SCOPE", "ROLES", "EMAIL", "STATE", "LAST LOGIN")
				for _, u := range answer.Users {
					state := "enabled"
					if u.Disabled {
						state = "disabled"
					}
					row(w, u.Username, u.ID, u.Scope, strings.Join(u.Roles, ","), u.Email, state, when(u.LastLogin))
				}
			})
		},
	})
}

// list gets path from the admin API, decodes it into answer and prints it; table may read answer.
func (a *app) list(cmd *cobra.Command, path string, answer any, table func(*tabwriter.Writer)) error {
	c, err := a.adminClient()
	if err != nil {
		return err
	}
	r, err := c.call(cmd.Context(), http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	if err := r.decode(answer); err != nil {
		return err
	}
	return a.answer(r.body, table)
}

func (a *app) usersPasswdCommand() *cobra.Command {
	var password string
	var w waiting
	cmd := &cobra.Command{
		Use:   "passwd NAME",
		Short: "Set a new password; the user's sessions end everywhere",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			secret, err := a.password(password, true)
			if err != nil {
				return err
			}
			return a.withdraw(cmd, &w, http.MethodPatch, userPath(args[0]), map[string]any{"password": secret},
				"changed the password of "+args[0])
		},
	}
	cmd.Flags().StringVar(&password, "password", "", "the new password: - reads standard input, @FILE a file")
	return a.addFormat(a.addWait(cmd, &w))
}

func (a *app) usersDisableCommand(use, short string, disabled bool) *cobra.Command {
	return a.disableCommand(use, "NAME", short, "user", userPath, disabled)
}

func (a *app) usersDeleteCommand() *cobra.Command {
	return a.deleteCommand("NAME", "Delete a user and log it out everywhere", "user", userPath)
}

// disableCommand disables or enables what stands at path(its argument).
func (a *app) disableCommand(use, arg, short, what string, path func(string) string, disabled bool) *cobra.Command {
	var w waiting
	cmd := &cobra.Command{
		Use:   use + " " + arg,
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withdraw(cmd, &w, http.MethodPatch, path(args[0]), map[string]any{"disabled": disabled}, use+"d "+what+" "+args[0])
		},
	}
	if disabled {
		a.addWait(cmd, &w)
	}
	return a.addFormat(cmd)
}

// deleteCommand deletes what stands at path(its argument).
func (a *app) deleteCommand(arg, short, what string, path func(string) string) *cobra.Command {
	var w waiting
	return a.addFormat(a.addWait(&cobra.Command{
		Use:   "delete " + arg,
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withdraw(cmd, &w, http.MethodDelete, path(args[0]), nil, "deleted "+what+" "+args[0])
		},
	}, &w))
}

// change makes one call that alters something and prints the answer, or done where a table is asked for or the
// answer is empty (204).
func (a *app) change(cmd *cobra.Command, method, path string, body any, done string) error {
	c, err := a.adminClient()
	if err != nil {
		return err
	}
	r, err := c.call(cmd.Context(), method, path, body)
	if err != nil {
		return err
	}
	if len(r.body) == 0 {
		return a.say("%s", done)
	}
	return a.answer(r.body, func(w *tabwriter.Writer) { row(w, done) })
}
