// Package trace reads and writes the one header field that ties what several processes log about one request
// together: traceparent, as W3C Trace Context and OpenTelemetry have it. sidekey makes no spans of its own. It only says
// in its logs and its audit of which trace a request was, and passes the field on to those whom it asks. Nothing is
// decided by it: a client may write into it what it likes.
package trace

import "context"

// Field is the header field's canonical name.
const Field = "Traceparent"

// Parent is the place in a trace that a request came from. The zero value is none.
type Parent struct {
	TraceID string // 32 lower-case hexadecimal digits, not all zero
	SpanID  string // 16 of them: the caller's span
	sampled bool
}

// The members of a log line, by the names of OpenTelemetry's log data model.
const (
	keyTrace = "trace_id"
	keySpan  = "span_id"
)

// length is that of version 00: 00-<trace id>-<parent id>-<flags>.
const length = 2 + 1 + 32 + 1 + 16 + 1 + 2

// Parse reads the values of the field. More than one, or one that is not exactly as the specification has it, is none:
// it must not get into a log. Of a later version the first four parts are read, as the specification asks.
func Parse[T ~string | ~[]byte](values ...T) Parent {
	if len(values) != 1 || len(values[0]) < length {
		return Parent{}
	}
	v := values[0]
	later := string(v[:2]) != "00"
	switch {
	case !hexadecimal(v[:2]), string(v[:2]) == "ff", !later && len(v) != length, later && len(v) > length && v[length] != '-',
		v[2] != '-', v[35] != '-', v[52] != '-',
		!hexadecimal(v[3:35]), !hexadecimal(v[36:52]), !hexadecimal(v[53:55]), zero(v[3:35]), zero(v[36:52]):
		return Parent{}
	}
	return Parent{TraceID: string(v[3:35]), SpanID: string(v[36:52]), sampled: odd(v[54])}
}

// odd tells whether the lowest bit of a hexadecimal digit is set.
func odd(digit byte) bool {
	if digit >= 'a' {
		digit -= 'a' - 10
	}
	return digit&1 == 1
}

func hexadecimal[T ~string | ~[]byte](text T) bool {
	for i := range len(text) {
		if c := text[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func zero[T ~string | ~[]byte](text T) bool {
	for i := range len(text) {
		if text[i] != '0' {
			return false
		}
	}
	return true
}

// String is the field's value, for whom we ask: the same span, for we make none. "" of the zero value.
func (p Parent) String() string {
	switch {
	case p == Parent{}:
		return ""
	case p.sampled:
		return "00-" + p.TraceID + "-" + p.SpanID + "-01"
	}
	return "00-" + p.TraceID + "-" + p.SpanID + "-00"
}

// Pairs are keys and values for a log line; none of the zero value.
func (p Parent) Pairs() []any {
	if p == (Parent{}) {
		return nil
	}
	return []any{keyTrace, p.TraceID, keySpan, p.SpanID}
}

type key struct{}

// With gives a context in which what is done belongs to p.
func With(ctx context.Context, p Parent) context.Context { return context.WithValue(ctx, key{}, p) }

// Of is what With has put into ctx; the zero value without it.
func Of(ctx context.Context) Parent {
	p, _ := ctx.Value(key{}).(Parent)
	return p
}
