package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// fleetOf is an issuer's answer about a fleet.
func fleetOf(seq int, agents string, problems ...string) string {
	said, _ := json.Marshal(append([]string{}, problems...)) // strings
	return `{"issuer":{"name":"issuer-1","ready":true,"seq":` + string(jsonNumber(seq)) + `},"issuers":[],"agents":` + agents + `,"revocations":3,"problems":` + string(said) + `}`
}

func jsonNumber(n int) []byte {
	b, _ := json.Marshal(n) // a number
	return b
}

const (
	allWell  = `{"total":2,"states":{"ok":2},"vouching":2,"lag_ms":40,"versions":{"v1":2},"worst":[],"more":0}`
	oneIsOld = `{"total":2,"states":{"ok":1,"behind":1},"vouching":2,"lag_ms":31000,"versions":{"v1":2},"worst":[` +
		`{"name":"web-2","state":"behind","lag_ms":31000,"may_vouch_ms":60000,"seen":1767225600}],"more":0}`
)

// watch runs sidekey status --watch on an issuer whose answer about the fleet may change, and gives its lines.
func watch(t *testing.T, answer *atomic.Pointer[string], args ...string) (lines *bufio.Scanner, stop func() int) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text := answer.Load()
		if text == nil || r.URL.Path == "/v1/status" {
			http.Error(w, "away", http.StatusBadGateway)
			return
		}
		io.WriteString(w, *text)
	}))
	t.Cleanup(server.Close)
	read, write := io.Pipe()
	a := &app{stdin: strings.NewReader(""), stdout: write, stderr: os.Stderr, flags: map[string]string{},
		environ: []string{"SIDEKEY_ADDR=" + server.URL, "SIDEKEY_TOKEN=T"}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		ended <- a.run(ctx, append([]string{"status", "--watch", "--interval", "200ms", "--agent", server.URL}, args...))
		write.Close()
	}()
	stop = func() int {
		cancel()
		go io.Copy(io.Discard, read) //nolint:errcheck // nobody reads what it still writes
		return <-ended
	}
	t.Cleanup(func() { read.Close() })
	return bufio.NewScanner(read), stop
}

// readTo reads lines up to one that has all of want, and gives how many came before it.
func readTo(t *testing.T, lines *bufio.Scanner, want ...string) (before int) {
	t.Helper()
	for lines.Scan() {
		missing := false
		for _, w := range want {
			missing = missing || !strings.Contains(lines.Text(), w)
		}
		if !missing {
			return before
		}
		if before++; before > 50 {
			break
		}
	}
	t.Fatalf("after %d lines none has %q; the last is %q", before, want, lines.Text())
	return before
}

// TestStatusWatch: each look is a line, a change is in the next ones, a fleet that is away is said and watched on; and being told to
// stop is no failure.
func TestStatusWatch(t *testing.T) {
	t.Parallel()
	var answer atomic.Pointer[string]
	say := func(text string) { answer.Store(&text) }
	say(fleetOf(412, allWell))
	lines, stop := watch(t, &answer, "--format", "table")
	if n := readTo(t, lines, "applied 412, agents 2 ok of 2, behind by 40ms at most, revocations 3, 0 problems"); n != 0 {
		t.Errorf("the first look came as line %d", n+1)
	}
	readTo(t, lines, "applied 412")
	say(fleetOf(413, oneIsOld, "agent web-2 is behind\x1b[2J", "more"))
	readTo(t, lines, "applied 413, agents 1 ok of 2, behind by 31s at most, revocations 3, 2 problems", `"agent web-2 is behind\x1b[2J"`)
	answer.Store(nil)
	readTo(t, lines, "neither an agent nor an issuer answers")
	say(fleetOf(414, allWell))
	readTo(t, lines, "applied 414")
	if status := stop(); status != exitDone {
		t.Errorf("told to stop: exit status %d, want 0", status)
	}
}

// TestStatusWatchJSON: for programs each look is one JSON a line.
func TestStatusWatchJSON(t *testing.T) {
	t.Parallel()
	var answer atomic.Pointer[string]
	for seq := range 2 {
		text := fleetOf(seq, allWell)
		answer.Store(&text)
		lines, stop := watch(t, &answer)
		for range 2 {
			var s struct {
				Fleet struct{ Issuer struct{ Seq *int } }
			}
			if !lines.Scan() || json.Unmarshal(lines.Bytes(), &s) != nil || s.Fleet.Issuer.Seq == nil || *s.Fleet.Issuer.Seq != seq {
				t.Errorf("got %q, want a line of JSON with the sequence %d", lines.Text(), seq)
			}
		}
		stop()
	}
}

// TestStatusScreen: a terminal is wiped and drawn in one write, and says who is behind and by how much.
func TestStatusScreen(t *testing.T) {
	var out writes
	a := &app{stdout: &out}
	s := &status{AgentError: "no agent", Issuer: "ok", Fleet: json.RawMessage(fleetOf(413, oneIsOld, "agent web-2 is behind"))}
	for range 2 {
		if err := a.showLook(s, true, true); err != nil {
			t.Fatal(err)
		}
	}
	if len(out) != 2 {
		t.Fatalf("two looks took %d writes, want 2", len(out))
	}
	screen := string(out[1])
	if !strings.HasPrefix(screen, "\x1b[H\x1b[2J"+time.Now().UTC().Format("2006-")) {
		t.Errorf("got %q, want a wiped screen and the time", screen[:min(len(screen), 40)])
	}
	for _, want := range []string{"agents  ", "1 behind, 1 ok", "behind by 31s at most", "  web-2", "behind 31s", "may vouch for 1m0s", "PROBLEM", "agent web-2 is behind"} {
		if !strings.Contains(screen, want) {
			t.Errorf("the screen has no %q:\n%s", want, screen)
		}
	}
}

// writes is what each Write was given.
type writes [][]byte

func (w *writes) Write(b []byte) (int, error) {
	*w = append(*w, bytes.Clone(b))
	return len(b), nil
}
