package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/sidekey/sidekey/agent"
)

func (a *app) rulesCommand() *cobra.Command {
	return group("rules", "Who may do what, at the agents", a.rulesCheckCommand(), a.rulesExplainCommand(),
		a.rulesPushCommand(), a.rulesStatusCommand(), a.rulesWithdrawCommand(), a.rulesListCommand(), a.rulesShowCommand())
}

func (a *app) rulesCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Read a file of rules as an agent would; exit status 1 names the line that cannot be meant",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			set, err := readRules(args[0], agent.Schemes())
			if err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "%s: %d rules, version %s\n", args[0], set.Len(), set.Version())
			return nil
		},
	}
}

// explained is the answer of POST /v1/check.
type explained struct {
	Decision        string            `json:"decision"`
	Status          int               `json:"status"`
	Reason          string            `json:"reason"`
	Rule            string            `json:"rule"`
	Set             string            `json:"set"`
	Detail          string            `json:"detail"`
	Subject         string            `json:"subject"`
	Headers         map[string]string `json:"headers"`
	WWWAuthenticate []string          `json:"www_authenticate"`
}

func (a *app) rulesExplainCommand() *cobra.Command {
	var address, token string
	var headers []string
	ask := map[string]any{}
	flags := map[string]*string{}
	cmd := &cobra.Command{
		Use:   "explain --path PATH",
		Short: "Ask the agent what it would decide of a request, by which rule and why; exit status 1 when it is denied",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for name, value := range flags {
				if *value != "" {
					ask[name] = *value
				}
			}
			fields, err := a.explainHeaders(headers, token)
			if err != nil {
				return err
			}
			ask["headers"] = fields
			c, err := a.agentClient(address)
			if err != nil {
				return err
			}
			r, err := c.call(cmd.Context(), http.MethodPost, "/v1/check", ask)
			if err != nil {
				return err
			}
			return a.explain(r.body)
		},
	}
	for name, f := range map[string][2]string{
		"method": {"GET", "method of the request"}, "scheme": {"https", "http or https"}, "host": {"localhost", "host that is asked"},
		"path": {"", "path, with or without a query, as a client sends it"}, "source_ip": {"", "address of the client"},
	} {
		flags[name] = cmd.Flags().String(strings.ReplaceAll(name, "_", "-"), f[0], f[1])
	}
	cmd.Flags().StringVar(&address, "agent", "", "address of the agent, a URL or unix:/path (default agent.listen)")
	cmd.Flags().StringVar(&token, "token", "", "access token: - reads standard input, @FILE a file")
	cmd.Flags().StringArrayVar(&headers, "header", nil, `field of the request, as "X-API-Key: @key.txt"; may be repeated`)
	cmd.MarkFlagsOneRequired("path")
	return a.addFormat(cmd)
}

// explainHeaders gives the fields of the request that is asked about. A value may be a secret: - and @FILE read it.
func (a *app) explainHeaders(headers []string, token string) (map[string]string, error) {
	fields := map[string]string{}
	for _, h := range headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok {
			return nil, usagef("--header %q: want NAME: VALUE", name)
		}
		value, err := a.secretArg("header", strings.TrimSpace(value))
		if err != nil {
			return nil, err
		}
		fields[strings.TrimSpace(name)] = value
	}
	if token != "" {
		value, err := a.secretArg("token", token)
		if err != nil {
			return nil, err
		}
		fields["Authorization"] = "Bearer " + value
	}
	return fields, nil
}

func (a *app) explain(body []byte) error {
	var e explained
	if err := json.Unmarshal(body, &e); err != nil {
		return errors.New("what answered is no agent of this version")
	}
	err := a.answer(body, func(w *tabwriter.Writer) {
		row(w, "decision", fmt.Sprintf("%s (%d)", e.Decision, e.Status))
		row(w, "rule", e.Rule)
		if e.Set != "" {
			row(w, "set", e.Set)
		}
		if e.Reason != "" {
			row(w, "reason", strings.TrimSpace(e.Reason+" "+e.Detail))
		}
		for _, c := range e.WWWAuthenticate {
			row(w, "challenge", c)
		}
		for _, name := range slices.Sorted(maps.Keys(e.Headers)) {
			row(w, name, e.Headers[name])
		}
	})
	if err == nil && e.Decision != "allow" {
		err = fmt.Errorf("the request is denied: %s", e.Reason)
	}
	return err
}
