package schema

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

var promQL = parser.NewParser(parser.Options{})

// metric is a line of docs/metrics.md.
type metric struct {
	kind   string              // counter, gauge, histogram
	labels map[string][]string // with the values that the line names as code
}

type catalogue map[string]metric

// ofScrape are the labels that a target has whatever it exposes; `fleet` is the operator's.
var ofScrape = []string{"instance", "job", "fleet"}

// documented reads the tables of docs/metrics.md. A histogram stands there under three names.
func documented(t *testing.T) catalogue {
	t.Helper()
	page, err := os.ReadFile("../../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	known := catalogue{"up": {kind: "gauge"}}
	shared := map[string][]string{ // named once for several metrics
		"outcome": codes(regexp.MustCompile("(?m)^.*sidekey_logins_total.*$").FindString(string(page))),
		"stream":  codes(regexp.MustCompile("(?s)`stream` is .*?\\.").FindString(string(page))),
	}
	for _, row := range regexp.MustCompile("(?m)^\\| (`sidekey_.*`) \\| (counter|gauge|histogram) \\| (.*) \\|$").FindAllStringSubmatch(string(page), -1) {
		for _, m := range regexp.MustCompile("`(sidekey_\\w+)(?:{([a-z, ]+)})?`").FindAllStringSubmatch(row[1], -1) {
			one := metric{kind: row[2], labels: map[string][]string{}}
			for l := range strings.SplitSeq(m[2], ",") {
				if l = strings.TrimSpace(l); l != "" {
					one.labels[l] = slices.Concat(codes(row[3]), shared[l])
				}
			}
			known[m[1]] = one
			if row[2] == "histogram" {
				known[m[1]+"_count"], known[m[1]+"_sum"] = metric{kind: "counter"}, metric{kind: "counter"}
				known[m[1]+"_bucket"] = metric{kind: "counter", labels: map[string][]string{"le": nil}}
			}
		}
	}
	for _, n := range []string{"go_goroutines", "process_resident_memory_bytes", "process_open_fds", "process_max_fds"} {
		known[n] = metric{kind: "gauge"} // client_golang's
	}
	known["process_cpu_seconds_total"] = metric{kind: "counter"}
	if len(known) < 80 {
		t.Fatalf("docs/metrics.md has %d metrics, want all of them", len(known))
	}
	return known
}

// codes gives what a text has between backticks.
func codes(text string) (all []string) {
	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	return all
}

// judge says what is wrong with an expression: metrics, labels or values that the page does not have, a rate of what is no counter, a
// counter taken as it is.
func (c catalogue) judge(expr string) (problems []string) {
	tree, err := promQL.ParseExpr(expr)
	if err != nil {
		return []string{err.Error()}
	}
	var has []string
	parser.Inspect(tree, func(node parser.Node, path []parser.Node) error {
		selector, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		m, ok := c[selector.Name]
		if !ok {
			problems = append(problems, fmt.Sprintf("%q is not in docs/metrics.md", selector.Name))
			return nil
		}
		has = append(has, ofScrape...)
		for l := range m.labels {
			has = append(has, l)
		}
		problems = append(problems, m.judgeMatchers(selector)...)
		if counts, wants := m.kind == "counter", rated(path); counts != wants {
			problems = append(problems, fmt.Sprintf("%s is a %s, and rate or increase over it: %v", selector.Name, m.kind, wants))
		}
		return nil
	})
	parser.Inspect(tree, func(node parser.Node, _ []parser.Node) error {
		var by []string
		switch n := node.(type) {
		case *parser.AggregateExpr:
			by = n.Grouping
		case *parser.BinaryExpr:
			if n.VectorMatching != nil {
				by = n.VectorMatching.MatchingLabels
			}
		}
		for _, l := range by {
			if !slices.Contains(has, l) {
				problems = append(problems, fmt.Sprintf("no metric of it has the label %q", l))
			}
		}
		return nil
	})
	return problems
}

// rated tells whether the nearest function above is one of counters.
func rated(path []parser.Node) bool {
	for _, node := range slices.Backward(path) {
		if call, ok := node.(*parser.Call); ok {
			return slices.Contains([]string{"rate", "increase", "irate", "resets"}, call.Func.Name)
		}
	}
	return false
}

func (m *metric) judgeMatchers(selector *parser.VectorSelector) (problems []string) {
	for _, matcher := range selector.LabelMatchers {
		if matcher.Name == labels.MetricName || slices.Contains(ofScrape, matcher.Name) {
			continue
		}
		values, ok := m.labels[matcher.Name]
		if !ok {
			problems = append(problems, fmt.Sprintf("%s has no label %q", selector.Name, matcher.Name))
			continue
		}
		if flat := strings.ReplaceAll(matcher.Value, "|", ""); flat != regexp.QuoteMeta(flat) {
			continue // a pattern, and no list of values
		}
		for v := range strings.SplitSeq(matcher.Value, "|") {
			if v != "" && !slices.Contains(values, v) {
				problems = append(problems, fmt.Sprintf("%s: docs/metrics.md does not name the value %q of %s", selector.Name, v, matcher.Name))
			}
		}
	}
	return problems
}

// TestJudge holds that what the other tests stand on finds what is wrong.
func TestJudge(t *testing.T) {
	known := documented(t)
	for expr, want := range map[string]string{
		`sidekey_no_such`:                             "not in docs",
		`sidekey_logins_total > 0`:                    "is a counter",
		`rate(sidekey_ready[5m])`:                     "is a gauge",
		`sidekey_agents{stat="ok"}`:                   `no label "stat"`,
		`sidekey_agents{state="stael"}`:               `value "stael"`,
		`sidekey_agents{state=~"stale|silnt"}`:        `value "silnt"`,
		`sum by (stream) (sidekey_ready)`:             `label "stream"`,
		`sidekey_ready > on (shard) sidekey_ready`:    `label "shard"`,
		`sum by (le) (sidekey_append_seconds_bucket)`: "is a counter",
		`sidekey_ready ==`:                            "parse error",
	} {
		if got := known.judge(expr); len(got) != 1 || !strings.Contains(got[0], want) {
			t.Errorf("judge(%s) = %q, want %q", expr, got, want)
		}
	}
	for _, expr := range []string{`sum by (fleet, le) (rate(sidekey_append_seconds_bucket[5m]))`, `max by (state) (sidekey_agents{state!="ok"})`} {
		if got := known.judge(expr); got != nil {
			t.Errorf("judge(%s) = %q, want nothing", expr, got)
		}
	}
}
