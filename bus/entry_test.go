package bus_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/sidekey/sidekey/bus"
)

// facts are one of each kind, with every member set.
func facts() []bus.Fact {
	return []bus.Fact{
		&bus.KeyFact{
			KeyID: "k1", Alg: "RS256", Bits: 2048, State: "active", JWK: json.RawMessage(`{"kty":"RSA","n":"AQAB"}`), Issuer: "https://i", Audience: "https://a",
			MaxLifetime: 3600, Created: 1, RetiredAt: 2, ExpiresAt: 3, Accept: "simplejwt",
		},
		&bus.KeyFact{KeyID: "k2", Alg: "HS256", State: "announced", Issuer: "i", Audience: "a", Sealed: []bus.SealedSecret{{Agent: "web-1", Box: []byte{1, 2}}}},
		&bus.Revocation{ID: "jti", ExpiresAt: 9, Reason: "lost <phone> & \"more\""},
		&bus.Revocation{SessionID: "sid", ExpiresAt: 9},
		&bus.Revocation{Subject: "é\x00", ExpiresAt: 9, Time: 7},
		&bus.Revocation{ClientID: strings.Repeat("c", bus.MaxID), ExpiresAt: 1<<63 - 1},
		&bus.Tick{Time: 1767225600123, Issuer: "issuer-1", Head: 411, Chain: bytes.Repeat([]byte{7}, 32)},
		&bus.Revocation{Subject: "alice", ExpiresAt: 9, Time: 7, Sessions: true},
		&bus.Credential{
			ID: "k_1", Type: bus.APIKey, Hash: bytes.Repeat([]byte{1}, 32), Subject: "alice", ClientID: "app", Scope: "read write", Roles: []string{"staff"},
			Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}, IssuedAt: 1, ExpiresAt: 2, KnownSeq: 3,
		},
		&bus.Credential{ID: "t_1", Type: bus.Opaque, Hash: make([]byte, 32), Subject: "é", Gone: true},
		&bus.SealingFact{ID: "s-1_a", Public: make([]byte, 1216), Created: 1, ExpiresAt: 2},
		&bus.RulesFact{Name: "base-1", Version: 3, Time: 1, Text: "[[rules]]\nname = \"<é\"\n\x01"},
		&bus.RulesFact{Name: strings.Repeat("x", 64), Version: 1<<64 - 1, Time: 1, Withdrawn: true},
		&bus.RulesFact{Name: "x", Version: 1, Time: 1, Text: strings.Repeat("\x01", bus.MaxRulesText)}, // six times as long in JSON
	}
}

// credentialWith is a credential with one member more, or another.
func credentialWith(member string) string {
	return `{"id":"k","type":"api_key","hash":"` + base64.StdEncoding.EncodeToString(make([]byte, 32)) + `","sub":"a","iat":1,` + member + `}`
}

// rulesWith is a set of rules with one member more, or another.
func rulesWith(member string) string {
	return `{"name":"base","version":1,"time":1,"text":"x",` + member + `}`
}

func publicKey(n int) string { return base64.StdEncoding.EncodeToString(make([]byte, n)) }

// TestRoundTrip: what is encoded decodes to the same fact.
func TestRoundTrip(t *testing.T) {
	for _, f := range facts() {
		b := body(t, f)
		back, err := bus.Decode(f.Kind(), b)
		if err != nil || !reflect.DeepEqual(back, f) {
			t.Errorf("Decode(%s): got %+v, %v, want %+v", b, back, err, f)
		}
	}
}

