//go:build linux

package faults

import (
	"fmt"
	"math"
	"time"

	"github.com/anishathalye/porcupine"
)

// family is a family of refresh tokens, as one sequential issuer would keep it. It is comparable.
type family struct {
	gen    int    // of the current token; 0: the login has not happened
	id     string // the current token's id; "": somebody made it and nobody was told
	closed bool
	// The generation before was exchanged for this one at some time between these.
	from, to time.Duration
}

// asked is what was presented to a family, and when; and answer what came of it.
type (
	asked struct {
		kind     kind
		gen      int
		from, to time.Duration
	}
	answer struct {
		id      string // a token was given
		refused bool   // no, and never again
		unknown bool   // there was no answer: all, or nothing, may have happened, now or later
	}
)

// graceSlack is how far the issuers' measure of the grace time may be off this program's: they read their wall clocks, in
// milliseconds, between a question and its answer.
const graceSlack = 20 * time.Millisecond

// present gives the states that a family can be in once a refresh token was presented and was answered so: none where a sequential
// issuer could not have answered so.
func (f family) present(in asked, out answer, grace time.Duration) []any {
	var next []any
	if out.unknown {
		next = append(next, f)
	}
	switch {
	case f.gen == 0 || in.gen > f.gen:
		return next
	case f.closed:
		return keepIf(next, out.refused, f)
	case in.gen == f.gen:
		moved := family{gen: f.gen + 1, id: out.id, from: in.from, to: in.to}
		return keepIf(next, !out.refused, moved)
	}
	shortest, longest := max(in.from-f.to, 0), in.to-f.from
	if in.gen+1 == f.gen && shortest <= grace+graceSlack {
		same := f
		if same.id == "" {
			same.id = out.id
		}
		if !out.unknown {
			same.to = min(same.to, in.to) // by then it had been exchanged
		}
		next = keepIf(next, !out.refused && (out.unknown || same.id == out.id), same)
	}
	if in.gen+1 < f.gen || longest > grace-graceSlack {
		closed := f
		closed.closed = true
		next = keepIf(next, out.unknown || out.refused, closed)
	}
	return next
}

func keepIf(states []any, possible bool, f family) []any {
	if possible {
		return append(states, f)
	}
	return states
}

// familyModel is the sequential model. A family whose session is revoked is closed.
func familyModel(grace time.Duration) porcupine.Model {
	nm := porcupine.NondeterministicModel{
		Init: func() []any { return []any{family{}} },
		Step: func(state, input, output any) []any {
			f, in, out := state.(family), input.(asked), output.(answer)
			switch in.kind {
			case opLogin:
				return []any{family{gen: 1, id: out.id}}
			case opRevoke:
				closed := f
				closed.closed = true
				if out.unknown {
					return []any{f, closed}
				}
				return []any{closed}
			}
			return f.present(in, out, grace)
		},
		DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v -> %+v", input, output) },
	}
	return nm.ToModel()
}

// families parts the history by session, as porcupine wants it. What was not answered may happen until the end of time.
func families(h *history) map[string][]porcupine.Operation {
	parts := make(map[string][]porcupine.Operation)
	for _, o := range h.ops {
		out := answer{id: o.Out, refused: o.Status >= 400 && o.answered(), unknown: !o.answered()}
		switch {
		case o.Kind == opLogin && o.Out != "", o.Kind == opRefresh:
		case o.Kind == opRevoke && o.Target == "sid":
			out.refused = false
		default:
			continue
		}
		end := int64(o.End)
		if out.unknown {
			end = math.MaxInt64
		}
		parts[o.SID] = append(parts[o.SID], porcupine.Operation{
			Input: asked{o.Kind, o.InGen, o.Start, time.Duration(end)}, Output: out, Call: int64(o.Start), Return: end,
		})
	}
	return parts
}

// Bounds of porcupine's search: for one family, whose operations are bounded too (longestFamily), and for all of a run.
const (
	decideWithin    = 30 * time.Second
	decideAllWithin = 2 * time.Minute
)

// checkFamilies holds every family's history against the model.
func checkFamilies(h *history, grace time.Duration) (checked int, found []violation) {
	model, end := familyModel(grace), time.Now().Add(decideAllWithin)
	for sid, ops := range families(h) {
		left := min(decideWithin, time.Until(end))
		if left <= 0 {
			return checked, append(found, violation{checkOpen, fmt.Sprintf("not all families within %s", decideAllWithin)})
		}
		checked += len(ops)
		switch porcupine.CheckOperationsTimeout(model, ops, left) {
		case porcupine.Illegal:
			found = append(found, violation{checkFamily, fmt.Sprintf("no order of the %d operations on the refresh tokens of session %s explains their answers", len(ops), sid)})
		case porcupine.Unknown:
			found = append(found, violation{checkOpen, fmt.Sprintf("session %s, %d operations: not within %s", sid, len(ops), left)})
		}
	}
	return checked, found
}
