package bus_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats.go"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/keyring"
)

// passwords is a bus with issuers that check passwords, and agents that ask.
type passwords struct {
	*bustest.Bus
	sealing *keyring.SealingKey
	keys    map[string]ed25519.PrivateKey // of the agents that have joined
	at      time.Time                     // the log's time

	mu      sync.Mutex
	removed string
	asked   []bus.BasicRequest
}

func newPasswords(t *testing.T, agents ...string) *passwords {
	t.Helper()
	p := &passwords{Bus: bustest.Start(t), keys: make(map[string]ed25519.PrivateKey), at: time.Unix(1767225600, 0)}
	var err error
	if p.sealing, err = keyring.GenerateSealingKey(); err != nil {
		t.Fatal(err)
	}
	for _, name := range agents {
		_, p.keys[name] = generate(t)
	}
	return p
}

func (p *passwords) fact() *bus.SealingFact {
	return &bus.SealingFact{ID: "s1", Public: p.sealing.Public(), Created: 1}
}

// check is what the issuers say: alice's password is right, "limited" is limited.
func (p *passwords) check(_ context.Context, _ string, req bus.BasicRequest) bus.BasicAnswer {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, req)
	switch {
	case req.Username == "limited":
		return bus.BasicAnswer{Outcome: bus.BasicLimited, RetryAfter: 7}
	case req.Password != secretPassword:
		return bus.BasicAnswer{Outcome: bus.BasicRefused}
	}
	return bus.BasicAnswer{Outcome: bus.BasicOK, Subject: "sub of " + req.Username, Username: req.Username, ClientID: "c", Scope: "read write", Roles: []string{"staff"}, Seq: 411, Life: 60}
}

func (p *passwords) questions() []bus.BasicRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]bus.BasicRequest(nil), p.asked...)
}

const secretPassword = "corréct <horse> & \"battery\""

// answer has an issuer answer on a connection, with changes.
func (p *passwords) answer(t *testing.T, conn *bus.Conn, with ...func(*bus.BasicAnswerer)) {
	t.Helper()
	key := func(_ context.Context, agent string) (ed25519.PublicKey, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if k := p.keys[agent]; k != nil && agent != p.removed {
			return k.Public().(ed25519.PublicKey), nil
		}
		return nil, bus.ErrNotFound
	}
	a := &bus.BasicAnswerer{
		Conn: conn, Authority: p.Authority, Key: key, Check: p.check, Logger: hclog.NewNullLogger(),
		Open: func(_ context.Context, id string, box []byte, info ...[]byte) ([]byte, error) {
			if id != "s1" {
				return nil, bus.ErrNotFound
			}
			return p.sealing.Open(box, info...)
		},
		Time: func() time.Time { return p.at },
	}
	for _, change := range with {
		change(a)
	}
	stop, err := a.Listen()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
}

// agent is an agent's end, which has read of the sealing key a little ago.
func (p *passwords) agent(conn *bus.Conn, name string) *bus.BasicChecker {
	return &bus.BasicChecker{
		Conn: conn, Authority: p.Authority.Public(), Agent: name, Run: "run of " + name, Key: p.keys[name],
		Sealing: func() (*bus.SealingFact, time.Time) { return p.fact(), p.at.Add(-time.Second) },
	}
}

func askFor(t *testing.T, c *bus.BasicChecker, username, password string) (bus.BasicAnswer, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	return c.Check(ctx, bus.BasicRequest{Username: username, Password: password, Address: "192.0.2.7"})
}

