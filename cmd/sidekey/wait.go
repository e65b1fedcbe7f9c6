package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// How --wait watches.
const (
	waitTimeout = 5 * time.Second
	lookEvery   = 100 * time.Millisecond // for the receipt as it then stands
)

// waiting are the flags of a command that withdraws something from the whole fleet.
type waiting struct {
	on      bool
	timeout time.Duration
	means   string // what a confirmed receipt says; "": that no agent accepts it any more
}

// addWait gives cmd the flags --wait and --timeout.
func (a *app) addWait(cmd *cobra.Command, w *waiting) *cobra.Command {
	cmd.Flags().BoolVar(&w.on, "wait", false, "wait until no agent can accept it any more; exit status 1 and who is waited for when that takes longer than --timeout")
	cmd.Flags().DurationVar(&w.timeout, "timeout", waitTimeout, "how long to wait")
	checkFirst(cmd, func() error {
		switch {
		case cmd.Flags().Changed("timeout") && !w.on:
			return usagef("--timeout is of use with --wait only")
		case w.timeout <= 0:
			return usagef("--timeout: want more than nothing, got %s", w.timeout)
		}
		return nil
	})
	return cmd
}

// receipt is the admin API's (API.md §4).
type receipt struct {
	Seq       uint64   `json:"seq"`
	Confirmed bool     `json:"confirmed"`
	Applied   []string `json:"applied"`
	Fenced    []string `json:"fenced"`
	Pending   []string `json:"pending"`
	Serving   []string `json:"serving"`
	NextMS    int64    `json:"next_ms,omitempty"`
	ElapsedMS int64    `json:"elapsed_ms"`
	means     string   // as waiting's
}

// withdraw makes one call that withdraws something. With --wait it then watches the receipt until
// nobody can accept it any more; the entry is in the log either way.
func (a *app) withdraw(cmd *cobra.Command, w *waiting, method, path string, body map[string]any, done string) error {
	var content any // nil, and no empty map, where there is no body
	if body != nil {
		content = body
	}
	if !w.on {
		return a.change(cmd, method, path, content, done)
	}
	c, err := a.adminClient()
	if err != nil {
		return err
	}
	// The answer is asked for at once, whatever the timeout: the sequence is known before the wait begins.
	if body == nil {
		path += "?wait=fleet&timeout=0s"
	} else {
		body["wait"], body["timeout"] = "fleet", "0s"
	}
	began := time.Now()
	r, err := c.call(cmd.Context(), method, path, content)
	if err != nil {
		return err
	}
	var rec receipt
	if err := r.decode(&rec); err != nil {
		return err
	}
	if rec.Seq == 0 {
		return a.answer(r.body, func(t *tabwriter.Writer) { row(t, done) }) // nothing was withdrawn
	}
	lost := a.watch(cmd.Context(), c, &rec, began, w.timeout)
	rec.means = w.means
	return a.finish(&rec, done, lost)
}

// watch asks for the receipt again and again, until it is confirmed or the time is up, and shows
// each state. It gives the error of the newest answer, nil if there was one.
func (a *app) watch(ctx context.Context, c *client, rec *receipt, began time.Time, timeout time.Duration) (lost error) {
	screen := a.newProgress()
	defer screen.clear()
	ctx, cancel := context.WithDeadline(ctx, began.Add(timeout))
	defer cancel()
	for pause := lookEvery / 10; ; pause = min(2*pause, lookEvery) {
		rec.ElapsedMS = time.Since(began).Milliseconds()
		screen.show(rec)
		if rec.Confirmed {
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			rec.ElapsedMS = time.Since(began).Milliseconds()
			return lost
		}
		r, err := c.call(ctx, http.MethodGet, fmt.Sprintf("/admin/v1/revocations/%d", rec.Seq), nil)
		if ctx.Err() != nil {
			continue // the answer would come too late
		}
		next := receipt{}
		if lost = err; err == nil {
			if lost = r.decode(&next); lost == nil {
				*rec = next
			}
		}
	}
}

// finish prints the receipt. One that is not confirmed is an error, which names who is waited for.
func (a *app) finish(rec *receipt, done string, lost error) error {
	text, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return a.finishWith(text, rec, done, lost)
}

