// Package sqldb reads databases of others: PostgreSQL, MySQL and MariaDB, SQLite. It only ever reads, within a time and a
// number of rows, and no error of it holds the DSN's password or a value that was asked for.
package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite" // the driver "sqlite"
)

// The drivers, by their names in the configuration.
const (
	Postgres = "postgres" // github.com/jackc/pgx
	MySQL    = "mysql"    // github.com/go-sql-driver/mysql; MariaDB too
	SQLite   = "sqlite"   // modernc.org/sqlite, no C compiler
)

// Drivers are the names that Config.Driver may have.
var Drivers = []string{Postgres, MySQL, SQLite}

// Config says which database, and how much of it may be used.
type Config struct {
	Driver string
	// DSN is a secret: postgres://user:password@host/db?sslmode=verify-full, user:password@tcp(host:3306)/db?tls=true, or the
	// absolute path of a SQLite file.
	DSN      string
	MaxConns int           // open at once; 0: 4
	Timeout  time.Duration // of one query, waiting for a connection included; 0: 2 s
	Insecure bool          // a password and rows may cross a network in clear
}

// DB is an open database. It may be used by many goroutines.
type DB struct {
	db      *sql.DB
	driver  string
	timeout time.Duration
}

// Open checks cfg and connects to nothing yet.
func Open(cfg Config) (*DB, error) {
	if cfg.MaxConns == 0 {
		cfg.MaxConns = 4
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 2 * time.Second
	}
	var db *sql.DB
	var err error
	switch cfg.Driver {
	case Postgres:
		db, err = openPostgres(&cfg)
	case MySQL:
		db, err = openMySQL(&cfg)
	case SQLite:
		db, err = openSQLite(&cfg)
	default:
		err = fmt.Errorf("want the driver %s, got %q", strings.Join(Drivers, ", "), cfg.Driver)
	}
	if err != nil {
		return nil, fmt.Errorf("opening a database: %w", err)
	}
	db.SetMaxOpenConns(cfg.MaxConns)
	db.SetMaxIdleConns(cfg.MaxConns)
	db.SetConnMaxIdleTime(5 * time.Minute)
	db.SetConnMaxLifetime(30 * time.Minute) // a server behind a name may have moved
	return &DB{db, cfg.Driver, cfg.Timeout}, nil
}

// Close closes the connections.
func (d *DB) Close() error { return d.db.Close() }

func openPostgres(cfg *Config) (*sql.DB, error) {
	c, err := pgx.ParseConfig(cfg.DSN)
	if err != nil {
		return nil, errors.New("the DSN is not as postgres://user:password@host:5432/database?sslmode=verify-full") // its error shows parts of it
	}
	clear := c.TLSConfig == nil || c.TLSConfig.InsecureSkipVerify && c.TLSConfig.VerifyPeerCertificate == nil
	remote := !local(c.Host)
	for _, f := range c.Fallbacks {
		clear = clear || f.TLSConfig == nil || f.TLSConfig.InsecureSkipVerify && f.TLSConfig.VerifyPeerCertificate == nil
		remote = remote || !local(f.Host)
	}
	if clear && remote && !cfg.Insecure {
		return nil, errors.New("refusing to ask a database beyond this host whose certificate is not checked; add sslmode=verify-full to the DSN, or set insecure = true")
	}
	c.ConnectTimeout = cfg.Timeout
	return stdlib.OpenDB(*c), nil
}

func openMySQL(cfg *Config) (*sql.DB, error) {
	c, err := mysql.ParseDSN(cfg.DSN)
	if err != nil {
		return nil, errors.New("the DSN is not as user:password@tcp(host:3306)/database?tls=true")
	}
	clear := c.TLSConfig == "" || c.TLSConfig == "false" || c.TLSConfig == "preferred" || c.TLSConfig == "skip-verify" || c.AllowFallbackToPlaintext
	if clear && c.Net != "unix" && !localAddress(c.Addr) && !cfg.Insecure {
		return nil, errors.New("refusing to ask a database beyond this host whose certificate is not checked; add tls=true to the DSN, or set insecure = true")
	}
	c.MultiStatements, c.AllowAllFiles, c.ParseTime = false, false, true
	c.Timeout, c.ReadTimeout, c.WriteTimeout = cfg.Timeout, cfg.Timeout, cfg.Timeout
	c.Logger = log.New(io.Discard, "", 0) // what matters comes back as an error
	connector, err := mysql.NewConnector(c)
	if err != nil {
		return nil, errors.New("the DSN has an option that the driver does not take")
	}
	return sql.OpenDB(connector), nil
}

func openSQLite(cfg *Config) (*sql.DB, error) {
	if !filepath.IsAbs(cfg.DSN) {
		return nil, errors.New("the DSN of SQLite is the absolute path of its file, and nothing else")
	}
	u := url.URL{Scheme: "file", Path: cfg.DSN, RawQuery: url.Values{
		"mode": {"ro"}, "_query_only": {"1"}, "_pragma": {fmt.Sprintf("busy_timeout(%d)", cfg.Timeout.Milliseconds())},
	}.Encode()}
	return sql.Open("sqlite", u.String())
}

// Rows asks a query, in a transaction that can only read, and gives at most most rows: ErrTooMany if there are more. Each row has
// the columns by name, each an int64, float64, bool, string, []byte, time.Time or nil. An argument that PostgreSQL cannot read as
// its column's type, as "x" for a number, gives no row.
func (d *DB) Rows(ctx context.Context, most int, query string, args ...any) (rows []map[string]any, err error) {
	_, rows, err = d.read(ctx, most, query, args)
	return rows, err
}

// Columns asks a query of one parameter for NULL and gives its columns' names. It is an error if that finds a row, since then the
// query does not look at its parameter. A *QueryError means that the query is wrong; else the database is away.
func (d *DB) Columns(ctx context.Context, query string) ([]string, error) {
	names, rows, err := d.read(ctx, 1, query, []any{nil})
	if err == nil && len(rows) > 0 || errors.Is(err, ErrTooMany) {
		return nil, &QueryError{"it finds rows for NULL: it must compare a column with its one parameter"}
	}
	return names, err
}

func (d *DB) read(ctx context.Context, most int, query string, args []any) (names []string, all []map[string]any, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	defer func() { err = d.explain(err, !slices.ContainsFunc(args, func(arg any) bool { return arg != nil })) }()
	ask := d.db.QueryContext
	if d.driver != SQLite { // whose file is open for reading only
		tx, err := d.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
		if err != nil {
			return nil, nil, err
		}
		defer func() { _ = tx.Rollback() }() // it read, and that is all
		ask = tx.QueryContext
	}
	rows, err := ask(ctx, query, args...)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	if names, err = rows.Columns(); err != nil {
		return nil, nil, err
	}
	for at, name := range names {
		if slices.Contains(names[:at], name) {
			return nil, nil, &QueryError{fmt.Sprintf("it has two columns %q", name)}
		}
	}
	for rows.Next() {
		if len(all) == most {
			return nil, nil, ErrTooMany
		}
		row, err := scan(rows, names)
		if err != nil {
			return nil, nil, err
		}
		all = append(all, row)
	}
	return names, all, rows.Err()
}

func scan(rows *sql.Rows, names []string) (map[string]any, error) {
	values, to := make([]any, len(names)), make([]any, len(names))
	for at := range values {
		to[at] = &values[at]
	}
	if err := rows.Scan(to...); err != nil {
		return nil, err
	}
	row := make(map[string]any, len(names))
	for at, name := range names {
		row[name] = values[at]
	}
	return row, nil
}