// TestBasic: an agent learns who has a password, of one issuer of several.
func TestBasic(t *testing.T) {
	t.Parallel()
	p := newPasswords(t, "web-1", "web/2 <&>")
	p.answer(t, p.Connect(t))
	p.answer(t, p.Connect(t))
	one, two := p.agent(p.ConnectAgent(t, "web-1"), "web-1"), p.agent(p.ConnectAgent(t, "web/2 <&>"), "web/2 <&>")
	for n, c := range []struct {
		agent              *bus.BasicChecker
		username, password string
		want               bus.BasicAnswer
	}{
		{one, "alice", secretPassword, bus.BasicAnswer{Outcome: bus.BasicOK, Subject: "sub of alice", Username: "alice", ClientID: "c", Scope: "read write", Roles: []string{"staff"}, Seq: 411, Life: 60}},
		{two, "é", secretPassword, bus.BasicAnswer{Outcome: bus.BasicOK, Subject: "sub of é", Username: "é", ClientID: "c", Scope: "read write", Roles: []string{"staff"}, Seq: 411, Life: 60}},
		{one, "alice", secretPassword + "x", bus.BasicAnswer{Outcome: bus.BasicRefused}},
		{one, "", "", bus.BasicAnswer{Outcome: bus.BasicRefused}},
		{one, "limited", secretPassword, bus.BasicAnswer{Outcome: bus.BasicLimited, RetryAfter: 7}},
		{two, strings.Repeat("u", bus.MaxBasicUsername), strings.Repeat("\x00p", bus.MaxBasicPassword/2), bus.BasicAnswer{Outcome: bus.BasicRefused}},
	} {
		got, err := askFor(t, c.agent, c.username, c.password)
		got.Nonce, got.Agent, got.Run, got.Asked = nil, "", "", nil
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("Check %d: got %+v, %v, want %+v", n, got, err, c.want)
		}
		asked := p.questions()
		if want := (bus.BasicRequest{Username: c.username, Password: c.password, Address: "192.0.2.7"}); len(asked) != n+1 || asked[n] != want {
			t.Errorf("Check %d: %d questions were looked into, want %d, the last as it was put", n, len(asked), n+1)
		}
	}
	for name, c := range map[string][2]string{
		"a long name": {strings.Repeat("u", bus.MaxBasicUsername+1), "p"}, "a long password": {"u", strings.Repeat("p", bus.MaxBasicPassword+1)},
	} {
		if got, err := askFor(t, one, c[0], c[1]); err != nil || got.Outcome != bus.BasicRefused || len(p.questions()) != 6 {
			t.Errorf("%s: got %+v, %v, want it refused without asking", name, got, err)
		}
	}
	if text := fmt.Sprintf("%v %+v %#v %s", bus.BasicRequest{Password: "x1"}, bus.BasicRequest{Password: "x1"}, bus.BasicRequest{Password: "x1"}, bus.BasicRequest{Password: "x1"}); strings.Contains(text, "x1") {
		t.Errorf("a password is printed: %s", text)
	}
}

// TestBasicUnasked: where nobody answers, nothing is known, and that is said at once or when ctx ends.
func TestBasicUnasked(t *testing.T) {
	t.Parallel()
	p := newPasswords(t, "web-1")
	agent := p.agent(p.ConnectAgent(t, "web-1"), "web-1")
	if got, err := askFor(t, agent, "alice", secretPassword); !errors.Is(err, bus.ErrBasic) || !strings.Contains(err.Error(), "is an issuer up?") {
		t.Errorf("Check without an issuer: got %+v, %v, want ErrBasic", got, err)
	}
	agent.Sealing = func() (*bus.SealingFact, time.Time) { return nil, p.at }
	if got, err := askFor(t, agent, "alice", secretPassword); !errors.Is(err, bus.ErrBasic) || !strings.Contains(err.Error(), "the log has no sealing key") {
		t.Errorf("Check without a sealing key: got %+v, %v, want ErrBasic", got, err)
	}
}

// question is what an issuer hears.
type question struct {
	Nonce []byte `json:"nonce"`
	Agent string `json:"agent"`
	Run   string `json:"run"`
	Time  int64  `json:"time"`
	Key   string `json:"key"`
	Box   []byte `json:"box"`
}