// finishWith is finish for an answer in which a receipt is but a part.
func (a *app) finishWith(text []byte, rec *receipt, done string, lost error) error {
	err := a.answer(text, func(w *tabwriter.Writer) {
		row(w, fmt.Sprintf("%s: entry %d", done, rec.Seq))
		for _, line := range rec.lines() {
			row(w, line[0], line[1])
		}
		if rec.Confirmed {
			row(w, "confirmed", "after "+rec.elapsed().String()+": "+cmp.Or(rec.means, "no agent accepts it any more"))
		}
	})
	if err != nil || rec.Confirmed {
		return err
	}
	why := "pending: " + rec.waitedFor()
	if len(rec.Pending) == 0 {
		why = "the issuer does not know yet who may be vouching"
	}
	if lost != nil {
		why += "; the last look failed: " + lost.Error()
	}
	return fmt.Errorf("entry %d is in the log, but not confirmed after %s; %s", rec.Seq, rec.elapsed(), why)
}

func (r *receipt) elapsed() time.Duration { return time.Duration(r.ElapsedMS) * time.Millisecond }

// lines says one thing of each state.
func (r *receipt) lines() [][2]string {
	all := len(r.Applied) + len(r.Fenced) + len(r.Pending)
	lines := [][2]string{{"applied", fmt.Sprintf("%d of %d agents", len(r.Applied), all)}}
	if len(r.Fenced) > 0 {
		lines = append(lines, [2]string{"fenced", fmt.Sprintf("%d: %s", len(r.Fenced), names(r.Fenced))})
	}
	if len(r.Pending) > 0 {
		lines = append(lines, [2]string{"pending", fmt.Sprintf("%d: %s", len(r.Pending), r.waitedFor())})
	}
	return lines
}

// waitedFor names who is pending, and why.
func (r *receipt) waitedFor() string {
	var serving, leased []string
	for _, name := range r.Pending {
		if slices.Contains(r.Serving, name) {
			serving = append(serving, name)
		} else {
			leased = append(leased, name)
		}
	}
	var parts []string
	if len(leased) > 0 {
		until := "until it acknowledges or its lease ends"
		if len(leased) > 1 {
			until = "until they acknowledge or their leases end"
		}
		if r.NextMS > 0 {
			until += fmt.Sprintf(", in %s at the latest", (time.Duration(r.NextMS) * time.Millisecond).Round(100*time.Millisecond))
		}
		parts = append(parts, names(leased)+" ("+until+")")
	}
	if len(serving) > 0 {
		parts = append(parts, names(serving)+` (on_stale = "serve": vouches without a lease, so only an acknowledgement settles it; gone for good: sidekey bus begin-anew)`)
	}
	return strings.Join(parts, "; ")
}

// names joins names, quoted where they could move a terminal's cursor.
func names(all []string) string {
	shown := make([]string, len(all))
	for at, name := range all {
		if shown[at] = name; !printable(name) {
			shown[at] = fmt.Sprintf("%q", name)
		}
	}
	return strings.Join(shown, ", ")
}

// progress shows a receipt on standard error while it is waited for: on a terminal a line for each
// state, written over as they change; elsewhere a line for each change, and none beside JSON.
type progress struct {
	w     io.Writer
	width int // of the terminal; 0: it is none
	drawn int // lines that stand on it
	last  string
}

func (a *app) newProgress() *progress {
	p := &progress{w: a.stderr}
	if f, ok := a.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil {
			if p.width = width; width < 20 { // it does not know
				p.width = 80
			}
		}
	}
	if asTable, err := a.asTable(); err != nil || !asTable && p.width == 0 {
		p.w = io.Discard
	}
	return p
}

func (p *progress) show(r *receipt) {
	lines := r.lines()
	if p.width == 0 {
		parts := make([]string, len(lines))
		for at, line := range lines {
			parts[at] = line[0] + " " + line[1]
		}
		// What counts down is no change of state.
		if state := fmt.Sprint(r.Applied, r.Fenced, r.Pending); state != p.last && !r.Confirmed {
			p.last = state
			fmt.Fprintf(p.w, "entry %d after %s: %s\n", r.Seq, r.elapsed(), strings.Join(parts, "; "))
		}
		return
	}
	p.clear()
	lines = append(lines, [2]string{"elapsed", r.elapsed().Round(100 * time.Millisecond).String()})
	for _, line := range lines {
		text := []rune(fmt.Sprintf("%-8s %s", line[0], line[1]))
		fmt.Fprintf(p.w, "%s\n", string(text[:min(len(text), p.width-1)])) // a line that wraps would not be written over
	}
	p.drawn = len(lines)
}

// clear takes back what stands on the terminal.
func (p *progress) clear() {
	for ; p.drawn > 0; p.drawn-- {
		fmt.Fprint(p.w, "\x1b[1A\x1b[2K")
	}
}
