package bus_test

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
	"github.com/sidekey/sidekey/keyring"
)

// join joins into a folder of the test's.
func join(t *testing.T, token *bus.Token, dir string) (*bus.Identity, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return bus.Join(ctx, bus.JoinConfig{Token: token, Dir: dir})
}

func newDir(t *testing.T) string { return filepath.Join(t.TempDir(), "identity") }

// TestJoin: an agent joins, its files are its owner's alone, and what it has opens what it may.
func TestJoin(t *testing.T) {
	b := bustest.Start(t)
	l := b.Log(t)
	mustAppend(t, l, revocation("a"))
	dir := newDir(t)
	id, err := join(t, b.Invite(t, bus.RoleAgent, "web-1"), dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := bus.ReadIdentity(dir)
	if err != nil || again.Name != "web-1" || again.User.JWT != id.User.JWT || string(again.Authority) != string(b.Authority.Public()) ||
		string(again.Sealing.Private()) != string(id.Sealing.Private()) || !again.Signing.Equal(id.Signing) || again.CA != nil {
		t.Fatalf("ReadIdentity: got %v, want what Join gave", err)
	}
	if _, err := os.Stat(dir + ".joining"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("joining left its folder behind: %v", err)
	}
	conn := connectAs(t, again)
	if got := collect(t, readerLog{bus.NewReader(conn, again.Authority), l}, bus.Cursor{}, 1); ids(got)[0] != "a" {
		t.Errorf("following with an identity: got %v", ids(got))
	}
	members, err := b.Enrolment(t).Members(t.Context(), bus.RoleAgent)
	if err != nil || len(members) != 1 || members[0].Name != "web-1" || string(members[0].SealingKey) != string(id.Sealing.Public()) || members[0].Joined == 0 {
		t.Errorf("Members: got %+v, %v", members, err)
	}
	if _, err := b.Enrolment(t).Invite(t.Context(), bus.RoleAgent, "web-1", 0); !errors.Is(err, bus.ErrExists) {
		t.Errorf("Invite under a name that has joined: got %v, want ErrExists", err)
	}
	if _, err := join(t, b.Invite(t, bus.RoleAgent, "web-2"), dir); !errors.Is(err, bus.ErrJoined) {
		t.Errorf("Join over an identity: got %v, want ErrJoined", err)
	}
	if err := os.Chmod(filepath.Join(dir, "agent.creds"), 0o604); err != nil {
		t.Fatal(err)
	}
	if _, err := bus.ReadIdentity(dir); err == nil || !strings.Contains(err.Error(), "run: chmod 600 "+filepath.Join(dir, "agent.creds")) {
		t.Errorf("ReadIdentity of a loose file: got %v, want the command that mends it", err)
	}
}

// TestAnotherKey: a key that a disk has turned into another one, sound in itself, is no identity; nor is a public half that was
// turned. An identity from before the public halves were noted is read.
func TestAnotherKey(t *testing.T) {
	b := bustest.Start(t)
	dir := newDir(t)
	if _, err := join(t, b.Invite(t, bus.RoleAgent, "web-1"), dir); err != nil {
		t.Fatal(err)
	}
	flip := func(key []byte) []byte { // one bit of the key itself
		raw, err := base64.RawStdEncoding.DecodeString(strings.TrimSpace(string(key)))
		if err != nil {
			t.Fatal(err)
		}
		raw[7] ^= 4
		return []byte(base64.RawStdEncoding.EncodeToString(raw) + "\n")
	}
	another := func([]byte) []byte { // a letter changed may be a sound key, or none
		key, _, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		return []byte(keyring.AuthorityKey(key).Text() + "\n")
	}
	head := func(change func(map[string]any)) func([]byte) []byte {
		return func(text []byte) []byte {
			var m map[string]any
			if err := json.Unmarshal(text, &m); err != nil {
				t.Fatal(err)
			}
			change(m)
			text, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			return text
		}
	}
	for what, c := range map[string]struct {
		file   string
		damage func([]byte) []byte
		want   string
	}{
		"signing key":       {"signing.key", flip, "signing.key is not the key that bus.json names: one of the two is damaged; restore the folder"},
		"sealing key":       {"sealing.key", flip, "sealing.key is not the key that bus.json names"},
		"authority's key":   {"authority.pub", another, "authority.pub is not the key that bus.json names"},
		"public half":       {"bus.json", head(func(m map[string]any) { m["signing_key"] = strings.Repeat("A", 43) + "=" }), "signing.key is not the key that bus.json names"},
		"an empty half":     {"bus.json", head(func(m map[string]any) { m["signing_key"] = "" }), "signing.key is not the key that bus.json names"},
		"no halves, before": {"bus.json", head(func(m map[string]any) { delete(m, "signing_key"); delete(m, "sealing_key"); delete(m, "authority_key") }), ""},
	} {
		t.Run(what, func(t *testing.T) {
			path := filepath.Join(dir, c.file)
			good, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			defer os.WriteFile(path, good, 0o600) //nolint:errcheck // the next case finds it
			if err := os.WriteFile(path, c.damage(slices.Clone(good)), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err = bus.ReadIdentity(dir)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("ReadIdentity: got %v, want %q", err, c.want)
			}
		})
	}
}

// readerLog follows through a Reader and appends through a Log.
type readerLog struct {
	*bus.Reader
	log *bus.Log
}

func (r readerLog) Append(ctx context.Context, facts ...bus.Fact) (bus.Position, error) {
	return r.log.Append(ctx, facts...)
}
func (r readerLog) AppendIf(ctx context.Context, kind bus.Kind, last uint64, fact bus.Fact) (bus.Position, error) {
	return r.log.AppendIf(ctx, kind, last, fact)
}
func (r readerLog) Tick(ctx context.Context) (bus.Position, error) { return r.log.Tick(ctx) }
func (r readerLog) WriteCheckpoint(ctx context.Context, at bus.Cursor, image []byte, held []byte) error {
	return r.log.WriteCheckpoint(ctx, at, image, held)
}

func connectAs(t *testing.T, id *bus.Identity) *bus.Conn {
	t.Helper()
	conn, err := bus.Connect(id.ConnectConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := conn.Await(ctx); err != nil {
		t.Fatal(err)
	}
	return conn
}

// TestJoinRefusals: a token is good for one use, by who has it, under its name and in its time, and
// only at the bus and the authority that it names.
func TestJoinRefusals(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	other := bustest.Start(t)
	b.Enrolment(t)
	for name, c := range map[string]struct {
		change func(t *testing.T, token *bus.Token)
		want   string
	}{
		"another name": {func(_ *testing.T, k *bus.Token) { k.Name = "web-2" }, `this join token is for agent "web-1", not for agent "web-2"`},
		"another role": {func(_ *testing.T, k *bus.Token) { k.Role = bus.RoleIssuer }, `this join token is for agent "web-1", not for issuer "web-1"`},
		"altered authority": {func(_ *testing.T, k *bus.Token) { k.Authority[3] ^= 1 },
			"the answer is not signed by the authority that the join token names"},
		"a CA, of a bus in clear": {func(_ *testing.T, k *bus.Token) { k.CA = make([]byte, 32) }, "secure connection not available"},
		"another bus":             {func(_ *testing.T, k *bus.Token) { k.URLs = []string{other.Server.URL()} }, "Authorization Violation"},
		"expired":                 {func(_ *testing.T, k *bus.Token) { k.Expires = 1 }, "the join token expired at 1970-01-01T00:00:01Z"},
		"another's seed": {func(t *testing.T, k *bus.Token) { k.User.Seed = b.Invite(t, bus.RoleAgent, "x").User.Seed },
			"Authorization Violation"},
		"another's id": {func(t *testing.T, k *bus.Token) { k.ID = b.Invite(t, bus.RoleAgent, "x").ID }, "is one up?"},
	} {
		t.Run(name, func(t *testing.T) {
			token := b.Invite(t, bus.RoleAgent, "web-1")
			c.change(t, token)
			dir := newDir(t)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := bus.Join(ctx, bus.JoinConfig{Token: token, Dir: dir})
			if err == nil || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(c.want)) {
				t.Errorf("Join: got %v, want %q", err, c.want)
			}
			if _, err := bus.ReadIdentity(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("an identity was written: %v", err)
			}
			if err := b.Enrolment(t).Remove(t.Context(), bus.RoleAgent, "web-1"); err != nil && !errors.Is(err, bus.ErrNotFound) {
				t.Fatal(err)
			}
		})
	}
	expired, err := b.Enrolment(t).Invite(t.Context(), bus.RoleAgent, "late", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	token, err := bus.ParseToken([]byte(expired))
	if err != nil {
		t.Fatal(err)
	}
	token.Expires += 3600 // whoever has it may well pretend
	eventually(t, "the server's own refusal of an expired token", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		conn, err := bus.Connect(bus.ConnectConfig{URLs: token.URLs, User: &token.User})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.Await(ctx) != nil
	})
	if _, err := join(t, token, newDir(t)); err == nil {
		t.Error("an expired token was taken")
	}
}

// TestJoinTwice: of two who use one token the first wins; the second is told what to do. An operator
// who does it can let the right one in.
func TestJoinTwice(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	token := b.Invite(t, bus.RoleAgent, "web-1")
	thief, err := join(t, token, newDir(t))
	if err != nil {
		t.Fatal(err)
	}
	_, err = join(t, token, newDir(t))
	if err == nil || !strings.Contains(err.Error(), "was used already") || !strings.Contains(err.Error(), "`sidekey agents remove web-1` at once") {
		t.Errorf("Join with a used token: got %v, want what to do", err)
	}
	e := b.Enrolment(t)
	conn := connectAs(t, thief)
	if err := e.Remove(t.Context(), bus.RoleAgent, "web-1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removed one's connection to end", func() bool { return !conn.Connected() })
	if _, err := join(t, b.Invite(t, bus.RoleAgent, "web-1"), newDir(t)); err != nil {
		t.Errorf("joining anew after the removal: %v", err)
	}
	never(t, conn)
	if err := e.Remove(t.Context(), bus.RoleAgent, "nobody"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("Remove of nobody: got %v, want ErrNotFound", err)
	}
	void := b.Invite(t, bus.RoleAgent, "gone")
	if _, err := join(t, b.Invite(t, bus.RoleAgent, "gone"), newDir(t)); err != nil {
		t.Fatal(err)
	}
	if err := e.Remove(t.Context(), bus.RoleAgent, "gone"); err != nil {
		t.Fatal(err)
	}
	if _, err := join(t, void, newDir(t)); err == nil || !strings.Contains(err.Error(), "not known here") {
		t.Errorf("joining with a token from before the removal: got %v, want a refusal", err)
	}
}

// never holds that a connection does not come back. Another one, made and ended meanwhile, shows that
// the server took connections for longer than a reconnect takes.
func never(t *testing.T, conn *bus.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	if err := conn.Await(ctx); err == nil {
		t.Error("a removed member is connected again")
	}
}

// TestRemoveAgain: a removal that failed half-way is finished by removing once more.
func TestRemoveAgain(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	folder := filepath.Join(t.TempDir(), "full disk")
	e := b.OpenEnrolment(t, func(cfg *bus.EnrolConfig) { cfg.Revoked = filepath.Join(folder, "bus.revoked") })
	id := b.Join(t, "web-1")
	conn := connectAs(t, id)
	if err := e.Remove(t.Context(), bus.RoleAgent, "web-1"); err == nil || errors.Is(err, bus.ErrNotFound) {
		t.Fatalf("Remove without a place for the list: got %v, want its failure", err)
	}
	if err := e.Remove(t.Context(), bus.RoleAgent, "web-1"); err == nil || errors.Is(err, bus.ErrNotFound) {
		t.Fatalf("Remove again without a place for the list: got %v, want its failure", err)
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	void := b.Invite(t, bus.RoleAgent, "web-1")
	if err := e.Remove(t.Context(), bus.RoleAgent, "web-1"); !errors.Is(err, bus.ErrNotFound) || !strings.Contains(err.Error(), "was removed at") {
		t.Errorf("Remove again: got %v, want ErrNotFound and when it was", err)
	}
	eventually(t, "the removed one's connection to end", func() bool { return !conn.Connected() })
	if _, err := join(t, void, newDir(t)); err == nil || !strings.Contains(err.Error(), "not known here") {
		t.Errorf("joining with a token from before: got %v, want a refusal", err)
	}
}

// TestRemovedStaysOut: who was removed is refused after a restart of the server and of the issuer,
// also where the issuer lost its own list and has only the bucket.
func TestRemovedStaysOut(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	id, good := b.Join(t, "bad"), b.Join(t, "good")
	conn, goodConn := connectAs(t, id), connectAs(t, good)
	if err := b.Enrolment(t).Remove(t.Context(), bus.RoleAgent, "bad"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removed one's connection to end", func() bool { return !conn.Connected() })
	if !goodConn.Connected() {
		t.Error("a removal has cut off another agent")
	}
	b.Restart(t) // with the list
	never(t, conn)
	b.Stop()
	b.Forget(t) // without
	b.Restart(t)
	b.OpenEnrolment(t, func(*bus.EnrolConfig) {})
	eventually(t, "the removed one's connection to end", func() bool { return !conn.Connected() })
	never(t, conn)
	connectAs(t, good)
}

// TestRemoveThroughAnotherIssuer: the issuer that removes has not the keys to change accounts; the
// one that has them does it.
func TestRemoveThroughAnotherIssuer(t *testing.T) {
	b := bustest.Start(t)
	b.Enrolment(t)
	id, err := join(t, b.Invite(t, bus.RoleIssuer, "second"), newDir(t))
	if err != nil {
		t.Fatal(err)
	}
	if string(id.Master.Text()) != string(b.Master.Text()) || id.Keys.Operates() {
		t.Error("a joined issuer: want the master key, and not the operator's")
	}
	conn := connectAs(t, id)
	if !conn.AtIssuer() {
		t.Error("the server inside an issuer is taken for an existing NATS")
	}
	bucket := func(name string) *bus.Bucket {
		k, err := bus.OpenBucket(t.Context(), conn, name, id.Master, 1)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	second := b.OpenEnrolment(t, func(c *bus.EnrolConfig) {
		c.Conn, c.Keys, c.Server, c.Master, c.Revoked = conn, id.Keys, nil, id.Master, ""
		c.Joins, c.Agents, c.Issuers = bucket(bus.BucketJoins), bucket(bus.BucketAgents), bucket(bus.BucketIssuers)
	})
	text, err := second.Invite(t.Context(), bus.RoleAgent, "web-1", 0)
	if err != nil {
		t.Fatal(err)
	}
	token, err := bus.ParseToken([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	agent, err := join(t, token, newDir(t))
	if err != nil {
		t.Fatal(err)
	}
	agentConn := connectAs(t, agent)
	if err := second.Remove(t.Context(), bus.RoleAgent, "web-1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removed agent's connection to end", func() bool { return !agentConn.Connected() })
	if err := b.Enrolment(t).Remove(t.Context(), bus.RoleIssuer, "second"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removed issuer's connection to end", func() bool { return !conn.Connected() })
}

// TestRemovedIssuerHasTheSigningKeys shows a limit that docs/threats.md tells of: the credential of an issuer that was removed is refused,
// but it was given the keys with which credentials are signed, also where it has not the operator's.
func TestRemovedIssuerHasTheSigningKeys(t *testing.T) {
	b := bustest.Start(t)
	id, err := join(t, b.Invite(t, bus.RoleIssuer, "second"), newDir(t))
	if err != nil {
		t.Fatal(err)
	}
	conn := connectAs(t, id)
	if err := b.Enrolment(t).Remove(t.Context(), bus.RoleIssuer, "second"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removed issuer's connection to end", func() bool { return !conn.Connected() })
	user, err := id.Keys.IssuerUser("second")
	if err != nil {
		t.Fatal(err)
	}
	id.User = user
	connectAs(t, id)
}

// TestJoinCrash: a process that dies between any two steps of joining leaves no identity or a whole
// one, and joins with the same token when it is started again.
func TestJoinCrash(t *testing.T) {
	b := bustest.StartTLS(t) // so that there is a CA among the files
	died := errors.New("died")
	var steps, at atomic.Int64
	bus.JoinStep(t.Cleanup, func(string) error {
		if steps.Add(1) == at.Load() {
			return died
		}
		return nil
	})
	crashed := 0
	for n := int64(1); ; n++ {
		at.Store(n)
		steps.Store(0)
		name := fmt.Sprintf("web-%d", n)
		token, dir := b.Invite(t, bus.RoleAgent, name), newDir(t)
		_, err := join(t, token, dir)
		if err == nil {
			break // there are no more steps
		}
		if !errors.Is(err, died) {
			t.Fatalf("step %d: %v", n, err)
		}
		crashed++
		at.Store(0)
		id, err := bus.ReadIdentity(dir)
		if errors.Is(err, os.ErrNotExist) {
			id, err = join(t, token, dir)
		}
		if err != nil {
			t.Fatalf("after dying at step %d: %v, want nothing or a whole identity", n, err)
		}
		connectAs(t, id)
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 6 {
			t.Errorf("after dying at step %d: %d files, want 6 (%v)", n, len(entries), err)
		}
	}
	if crashed < 10 {
		t.Errorf("died at %d steps, want every one", crashed)
	}
}

// TestTokenText: what is no token is refused, and a token does not print its secret in an error.
func TestTokenText(t *testing.T) {
	b := bustest.Start(t)
	text, err := b.Invite(t, bus.RoleAgent, "web-1").Text()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := bus.ParseToken([]byte("  " + text + "\n")); err != nil || got.Name != "web-1" {
		t.Errorf("ParseToken: got %v, %v", got, err)
	}
	for _, bad := range []string{"", text[1:], text[:len(text)-4], text + "!", "sidekey-join-1:", "sidekey-join-1:e30", strings.Repeat("a", 20<<10)} {
		if _, err := bus.ParseToken([]byte(bad)); err == nil || strings.Contains(err.Error(), "eyJ") {
			t.Errorf("ParseToken(%.20q): got %v, want a refusal that repeats nothing", bad, err)
		}
	}
}

// TestTokenMay: who has a join token can ask once to join, and do nothing else on the bus.
func TestTokenMay(t *testing.T) {
	b := bustest.Start(t)
	b.Log(t)
	token := b.Invite(t, bus.RoleAgent, "web-1")
	other := b.Invite(t, bus.RoleAgent, "web-2")
	var refused denials
	nc := operator(t, b, &token.User, refused.option())
	for _, subject := range []string{
		"sidekey.join." + other.ID, "sidekey.join", "sidekey.join.x", "sidekey.lease._eA", "sidekey.ack._eA", "sidekey.status._eA", "sidekey.log.key", "sidekey.live.key",
		"$JS.API.INFO", "$JS.API.DIRECT.GET.sidekey_log", "$JS.API.DIRECT.GET.sidekey_checkpoint", "$SYS.REQ.USER.INFO", "$KV.sidekey_users.x", "_INBOX_JOIN." + other.ID + ".x", "sidekey.removed",
	} {
		if err := nc.PublishRequest(subject, "_INBOX_JOIN."+token.ID+".x", []byte("{}")); err != nil {
			t.Fatal(err)
		}
		eventually(t, "refusal to publish to "+subject, func() bool { return refused.of("publish", subject) })
	}
	for _, subject := range []string{">", "sidekey.>", "sidekey.live.>", "sidekey.join.>", "_INBOX.>", "_INBOX_JOIN.>", "_INBOX_JOIN." + other.ID + ".>", "_INBOX_AGENT.>", "$SYS.>", "$JS.>"} {
		if _, err := nc.Subscribe(subject, func(m *nats.Msg) { t.Errorf("received %s", m.Subject) }); err != nil {
			t.Fatal(err)
		}
		eventually(t, "refusal to subscribe to "+subject, func() bool { return refused.of("subscription", subject) })
	}
}