// TestBasicAnswersRefused: of all that whoever owns the bus can send back, an agent believes the
// authority's answer to this question of its own and nothing else.
func TestBasicAnswersRefused(t *testing.T) {
	t.Parallel()
	p := newPasswords(t, "web-1")
	agent := p.agent(p.ConnectAgent(t, "web-1"), "web-1")
	other, err := keyring.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	type reply struct {
		ans     bus.BasicAnswer
		context string
		sign    func([]byte) []byte
	}
	var old []byte // the first good answer, signed
	var oldHeader nats.Header
	var change func(*reply, []byte)
	nc := owner(t, p.Bus)
	if _, err := nc.Subscribe("sidekey.basic.*", func(m *nats.Msg) {
		var q question
		if json.Unmarshal(m.Data, &q) != nil {
			return
		}
		sum := sha256.Sum256(m.Data)
		r := reply{bus.BasicAnswer{Nonce: q.Nonce, Agent: q.Agent, Run: q.Run, Asked: sum[:], Outcome: bus.BasicOK, Subject: "s", Life: 60}, "sidekey-basic-answer-1\x00", p.Authority.Sign}
		change(&r, m.Data)
		body, err := json.Marshal(r.ans)
		if err != nil {
			return
		}
		out := &nats.Msg{Data: body, Header: nats.Header{"Sidekey-Signature": {base64.RawURLEncoding.EncodeToString(r.sign(append([]byte(r.context), body...)))}}}
		if old == nil {
			old, oldHeader = body, out.Header
		}
		if r.sign == nil {
			return
		}
		if r.context == "replay" {
			out.Data, out.Header = old, oldHeader
		}
		m.RespondMsg(out) //nolint:errcheck // its absence fails the test
	}); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*reply, []byte)
		want   string // in the error; "": it is believed
	}{
		{"good", func(*reply, []byte) {}, ""},
		{"an old answer", func(r *reply, _ []byte) { r.context = "replay" }, "another question"},
		{"another nonce", func(r *reply, _ []byte) { r.ans.Nonce = make([]byte, 16) }, "another question"},
		{"to another agent", func(r *reply, _ []byte) { r.ans.Agent = "web-2" }, "another agent's"},
		{"to another run", func(r *reply, _ []byte) { r.ans.Run = "r" }, "another agent's"},
		{"to another question under the nonce", func(r *reply, _ []byte) { r.ans.Asked[3] ^= 1 }, "another question"},
		{"another authority's", func(r *reply, _ []byte) { r.sign = other.Sign }, "the signature is not the authority's"},
		{"the agent's own signature", func(r *reply, _ []byte) { r.sign = func(b []byte) []byte { return ed25519.Sign(p.keys["web-1"], b) } }, "the signature is not the authority's"},
		{"unsigned", func(r *reply, _ []byte) { r.sign = func([]byte) []byte { return nil } }, "the signature is not the authority's"},
		{"signed as something else", func(r *reply, _ []byte) { r.context = "sidekey-lease-grant-1\x00" }, "the signature is not the authority's"},
		{"no outcome", func(r *reply, _ []byte) { r.ans.Outcome = "" }, `an answer with outcome ""`},
		{"nobody", func(r *reply, _ []byte) { r.ans.Subject = "" }, "an answer for"},
		{"for too long", func(r *reply, _ []byte) { r.ans.Life = 61 }, "lives 61 s"},
		{"for less than no time", func(r *reply, _ []byte) { r.ans.Life = -1 }, "lives -1 s"},
		{"refused, and somebody", func(r *reply, _ []byte) { r.ans.Outcome = bus.BasicRefused }, "refuses somebody and names them"},
	} {
		change = c.change
		got, err := askFor(t, agent, "alice", secretPassword)
		switch {
		case c.want == "" && (err != nil || got.Outcome != bus.BasicOK):
			t.Errorf("%s: got %+v, %v, want it believed", c.name, got, err)
		case c.want != "" && (!errors.Is(err, bus.ErrBasic) || !strings.Contains(err.Error(), c.want) || got.Outcome == bus.BasicOK):
			t.Errorf("%s: got %+v, %v, want %q", c.name, got, err, c.want)
		}
	}
}

