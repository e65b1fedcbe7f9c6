package issuer_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestMetricsAreDocumented holds docs/metrics.md against what an issuer registers: each metric's whole
// name stands there as code.
func TestMetricsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	h := start(t, newBus()).PublicHandler()
	ask(h, "GET", "/healthz", "") // a count of requests is there after the first
	names := regexp.MustCompile(`(?m)^# TYPE (\S+)`).FindAllStringSubmatch(ask(h, "GET", "/metrics", "").Body.String(), -1)
	if len(names) == 0 {
		t.Fatal("GET /metrics names no metric")
	}
	for _, n := range names {
		if !strings.Contains(string(page), "`"+n[1]+"`") && !strings.Contains(string(page), "`"+n[1]+"{") {
			t.Errorf("docs/metrics.md lacks %s", n[1])
		}
	}
}