// TestDecodeRefuses: what this version does not wholly understand is ErrUnknown, never guessed at.
func TestDecodeRefuses(t *testing.T) {
	tick := string(body(t, facts()[6]))
	for name, c := range map[string]struct {
		kind bus.Kind
		body string
	}{
		"another kind":        {"notes", `{}`},
		"no hash":             {bus.KindCredential, `{"id":"k","type":"api_key","sub":"a","iat":1}`},
		"a short hash":        {bus.KindCredential, `{"id":"k","type":"api_key","hash":"AAAA","sub":"a","iat":1}`},
		"another type":        {bus.KindCredential, credentialWith(`"type":"basic"`)},
		"nobody's":            {bus.KindCredential, credentialWith(`"sub":""`)},
		"no credential id":    {bus.KindCredential, credentialWith(`"id":""`)},
		"a long sub":          {bus.KindCredential, credentialWith(`"sub":"` + strings.Repeat("x", bus.MaxID+1) + `"`)},
		"a long scope":        {bus.KindCredential, credentialWith(`"scope":"` + strings.Repeat("x", 4097) + `"`)},
		"an empty role":       {bus.KindCredential, credentialWith(`"roles":["a",""]`)},
		"a long role":         {bus.KindCredential, credentialWith(`"roles":["` + strings.Repeat("x", 257) + `"]`)},
		"many roles":          {bus.KindCredential, credentialWith(`"roles":[` + strings.Repeat(`"a",`, 64) + `"a"]`)},
		"no network":          {bus.KindCredential, credentialWith(`"networks":[""]`)},
		"an odd network":      {bus.KindCredential, credentialWith(`"networks":["10.0.0.0/33"]`)},
		"a network's host":    {bus.KindCredential, credentialWith(`"networks":["10.0.0.1/8"]`)},
		"a zone":              {bus.KindCredential, credentialWith(`"networks":["fe80::1%eth0/64"]`)},
		"a negative time":     {bus.KindCredential, credentialWith(`"exp":-1`)},
		"a member of ours":    {bus.KindCredential, credentialWith(`"secret":"x"`)},
		"no sealing id":       {bus.KindSealing, `{"id":"","public_key":"` + publicKey(1216) + `","created":1}`},
		"an odd sealing id":   {bus.KindSealing, `{"id":"a.b","public_key":"` + publicKey(1216) + `","created":1}`},
		"a short sealing key": {bus.KindSealing, `{"id":"a","public_key":"` + publicKey(1215) + `","created":1}`},
		"of no date":          {bus.KindSealing, `{"id":"a","public_key":"` + publicKey(1216) + `"}`},
		"no rules' name":      {bus.KindRules, rulesWith(`"name":""`)},
		"an odd rules' name":  {bus.KindRules, rulesWith(`"name":"Base"`)},
		"a long rules' name":  {bus.KindRules, rulesWith(`"name":"` + strings.Repeat("x", 65) + `"`)},
		"rules of version 0":  {bus.KindRules, rulesWith(`"version":0`)},
		"rules, negative":     {bus.KindRules, rulesWith(`"version":-1`)},
		"rules of no date":    {bus.KindRules, rulesWith(`"time":0`)},
		"rules without text":  {bus.KindRules, rulesWith(`"text":""`)},
		"long rules":          {bus.KindRules, rulesWith(`"text":"` + strings.Repeat("x", bus.MaxRulesText+1) + `"`)},
		"gone rules' text":    {bus.KindRules, rulesWith(`"withdrawn":true`)},
		"no rules' member":    {bus.KindRules, rulesWith(`"force":true`)},
		"no kind":             {"", `{}`},
		"nothing":             {bus.KindRevoke, ``},
		"null":                {bus.KindRevoke, `null`},
		"a list":              {bus.KindRevoke, `[]`},
		"half":                {bus.KindRevoke, `{"jti":"a","exp":1`},
		"two":                 {bus.KindRevoke, `{"jti":"a","exp":1}{}`},
		"trailing":            {bus.KindRevoke, `{"jti":"a","exp":1} x`},
		"unknown member":      {bus.KindRevoke, `{"jti":"a","exp":1,"x":1}`},
		"another's member":    {bus.KindRevoke, `{"jti":"a","exp":1,"kid":"k"}`},
		"wrong type":          {bus.KindRevoke, `{"jti":7,"exp":1}`},
		"a fraction":          {bus.KindRevoke, `{"jti":"a","exp":1.5}`},
		"past an int":         {bus.KindRevoke, `{"jti":"a","exp":9223372036854775808}`},
		"no exp":              {bus.KindRevoke, `{"jti":"a"}`},
		"negative exp":        {bus.KindRevoke, `{"jti":"a","exp":-1}`},
		"two ids":             {bus.KindRevoke, `{"jti":"a","sid":"b","exp":1}`},
		"no id":               {bus.KindRevoke, `{"exp":1}`},
		"a long id":           {bus.KindRevoke, `{"sub":"` + strings.Repeat("x", bus.MaxID+1) + `","exp":1}`},
		"a long reason":       {bus.KindRevoke, `{"sub":"x","exp":1,"reason":"` + strings.Repeat("x", 2000) + `"}`},
		"key without kid":     {bus.KindKey, `{"alg":"RS256","state":"active","jwk":{}}`},
		"key without jwk":     {bus.KindKey, `{"kid":"k","alg":"RS256","state":"active"}`},
		"a secret in clear":   {bus.KindKey, `{"kid":"k","alg":"HS256","state":"active","jwk":{"k":"AAAA"}}`},
		"a tick, no chain":    {bus.KindTick, `{"time":1,"issuer":"i","head":0}`},
		"a tick, half chain":  {bus.KindTick, `{"time":1,"issuer":"i","head":0,"chain":"AAAA"}`},
		"a tick, no time":     {bus.KindTick, strings.Replace(tick, "1767225600123", "0", 1)},
		"a negative head":     {bus.KindTick, strings.Replace(tick, "411", "-1", 1)},
	} {
		if f, err := bus.Decode(c.kind, []byte(c.body)); !errors.Is(err, bus.ErrUnknown) {
			t.Errorf("%s: got %+v, %v, want ErrUnknown", name, f, err)
		}
	}
}

