package main

import (
	"fmt"
	"net/http"
	"net/url"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

func (a *app) revokeCommand() *cobra.Command {
	var token, jti, sid, sub, client, reason string
	var w waiting
	cmd := &cobra.Command{
		Use:   "revoke (--token T | --jti ID | --sid ID | --sub SUB | --client ID)",
		Short: "Withdraw a token, a session, or all that a user or a client has, everywhere",
		Long: "Withdraw a token, a session, or all that a user or a client has, everywhere. The command returns once the entry is in\n" +
			"the log. With --wait it returns when no agent can accept it any more: each has applied the entry, or the last lease\n" +
			"under which it could vouch without knowing the entry has ended.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			body := map[string]any{}
			for name, value := range map[string]string{"jti": jti, "sid": sid, "sub": sub, "client_id": client, "reason": reason} {
				if value != "" {
					body[name] = value
				}
			}
			if token != "" {
				secret, err := a.secretArg("token", token)
				if err != nil {
					return err
				}
				body["token"] = secret
			}
			if w.on {
				return a.withdraw(cmd, &w, http.MethodPost, "/admin/v1/revocations", body, "revoked")
			}
			c, err := a.adminClient()
			if err != nil {
				return err
			}
			r, err := c.call(cmd.Context(), http.MethodPost, "/admin/v1/revocations", body)
			if err != nil {
				return err
			}
			var receipt struct {
				Seq uint64 `json:"seq"`
			}
			if err := r.decode(&receipt); err != nil {
				return err
			}
			return a.answer(r.body, func(w *tabwriter.Writer) { row(w, fmt.Sprintf("revoked at entry %d", receipt.Seq)) })
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&token, "token", "", "a token: an access token's jti, a refresh token's session, the API key or opaque token that has this text; - reads standard input, @FILE a file")
	flags.StringVar(&jti, "jti", "", "the id of one token, or of an API key")
	flags.StringVar(&sid, "sid", "", "a session")
	flags.StringVar(&sub, "sub", "", "a user's id: all sessions that have begun so far, and all API keys and tokens for good")
	flags.StringVar(&client, "client", "", "a client's id: all sessions that have begun so far, and all API keys and tokens for good")
	flags.StringVar(&reason, "reason", "", "why, for the record")
	for _, name := range []string{"token", "jti", "sid", "sub", "client"} {
		a.refuseEmpty(cmd, name)
	}
	cmd.MarkFlagsOneRequired("token", "jti", "sid", "sub", "client")
	cmd.MarkFlagsMutuallyExclusive("token", "jti", "sid", "sub", "client")
	return a.addFormat(a.addWait(cmd, &w))
}

// refuseEmpty makes `--flag ""` a usage error: it is an unset variable of a script, and must not revoke nothing in
// silence.
func (a *app) refuseEmpty(cmd *cobra.Command, name string) {
	checkFirst(cmd, func() error {
		if f := cmd.Flags().Lookup(name); f.Changed && f.Value.String() == "" {
			return usagef("--%s is empty", name)
		}
		return nil
	})
}

func (a *app) sessionsCommand() *cobra.Command {
	var sub string
	list := &cobra.Command{
		Use:   "list",
		Short: "List the sessions, of one user or of all",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path := "/admin/v1/sessions"
			if sub != "" {
				path += "?sub=" + url.QueryEscape(sub)
			}
			var answer struct {
				Sessions []struct {
					SessionID string  `json:"sid"`
					Subject   string  `json:"sub"`
					ClientID  string  `json:"client_id"`
					Created   float64 `json:"created"`
					LastUsed  float64 `json:"last_used"`
					Expires   float64 `json:"expires"`
					Closed    float64 `json:"closed"` // 0: open
				} `json:"sessions"`
			}
			return a.list(cmd, path, &answer, func(w *tabwriter.Writer) {
				row(w, "SID", "SUB", "CLIENT", "CREATED", "LAST USED", "EXPIRES", "STATE")
				for _, s := range answer.Sessions {
					state := "open"
					if s.Closed != 0 {
						state = "closed " + when(s.Closed)
					}
					row(w, s.SessionID, s.Subject, s.ClientID, when(s.Created), when(s.LastUsed), when(s.Expires), state)
				}
			})
		},
	}
	list.Flags().StringVar(&sub, "sub", "", "only this user's")
	var w waiting
	revoke := &cobra.Command{
		Use:   "revoke SID",
		Short: "End a session everywhere",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withdraw(cmd, &w, http.MethodDelete, "/admin/v1/sessions/"+url.PathEscape(args[0]), nil, "revoked session "+args[0])
		},
	}
	return group("sessions", "The sessions of users", a.addFormat(list), a.addFormat(a.addWait(revoke, &w)))
}
