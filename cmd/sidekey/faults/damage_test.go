//go:build linux

package faults

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// damages are what a disk does to a file.
var damages = map[string]func(*rand.Rand, []byte) []byte{
	"one bit flipped": func(rng *rand.Rand, b []byte) []byte {
		at := rng.IntN(8 * len(b))
		b[at/8] ^= 1 << (at % 8)
		return b
	},
	"the tail cut": func(rng *rand.Rand, b []byte) []byte { return b[:len(b)-1-rng.IntN(min(len(b), 200))] },
	"emptied":      func(*rand.Rand, []byte) []byte { return nil },
}

// They are the kinds of files of an issuer with its bus, and of an agent, as patterns below their folders; streams is the folder of
// the bus's streams.
const streams = "jetstream/jetstream/*/streams/"

// buckets are those whose records' block is damaged.
var buckets = []string{"users", "sessions", "keys", "agents"}

// blockOf is where a bucket's records are.
func blockOf(bucket string) string { return streams + "KV_sidekey_" + bucket + "/msgs/1.blk" }

// toName is what a refusal must say of a file.
func toName(pattern string) string {
	switch bucket, ok := strings.CutPrefix(pattern, streams+"KV_sidekey_"); {
	case ok:
		return "bucket " + strings.Split(bucket, "/")[0]
	case pattern == "master.key":
		return "master key" // with one bit changed it is another one, and opens nothing
	}
	return filepath.Base(pattern)
}

var (
	issuerFiles = []string{
		"log/checkpoint", "log/journal", "revisions", "revisions.records", "bus.keys", "admin.token", "master.key",
		streams + "sidekey_audit/msgs/1.blk", streams + "KV_sidekey_users/meta.inf",
		"log/grants", streams + "sidekey_grants/msgs/1.blk", streams + "sidekey_log/msgs/1.blk", streams + "sidekey_log/meta.inf", streams + "sidekey_log/meta.sum",
	}
	agentFiles = []string{
		"checkpoint", "journal", "identity/signing.key", "identity/sealing.key", "identity/authority.pub", "identity/bus.json",
		"identity/agent.creds", "bus.servers",
	}
)

// How it may end for whoever has a damaged file.
const (
	mended      = "mended"             // it starts by itself, and nothing that was acknowledged is lost
	refused     = "refused"            // it does not start, and names the file
	notLetIn    = "the bus refuses it" // what the file has is sound in itself, and not true
	looksOlder  = "it takes the state on the bus for one of before"
	nobodyReady = "nobody ready" // never right
)

// mayEnd is what docs/faults.md says of each file.
var mayEnd = func() map[string][]string {
	ends := map[string][]string{
		"revisions":         {mended, refused, looksOlder},
		"revisions.records": {refused},
		"bus.keys":          {refused},
		"master.key":        {refused},
		"checkpoint":        {mended},
		"journal":           {mended},
		"bus.servers":       {mended},
	}
	for _, file := range issuerFiles {
		if ends[file] == nil {
			ends[file] = []string{mended}
		}
	}
	for _, file := range agentFiles {
		if ends[file] == nil {
			ends[file] = []string{refused}
		}
	}
	for _, bucket := range buckets {
		ends[blockOf(bucket)] = []string{refused, mended} // of an old version of a record nothing is lost
	}
	ends["identity/agent.creds"] = []string{refused, notLetIn, mended} // it has words for people too
	return ends
}()

// TestDamage: whatever a disk does to a file while its process is down, the process starts and every promise holds, or it refuses to
// start with a line that says what is wrong, and starts once the file is put back.
func TestDamage(t *testing.T) {
	if !long {
		t.Skip("set SIDEKEY_LONG=1 to damage files")
	}
	binary, err := sound()
	if err != nil {
		t.Fatal(err)
	}
	type damaged struct {
		role  string
		node  func(*site) *node
		files []string
	}
	all := []damaged{{"issuer", (*site).hasBus, issuerFiles}, {"agent", func(s *site) *node { return s.agents[0] }, agentFiles}}
	for _, bucket := range buckets { // each on a site of its own: the server may find the damage later than at the next start
		all = append(all, damaged{"bucket " + bucket, (*site).hasBus, []string{blockOf(bucket)}})
	}
	for _, of := range all {
		for name, damage := range damages {
			if name == "emptied" && strings.HasPrefix(of.role, "bucket ") {
				continue // a bucket may be empty: nobody can tell (docs/faults.md)
			}
			t.Run(of.role+", "+name, func(t *testing.T) {
				t.Parallel()
				seed := chooseSeed(t)
				s := newSite(t, siteConfig{binary: binary, agents: 1, lease: 2 * time.Second, grace: 300 * time.Millisecond})
				w := &workload{site: s, h: newHistory(), seed: seed}
				w.prepare()
				rng := newRand(seed, name)
				for range 3 {
					w.revokeOne(rng)
				}
				for _, file := range of.files {
					t.Logf("%s of %s: %s", file, of.role, w.damaged(of.node(s), file, func(b []byte) []byte { return damage(rng, b) }))
				}
			})
		}
	}
}

