package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/issuer/sqldb"
)

// newFile makes a SQLite file with two users in it.
func newFile(t *testing.T) (path string, open *sqldb.DB) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "a b?c#d%.sqlite") // a path is no URL
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Dir(path))
	db, err := sql.Open("sqlite", "file:a%20b%3fc%23d%25.sqlite")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, statement := range []string{
		`create table users (id integer primary key, name text, joined datetime, score real, active bool, raw blob)`,
		`insert into users values (1, 'alice', '2026-01-02 03:04:05', 1.5, 1, x'00ff'), (2, 'bob', null, null, 0, null)`,
	} {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	open, err = sqldb.Open(sqldb.Config{Driver: sqldb.SQLite, DSN: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { open.Close() })
	return path, open
}

func TestRows(t *testing.T) {
	_, db := newFile(t)
	rows, err := db.Rows(t.Context(), 2, "select * from users where name = ?", "alice")
	if err != nil || len(rows) != 1 {
		t.Fatalf("got %v, %v", rows, err)
	}
	r := rows[0]
	if r["id"] != int64(1) || r["name"] != "alice" || r["score"] != 1.5 || r["active"] != true && r["active"] != int64(1) {
		t.Errorf("got %#v", r)
	}
	if rows, err := db.Rows(t.Context(), 2, "select * from users where id = ?", "2"); err != nil || len(rows) != 1 || rows[0]["name"] != "bob" || rows[0]["score"] != nil {
		t.Errorf("an id as text: got %v, %v", rows, err)
	}
	if rows, err := db.Rows(t.Context(), 1, "select * from users where id > ?", 0); !errors.Is(err, sqldb.ErrTooMany) || rows != nil {
		t.Errorf("two rows where one may be: got %v, %v", rows, err)
	}
	if rows, err := db.Rows(t.Context(), 1, "select * from users where name = ?", "' or 1=1 --"); err != nil || len(rows) != 0 {
		t.Errorf("a name that looks like SQL: got %v, %v", rows, err)
	}
}

// TestReadsOnly holds that no query changes a database.
func TestReadsOnly(t *testing.T) {
	path, db := newFile(t)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, query := range []string{
		"delete from users where name = ? returning *",
		"update users set name = 'eve' where name = ? returning *",
		"pragma query_only = 0; delete from users where name = ?",
	} {
		if _, err := db.Rows(t.Context(), 9, query, "alice"); err == nil {
			t.Errorf("%s: no error", query)
		}
	}
	after, err := os.ReadFile(path)
	if err != nil || string(before) != string(after) {
		t.Errorf("the file was changed, or cannot be read: %v", err)
	}
}

func TestColumns(t *testing.T) {
	_, db := newFile(t)
	names, err := db.Columns(t.Context(), "select id, name as username from users where name = ?")
	if err != nil || strings.Join(names, " ") != "id username" {
		t.Errorf("got %q, %v", names, err)
	}
	for query, want := range map[string]string{
		"select id, who from users where name = ?":       "the query is wrong: SQL logic error: no such column: who (1) (SQLite error 1)",
		"select id from people where name = ?":           "the query is wrong: SQL logic error: no such table: people (1) (SQLite error 1)",
		"select id, id from users where name = ?":        `the query is wrong: it has two columns "id"`,
		"select id from users where name = ? or 1 = 1":   "the query is wrong: it finds rows for NULL: it must compare a column with its one parameter",
		"select id from users where name is ? or id < 2": "the query is wrong: it finds rows for NULL: it must compare a column with its one parameter",
	} {
		_, err := db.Columns(t.Context(), query)
		var wrong *sqldb.QueryError
		if !errors.As(err, &wrong) || err.Error() != want {
			t.Errorf("%s: got %v, want %s", query, err, want)
		}
	}
	// What was asked for stays out of the error.
	if _, err := db.Rows(t.Context(), 1, "select who from users where name = ?", "hunter2"); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
}

func TestDatabaseAway(t *testing.T) {
	for name, cfg := range map[string]sqldb.Config{
		"postgres": {Driver: sqldb.Postgres, DSN: "postgres://u:hunter2@127.0.0.1:1/d?sslmode=disable"},
		"mysql":    {Driver: sqldb.MySQL, DSN: "u:hunter2@tcp(127.0.0.1:1)/d"},
		"sqlite":   {Driver: sqldb.SQLite, DSN: "/nonexistent/hunter2"},
	} {
		db, err := sqldb.Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		_, err = db.Columns(t.Context(), "select 1 where 1 = ?")
		var wrong *sqldb.QueryError
		if err == nil || errors.As(err, &wrong) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: got %v, want an error that the database is away", name, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
		defer cancel()
		if _, err := db.Rows(ctx, 1, "select 1 where 1 = ?", 1); err == nil {
			t.Errorf("%s: no error after the time is up", name)
		}
	}
}

// TestOpenRefuses holds that what others could read on the way is not sent, and that no error shows a password.
func TestOpenRefuses(t *testing.T) {
	const unchecked = "opening a database: refusing to ask a database beyond this host whose certificate is not checked; add "
	for _, test := range []struct{ driver, dsn, want string }{
		{"oracle", "x", `opening a database: want the driver postgres, mysql, sqlite, got "oracle"`},
		{"postgres", "postgres://u:hunter2@h:port/d", "opening a database: the DSN is not as postgres://"},
		{"postgres", "postgres://u:hunter2@10.0.0.5/d", unchecked + "sslmode=verify-full to the DSN, or set insecure = true"},
		{"postgres", "postgres://u:hunter2@10.0.0.5/d?sslmode=require", unchecked},
		{"postgres", "postgres://u:hunter2@127.0.0.1,10.0.0.5/d?sslmode=prefer", unchecked},
		{"mysql", "hunter2", "opening a database: the DSN is not as user:password@tcp(host:3306)/database?tls=true"},
		{"mysql", "u:hunter2@tcp(10.0.0.5:3306)/d", unchecked + "tls=true to the DSN, or set insecure = true"},
		{"mysql", "u:hunter2@tcp(10.0.0.5:3306)/d?tls=skip-verify", unchecked},
		{"mysql", "u:hunter2@tcp(10.0.0.5:3306)/d?tls=preferred", unchecked},
		{"sqlite", "hunter2.sqlite", "opening a database: the DSN of SQLite is the absolute path"},
		{"sqlite", "file:/hunter2?mode=rw", "opening a database: the DSN of SQLite is the absolute path"},
	} {
		db, err := sqldb.Open(sqldb.Config{Driver: test.driver, DSN: test.dsn})
		if err == nil {
			db.Close()
			t.Errorf("Open(%s, %s): no error, want %s", test.driver, test.dsn, test.want)
			continue
		}
		if !strings.HasPrefix(err.Error(), test.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("Open(%s, %s): got %v, want %s", test.driver, test.dsn, err, test.want)
		}
	}
	for driver, dsn := range map[string]string{
		"postgres": "postgres://u@db.example/d?sslmode=verify-full", "mysql": "u@tcp(db.example:3306)/d?tls=true", "sqlite": "/x",
	} {
		if db, err := sqldb.Open(sqldb.Config{Driver: driver, DSN: dsn}); err != nil {
			t.Errorf("Open(%s, %s): %v", driver, dsn, err)
		} else {
			db.Close()
		}
	}
	if db, err := sqldb.Open(sqldb.Config{Driver: "postgres", DSN: "postgres://10.0.0.5/d", Insecure: true}); err != nil {
		t.Errorf("insecure: %v", err)
	} else {
		db.Close()
	}
}
