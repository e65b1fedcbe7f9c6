package schema

import (
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
)

const (
	rulesFile   = "../alerts.yaml"
	runbookFile = "../../../docs/runbook.md"
	runbookURL  = "https://github.com/sidekey/sidekey/blob/main/docs/runbook.md#"
)

// parsedRules gives the rules as Prometheus reads them: unknown fields, a doubled group, a template or an expression that does not
// parse end the test.
func parsedRules(t *testing.T) []rulefmt.Rule {
	t.Helper()
	groups, errs := rulefmt.ParseFile(rulesFile, false, model.LegacyValidation, promQL, slog.New(slog.DiscardHandler))
	if len(errs) > 0 {
		t.Fatalf("ParseFile: %v", errs)
	}
	var all []rulefmt.Rule
	for _, g := range groups.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) < 30 {
		t.Fatalf("found %d rules, want all of them", len(all))
	}
	return all
}

// TestAlerts holds what every alert has: a severity, words, and a section of its own in the runbook. The runbook has no other.
func TestAlerts(t *testing.T) {
	page, err := os.ReadFile(runbookFile)
	if err != nil {
		t.Fatal(err)
	}
	var sections, names []string
	for _, m := range regexp.MustCompile(`(?m)^### (\S+)\n\n\S`).FindAllStringSubmatch(string(page), -1) {
		sections = append(sections, m[1])
	}
	for _, r := range parsedRules(t) {
		if r.Alert == "" {
			continue
		}
		names = append(names, r.Alert)
		if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) {
			t.Errorf("%s: severity %q", r.Alert, r.Labels["severity"])
		}
		if len(r.Labels) != 1 || len(r.Annotations) != 3 || r.Annotations["summary"] == "" || !strings.HasSuffix(r.Annotations["description"], ".") {
			t.Errorf("%s: labels %v, annotations %v: want severity; summary, description as sentences, runbook_url", r.Alert, r.Labels, r.Annotations)
		}
		if got, want := r.Annotations["runbook_url"], runbookURL+strings.ToLower(r.Alert); got != want {
			t.Errorf("%s: runbook_url %q, want %q", r.Alert, got, want)
		}
		if time.Duration(r.For) > 15*time.Minute {
			t.Errorf("%s: waits for %v", r.Alert, r.For)
		}
	}
	if slices.Sort(names); len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Errorf("alerts share a name: %v", names)
	}
	slices.Sort(sections)
	if !slices.Equal(names, sections) {
		t.Errorf("alerts are\n%v\nand docs/runbook.md has\n%v", names, sections)
	}
	// The runbook sends the reader only to alerts that there are.
	for _, named := range regexp.MustCompile(`\bSidekey[A-Z]\w+`).FindAllString(string(page), -1) {
		if !slices.Contains(names, named) {
			t.Errorf("docs/runbook.md names %s, which is no alert", named)
		}
	}
}

// TestRulesAreOfDocumentedMetrics holds each expression against docs/metrics.md.
func TestRulesAreOfDocumentedMetrics(t *testing.T) {
	known := documented(t)
	rules := parsedRules(t)
	for _, r := range rules {
		if r.Record != "" { // a record has the labels that its expression is summed by
			known[r.Record] = metric{kind: "gauge"}
		}
	}
	for _, r := range rules {
		for _, problem := range known.judge(r.Expr) {
			t.Errorf("%s%s: %s", r.Alert, r.Record, problem)
		}
	}
}