// authRefused is what the server of the bus says of who is not let in.
var authRefused = regexp.MustCompile(`authentication error`)

// damaged kills a process, damages a file of it, starts it, and says what became of that.
func (w *workload) damaged(n *node, pattern string, damage func([]byte) []byte) string {
	path, good := w.written(n, pattern)
	var stream, whole string // the folder of a stream, and a copy
	if strings.HasPrefix(pattern, streams) {
		stream, whole = filepath.Join(filepath.Dir(path), ".."), filepath.Join(w.TempDir(), "stream")
		if filepath.Base(filepath.Dir(path)) != "msgs" {
			stream = filepath.Dir(path)
		}
		if err := copyFolder(whole, stream); err != nil {
			w.Fatal(err)
		}
	}
	before, heard := len(n.said()), len(w.hasBus().said())
	notLet := func() bool { return authRefused.MatchString(w.hasBus().said()[heard:]) } // a signature is looked at by the bus alone
	rolledBack := func() bool { return strings.Contains(n.said()[before:], "THE STATE ON THE BUS WAS ROLLED BACK") }
	putBack := func() {
		n.kill()
		w.write(path, good)
		err := os.RemoveAll(filepath.Join(n.dir, "revisions.damaged"))
		if stream != "" { // the server has written down beside it what it made of the damage
			err = errors.Join(err, os.RemoveAll(stream), copyFolder(stream, whole))
		}
		if err != nil {
			w.Error(err)
		}
		n.start()
		n.ready()
	}
	w.write(path, damage(append([]byte{}, good...)))
	n.start()
	outcome := mended
	if err := n.awaitUnless(notLet); err != nil {
		said := strings.TrimSpace(n.said()[before:])
		switch {
		case n.over():
			if !strings.Contains(said, toName(pattern)) || strings.Contains(said, "panic:") {
				w.Errorf("%s damaged: %s ends, and does not say so of the file:\n%s", pattern, n.name, tail(said, 1500))
			}
			outcome = refused + ": " + strings.ReplaceAll(said[strings.LastIndex(said, "\n")+1:], w.dir, "")
		case notLet():
			outcome = notLetIn
		default:
			outcome = nobodyReady
			w.Errorf("%s damaged: %s is neither ready nor over: %v\n%s", pattern, n.name, err, tail(said, 1500))
		}
		putBack()
	}
	_, found := w.backAtHead(time.Now(), backWithin)
	switch {
	case len(found) == 0:
	case notLet(): // it was ready while the lease of before lasted
		outcome = notLetIn
	case rolledBack(): // a version that was turned into a greater one, so what the bus has looks older
		outcome = looksOlder
	}
	if how, _, _ := strings.Cut(outcome, ":"); !slices.Contains(mayEnd[pattern], how) {
		w.Errorf("%s damaged: %s, want one of %q", pattern, outcome, mayEnd[pattern])
	}
	if len(found) > 0 && outcome != mended {
		putBack()
		_, found = w.backAtHead(time.Now(), backWithin)
	}
	for _, look := range []func() (string, int, []violation){w.lost, w.closedRefused} {
		_, _, more := look()
		found = append(found, more...)
	}
	found = append(found, w.h.check(w.site).found...)
	for _, v := range found {
		w.Errorf("%s damaged, %s: %s", pattern, outcome, v)
	}
	if len(found) > 0 {
		w.FailNow()
	}
	return outcome
}

// written kills a process once a file of it has something in it, and gives that.
func (w *workload) written(n *node, pattern string) (path string, content []byte) {
	w.Helper()
	for range 10 {
		n.kill()
		paths, _ := filepath.Glob(filepath.Join(n.dir, pattern)) // the pattern is ours
		if len(paths) > 0 {
			content, _ = os.ReadFile(paths[0]) // none: it is written yet
		}
		if len(content) > 0 {
			return paths[0], content
		}
		n.start()
		n.ready()
		w.revokeOne(newRand(w.seed, pattern))
	}
	w.Fatalf("%s writes no %s", n.name, pattern)
	return "", nil
}

// awaitUnless is await with more patience, which ends early where the process is not let into the bus.
func (n *node) awaitUnless(notLet func() bool) (err error) {
	for range 6 {
		if err = n.await(10 * time.Second); err == nil || n.over() || notLet() {
			return err
		}
	}
	return err
}

func (w *workload) write(path string, content []byte) {
	if err := os.WriteFile(path, content, 0o600); err != nil {
		w.Fatal(err)
	}
}