// TestEncodeRefuses: what would not come back as it was is not written.
func TestEncodeRefuses(t *testing.T) {
	for name, f := range map[string]bus.Fact{
		"a jti that is no UTF-8":   &bus.Revocation{ID: "a\xff", ExpiresAt: 1},
		"a sid that is no UTF-8":   &bus.Revocation{SessionID: "\xc3", ExpiresAt: 1},
		"a sub that is no UTF-8":   &bus.Revocation{Subject: "a\xff", ExpiresAt: 1},
		"a role that is no UTF-8":  &bus.Credential{ID: "k", Type: bus.APIKey, Hash: make([]byte, 32), Subject: "a", Roles: []string{"\xff"}},
		"a scope that is no UTF-8": &bus.Credential{ID: "k", Type: bus.APIKey, Hash: make([]byte, 32), Subject: "a", Scope: "\xff"},
		"rules that are no UTF-8":  &bus.RulesFact{Name: "base", Version: 1, Time: 1, Text: "\xff"},
		"a network that is none":   &bus.Credential{ID: "k", Type: bus.APIKey, Hash: make([]byte, 32), Subject: "a", Networks: make([]netip.Prefix, 1)},
		"a kid that is no UTF-8":   &bus.KeyFact{KeyID: "\xff", Alg: "HS256", State: "active"},
		"a body past its bound":    &bus.KeyFact{KeyID: "k", Alg: "HS256", State: "active", Sealed: []bus.SealedSecret{{Agent: "a", Box: make([]byte, bus.MaxBody)}}},
	} {
		if b, err := bus.Encode(f); err == nil {
			t.Errorf("%s: encoded as %.60s", name, b)
		}
	}
}

