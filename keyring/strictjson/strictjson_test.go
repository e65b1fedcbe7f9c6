package strictjson_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/sidekey/sidekey/keyring/strictjson"
)

var known = []string{"exp", "sub", "kid"}

func read(text string) error { return strictjson.Object([]byte(text), known, nil) }

// TestRefuses has each kind of refusal, at the byte that it begins at or is noticed at.
func TestRefuses(t *testing.T) {
	deep := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	many := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"x%d":0`, i)
		}
		return "{" + b.String()[1:] + "}"
	}
	for _, c := range []struct {
		text string
		want error
	}{
		{``, strictjson.ErrSyntax}, {` `, strictjson.ErrSyntax}, {`{`, strictjson.ErrSyntax}, {`}`, strictjson.ErrSyntax},
		{`[]`, strictjson.ErrSyntax}, {`""`, strictjson.ErrSyntax}, {`1`, strictjson.ErrSyntax}, {`null`, strictjson.ErrSyntax},
		{`{}{}`, strictjson.ErrSyntax}, {`{},`, strictjson.ErrSyntax}, {`{}x`, strictjson.ErrSyntax}, {"{}\x00", strictjson.ErrSyntax},
		{`{,}`, strictjson.ErrSyntax}, {`{"a"}`, strictjson.ErrSyntax}, {`{"a":}`, strictjson.ErrSyntax}, {`{"a":1,}`, strictjson.ErrSyntax},
		{`{"a":1 "b":2}`, strictjson.ErrSyntax}, {`{"a" 1}`, strictjson.ErrSyntax}, {`{a:1}`, strictjson.ErrSyntax}, {`{'a':1}`, strictjson.ErrSyntax},
		{`{"a":[1,]}`, strictjson.ErrSyntax}, {`{"a":[,1]}`, strictjson.ErrSyntax}, {`{"a":[1}`, strictjson.ErrSyntax}, {`{"a":[1 2]}`, strictjson.ErrSyntax},
		{`{"a":tru}`, strictjson.ErrSyntax}, {`{"a":True}`, strictjson.ErrSyntax}, {`{"a":nul`, strictjson.ErrSyntax}, {`{"a":falsey}`, strictjson.ErrSyntax},
		{`{"a":01}`, strictjson.ErrSyntax}, {`{"a":-}`, strictjson.ErrSyntax}, {`{"a":+1}`, strictjson.ErrSyntax}, {`{"a":1.}`, strictjson.ErrSyntax},
		{`{"a":.5}`, strictjson.ErrSyntax}, {`{"a":1e}`, strictjson.ErrSyntax}, {`{"a":1e+}`, strictjson.ErrSyntax}, {`{"a":NaN}`, strictjson.ErrSyntax},
		{`{"a":0x1}`, strictjson.ErrSyntax}, {`{"a":1_0}`, strictjson.ErrSyntax}, {`{"a":--1}`, strictjson.ErrSyntax},
		{`{"a":"`, strictjson.ErrSyntax}, {`{"a":"\`, strictjson.ErrSyntax}, {`{"a":"\"}`, strictjson.ErrSyntax}, {`{"a":"\x"}`, strictjson.ErrSyntax},
		{`{"a":"\u12"}`, strictjson.ErrSyntax}, {`{"a":"\u12g4"}`, strictjson.ErrSyntax}, {"{\"a\":\"\n\"}", strictjson.ErrSyntax}, {"{\"a\":\"\x00\"}", strictjson.ErrSyntax},
		{"\ufeff{}", strictjson.ErrSyntax}, {"\u00a0{}", strictjson.ErrSyntax}, {"{\"a\":1\v}", strictjson.ErrSyntax},
		{"{\"a\":\"\xff\"}", strictjson.ErrText}, {"{\"\xff\":1}", strictjson.ErrText}, {"{\"a\":\"\xed\xa0\x80\"}", strictjson.ErrText},
		{`{"a":"\ud800"}`, strictjson.ErrText}, {`{"a":"\udc00"}`, strictjson.ErrText}, {`{"a":"\ud800\ud800"}`, strictjson.ErrText},
		{`{"a":"\ud800\n"}`, strictjson.ErrText}, {`{"\ud800":1}`, strictjson.ErrText}, {`{"a":"\ud800x"}`, strictjson.ErrText},
		{`{"a":1,"a":1}`, strictjson.ErrDuplicate}, {`{"a":1,"\u0061":1}`, strictjson.ErrDuplicate}, {`{"":1,"":2}`, strictjson.ErrDuplicate},
		{`{"x":{"a":1,"a":2}}`, strictjson.ErrDuplicate}, {`{"x":[{"a":1,"b":2,"a":3}]}`, strictjson.ErrDuplicate}, {`{"\/":1,"/":2}`, strictjson.ErrDuplicate},
		{`{"\ud83d\ude00":1,"😀":2}`, strictjson.ErrDuplicate},
		{`{"Exp":1}`, strictjson.ErrFolded}, {`{"exp":1,"EXP":2}`, strictjson.ErrFolded}, {`{"\u0045xp":1}`, strictjson.ErrFolded},
		{`{"ſub":1}`, strictjson.ErrFolded}, {`{"\u212aid":1}`, strictjson.ErrFolded}, {"{\"\u212aID\":1}", strictjson.ErrFolded},
		{deep(33), strictjson.ErrBounds}, {`{"a":` + strings.Repeat("[", 32) + strings.Repeat("]", 32) + `}`, strictjson.ErrBounds},
		{many(257), strictjson.ErrBounds}, {`{"a":1` + strings.Repeat("0", 64) + `}`, strictjson.ErrBounds},
		{`{"a":"` + strings.Repeat("x", strictjson.MaxLength) + `"}`, strictjson.ErrBounds},
	} {
		err := read(c.text)
		var e *strictjson.Error
		if !errors.Is(err, c.want) || !errors.As(err, &e) || e.Offset > len(c.text) {
			t.Errorf("Object(%.40q): got %v, want %v", c.text, err, c.want)
		}
	}
	for _, text := range []string{
		`{}`, " \t\r\n{ } ", `{"a":-0.5e-3,"b":[],"c":[{}],"d":{"Exp":1,"exp":2},"":null}`, `{"exp":1,"expx":2,"ex":3}`, deep(32), many(256),
		`{"a":{"x":1},"b":{"x":1},"x":1}`, `{"a":"\u0000\"\\\/\b\f\n\r\t\ud83d\ude00"}`, `{"EXPIRES":1,"Z":2}`, `{"a":1` + strings.Repeat("0", 63) + `}`,
	} {
		if err := read(text); err != nil {
			t.Errorf("Object(%.40q): got %v, want no error", text, err)
		}
	}
}

// TestValues has each accessor answer for its own kind only.
func TestValues(t *testing.T) {
	text := `{"s":"a\u0062","n":1.5,"u":18446744073709551615,"big":18446744073709551616,"huge":1e400,"t":true,"f":false,"z":null,"a":["x","y"],"m":["x",1],"o":{"k":"v"},"neg":-1}`
	got := map[string]string{}
	err := strictjson.Object([]byte(text), nil, func(name []byte, v strictjson.Value) error {
		s, isText := v.Text()
		f, isFloat := v.Float()
		u, isUint := v.Uint()
		b, isBool := v.Bool()
		l, isTexts := v.Texts()
		inner := v.Members(nil, func(name []byte, _ strictjson.Value) error { return errors.New(string(name)) })
		got[string(name)] = fmt.Sprint(v.Kind(), s, isText, f, isFloat, u, isUint, b, isBool, l, isTexts, v.Kind() == strictjson.KindObject && inner.Error() == "k")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"s":   fmt.Sprint(strictjson.KindString, "ab", true, 0.0, false, 0, false, false, false, []string(nil), false, false),
		"n":   fmt.Sprint(strictjson.KindNumber, "", false, 1.5, true, 0, false, false, false, []string(nil), false, false),
		"u":   fmt.Sprint(strictjson.KindNumber, "", false, 18446744073709551615.0, true, uint64(18446744073709551615), true, false, false, []string(nil), false, false),
		"big": fmt.Sprint(strictjson.KindNumber, "", false, 18446744073709551616.0, true, 0, false, false, false, []string(nil), false, false),
		"neg": fmt.Sprint(strictjson.KindNumber, "", false, -1.0, true, 0, false, false, false, []string(nil), false, false),
		"t":   fmt.Sprint(strictjson.KindBool, "", false, 0.0, false, 0, false, true, true, []string(nil), false, false),
		"f":   fmt.Sprint(strictjson.KindBool, "", false, 0.0, false, 0, false, false, true, []string(nil), false, false),
		"z":   fmt.Sprint(strictjson.KindNull, "", false, 0.0, false, 0, false, false, false, []string(nil), false, false),
		"a":   fmt.Sprint(strictjson.KindArray, "", false, 0.0, false, 0, false, false, false, []string{"x", "y"}, true, false),
		"m":   fmt.Sprint(strictjson.KindArray, "", false, 0.0, false, 0, false, false, false, []string(nil), false, false),
		"o":   fmt.Sprint(strictjson.KindObject, "", false, 0.0, false, 0, false, false, false, []string(nil), false, true),
	} {
		if got[name] != want {
			t.Errorf("value %s: got %s, want %s", name, got[name], want)
		}
	}
	if !strings.Contains(got["huge"], "false") || strings.Contains(got["huge"], "true") {
		t.Errorf("value huge: got %s, want no float", got["huge"])
	}
	var none strictjson.Value
	if _, ok := none.Text(); ok || none.Kind() != 0 || none.Each(nil) == nil || none.Members(nil, nil) == nil {
		t.Errorf("the zero Value answers for something")
	}
}

// TestStops has a callback's error end the reading and come back as it is.
func TestStops(t *testing.T) {
	stop, calls := errors.New("stop"), 0
	err := strictjson.Object([]byte(`{"a":1,"b":2}`), nil, func([]byte, strictjson.Value) error { calls++; return stop })
	if err != stop || calls != 1 {
		t.Errorf("Object: got %v after %d calls, want the callback's own error after one", err, calls)
	}
}

// TestAllocatesNothing reads a body as the agent does.
func TestAllocatesNothing(t *testing.T) {
	text := []byte(`{"token":"aaaa.bbbb.cccc","audience":"https://api.test","scope":"read write","at_least_seq":12,"x":{"y":[1,"z"]}}`)
	var token []byte
	var seq uint64
	n := testing.AllocsPerRun(100, func() {
		err := strictjson.Object(text, known, func(name []byte, v strictjson.Value) error {
			switch string(name) {
			case "token":
				token, _ = v.Bytes(nil)
			case "at_least_seq":
				seq, _ = v.Uint()
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 || string(token) != "aaaa.bbbb.cccc" || seq != 12 {
		t.Errorf("Object: %v allocations, token %q, seq %d", n, token, seq)
	}
}

// TestManyNames keeps a document made to collide from costing more than its length.
func TestManyNames(t *testing.T) {
	var b bytes.Buffer
	b.WriteString(`{"a":[{}`)
	for range 1000 {
		b.WriteString(`,{"x":1,"y":2}`)
	}
	b.WriteString("]}")
	if err := read(b.String()); err != nil {
		t.Errorf("Object with many small objects: %v", err)
	}
}

// FuzzStrictJSON holds the reader against encoding/json: what it accepts, encoding/json accepts, with the same members in
// the same text; what it refuses is invalid there too, or is refused for a reason that is checked here.
func FuzzStrictJSON(f *testing.F) {
	for _, text := range []string{
		`{}`, `{"a":"\u0062\ud83d\ude00","b":[1,2.5e3,true,null,{"c":{}}]}`, `{"a":1,"\u0061":2}`, `{"Exp":1}`, `{"a":"\ud800"}`,
		"{\"a\":\"\xff\"}", `{"a":01}`, `{"a":{"b":1,"b":2}}`, ` {"exp":1} `, `{"a":[[[[[]]]]]}`, `{"x":"😀","é":-0}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		ours := map[string]string{}
		err := strictjson.Object(text, known, func(name []byte, v strictjson.Value) error {
			s, isText := v.Text()
			if !isText {
				s = string(v.Raw())
			}
			ours[string(name)] = s
			return nil
		})
		var theirs map[string]json.RawMessage
		theirErr := json.Unmarshal(text, &theirs)
		if err == nil {
			if theirErr != nil || theirs == nil || len(theirs) != len(ours) {
				t.Fatalf("Object(%q): accepted %d members, encoding/json has %d, %v", text, len(ours), len(theirs), theirErr)
			}
			for name, raw := range theirs {
				want := string(raw)
				if raw[0] == '"' {
					var s string
					if err := json.Unmarshal(raw, &s); err != nil {
						t.Fatal(err)
					}
					want = s
				}
				if got, ok := ours[name]; !ok || got != want {
					t.Fatalf("Object(%q): member %q is %q, encoding/json has %q", text, name, got, want)
				}
			}
			return
		}
		if !explained(text, err, theirErr, theirs) {
			t.Fatalf("Object(%q): refused with %v, encoding/json accepts it", text, err)
		}
	})
}

// explained reports whether a refusal has a ground: the document is no JSON object, or the ground that the error names is there.
func explained(text []byte, err, theirErr error, theirs map[string]json.RawMessage) bool {
	if theirErr != nil || theirs == nil {
		return true
	}
	switch {
	case errors.Is(err, strictjson.ErrText):
		return !utf8.Valid(text) || bytes.Contains(bytes.ToLower(text), []byte(`\ud`))
	case errors.Is(err, strictjson.ErrDuplicate):
		return members(text) > distinct(text)
	case errors.Is(err, strictjson.ErrFolded):
		for name := range theirs {
			for _, k := range known {
				if name != k && strings.EqualFold(name, k) {
					return true
				}
			}
		}
		return false
	case errors.Is(err, strictjson.ErrBounds):
		return len(text) > strictjson.MaxNumber || strings.Count(string(text), "{")+strings.Count(string(text), "[") > strictjson.MaxDepth
	}
	return false // a syntax error where encoding/json sees none
}

// members counts the names in a document, and distinct those left when encoding/json has read it.
func members(text []byte) (n int) {
	d := json.NewDecoder(bytes.NewReader(text))
	var open []bool // whether it is an object; and whether a name is next
	name := false
	for {
		tok, err := d.Token()
		if err != nil {
			return n
		}
		switch tok {
		case json.Delim('{'):
			open, name = append(open, true), true
			continue
		case json.Delim('['):
			open, name = append(open, false), false
			continue
		case json.Delim('}'), json.Delim(']'):
			open = open[:len(open)-1]
		default:
			if name {
				n++
				name = false
				continue
			}
		}
		name = len(open) > 0 && open[len(open)-1]
	}
}

func distinct(text []byte) int {
	var v any
	if json.Unmarshal(text, &v) != nil {
		return 0
	}
	return count(v)
}

func count(v any) (n int) {
	switch v := v.(type) {
	case map[string]any:
		n = len(v)
		for _, e := range v {
			n += count(e)
		}
	case []any:
		for _, e := range v {
			n += count(e)
		}
	}
	return n
}
