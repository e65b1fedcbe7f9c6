package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
)

// answer is what is compared of one.
type answer struct {
	status                int
	body, www, allow, typ string
}

// difference is one that is meant: in what (status, body, www, allow, type, claims) of the requests whose name matches a
// pattern of cases. Where from is not "", ours is what Simple JWT says with to in its place, and nothing else.
type difference struct{ cases, what, from, to, why string }

func (d difference) excuses(name, what, theirs, ours string) bool {
	return d.what == what && matches(d.cases, name) && (d.from == "" || strings.ReplaceAll(theirs, d.from, d.to) == ours)
}

// compare fails the test for each difference that is not in meant, and counts those that are.
func compare(t *testing.T, meant []difference, c simpleCase, theirs, ours answer, used []int) {
	t.Helper()
	for _, part := range []struct{ what, theirs, ours string }{
		{"status", fmt.Sprint(theirs.status), fmt.Sprint(ours.status)},
		{"body", shape(theirs.body), shape(ours.body)},
		{"www", theirs.www, ours.www},
		{"allow", theirs.allow, ours.allow},
		{"type", theirs.typ, ours.typ},
		{"claims", claimSets(theirs.body), claimSets(ours.body)},
	} {
		if part.theirs == part.ours {
			continue
		}
		at := slices.IndexFunc(meant, func(m difference) bool { return m.excuses(c.name, part.what, part.theirs, part.ours) })
		if at < 0 {
			t.Errorf("%s: %s: theirs %.300s, sidekey %.300s", c.name, part.what, part.theirs, part.ours)
			continue
		}
		used[at]++
	}
}

// matches tells whether one of the patterns, with | between, is of the name.
func matches(patterns, name string) bool {
	for one := range strings.SplitSeq(patterns, "|") {
		if ok, _ := path.Match(one, name); ok {
			return true
		}
	}
	return false
}

// shape is a body with the tokens in it named by their places only: members in their order, so that it is compared as
// text, but for the order of the tokens' own members, which no client depends on.
func shape(body string) string {
	var object map[string]any
	if json.Unmarshal([]byte(body), &object) != nil || len(tokensIn(object)) == 0 {
		return body
	}
	for name := range tokensIn(object) {
		object[name] = "a token"
	}
	text, _ := json.Marshal(object) // it was JSON
	return string(text)
}

// claimSets is what the tokens in a body say, in a form to compare: the claims that Simple JWT's tokens have, times as
// lifetimes.
func claimSets(body string) string {
	var object map[string]any
	if json.Unmarshal([]byte(body), &object) != nil {
		return ""
	}
	var b strings.Builder
	tokens := tokensIn(object)
	for _, name := range slices.Sorted(maps.Keys(tokens)) {
		claims := tokens[name]
		fmt.Fprintf(&b, "%s:", name)
		for _, claim := range slices.Sorted(maps.Keys(claims)) {
			if slices.Contains(moreClaims[claimString(claims["token_type"])], claim) {
				continue
			}
			switch v := claims[claim].(type) {
			case float64:
				if strings.HasSuffix(claim, "exp") {
					v -= claims["iat"].(float64)
				} else if claim == "iat" {
					v = 0
				}
				fmt.Fprintf(&b, " %s=%v", claim, v)
			case string:
				if claim == "jti" {
					v = "…"
				}
				fmt.Fprintf(&b, " %s=%q", claim, v)
			default:
				fmt.Fprintf(&b, " %s=%v", claim, v)
			}
		}
		b.WriteString("; ")
	}
	return b.String()
}

// tokensIn gives the claims of a body's tokens, by member.
func tokensIn(object map[string]any) map[string]map[string]any {
	tokens := map[string]map[string]any{}
	for _, name := range []string{"access", "refresh", "token"} {
		parts := strings.Split(claimString(object[name]), ".")
		if len(parts) != 3 {
			continue
		}
		payload, err := base64.RawURLEncoding.DecodeString(parts[1])
		claims := map[string]any{}
		if err == nil && json.Unmarshal(payload, &claims) == nil {
			tokens[name] = claims
		}
	}
	return tokens
}

func claimString(v any) string {
	s, _ := v.(string)
	return s
}

func decodeMap(t *testing.T, text string) map[string]string {
	t.Helper()
	m := map[string]string{}
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		t.Fatalf("reading %q: %v", text, err)
	}
	return m
}

// moreClaims are what our tokens say beside Simple JWT's claims (API.md §2), by token_type.
var moreClaims = map[string][]string{
	"access":  {"iss", "sub", "aud", "nbf", "sid", "session_seq", "client_id", "auth_time"},
	"refresh": {"iss", "sub", "aud", "nbf", "sid", "session_seq", "client_id", "auth_time", "gen"},
	"sliding": {"iss", "sub", "aud", "nbf", "sid", "session_seq", "client_id", "auth_time"},
}
