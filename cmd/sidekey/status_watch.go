package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"golang.org/x/term"
)

// fastestWatch is the shortest time between two looks.
const fastestWatch = 200 * time.Millisecond

// watchStatus looks again and again until ctx ends: a terminal is redrawn, elsewhere each look appends a line.
func (a *app) watchStatus(ctx context.Context, agent string, every time.Duration) error {
	f, ok := a.stdout.(*os.File)
	redraw := ok && term.IsTerminal(int(f.Fd()))
	asTable, err := a.asTable()
	if err != nil {
		return err
	}
	look := time.NewTicker(every)
	defer look.Stop()
	for {
		s, err := a.readStatus(ctx, agent)
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		if err := a.showLook(s, asTable, redraw); err != nil {
			return err
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// showLook shows one look of many. A screen is written at once, so that it does not flicker.
func (a *app) showLook(s *status, asTable, redraw bool) error {
	now := time.Now().UTC().Format(time.RFC3339)
	switch {
	case !asTable:
		body, err := json.Marshal(s)
		if err != nil {
			return err
		}
		return a.say("%s", body)
	case !redraw:
		return a.say("%s %s", now, s.line())
	}
	var screen bytes.Buffer
	screen.WriteString("\x1b[H\x1b[2J" + now + "\n")
	w := tabwriter.NewWriter(&screen, 0, 0, 2, ' ', 0)
	s.table(w)
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := a.stdout.Write(screen.Bytes())
	return err
}

// line is a status in one line: what a log of many looks needs.
func (s *status) line() string {
	if s.Fleet == nil {
		if s.AgentError == "" {
			return "the agent answers, no issuer tells of the fleet"
		}
		return "neither an agent nor an issuer answers"
	}
	f := s.fleet()
	text := fmt.Sprintf("applied %d", f.Issuer.Seq)
	if f.Agents != nil {
		text += fmt.Sprintf(", agents %d ok of %d, behind by %s at most", f.Agents.States["ok"], f.Agents.Total, ms(f.Agents.Lag))
	}
	text += fmt.Sprintf(", revocations %d, %d problems", f.Revocations, len(f.Problems))
	if len(f.Problems) > 0 {
		text += ": " + clean(f.Problems[0])
	}
	return text
}