// FuzzDecode: whatever decodes, encodes to a body that decodes to the same; nothing panics.
func FuzzDecode(f *testing.F) {
	for _, fact := range facts() {
		b, err := bus.Encode(fact)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(fact.Kind()), b)
	}
	f.Add("revoke", []byte(`{"JTI":"a","exp":1,"Exp":2}`))
	f.Fuzz(func(t *testing.T, kind string, data []byte) {
		fact, err := bus.Decode(bus.Kind(kind), data)
		if err != nil {
			if !errors.Is(err, bus.ErrUnknown) {
				t.Fatalf("Decode: %v is not ErrUnknown", err)
			}
			return
		}
		if fact.Kind() != bus.Kind(kind) {
			t.Fatalf("a %s decoded to a %s", kind, fact.Kind())
		}
		once, err := bus.Encode(fact)
		if err != nil {
			if len(data) <= bus.MaxBody/8 { // escapes may lengthen it
				t.Fatalf("Encode of what was decoded: %v", err)
			}
			return
		}
		again, err := bus.Decode(fact.Kind(), once)
		if err != nil {
			t.Fatalf("Decode of %s: %v", once, err)
		}
		twice, err := bus.Encode(again)
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("Encode: got %s, then %s (%v)", once, twice, err)
		}
	})
}

// TestSignedBytesDiffer: no two entries give the same bytes to sign, wherever subject, numbers and
// body are cut.
func TestSignedBytesDiffer(t *testing.T) {
	type entry struct {
		subject string
		at      bus.Position
		body    string
	}
	draw := rapid.Custom(func(t *rapid.T) entry {
		part := rapid.StringMatching("[ab\x00]{0,6}")
		return entry{part.Draw(t, "subject"), bus.Position{Epoch: rapid.Uint64Range(0, 3).Draw(t, "epoch"), Seq: rapid.Uint64Range(0, 3).Draw(t, "seq")}, part.Draw(t, "body")}
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := draw.Draw(t, "a"), draw.Draw(t, "b")
		if rapid.Bool().Draw(t, "shifted") { // the same text, cut elsewhere
			text := a.subject + a.body
			n := rapid.IntRange(0, len(text)).Draw(t, "cut")
			b = entry{text[:n], a.at, text[n:]}
		}
		same := bytes.Equal(bus.SignedBytes(a.subject, a.at, []byte(a.body)), bus.SignedBytes(b.subject, b.at, []byte(b.body)))
		if same != (a == b) {
			t.Fatalf("%+v and %+v: the same bytes %v", a, b, same)
		}
	})
}

// TestNames: no two lists of parts give one name, and no name holds what NATS gives a meaning to.
func TestNames(t *testing.T) {
	parts := rapid.SliceOfN(rapid.String(), 1, 3)
	rapid.Check(t, func(t *rapid.T) {
		a, b := parts.Draw(t, "a"), parts.Draw(t, "b")
		name := bus.Name(a...)
		if (name == bus.Name(b...)) != reflect.DeepEqual(a, b) {
			t.Fatalf("Name(%q) and Name(%q): both %s", a, b, name)
		}
		if strings.ContainsAny(name, "*> \t\r\n") || strings.Count(name, ".") != len(a)-1 {
			t.Fatalf("Name(%q): got %q", a, name)
		}
		if back, err := bus.Parts(name); err != nil || !reflect.DeepEqual(back, a) {
			t.Fatalf("Parts(%q): got %q, %v, want %q", name, back, err, a)
		}
		filter := strings.Split(name, ".")
		filter[rapid.IntRange(0, len(a)-1).Draw(t, "any")] = bus.Any
		if !bus.Matches(strings.Join(filter, "."), name) || !bus.Matches(bus.Under(a[:len(a)-1]...), name) && len(a) > 1 || bus.Under("*") == bus.Any+"."+bus.Any || !bus.Matches(">", name) || !bus.Matches("", name) || bus.Matches(name+".x", name) || bus.Matches(name+".>", name) {
			t.Fatalf("Matches(%q, %q)", filter, name)
		}
	})
}
