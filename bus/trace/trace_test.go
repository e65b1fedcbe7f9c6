package trace_test

import (
	"context"
	"strings"
	"testing"

	"github.com/sidekey/sidekey/bus/trace"
)

const (
	id   = "4bf92f3577b34da6a3ce929d0e0e4736"
	span = "00f067aa0ba902b7"
)

func TestParse(t *testing.T) {
	for name, c := range map[string]struct {
		values []string
		want   string // of String; "": none
	}{
		"sampled":                 {[]string{"00-" + id + "-" + span + "-01"}, "00-" + id + "-" + span + "-01"},
		"not sampled":             {[]string{"00-" + id + "-" + span + "-00"}, "00-" + id + "-" + span + "-00"},
		"other flags":             {[]string{"00-" + id + "-" + span + "-fb"}, "00-" + id + "-" + span + "-01"},
		"flags without the bit":   {[]string{"00-" + id + "-" + span + "-fa"}, "00-" + id + "-" + span + "-00"},
		"a later version":         {[]string{"cc-" + id + "-" + span + "-01"}, "00-" + id + "-" + span + "-01"},
		"more of a later version": {[]string{"cc-" + id + "-" + span + "-01-what-ever"}, "00-" + id + "-" + span + "-01"},
		"none":                    {nil, ""},
		"empty":                   {[]string{""}, ""},
		"two":                     {[]string{"00-" + id + "-" + span + "-01", "00-" + id + "-" + span + "-01"}, ""},
		"more of version 00":      {[]string{"00-" + id + "-" + span + "-01-x"}, ""},
		"glued to a later one":    {[]string{"cc-" + id + "-" + span + "-01x"}, ""},
		"version ff":              {[]string{"ff-" + id + "-" + span + "-01"}, ""},
		"a version that is none":  {[]string{"0g-" + id + "-" + span + "-01"}, ""},
		"upper case":              {[]string{"00-" + strings.ToUpper(id) + "-" + span + "-01"}, ""},
		"a trace of zeros":        {[]string{"00-" + strings.Repeat("0", 32) + "-" + span + "-01"}, ""},
		"a span of zeros":         {[]string{"00-" + id + "-" + strings.Repeat("0", 16) + "-01"}, ""},
		"a line break":            {[]string{"00-" + id[:31] + "\n-" + span + "-01"}, ""},
		"no flags":                {[]string{"00-" + id + "-" + span + "-"}, ""},
		"flags that are none":     {[]string{"00-" + id + "-" + span + "-0x"}, ""},
		"a short trace":           {[]string{"00-" + id[1:] + "-" + span + "-01"}, ""},
		"other separators":        {[]string{"00_" + id + "_" + span + "_01"}, ""},
		"a space before":          {[]string{" 00-" + id + "-" + span + "-01"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := trace.Parse(c.values...)
			if p.String() != c.want {
				t.Errorf("got %q, want %q", p.String(), c.want)
			}
			if (len(p.Pairs()) == 4) != (c.want != "") {
				t.Errorf("pairs: got %v", p.Pairs())
			}
		})
	}
}

// FuzzParse: whatever is taken can stand in a log line and in a header as it is, and is taken again.
func FuzzParse(f *testing.F) {
	f.Add([]byte("00-" + id + "-" + span + "-01"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p := trace.Parse(text)
		if p == (trace.Parent{}) {
			return
		}
		if len(p.TraceID) != 32 || len(p.SpanID) != 16 || strings.Trim(p.TraceID+p.SpanID, "0123456789abcdef") != "" {
			t.Errorf("took %q of %q", p, text)
		}
		if again := trace.Parse(p.String()); again != p {
			t.Errorf("%q came back as %q", p, again)
		}
	})
}

func TestContext(t *testing.T) {
	p := trace.Parse("00-" + id + "-" + span + "-01")
	if got := trace.Of(trace.With(context.Background(), p)); got != p {
		t.Errorf("got %v, want %v", got, p)
	}
	if got := trace.Of(context.Background()); got != (trace.Parent{}) {
		t.Errorf("of no trace: got %v", got)
	}
}
