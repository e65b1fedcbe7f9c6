package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// maxSecret bounds what is read as a token, a password or a key.
const maxSecret = 64 << 10

// secretArg is a token or a secret that was given as an argument: "-" reads it from stdin, "@FILE" from a file, and
// anything else is the secret itself, which other processes of the user can see. One line break at the end is
// not part of it. what names it in errors, which never repeat it.
func (a *app) secretArg(what, arg string) (string, error) {
	var text string
	var err error
	switch path, isFile := strings.CutPrefix(arg, "@"); {
	case arg == "-":
		text, err = readSecret(a.stdin)
	case isFile:
		text, err = readSecretFile(path)
	default:
		text = arg
	}
	if err != nil {
		return "", fmt.Errorf("reading the %s: %w", what, err)
	}
	text = strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
	if text == "" {
		return "", fmt.Errorf("reading the %s: it is empty", what)
	}
	return text, nil
}

func readSecretFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return readSecret(f)
}

func readSecret(r io.Reader) (string, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxSecret+1))
	if err == nil && len(text) > maxSecret {
		err = fmt.Errorf("it is over %d bytes", maxSecret)
	}
	return string(text), err
}

// password is what --password says, or is asked for on the terminal: twice when it is a new one.
func (a *app) password(arg string, isNew bool) (string, error) {
	if arg != "" {
		return a.secretArg("password", arg)
	}
	f, ok := a.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return "", usagef("no terminal to ask for a password: use --password - for standard input or --password @FILE")
	}
	first, err := a.prompt(f, "Password: ")
	if err != nil || !isNew {
		return first, err
	}
	second, err := a.prompt(f, "Again: ")
	if err == nil && second != first {
		err = fmt.Errorf("the two passwords differ; nothing was changed")
	}
	return first, err
}

func (a *app) prompt(f *os.File, text string) (string, error) {
	fmt.Fprint(a.stderr, text)
	line, err := term.ReadPassword(int(f.Fd()))
	fmt.Fprintln(a.stderr)
	if err == nil && len(line) == 0 {
		err = fmt.Errorf("reading the password: it is empty")
	}
	return string(line), err
}
