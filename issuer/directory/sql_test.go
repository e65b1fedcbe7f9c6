package directory_test

import (
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/issuer/directory"
	"github.com/sidekey/sidekey/issuer/sqldb"
)

// open makes a SQLite file of these statements and asks it.
func open(t *testing.T, cfg directory.SQLConfig, statements ...string) *directory.SQL {
	t.Helper()
	path := filepath.Join(t.TempDir(), "users.sqlite")
	make, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range statements {
		if _, err := make.Exec(s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
	if err := make.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := sqldb.Open(sqldb.Config{Driver: sqldb.SQLite, DSN: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return directory.NewSQL(db, cfg)
}

func queries(columns string) directory.SQLConfig {
	return directory.SQLConfig{
		Query:     "select " + columns + " from users where username = ?",
		QueryByID: "select " + columns + " from users where id = ?",
		Scope:     "read", Roles: []string{"member"},
	}
}

const plain = `create table users (id integer, username text, password text, is_active bool, x)`

func TestSQL(t *testing.T) {
	s := open(t, queries("id, username, password, is_active"), plain, `insert into users values (7, 'anna', 'hash', 1, null)`)
	if err := s.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, find := range []func() (*issuer.Account, error){
		func() (*issuer.Account, error) { return s.Lookup(t.Context(), "anna") },
		func() (*issuer.Account, error) { return s.ByID(t.Context(), "7") },
	} {
		a, err := find()
		if err != nil {
			t.Fatal(err)
		}
		if a.ID != "7" || a.Username != "anna" || a.PasswordHash != "hash" || a.Disabled || a.Scope != "read" || fmt.Sprint(a.Roles) != "[member]" || a.Marker == "" || a.Attributes != nil {
			t.Errorf("got %+v", a)
		}
	}
	for _, id := range []string{"07", "7.0", "8", "7abc"} {
		if _, err := s.ByID(t.Context(), id); !errors.Is(err, issuer.ErrNotFound) {
			t.Errorf("ByID(%q): got %v, want %v", id, err, issuer.ErrNotFound)
		}
	}
	for _, name := range []string{"Anna", "anna ", "' or '1'='1", "%"} {
		if _, err := s.Lookup(t.Context(), name); !errors.Is(err, issuer.ErrNotFound) {
			t.Errorf("Lookup(%q): got %v, want %v", name, err, issuer.ErrNotFound)
		}
	}
}

func TestSQLColumns(t *testing.T) {
	s := open(t, queries("*"), `create table users (id text, username text, password text, is_active int, scope text, roles text, email text, attributes text, marker text, joined datetime, score real)`,
		`insert into users values ('u-1', 'anna', null, 0, 'a b', '["x", "y z", null]', 'a@b', '{"team": ["red"], "n": 1}', 'm1', '2026-01-02 03:04:05', 1.5)`,
		`insert into users values ('u-2', 'ben', '!', 1, null, 'x, y,', null, null, 'm2', null, null)`)
	a, err := s.Lookup(t.Context(), "anna")
	if err != nil {
		t.Fatal(err)
	}
	if !a.Disabled || a.PasswordHash != "" || a.Scope != "a b" || fmt.Sprintf("%q", a.Roles) != `["x" "y z"]` || a.Email != "a@b" || a.Marker != "m1" ||
		string(a.Attributes) != `{"joined":"2026-01-02T03:04:05Z","n":1,"score":1.5,"team":["red"]}` {
		t.Errorf("got %+v with the attributes %s", a, a.Attributes)
	}
	a, err = s.Lookup(t.Context(), "ben")
	if err != nil {
		t.Fatal(err)
	}
	if a.Disabled || a.Scope != "" || fmt.Sprintf("%q", a.Roles) != `["x" "y"]` || string(a.Attributes) != `{"joined":null,"score":null}` {
		t.Errorf("got %+v with the attributes %s", a, a.Attributes)
	}
}

// TestSQLRefusesRows holds that a row is believed only if each column is what it must be.
func TestSQLRefusesRows(t *testing.T) {
	for values, want := range map[string]string{
		`null, 'u', 'secret', 1, null`:              `column "id" is NULL, or missing`,
		`'', 'u', 'secret', 1, null`:                `column "id" is empty`,
		`1.5, 'u', 'secret', 1, null`:               `column "id" is neither text nor a whole number`,
		`1, 'u', 'secret', null, null`:              `id "1": column "is_active" is neither true nor false, 1 nor 0`,
		`1, 'u', 'secret', 'yes', null`:             `id "1": column "is_active" is neither true nor false, 1 nor 0`,
		`1, 'u', 'secret', 2, null`:                 `id "1": column "is_active" is neither true nor false, 1 nor 0`,
		`1, 'u', 1.5, 1, null`:                      `id "1": column "password" is neither text nor a whole number`,
		`1, 'u', cast(x'ff' as text), 1, null`:      `id "1": column "password" is not UTF-8`,
		`1, 'u', 'secret', 1, x'ff'`:                `id "1": column "x" is not UTF-8`,
		`1, 'u', 'a', 1, 1), (2, 'u', 'b', 1, null`: `the query finds more than one user`,
	} {
		s := open(t, queries("*"), `create table users (id, username, password, is_active, x)`, "insert into users values ("+values+")")
		_, err := s.Lookup(t.Context(), "u")
		var broken *issuer.RecordError
		if !errors.As(err, &broken) || broken.Problem != want || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: got %v, want %s", values, err, want)
		}
	}
	for column, want := range map[string]string{
		`'[1]' as roles`: `column "roles" is no JSON list of texts`, `'[' as roles`: `column "roles" is no JSON list of texts`,
		`'[]' as attributes`: `column "attributes" is no JSON object`, `'null' as attributes`: `column "attributes" is no JSON object`,
		`null as marker`: `column "marker" is NULL, or missing`,
	} {
		s := open(t, queries("id, username, password, is_active, "+column), plain, `insert into users values (1, 'u', 'secret', 1, null)`)
		if _, err := s.Lookup(t.Context(), "u"); err == nil || !strings.HasSuffix(err.Error(), `id "1": `+want) {
			t.Errorf("%s: got %v, want %s", column, err, want)
		}
	}
}

func TestSQLCheck(t *testing.T) {
	for columns, want := range map[string]string{
		"id, username, password":                   `issuer.sql.query: the query is wrong: it has no column "is_active"; name one with AS`,
		"id, x as name, password, is_active":       `issuer.sql.query: the query is wrong: it has no column "username"; name one with AS`,
		"id, id, username, password, is_active":    `issuer.sql.query: the query is wrong: it has two columns "id"`,
		"id, login, username, password, is_active": `issuer.sql.query: the query is wrong: SQL logic error: no such column: login (1) (SQLite error 1)`,
	} {
		err := open(t, queries(columns), plain).Check(t.Context())
		var wrong *sqldb.QueryError
		if !errors.As(err, &wrong) || err.Error() != want {
			t.Errorf("%s: got %v, want %s", columns, err, want)
		}
	}
}
