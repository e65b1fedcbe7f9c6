package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

func (a *app) tokenCommand() *cobra.Command {
	return group("token", "One token: get, prove or read it",
		a.tokenIssueCommand(), a.tokenVerifyCommand(), a.tokenInspectCommand())
}

func (a *app) tokenIssueCommand() *cobra.Command {
	var user, password string
	cmd := &cobra.Command{
		Use:   "issue --user NAME",
		Short: "Log in at the issuer and print the tokens",
		Long:  "Log in at the issuer with a user's password, as an application does. A table is one line per token; as JSON it is\nwhat the issuer answers: {\"access\", \"refresh\"}.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.publicClient(func(c IssuerConfig) string { return c.Listen })
			if err != nil {
				return err
			}
			secret, err := a.password(password, false)
			if err != nil {
				return err
			}
			r, err := c.call(cmd.Context(), http.MethodPost, "/api/token/", map[string]string{"username": user, "password": secret})
			if err != nil {
				return err
			}
			var pair struct {
				Access  string `json:"access"`
				Refresh string `json:"refresh"`
			}
			if err := r.decode(&pair); err != nil {
				return err
			}
			return a.answer(r.body, func(w *tabwriter.Writer) {
				row(w, "access", pair.Access)
				row(w, "refresh", pair.Refresh)
			})
		},
	}
	cmd.Flags().StringVar(&user, "user", "", "name of the user")
	cmd.Flags().StringVar(&password, "password", "", "the password: - reads standard input, @FILE a file; else it is asked for")
	cmd.MarkFlagsOneRequired("user")
	return a.addFormat(cmd)
}

func (a *app) tokenVerifyCommand() *cobra.Command {
	var agent, audience, scope, jti string
	var all bool
	cmd := &cobra.Command{
		Use:   "verify (TOKEN | --everywhere --jti ID)",
		Short: "Ask an agent about a token, or all of them; exit status 1 when it is refused",
		Long: "Ask the agent of this host about a token; exit status 1 when it is refused. With --everywhere ask the issuer, which\n" +
			"asks every agent and shows who says something else first; exit status 1 unless all accept it. The token is proven by\n" +
			"the issuer and not sent on.",
		Args: func(cmd *cobra.Command, args []string) error {
			if jti != "" {
				return cobra.NoArgs(cmd, args)
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if jti != "" {
				return a.verifyEverywhere(cmd, "", jti)
			}
			token, err := a.secretArg("token", args[0])
			if err != nil {
				return err
			}
			if all {
				return a.verifyEverywhere(cmd, token, "")
			}
			c, err := a.agentClient(agent)
			if err != nil {
				return err
			}
			body := map[string]string{"token": token}
			if audience != "" {
				body["audience"] = audience
			}
			if scope != "" {
				body["scope"] = scope
			}
			r, err := c.send(cmd.Context(), http.MethodPost, "/v1/verify", body)
			if err != nil {
				return err
			}
			return a.verdict(c, r)
		},
	}
	cmd.Flags().StringVar(&agent, "agent", "", "address of the agent, a URL or unix:/path (default agent.listen)")
	cmd.Flags().StringVar(&audience, "audience", "", "audience that the token must have (default the agent's)")
	cmd.Flags().StringVar(&scope, "scope", "", "scope that the token must have")
	cmd.Flags().BoolVar(&all, "everywhere", false, "ask every agent, through the issuer")
	cmd.Flags().StringVar(&jti, "jti", "", "with --everywhere: the id of a token, where the token itself is not at hand")
	a.refuseEmpty(cmd, "jti")
	checkFirst(cmd, func() error {
		if jti != "" && !all {
			return usagef("--jti is of use with --everywhere only: an agent judges the token itself")
		}
		return nil
	})
	for _, name := range []string{"agent", "audience", "scope"} {
		cmd.MarkFlagsMutuallyExclusive("everywhere", name)
	}
	return a.addFormat(cmd)
}

// verdict prints what an agent said about a token. A refusal is an error that begins with its reason.
func (a *app) verdict(c *client, r reply) error {
	var v struct {
		Active      *bool          `json:"active"`
		Reason      string         `json:"reason"`
		Error       string         `json:"error"`
		Description string         `json:"error_description"`
		Claims      map[string]any `json:"claims"`
		KeyID       string         `json:"kid"`
		Alg         string         `json:"alg"`
		Seq         uint64         `json:"seq"`
	}
	if json.Unmarshal(r.body, &v) != nil || v.Active == nil {
		return c.refused(r)
	}
	asTable, err := a.asTable()
	if err != nil {
		return err
	}
	if r.status == http.StatusOK || !asTable {
		err = a.answer(r.body, func(w *tabwriter.Writer) {
			row(w, "active", "yes, at entry "+fmt.Sprint(v.Seq))
			row(w, "kid", v.KeyID)
			row(w, "alg", v.Alg)
			claimRows(w, v.Claims)
		})
	}
	if err != nil || r.status == http.StatusOK {
		return err
	}
	reason := v.Reason
	if reason == "" {
		reason = v.Error
	}
	if v.Description != "" {
		reason += ": " + v.Description
	}
	return errors.New("token denied: " + reason)
}

func (a *app) tokenInspectCommand() *cobra.Command {
	return a.addFormat(&cobra.Command{
		Use:   "inspect TOKEN",
		Short: "Show what a token says, without proving it",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			token, err := a.secretArg("token", args[0])
			if err != nil {
				return err
			}
			header, claims, err := readToken(token)
			if err != nil {
				return err
			}
			a.note("not verified: anyone can write this; `sidekey token verify` proves it")
			body, err := json.Marshal(map[string]any{"verified": false, "header": header, "claims": claims})
			if err != nil {
				return err
			}
			return a.answer(body, func(w *tabwriter.Writer) {
				claimRows(w, header)
				claimRows(w, claims)
			})
		},
	})
}

// readToken decodes the first two parts of a compact JWS (RFC 7515 §7.1) and proves nothing. Numbers stay as they
// were written.
func readToken(token string) (header, claims map[string]any, err error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, nil, fmt.Errorf("reading the token: want three parts with dots between, got %d", len(parts))
	}
	for i, into := range []*map[string]any{&header, &claims} {
		name := []string{"header", "claims"}[i]
		text, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil {
			return nil, nil, fmt.Errorf("reading the token's %s: it is no base64url", name)
		}
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		if err := d.Decode(into); err != nil || *into == nil {
			return nil, nil, fmt.Errorf("reading the token's %s: it is no JSON object", name)
		}
	}
	return header, claims, nil
}

// claimRows writes one row per member, by name, with times also as dates.
func claimRows(w *tabwriter.Writer, members map[string]any) {
	for _, name := range slices.Sorted(maps.Keys(members)) {
		text, ok := members[name].(string)
		if !ok {
			encoded, _ := json.Marshal(members[name]) // decoded from JSON a moment ago
			text = string(encoded)
		}
		if slices.Contains([]string{"exp", "iat", "nbf", "auth_time"}, name) {
			var seconds float64
			if _, err := fmt.Sscan(text, &seconds); err == nil {
				text = when(seconds) + " (" + text + ")"
			}
		}
		row(w, name, text)
	}
}
