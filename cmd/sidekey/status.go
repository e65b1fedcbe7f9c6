package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sidekey/sidekey/bus/lease"
)

func (a *app) statusCommand() *cobra.Command {
	var agent string
	var watch bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how the agent, the issuer and the fleet are",
		Long: "Show the agent of this host, the issuer, and where the admin token is at hand the fleet at a glance: issuers, agents and the\n" +
			"worst of them, keys, bus, and what is not as it should be. Exit status 1 when neither an agent nor an issuer answers.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if watch {
				return a.watchStatus(cmd.Context(), agent, interval)
			}
			s, err := a.readStatus(cmd.Context(), agent)
			if err != nil {
				return err
			}
			body, err := json.Marshal(s)
			if err != nil {
				return err
			}
			if err := a.answer(body, s.table); err != nil {
				return err
			}
			if s.AgentError != "" && s.IssuerError != "" {
				return errors.New("neither an agent nor an issuer answers; start them, or name them with --agent and " + envAddr)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&agent, "agent", "", "address of the agent, a URL or unix:/path (default agent.listen)")
	cmd.Flags().BoolVar(&watch, "watch", false, "look again and again: a terminal is redrawn, elsewhere a line is appended")
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "time between two looks of --watch")
	checkFirst(cmd, func() error {
		if interval < fastestWatch {
			return usagef("--interval: want %s or more, got %s", fastestWatch, interval)
		}
		return nil
	})
	return a.addFormat(cmd)
}

// status is what `sidekey status` prints as JSON. A part that did not answer has its error instead.
type status struct {
	Agent       json.RawMessage `json:"agent,omitempty"` // the agent's GET /v1/status
	AgentError  string          `json:"agent_error,omitempty"`
	Issuer      string          `json:"issuer,omitempty"` // "ok"
	IssuerError string          `json:"issuer_error,omitempty"`
	Fleet       json.RawMessage `json:"fleet,omitempty"` // the issuer's GET /admin/v1/status
	FleetError  string          `json:"fleet_error,omitempty"`
}

// readStatus asks all parts. Only a wrong configuration is an error; a part that is away is told in the status.
func (a *app) readStatus(ctx context.Context, agent string) (*status, error) {
	ac, err := a.agentClient(agent)
	if err != nil {
		return nil, err
	}
	health, err := a.publicClient(func(c IssuerConfig) string { return c.OpsListen })
	if err != nil {
		return nil, err
	}
	admin, err := a.adminClient()
	if err != nil {
		return nil, err
	}
	s := new(status)
	if r, err := ac.call(ctx, http.MethodGet, "/v1/status", nil); err != nil {
		s.AgentError = err.Error()
	} else if !json.Valid(r.body) {
		s.AgentError = fmt.Sprintf("what answers at %s is no agent", ac.addr)
	} else {
		s.Agent = r.body
	}
	_, unhealthy := health.call(ctx, http.MethodGet, "/healthz", nil)
	r, err := admin.call(ctx, http.MethodGet, "/admin/v1/status", nil)
	if unhealthy != nil && err != nil { // an admin socket has no /healthz
		s.IssuerError = unhealthy.Error()
		return s, nil
	}
	s.Issuer = "ok"
	switch {
	case err != nil:
		s.FleetError = err.Error()
	case !json.Valid(r.body):
		s.FleetError = "what answers is no issuer"
	default:
		s.Fleet = r.body
	}
	return s, nil
}

func (s *status) table(w *tabwriter.Writer) {
	if s.AgentError != "" {
		row(w, "agent", s.AgentError)
	} else {
		s.agentRows(w)
	}
	if s.IssuerError != "" {
		row(w, "issuer", s.IssuerError)
		return
	}
	row(w, "issuer", s.Issuer)
	if s.FleetError != "" {
		row(w, "fleet", s.FleetError)
		return
	}
	s.fleet().table(w)
}

// agentRows shows the members of API.md §3 that matter to a person.
func (s *status) agentRows(w *tabwriter.Writer) {
	var g struct {
		Agent       string `json:"agent"`
		Version     string `json:"version"`
		Connected   bool   `json:"connected"`
		Epoch       uint64 `json:"epoch"`
		AppliedSeq  uint64 `json:"applied_seq"`
		HeadSeq     uint64 `json:"head_seq"`
		Stale       bool   `json:"stale"`
		Keys        []any  `json:"keys"`
		Revocations int    `json:"revocations"`
		ClockOff    int64  `json:"clock_off_ms"`
		Cache       struct {
			Entries int    `json:"entries"`
			Hits    uint64 `json:"hits"`
			Misses  uint64 `json:"misses"`
		} `json:"cache"`
	}
	if err := json.Unmarshal(s.Agent, &g); err != nil {
		row(w, "agent", "its status is not what this version of sidekey knows")
		return
	}
	row(w, "agent", g.Agent+" "+g.Version)
	row(w, "  bus", map[bool]string{true: "connected", false: "not connected"}[g.Connected])
	row(w, "  state", map[bool]string{true: "stale", false: "fresh"}[g.Stale])
	row(w, "  applied", fmt.Sprintf("entry %d of %d, epoch %d", g.AppliedSeq, g.HeadSeq, g.Epoch))
	if off := time.Duration(g.ClockOff) * time.Millisecond; off.Abs() > lease.MaxClockOff {
		row(w, "  clock", fmt.Sprintf("off by %s against the issuers' ticks: set it right, or theirs", off.Round(time.Second)))
	}
	row(w, "  keys", len(g.Keys))
	row(w, "  revocations", g.Revocations)
	row(w, "  cache", fmt.Sprintf("%d entries, %d hits, %d misses", g.Cache.Entries, g.Cache.Hits, g.Cache.Misses))
}
