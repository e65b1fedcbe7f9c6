package e2e

import (
	"fmt"
	"net/http"
	"strings"
)

// simpleCase is one request that both sides get. {name} in the body stands for a token of the side's own.
type simpleCase struct{ name, method, path, kind, body string }

const (
	kindJSON = "application/json"
	kindForm = "application/x-www-form-urlencoded"
)

// simpleCases are all requests: every endpoint with every shape of body and method, then what each endpoint is for.
func simpleCases() []simpleCase {
	var all []simpleCase
	for _, e := range []struct{ name, path, field, other string }{
		{"obtain", "/api/token/", "username", `"password":"x"`},
		{"refresh", "/api/token/refresh/", "refresh", ""},
		{"verify", "/api/token/verify/", "token", ""},
		{"blacklist", "/api/token/blacklist/", "refresh", ""},
		{"sliding", "/api/token/sliding/", "username", `"password":"x"`},
		{"sliding refresh", "/api/token/sliding/refresh/", "token", ""},
	} {
		all = append(all, shapes(e.name, e.path, e.field, e.other)...)
	}
	return append(append(append(all, logins([2]string{"obtain", "/api/token/"}, [2]string{"sliding", "/api/token/sliding/"})...), refreshes()...), slidings()...)
}

// shapes are the ways in which a request to an endpoint can be malformed, or nearly.
func shapes(name, path, field, other string) []simpleCase {
	var all []simpleCase
	add := func(what, method, kind, body string) {
		all = append(all, simpleCase{name + ": " + what, method, path, kind, body})
	}
	for _, v := range [][2]string{
		{"null", "null"}, {"blank", `""`}, {"spaces", `"  "`}, {"a number", "7"}, {"a fraction", "1.5"}, {"true", "true"}, {"a list", "[1]"},
		{"an object", `{"a":1}`}, {"a null character", `"a\u0000b"`}, {"no token", `"x"`}, {"not Latin", `"жук"`},
		{"very long", `"` + strings.Repeat("x", 9000) + `"`},
	} {
		body := fmt.Sprintf(`{%q:%s`, field, v[1])
		if other != "" {
			body += "," + other
		}
		add(v[0], http.MethodPost, kindJSON, body+"}")
	}
	add("twice", http.MethodPost, kindJSON, fmt.Sprintf(`{%q:"","%[1]s":"x","password":"x"}`, field))
	add("missing", http.MethodPost, kindJSON, `{}`)
	add("another member", http.MethodPost, kindJSON, `{"colour":"red"}`)
	for _, b := range [][2]string{
		{"bad JSON", `{"a":`}, {"no JSON", `hello`}, {"a word for JSON", `{a:1}`}, {"JSON and more", `{} {}`}, {"a JSON list", `[]`}, {"a JSON text", `"x"`},
		{"a JSON number", `3`}, {"JSON null", `null`}, {"JSON true", `true`}, {"a comma too many", `{"a":1,}`}, {"bad UTF-8", "{\"a\":\"\xff\"}"}, {"blanks", "  "},
	} {
		add(b[0], http.MethodPost, kindJSON, b[1])
	}
	add("no body", http.MethodPost, "", "")
	add("no body, JSON", http.MethodPost, kindJSON, "")
	add("an empty form", http.MethodPost, kindForm, "")
	add("a blank form field", http.MethodPost, kindForm, field+"=")
	add("a form", http.MethodPost, kindForm, field+"=x&password=x")
	add("a multipart form", http.MethodPost, "multipart/form-data; boundary=b", "--b\r\nContent-Disposition: form-data; name=\""+field+"\"\r\n\r\nx\r\n--b--\r\n")
	add("multipart without boundary", http.MethodPost, "multipart/form-data", "--b--\r\n")
	add("plain text", http.MethodPost, "text/plain", "hello")
	add("no type", http.MethodPost, "", "hello")
	add("JSON with a charset", http.MethodPost, kindJSON+"; charset=utf-8", `{}`)
	add("another JSON type", http.MethodPost, "application/problem+json", `{}`)
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions, "BREW"} {
		add(method, method, "", "")
	}
	slashless := simpleCase{name + ": no slash", http.MethodPost, strings.TrimSuffix(path, "/"), kindJSON, `{}`}
	return append(all, slashless)
}

func post(name, path, body string) simpleCase {
	return simpleCase{name, http.MethodPost, path, kindJSON, body}
}

// logins are the ways to prove a password, at endpoints by name and path.
func logins(endpoints ...[2]string) []simpleCase {
	var all []simpleCase
	for _, e := range endpoints {
		login := func(what, name, password string) {
			all = append(all, post(e[0]+": "+what, e[1], fmt.Sprintf(`{"username":%q,"password":%q}`, name, password)))
		}
		login("right", ina, pass)
		login("blanks around the name", "  "+ina+" ", pass)
		login("blanks around the password", ina, " "+pass+" ")
		login("wrong password", ina, "wrong")
		login("unknown user", "nobody", pass)
		login("disabled user", bob, pass)
		login("disabled user, wrong password", bob, "wrong")
		login("user disabled since", carl, pass)
		login("deleted user", dora, pass)
		login("other case", strings.ToUpper(ina), pass)
		all = append(all,
			simpleCase{e[0] + ": right form", http.MethodPost, e[1], kindForm, "username=" + ina + "&password=" + pass},
			post(e[0]+": no password", e[1], `{"username":"ina"}`),
			post(e[0]+": both blank", e[1], `{"username":"","password":""}`),
			post(e[0]+": both null", e[1], `{"username":null,"password":null}`),
			post(e[0]+": password a list", e[1], `{"username":"ina","password":["x"]}`),
			post(e[0]+": more members", e[1], fmt.Sprintf(`{"username":%q,"password":%q,"otp":"1"}`, ina, pass)),
		)
	}
	return all
}