// put puts a question as whoever owns the bus can, and gives the outcome, "" where there is no answer.
func put(t *testing.T, nc *nats.Conn, subject string, body []byte, header nats.Header) bus.BasicOutcome {
	t.Helper()
	m, err := nc.RequestMsg(&nats.Msg{Subject: subject, Data: body, Header: header}, 300*time.Millisecond)
	if err != nil {
		return ""
	}
	var ans bus.BasicAnswer
	if err := json.Unmarshal(m.Data, &ans); err != nil {
		t.Fatal(err)
	}
	return ans.Outcome
}

// TestBasicQuestionsRefused: an issuer looks into no password that its agent does not ask about, here and now.
func TestBasicQuestionsRefused(t *testing.T) {
	t.Parallel()
	p := newPasswords(t, "web-1", "web-2")
	p.answer(t, p.Connect(t))
	conn := p.ConnectAgent(t, "web-1")
	agent, nc := p.agent(conn, "web-1"), owner(t, p.Bus)
	captured := make(chan *nats.Msg, 8)
	if _, err := nc.Subscribe("sidekey.basic.*", func(m *nats.Msg) {
		select {
		case captured <- m:
		default:
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if got, err := askFor(t, agent, "alice", secretPassword); err != nil || got.Outcome != bus.BasicOK {
		t.Fatalf("Check: got %+v, %v", got, err)
	}
	good := <-captured
	looked := len(p.questions())
	var q question
	if err := json.Unmarshal(good.Data, &q); err != nil {
		t.Fatal(err)
	}
	signed := func(agent string, change func(*question)) ([]byte, nats.Header) {
		c := q
		change(&c)
		body, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		sig := ed25519.Sign(p.keys[agent], append([]byte("sidekey-basic-request-1\x00"), body...))
		return body, nats.Header{"Sidekey-Signature": {base64.RawURLEncoding.EncodeToString(sig)}}
	}
	subject := func(name string) string { return "sidekey.basic." + bus.Name(name) }
	seal := func(c *question, plain []byte) {
		info := [][]byte{[]byte("sidekey-basic-box-1"), []byte(c.Key), []byte(c.Agent), []byte(c.Run), c.Nonce, binary.BigEndian.AppendUint64(nil, uint64(c.Time))}
		box, err := keyring.SealTo(p.sealing.Public(), plain, info...)
		if err != nil {
			t.Fatal(err)
		}
		c.Box = box
	}
	type change = func(*question)
	for _, c := range []struct {
		name, agent, on string
		change          change
		want            bus.BasicOutcome
	}{
		{"another nonce around the box", "web-1", "web-1", func(c *question) { c.Nonce = make([]byte, 16) }, bus.BasicUnavailable},
		{"a captured box in a question of another agent's own", "web-2", "web-2", func(c *question) { c.Agent = "web-2" }, bus.BasicUnavailable},
		{"another run", "web-1", "web-1", func(c *question) { c.Run = "r" }, bus.BasicUnavailable},
		{"another time", "web-1", "web-1", func(c *question) { c.Time += 1000 }, bus.BasicUnavailable},
		{"long ago", "web-1", "web-1", func(c *question) { c.Time -= 61_000 }, bus.BasicUnavailable},
		{"from the future", "web-1", "web-1", func(c *question) { c.Time += 63_000 }, bus.BasicUnavailable},
		{"at no time", "web-1", "web-1", func(c *question) { c.Time = -62135596800000 }, bus.BasicUnavailable},
		{"an unknown sealing key", "web-1", "web-1", func(c *question) { c.Key = "s0" }, bus.BasicUnavailable},
		{"no box", "web-1", "web-1", func(c *question) { c.Box = nil }, bus.BasicUnavailable},
		{"a box of nothing", "web-1", "web-1", func(c *question) { seal(c, nil) }, bus.BasicUnavailable},
		{"a box of less", "web-1", "web-1", func(c *question) { seal(c, make([]byte, 4420)) }, bus.BasicUnavailable},
		{"a box of more than its parts", "web-1", "web-1", func(c *question) { seal(c, append(make([]byte, 4420), 1)) }, bus.BasicUnavailable},
		{"a box with a part past its bound", "web-1", "web-1", func(c *question) { seal(c, append([]byte{1, 0}, make([]byte, 4419)...)) }, bus.BasicUnavailable},
		{"in another's name", "web-1", "web-2", func(*question) {}, ""},
		{"on another's subject", "web-2", "web-1", func(c *question) { c.Agent = "web-2" }, ""},
		{"of a stranger", "web-1", "web-3", func(c *question) { c.Agent = "web-3" }, ""},
		{"a short nonce", "web-1", "web-1", func(c *question) { c.Nonce = c.Nonce[:8] }, ""},
		{"a long run", "web-1", "web-1", func(c *question) { c.Run = strings.Repeat("r", 129) }, ""},
		{"past all bounds", "web-1", "web-1", func(c *question) { c.Box = make([]byte, 12<<10) }, ""},
	} {
		body, header := signed(c.agent, c.change)
		if got := put(t, nc, subject(c.on), body, header); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
	if got := put(t, nc, subject("web-1"), good.Data, good.Header); got != bus.BasicUnavailable {
		t.Errorf("the question once more: got %q, want %q", got, bus.BasicUnavailable)
	}
	if got := put(t, nc, subject("web-1"), good.Data, nil); got != "" {
		t.Errorf("the question unsigned: got %q, want no answer", got)
	}
	p.mu.Lock()
	p.removed = "web-1"
	p.mu.Unlock()
	if got, err := askFor(t, agent, "alice", secretPassword); !errors.Is(err, bus.ErrBasic) {
		t.Errorf("Check of a removed agent: got %+v, %v, want ErrBasic", got, err)
	}
	if n := len(p.questions()); n != looked {
		t.Errorf("%d passwords were looked at on the way, want none", n-looked)
	}
}

// TestBasicBusy: what is too much is said at once, by the agent of its own questions and by the issuer of all.
func TestBasicBusy(t *testing.T) {
	t.Parallel()
	names := []string{"web-1", "web-2", "web-3"}
	p := newPasswords(t, names...)
	release, entered := make(chan struct{}), make(chan struct{}, 100)
	p.answer(t, p.Connect(t), func(a *bus.BasicAnswerer) {
		a.Check = func(ctx context.Context, agent string, req bus.BasicRequest) bus.BasicAnswer {
			entered <- struct{}{}
			<-release
			return p.check(ctx, agent, req)
		}
	})
	var wg sync.WaitGroup
	ok := make(chan bus.BasicOutcome, 100)
	agents := make([]*bus.BasicChecker, len(names))
	for n, name := range names {
		agents[n] = p.agent(p.ConnectAgent(t, name), name)
	}
	for _, agent := range agents[:2] {
		for range 32 {
			wg.Go(func() {
				ans, err := agent.Check(t.Context(), bus.BasicRequest{Username: "alice", Password: secretPassword})
				if err != nil {
					t.Errorf("Check: %v", err)
				}
				ok <- ans.Outcome
			})
		}
	}
	for range 64 {
		<-entered
	}
	for n, agent := range agents { // the first two are at their own bound, the third at the issuer's
		if got, err := askFor(t, agent, "alice", secretPassword); err != nil || got.Outcome != bus.BasicBusy || got.RetryAfter != 1 {
			t.Errorf("one more of agent %d: got %+v, %v, want it busy", n+1, got, err)
		}
	}
	close(release)
	wg.Wait()
	close(ok)
	for got := range ok {
		if got != bus.BasicOK {
			t.Errorf("one of those before: got %q, want ok", got)
		}
	}
	if got, err := askFor(t, agents[2], "alice", secretPassword); err != nil || got.Outcome != bus.BasicOK {
		t.Errorf("afterwards: got %+v, %v, want ok", got, err)
	}
}

// tap keeps every message that passes a proxy.
type tap struct {
	mu    sync.Mutex
	all   bytes.Buffer
	sizes map[int]bool // of the questions' bodies
}

func (p *tap) through(t *testing.T, b *bustest.Bus) *bustest.Bus {
	t.Helper()
	proxy := bustest.NewProxy(t, b.Server.URL())
	for _, dir := range []bustest.Direction{bustest.ToServer, bustest.ToClient} {
		proxy.Tamper(dir, func(m bustest.Message) []bustest.Message {
			p.mu.Lock()
			defer p.mu.Unlock()
			if strings.HasPrefix(m.Subject, "sidekey.basic.") {
				p.sizes[len(m.Body)] = true
			}
			fmt.Fprintf(&p.all, "%s\n%s\n%s\n", m.Subject, m.Header, m.Body)
			return []bustest.Message{m}
		})
	}
	return b.Via(proxy)
}

// traces are the forms in which a secret could show in what is written down of the bus.
func traces(secret string) map[string][]byte {
	forms := map[string][]byte{"itself": []byte(secret)}
	sum := sha256.Sum256([]byte(secret))
	quoted, _ := json.Marshal(secret) //nolint:errchkjson // a string has a JSON
	for what, raw := range map[string][]byte{"its text": []byte(secret), "its SHA-256": sum[:], "its JSON": quoted[1 : len(quoted)-1]} {
		forms[what] = raw
		forms["the hex of "+what] = []byte(hex.EncodeToString(raw))
		for shift := range 3 { // wherever it stands in what is encoded
			for name, enc := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "base64url": base64.RawURLEncoding} {
				text := enc.EncodeToString(append(make([]byte, shift), raw...))
				forms[fmt.Sprintf("the %s of %s, %d", name, what, shift)] = []byte(text[4 : len(text)-4])
			}
		}
	}
	return forms
}

// TestBasicNeverInClear: on the wires of agent and issuer there is neither the password, nor a hash of it,
// nor, by the length of what passes, a hint at it.
func TestBasicNeverInClear(t *testing.T) {
	t.Parallel()
	p := newPasswords(t, "web-1")
	wires := &tap{sizes: make(map[int]bool)}
	p.answer(t, wires.through(t, p.Bus).Connect(t))
	conn := wires.through(t, p.Bus).ConnectAgent(t, "web-1")
	agent := p.agent(conn, "web-1")
	for _, password := range []string{secretPassword, "", strings.Repeat("p", 4000)} {
		if _, err := askFor(t, agent, "alice", password); err != nil {
			t.Fatal(err)
		}
	}
	const canary = "what the tap must find, all of 44 letters long"
	link := &bus.Link{Conn: conn, Agent: "web-1", Status: func() ([]byte, error) {
		return []byte(base64.StdEncoding.EncodeToString([]byte("x" + canary))), nil
	}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); link.Run(ctx) }()
	found := func(secret string) (how []string) {
		wires.mu.Lock()
		defer wires.mu.Unlock()
		for what, form := range traces(secret) {
			if bytes.Contains(wires.all.Bytes(), form) {
				how = append(how, what)
			}
		}
		return how
	}
	eventually(t, "the tap hears", func() bool { return len(found(canary)) > 0 })
	cancel()
	<-done
	if how := found(secretPassword); len(how) > 0 {
		t.Errorf("the password was on the bus: %v", how)
	}
	wires.mu.Lock()
	defer wires.mu.Unlock()
	if len(wires.sizes) != 1 {
		t.Errorf("questions about passwords of 0 to 4000 bytes have the lengths %v, want one", wires.sizes)
	}
}
