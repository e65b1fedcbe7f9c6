package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A page's first ```sh block has the command that starts what the page's other commands talk to.
var devCommand = regexp.MustCompile("(?m)^```sh\n(go run \\./cmd/sidekey dev.*)\n```")

// readmeExample is one command of a page and the output that the page shows for it.
type readmeExample struct {
	line    int // of the page
	command string
	output  string
}

// TestReadme runs what README.md and docs/tour.md show, word for word: each line "$ COMMAND" of a ```console block in one
// bash, one after the other, beside the page's devCommand. The output must be as shown, where "..." stands for anything.
// Other blocks (```sh) are not run. It needs bash, curl and the default ports, so only the long suite has it.
func TestReadme(t *testing.T) {
	if !long {
		t.Skip("the README's commands need the default ports; set SIDEKEY_LONG=1 to run them")
	}
	for _, page := range []string{"README.md", "docs/tour.md"} {
		t.Run(page, func(t *testing.T) {
			text, err := os.ReadFile("../../" + page)
			if err != nil {
				t.Fatal(err)
			}
			dev := devCommand.FindSubmatch(text)
			if dev == nil {
				t.Fatalf("%s has no ```sh block with `go run ./cmd/sidekey dev`", page)
			}
			examples := readmeExamples(string(text))
			if len(examples) == 0 {
				t.Fatalf("%s has no ```console block with a command", page)
			}
			t.Setenv("TMPDIR", t.TempDir()) // so that the newest folder of a dev is this one's
			startDev(t, string(dev[1]))
			for i, got := range runExamples(t, examples) {
				e := examples[i]
				if got.status != "0" || !outputMatches(e.output, got.output) {
					t.Errorf("%s:%d: $ %s\ngot status %s and\n%s\nwant\n%s", page, e.line, e.command, got.status, got.output, e.output)
				}
			}
		})
	}
}

// readmeExamples finds the commands of the console blocks. A command goes on in the next line after a backslash.
func readmeExamples(text string) []readmeExample {
	var examples []readmeExample
	inside, more := false, false
	for i, line := range strings.Split(text, "\n") {
		last := len(examples) - 1
		switch {
		case strings.HasPrefix(line, "```"):
			inside, more = line == "```console", false
		case !inside:
		case more:
			examples[last].command += "\n" + line
			more = strings.HasSuffix(line, `\`)
		case strings.HasPrefix(line, "$ "):
			examples = append(examples, readmeExample{line: i + 1, command: line[2:]})
			more = strings.HasSuffix(line, `\`)
		case last >= 0:
			examples[last].output += line + "\n"
		}
	}
	return examples
}

// outputMatches compares without the white space at the ends; "..." in want stands for anything.
func outputMatches(want, got string) bool {
	parts := strings.Split(strings.TrimSpace(want), "...")
	for i := range parts {
		parts[i] = regexp.QuoteMeta(parts[i])
	}
	return regexp.MustCompile(`(?s)^` + strings.Join(parts, ".*") + `$`).MatchString(strings.TrimSpace(got))
}

// result is what one command wrote, on both streams, and its exit status.
type result struct{ output, status string }

// runExamples runs the commands in one bash, so that variables live on, and returns a result for each.
func runExamples(t *testing.T, examples []readmeExample) []result {
	t.Helper()
	const mark = "--- README ---"
	var script strings.Builder
	script.WriteString("exec 2>&1\n")
	for _, e := range examples {
		fmt.Fprintf(&script, "%s\nprintf '\\n%s %%s\\n' $?\n", e.command, mark)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", script.String())
	cmd.Dir = "../.."
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("bash: %v\n%s", err, out)
	}
	parts := regexp.MustCompile(`(?m)^`+mark+` (\d+)\n`).FindAllSubmatchIndex(out, -1)
	if len(parts) != len(examples) {
		t.Fatalf("%d of %d commands ended:\n%s", len(parts), len(examples), out)
	}
	var results []result
	start := 0
	for _, p := range parts {
		results = append(results, result{output: string(out[start:p[0]]), status: string(out[p[2]:p[3]])})
		start = p[1]
	}
	return results
}

// startDev runs a page's devCommand until the end of the test, where an interrupt has to end it. It returns once the command has
// said all that it says, as a reader would wait. `go run` makes a status of its own of an interrupt; dev.txtar looks at
// the command's.
func startDev(t *testing.T, devCommand string) {
	t.Helper()
	for _, address := range []string{"127.0.0.1:7460", "127.0.0.1:7461"} {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatalf("the README's commands need the default ports: %v", err)
		}
		ln.Close()
	}
	output := new(greeting)
	cmd := exec.Command("bash", "-c", "exec "+devCommand)
	cmd.Dir = "../.."
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // `go run` leaves the interrupt to its child
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
		select {
		case <-ended:
		case <-time.After(patience):
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-ended
			t.Errorf("%s did not end %s after an interrupt:\n%s", devCommand, patience, output)
		}
	})
	ready := time.NewTimer(5 * time.Minute) // with the build
	defer ready.Stop()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for !strings.Contains(output.String(), "Stop with Ctrl-C") {
		select {
		case <-again.C:
		case <-ready.C:
			t.Fatalf("%s is not ready:\n%s", devCommand, output)
		case <-ended:
			t.Fatalf("%s ended:\n%s", devCommand, output)
		}
	}
}

// greeting is what a running command has written so far.
type greeting struct {
	mu   sync.Mutex
	text strings.Builder
}

func (g *greeting) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.text.Write(p)
}

func (g *greeting) String() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.text.String()
}

func TestReadmeExamples(t *testing.T) {
	text := "# x\n```console\n$ a \\\n  b\nout 1\n$ c\n```\n```sh\n$ d\n```\nlast\n```console\n$ echo one two\none ...\n```\n"
	got := readmeExamples(text)
	want := []readmeExample{{3, "a \\\n  b", "out 1\n"}, {6, "c", ""}, {13, "echo one two", "one ...\n"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("no bash here")
	}
	results := runExamples(t, []readmeExample{{command: "A=1"}, {command: "printf %s $A; echo b >&2"}, {command: "false"}})
	for i, want := range []result{{"", "0"}, {"1b", "0"}, {"", "1"}} {
		if strings.TrimSpace(results[i].output) != want.output || results[i].status != want.status {
			t.Errorf("command %d: got %q, want %q", i, results[i], want)
		}
	}
	for _, test := range []struct {
		want, got string
		match     bool
	}{{"a ... c\n", "a b\nb c", true}, {"", "\n", true}, {"", "x", false}, {"a.c", "abc", false}, {"...", "", true}} {
		if outputMatches(test.want, test.got) != test.match {
			t.Errorf("outputMatches(%q, %q): got %v", test.want, test.got, !test.match)
		}
	}
}
