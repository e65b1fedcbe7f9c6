package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAppendFile: it only grows, is nobody else's to read, and follows its name when it was moved away.
func TestAppendFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	if err := os.WriteFile(path, []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := openAppend(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	write := func(text string) {
		t.Helper()
		if _, err := f.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	holds := func(path, want string) {
		t.Helper()
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s: got %q, %v, want %q", filepath.Base(path), got, err, want)
		}
	}
	write("one\n")
	holds(path, "before\none\n")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write("two\n")
	holds(path+".1", "before\none\n")
	holds(path, "two\n")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the new file: got %v, %v, want 0600", info.Mode(), err)
	}
	if err := os.Truncate(path, 0); err != nil { // logrotate's copytruncate
		t.Fatal(err)
	}
	write("three\n")
	holds(path, "three\n")

	open := filepath.Join(t.TempDir(), "open.jsonl")
	if err := os.WriteFile(open, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := openAppend(open); err == nil || !strings.Contains(err.Error(), "others may use it (mode 0644); run: chmod 600") {
		t.Errorf("a file that others may read: got %v, want a refusal", err)
	}
	if _, err := openAppend(t.TempDir()); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("a folder: got %v, want a refusal", err)
	}
}