func refreshes() []simpleCase {
	var all []simpleCase
	for _, e := range [][3]string{
		{"refresh", "/api/token/refresh/", "refresh"}, {"verify", "/api/token/verify/", "token"}, {"blacklist", "/api/token/blacklist/", "refresh"},
	} {
		give := func(what, token string) {
			all = append(all, post(e[0]+": "+what, e[1], fmt.Sprintf(`{%q:%q}`, e[2], token)))
		}
		for _, kind := range []string{"access", "refresh", "sliding"} {
			for _, state := range []string{"expired", "other_key", "no_type", "no_exp", "unsigned", "hs512", "tampered", "cut", "bad_signature"} {
				give(state+" "+kind, "{"+state+"_"+kind+"}")
			}
		}
		give("an access token", "{access}")
		give("a sliding token", "{sliding}")
		give("two dots", "..")
		give("blacklisted", "{blacklisted_refresh}")
		give("unknown user", "{unknown_user_"+e[0]+"}")
		give("disabled user", "{disabled_user_"+e[0]+"}")
		give("user disabled since", "{carl_"+e[0]+"}")
		give("deleted user", "{dora_"+e[0]+"}")
	}
	return append(all,
		post("verify: a refresh token", "/api/token/verify/", `{"token":"{refresh}"}`),
		post("verify: blanks around", "/api/token/verify/", `{"token":"  {access} "}`),
		simpleCase{"verify: right form", http.MethodPost, "/api/token/verify/", kindForm, "token={access}"},
		post("verify: foreign access", "/api/token/verify/", `{"token":"{made_access}"}`),
		post("verify: foreign refresh", "/api/token/verify/", `{"token":"{made_refresh}"}`),
		post("refresh: right", "/api/token/refresh/", `{"refresh":"{refresh}"}`),
		post("refresh: blanks around", "/api/token/refresh/", `{"refresh":" {blank_refresh} "}`),
		post("refresh: again at once", "/api/token/refresh/", `{"refresh":"{refresh}"}`),
		simpleCase{"refresh: right form", http.MethodPost, "/api/token/refresh/", kindForm, "refresh={form_refresh}"},
		post("refresh: reused", "/api/token/refresh/", `{"refresh":"{reused_refresh}"}`),
		post("refresh: foreign", "/api/token/refresh/", `{"refresh":"{made_refresh}"}`),
		post("verify: foreign refresh, used", "/api/token/verify/", `{"token":"{made_refresh}"}`),
		post("blacklist: right", "/api/token/blacklist/", `{"refresh":"{spare_refresh}"}`),
		post("blacklist: again", "/api/token/blacklist/", `{"refresh":"{spare_refresh}"}`),
		post("refresh: just blacklisted", "/api/token/refresh/", `{"refresh":"{spare_refresh}"}`),
		post("verify: just blacklisted", "/api/token/verify/", `{"token":"{spare_refresh}"}`),
		post("blacklist: foreign", "/api/token/blacklist/", `{"refresh":"{to_blacklist}"}`),
		post("blacklist: foreign again", "/api/token/blacklist/", `{"refresh":"{to_blacklist}"}`),
		post("refresh: foreign blacklisted", "/api/token/refresh/", `{"refresh":"{to_blacklist}"}`),
		post("verify: foreign blacklisted", "/api/token/verify/", `{"token":"{to_blacklist}"}`),
	)
}

func slidings() []simpleCase {
	var all []simpleCase
	give := func(what, token string) {
		all = append(all, post("sliding refresh: "+what, "/api/token/sliding/refresh/", fmt.Sprintf(`{"token":%q}`, token)))
	}
	give("right", "{sliding}")
	give("again", "{sliding}")
	give("blanks around", " {sliding} ")
	give("an access token", "{access}")
	give("a refresh token", "{spare_refresh}")
	for _, state := range []string{"expired", "other_key", "no_type", "no_exp", "unsigned", "hs512", "tampered", "cut", "bad_signature"} {
		give(state, "{"+state+"_sliding}")
	}
	give("past its end", "{sliding_over}")
	give("without an end", "{sliding_endless}")
	give("unknown user", "{sliding_unknown_user}")
	give("disabled user", "{sliding_disabled_user}")
	give("user disabled since", "{carl_sliding}")
	give("foreign", "{made_sliding}")
	return append(all,
		simpleCase{"sliding refresh: right form", http.MethodPost, "/api/token/sliding/refresh/", kindForm, "token={sliding}"},
		post("verify: a sliding token once more", "/api/token/verify/", `{"token":"{sliding}"}`))
}
