package schema

import (
	"bytes"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// dashboard is what deploy/grafana/sidekey.json may have: no number of a data source, and no id of somebody's Grafana.
type dashboard struct {
	Title, UID, Description, Refresh, Timezone string
	Tags                                       []string
	SchemaVersion, Version, GraphTooltip       int
	Editable                                   bool
	Time                                       struct{ From, To string }
	Templating                                 struct{ List []variable }
	Annotations                                struct{ List []annotation }
	Panels                                     []panel
}

type datasource struct{ Type, UID string }

type variable struct {
	Name, Label, Type, Definition, AllValue string
	Query                                   json.RawMessage
	Datasource                              *datasource
	Refresh, Sort                           int
	IncludeAll, Multi                       bool
	Current                                 json.RawMessage
}

type annotation struct {
	Name, IconColor, Expr, TitleFormat, TextFormat string
	Enable                                         bool
	Datasource                                     datasource
}

type panel struct {
	ID                       int
	Type, Title, Description string
	Collapsed                bool
	Panels                   []struct{}
	Datasource               datasource
	GridPos                  struct{ H, W, X, Y int }
	Targets                  []struct {
		RefID, Expr, LegendFormat string
		Instant, Range            bool
		Datasource                datasource
	}
	FieldConfig struct {
		Defaults  map[string]any
		Overrides []struct{}
	}
	Options map[string]any
}

// substituted puts values for Grafana's variables, of which no other may be used.
var substituted = strings.NewReplacer("$__rate_interval", "5m", "$fleet", ".*", "$instance", ".*")

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	text, err := os.ReadFile("../../grafana/sidekey.json")
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestDashboardIsAnybodys holds that nothing in it belongs to one Grafana, and that its panels can be drawn.
func TestDashboardIsAnybodys(t *testing.T) {
	d := readDashboard(t)
	templated := datasource{"prometheus", "${datasource}"}
	var names []string
	for _, v := range d.Templating.List {
		if names = append(names, v.Name); v.Type == "query" && *v.Datasource != templated {
			t.Errorf("the variable %s asks %v", v.Name, v.Datasource)
		}
	}
	if !slices.Equal(names, []string{"datasource", "fleet", "instance"}) {
		t.Errorf("variables are %v", names)
	}
	for _, a := range d.Annotations.List {
		if a.Datasource != templated {
			t.Errorf("the annotation %s asks %v", a.Name, a.Datasource)
		}
		if _, err := promQL.ParseExpr(substituted.Replace(a.Expr)); err != nil {
			t.Errorf("the annotation %s: %v", a.Name, err)
		}
	}
	ids, taken := map[int]bool{}, map[[2]int]string{}
	var rows []string
	for _, p := range d.Panels {
		if ids[p.ID] || p.ID == 0 || p.Title == "" {
			t.Errorf("%q: its id %d is there twice, or one of both is lacking", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other, is := taken[[2]int{x, y}]; is || x >= 24 {
					t.Fatalf("%q lies over %q, or beyond the 24 columns", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			rows = append(rows, p.Title)
			continue
		}
		if p.Datasource != templated || len(p.Targets) == 0 {
			t.Errorf("%q asks %v for %d series", p.Title, p.Datasource, len(p.Targets))
		}
	}
	if want := []string{"Fleet", "Confirmations and lag", "Log and bus", "Issuers: requests", "Agents: verdicts and cache", "Keys", "Audit"}; !slices.Equal(rows, want) {
		t.Errorf("rows are %q, want %q", rows, want)
	}
}

// TestDashboardIsOfDocumentedMetrics holds each of its expressions against docs/metrics.md, and each legend against the expression.
func TestDashboardIsOfDocumentedMetrics(t *testing.T) {
	known, used := documented(t), map[string]bool{}
	for _, p := range readDashboard(t).Panels {
		for _, target := range p.Targets {
			if target.Datasource != p.Datasource {
				t.Errorf("%q asks %v", p.Title, target.Datasource)
			}
			expr := substituted.Replace(target.Expr)
			if strings.Contains(expr, "$") || !strings.Contains(target.Expr, `fleet=~"$fleet"`) {
				t.Errorf("%q: %s: a variable that is not there, or not by fleet", p.Title, target.Expr)
			}
			for _, problem := range known.judge(expr) {
				t.Errorf("%q: %s: %s", p.Title, target.Expr, problem)
			}
			for _, m := range regexp.MustCompile(`sidekey_\w+`).FindAllString(expr, -1) {
				used[strings.TrimSuffix(strings.TrimSuffix(m, "_bucket"), "_count")] = true
			}
			for _, l := range regexp.MustCompile(`{{(\w+)}}`).FindAllStringSubmatch(target.LegendFormat, -1) {
				if by := regexp.MustCompile(`by \(([^)]*)\)`).FindStringSubmatch(expr); by != nil && !strings.Contains(by[1], l[1]) {
					t.Errorf("%q: the legend names %s, and the series are by %s", p.Title, l[1], by[1])
				}
			}
		}
	}
	if len(used) < 50 {
		t.Errorf("the dashboard shows %d metrics", len(used))
	}
}
