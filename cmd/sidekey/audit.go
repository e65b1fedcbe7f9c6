package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// auditLine is an event of the audit, or a break in it.
type auditLine struct {
	Time      string         `json:"time"`
	Issuer    string         `json:"issuer"`
	Event     string         `json:"event"`
	Outcome   string         `json:"outcome"`
	Actor     string         `json:"actor"`
	Address   string         `json:"address"`
	UserAgent string         `json:"user_agent"`
	Details   map[string]any `json:"details"`
	Broken    string         `json:"broken"`
}

func (a *app) auditCommand() *cobra.Command {
	var follow bool
	var since, sub string
	var events []string
	var limit int
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Show who did what: logins, refreshes, revocations, administrators' calls",
		Long: "Show the newest events of the audit, oldest first; with --follow those to come, until Ctrl-C.\n" +
			"A line that begins with BROKEN says that the bus has lost or changed records of an issuer; exit status 1 then.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := url.Values{"event": events}
			for name, value := range map[string]string{"since": since, "sub": sub} {
				if value != "" {
					q.Set(name, value)
				}
			}
			if follow {
				q.Set("follow", "1")
				return a.followAudit(cmd.Context(), "/admin/v1/audit?"+q.Encode())
			}
			q.Set("limit", strconv.Itoa(limit))
			return a.listAudit(cmd.Context(), "/admin/v1/audit?"+q.Encode())
		},
	}
	cmd.Flags().BoolVar(&follow, "follow", false, "go on with events as they happen; JSON is one event a line then")
	cmd.Flags().StringVar(&since, "since", "", "from when on: 2026-01-31T08:00:00Z, or how long ago: 1h (default 24h, with --follow now)")
	cmd.Flags().StringArrayVar(&events, "event", nil, "only these events, as docs/audit.md names them; may be repeated")
	cmd.Flags().StringVar(&sub, "sub", "", "only events of the user with this id")
	cmd.Flags().IntVar(&limit, "limit", 100, "how many, at most 1000")
	return a.addFormat(cmd)
}

func (a *app) listAudit(ctx context.Context, path string) error {
	c, err := a.adminClient()
	if err != nil {
		return err
	}
	r, err := c.call(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	var answer struct {
		Events    []auditLine `json:"events"`
		Truncated bool        `json:"truncated"`
	}
	if err := r.decode(&answer); err != nil {
		return err
	}
	broken := 0
	err = a.answer(r.body, func(w *tabwriter.Writer) {
		row(w, "TIME", "ISSUER", "EVENT", "OUTCOME", "FROM", "DETAILS")
		for _, e := range answer.Events {
			e.row(w)
		}
	})
	for _, e := range answer.Events {
		if e.Broken != "" {
			broken++
		}
	}
	if err == nil && answer.Truncated {
		a.note("there are older ones; ask with --limit or --since for more, or read issuer.audit_file")
	}
	if err == nil && broken > 0 {
		err = fmt.Errorf("the audit is broken in %d places: the bus has lost or changed records", broken)
	}
	return err
}

// row is one line of the table.
func (e *auditLine) row(w io.Writer) {
	if e.Broken != "" {
		row(w, "BROKEN", e.Issuer, e.Broken)
		return
	}
	var details []string
	for _, name := range slices.Sorted(maps.Keys(e.Details)) {
		value, _ := json.Marshal(e.Details[name]) // it came from JSON
		shown := strings.ReplaceAll(string(value), `\u0026`, "&")
		details = append(details, name+"="+strings.Trim(shown, `"`))
	}
	from := strings.TrimSpace(e.Address + " " + e.Actor)
	row(w, e.Time, e.Issuer, e.Event, e.Outcome, from, strings.Join(details, " "))
}

// followAudit prints lines as they come, until the issuer or the user ends it.
func (a *app) followAudit(ctx context.Context, path string) error {
	asTable, err := a.asTable()
	if err != nil {
		return err
	}
	c, err := a.adminClient()
	if err != nil {
		return err
	}
	body, err := c.stream(ctx, path)
	if err != nil {
		return err
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, maxAnswer)
	for lines.Scan() {
		if len(lines.Bytes()) == 0 {
			continue // it is still there
		}
		var e auditLine
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("reading the answer: it is not what this version of sidekey knows: %w", err)
		}
		if asTable {
			e.row(a.stdout)
		} else if err := a.say("%s", lines.Text()); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return nil // the user ended it
	}
	if err := lines.Err(); err != nil {
		return c.unreachable(err)
	}
	return fmt.Errorf("the issuer at %s ended the audit; start it again, and ask with --since for what you missed", c.addr)
}
