package agent_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestMetricsAreDocumented holds docs/metrics.md against what an agent registers: each metric's whole
// name stands there as code.
func TestMetricsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	h := newWorld(t).listen("unix")
	names := regexp.MustCompile(`(?m)^# TYPE (\S+)`).FindAllStringSubmatch(h.do("GET", "/metrics", "").body, -1)
	if len(names) == 0 {
		t.Fatal("GET /metrics names no metric")
	}
	for _, n := range names {
		if !strings.Contains(string(page), "`"+n[1]+"`") && !strings.Contains(string(page), "`"+n[1]+"{") {
			t.Errorf("docs/metrics.md lacks %s", n[1])
		}
	}
}
