package main

import (
	"encoding/json"
	"testing"
)

// TestRulesBehind: an agent is behind in what it decides by: sets that it merges, and its rules as a whole.
func TestRulesBehind(t *testing.T) {
	for name, c := range map[string]struct {
		agent string
		want  int
	}{
		"the newest":                         {`"seen":1,"sets":[{"name":"base","version":2,"merged":true},{"name":"team","version":1,"merged":true}]`, 0},
		"no sets":                            {`"seen":1,"sets":[]`, 0},
		"not heard":                          {`"seen":0,"sets":[]`, 1},
		"a fault of the whole":               {`"seen":1,"fault":"x","sets":[{"name":"base","version":2,"merged":true}]`, 1},
		"an older version":                   {`"seen":1,"sets":[{"name":"base","version":1,"merged":true}]`, 1},
		"a fault of a set":                   {`"seen":1,"sets":[{"name":"base","version":2,"merged":true,"fault":"x"}]`, 1},
		"an older version that is not meant": {`"seen":1,"sets":[{"name":"base","version":2,"merged":true},{"name":"team","version":0,"merged":false}]`, 0},
		"a fault of one that is not meant":   {`"seen":1,"sets":[{"name":"team","version":1,"merged":false,"fault":"x"}]`, 0},
	} {
		var l rulesAnswer
		text := `{"rules":[{"name":"base","version":2},{"name":"team","version":1}],"agents":[{"agent":"one",` + c.agent + `}]}`
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatal(err)
		}
		if got := l.behind(); got != c.want {
			t.Errorf("%s: %d are behind, want %d", name, got, c.want)
		}
	}
}
