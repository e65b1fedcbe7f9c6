package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// everywhere is the admin API's answer to POST /admin/v1/verify.
type everywhere struct {
	Status int    `json:"status"` // the issuer's own verdict
	Reason string `json:"reason"`
	Seq    uint64 `json:"seq"`
	Agents []struct {
		Agent    string `json:"agent"`
		Run      string `json:"run"`
		Seq      uint64 `json:"seq"`
		Status   int    `json:"status"`
		Reason   string `json:"reason"`
		Cached   bool   `json:"cached"`
		Serving  bool   `json:"serving"`
		Dissents bool   `json:"dissents"`
	} `json:"agents"` // dissenters first
	Silent []struct {
		Agent   string `json:"agent"`
		Serving bool   `json:"serving"`
		LeftMS  int64  `json:"left_ms"`
	} `json:"silent"`
}

// verifyEverywhere asks the issuer what every agent says of a token, or of a bare jti.
func (a *app) verifyEverywhere(cmd *cobra.Command, token, jti string) error {
	c, err := a.adminClient()
	if err != nil {
		return err
	}
	body := map[string]string{"jti": jti}
	if jti == "" {
		body = map[string]string{"token": token}
	}
	r, err := c.call(cmd.Context(), http.MethodPost, "/admin/v1/verify", body)
	if err != nil {
		return err
	}
	var all everywhere
	if err := r.decode(&all); err != nil {
		return err
	}
	if err := a.answer(r.body, all.table); err != nil {
		return err
	}
	return all.verdict()
}

func (e *everywhere) table(w *tabwriter.Writer) {
	row(w, "AGENT", "VERDICT", "REASON", "SEQ", "CACHED", "")
	for _, s := range e.Agents {
		remark := ""
		if s.Serving {
			remark = "without a lease"
		}
		if s.Dissents {
			remark = strings.TrimSuffix("dissents, "+remark, ", ")
		}
		row(w, s.Agent, word(s.Status), s.Reason, s.Seq, map[bool]string{true: "yes", false: "no"}[s.Cached], remark)
	}
	for _, s := range e.Silent {
		remark := "may be vouching without a lease"
		if !s.Serving {
			remark = fmt.Sprintf("its lease ends in %s", (time.Duration(s.LeftMS) * time.Millisecond).Round(100*time.Millisecond))
		}
		row(w, s.Agent, "no answer", "", "", "", remark)
	}
	row(w, "(issuer)", word(e.Status), e.Reason, e.Seq, "", "")
}

// word names an outcome.
func word(status int) string {
	switch status {
	case http.StatusOK:
		return "accepts"
	case http.StatusUnauthorized:
		return "refuses"
	case http.StatusServiceUnavailable:
		return "cannot say"
	}
	return fmt.Sprint(status)
}

// verdict is nil where the issuer and every agent accept the token.
func (e *everywhere) verdict() error {
	var dissent, silent []string
	refused := 0
	for _, s := range e.Agents {
		if s.Dissents {
			dissent = append(dissent, s.Agent+" "+word(s.Status)+" ("+cmp.Or(s.Reason, "it is good")+fmt.Sprintf(", at entry %d)", s.Seq))
		}
		if s.Status != http.StatusOK {
			refused++
		}
	}
	for _, s := range e.Silent {
		silent = append(silent, s.Agent)
	}
	var parts []string
	switch own := e.Status == http.StatusOK; {
	case !own && len(dissent) == 0:
		parts = append(parts, fmt.Sprintf("token denied by the issuer and every agent that answered (%d): %s", refused, e.Reason))
	case !own:
		parts = append(parts, fmt.Sprintf("token denied: %s; but not everybody says so at entry %d: %s", e.Reason, e.Seq, strings.Join(dissent, ", ")))
	case len(dissent) > 0:
		parts = append(parts, fmt.Sprintf("the issuer accepts the token at entry %d, but not everybody does: %s", e.Seq, strings.Join(dissent, ", ")))
	}
	if len(silent) > 0 {
		parts = append(parts, "no answer from "+names(silent)+", which may be vouching")
	}
	if len(parts) == 0 {
		return nil
	}
	return errors.New(strings.Join(parts, "; "))
}
